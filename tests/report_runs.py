"""What a report shows of a run that nobody trained: a model in memory with images of hostile names, and pictures."""

from collections.abc import Iterable
from pathlib import Path

import in_memory
import numpy as np
from PIL import Image

from domainbed import testing
from domainbed.analysis.opened import OpenedRun
from domainbed.registry import ALGORITHMS

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
CLASSES = ["healthy", "<b>ill</b>"]


def opened(count: int = 40, side: int = 16) -> OpenedRun:
    """Return a small AE with images of two environments, the second left out."""
    generator = np.random.default_rng(0)
    environment = np.arange(count) % 2
    labels = np.arange(count) // 2 % 2
    pixels = np.ones((count, side, side, 3)) * generator.integers(0, 256, (count, 1, 1, 3))
    images = in_memory.images_of(
        pixels.astype(np.uint8),
        environment,
        labels,
        environments=["home", "away"],
        classes=CLASSES,
        split=np.array(["val"] * count),
        names=np.array([f"{EVIL} {k}.png" for k in range(count)], dtype=object),
    )
    return in_memory.opened(testing.build(ALGORITHMS["AE"], (3, side, side), latent_dim=4), images)


def with_pictures(folder: Path, steps: Iterable[int] = (0, 10)) -> Path:
    """Draw what a run with target x and one seed, or seed 0 of several, would have left; return its folder."""
    place = folder / "seed_0" if (folder / "seed_0").is_dir() else folder
    for number, name in enumerate([*(f"recon_step_{step}" for step in steps), "recon_final"]):
        (place / name / "te_x").mkdir(parents=True)
        for picture in ("home_train", "home_val", "x_train", "x_val", "samples"):
            colour = (min(255, 6 * number), 80, 40 * len(picture) % 255)
            Image.new("RGB", (900, 300), colour).save(place / name / "te_x" / f"{picture}.png")
    return folder
