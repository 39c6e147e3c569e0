"""What a report shows of one model: its pictures by step, its map of codes, and the sections of the other commands.

All of it as plain data with pictures as data URIs; how it looks is in `html`.
"""

import base64
import importlib
import io
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from domainbed.algorithms.base import Encoder
from domainbed.algorithms.finished import find_targets
from domainbed.analysis.codes import read
from domainbed.analysis.latents import principal_axes
from domainbed.analysis.opened import OpenedRun
from domainbed.analysis.recorded import RecordedRun
from domainbed.errors import UserError
from domainbed.evaluator import NOISE_SEED
from domainbed.paths import folder_name
from domainbed.reconstructions import to_image

#: Sections, by the module of `domainbed.analysis` whose `analyse(run, folder)` makes them, in order.
SECTIONS = {
    "latents": "Latent codes",
    "traverse": "Traversals and samples",
    "layers": "Layers",
    "errors": "Errors",
}
#: Steps of which reconstructions are shown at most, the first and the last among them.
MAX_STEPS = 12
#: Images in the map at most, and the side of their thumbnails.
MAP_IMAGES, THUMBNAIL_PX = 600, 48
#: A picture that is larger without loss is compressed with a loss that nobody sees.
LOSSLESS_BYTES = 250_000
_WEBP_QUALITY = 82


def picture(path: Path, lossy: bool = False) -> dict[str, Any]:
    """Return a picture as `src` (a data URI, WebP), `width` and `height` in px."""
    image = Image.open(path).convert("RGB")
    data = b"" if lossy else _webp(image, lossless=True)
    if lossy or len(data) > LOSSLESS_BYTES:
        data = _webp(image, quality=_WEBP_QUALITY)
    return {"src": _uri(data), "width": image.width, "height": image.height}


def _webp(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def reconstructions(run: RecordedRun, target: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the pictures that one training left: name, such as "idrid_val" or "samples", to one for each step.

    Returns:
        step, label, and the keys of `picture`; at most `MAX_STEPS` of each name, empty where the run left none.
    """
    folders = find_targets(run.folder)
    place = folders.get((None, target)) or folders.get((seed, target))
    if place is None:
        return {}
    steps = [(int(path.name[11:]), path) for path in place.parent.glob("recon_step_*") if path.name[11:].isdigit()]
    ordered = [(step, f"step {step}", path / place.name) for step, path in sorted(steps)]
    seen = [record["step"] for kind in ("train", "eval", "final") for record in run.of(kind, target, seed)]
    last = max([*seen, *(step for step, _ in steps)], default=0)
    final = place.parent / "recon_final" / place.name
    if final.is_dir():
        ordered = [*(one for one in ordered if one[0] < last), (last, f"step {last}, the last", final)]
    ordered = [one for one in ordered if one[2].is_dir()]
    if len(ordered) > MAX_STEPS:
        ordered = [ordered[round(k)] for k in np.linspace(0, len(ordered) - 1, MAX_STEPS)]
    environments = {folder_name(str(record["environment"])): record["environment"] for record in run.of("eval")}
    found: dict[str, list[dict[str, Any]]] = {}
    for step, label, folder in ordered:
        pictures = {_name(path.stem, environments): path for path in folder.glob("*.png")}
        for name, path in sorted(pictures.items(), key=lambda pair: _order(pair[0], target)):
            found.setdefault(name, []).append({"step": step, "label": label} | picture(path, lossy=True))
    return found


def _name(stem: str, environments: Mapping[str, str]) -> str:
    """Return the name of a picture from that of its file, given environments by their names in files."""
    place, _, split = stem.rpartition("_")
    return f"{environments.get(place, place)}_{split}" if place else stem


def _order(name: str, target: str) -> tuple[Any, ...]:
    """What was left out, then the other environments, then samples; held-out images first."""
    environment, _, split = name.rpartition("_")
    numbered = [int(one) if one.isdigit() else one for one in re.split(r"(\d+)", environment)]
    return name == "samples", environment not in target.split("+"), numbered, split == "train"


def sections(run: OpenedRun, folder: Path, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the sections of the other commands, in order.

    Args:
        run: opened.
        folder: for the pictures that they write; each gets one in it. report: takes a line before each.

    Returns:
        name, title, pictures (title, caption and the keys of `picture`), findings and notes (sentences), figures (all
        that the command returned), and why it is left out, None where it is not.
    """
    found = []
    for name, title in SECTIONS.items():
        section: dict[str, Any] = {"name": name, "title": title, "why_not": None}
        report(f"{title.lower()} …")
        try:
            (folder / name).mkdir(parents=True)
            figures = importlib.import_module(f"domainbed.analysis.{name}").analyse(run, folder / name)
        except UserError as error:
            figures, section["why_not"] = {}, str(error)
        found.append(
            section
            | {
                "figures": figures,
                "findings": figures.get("findings", []),
                "notes": figures.get("notes", []),
                "pictures": [
                    {"title": one["title"], "caption": one["caption"]} | picture(folder / name / one["file"])
                    for one in figures.get("pictures", [])
                ],
            }
        )
    return found


def latent_map(run: OpenedRun, drawn: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a map of the codes of held-out images, and a thumbnail of each image.

    Args:
        run: opened.
        drawn: the `map` of `latents`; without it, it is the first two principal components.

    Returns:
        kind, points in [0, 1] (y downward), names, class and environment (indices), roles, classes, environments,
        sprite (a data URI), tile and columns of the sprite.

    Raises:
        UserError: the model gives no codes.
    """
    if drawn is not None:
        rows, points, kind = np.asarray(drawn["rows"]), np.asarray(drawn["points"]), drawn["kind"]
        some = np.random.default_rng(NOISE_SEED).permutation(len(rows))[:MAP_IMAGES]
        rows, points = rows[np.sort(some)], points[np.sort(some)]
    else:
        rows, points, kind = _principal_components(run)
    images = run.images
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.maximum(high - low, 1e-12)
    roles = [
        run.role(int(environment), str(split))
        for environment, split in zip(images.environment[rows], images.split[rows], strict=True)
    ]
    columns = math.ceil(math.sqrt(len(rows)))
    return {
        "kind": kind,
        "points": [[round(float(x), 4), round(1 - float(y), 4)] for x, y in scaled],
        "names": [str(images.names[row]) for row in rows],
        "class": [int(images.labels[row]) for row in rows],
        "environment": [int(images.environment[row]) for row in rows],
        "roles": roles,
        "classes": list(images.classes),
        "environments": list(images.environments),
        "sprite": _sprite(run, rows, columns),
        "tile": THUMBNAIL_PX,
        "columns": columns,
    }


def _principal_components(run: OpenedRun) -> tuple[np.ndarray, np.ndarray, str]:
    if not isinstance(run.algorithm, Encoder):
        raise UserError(f"{run.config['algorithm']} gives no codes of images, so there is no map of them")
    of_environments = run.rows(per_environment=max(1, MAP_IMAGES // len(run.images.environments)))
    rows = np.concatenate(list(of_environments.values()))
    codes = read(run, rows).pooled.double()  # (N, D), of a map one number a channel, as in `latents`
    centred = codes - codes.mean(0)
    spread, axes = principal_axes(centred)
    if len(spread) < 2:
        raise UserError("the codes have one dimension, or there is one image: a map needs two of each")
    share = (spread[:2].square().sum() / spread.square().sum().clamp(min=1e-300)).item()
    return rows, (centred @ axes[:2].T).numpy(), f"PCA, {share:.0%} of the variance"


def _sprite(run: OpenedRun, rows: np.ndarray, columns: int) -> str:
    """Return all thumbnails side by side, row by row, as a data URI."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    sprite = Image.new("RGB", (columns * size[0], -(-len(rows) // columns) * size[1]), "white")
    for index in range(len(rows)):
        pixels = run.pixels(rows[index : index + 1])[0]  # (C, H, W)
        _, height, width = pixels.shape
        scale = THUMBNAIL_PX / max(height, width)
        tile = to_image(pixels, (width, height)).resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS
        )
        sprite.paste(tile, (index % columns * size[0], index // columns * size[1]))
    return _uri(_webp(sprite, quality=_WEBP_QUALITY))
