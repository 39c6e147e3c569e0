"""A table of images, for layouts that folders can't tell. What a label means as a class is in `labels`.

    path,environment,label,group,split,mask_vessels
    cam1/a.jpg,cam1,0,patient 7,train,masks/a.png

One row is one image. `path` and `environment` are needed; `label`, `group` (a patient), `split` and masks may be left
out, or empty in some rows. Paths are relative to the table's folder. Other columns are ignored.

A column `mask_<kind>` holds masks of one kind, 0 and one other value; kinds may overlap. A column `mask` is one more
kind of that name, unless `mask_classes` names what its values 0, 1, 2, … stand for: then it holds one class for each
pixel, the background first, and 255 where nobody labelled. `mask_ignore` marks such pixels for any of them, and
`mask_field_of_view` those outside of which they are.

CSV has commas, semicolons or tabs between its fields; JSON is a list of objects with these keys.
"""

import csv
import difflib
import io
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from domainbed.datasets import images, labels, splits
from domainbed.datasets.base import UNLABELLED, Dataset, Sample, read_file
from domainbed.datasets.labels import plain
from domainbed.datasets.masks import NOT_LEARNT, MaskClasses, digest_files, read_files
from domainbed.datasets.preprocess import Preprocess
from domainbed.errors import UserError
from domainbed.hparams import Field, Names
from domainbed.registry import DATASETS

COLUMNS = ("path", "environment", "label", "group", "split", "mask")
REQUIRED = COLUMNS[:2]
_FAULTS_SHOWN = 5
_PROBED = 20  # a wrong base folder shows in the first paths already


@DATASETS.register("Manifest")
class Manifest(Dataset):
    """Your own images as rows of a .csv or .json table: path, environment, and where known label, patient, split, mask.

    Environments are sorted by name; classes are in the order that `labels.order` finds. A sample's name is its path as
    the table has it. A group is one patient in the whole table: in two environments, it is reported as a leak.

    Args:
        data_dir: the table, or a folder that holds exactly one.
        hparams: the values of `Manifest.HParams`.
    """

    class HParams(Dataset.HParams):
        """What the values of masks mean."""

        mask_classes: Names | None = Field(
            None,
            description="names of what the values 0, 1, 2, … of the column mask stand for, the background first; null: "
            "its masks are 0 and one other value",
        )

    hparams: HParams

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        self._table = _find_table(data_dir)
        rows = [(number, _with_plain_names(row)) for number, row in _read_table(self._table)]
        _check(self._table, rows)
        rows.sort(key=lambda numbered: (numbered[1]["environment"], _name(numbered[1])))  # in whatever order they stand
        scale = labels.order(row["label"] for _, row in rows if row.get("label"))
        self.environments = sorted({row["environment"] for _, row in rows})
        self.classes, self.ordinal = scale.classes, scale.ordinal
        number = {environment: i for i, environment in enumerate(self.environments)}
        self.samples, self._masks = [], []
        for _, row in rows:
            environment, name = row["environment"], _name(row)
            label = scale.index[row["label"]] if row.get("label") else UNLABELLED
            group = row.get("group") or name
            self.samples.append(Sample(number[environment], name, label, group, splits.spelled(row.get("split", ""))))
            self._masks.append({_kind(column): row[column] for column in row if _kind(column) and row[column]})
        kinds = sorted({kind for found in self._masks for kind in found if kind not in NOT_LEARNT})
        if hparams.mask_classes is not None:
            self.masks = self._exclusive(hparams.mask_classes, kinds)
        elif kinds:
            self.masks = MaskClasses(tuple(kinds), exclusive=False)

    def read(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (H, W, C), decoded and preprocessed.

        Raises:
            UnreadableImage: the file can't be decoded whole.
        """
        return read_file(self._path(self.samples[index].name), self.preprocess, whole=bool(self.masks))

    @classmethod
    def read_new(cls, path: str | os.PathLike[str], hparams: Any, with_masks: bool = False) -> np.ndarray:
        return read_file(path, Preprocess(hparams.preprocess, hparams.image_size), whole=with_masks)

    @property
    def least_side(self) -> int | None:
        """Pixels that the shorter side is decoded to at least; with masks an image is decoded whole, as they are."""
        return None if self.masks else self.preprocess.least_side

    def read_masks(self, index: int, kinds: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Return the masks of image `index` by kind, uint8 (H, W), preprocessed with their image.

        Args:
            index: of the image.
            kinds: those wanted, beside `mask_ignore` and `mask_field_of_view`; None for all.

        Raises:
            UnreadableImage: the image or a mask can't be decoded whole, or they are of different sizes.
        """
        paths = self._mask_paths(index, kinds)
        if not paths:
            return {}
        image = images.read_image(self._path(self.samples[index].name))
        return self.preprocess(image, read_files(paths, image))[1]

    def file(self, index: int) -> Path | None:
        """Return the file of image `index`."""
        return self._path(self.samples[index].name)

    def has_mask(self, index: int, kind: str) -> bool:
        """Whether the table names a mask of that kind for image `index`; where there are classes, a mask."""
        return ("mask" if self.masks and self.masks.exclusive else kind) in self._masks[index]

    def mask_content(self, index: int, kinds: Collection[str]) -> str:
        """Return the SHA-256 of the files of the masks.

        Raises:
            UnreadableImage: one can't be opened.
        """
        exclusive = self.masks is not None and self.masks.exclusive
        return digest_files(self._mask_paths(index, None if exclusive else kinds))

    def content(self, index: int) -> str:
        """Return the SHA-256 of the image's file.

        Raises:
            UnreadableImage: the file can't be opened.
        """
        return images.digest(self._path(self.samples[index].name))

    def _mask_paths(self, index: int, kinds: Collection[str] | None) -> dict[str, Path]:
        wanted = self._masks[index].keys() if kinds is None else {*kinds, *NOT_LEARNT}
        return {kind: self._path(path) for kind, path in self._masks[index].items() if kind in wanted}

    def _exclusive(self, names: list[str], kinds: list[str]) -> MaskClasses:
        if kinds != ["mask"]:
            found = ", ".join("mask" if kind == "mask" else f"mask_{kind}" for kind in kinds) or "no masks"
            raise UserError(
                f"mask_classes names the values of a column mask, but {self._table} has {found}. Leave mask_classes "
                "out, or give one column mask with a class for each pixel"
            )
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(
                f"mask_classes = {','.join(names)} must name two classes or more, each once, the background first"
            )
        return MaskClasses(tuple(names), exclusive=True)

    def _path(self, relative: str) -> Path:
        return self._table.parent / relative


Rows = list[tuple[int, dict[str, str]]]  # (row number as messages name it, column to stripped cell)


def _find_table(data_dir: Path | None) -> Path:
    needs = "Manifest needs a .csv or .json table with the columns path and environment"
    if data_dir is None:
        raise UserError(f"{needs}, but no --data_dir is given. Give the path of the table")
    path = Path(data_dir).expanduser()
    if path.is_file():
        if path.suffix.lower() in (".csv", ".json"):
            return path
        raise UserError(f"{needs}, but {str(path)!r} is neither. Give the path of the table")
    if not path.is_dir():
        raise UserError(f"{needs}, but there is no {str(path)!r}. Give the path of the table")
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in (".csv", ".json") and p.name[0] != ".")
    if len(found) != 1:
        holds = ", ".join(p.name for p in found[:_FAULTS_SHOWN]) if found else "none"
        raise UserError(f"{needs}, but {str(path)!r} holds {holds}. Give the path of one table")
    return found[0]


def _read_table(table: Path) -> Rows:
    """Return the rows that are not blank, with lower-case column names."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{table}: {error.strerror}. Give the path of a .csv or .json table") from None
    except UnicodeDecodeError:
        raise UserError(f"{table} is not a text file in UTF-8. Save the table as UTF-8") from None
    return _read_json(table, text) if table.suffix.lower() == ".json" else _read_csv(table, text)


def _read_csv(table: Path, text: str) -> Rows:
    first = text.partition("\n")[0]
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True))
    except csv.Error as error:
        raise UserError(f"{table} is not valid CSV: {error}. Save the table anew") from None
    header = [name.strip().lower() for name in lines[0]] if lines else []
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError(f"{table} has two columns named {twice[0]!r}. Rename or remove one")
    rows: Rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != len(header):
            raise UserError(
                f"{table}, row {number} has {len(line)} fields, but the header has {len(header)}. "
                "Put quotes around a field that holds the separator"
            )
        rows.append((number, {name: cell.strip() for name, cell in zip(header, line, strict=True)}))
    return _with_columns(table, rows, header)


def _read_json(table: Path, text: str) -> Rows:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{table} is not valid JSON: {error}") from None
    if not isinstance(entries, list):
        raise UserError(f"{table} must hold a list of objects, one per image, but holds {type(entries).__name__}")
    rows: Rows = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise UserError(f"{table}, row {number} is {json.dumps(entry)}, not an object such as {{'path': 'a.jpg'}}")
        nested = sorted(key for key, value in entry.items() if isinstance(value, list | dict))
        if nested:
            raise UserError(f"{table}, row {number}: {nested[0]!r} holds {type(entry[nested[0]]).__name__}, not a text")
        cells = {key.strip().lower(): "" if value is None else str(value).strip() for key, value in entry.items()}
        rows.append((number, cells))
    return _with_columns(table, rows, dict.fromkeys(column for _, row in rows for column in row))


def _with_columns(table: Path, rows: Rows, columns: Iterable[str]) -> Rows:
    """Raise `UserError` where there is no row, a column is missing, or one looks like a misspelt column."""
    columns = list(columns)
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise UserError(
            f"{table} has no column {missing[0]!r}. It has {', '.join(columns) or 'none'}; "
            f"known are {', '.join(COLUMNS)}, mask_<kind>"
        )
    for column in columns:
        near = difflib.get_close_matches(column, [name for name in COLUMNS if name not in columns], n=1, cutoff=0.8)
        if near and column not in COLUMNS and not _kind(column):  # ignored, it would lose every label in silence
            raise UserError(f"{table} has a column {column!r}: did you mean {near[0]!r}? Rename it")
    if not rows:
        raise UserError(f"{table} has no row below its header. Give one row per image")
    return rows


def _check(table: Path, rows: Rows) -> None:
    """Raise `UserError` for every cell that can't be used, the first few by row number."""
    faults = []
    seen: dict[str, int] = {}
    for number, row in rows:
        for column in REQUIRED:
            if not row.get(column):
                faults.append(f"row {number} has no {column}")
        if row.get("split") and splits.spelled(row["split"]) is None:
            faults.append(f"row {number}: split {row['split']!r} is none of train, val, test")
        if row.get("label", "").startswith("-"):
            faults.append(f"row {number}: label {row['label']!r} is negative; leave it empty where there is none")
        if row.get("path"):
            first = seen.setdefault(os.path.normpath(table.parent / row["path"]), number)
            if first != number:
                faults.append(f"rows {first} and {number} have the same path {row['path']!r}")
    if faults:
        more = f"\n… and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise UserError(f"{table} can't be used:\n" + "\n".join(faults[:_FAULTS_SHOWN]) + more + "\nMend the table")
    if not any(os.path.lexists(path) for path in list(seen)[:_PROBED]):
        raise UserError(
            f"{table}: none of its first {min(len(seen), _PROBED)} paths exists, such as {next(iter(seen))!r}. "
            f"Paths are relative to the table's folder"
        )


def _with_plain_names(row: dict[str, str]) -> dict[str, str]:
    """Return a row whose names are spelled in one way (`labels.plain`); paths keep the bytes that are on disk."""
    return row | {column: plain(row[column]) for column in ("environment", "label", "group", "split") if column in row}


def _name(row: dict[str, str]) -> str:
    """Return the name of a row's image: its path, spelled in one way."""
    return os.path.normpath(row["path"]).replace(os.sep, "/")


def _kind(column: str) -> str:
    """Return the name of the masks in a column, empty where it holds none."""
    return column if column == "mask" else column.removeprefix("mask_") if column.startswith("mask_") else ""
