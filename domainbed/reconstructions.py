"""Pictures of what an algorithm makes of some fixed images: inputs above outputs, their difference below.

Which images are shown depends on the data alone, so that the pictures of two steps, or of two runs, can be compared.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from domainbed.algorithms.base import Algorithm, Reconstructor
from domainbed.datasets.prepare import Images
from domainbed.engine import Engine
from domainbed.errors import explain_os_errors

NUM_IMAGES = 8
#: Differences are small beside the images; they are shown this many times as large.
DIFFERENCE_GAIN = 3
MIN_TILE_PX = 96
SPLITS = ("train", "val")


def fixed_rows(images: Images, environment: int, split: str) -> np.ndarray:
    """Return up to `NUM_IMAGES` rows of one split, every class in turn, in the order of the classes."""
    rows = images.select(environment, split)
    labels = images.labels[rows]
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    turn = np.empty(len(rows), dtype=int)
    turn[order] = np.arange(len(rows)) - starts  # which of its class each image is
    chosen = np.lexsort((labels, turn))[:NUM_IMAGES]
    return rows[chosen[np.lexsort((turn[chosen], labels[chosen]))]]


def dump(
    algorithm: Algorithm, engine: Engine, images: Images, target: list[int], folder: Path, title: str
) -> dict[str, np.ndarray]:
    """Write `<environment>_<split>.png` for every environment and return the pictures by that name.

    An algorithm that can't reconstruct leaves nothing.

    Args:
        algorithm: the unwrapped algorithm.
        engine: that runs it.
        images: of the run.
        target: environments that were left out, which the pictures say.
        folder: `recon_step_<N>/te_<target>`.
        title: stands in the picture's first line.

    Returns:
        uint8 (H, W, 3) pictures.
    """
    if not isinstance(algorithm, Reconstructor):
        return {}
    pictures = {}
    with explain_os_errors(f"writing {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for environment, name in enumerate(images.environments):
            for split in SPLITS:
                rows = fixed_rows(images, environment, split)
                if not len(rows):
                    continue
                x = engine.to_device(images.pixels(rows))
                with engine.evaluation(algorithm, seed=0):
                    output = algorithm.reconstruct(x)
                labels = [images.classes[images.labels[row]] if images.classes else "" for row in rows]
                role = (
                    "left out of training"
                    if environment in target
                    else "trained on"
                    if split == "train"
                    else "held out"
                )
                heading = f"{title} · {name}, {split} ({role})"
                picture = panel(x.cpu(), output.float().cpu(), labels, heading)
                picture.save(folder / f"{name}_{split}.png")
                pictures[f"{name}_{split}"] = np.asarray(picture)
    return pictures


def panel(x: Tensor, output: Tensor, labels: list[str], title: str) -> Image.Image:
    """Draw inputs, outputs and their absolute difference under each other.

    Args:
        x, output: (N, C, H, W) in [0, 1], C being 1 or 3.
        labels: N captions.
        title: the first line.
    """
    side = max(x.shape[-2:])
    scale = max(1, -(-MIN_TILE_PX // side))
    height, width = x.shape[-2] * scale, x.shape[-1] * scale
    rows = {
        "input": x,
        "output": output,
        f"|difference| x{DIFFERENCE_GAIN}": ((output - x).abs() * DIFFERENCE_GAIN).clamp(0, 1),
    }
    font = ImageFont.load_default(13)
    gap, margin, header = 4, 118, 44
    canvas = Image.new("RGB", (margin + len(x) * (width + gap), header + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, gap), title, fill="black", font=font)
    for column, label in enumerate(labels):
        draw.text((margin + column * (width + gap), 24), label[: width // 7], fill="black", font=font)
    for row, (name, tiles) in enumerate(rows.items()):
        top = header + row * (height + gap)
        draw.text((gap, top + height // 2 - 8), name, fill="black", font=font)
        for column, tile in enumerate(tiles):
            canvas.paste(to_image(tile, (width, height)), (margin + column * (width + gap), top))
    return canvas


def to_image(tile: Tensor, size: tuple[int, int]) -> Image.Image:
    """Return a (C, H, W) tensor in [0, 1] as an RGB picture of `size`, enlarged without smoothing."""
    values = (tile.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values)).resize(size, Image.Resampling.NEAREST)
