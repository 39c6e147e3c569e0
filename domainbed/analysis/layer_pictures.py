"""The pictures of `layers`: curves of the loss, bars by layer, reconstructions before and after, channel maps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from domainbed import metrics
from domainbed.algorithms.base import Reconstructor, Segmenter, reconstruct_with
from domainbed.analysis import plots
from domainbed.analysis.extras import require
from domainbed.analysis.network import HARDLY_MOVED, Layer, by_block, change_of, outputs
from domainbed.analysis.opened import OpenedRun
from domainbed.reconstructions import mask_panel, sheet

#: Rows of a sheet of channel maps; of deeper networks only some layers are drawn.
MAX_MAPS = 24
TILE_PX = 96
Pictures = list[dict[str, str]]


def plot_losses(run: OpenedRun, folder: Path, losses: Mapping[str, Any]) -> Pictures:
    """Draw each term of the loss along the training, of training batches and of held-out images."""
    if not losses:
        return []
    figure, axes = plots.new_figure(4.2 * len(losses), 3.2, 1, len(losses))
    for (term, one), axis in zip(losses.items(), np.atleast_1d(axes).ravel(), strict=True):
        axis.plot(one["steps"], one["values"], color="#999999", linewidth=1, label="training batches")
        for index, (name, points) in enumerate(one["held_out"].items()):
            steps, values = zip(*points, strict=True)
            axis.plot(
                steps, values, color=plots.colour(index), marker=plots.marker(index), markersize=4,
                label=f"held out: {name}",
            )  # fmt: skip
        axis.set(title=term, xlabel="step")
        axis.axvline(run.meta["step"], color="#bbbbbb", linestyle=":", linewidth=1)
    np.atleast_1d(axes).ravel()[0].legend(fontsize=7)
    plots.save(figure, folder / "loss.png")
    parts = []
    for term, one in losses.items():
        moved = one["movement"]
        share = "" if moved["decrease"] is None else f" ({-moved['decrease']:+.1%})"
        verdict = {None: "too few records to judge", True: "more than its noise", False: "within its noise"}
        at_end = "" if moved["end"] is None else f", {moved['end']} at the end"
        parts.append(
            f"{term} goes from {moved['first']:.4g} to {moved['last']:.4g}{share}, {verdict[moved['moves']]}{at_end}"
        )
    return [
        {
            "file": "loss.png",
            "title": "Does the loss move?",
            "caption": f"{'; '.join(parts)}. The dotted line is the step of these weights.",
        }
    ]


def plot_changes(run: OpenedRun, folder: Path, layers: Sequence[Layer]) -> Pictures:
    """Draw how far training moved the weights of each layer, or block of layers, in per cent of their first norm."""
    trained = [layer for layer in layers if layer.trainable and layer.change is not None]
    if not trained:
        return []
    blocks = by_block(trained)
    values = [100 * (change_of(members) or 0.0) for _, members in blocks]
    figure, axis = plots.new_figure(6.5, 1.1 + 0.19 * len(blocks))
    colours = [plots.COLOURS[any(one.hardly_moved for one in members)] for _, members in blocks]
    axis.barh(range(len(blocks)), values, color=colours, height=0.75)
    axis.set_yticks(range(len(blocks)), [name for name, _ in blocks], fontsize=7)
    axis.set(xlabel="change of the weights, % of their norm before training", title=run.title)
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    plots.save(figure, folder / "change.png")
    least = min(trained, key=lambda layer: layer.change or 0.0)
    most = max(trained, key=lambda layer: layer.change or 0.0)
    still = sum(layer.hardly_moved for layer in trained)
    return [
        {
            "file": "change.png",
            "title": "Do the weights change?",
            "caption": f"|after - before| / |before| of the weights, by {_what(blocks, trained)}: from "
            f"{least.change:.2%} ({least.name}) to {most.change:.1%} ({most.name}). {still} of {len(trained)} "
            f"layers hardly moved{' (orange)' if still else ''}: a weight matrix by less than {HARDLY_MOVED:.0%}, or "
            "the scales of a norm not at all.",
        }
    ]


def plot_units(run: OpenedRun, folder: Path, layers: Sequence[Layer], num_images: int) -> Pictures:
    """Draw the share of dead and of constant units of each layer that has any."""
    measured = [layer for layer in layers if layer.constant is not None]
    shown = [layer for layer in measured if layer.constant or layer.dead]
    if not shown:
        return []
    blocks = by_block(shown)
    worst = [
        (max(one.dead or 0.0 for one in members), max(one.constant or 0.0 for one in members)) for _, members in blocks
    ]
    figure, axis = plots.new_figure(6.5, 1.3 + 0.19 * len(blocks))
    places = np.arange(len(blocks))
    axis.barh(places - 0.2, [100 * dead for dead, _ in worst], height=0.38, color=plots.COLOURS[1], label="never > 0")
    axis.barh(
        places + 0.2, [100 * constant for _, constant in worst], height=0.38, color=plots.COLOURS[5],
        label="the same for every image",
    )  # fmt: skip
    axis.set_yticks(places, [name for name, _ in blocks], fontsize=7)
    axis.set(xlabel="% of the layer's units", title=run.title, xlim=(0, 100))
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(fontsize=7, loc="lower right", frameon=True, framealpha=0.9)
    plots.save(figure, folder / "units.png")
    rectifiers = [layer for layer in shown if layer.dead is not None]
    dead = max(rectifiers, key=lambda layer: layer.dead or 0.0, default=None)
    constant = max(shown, key=lambda layer: layer.constant or 0.0)
    about_dead = f"at most {dead.dead:.1%} never answer ({dead.name}); " if dead else ""
    return [
        {
            "file": "units.png",
            "title": "Units that say nothing",
            "caption": f"Share of the units of each {_what(blocks, shown, 'layer (of a block the worst)')} over "
            f"{num_images} images: {about_dead}at most {constant.constant:.1%} are the same for every image "
            f"({constant.name}). The other {len(measured) - len(shown)} of {len(measured)} layers have none of either.",
        }
    ]


def _what(blocks: Sequence[Any], layers: Sequence[Layer], otherwise: str = "block of layers") -> str:
    return "layer" if len(blocks) == len(layers) else otherwise


def draw_before_and_after(run: OpenedRun, before: OpenedRun | None, folder: Path, rows: np.ndarray) -> Pictures:
    """Draw what the model makes of the same images with the weights before and after."""
    x, path = run.pixels(rows), folder / "before_and_after.png"
    segments = isinstance(run.algorithm, Segmenter) and run.images.masks is not None
    if before is None or not (segments or isinstance(run.algorithm, Reconstructor)):
        return []
    names = [run.images.environments[run.images.environment[row]] for row in rows]
    if segments:
        logits = [_segmented(one, rows) for one in (before, run)]
        target = run.images.targets(rows, run.images.planes(rows))
        for when, answer in zip(("before", "after"), logits, strict=True):
            title = f"{run.title} · {when} training"
            picture = mask_panel(x, answer, target, run.images.target_classes, title)
            plots.save_image(picture, folder / f"masks_{when}.png")
        dice = [metrics.segmentation(metrics.count_pixels(one, target))["dice_dataset"] or 0.0 for one in logits]
        return [
            {
                "file": f"masks_{when}.png",
                "title": f"Masks {when} training",
                "caption": f"The same {len(rows)} images, their true masks and the answers {when} training: Dice over "
                f"all their pixels {value:.3f}.",
            }
            for when, value in zip(("before", "after"), dice, strict=True)
        ]
    made = [_reconstructed(one, rows) for one in (before, run)]
    tiles = {"input": x, "before training": made[0], "after": made[1]}
    plots.save_image(sheet(tiles, names, f"{run.title} · before and after training"), path)
    psnr = [metrics.reconstruction(one, x)["psnr"].mean().item() for one in made]
    return [
        {
            "file": path.name,
            "title": "Reconstructions before and after training",
            "caption": f"The same {len(rows)} images with the first weights and with these: PSNR {psnr[0]:.2f} dB "
            f"before, {psnr[1]:.2f} dB after.",
        }
    ]


def _reconstructed(run: OpenedRun, rows: np.ndarray) -> Tensor:
    return run.compute(rows, lambda x, y: {"made": reconstruct_with(run.algorithm, x, y)})["made"].clamp(0, 1)


def _segmented(run: OpenedRun, rows: np.ndarray) -> Tensor:
    algorithm: Any = run.algorithm
    return run.compute(rows, lambda x, y: {"logits": algorithm.segment(x)})["logits"]


def draw_maps(run: OpenedRun, folder: Path, layers: Sequence[Layer], rows: np.ndarray, max_channels: int) -> Pictures:
    """Draw the channel maps of each stage for some images, a picture each."""
    shown = stages(layers)
    if not shown or not len(rows):
        return []
    names = {layer.name for layer in shown}
    found = run.compute(rows, lambda x, y: outputs(run.algorithm, x, y, names))
    made = [_reconstructed(run, rows)] if isinstance(run.algorithm, Reconstructor) else []
    pictures = []
    for number, row in enumerate(rows):
        first = [run.pixels(np.array([row])), *(one[number : number + 1] for one in made)]
        resized = [_resized(tile.expand(-1, 3, -1, -1)) for tile in first]
        blank = torch.ones(max_channels - len(resized), 3, *resized[0].shape[-2:])
        tiles = {"input and output" if made else "input": torch.cat([*resized, blank])}
        for layer in shown:
            label = f"{layer.name}  {layer.kind.split()[0]}  {' x '.join(map(str, layer.shape))}"
            tiles[label] = channel_maps(found[layer.name][number], max_channels, resized[0].shape[-2:])
        image = str(run.images.names[row])
        name = f"activations_{number + 1}.png"
        plots.save_image(sheet(tiles, [""] * max_channels, f"{run.title} · {image}"), folder / name)
        pictures.append(
            {
                "file": name,
                "title": f"What the layers answer: {image}",
                "caption": f"The {max_channels} channels of each layer that vary most over the image, most first; "
                "dark is low and yellow is high, on one scale for the channels of a layer (0.5 to 99.5 % of their "
                "values). A vector is one square, its numbers row by row.",
            }
        )
    return pictures


def stages(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers whose maps are drawn.

    That is, of each layer with a weight matrix, what its norm, activation and pooling make of it; of networks with more
    than `MAX_MAPS` of them the last before each change of the resolution, or of a vector's length.
    """
    groups: list[list[Layer]] = []
    for layer in layers:
        if layer.is_answer and layer.shape:
            if layer.matrix or not groups:
                groups.append([])
            groups[-1].append(layer)
    found = [next((one for one in reversed(group) if len(one.shape) == 3), group[-1]) for group in groups]
    if len(found) <= MAX_MAPS:
        return found
    return [one for one, after in zip(found, [*found[1:], None], strict=True) if not _same_size(one, after)]


def _same_size(one: Layer, after: Layer | None) -> bool:
    if after is None or len(one.shape) != len(after.shape):
        return False
    return one.shape[1:] == after.shape[1:] if len(one.shape) == 3 else one.shape == after.shape


def channel_maps(output: Tensor, most: int, size: Sequence[int]) -> Tensor:
    """Return coloured pictures (N, 3, h, w) of the channels that vary most, N at most `most`.

    Args:
        output: (U, H, W), or (U,), which becomes one square picture. size: (h, w) of a picture.
    """
    colours = require("matplotlib", "analysis", "channel maps").colormaps[plots.SEQUENTIAL]
    if output.ndim == 1:
        side = math.ceil(math.sqrt(len(output)))
        output = F.pad(output, (0, side * side - len(output)), value=math.nan).reshape(1, side, side)
    elif len(output) > 1:
        order = output.flatten(1).var(1, unbiased=False).argsort(descending=True, stable=True)
        output = output[order[:most]]
    known = output[output.isfinite()]
    low, high = np.quantile(known.numpy(), [0.005, 0.995]) if len(known) else (0.0, 0.0)
    scaled = (output - low) / (high - low) if high > low else torch.zeros_like(output)
    resized = F.interpolate(scaled[:, None], size=tuple(size), mode="nearest-exact")[:, 0]
    picture = torch.from_numpy(colours(resized.clamp(0, 1).numpy())[..., :3]).float()
    picture[resized.isnan()] = 1.0
    return picture.movedim(-1, 1)


def _resized(tile: Tensor) -> Tensor:
    """Return images (N, 3, h, w), the longer side `TILE_PX`."""
    height, width = tile.shape[-2:]
    scale = TILE_PX / max(height, width)
    size = (round(height * scale), round(width * scale))
    return F.interpolate(tile, size=size, mode="nearest-exact" if scale >= 1 else "area")
