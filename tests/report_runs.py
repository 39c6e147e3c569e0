"""What a report shows of a run that nobody trained: a model in memory with images of hostile names, and pictures."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from domainbed import testing
from domainbed.analysis.opened import OpenedRun
from domainbed.datasets.prepare import Images
from domainbed.engine import Engine
from domainbed.registry import ALGORITHMS

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
CLASSES = ["healthy", "<b>ill</b>"]


def opened(count: int = 40, side: int = 16) -> OpenedRun:
    """Return a small AE with images of two environments, the second left out."""
    generator = np.random.default_rng(0)
    environment = np.arange(count) % 2
    labels = (np.arange(count) // 2 % 2).astype(np.int64)
    pixels = np.ones((count, side, side, 3)) * generator.integers(0, 256, (count, 1, 1, 3))
    images = Images(
        environments=["home", "away"], classes=CLASSES, ordinal=False, rows=pixels.astype(np.uint8),
        environment=environment.astype(np.int64), labels=labels, split=np.array(["val"] * count),
        groups=np.arange(count).astype(str), names=np.array([f"{EVIL} {k}.png" for k in range(count)], dtype=object),
        unreadable=[], leaks=[], contents=[str(k) for k in range(count)], mask_classes=None, masks=None,
        mask_contents=[""] * count,
    )  # fmt: skip
    algorithm = testing.build(ALGORITHMS["AE"], (3, side, side), latent_dim=4)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    config = {"algorithm": "AE", "dataset": "DR", "eval_batch_size": 16, "precision": "float32"}
    meta = {"target": "away", "seed": 0, "sources": ["home"], "step": 3, "classes": CLASSES}
    return OpenedRun(Path("run"), config, meta, algorithm, engine, images, "best")


def with_pictures(folder: Path, steps: Iterable[int] = (0, 10)) -> Path:
    """Draw what a run with target x and one seed, or seed 0 of several, would have left; return its folder."""
    place = folder / "seed_0" if (folder / "seed_0").is_dir() else folder
    for number, name in enumerate([*(f"recon_step_{step}" for step in steps), "recon_final"]):
        (place / name / "te_x").mkdir(parents=True)
        for picture in ("home_train", "home_val", "x_train", "x_val", "samples"):
            colour = (min(255, 6 * number), 80, 40 * len(picture) % 255)
            Image.new("RGB", (900, 300), colour).save(place / name / "te_x" / f"{picture}.png")
    return folder
