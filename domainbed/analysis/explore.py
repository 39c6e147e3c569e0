"""What is in a data set before anything is trained on it: classes, files, faults, duplicates, and how far apart its
environments are.

    found = analyse(dataset, Path("results/explore/DR"))      # figures as plain data; pictures in the folder

Images are looked at as they are stored, before a data set's preprocessing, and shrunk to 512 px: one at a time in
several threads, so that only some numbers of each are kept. What is measured on one image is in `photograph`, what
makes two the same in `duplicates`.
"""

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from domainbed.analysis import duplicates, extras, photograph, plots
from domainbed.datasets import leakage
from domainbed.datasets.base import UNLABELLED, Dataset, Sample
from domainbed.datasets.images import UnreadableImage, read_header
from domainbed.datasets.threads import in_threads
from domainbed.errors import UserError

#: Of which images are drawn when not all are looked at or shown.
SEED = 0
#: Images per environment that learn to tell environments: more change the third digit.
MOST_TOLD = 2000
FOLDS = 5
#: Share of the images from which on round things in a dark surround are taken for retinas, and below it for chance.
FEWEST_RETINAS = 0.1
#: What environments are told apart by. Colour and light alone can't know how large an image was or how it was framed.
FIGURE_SETS = {
    "size and file": ("width", "height", "bytes_per_pixel"),
    "frame": ("border", "bars", "cut", "aspect", "offset", "text"),
    "sharpness": ("sharpness",),
    "colour and light": ("red", "green", "blue", "contrast", "saturation", "clipped", "rim_colour", "rim_light"),
}
COLOUR, ALL = "colour and light", "all figures"
#: Distributions that are drawn and summarised, by figure.
SHOWN = ("brightness", "contrast", "saturation", "sharpness")
_SHEET_COLUMNS, _SHEET_IMAGES, _EXAMPLES = 6, 12, 8
_MOST_LETTERS = 24


@dataclass(frozen=True)
class Look:
    """What is kept of one image.

    Attributes:
        index: of the sample. width, height: of the file, in pixels. format: as "JPEG"; "" where it has no file.
        num_bytes: of the file; None where it has none.
        digest: the same for two images of one size with the same pixels.
        detail: of `duplicates`. figures: of `photograph`.
    """

    index: int
    width: int
    height: int
    format: str
    num_bytes: int | None
    digest: str
    detail: np.ndarray
    figures: dict[str, float]


class _AsStored:
    """Takes the place of a data set's preprocessing: the image is shrunk and nothing else."""

    least_side = photograph.SIDE_PX

    def __call__(self, image: np.ndarray, masks: Mapping[str, np.ndarray] | None = None) -> tuple[np.ndarray, dict]:
        return photograph.shrink(image), {}


def analyse(dataset: Dataset, folder: Path, *, max_images: int | None = None, num_workers: int = 1) -> dict[str, Any]:
    """Look at a data set, write pictures, and return the figures.

    Args:
        dataset: whose images.
        folder: where pictures are written.
        max_images: of each environment, drawn once and for all; None for all.
        num_workers: threads that read.

    Raises:
        UserError: no image can be read, or a library of the extra `analysis` is not installed.
    """
    extras.check("matplotlib", "analysis", "a plot")
    extras.check("sklearn", "analysis", "telling environments apart")
    stored = copy.copy(dataset)
    stored.preprocess = _AsStored()  # type: ignore[assignment]
    chosen = _chosen(dataset.samples, len(dataset.environments), max_images)
    looks, unreadable = _look_at_all(stored, chosen, num_workers)
    if not looks:
        name, reason = unreadable[0]
        raise UserError(f"none of {len(chosen)} images can be read, such as {name}: {reason}. Give another folder")
    samples = [dataset.samples[look.index] for look in looks]
    environment = np.array([sample.environment for sample in samples])
    table = _table(looks)
    groups, classes = _duplicates(looks, samples, dataset)
    found: dict[str, Any] = {
        "dataset": type(dataset).__name__,
        "data_dir": None if dataset.data_dir is None else str(dataset.data_dir),
        "images": len(looks),
        "classes": list(dataset.classes),
        "environments": {
            name: _environment(dataset, looks, samples, table, np.flatnonzero(environment == number))
            for number, name in enumerate(dataset.environments)
        },
        "class_distance": _class_distance(samples, dataset),
        "unreadable": unreadable,
        "duplicates": groups,
        "leaks": leakage.report(
            leakage.find(samples, [one.split or "no split" for one in samples], classes, dataset.environments)
        ),
        "shift": tell_apart(table, environment, samples, dataset.environments),
        "notes": _notes(dataset, chosen, looks, table, max_images),
    }
    return found | {"pictures": _draw(stored, looks, samples, table, found, folder)}


def _chosen(samples: Sequence[Sample], num_environments: int, most: int | None) -> list[int]:
    """Return the samples that are looked at: all, or so many of each environment."""
    rows: list[list[int]] = [[] for _ in range(num_environments)]
    for index, sample in enumerate(samples):
        rows[sample.environment].append(index)
    return sorted(index for inside in rows for index in _some(inside, most))


def _some(rows: Sequence[int], most: int | None) -> list[int]:
    if most is None or len(rows) <= most:
        return list(rows)
    return sorted(np.random.default_rng(SEED).choice(np.asarray(rows), most, replace=False).tolist())


def _look_at_all(stored: Dataset, chosen: list[int], num_workers: int) -> tuple[list[Look], list[tuple[str, str]]]:
    """Return what is kept of each image, and name and reason of those that can't be read."""

    def look(index: int) -> Look | str:
        try:
            return _look(stored, index)
        except UnreadableImage as error:
            return str(error)

    looks: list[Look] = []
    unreadable: list[tuple[str, str]] = []
    with closing(in_threads(look, chosen, num_workers, "looking")) as found:
        for index, one in zip(chosen, found, strict=True):
            if isinstance(one, Look):
                looks.append(one)
            else:
                unreadable.append((stored.samples[index].name, one))
    return looks, unreadable


def _look(stored: Dataset, index: int) -> Look:
    image = stored.read(index)
    height, width = image.shape[:2]
    file, kind, num_bytes = stored.file(index), "", None
    if file is not None:
        header = read_header(file)
        width, height, kind, num_bytes = header.width, header.height, header.format, file.stat().st_size
    digest = hashlib.sha256(f"{width} x {height} ".encode() + image.tobytes()).hexdigest()
    return Look(index, width, height, kind, num_bytes, digest, duplicates.detail(image), photograph.measure(image))


def _table(looks: Sequence[Look]) -> dict[str, np.ndarray]:
    """Return every figure of all images, (N,) by name."""
    table = {name: np.array([look.figures[name] for look in looks]) for name in photograph.FIGURES}
    no_retina = np.isnan(table["border"])
    if 1 - no_retina.mean() < FEWEST_RETINAS:
        table |= {name: np.full(len(looks), math.nan) for name in photograph.OF_RETINAS}
    table |= {side: np.array([float(getattr(look, side)) for look in looks]) for side in ("width", "height")}
    table["bytes_per_pixel"] = np.array(
        [math.nan if look.num_bytes is None else look.num_bytes / (look.width * look.height) for look in looks]
    )
    return table


def _environment(
    dataset: Dataset, looks: list[Look], samples: list[Sample], table: dict[str, np.ndarray], rows: np.ndarray
) -> dict[str, Any]:
    """Return what there is in the rows of one environment."""
    inside = [looks[row] for row in rows]
    labels = Counter(samples[row].label for row in rows)
    sizes = Counter((look.width, look.height) for look in inside)
    return {
        "images": len(rows),
        "groups": len({samples[row].group for row in rows}),
        "per_class": {name: labels[number] for number, name in enumerate(dataset.classes)},
        "unlabelled": labels[UNLABELLED],
        "sizes": [[width, height, count] for (width, height), count in sizes.most_common()],
        "formats": dict(Counter(look.format for look in inside if look.format).most_common()),
        "retina": int((~np.isnan(table["border"][rows])).sum()),
        "checks": {check.name: int(_found(check, table)[rows].sum()) for check in photograph.CHECKS},
        "found_by": {
            check.name: [samples[row].name for row in rows if found[row]]
            for check in photograph.CHECKS
            if (found := _found(check, table))[rows].any()
        },
        "figures": {name: _spread(values[rows]) for name, values in table.items()},
    }


def _found(check: photograph.Check, table: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which images (N,) a check is about."""
    found = check.found(table[check.figure])
    return found & ~np.isnan(table["border"]) if check.of_retinas else found


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Return 5th percentile, median and 95th; None where no image has the figure."""
    known = values[~np.isnan(values)]
    return (
        dict(zip(("p5", "median", "p95"), np.percentile(known, [5, 50, 95]).tolist(), strict=True))
        if len(known)
        else None
    )


def _class_distance(samples: Sequence[Sample], dataset: Dataset) -> dict[str, Any] | None:
    """Return how far the shares of the classes are apart in the two environments that differ most.

    Half the sum of the absolute differences (total variation): the share of one that would have to change its class.
    """
    counts = np.zeros((len(dataset.environments), len(dataset.classes)))
    for sample in samples:
        if sample.label != UNLABELLED:
            counts[sample.environment, sample.label] += 1
    if len(counts) < 2 or not (counts.sum(1) > 0).all():
        return None
    shares = counts / counts.sum(1, keepdims=True)
    distance = np.abs(shares[:, None] - shares).sum(2) / 2
    a, b = np.unravel_index(np.triu(1 + distance, 1).argmax(), distance.shape)
    return {"distance": float(distance[a, b]), "between": [dataset.environments[a], dataset.environments[b]]}


def _duplicates(
    looks: Sequence[Look], samples: Sequence[Sample], dataset: Dataset
) -> tuple[list[dict[str, Any]], list[str | None]]:
    """Return the groups of images that show the same, the exact ones first, and a name of its group for each image."""
    similar, closest = duplicates.similar(np.stack([look.detail for look in looks]), [look.digest for look in looks])
    groups, classes = [], [None] * len(looks)  # type: list[dict[str, Any]], list[str | None]
    for number, rows in enumerate(similar):
        for row in rows:
            classes[row] = str(number)
        labels = [samples[row].label for row in rows]
        groups.append(
            {
                "files": [samples[row].name for row in rows],
                "environments": [dataset.environments[samples[row].environment] for row in rows],
                "classes": [dataset.classes[label] if label != UNLABELLED else None for label in labels],
                "classes_differ": len({label for label in labels if label != UNLABELLED}) > 1,
                "exact": len({looks[row].digest for row in rows}) == 1,
                "correlation": min(closest[row] for row in rows),
            }
        )
    return sorted(groups, key=lambda group: (not group["exact"], -group["correlation"])), classes


def tell_apart(
    table: Mapping[str, np.ndarray], environment: np.ndarray, samples: Sequence[Sample], names: Sequence[str]
) -> dict[str, Any] | None:
    """Return how well environments can be told apart by simple figures; None where nothing can be said.

    A logistic regression on standardised figures, each environment of equal weight, is cross-validated with the images
    of a patient in one fold: by each of `FIGURE_SETS` and by all. One figure alone is judged by the area under the ROC
    curve of the environment that it tells best from the others. Nothing can be said without two environments of two
    groups of images each, and where colour and light are the same in all images.

    Args:
        table: (N,) figures by name, nan where one makes no sense.
        environment: (N,) indices into `names`.
        samples: N, for their groups.
        names: of all environments.
    """
    rows = np.array(
        [
            row
            for number in range(len(names))
            for row in _some(np.flatnonzero(environment == number).tolist(), MOST_TOLD)
        ]
    )
    groups = np.array([samples[row].group for row in rows], dtype=object)
    labels = environment[rows]
    present = np.unique(labels)
    fewest = min((len(set(groups[labels == number])) for number in present), default=0)
    if len(present) < 2 or fewest < 2:
        return None
    shown = [names[number] for number in present]
    labels = np.searchsorted(present, labels)
    sets = FIGURE_SETS | {ALL: tuple(name for one in FIGURE_SETS.values() for name in one)}
    told = {}
    for title, members in sets.items():
        values = np.stack([table[name][rows] for name in members], axis=1)
        varies = np.array([len(np.unique(column[~np.isnan(column)])) > 1 for column in values.T])
        if varies.any():
            told[title] = _told_apart(values[:, varies], labels, groups, min(FOLDS, fewest)) | {
                "figures": [name for name, kept in zip(members, varies, strict=True) if kept]
            }
    if COLOUR not in told:  # all images have the same colours and light
        return None
    single = {name: _single(table[name][rows], labels, shown) for name in sets[ALL]}
    return {
        "environments": shown,
        "images": len(rows),
        "chance": 1 / len(shown),
        "told_by": told,
        "auc": dict(sorted(((k, v) for k, v in single.items() if v), key=lambda pair: -pair[1]["auc"])),
    }


def _told_apart(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int) -> dict[str, Any]:
    """Return balanced accuracy, its 95 % bootstrap interval over groups, and the confusion.

    Args:
        values: (N, F), nan where a figure makes no sense. labels: (N,) environments. groups: (N,).
        folds: of the cross-validation.
    """
    import torch
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from domainbed import metrics

    model = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(class_weight="balanced", max_iter=2000),
    )
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=SEED)
    guesses = cross_val_predict(model, values, labels, groups=groups, cv=splits, method="predict_proba")
    probabilities, truth = torch.from_numpy(guesses), torch.from_numpy(labels)
    figures = metrics.classification(probabilities, truth, ordinal=False)
    intervals = metrics.bootstrap(groups.tolist(), probabilities=probabilities, labels=truth)
    return {
        "balanced_accuracy": figures["balanced_accuracy"],
        "interval": intervals["balanced_accuracy"],
        "confusion": figures["confusion"],
    }


def _single(values: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any] | None:
    """Return how well one figure tells the environment that it tells best from the others: area under the ROC curve.

    None where all have the same value, or more than half have none.
    """
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(values)
    if known.mean() < 0.5:
        return None
    best: dict[str, Any] | None = None
    for number, name in enumerate(names):
        one = labels[known] == number
        if one.any() and not one.all():
            auc = float(roc_auc_score(one, values[known]))
            if best is None or max(auc, 1 - auc) > best["auc"]:
                best = {"auc": max(auc, 1 - auc), "environment": name, "is": "higher" if auc >= 0.5 else "lower"}
    return best


def _notes(
    dataset: Dataset, chosen: Sequence[int], looks: Sequence[Look], table: Mapping[str, np.ndarray], most: int | None
) -> list[str]:
    """Return what a reader must know."""
    notes = [*dataset.log, *dataset.notes]
    if len(chosen) < len(dataset.samples):
        notes.append(f"{len(chosen)} of {len(dataset.samples)} images are looked at, at most {most} an environment")
    retinas = int((~np.isnan(table["border"])).sum())
    if not retinas:
        notes.append("these are no photographs of retinas, so frame, exposure, focus, print and rim are not judged")
    elif retinas < len(looks):
        notes.append(
            f"{retinas} of {len(looks)} images show a retina in a dark surround; frame, exposure, focus, print and rim "
            "are judged in these alone"
        )
    if not any(look.format for look in looks):
        notes.append("these images are no files of their own, so there are no formats, and their sizes are as read")
    return notes


def _draw(
    stored: Dataset,
    looks: Sequence[Look],
    samples: Sequence[Sample],
    table: Mapping[str, np.ndarray],
    found: dict[str, Any],
    folder: Path,
) -> list[dict[str, str]]:
    """Write all pictures, and return what they are."""
    row_of = {sample.name: row for row, sample in enumerate(samples)}
    environment = np.array([sample.environment for sample in samples])
    names = [name for number, name in enumerate(stored.environments) if (environment == number).any()]
    of = {name: np.flatnonzero(environment == stored.environments.index(name)) for name in names}
    pictures = []

    def write(figure: Any, file: str, title: str, caption: str) -> None:
        plots.save(figure, folder / file)
        pictures.append({"file": file, "title": title, "caption": caption})

    def sheet(tiles: Sequence[tuple[int, str]], columns: int) -> Any:
        return _sheet([(stored.read(looks[row].index), text) for row, text in tiles], columns)

    def named(row: int) -> str:
        label = samples[row].label
        parts = [stored.environments[environment[row]], *([stored.classes[label]] if label != UNLABELLED else [])]
        return ", ".join(map(_short, parts))

    def file_of(row: int) -> str:
        return _short(samples[row].name.rpartition("/")[2])

    examples = [(row, named(row)) for name in names for row in _some(of[name].tolist(), _EXAMPLES)]
    write(
        sheet(examples, _EXAMPLES),
        "examples.png",
        "Images as they are stored",
        f"Up to {_EXAMPLES} images of each environment, drawn at random, before any preprocessing.",
    )
    if stored.classes:
        distance = found["class_distance"]
        apart = (
            f" Those of {' and '.join(distance['between'])} differ most: {distance['distance']:.0%} of the images of "
            "one would have to change their class for the same shares."
            if distance
            else ""
        )
        write(
            _class_plot(found, names), "classes.png", "Classes",
            f"Share of each class in each environment, with the number of images.{apart}",
        )  # fmt: skip
    medians = "; ".join(
        f"{name} {found['environments'][name]['figures']['brightness']['median']:.2f} and "
        f"{found['environments'][name]['figures']['contrast']['median']:.3f}"
        for name in names
    )
    where = "inside the retina where one is found" if (~np.isnan(table["border"])).any() else "of the whole image"
    write(
        _distributions(table, of), "light.png", "Brightness, contrast, saturation and sharpness",
        f"Distribution over the images of each environment, {where}. Median brightness and contrast: {medians}.",
    )  # fmt: skip
    for check in photograph.CHECKS:
        rows = np.flatnonzero(_found(check, table))
        if not len(rows):
            continue
        clearest = rows[np.argsort(-check.excess(table[check.figure][rows]), kind="stable")][:_SHEET_IMAGES]
        tiles = [
            (row, f"{named(row)}\n{file_of(row)}\n{check.figure} {table[check.figure][row]:.3g}")
            for row in clearest.tolist()
        ]
        counts = ", ".join(f"{name} {int(np.isin(rows, of[name]).sum())} of {len(of[name])}" for name in names)
        write(
            sheet(tiles, _SHEET_COLUMNS), f"check_{check.name}.png",
            f"{check.title.capitalize()}: {_images(len(rows))}",
            f"{check.says} {counts}; the {len(tiles)} clearest. Told by {photograph.FIGURES[check.figure]}: "
            f"{check.threshold:g} or {'more' if check.above else 'less'}.",
        )  # fmt: skip
    without = np.flatnonzero(np.isnan(table["border"]))
    if 0 < len(without) < len(looks):
        tiles = [(row, named(row)) for row in _some(without.tolist(), _SHEET_IMAGES)]
        write(
            sheet(tiles, _SHEET_COLUMNS), "no_retina.png", f"No retina found: {_images(len(without))}",
            "No dark surround with something round in it: the retina fills the frame, or the image is something else.",
        )  # fmt: skip
    if groups := found["duplicates"]:
        first = sorted(groups, key=lambda group: not group["classes_differ"])[: _SHEET_IMAGES // 2]
        pairs = [
            (row_of[file], f"{'=' if group['exact'] else '~'} {named(row_of[file])}\n{file_of(row_of[file])}")
            for group in first
            for file in group["files"][:2]
        ]
        differ = sum(group["classes_differ"] for group in groups)
        write(
            sheet(pairs, _SHEET_COLUMNS), "duplicates.png", f"Duplicates: {len(groups)} groups",
            f"Two images of each of {len(first)} groups that show the same, side by side; = are equal to the pixel, ~ "
            f"are alike. {differ} groups have images of different classes; those come first.",
        )  # fmt: skip
    if shift := found["shift"]:
        by_colour, most = shift["told_by"][COLOUR], next(iter(shift["auc"]))
        low_high = by_colour["interval"]
        between = f" [{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else ""
        write(
            _shift_plot(shift), "shift.png", "How far environments are apart",
            f"By colour and light alone, whatever the size and frame, the environment of an image is told with a "
            f"balanced accuracy of {by_colour['balanced_accuracy']:.3f}{between}, where chance is "
            f"{shift['chance']:.3f}. The figure that separates most is {most} "
            f"(area under the ROC curve {shift['auc'][most]['auc']:.3f}).",
        )  # fmt: skip
    return pictures


def _short(name: str) -> str:
    """Return a name for the margin of a small plot, which a long one would fill: its beginning and its end."""
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS // 2]}…{name[-_MOST_LETTERS // 2 + 1 :]}"


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _sheet(tiles: Sequence[tuple[np.ndarray, str]], columns: int) -> Any:
    """Draw images with a caption above each."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    lines = 1 + max(text.count("\n") for _, text in tiles)
    high = max(image.shape[0] / image.shape[1] for image, _ in tiles)
    width = 1.4 if columns > _SHEET_COLUMNS else 1.7
    figure, axes = plots.new_figure(width * columns, rows * (width * min(high, 1.5) + 0.17 * lines), rows, columns)
    for one in np.asarray(axes, dtype=object).ravel():
        one.set_axis_off()
    for one, (image, text) in zip(np.asarray(axes, dtype=object).ravel(), tiles, strict=False):
        one.imshow(image, interpolation="nearest" if max(image.shape) < 100 else "antialiased")
        one.set_title(text, fontsize=6.5, pad=2)
    return figure


def _class_plot(found: Mapping[str, Any], names: Sequence[str]) -> Any:
    classes = found["classes"]
    figure, axes = plots.new_figure(min(12.0, max(5.0, 0.28 * len(classes) * len(names) + 1.5)), 3.0)
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        counts = np.array([found["environments"][name]["per_class"][one] for one in classes])
        at = np.arange(len(classes)) + (number - (len(names) - 1) / 2) * width
        bars = axes.bar(at, counts / max(1, counts.sum()), width, color=plots.colour(number), label=_short(name))
        if len(classes) * len(names) <= 40:
            axes.bar_label(bars, labels=[str(count) for count in counts], fontsize=6, padding=1)
    rotation = 0 if sum(map(len, classes)) < 60 else 90
    axes.set_xticks(range(len(classes)), [_short(name) for name in classes], rotation=rotation)
    axes.set_ylabel("share of the environment")
    axes.grid(axis="x", visible=False)
    axes.legend(frameon=False)
    return figure


def _distributions(table: Mapping[str, np.ndarray], of: Mapping[str, np.ndarray]) -> Any:
    figure, axes = plots.new_figure(8.0, 4.6, 2, 2)
    for one, name in zip(axes.ravel(), SHOWN, strict=True):
        values = table[name]
        known = values[~np.isnan(values)]
        low, high = np.percentile(known, [0.1, 99.9]).tolist() if len(known) else (0.0, 1.0)
        bins = int(np.clip(np.sqrt(min(map(len, of.values()))), 6, 30))
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        for number, (environment, rows) in enumerate(of.items()):
            inside = np.clip(values[rows][~np.isnan(values[rows])], edges[0], edges[-1])
            heights = np.histogram(inside, edges)[0] / max(1, len(inside))
            one.stairs(heights, edges, color=plots.colour(number), label=_short(environment), linewidth=1.4)
        one.set_xlabel(name)
        one.set_ylabel("share of images")
    axes[0, 0].legend(frameon=False)
    return figure


def _shift_plot(shift: Mapping[str, Any]) -> Any:
    """Draw what tells environments apart, set by set and figure by figure, and the confusion by colour and light."""
    figure, axes = plots.new_figure(11.0, 3.6, 1, 3, width_ratios=[1.1, 1.1, 1])
    by_set, by_figure, confusion = axes[0]
    told = shift["told_by"]
    scores = [one["balanced_accuracy"] for one in told.values()]
    spans = [one["interval"] or (score, score) for one, score in zip(told.values(), scores, strict=True)]
    by_set.barh(range(len(told)), scores, color=plots.colour(0))
    errors = np.array(
        [[max(0.0, score - low), max(0.0, high - score)] for score, (low, high) in zip(scores, spans, strict=True)]
    )
    by_set.errorbar(scores, range(len(told)), xerr=errors.T, fmt="none", ecolor="black", capsize=2)
    by_set.axvline(shift["chance"], color="black", linestyle="--", linewidth=1)
    by_set.set_yticks(range(len(told)), told)
    by_set.set(xlim=(0, 1.02), xlabel="balanced accuracy (dashed: chance)", title="told by")
    figures = list(shift["auc"].items())[:10]
    by_figure.barh(range(len(figures)), [one["auc"] for _, one in figures], color=plots.colour(1))
    by_figure.set_yticks(range(len(figures)), [name for name, _ in figures])
    by_figure.set(xlim=(0.5, 1.0), xlabel="area under the ROC curve", title="told by one figure")
    for one in (by_set, by_figure):
        one.invert_yaxis()
        one.grid(axis="y", visible=False)
    counts = np.array(told[COLOUR]["confusion"], dtype=float)
    shares = counts / counts.sum(1, keepdims=True)
    names = [_short(name) for name in shift["environments"]]
    confusion.imshow(shares, cmap=plots.SEQUENTIAL, vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        confusion.text(j, i, f"{share:.2f}", ha="center", va="center", color="black" if share > 0.6 else "white")
    confusion.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 8 else 0)
    confusion.set_yticks(range(len(names)), names)
    confusion.set(xlabel="told as", ylabel="environment", title=f"by {COLOUR}")
    confusion.grid(visible=False)
    return figure
