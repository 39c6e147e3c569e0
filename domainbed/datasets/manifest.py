"""A table of images, for layouts that folders can't tell.

    path,environment,label,group,split,mask_vessels
    cam1/a.jpg,cam1,0,patient 7,train,masks/a.png

One row is one image. `path` is needed, and `environment` unless a setting names the only one; `label`, `group` (a
patient), `split` and masks may be left out, or missing in some rows (empty, NaN, NA, null, -, …). Paths are relative to
the table's folder, or to `root_dir`.

A column `mask_<kind>` holds masks of one kind, 0 and one other value; kinds may overlap. A column `mask` is one more
kind of that name, unless `mask_classes` names what its values 0, 1, 2, … stand for: then it holds one class for each
pixel, the background first, and 255 where nobody labelled. `mask_ignore` marks such pixels for any of them, and
`mask_field_of_view` those outside of which they are.

How files are read is in `tables`, which other names columns may have in `columns`, which spellings of a path are
followed in `paths`, and what a label means as a class in `labels`.
"""

import os
import re
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator

from domainbed.datasets import columns, images, labels, splits, tables
from domainbed.datasets.base import UNLABELLED, Dataset, Sample, read_file
from domainbed.datasets.dr import EYES
from domainbed.datasets.folder import group_of, valid_regex
from domainbed.datasets.labels import plain
from domainbed.datasets.masks import NOT_LEARNT, MaskClasses, digest_files, read_files
from domainbed.datasets.paths import Paths, UnclearPath
from domainbed.datasets.preprocess import Preprocess
from domainbed.errors import UserError
from domainbed.hparams import Field, Names
from domainbed.paths import user_path
from domainbed.registry import DATASETS

_SHOWN = 5
#: Roles whose cells are names, which people compare as they read them; a path keeps the bytes that are on disk.
_NAMED = ("environment", "label", "group", "split")
#: In a column of patients these name nobody, beside what `tables.is_missing` knows.
_NOBODY = ("unknown", "anonymous", "anonymised", "anonymized", "missing")


@dataclass
class _Row:
    """One image as the table has it.

    Attributes:
        number: of the row. cells: texts by role, without the missing ones. name: of the sample.
        written_label: the label as it is written, also where that means none.
    """

    number: int
    cells: dict[str, str]
    written_label: str
    name: str = ""


@DATASETS.register("Manifest")
class Manifest(Dataset):
    """Your own images as rows of a .csv or .json table: path, environment, and where known label, patient, split, mask.

    Environments are sorted by name; classes are in the order that `labels.order` finds. A sample's name is the path of
    its file relative to the root. A group is one patient in the whole table: in two environments, it is reported as a
    leak.

    Args:
        data_dir: the table, or a folder that holds exactly one.
        hparams: the values of `Manifest.HParams`.
    """

    class HParams(Dataset.HParams):
        """Which columns hold what, where paths start, and what the values of masks mean."""

        columns: Names = Field(
            [],
            description="columns that have other names, as <role>:<column>, such as label:diagnosis,group:patient; "
            f"roles: {', '.join(columns.ROLES)}, mask_<kind>; <role>:none: no column",
        )
        root_dir: Path | None = Field(
            None, description="folder that paths in the table start from, relative to the table's; null: the table's"
        )
        environment: str | None = Field(
            None, description="name of the only environment of a table without such a column"
        )
        missing_labels: Literal["keep", "leave_out"] = Field(
            "keep",
            description="images without a label: keep them, so that algorithms that learn from labels refuse the "
            "table, or leave_out",
        )
        group_pattern: Annotated[str | None, AfterValidator(valid_regex)] = Field(
            None,
            description="regular expression that finds the patient in the file name, as in Folder, where a row names "
            "none",
        )
        mask_classes: Names | None = Field(
            None,
            description="names of what the values 0, 1, 2, … of the column mask stand for, the background first; null: "
            "its masks are 0 and one other value",
        )

    without_unlabelled = "leave them out with missing_labels=leave_out"
    hparams: HParams

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        table = tables.read(tables.find(data_dir, NEEDS_TABLE))
        self._root = table.path.parent / user_path(hparams.root_dir or Path())
        if not self._root.is_dir():
            raise UserError(f"root_dir = {hparams.root_dir}: there is no folder {str(self._root)!r}. Give another one")
        self._table, self._roles = table, self._assign(table)
        self.log += columns.describe(table, self._roles)
        rows = self._labelled(self._understood())
        rows.sort(key=lambda row: (row.cells["environment"], row.name))  # whatever their order in the table
        scale = labels.order(row.cells["label"] for row in rows if "label" in row.cells)
        self.environments = sorted({row.cells["environment"] for row in rows})
        self.classes, self.ordinal = scale.classes, scale.ordinal
        environment_index = {environment: i for i, environment in enumerate(self.environments)}
        pattern = re.compile(hparams.group_pattern) if hparams.group_pattern else None
        self.samples = [
            Sample(
                environment=environment_index[row.cells["environment"]],
                name=row.name,
                label=scale.index[row.cells["label"]] if "label" in row.cells else UNLABELLED,
                group=row.cells.get("group") or group_of(pattern, row.cells["environment"], row.name),
                split=splits.spelled(row.cells.get("split", "")),
            )
            for row in rows
        ]
        self._rows = rows
        self._masks = [{kind: row.cells[role] for role in row.cells if (kind := columns.kind_of(role))} for row in rows]
        self.notes += [f"{table.path.name}: {note}" for note in scale.notes]
        self._note_groups(rows)
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

    def labels_wanted(self) -> str:
        if "label" not in self._roles:
            return columns.lacking(self._table, "label")
        return f"the column {self._roles['label']!r} of {self._table.path} has none in any row"

    def unlabelled(self, indices: Collection[int]) -> str:
        rows = sorted((self._rows[index] for index in indices), key=lambda row: row.number)
        cells = [f": {row.written_label!r}" if row.written_label else "" for row in rows]
        shown = [f"row {row.number} ({row.name}{cell})" for row, cell in zip(rows[:_SHOWN], cells, strict=False)]
        return ", ".join(shown) + (", …" if len(rows) > _SHOWN else "")

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
        return self._root / relative

    # --- from the table to samples ---

    def _assign(self, table: tables.Table) -> dict[str, str]:
        """Return the column of each role.

        Raises:
            UserError: there is no column of paths, or none of environments and no setting that takes its place.
        """
        alone = self.hparams.environment
        roles = columns.assign(table, self.hparams.columns)
        if "path" not in roles:
            raise UserError(f"{columns.lacking(table, 'path')}. {NEEDS}")
        if "environment" not in roles and alone is None:
            raise UserError(
                f"{columns.lacking(table, 'environment')}. Where one camera or hospital took all images, name it: "
                f"environment={re.sub('[^A-Za-z0-9]+', '_', table.path.stem)}{self._path_hint(table, roles['path'])}"
            )
        if "environment" in roles and alone is not None:
            raise UserError(
                f"environment = {alone} is for a table without such a column, but {table.path} has "
                f"{roles['environment']!r}. Leave it out, or say columns=environment:{columns.NONE}"
            )
        return roles

    def _path_hint(self, table: tables.Table, column: str) -> str:
        """Return a sentence on the first path where it leads nowhere, so that one message says all that is lacking."""
        text, paths = table.rows[0][1].get(column, ""), Paths(self._root)
        with suppress(UnclearPath):
            if not tables.is_missing(text) and not paths.find(text)[1]:
                return f". There is no {text!r}, either. {paths.explain(text)}"
        return ""

    def _understood(self) -> list[_Row]:
        """Return the rows as they are to be understood.

        Raises:
            UserError: naming the first rows that can't be used.
        """
        rows, faults = [], []
        for number, written in self._table.rows:
            cells = {role: written.get(column, "") for role, column in self._roles.items()}
            cells = {role: cell for role, cell in cells.items() if not tables.is_missing(cell)}
            if self.hparams.environment is not None:
                cells["environment"] = self.hparams.environment
            cells |= {role: plain(cells[role]) for role in _NAMED if role in cells}
            for role in ("path", "environment"):
                if role not in cells:
                    cell = written.get(self._roles[role], "")
                    faults.append(
                        f"row {number} has no {role}" + (f": its {self._roles[role]} is {cell!r}" if cell else "")
                    )
            if cells.get("group", "").lower() in _NOBODY:
                del cells["group"]
            for role in ("environment", "group"):  # 7 and 7.0 are one: a column with a gap is written as floats
                if role in cells:
                    cells[role] = re.sub(r"^([0-9]+)\.0*$", r"\1", cells[role])
            if "split" in cells and splits.spelled(cells["split"]) is None:
                faults.append(
                    f"row {number}: {self._roles['split']} {cells['split']!r} is none of {', '.join(splits.SPLITS)}"
                )
            if (value := labels.number(cells.get("label", ""))) is not None and value < 0:
                faults.append(f"row {number}: label {cells['label']!r} is negative; leave it empty where there is none")
            rows.append(_Row(number, cells, written.get(self._roles.get("label", ""), "")))
        self._find_files(rows, faults)
        return rows

    def _find_files(self, rows: list[_Row], faults: list[str]) -> None:
        """Set the name of each row's image, and replace its masks' paths by those of their files.

        Args:
            rows: to be completed. faults: found before; those of paths are added.

        Raises:
            UserError: there are faults, or no image is there.
        """
        paths = Paths(self._root)
        seen: dict[str, int] = {}
        gone: list[tuple[int, str]] = []
        num_images_gone = 0
        for row in rows:
            for role in [role for role in row.cells if role == "path" or columns.kind_of(role)]:
                text = row.cells[role]
                try:
                    row.cells[role], is_there = paths.find(text)
                except UnclearPath as error:
                    faults.append(f"row {row.number}: {error}")
                    continue
                if not is_there:
                    gone.append((row.number, text))
                    num_images_gone += role == "path"
            row.name = row.cells.get("path", "")
            if not row.name:
                continue
            first = seen.setdefault(os.path.normpath(os.path.join(self._root, row.name)), row.number)
            if first != row.number:
                faults.append(f"rows {first} and {row.number} have the same path {row.name!r}")
        if faults:
            more = f"\n… and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise UserError(
                f"{self._table.path} can't be used:\n" + "\n".join(faults[:_SHOWN]) + more + "\nCorrect the table"
            )
        if not gone:
            return
        where = ", ".join(f"row {number} {text!r}" for number, text in gone[:_SHOWN])
        if num_images_gone == len(rows):
            raise UserError(
                f"{self._table.path}: none of its {len(rows)} images is there, such as row {gone[0][0]}, "
                f"{gone[0][1]!r}. {paths.explain(gone[0][1])}"
            )
        self.log.append(
            f"WARNING: {len(gone)} files that {self._table.path.name} names are not there: {where}"
            f"{', …' if len(gone) > _SHOWN else ''}. {paths.explain(gone[0][1])}"
        )

    def _labelled(self, rows: list[_Row]) -> list[_Row]:
        """Return the rows that are kept: all, or by a setting those with a label.

        Raises:
            UserError: none is left.
        """
        if self.hparams.missing_labels == "keep":
            return rows
        kept = [row for row in rows if "label" in row.cells]
        if not kept:
            raise UserError(f"missing_labels = leave_out leaves out every image: {self.labels_wanted()}")
        counts = Counter(row.cells["environment"] for row in rows if "label" not in row.cells)
        emptied = sorted(counts.keys() - {row.cells["environment"] for row in kept})
        if counts:
            self.notes.append(
                f"{len(rows) - len(kept)} of {len(rows)} images have no label and are left out "
                f"(missing_labels=leave_out): {', '.join(f'{n} of {name}' for name, n in sorted(counts.items()))}"
                + (f"; nothing is left of {', '.join(emptied)}" if emptied else "")
            )
        return kept

    def _note_groups(self, rows: list[_Row]) -> None:
        """Note what may be wrong with patients and environments."""
        name = self._table.path.name
        nameless = sum("group" not in row.cells for row in rows)
        if 0 < nameless < len(rows):
            what = "the pattern decides" if self.hparams.group_pattern else "each is a patient of its own"
            self.log.append(f"{name}: {nameless} of {len(rows)} rows name no patient; {what}")
        if nameless == len(rows) and not self.hparams.group_pattern:
            eyes = re.compile(EYES)
            patients = Counter(group_of(eyes, row.cells["environment"], row.name) for row in rows)
            if any(count > 1 for count in patients.values()):
                both = next(
                    row.name for row in rows if patients[group_of(eyes, row.cells["environment"], row.name)] > 1
                )
                self.notes.append(
                    f"{name} names no patients, and file names such as {both} look like two eyes of one: they may be "
                    "on both sides of a split. Name a column with columns=group:<column>, or use "
                    f"group_pattern='{EYES}'"
                )
        for group in labels.alike(self.environments):
            self.notes.append(f"the environments {' and '.join(group)} differ in case or punctuation alone")


NEEDS = (
    "A table needs a column path; environment (a camera or hospital), label, group (a patient), split and mask_<kind> "
    "may follow"
)
NEEDS_TABLE = "Manifest needs a .csv, .tsv or .json table with the columns path and environment"
