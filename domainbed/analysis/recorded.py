"""What a run wrote down, read without its model or its images: settings, losses, figures. For finished runs and others.

run = RecordedRun.read("results/train_output/DR/full_training")
run.of("eval", target="idrid", seed=0)            # records of results.jsonl, see `records`
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed import checkpoint
from domainbed.algorithms.finished import find_targets
from domainbed.errors import UserError
from domainbed.paths import user_path
from domainbed.records import read_results
from domainbed.registry import DATASETS


@dataclass
class RecordedRun:
    """The records of a run.

    Attributes:
        folder: `results/train_output/<dataset>/<name>`.
        config: its resolved configuration, as in config.yaml.
        records: of results.jsonl, in order.
    """

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: str | Path) -> "RecordedRun":
        """Read the folder of a run.

        Raises:
            UserError: it is none, or nothing was recorded yet.
        """
        folder = user_path(folder)
        config = checkpoint.read_config(folder)
        records = read_results(folder / "results.jsonl")
        if not any(record["kind"] == "start" for record in records):
            raise UserError(f"{folder} has recorded nothing yet: its training has not begun. Train it, or name another")
        return cls(folder, config, records)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.resolve().name

    @property
    def algorithm(self) -> str:
        """Name of its algorithm."""
        return str(self.config["algorithm"])

    @property
    def dataset(self) -> str:
        """Name of its data set."""
        return str(self.config["dataset"])

    @property
    def hparams(self) -> dict[str, Any]:
        """Hyper-parameters of its algorithm."""
        return dict(self.config["algorithms"][self.algorithm])

    @property
    def trainings(self) -> list[tuple[int, str]]:
        """(seed, target) of every training that has begun, in order."""
        return list(dict.fromkeys((record["seed"], record["target"]) for record in self.of("start")))

    def is_finished(self, seed: int, target: str) -> bool:
        """Whether a training has ended and was judged."""
        folders = find_targets(self.folder)
        folder = folders.get((None, target)) or folders.get((seed, target))
        return folder is not None and (folder / "done").exists()

    def images(self) -> list[dict[str, str]]:
        """Return the lines of images.csv: which image was where.

        Raises:
            UserError: it is missing or damaged.
        """
        path, wanted = self.folder / "images.csv", ("image", "environment", "split", "class", "group", "content")
        try:
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                found = list(csv.DictReader(file))
        except (OSError, csv.Error) as error:
            raise UserError(f"{path} can't be read ({error}), so nobody knows which images were where") from None
        if not found or any(line.get(column) is None for line in found for column in wanted):
            raise UserError(f"{path} is damaged: nobody knows which images were where")
        return found

    def of(self, kind: str, target: str | None = None, seed: int | None = None) -> list[dict[str, Any]]:
        """Return the records of a kind (start, train, eval, final, note), of a target and a seed, or of all."""
        return [
            record
            for record in self.records
            if record["kind"] == kind
            and (target is None or record.get("target") == target)
            and (seed is None or record.get("seed") == seed)
        ]


def dataset_settings(name: str, values: dict[str, Any]) -> tuple[Any, Any]:
    """Return the class of a data set that a run recorded, and its settings.

    Args:
        name: of the data set. values: of its keys.

    Raises:
        UserError: it is unknown here, or its settings are of another version.
    """
    if name not in DATASETS:
        raise UserError(f"the data set {name!r} is not built in. Name its file with --plugin")
    dataset = DATASETS[name]
    try:
        return dataset, dataset.HParams(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"the recorded settings of {name} are not those of this version: {error}") from None
