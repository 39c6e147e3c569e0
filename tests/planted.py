"""A run in memory, opened to be looked at: images whose class and environment are known, and any algorithm."""

from pathlib import Path
from typing import Any

import numpy as np

from domainbed.algorithms.base import Algorithm
from domainbed.analysis.opened import OpenedRun
from domainbed.datasets.prepare import Images
from domainbed.engine import Engine

CLASSES, ENVIRONMENTS = ["dark", "middle", "bright"], ["first", "second"]


def opened(algorithm: Algorithm, per_cell: int = 12, side: int = 32, **config: Any) -> OpenedRun:
    """Return a run of an algorithm, the second environment left out, with two images of each patient.

    The class is the brightness, the environment the colour; every cell of the two has `per_cell` images.
    """
    generator = np.random.default_rng(0)
    cells = [(environment, label) for environment in (0, 1) for label in (0, 1, 2) for _ in range(per_cell)]
    environment, labels = np.array(cells, dtype=np.int64).T
    pixels = generator.integers(0, 30, (len(cells), side, side, 3)) + 60 * labels[:, None, None, None]
    pixels[..., 0] += 60 * environment[:, None, None]
    numbers = np.arange(len(cells))
    images = Images(
        environments=ENVIRONMENTS, classes=CLASSES, ordinal=True, rows=pixels.astype(np.uint8),
        environment=environment, labels=labels, split=np.where(numbers % 4 < 2, "train", "val"),
        groups=np.array([f"patient {number // 2}" for number in numbers], dtype=object),
        names=np.array([f"image {number}" for number in numbers], dtype=object), unreadable=[], leaks=[],
        contents=[str(number) for number in numbers], mask_classes=None, masks=None, mask_contents=[],
    )  # fmt: skip
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    algorithm.eval()
    meta = {"target": "second", "sources": ["first"], "step": 0}
    settings = {"algorithm": algorithm.name, "dataset": "DR", "eval_batch_size": 16, **config}
    return OpenedRun(Path("planted"), settings, meta, algorithm, engine, images, "best")
