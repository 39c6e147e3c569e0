"""Train from Python: the same run as the command line's, as one call.

import domainbed

run = domainbed.train("ERM", "DR", data_dir="DR2/", steps=300, model="tf_efficientnet_lite0")
run.table()                         # pandas: what summary.csv holds
run.load("aptos").predict(x)        # the model that had aptos left out
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from domainbed.cli.configuration import Arguments
from domainbed.cli.train import configured
from domainbed.cli.train import train as train_configured
from domainbed.errors import UserError
from domainbed.hparams import as_text
from domainbed.paths import user_path


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended.

    Attributes:
        folder: where everything lies.
    """

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds: conclusion, notes, averages, and a record for each target, protocol and part."""
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return summary

    def table(self) -> Any:
        """Return summary.csv as a `pandas.DataFrame`: a row for each seed, target, protocol and part.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped]
        except ImportError:
            raise UserError('a table needs pandas. Install it with: pip install -e ".[analysis]"') from None
        return pandas.read_csv(self.folder / "summary.csv")

    def load(self, target: str | None = None, seed: int | None = None, checkpoint: str = "best") -> Any:
        """Return the trained algorithm in evaluation mode, as `domainbed.load` does.

        Args:
            target: the environment that was left out; not needed where the run has one target.
            seed: likewise, where it has several.
            checkpoint: best, last, oracle or init.
        """
        from domainbed.checkpoint import load

        return load(self.folder, target=target, seed=seed, checkpoint=checkpoint)


def train(
    algorithm: str | None = None,
    dataset: str | None = None,
    *,
    name: str | None = None,
    script: str = "train_all",
    files: tuple[str | Path, ...] = (),
    **settings: Any,
) -> TrainedRun:
    """Train, exactly as `python train_all.py NAME key=value …` does, and return the run.

    It prints the run's log. Ctrl-C, or a kernel's interrupt, saves between two steps; `resume=True` goes on.

    Args:
        algorithm, dataset: registered names; the defaults are the command line's.
        name: of the run; the algorithm's with the next free number unless given.
        script: "train_all", or "train_subset" with its defaults: few images, the first environment left out.
        files: YAML files, as on the command line.
        settings: any setting of the run, the algorithm or the data set. In `test_envs=["aptos", "0,2"]` each item is a
            run of its own, and a comma joins what is left out together.

    Raises:
        UserError: a mistake in settings or data; what the command line would print, with exit status 2.
        KeyboardInterrupt: stopped; what was trained is saved.
    """
    stated = {"algorithm": algorithm, "dataset": dataset} | settings
    values = {key: _plain(value) for key, value in stated.items() if value is not None or key in settings}
    name = name or free_name(str(algorithm or "run"), Path(values.get("results_dir") or "results"))
    name, configuration = configured(script, Arguments(name, [user_path(path) for path in files], values))
    typed = [word for key, value in values.items() for word in _typed(key, value)]
    if train_configured(script, name, [name, *map(str, files), *typed], configuration) == 130:
        raise KeyboardInterrupt
    return TrainedRun(configuration.settings.results_dir / "train_output" / str(configuration.settings.dataset) / name)


def _plain(value: Any) -> Any:
    """Return a value as a YAML file would give it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _typed(key: str, value: Any) -> list[str]:
    """Return a setting as it would be typed, for the record of the run."""
    return [f"--{key}", *map(as_text, value)] if isinstance(value, list) else [f"{key}={as_text(value)}"]


def free_name(stem: str, results_dir: Path) -> str:
    """Return a name that no run below a folder of results has: ERM_1, ERM_2, …"""
    taken = {path.name for path in (results_dir / "train_output").glob("*/*")}
    return next(name for number in range(1, len(taken) + 2) if (name := f"{stem}_{number}") not in taken)
