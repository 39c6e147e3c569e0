"""Runs an algorithm over a set of images and says how well it does, by what it can do.

    with engine.evaluation(algorithm):                         # eval mode, no gradients, autocast, noise of its own
        outputs = evaluate(algorithm, batches, groups)
    record = figures(outputs, ordinal=True, intervals=True)    # ready for JSON

An algorithm is asked for `evaluation_terms(x, y)`, and for `predict(x)`, `reconstruct(x)` and, where y is a mask,
`segment(x)` if it has them. The figures themselves are in `metrics`; who is in which split is in `datasets.splits`;
what a run selects by is in `model_selection`.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from domainbed import metrics
from domainbed.algorithms.base import needs_label, reconstruct_with
from domainbed.datasets.loaders import in_order
from domainbed.datasets.masks import to_target
from domainbed.datasets.prepare import Images
from domainbed.engine import Engine
from domainbed.objectives.rows import keyed

#: Of the noise in evaluations; any constant, the same wherever figures are to be compared.
NOISE_SEED = 20_230_920


@dataclass
class Outputs:
    """What an algorithm answered for N images, on the CPU.

    Attributes:
        labels: (N,) long; -1 where images came with masks in the place of labels.
        groups: N names; images of one group, such as a patient, share one.
        probabilities: (N, K) float32, or None for an algorithm that can't predict.
        per_image: name to (N,) float32: mse, psnr, ssim of an algorithm that can reconstruct; accuracies of
            `metrics.beside` of one that brings baselines.
        losses: the terms of the algorithm's objective, each the mean over images; "loss" is called "total_loss".
        needs_label: whether the reconstructions were given the true label, because the algorithm can't do without.
        masks: what its masks have right, or None for an algorithm that can't segment, or without masks to compare with.
    """

    labels: Tensor
    groups: Sequence[Hashable]
    probabilities: Tensor | None = None
    per_image: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    needs_label: bool = False
    masks: metrics.MaskCounts | None = None

    @classmethod
    def joined(cls, parts: Sequence[tuple[np.ndarray, "Outputs"]]) -> "Outputs":
        """Return what was answered for several sets of images, each given with its row numbers, by ascending row."""
        every = [one for _, one in parts]
        order = torch.from_numpy(np.concatenate([rows for rows, _ in parts]).argsort())
        groups = [group for one in every for group in one.groups]
        probabilities = [one.probabilities for one in every if one.probabilities is not None]
        masks = [one.masks for one in every if one.masks is not None]
        sizes, first = [len(one.labels) for one in every], every[0]

        def mean(name: str) -> float:
            return _mean([torch.tensor(one.losses[name], dtype=torch.float64) for one in every], sizes)

        return cls(
            labels=torch.cat([one.labels for one in every])[order],
            groups=[groups[at] for at in order.tolist()],
            probabilities=torch.cat(probabilities)[order] if probabilities else None,
            per_image={name: torch.cat([one.per_image[name] for one in every])[order] for name in first.per_image},
            losses={name: mean(name) for name in first.losses},
            needs_label=first.needs_label,
            masks=replace(masks[0], counts=torch.cat([one.counts for one in masks])[order]) if masks else None,
        )


@dataclass
class Answers:
    """What an algorithm answered for one batch, where it was computed."""

    labels: Tensor
    losses: dict[str, Tensor]
    per_image: dict[str, Tensor]
    probabilities: Tensor | None
    masks: metrics.MaskCounts | None

    def cpu(self) -> "Answers":
        return Answers(
            self.labels.cpu(),
            {name: value.cpu() for name, value in self.losses.items()},
            {name: values.cpu() for name, values in self.per_image.items()},
            None if self.probabilities is None else self.probabilities.cpu(),
            None if self.masks is None else metrics.MaskCounts.joined([self.masks]),
        )


def evaluate(
    algorithm: Any,
    batches: Iterable[tuple[Tensor, Tensor]],
    groups: Sequence[Hashable],
    gather: Callable[[list[Answers]], list[Answers]] = lambda own: own,
) -> Outputs:
    """Run an algorithm over images.

    Everything stays on the device until the last batch is through: no batch waits for the one before.

    Args:
        algorithm: unwrapped, in eval mode; the caller has turned gradients off.
        batches: x (B, C, H, W) in [0, 1], y (B,) long or masks, on the algorithm's device; B may vary.
        groups: of the images, in the order of the batches.
        gather: given what these batches gave, returns that of all batches, in order, where others have some of them.

    Raises:
        ValueError: there is no image, or not one group for each.
    """
    with computed_once(algorithm):
        found = gather([_answer(algorithm, x, y) for x, y in batches])
    sizes = [len(one.labels) for one in found]
    if not sum(sizes) or sum(sizes) != len(groups):
        raise ValueError(f"{sum(sizes)} images came with {len(groups)} groups: one group for each image, at least one")
    first = found[0]
    probabilities = [one.probabilities for one in found if one.probabilities is not None]
    masks = [one.masks for one in found if one.masks is not None]

    return Outputs(
        labels=torch.cat([one.labels for one in found]).cpu(),
        groups=groups,
        probabilities=torch.cat(probabilities).cpu() if probabilities else None,
        per_image={name: torch.cat([one.per_image[name] for one in found]).cpu() for name in first.per_image},
        losses={
            "total_loss" if name == "loss" else name: _mean([one.losses[name] for one in found], sizes)
            for name in first.losses
        },
        needs_label=needs_label(algorithm),
        masks=metrics.MaskCounts.joined(masks) if masks else None,
    )


def evaluate_rows(algorithm: Any, engine: Engine, images: Images, rows: np.ndarray, batch_size: int) -> Outputs:
    """`evaluate` on some rows of `datasets.prepare.Images`, in the engine's precision, with noise of its own.

    Each of several processes takes every so many-th batch; all get the whole, in the order of the rows.
    """
    numbers = range(engine.process, -(-len(rows) // batch_size), engine.num_processes)

    def gather(own: list[Answers]) -> list[Answers]:
        if engine.num_processes == 1:
            return own
        everyone = engine.gathered([(number, one.cpu()) for number, one in zip(numbers, own, strict=True)])
        return [one for _, one in sorted(everyone, key=lambda pair: pair[0])]

    engine.share_statistics()
    with (
        engine.evaluation(algorithm, NOISE_SEED),
        closing(in_batches(engine, images, rows, batch_size, numbers)) as batches,
    ):
        return evaluate(algorithm, batches, images.groups[rows].tolist(), gather)


def in_batches(
    engine: Engine, images: Images, rows: np.ndarray, batch_size: int, numbers: Iterable[int]
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield the batches of some rows that have these numbers, in order, on the device; to be closed.

    While one is looked at, noise is a function of the image's content and `NOISE_SEED`, whatever other images are
    beside it. Noise that is not drawn by `objectives.rows` is a function of the batch's number.
    """
    for number in numbers:
        torch.manual_seed(NOISE_SEED + number)
        chosen = rows[number * batch_size : (number + 1) * batch_size]
        ((x, y),) = in_order(images, chosen, batch_size)
        with keyed([_key(images.contents[row]) for row in chosen]):
            yield engine.to_device(x), y.to(engine.device, non_blocking=True)


def _key(content: str) -> int:
    """Return 64 bits that seed the noise of an image."""
    return int.from_bytes(hashlib.blake2b(f"{NOISE_SEED} {content}".encode(), digest_size=8).digest(), "little")


def _answer(algorithm: Any, x: Tensor, y: Tensor) -> Answers:
    """Return what an algorithm answers for one batch."""
    predict, reconstruct, segment, baselines = (
        getattr(algorithm, name, None) for name in ("predict", "reconstruct", "segment", "baselines")
    )
    is_mask = y.ndim > 1
    losses = {name: value.detach().float() for name, value in algorithm.evaluation_terms(x, y).items()}
    masks = metrics.count_pixels(segment(x), y) if segment is not None and is_mask else None
    probabilities = predict(x).float().softmax(1) if predict is not None and not is_mask else None  # (B, K)
    per_image: dict[str, Tensor] = {}
    if reconstruct is not None:
        per_image |= metrics.reconstruction(reconstruct_with(algorithm, x, y), x)
    if baselines is not None and probabilities is not None:
        per_image |= metrics.beside(probabilities, baselines(x), y)
    return Answers(torch.full((len(y),), -1) if is_mask else y, losses, per_image, probabilities, masks)


def majority_mask(images: Images, rows: np.ndarray, plane: int, batch_size: int) -> dict[str, Any]:
    """Figures of answering every pixel alike: what a segmenter has to beat.

    Args:
        images: with masks. rows: of those that are measured.
        plane: the answer, from `Images.majority_mask`.
        batch_size: images that are counted at once.
    """
    assert images.mask_classes is not None, "images without masks have no majority of their pixels"
    answer = to_target(torch.full((1, 1, 1), plane, dtype=torch.uint8), images.mask_classes)
    num_classes = len(images.mask_classes.names)
    one_hot = nn.functional.one_hot(answer, num_classes).movedim(-1, 1) if answer.ndim == 3 else answer
    counts = []
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        target = images.targets(chosen, images.planes(chosen))
        logits = (one_hot.float() - 0.5).expand(len(target), -1, *target.shape[-2:])  # (B, K, H, W)
        counts.append(metrics.count_pixels(logits, target))
    return metrics.segmentation(metrics.MaskCounts.joined(counts))


def mean_images(batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> Tensor:
    """Return the mean (K, C, H, W) of the images of each class; black for a class without one.

    Args:
        batches: x (B, C, H, W), y (B,) long.
        num_classes: K; with y = 0 everywhere and K = 1 it is the mean of all.
    """
    total: Tensor | None = None
    counts = torch.zeros(num_classes)
    for x, y in batches:
        total = x.new_zeros(num_classes, *x.shape[1:], dtype=torch.float64) if total is None else total
        total.index_add_(0, y.to(x.device), x.double())
        counts += torch.bincount(y.cpu(), minlength=num_classes)
    if total is None:
        raise ValueError("there is no image to take the mean of")
    return (total / counts.clamp(min=1).to(total.device)[:, None, None, None]).float()


def of_fixed_images(answers: Tensor, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Compare images with one and the same for all of a class: what a reconstructor has to beat.

    Args:
        answers: (K, C, H, W) in [0, 1], such as mean images.
        batches: x (B, C, H, W) in [0, 1] on its device, y (B,) long.

    Returns:
        (N,) by name, see `metrics.reconstruction`, on the CPU.
    """
    per_image = [metrics.reconstruction(answers[y.to(answers.device)], x) for x, y in batches]
    return {name: torch.cat([one[name] for one in per_image]).cpu() for name in per_image[0]}


def means(per_image: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Return the mean of each figure (N,) of images, None where it is not finite."""
    return _finite({name: values.double().mean().item() for name, values in per_image.items()})


@contextmanager
def computed_once(algorithm: Any) -> Iterator[None]:
    """Let the submodules `shared_in_evaluation` answer from memory when they are given the very same tensor again.

    `evaluation_terms`, `predict` and `reconstruct` each encode the batch; the encoder is most of an evaluation's cost.
    """
    named = (getattr(algorithm, name, None) for name in getattr(algorithm, "shared_in_evaluation", ()))
    modules = [module for module in named if isinstance(module, nn.Module)]
    overridden = [module.__dict__.get("forward") for module in modules]

    def remembering(forward: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        last: list[Any] = [None, None]

        def answer(x: Tensor) -> Any:
            if last[0] is not x:
                last[:] = [x, forward(x)]
            return last[1]

        return answer

    for module in modules:
        module.forward = remembering(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, overridden, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def figures(
    outputs: Outputs, *, ordinal: bool, intervals: bool, positives: Sequence[int] = (), seed: int = 0
) -> dict[str, Any]:
    """Figures of all images, ready for JSON: a figure that is undefined or not finite is None.

    Args:
        outputs: of `evaluate`.
        ordinal: whether the classes are ordered.
        intervals: whether to add 95 % bootstrap intervals over groups.
        positives: the classes to be found, see `datasets.labels.positives`.
        seed: of the bootstrap.

    Returns:
        n, num_groups, metrics (name to figure), intervals (name to [low, high] or None; empty unless asked for). With
        a single class, metrics holds no figure of a classifier.
    """
    labels, groups, probabilities = outputs.labels, outputs.groups, outputs.probabilities
    if probabilities is not None and probabilities.shape[1] < 2:
        probabilities = None
    record: dict[str, Any] = {"n": len(labels), "num_groups": len(set(groups)), "metrics": {}, "intervals": {}}
    if probabilities is not None:
        record["metrics"] |= metrics.classification(probabilities, labels, ordinal, positives)
    if outputs.masks is not None:
        record["metrics"] |= metrics.segmentation(outputs.masks)
    record["metrics"] |= means(outputs.per_image) | _finite(outputs.losses)
    if intervals:
        found = metrics.bootstrap(
            groups,
            probabilities=probabilities,
            labels=labels,
            ordinal=ordinal,
            per_image=outputs.per_image,
            masks=outputs.masks,
            positives=positives,
            seed=seed,
        )
        record["intervals"] = _listed(found)
    return record


def choose_threshold(parts: Sequence[Outputs], positives: Sequence[int]) -> float | None:
    """Return the operating point of `metrics.choose_threshold` on several sets of images together.

    Args:
        parts: outputs with probabilities, such as those of the held-out images of each source.
        positives: the classes to be found.

    Returns:
        The threshold of the summed probability of `positives`; None where it is not defined.
    """
    if not parts:
        return None
    scores = [_positive_scores(part, positives) for part in parts]
    positive = [metrics.is_positive(part.labels, positives) for part in parts]
    return metrics.choose_threshold(torch.cat(scores), torch.cat(positive))


def screening(
    outputs: Outputs, positives: Sequence[int], threshold: float | None, *, intervals: bool, seed: int = 0
) -> dict[str, Any]:
    """Figures of flagging images at a threshold that was fixed elsewhere.

    Args:
        outputs: with probabilities. positives: the classes to be found.
        threshold: of their summed probability; None where there is none.
        intervals, seed: as in `figures`.

    Returns:
        metrics and intervals, as those of `figures`, to be added to them.
    """
    scores, flags = _positive_scores(outputs, positives), None
    if threshold is not None and scores.isfinite().all():
        flags = metrics.Flags(scores >= threshold, metrics.is_positive(outputs.labels, positives))
    found = metrics.bootstrap(outputs.groups, flags=flags, seed=seed) if intervals and flags is not None else {}
    return {"metrics": metrics.screening(flags), "intervals": _listed(found)}


def _positive_scores(outputs: Outputs, positives: Sequence[int]) -> Tensor:
    assert outputs.probabilities is not None, "an algorithm that can't predict has no score to flag an image by"
    return metrics.positive_scores(outputs.probabilities, positives)


def _listed(intervals: Mapping[str, tuple[float, float] | None]) -> dict[str, list[float] | None]:
    """Return intervals as JSON has them."""
    return {name: list(bounds) if bounds else None for name, bounds in intervals.items()}


def _mean(values: list[Tensor], sizes: list[int]) -> float:
    """Mean over images of the batches' means: an uneven last batch counts for what it holds."""
    weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    return float((torch.stack(values).cpu().double() * weights).sum())


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
