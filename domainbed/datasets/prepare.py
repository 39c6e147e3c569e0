"""From a data set to the images of a run: splits, subset, decoded rows, and the checks that make them trustworthy.

Vectors in the place of images take the same way, but for decoding (`vectors`); what is said of images holds for them.

names and labels -> who is held out (splits) -> subset -> decode once (packed) -> unreadable? -> the same on two sides?
"""

import csv
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from domainbed.datasets import leakage, masks, splits
from domainbed.datasets.base import UNLABELLED, Dataset
from domainbed.datasets.labels import plain
from domainbed.datasets.masks import MaskClasses
from domainbed.datasets.packed import Rows, pack
from domainbed.datasets.vectors import Vectors, take
from domainbed.errors import UserError
from domainbed.machine import give_back_freed_memory


@dataclass
class Images:
    """The readable images of a run, one row each.

    Attributes:
        environments: names of all environments.
        classes: names of the classes; empty where there are no labels.
        ordinal: whether the classes are ordered.
        rows: (N, H, W, C) uint8, or vectors (N, F) float32, read from the disk when they are asked for.
        environment: (N,) int64 indices. labels: (N,) int64. split: (N,) "train", "val" or "test".
        groups: (N,) names of what stays on one side of a split.
        names: (N,) names of the images.
        unreadable: (name, reason) of images that were left out.
        leaks: a line for each way in which an image is where it gives an answer away.
        contents: a digest of every image, or what it was drawn from.
        mask_classes: what the masks hold; None in a run without masks.
        masks: (N, H, W) uint8 planes (see `datasets.masks`), likewise; None in a run without masks.
        mask_contents: a digest of every image's masks.
    """

    environments: list[str]
    classes: list[str]
    ordinal: bool
    rows: Rows | Vectors | np.ndarray
    environment: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    groups: np.ndarray
    names: np.ndarray
    unreadable: list[tuple[str, str]]
    leaks: list[str]
    contents: list[str]
    mask_classes: MaskClasses | None
    masks: Rows | np.ndarray | None
    mask_contents: list[str]

    @property
    def target_classes(self) -> list[str]:
        """Names of the K classes that an algorithm tells apart: those of the masks, or of the labels."""
        return list(self.mask_classes.names) if self.mask_classes else self.classes

    def class_name(self, row: int) -> str:
        """Return the class of an image, "" for one without a label."""
        label = int(self.labels[row])
        return "" if label == UNLABELLED or not self.classes else self.classes[label]

    def class_counts(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of images of each class among some rows, (K,) int64; those without a label do not count."""
        labels = self.labels[rows]
        return np.bincount(labels[labels != UNLABELLED], minlength=len(self.classes))

    def csv(self) -> str:
        """Which image is where: environment, split, label, group and content of every image, as a table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        with_masks = self.mask_classes is not None
        writer.writerow(["image", "environment", "split", "class", "group", "content", *["masks"] * with_masks])
        environments = [self.environments[environment] for environment in self.environment.tolist()]
        labels = [self.class_name(row) for row in range(len(self.labels))]
        columns = [self.names, environments, self.split.tolist(), labels, self.groups, self.contents]
        writer.writerows(zip(*columns, *[self.mask_contents] * with_masks, strict=True))
        return text.getvalue()

    @property
    def are_vectors(self) -> bool:
        """Whether these are vectors in the place of images."""
        return len(self.rows.shape) == 2

    @property
    def noun(self) -> str:
        """What these are, for messages."""
        return "vectors" if self.are_vectors else "images"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image, (F,) of a vector."""
        if self.are_vectors:
            return (self.rows.shape[1],)
        _, height, width, channels = self.rows.shape
        return channels, height, width

    def describe(self) -> str:
        """Return how many there are and how large: "500 images of 64 x 64 px", "500 vectors of 384 numbers"."""
        channels, *size = self.input_shape
        each = f"{' x '.join(map(str, size))} px" if size else f"{channels} numbers"
        return f"{len(self.names)} {self.noun} of {each}"

    def select(self, environment: int, split: str | None = None) -> np.ndarray:
        """Return the rows of an environment, of one split or of all, in their order."""
        chosen = self.environment == environment
        return np.flatnonzero(chosen if split is None else chosen & (self.split == split))

    def pixels(self, rows: np.ndarray) -> Tensor:
        """Return uint8 (B, C, H, W) of images, or float32 (B, F) of vectors."""
        if self.are_vectors:
            return torch.from_numpy(np.ascontiguousarray(self.rows[rows], dtype=np.float32))
        return torch.from_numpy(np.ascontiguousarray(self.rows[rows])).permute(0, 3, 1, 2)

    def planes(self, rows: np.ndarray) -> Tensor | None:
        """Return the masks as planes, uint8 (B, H, W); None in a run without masks."""
        return None if self.masks is None else torch.from_numpy(np.ascontiguousarray(self.masks[rows]))

    def targets(self, rows: np.ndarray, planes: Tensor | None) -> Tensor:
        """Return what an algorithm learns: class indices (B,) of some rows, or their masks in a run with masks.

        Args:
            rows: (B,) of the images.
            planes: their masks, augmented or not; None in a run without masks.
        """
        if planes is None or self.mask_classes is None:
            return torch.from_numpy(self.labels[rows])
        return masks.to_target(planes, self.mask_classes)

    def majority_mask(self, rows: np.ndarray) -> int | None:
        """Return the plane value (see `masks`) of most labelled pixels of some rows; None in a run without masks.

        Of exclusive classes it is the most frequent one; of kinds, all that cover more than half of the pixels.
        """
        if self.masks is None or self.mask_classes is None:
            return None
        pixels = np.zeros(256, np.int64)
        for start in range(0, len(rows), 64):
            pixels += np.bincount(self.masks[rows[start : start + 64]].ravel(), minlength=256)
        pixels[masks.IGNORE] = 0
        if self.mask_classes.exclusive:
            return int(pixels.argmax())
        bits = [1 << k for k in range(len(self.mask_classes.names))]
        values = np.arange(256)
        return sum(bit for bit in bits if 2 * pixels[values & bit > 0].sum() > pixels.sum())

    def table(self) -> list[str]:
        """Lines that say how many images of each class and split each environment has."""
        lines = []
        width = max(map(len, self.environments))
        for index, name in enumerate(self.environments):
            rows = self.select(index)
            parts = Counter(self.split[rows].tolist())
            text = f"  {index} {name:<{width}}  {len(rows):>6} {self.noun}: " + ", ".join(
                f"{parts[part]} {part}" for part in splits.SPLITS if parts[part]
            )
            if self.classes:
                counts = dict(zip(self.classes, self.class_counts(rows), strict=True))
                if bare := len(rows) - sum(counts.values()):
                    counts["no label"] = bare
                text += "; per class " + ", ".join(f"{c}: {n}" for c, n in counts.items())
            lines.append(text)
        return lines


def check_same_images(path: Path, now: str) -> None:
    """Raise `UserError` where a run would go on with other images, classes or splits than it began with."""
    try:
        before = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; it says which images the run began with. Start another run"
        ) from None
    after = now.splitlines()
    if before == after or _as_compared(before) == _as_compared(after):
        return
    names = list(dict.fromkeys(line.partition(",")[0] for line in sorted(set(before) ^ set(after))))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    differ = f"{shown} differ in content, class, group or split, or are there only once"
    raise UserError(
        f"the images are not those that this run began with ({path}): {differ if names else 'their order differs'}. "
        "Put the data back as they were, or start another run"
    )


def _as_compared(lines: list[str]) -> list[list[str]]:
    """Return the rows of an images.csv, classes and groups as `plain` spells them: earlier runs wrote them as found."""
    try:
        return [[*row[:3], *map(plain, row[3:5]), *row[5:]] for row in csv.reader(lines)]
    except csv.Error:
        return [lines]


def check_same_classes(place: Path, learnt: list[str], images: Images) -> None:
    """Raise `UserError` where images have other classes than a model at some place has learnt, or in another order."""
    if learnt != images.target_classes:
        raise UserError(
            f"{place} has learnt the classes {', '.join(learnt)}, in this order, but those of the images now are "
            f"{', '.join(images.target_classes)}. Put the data back as they were, or start another run"
        )


def prepare(
    dataset: Dataset,
    *,
    trial_seed: int,
    holdout_fraction: float | None,
    subset_size: int | None,
    cache_dir: Path,
    num_workers: int,
    skip_unreadable: bool,
    strict: bool,
    report: Callable[[str], None],
    with_masks: bool = False,
    with_labels: bool = False,
) -> Images:
    """Split, subset, decode and check a data set.

    Args:
        dataset: whose images.
        trial_seed: of splits and subsets.
        holdout_fraction: share of each environment that is held out; None where nothing is trained, and all is "test".
        subset_size: images per environment, or None for all.
        cache_dir: where decoded images are kept.
        num_workers: threads that decode.
        skip_unreadable: whether images that can't be read are left out instead of stopping the run.
        strict: whether a leak stops the run.
        report: takes each line worth saying.
        with_masks: whether the run learns from masks.
        with_labels: whether it learns or predicts labels, so that every image needs one.

    Raises:
        UserError: images can't be read, leaks under `strict`, a subset larger than an environment, masks or labels that
            are asked for and not there.
    """
    check_environment_names(dataset.environments)
    if with_labels:
        dataset.check_labelled()
    samples, mask_classes = dataset.samples, dataset.chosen_masks() if with_masks else None
    assigned, chosen = choose(dataset, trial_seed, holdout_fraction, subset_size)
    if dataset.gives_vectors:
        packed = take(dataset, chosen.tolist())
    else:
        packed = pack(dataset, chosen.tolist(), cache_dir, num_workers, report, mask_classes)
    report_unreadable(packed.unreadable, len(chosen), skip_unreadable, report)
    kept = [samples[index] for index in packed.indices]
    split = assigned[packed.indices]
    leaks = leakage.report(leakage.find(kept, split, packed.contents, dataset.environments))
    if leaks and strict:
        advice = "Remove them on one side, give different patients different names, or leave out --strict to be warned"
        raise UserError("\n".join([*leaks, advice]))
    for line in leaks:
        report(f"WARNING: {line}")
    images = Images(
        environments=list(dataset.environments),
        classes=list(dataset.classes),
        ordinal=dataset.ordinal,
        rows=packed.rows,
        environment=np.array([sample.environment for sample in kept], dtype=np.int64),
        labels=np.array([sample.label for sample in kept], dtype=np.int64),
        split=split,
        groups=np.array([sample.group for sample in kept], dtype=object),  # the same texts, not copies of one length
        names=np.array([sample.name for sample in kept], dtype=object),
        unreadable=packed.unreadable,
        leaks=leaks,
        contents=packed.contents,
        mask_classes=mask_classes,
        masks=packed.masks,
        mask_contents=packed.mask_contents,
    )
    empty = [name for index, name in enumerate(images.environments) if not len(images.select(index))]
    if empty:
        raise UserError(f"no image of {', '.join(empty)} can be read. Mend the files or leave these environments out")
    give_back_freed_memory()
    return images


def choose(
    dataset: Dataset, trial_seed: int, holdout_fraction: float | None, subset_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the split of every image (N,), and the indices (M,) of those that a run takes; arguments as of `prepare`.

    Raises:
        UserError: a subset larger than an environment.
    """
    samples = dataset.samples
    if holdout_fraction is None:
        assigned = np.full(len(samples), splits.TEST, dtype=object)
    else:
        assigned = splits.assign(samples, trial_seed, holdout_fraction)
    if subset_size is None:
        return assigned, np.arange(len(samples))
    return assigned, splits.subset(samples, assigned, subset_size, trial_seed, dataset.environments)


def report_unreadable(
    unreadable: list[tuple[str, str]], count: int, skip_unreadable: bool, report: Callable[[str], None]
) -> None:
    """Report which of `count` images can't be read, with the reasons.

    Raises:
        UserError: there are some, unless `skip_unreadable`.
    """
    listed = [f"  {name}: {reason}" for name, reason in unreadable]
    if listed and not skip_unreadable:
        raise UserError(
            f"{len(listed)} of {count} images can't be read:\n" + "\n".join(listed) + "\n"
            "Mend or remove these files, or pass --skip_unreadable to go on without them"
        )
    if listed:
        report(f"WARNING: {len(listed)} of {count} images can't be read and are left out (--skip_unreadable):")
    for line in listed:
        report(line)


def check_environment_names(names: list[str]) -> None:
    """Raise `UserError` for a name that can't be part of a folder's name and of a list of targets.

    `te_<name>` is a folder, `a+b` two environments left out together, `a,b` the same on a command line.
    """
    for name in names:
        if not name.strip() or set(name) & set("/\\+,") or name in ("none", ".", "..") or not name.isprintable():
            raise UserError(
                f"{name!r} can't name an environment: it becomes part of a folder's name and of lists of targets, and "
                "may not be empty or 'none', or hold '/', '\\', '+', ',' or a character that can't be printed. Rename "
                "it"
            )
