"""The classification report of a finished run: precision, recall, F1 and support per class, and the confusion matrix.

    te_<target>/classification/<environment>_<part>.txt    the table, as scikit-learn's classification_report has it
                                                   .csv    the same in full precision
                                                   .png    the confusion matrix

A pure function of a confusion matrix, which the final figures of every algorithm that predicts hold; nothing is
measured here. A figure that is undefined, such as the precision of a class that was never answered, is left empty and
does not enter an average. What all targets and seeds come to is in `summary`.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from domainbed.errors import explain_os_errors
from domainbed.names import printable
from domainbed.paths import folder_name

FIGURES = ("precision", "recall", "f1-score")
AVERAGES = ("macro avg", "weighted avg")
#: Up to so many classes a cell is large enough for its count.
MAX_CLASSES_WITH_COUNTS = 20
_DARK = (8, 48, 107)  # the colour of a row that lies in one cell

Row = tuple[str, list[float | None], int]


def report(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[Row]:
    """Return a row for each class, then "accuracy", "macro avg" and "weighted avg" (by support).

    Args:
        names: of K classes.
        counts: K x K, rows are true classes.

    Returns:
        (name, [precision, recall, F1], support) each; None is undefined. The accuracy stands in the place of F1.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    right, true, answered = matrix.diagonal(), matrix.sum(1), matrix.sum(0)  # (K,) each
    with np.errstate(invalid="ignore"):  # 0/0 is nan: undefined
        figures = np.stack([right / answered, right / true, 2 * right / (true + answered)], axis=1)  # (K, 3)
        accuracy = right.sum() / true.sum()
    rows = [(name, figures[k], true[k]) for k, name in enumerate(names)]
    rows.append(("accuracy", np.array([math.nan, math.nan, accuracy]), true.sum()))
    for name, weights in zip(AVERAGES, (np.ones_like(true), true), strict=True):
        weights = np.where(np.isnan(figures), 0, weights[:, None])  # (K, 3)
        with np.errstate(invalid="ignore"):
            rows.append((name, (np.nan_to_num(figures) * weights).sum(0) / weights.sum(0), true.sum()))
    return [
        (name, [None if math.isnan(one) else float(one) for one in values], int(support))
        for name, values, support in rows
    ]


def text(rows: Iterable[Row]) -> str:
    """The table as plain text, with three decimals."""
    rows = [(printable(name), values, support) for name, values, support in rows]
    width = max(len(name) for name, _, _ in rows)
    lines = [" " * width + "".join(f"{title:>11}" for title in (*FIGURES, "support"))]
    for name, values, support in rows:
        if name == "accuracy":
            lines.append("")
        cells = "".join(f"{'' if value is None else f'{value:.3f}':>11}" for value in values)
        lines.append(f"{name:>{width}}{cells}{support:>11}")
    return "\n".join(lines) + "\n"


def table(rows: Iterable[Row]) -> str:
    """The table as CSV, in full precision; what is undefined is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["class", *FIGURES, "support"])
    writer.writerows([name, *values, support] for name, values, support in rows)
    return buffer.getvalue()


def picture(names: Sequence[str], counts: Sequence[Sequence[int]], title: str) -> Image.Image:
    """Draw a confusion matrix: a row for each true class, the darker a cell the larger its share of the row.

    Args:
        names: of K classes. counts: K x K, rows are true classes.
        title: the first line.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)  # (K, K)
    font = ImageFont.load_default(13)
    detailed = len(names) <= MAX_CLASSES_WITH_COUNTS
    cell = 52 if detailed else 17
    labels = [_label(name, font) for name in names]
    title = printable(title)
    margin = max(label.width for label in labels) + 34
    top = 30
    side = cell * len(names)
    heading = math.ceil(font.getlength(title)) + 16
    canvas = Image.new("RGB", (max(margin + side + 12, heading), top + side + margin), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 6), title, fill="black", font=font)
    for row, label in enumerate(labels):
        at = cell * row + (cell - label.height) // 2
        canvas.paste(label, (margin - 6 - label.width, top + at))
        canvas.paste(label.rotate(90, expand=True), (margin + at, top + side + 6))
    for row, values in enumerate(share):
        for column, value in enumerate(values):
            left, upper = margin + cell * column, top + cell * row
            colour = tuple(round(255 + (dark - 255) * value) for dark in _DARK)
            draw.rectangle(
                (left, upper, left + cell - 1, upper + cell - 1),
                fill=colour,
                outline=(225, 225, 225) if detailed else None,
            )
            if detailed:
                draw.text(
                    (left + cell / 2, upper + cell / 2), str(int(matrix[row, column])),
                    fill="white" if value > 0.5 else "black", font=font, anchor="mm",
                )  # fmt: skip
    axis = _label("true class", font).rotate(90, expand=True)
    canvas.paste(axis, (4, top + max(0, side - axis.height) // 2))
    axis = _label("predicted class", font)
    canvas.paste(axis, (margin + max(0, side - axis.width) // 2, canvas.height - axis.height - 4))
    return canvas


def _label(name: str, font: Any) -> Image.Image:
    """A name, cut where it is very long, as a picture that can be turned."""
    name = printable(name)
    name = name if len(name) <= 24 else f"{name[:23]}…"
    label = Image.new("RGB", (math.ceil(font.getlength(name)) + 1, 17), "white")
    ImageDraw.Draw(label).text((0, 8), name, fill="black", font=font, anchor="lm")
    return label


def choose(figures: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what a report is about: each whole target; without one, the test part of each source, or its held-out one.

    Args:
        figures: final figures of one checkpoint, with environment, role, part and metrics.
    """
    with_counts = [one for one in figures if one["metrics"].get("confusion")]
    targets = [one for one in with_counts if (one["role"], one["part"]) == ("target", "whole")]
    if targets:
        return targets
    parts: dict[str, Mapping[str, Any]] = {}
    for part in ("val", "test"):
        parts |= {one["environment"]: one for one in with_counts if (one["role"], one["part"]) == ("source", part)}
    return list(parts.values())


def dump(folder: Path, figures: Iterable[Mapping[str, Any]], names: Sequence[str], title: str) -> dict[str, Path]:
    """Write the reports of a checkpoint's figures and return the files of the pictures by name.

    Args:
        folder: `te_<target>/classification`; made only if there is something to write.
        figures: as for `choose`. names: of the classes.
        title: the beginning of each picture's first line.

    Raises:
        UserError: the disk is full or the folder can't be written.
    """
    pictures = {}
    with explain_os_errors(f"writing {folder}"):
        for one in choose(figures):
            folder.mkdir(parents=True, exist_ok=True)
            name, counts = f"{one['environment']}_{one['part']}", one["metrics"]["confusion"]
            rows = report(names, counts)
            file = folder / f"{folder_name(one['environment'])}_{one['part']}"  # to which suffixes are added
            Path(f"{file}.txt").write_text(text(rows), encoding="utf-8", errors="backslashreplace")
            Path(f"{file}.csv").write_text(table(rows), encoding="utf-8", errors="backslashreplace")
            pictures[name] = Path(f"{file}.png")
            picture(names, counts, f"{title} · {name}").save(pictures[name])
    return pictures
