"""Vectors that another model made of images, or any other numbers: a table beside an array file.

    features.csv            environment,label,group,split
                            clinic,2,patient 7,train
    features.npy            (N, F), float16 or float32

Row i of the table is about vector i of the array. `environment` and `label` are needed; `group` (a patient) and `split`
may be left out, or missing in some rows. Columns may have other names, as in `Manifest` (`columns`).

How the array is read is in `vectors`, how the table is in `tables`, what a label means as a class in `labels`.
"""

import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from domainbed import hparams
from domainbed.datasets import columns, labels, splits, tables, vectors
from domainbed.datasets.base import UNLABELLED, Dataset, Sample
from domainbed.datasets.labels import plain
from domainbed.errors import UserError
from domainbed.hparams import Field, Names
from domainbed.paths import user_path
from domainbed.registry import DATASETS

NEEDS = (
    "Features needs a .csv, .tsv or .json table with the columns environment and label (group and split may follow), "
    "and beside it a .npy file with one vector for each row"
)
_NO_IMAGES = "Features gives vectors, not images. Leave it out"
_SHOWN = 5


@DATASETS.register("Features")
class Features(Dataset):
    """Vectors, such as the features of another model: a table of environments and labels, and a .npy file.

    Environments are sorted by name; classes are in the order that `labels.order` finds; samples are in the order of the
    rows, and called by it: "vector 0" is the first. A vector without a group is a group of its own.

    Args:
        data_dir: the table, or a folder that holds exactly one.
        hparams: the values of `Features.HParams`.
    """

    class HParams(hparams.HParams):
        """Which file holds the vectors, and which columns hold what."""

        array: Path | None = Field(
            None,
            description="the .npy file of the vectors, relative to the table's folder; null: the one of the table's "
            "name, or else the only one there",
        )
        columns: Names = Field(
            [],
            description="columns that have other names, as <role>:<column>, such as label:diagnosis; roles: "
            "environment, label, group, split; <role>:none: no column",
        )

        refused: ClassVar[dict[str, str]] = dict.fromkeys(Dataset.HParams.model_fields, _NO_IMAGES)

    gives_vectors = True
    photographs = False
    defaults: ClassVar[dict[str, object]] = {"model": "mlp", "lr": 1e-3, "batch_size": 32, "eval_batch_size": 1024}
    without_unlabelled = "leave them out of table and array"
    hparams: HParams  # type: ignore[assignment]

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)  # type: ignore[arg-type]
        table = tables.read(tables.find(data_dir, NEEDS))
        self._table, self._roles = table, columns.assign(table, hparams.columns)
        self._path = _find_array(table.path, hparams.array)
        for role in ("environment", "label"):
            if role not in self._roles:
                raise UserError(f"{columns.lacking(table, role)}. {NEEDS}")
        self.log += columns.describe(table, self._roles)
        self.array = vectors.open_array(self._path)
        if len(self.array) != len(table.rows):
            raise UserError(
                f"{table.path} has {len(table.rows)} rows, but {self._path} has {len(self.array)} vectors. Row i of "
                "the table is about vector i of the array: give both the same rows in the same order"
            )
        rows = self._understood()
        scale = labels.order(row["label"] for row in rows if "label" in row)
        self.environments = sorted({row["environment"] for row in rows})
        self.classes, self.ordinal = scale.classes, scale.ordinal
        self.notes += [f"{table.path.name}: {note}" for note in scale.notes]
        for alike in labels.alike(self.environments):
            self.notes.append(f"the environments {' and '.join(alike)} differ in case or punctuation alone")
        numbers = {environment: number for number, environment in enumerate(self.environments)}
        self.samples = [
            Sample(
                environment=numbers[row["environment"]],
                name=f"vector {index}",
                label=scale.index[row["label"]] if "label" in row else UNLABELLED,
                group=row.get("group") or f"vector {index}",
                split=splits.spelled(row.get("split", "")),
            )
            for index, row in enumerate(rows)
        ]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(F,) of every vector."""
        return (self.array.shape[1],)

    def read(self, index: int) -> np.ndarray:
        """Return vector `index` as float32 (F,)."""
        return np.array(self.array[index], dtype=np.float32)

    def content(self, index: int) -> str:
        """Return a digest of vector `index`."""
        return vectors.content_of(self.read(index))

    def labels_wanted(self) -> str:
        return f"the column {self._roles['label']!r} of {self._table.path} has none in any row"

    def check_for_training(self) -> None:
        if len(self.environments) == 1:
            raise UserError(
                f"the column {self._roles['environment']!r} of {self._table.path} names one environment only, "
                f"{self.environments[0]!r}, so none can be left out. Give vectors of two environments or more"
            )

    def _understood(self) -> list[dict[str, str]]:
        """Return the cells of every row by role, without the missing ones.

        Raises:
            UserError: naming the first rows that can't be used.
        """
        understood, faults = [], []
        for number, written in self._table.rows:
            row = {role: plain(written.get(column, "")) for role, column in self._roles.items()}
            row = {role: cell for role, cell in row.items() if not tables.is_missing(cell)}
            for role in ("environment", "group"):  # 7 and 7.0 are one: a column with a gap is written as floats
                if role in row:
                    row[role] = re.sub(r"^([0-9]+)\.0*$", r"\1", row[role])
            if "environment" not in row:
                faults.append(f"row {number} has no environment")
            if "split" in row and splits.spelled(row["split"]) is None:
                faults.append(f"row {number}: split {row['split']!r} is none of {', '.join(splits.SPLITS)}")
            if (value := labels.number(row.get("label", ""))) is not None and value < 0:
                faults.append(f"row {number}: label {row['label']!r} is negative; leave it empty where there is none")
            understood.append(row)
        if faults:
            more = f"\n… and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise UserError(
                f"{self._table.path} can't be used:\n" + "\n".join(faults[:_SHOWN]) + more + "\nCorrect the table"
            )
        return understood


def _find_array(table: Path, named: Path | None) -> Path:
    """Return the array file of a table: the one that is named, or else the one beside it.

    Raises:
        UserError: none is named, and it can't be told which one is meant.
    """
    if named is not None:
        return table.parent / user_path(named)
    if (own := table.with_suffix(".npy")).is_file():
        return own
    found = sorted(path for path in table.parent.glob("*.npy") if path.is_file())
    if len(found) != 1:
        there = f"has {', '.join(path.name for path in found[:_SHOWN])}" if found else "has no .npy file"
        raise UserError(f"{NEEDS}, but the folder of {table} {there}. Name the file: array=<file>.npy")
    return found[0]
