"""What a step, the start and memory cost with 1,000, 10,000 and 100,000 images of four environments.

    python benchmarks/scale.py [--sizes 1000 10000 100000] [--quick]

The images are PNG files of noise, 24 px, written before anything is timed: nothing but their number differs. Figures
but for `packing` are medians of `--pairs` measurements, smallest to largest in turn.

    step     milliseconds of a training step: `TrainLoader` read ahead by `ReadAhead`, crop, flip and colour jitter, and
             `Engine` on an autoencoder of a few thousand weights, 16 images per environment; median of all steps. All
             sizes take turns in one process, some steps each: between processes a step differs by more than by size
    memory   anonymous memory of a process of one size after 30 steps, in MB (RssAnon of /proc/self/status, Linux
             only): pages of the pack, which the system can drop, do not count
    packing  seconds of listing the files and of `prepare` the first time, which decodes every image; measured once
    start    seconds of listing the files and of `prepare` when the pack is there, without imports, in a process of one
             size

The ratio is the cost of a step at the largest size over that at the smallest; so are `memory_ratio` and `start_ratio`.
1 means that it does not grow.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import AUGMENT, guarded_by, output_of, parser, record
from PIL import Image

from domainbed.algorithms.autoencoder import AE
from domainbed.cli import positive
from domainbed.datasets.augment import Augment
from domainbed.datasets.folder import Folder
from domainbed.datasets.loaders import ReadAhead, TrainLoader
from domainbed.datasets.prepare import prepare
from domainbed.datasets.threads import in_threads
from domainbed.engine import Engine
from domainbed.errors import UserError
from domainbed.machine import default_num_workers

SCRIPT = Path(__file__).resolve()
ENVIRONMENTS, CLASSES, SIZE, BATCH_SIZE = 4, 2, 24, 16
FIGURES = {"step": "ms", "memory": "MB", "packing": "s", "start": "s"}
LAYERS = ["conv 4 3", "relu", "maxpool 4", "code", "upsample 4", "conv image 3"]
#: Steps of one size before it is the next one's turn, and how many of them are not counted: reading ahead begins anew.
TURN, WARM_UP = 30, 10
SIZES = [1_000, 10_000, 100_000]


def main() -> int:
    options = parser(__doc__, pairs=3, quick="1,000 and 10,000 images, few steps, once")
    options.add_argument("--sizes", type=positive, nargs="+", default=SIZES, help="numbers of images")
    options.add_argument("--turns", type=positive, default=20, help=f"of {TURN} steps that each size has: 20")
    options.add_argument("--measure", type=Path, metavar="FOLDER", help="measure these sizes in this process, as JSON")
    return guarded_by(options, run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, or measure."""
    smallest = ENVIRONMENTS * BATCH_SIZE * 2
    if min(arguments.sizes) < smallest:
        raise UserError(f"--sizes {min(arguments.sizes)} is too small. Give {smallest} or more")
    if arguments.measure is None:
        return compare(arguments)
    print(json.dumps(measure(arguments.sizes, arguments.turns, arguments.measure)))
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Print the table and the line for programs; return the exit status."""
    if arguments.quick:
        vars(arguments).update(sizes=[1_000, 10_000], turns=2, pairs=1)
    sizes, pairs = sorted(set(arguments.sizes)), arguments.pairs
    found: dict[int, dict[str, list[float]]] = {size: {figure: [] for figure in FIGURES} for size in sizes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            write_images(folder / str(size), size)
            found[size]["packing"].append(in_process([size], 1, folder)["start"][0])
        for _ in range(pairs):
            for size in sizes:
                alone = in_process([size], 1, folder)
                found[size]["memory"].append(alone["memory"])
                found[size]["start"] += alone["start"]
            for size, step in zip(sizes, in_process(sizes, arguments.turns, folder)["step"], strict=True):
                found[size]["step"].append(step)
    figures = {size: {figure: statistics.median(found[size][figure]) for figure in FIGURES} for size in sizes}
    print(f"{ENVIRONMENTS} environments, {BATCH_SIZE} images of each a step; medians of {pairs}")
    print(f"{'images':>10}" + "".join(f"{f'{figure} ({unit})':>15}" for figure, unit in FIGURES.items()))
    for size in sizes:
        print(f"{size:10}" + "".join(f"{figures[size][figure]:15.2f}" for figure in FIGURES))
    first, last = figures[sizes[0]], figures[sizes[-1]]
    ratios = {figure: last[figure] / first[figure] for figure in FIGURES}
    print(f"{'ratio':>10}" + "".join(f"{ratios[figure]:15.2f}" for figure in FIGURES))
    more: dict[str, Any] = {f"{figure}_ratio": ratios[figure] for figure in ("memory", "start")} | {"sizes": figures}
    print(record("scale", ratios["step"], last["step"], first["step"], "ms/step", pairs, **more))
    return 0


def write_images(folder: Path, count: int) -> None:
    """Write `count` images, <folder>/<environment>/<class>/<number>.png."""

    def write(index: int) -> None:
        place = folder / f"camera{index % ENVIRONMENTS}" / str(index // ENVIRONMENTS % CLASSES)
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(noise).save(place / f"{index:06}.png", compress_level=0)

    for _ in in_threads(write, range(count), default_num_workers(), "writing images"):
        pass


def in_process(sizes: list[int], turns: int, folder: Path) -> dict[str, Any]:
    """Measure some sizes in a new process; see `measure`."""
    command = [SCRIPT, "--measure", folder, "--turns", turns, "--sizes", *sizes]
    return json.loads(output_of(command, folder).splitlines()[-1])


def measure(sizes: list[int], turns: int, folder: Path) -> dict[str, Any]:
    """Return `start` and `step` of each size, and `memory` of all; `start` includes the packing where there is none."""
    start, loaders = [], []
    settings = Folder.HParams.model_validate({"image_size": SIZE, "preprocess": []})
    for size in sizes:
        started = time.perf_counter()
        images = prepare(
            Folder(folder / str(size), settings), trial_seed=0, holdout_fraction=0.2, subset_size=None,
            cache_dir=folder / f"cache_{size}", num_workers=default_num_workers(), skip_unreadable=False, strict=False,
            report=lambda line: None,
        )  # fmt: skip
        start.append(time.perf_counter() - started)
        loaders.append(TrainLoader(images, list(range(ENVIRONMENTS)), BATCH_SIZE, 0, Augment(AUGMENT)))
    engine = Engine("cpu")
    algorithm = AE(loaders[0].images.input_shape, CLASSES, ENVIRONMENTS, {"layers": LAYERS, "latent_dim": 16})
    engine.prepare(algorithm)
    times: list[list[float]] = [[] for _ in sizes]
    for turn in range(turns):
        for loader, of_size in zip(loaders, times, strict=True):
            steps = range(turn * TURN, (turn + 1) * TURN)
            with ReadAhead(loader.read, steps.start, steps.stop) as ahead:
                of_turn = []
                for step in steps:
                    began = time.perf_counter()
                    torch.manual_seed(step)
                    algorithm.update(loader.finish(next(ahead), engine.to_device))
                    of_turn.append(time.perf_counter() - began)
            of_size += of_turn[WARM_UP:]
    step_ms = [1000 * statistics.median(of_size) for of_size in times]
    return {"start": start, "step": step_ms, "memory": anonymous_memory()}


def anonymous_memory() -> float:
    """Return this process's anonymous memory in MB.

    Raises:
        UserError: the system does not tell.
    """
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        raise UserError("there is no /proc/self/status to read memory from: this benchmark needs Linux") from None
    return int(text.partition("RssAnon:")[2].split()[0]) / 1000


if __name__ == "__main__":
    sys.exit(main())
