"""A run opened in memory, for tests of what looks at runs: an algorithm and a few images, without a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainbed.analysis.opened import OpenedRun
from domainbed.datasets.masks import MaskClasses
from domainbed.datasets.prepare import Images
from domainbed.engine import Engine


def images_of(pixels: np.ndarray, environment: np.ndarray, labels: np.ndarray, **known: Any) -> Images:
    """Return images, each of a patient of its own unless `groups` are known.

    Args:
        pixels: (N, H, W, C) uint8. environment, labels: (N,). known: of `Images`, at least environments,
            classes and split.
    """
    numbers = np.arange(len(pixels))
    made: dict[str, Any] = {
        "ordinal": False, "groups": np.array([f"patient{one}" for one in numbers], dtype=object),
        "names": np.array([f"image{one}.png" for one in numbers], dtype=object), "unreadable": [], "leaks": [],
        "contents": [str(one) for one in numbers], "mask_classes": None, "masks": None, "mask_contents": [],
    }  # fmt: skip
    return Images(
        rows=pixels, environment=environment.astype(np.int64), labels=labels.astype(np.int64), **(made | known)
    )


def images(
    pixels: np.ndarray, labels: np.ndarray, num_environments: int = 2, masks: np.ndarray | None = None
) -> Images:
    """Return images, dealt out to environments in turn; the last quarter of each environment is held out.

    Args:
        pixels: (N, H, W, C) uint8. labels: (N,), all -1 for images without. masks: (N, H, W) uint8 class indices of
            background and disc.
    """
    count = len(pixels)
    number = np.arange(count) // num_environments
    classes = [f"grade{k}" for k in range(labels.max() + 1)]
    return images_of(
        pixels,
        np.arange(count) % num_environments,
        labels,
        environments=[f"camera{one}" for one in range(num_environments)],
        classes=classes,
        ordinal=bool(classes),
        split=np.where(number < 0.75 * count / num_environments, "train", "val"),
        mask_classes=None if masks is None else MaskClasses(("background", "disc"), True),
        masks=masks,
    )


def graded(per_cell: int = 12, side: int = 32) -> Images:
    """Return images whose grade is the brightness and whose environment is the colour, two of each patient.

    Args:
        per_cell: images of each of three grades in each of two environments. side: in px.
    """
    generator = np.random.default_rng(0)
    cells = [(environment, label) for environment in (0, 1) for label in (0, 1, 2) for _ in range(per_cell)]
    environment, labels = np.array(cells, dtype=np.int64).T
    pixels = generator.integers(0, 30, (len(cells), side, side, 3)) + 60 * labels[:, None, None, None]
    pixels[..., 0] += 60 * environment[:, None, None]
    numbers = np.arange(len(cells))
    return images_of(
        pixels.astype(np.uint8),
        environment,
        labels,
        environments=["first", "second"],
        classes=["dark", "middle", "bright"],
        ordinal=True,
        split=np.where(numbers % 4 < 2, "train", "val"),
        groups=np.array([f"patient {number // 2}" for number in numbers], dtype=object),
    )


def opened(algorithm: Any, of: Images | None = None, sources: tuple[int, ...] = (0,), **config: Any) -> OpenedRun:
    """Return a run of an algorithm on images (`graded` ones), the environments but for `sources` being its target."""
    of = graded() if of is None else of
    torch.manual_seed(0)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm.eval())
    name = type(algorithm).name or type(algorithm).__name__
    targets = [one for index, one in enumerate(of.environments) if index not in sources]
    meta = {
        "target": "+".join(targets) or "none", "sources": [of.environments[index] for index in sources], "seed": 0,
        "step": int(algorithm.step), "input_shape": list(of.input_shape), "classes": of.target_classes,
    }  # fmt: skip
    settings = {
        "algorithm": name, "dataset": "DR", "eval_batch_size": 7, "steps": 10, "datasets": {"DR": {}},
        "algorithms": {name: algorithm.hparams.model_dump(mode="json")},
    }  # fmt: skip
    return OpenedRun(Path("made.safetensors"), settings | config, meta, algorithm, engine, of, "best")
