"""A run opened in memory, for tests of what looks at runs: an algorithm and a few images, without a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainbed.analysis.opened import OpenedRun
from domainbed.datasets.masks import MaskClasses
from domainbed.datasets.prepare import Images
from domainbed.engine import Engine


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
    return Images(
        environments=[f"camera{one}" for one in range(num_environments)],
        classes=classes,
        ordinal=bool(classes),
        rows=pixels,
        environment=np.arange(count) % num_environments,
        labels=labels.astype(np.int64),
        split=np.where(number < 0.75 * count / num_environments, "train", "val"),
        groups=np.array([f"patient{one}" for one in range(count)], dtype=object),
        names=np.array([f"image{one}.png" for one in range(count)], dtype=object),
        unreadable=[],
        leaks=[],
        contents=[str(one) for one in range(count)],
        mask_classes=None if masks is None else MaskClasses(("background", "disc"), True),
        masks=masks,
        mask_contents=[],
    )


def opened(algorithm: Any, of: Images, sources: tuple[int, ...] = (0,), **config: Any) -> OpenedRun:
    """Return a run of an algorithm on images, the environments but for `sources` being its target."""
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
        "algorithm": name, "dataset": "made", "eval_batch_size": 7, "steps": 10, "datasets": {"made": {}},
        "algorithms": {name: algorithm.hparams.model_dump(mode="json")},
    }  # fmt: skip
    return OpenedRun(Path("made.safetensors"), settings | config, meta, algorithm, engine, of, "best")
