"""A run opened to be looked at: its model on a device, and its images in the splits that it was trained with.

    run = open_run("results/train_output/DR/full_training", target="idrid")
    codes = run.compute(rows, lambda x, y: {"code": run.algorithm.encode(x)})["code"]   # (N, D) on the CPU

What a run wrote down, without model and images, is in `recorded`.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from domainbed import checkpoint
from domainbed.algorithms.base import Algorithm, handles_labels
from domainbed.analysis import CHOICES
from domainbed.analysis.recorded import dataset_settings
from domainbed.datasets.base import Dataset, refuse_vectors
from domainbed.datasets.prepare import Images, check_same_classes, check_same_images, prepare
from domainbed.datasets.splits import SPLITS, TRAIN
from domainbed.engine import Engine
from domainbed.errors import UserError
from domainbed.evaluator import NOISE_SEED, in_batches
from domainbed.machine import default_cache_dir, default_num_workers
from domainbed.paths import folder_name, user_path


@dataclass
class OpenedRun:
    """The model of one training of a run, with the run's images.

    Attributes:
        path: as it was given: the run's folder, or an exported model.
        config: the resolved configuration, as in config.yaml. meta: as in checkpoint.json.
        algorithm: on the engine's device, in evaluation mode. engine: device and precision.
        images: all that the run has, in its splits.
        checkpoint: "best", "last", "oracle" or "init".
    """

    path: Path
    config: dict[str, Any]
    meta: dict[str, Any]
    algorithm: Algorithm
    engine: Engine
    images: Images
    checkpoint: str

    @property
    def target(self) -> str:
        """Name of what was left out, "none" for a run without."""
        return str(self.meta["target"])

    @property
    def title(self) -> str:
        """Whose pictures these are, in one line."""
        return (
            f"{self.config['algorithm']} · {self.run_name} · target {self.target} · {self.checkpoint} "
            f"(step {self.meta['step']})"
        )

    @property
    def about(self) -> dict[str, Any]:
        """Which model the figures of a command are of: how every figures.json begins."""
        return {
            "run": str(self.path),
            "title": self.title,
            "algorithm": self.config["algorithm"],
            "target": self.target,
            "seed": self.meta.get("seed"),
            "checkpoint": self.checkpoint,
            "step": self.meta["step"],
        }

    @property
    def run_name(self) -> str:
        """Name of the run, or of the exported file."""
        return self.path.resolve().name

    @property
    def classes(self) -> list[str]:
        """Names of the classes of the labels; empty where there are none."""
        return self.images.classes

    def is_target(self, environment: int) -> bool:
        """Whether an environment was left out of the training."""
        return self.images.environments[environment] not in self.meta["sources"]

    def role(self, environment: int, split: str) -> str:
        """What the training had to do with the images of a split, in words."""
        if self.is_target(environment):
            return "left out of training"
        return "trained on" if split == TRAIN else "held out"

    def roles(self, rows: np.ndarray) -> str:
        """What the training had to do with some images, in words, such as "trained on and held out"."""
        pairs = zip(self.images.environment[rows].tolist(), self.images.split[rows].tolist(), strict=True)
        return " and ".join(dict.fromkeys(self.role(environment, split) for environment, split in pairs))

    def folder_for(self, command: str) -> Path:
        """Where a command's pictures and figures belong; not made here."""
        name = f"te_{folder_name(self.target)}_{self.checkpoint}"
        if "folder" not in self.meta:  # an exported file
            return self.path.parent / "analysis" / command / name
        return Path(self.meta["folder"]).parents[2] / "analysis" / command / name

    def rows(self, which: str = "held-out", per_environment: int | None = None) -> dict[str, np.ndarray]:
        """Return rows of the images by environment, without environments that have none.

        Args:
            which: one of `CHOICES`; all images of a target are held out.
            per_environment: at most so many of each, drawn once and for all; None for all.
        """
        chosen = {}
        for environment, name in enumerate(self.images.environments):
            splits = [
                split
                for split in SPLITS
                if which == "all" or (self.role(environment, split) == "trained on") == (which == "train")
            ]
            of_splits = [self.images.select(environment, split) for split in splits]
            rows = np.sort(np.concatenate(of_splits)) if splits else np.empty(0, np.int64)
            if per_environment is not None and len(rows) > per_environment:
                generator = np.random.default_rng(NOISE_SEED)
                rows = np.sort(generator.choice(rows, per_environment, replace=False))
            if len(rows):
                chosen[name] = rows
        if not chosen:
            raise UserError(f"this run has no {which} images to look at. Choose others: {', '.join(CHOICES)}")
        return chosen

    def compute(
        self, rows: np.ndarray, answer: Callable[[Tensor, Tensor], dict[str, Tensor]], doing: str = ""
    ) -> dict[str, Tensor]:
        """Return what the model answers for some images, joined over batches, on the CPU, floats as float32.

        Args:
            rows: (N,) of the images.
            answer: given x (B, C, H, W) in [0, 1] and y (B,) or masks on the device, returns tensors (B, …) by name. It
                is called in evaluation mode, without gradients, in the engine's precision, its noise fixed.
            doing: what the progress bar says; none without it.

        Returns:
            (N, …) by name, in the order of the rows.
        """
        size = int(self.config["eval_batch_size"])
        parts: list[dict[str, Tensor]] = []
        numbers = tqdm(range(-(-len(rows) // size)), desc=doing, unit="batch", disable=None if doing else True)
        with (
            self.engine.evaluation(self.algorithm, NOISE_SEED),
            closing(in_batches(self.engine, self.images, rows, size, numbers)) as batches,
        ):
            for x, y in batches:
                answers = answer(x, y)
                parts.append({name: _plain(value) for name, value in answers.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def pixels(self, rows: np.ndarray) -> Tensor:
        """Return images (N, C, H, W) in [0, 1] on the CPU."""
        return self.images.pixels(rows).float() / 255


def _plain(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def open_run(
    path: str | Path,
    *,
    target: str | None = None,
    seed: int | None = None,
    checkpoint_name: str | None = None,
    plugin: Sequence[str | Path] = (),
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    report: Callable[[str], None] = print,
) -> OpenedRun:
    """Open a run, finished or not.

    Args:
        path: `results/train_output/<dataset>/<name>`, or an exported `model.safetensors`.
        target, seed: which of its models, where it has several.
        checkpoint_name: "best", "last", "oracle" or "init"; by default the first of these that is there.
        plugin: files that register its algorithm or data set, where they are not built in.
        data_dir: where its images are now; by default where they were.
        cache_dir: of decoded images; by default the run's.
        device, precision: of the engine; by default the machine's and the run's.
        report: takes each line worth saying.

    Raises:
        UserError: there is no such run or model, it is of another version or broken, or its images are not there or
            have changed.
    """
    path = user_path(path)
    if path.suffix == ".safetensors" and checkpoint_name not in (None, "best"):
        raise UserError(f"{path} was exported from `best`. Give the run's folder for {checkpoint_name!r}")
    algorithm, config, meta = checkpoint.load_with_meta(path, target, seed, checkpoint_name, plugin)
    if data_dir is not None:
        config = config | {"data_dir": str(data_dir)}
    images = images_of(config, cache_dir, algorithm, report)
    if "folder" in meta and (path / "images.csv").is_file():
        check_same_images(path / "images.csv", images.csv())
    elif list(images.input_shape) != meta["input_shape"]:
        raise UserError(f"the model of {path} takes images of {meta['input_shape']}, not of {list(images.input_shape)}")
    check_same_classes(path, meta["classes"], images)
    engine = Engine(device, precision or config["precision"])
    engine.prepare(algorithm)
    if "folder" in meta and not (Path(meta["folder"]).parents[1] / "done").exists():
        report(f"NOTE: the training of target {meta['target']} is not finished; this is step {meta['step']}")
    name = Path(meta["folder"]).name.strip(".").removesuffix(".old") if "folder" in meta else "best"
    return OpenedRun(path, config, meta, algorithm, engine, images, name)


def dataset_of(config: dict[str, Any]) -> Dataset:
    """Return the data set of a run, from its configuration.

    Raises:
        UserError: its images are not where they were, or the data set is unknown or of another version.
    """
    cls, hparams = dataset_settings(config["dataset"], config["datasets"][config["dataset"]])
    refuse_vectors(cls, "what looks at a run looks at its images")
    folder = config["data_dir"]
    folder = user_path(folder).resolve() if folder is not None else None
    if folder is not None and not folder.exists():
        raise UserError(f"the images of this run are not in {folder} any more. Say where they are with --data_dir")
    return cls(folder, hparams)


def images_of(
    config: dict[str, Any], cache_dir: str | Path | None, algorithm: Any, report: Callable[[str], None]
) -> Images:
    """Return the images of a run, in its splits, from its configuration.

    Args:
        config: of the run. cache_dir, report: of `open_run`. algorithm: of the run, an instance or its class.

    Raises:
        UserError: they are not where they were, can't be read, or the data set is unknown or of another version.
    """
    return prepare(
        dataset_of(config),
        trial_seed=config["trial_seed"],
        holdout_fraction=config["holdout_fraction"],
        subset_size=config["subset_size"],
        cache_dir=user_path(cache_dir or config.get("cache_dir") or default_cache_dir()),
        num_workers=config.get("num_workers") or default_num_workers(),
        skip_unreadable=config["skip_unreadable"],
        strict=False,
        report=report,
        with_masks=algorithm.needs_masks,
        with_labels=handles_labels(algorithm),
    )
