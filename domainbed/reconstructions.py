"""Pictures of what an algorithm makes of some fixed images: inputs above outputs, their difference below.

For an algorithm that learns masks: images, above the true masks and the predicted ones, each coloured on its image.
For one that draws from its prior: samples, always from the same noise.
Which images are shown depends on the data alone, so that the pictures of two steps, or of two runs, can be compared.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from domainbed import metrics
from domainbed.algorithms.base import (
    Algorithm,
    Encoder,
    Posterior,
    Reconstructor,
    Sampler,
    Segmenter,
    reconstruct_with,
)
from domainbed.datasets.prepare import Images
from domainbed.engine import Engine
from domainbed.errors import explain_os_errors
from domainbed.evaluator import computed_once
from domainbed.names import printable
from domainbed.paths import folder_name

NUM_IMAGES = 8
SAMPLE_ROWS = 2
#: Differences are small beside the images; they are shown this many times as large.
DIFFERENCE_GAIN = 3
MIN_TILE_PX = 96
#: Of the PNG files. Level 6, Pillow's default, takes 2.7 times as long for photographs that are 5 % smaller.
COMPRESS_LEVEL = 1
SHOWN_SPLITS = ("train", "val")
#: Of the classes of a mask but for the background, in order: the colours of Okabe & Ito 2008, for the colour-blind too.
COLOURS = (
    (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (0, 114, 178), (213, 94, 0), (230, 159, 0),
)  # fmt: skip
IGNORED_COLOUR = (128, 128, 128)
NOT_FINITE_COLOUR = (1.0, 0.0, 1.0)
#: Share of the colour in a coloured pixel; the rest is the image.
OPACITY = 0.6


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


@dataclass
class Answer:
    """What an algorithm makes of the images of one picture; tensors are on the CPU.

    Attributes:
        environment: index of theirs. split: "train" or "val". rows: (N,) of the run's images.
        x: (N, C, H, W) float32 in [0, 1]. y: labels (N,), or masks as in `objectives.segmentation`.
        output: reconstructions (N, C, H, W) or logits of masks (N, K, H, W), float32; None of an algorithm without.
        codes: (N, ...) float32 by kind: mean and sigma of a posterior, or the code of an encoder; empty without either.
    """

    environment: int
    split: str
    rows: np.ndarray
    x: Tensor
    y: Tensor
    output: Tensor | None
    codes: dict[str, Tensor]


def answers(algorithm: Algorithm, engine: Engine, images: Images, batch_size: int) -> Iterator[Answer]:
    """Yield an algorithm's answers to the fixed images, for every split of every environment that has some.

    The images of as many pictures as `batch_size` holds are one batch, which is encoded once for all that is asked. Of
    an algorithm that gives codes alone it is the held-out split, of one that gives nothing there is none.
    """
    draws = segments(algorithm, images) or isinstance(algorithm, Reconstructor)
    encodes = isinstance(algorithm, (Posterior, Encoder))
    if not draws and not encodes:
        return
    splits = SHOWN_SPLITS if draws else ("val",)
    places = [
        (environment, split, rows)
        for environment in range(len(images.environments))
        for split in splits
        if len(rows := fixed_rows(images, environment, split))
    ]
    together = max(1, batch_size // NUM_IMAGES)
    for first in range(0, len(places), together):
        some = places[first : first + together]
        rows, sizes = np.concatenate([rows for *_, rows in some]), [len(rows) for *_, rows in some]
        x, y = engine.to_device(images.pixels(rows)), images.targets(rows, images.planes(rows))
        output = None
        with engine.evaluation(algorithm, seed=0), computed_once(algorithm):
            # copies, because what draws may work in place
            codes = {kind: values.clone() for kind, values in _codes(algorithm, x).items()}
            if segments(algorithm, images):
                output = algorithm.segment(x)
            elif isinstance(algorithm, Reconstructor):
                output = reconstruct_with(algorithm, x, y.to(x.device, non_blocking=True))
        xs, ys = _parts(x, sizes), y.split(sizes)
        outputs = [None] * len(some) if output is None else _parts(output, sizes)
        codes_of = {kind: _parts(values, sizes) for kind, values in codes.items()}
        for number, place in enumerate(some):
            of_place = {kind: values[number] for kind, values in codes_of.items()}
            yield Answer(*place, xs[number], ys[number], outputs[number], of_place)


def _parts(values: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Return the rows of each picture, as float32 on the CPU."""
    return values.float().cpu().split(sizes)


def segments(algorithm: Algorithm, images: Images) -> TypeGuard[Segmenter]:
    """Whether masks are what an algorithm answers in a run."""
    return isinstance(algorithm, Segmenter) and images.mask_classes is not None


def _codes(algorithm: Algorithm, x: Tensor) -> dict[str, Tensor]:
    """Return the codes (B, ...) of images (B, C, H, W), as in `Answer`."""
    if isinstance(algorithm, Posterior):
        mean, logvar = algorithm.posterior(x)
        return {"mean": mean, "sigma": (0.5 * logvar.float()).exp()}
    return {"code": algorithm.encode(x)} if isinstance(algorithm, Encoder) else {}


@dataclass
class Shown:
    """What is to be looked at.

    Attributes:
        files: the pictures, by their names: "<environment>_<split>" and "samples".
        codes: of held-out images, by "<environment>_<kind>", as in `Answer`.
    """

    files: dict[str, Path] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)


def dump(
    algorithm: Algorithm,
    engine: Engine,
    images: Images,
    target: list[int],
    folder: Path,
    title: str,
    batch_size: int,
) -> Shown:
    """Write `<environment>_train.png` and `_val.png` of every environment, and `samples.png`; return these, and codes.

    An algorithm that can neither reconstruct nor segment leaves none of the former, and one that can't sample none of
    the latter.

    Args:
        algorithm: the unwrapped algorithm.
        engine: that runs it.
        images: of the run.
        target: environments that were left out, which the pictures say.
        folder: `recon_step_<N>/te_<target>`.
        title: stands in the picture's first line.
        batch_size: images that the algorithm is given at once, as far as whole pictures allow.
    """
    shown = Shown()

    def write(name: str, file: str, picture: Image.Image) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shown.files[name] = folder / f"{file}.png"
        picture.save(shown.files[name], compress_level=COMPRESS_LEVEL)

    with explain_os_errors(f"writing {folder}"):
        for answer in answers(algorithm, engine, images, batch_size):
            name, split = images.environments[answer.environment], answer.split
            if split == "val":
                shown.codes |= {f"{name}_{kind}": values for kind, values in answer.codes.items()}
            if answer.output is None:
                continue
            trained_on = "trained on" if split == "train" else "held out"
            role = "left out of training" if answer.environment in target else trained_on
            heading = f"{title} · {name}, {split} ({role})"
            if segments(algorithm, images):
                picture = mask_panel(answer.x, answer.output, answer.y, images.target_classes, heading)
            else:
                labels = [images.class_name(row) for row in answer.rows]
                picture = panel(answer.x, answer.output, labels, heading)
            write(f"{name}_{split}", f"{folder_name(name)}_{split}", picture)
        if isinstance(algorithm, Sampler):
            with engine.evaluation(algorithm, seed=0):
                samples = algorithm.sample(SAMPLE_ROWS * NUM_IMAGES).float().cpu()
            rows_of_samples = {f"samples {i + 1}": one for i, one in enumerate(samples.split(NUM_IMAGES))}
            write("samples", "samples", sheet(rows_of_samples, [""] * NUM_IMAGES, f"{title} · drawn from the prior"))
    return shown


def panel(x: Tensor, output: Tensor, labels: list[str], title: str) -> Image.Image:
    """Draw inputs, outputs and their absolute difference under each other.

    Args:
        x, output: (N, C, H, W) in [0, 1], C being 1 or 3.
        labels: N captions.
        title: the first line.
    """
    rows = {
        "input": x,
        "output": output,
        f"|difference| x{DIFFERENCE_GAIN}": ((output - x).abs() * DIFFERENCE_GAIN).clamp(0, 1),
    }
    return sheet(rows, labels, title)


def mask_panel(x: Tensor, logits: Tensor, target: Tensor, names: list[str], title: str) -> Image.Image:
    """Draw images, their masks and the predicted ones under each other, each image with its Dice above it.

    Args:
        x: (N, C, H, W) in [0, 1], C being 1 or 3.
        logits: (N, K, H, W).
        target: masks as in `objectives.segmentation`; what nobody labelled is grey.
        names: of K classes.
        title: the first line.
    """
    figures = [
        metrics.segmentation(metrics.count_pixels(*pair))["dice_image"]
        for pair in zip(logits.split(1), target.split(1), strict=True)
    ]
    labels = ["nothing marked" if dice is None else f"Dice {dice:.3f}" for dice in figures]
    exclusive = target.ndim == 3
    if exclusive:
        true, found = (F.one_hot(index.clamp(min=0), len(names)).movedim(-1, 1) for index in (target, logits.argmax(1)))
        true, found = true[:, 1:], found[:, 1:]  # the background has no colour
        ignored = target < 0
    else:
        true, found, ignored = target == 1, logits > 0, target.isnan().any(1)
    rows = {"image": x, "true mask": coloured(x, true, ignored), "predicted mask": coloured(x, found)}
    shown = names[1:] if exclusive else names
    return sheet(rows, labels, title, {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(shown)})


def coloured(x: Tensor, kinds: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Return images (N, 3, H, W) in [0, 1], the pixels of each kind in its colour, the last one where they overlap.

    Args:
        x: (N, C, H, W) in [0, 1], C being 1 or 3.
        kinds: (N, K, H, W), not 0 where a pixel is of a kind.
        ignored: (N, H, W) bool, where nobody labelled.
    """
    picture = x.expand(-1, 3, -1, -1).clone()
    layers = [(kinds[:, k].bool(), COLOURS[k % len(COLOURS)]) for k in range(kinds.shape[1])]
    if ignored is not None:
        layers.append((ignored, IGNORED_COLOUR))
    for where, colour in layers:
        paint = torch.tensor(colour, dtype=x.dtype)[None, :, None, None] / 255
        picture = torch.where(where[:, None], OPACITY * paint + (1 - OPACITY) * x, picture)
    return picture


def sheet(
    rows: Mapping[str, Tensor], labels: list[str], title: str, legend: Mapping[str, tuple[int, int, int]] | None = None
) -> Image.Image:
    """Draw rows of N images under each other.

    Args:
        rows: name to (N, C, H, W) in [0, 1], C being 1 or 3.
        labels: N captions.
        title: the first line.
        legend: what the colours mean; it stands beside the second row.
    """
    rows = {printable(name): tiles for name, tiles in rows.items()}
    legend = {printable(name): colour for name, colour in (legend or {}).items()}
    x = next(iter(rows.values()))
    side = max(x.shape[-2:])
    scale = max(1, -(-MIN_TILE_PX // side))
    height, width = x.shape[-2] * scale, x.shape[-1] * scale
    font = ImageFont.load_default(13)
    gap, header = 4, 44
    texts = [*rows, *(f"    {text}" for text in legend)]
    margin = max(118, *(math.ceil(font.getlength(text)) + 12 for text in texts))
    canvas = Image.new("RGB", (margin + len(x) * (width + gap), header + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, gap), printable(title), fill="black", font=font)
    for row, (text, colour) in enumerate(legend.items()):
        top = header + height + gap + 18 + 16 * row  # below the name of the second row
        draw.rectangle((gap, top + 3, gap + 9, top + 12), fill=colour)
        draw.text((gap + 14, top), text, fill="black", font=font)
    for column, label in enumerate(labels):
        draw.text((margin + column * (width + gap), 24), printable(label)[: width // 7], fill="black", font=font)
    for row, (name, tiles) in enumerate(rows.items()):
        top = header + row * (height + gap)
        draw.text((gap, top if legend else top + height // 2 - 8), name, fill="black", font=font)
        for column, tile in enumerate(tiles):
            canvas.paste(to_image(tile, (width, height)), (margin + column * (width + gap), top))
    return canvas


def to_image(tile: Tensor, size: tuple[int, int]) -> Image.Image:
    """Return a (C, H, W) tensor in [0, 1] as an RGB picture of `size`, enlarged without smoothing.

    A pixel that is not finite is magenta, which no retina is.
    """
    pixels = tile.expand(3, -1, -1).permute(1, 2, 0)  # (H, W, 3)
    pixels = torch.where(pixels.isfinite().all(-1, keepdim=True), pixels, torch.tensor(NOT_FINITE_COLOUR))
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(np.ascontiguousarray(values)).resize(size, Image.Resampling.NEAREST)
