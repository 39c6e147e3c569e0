"""What a step, the start and memory cost with 1,000, 10,000 and 100,000 images of four environments.

    python benchmarks/scale.py [--sizes 1000 10000 100000] [--quick]

Every size is measured in a process of its own, smallest to largest in turn, `--pairs` times; figures are medians. The
images are noise of 24 px, made from their number when they are packed: nothing but the number of images differs.

    step     milliseconds of a training step: `TrainLoader` read ahead by `ReadAhead`, crop, flip and colour jitter, and
             `Engine` on an autoencoder of a few thousand weights, 16 images per environment; median of all steps but
             the first ones
    memory   anonymous memory of the process after these steps, in MB (RssAnon of /proc/self/status, Linux only): pages
             of the pack, which the system can drop, do not count
    packing  seconds of `prepare` the first time, which decodes every image
    start    seconds of listing the images and of `prepare` when the pack is there, without imports

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

from domainbed.algorithms.autoencoder import AE
from domainbed.cli import positive
from domainbed.datasets.augment import Augment
from domainbed.datasets.base import Dataset, Sample
from domainbed.datasets.loaders import ReadAhead, TrainLoader
from domainbed.datasets.prepare import prepare
from domainbed.engine import Engine
from domainbed.errors import UserError

SCRIPT = Path(__file__).resolve()
ENVIRONMENTS, CLASSES, SIZE, BATCH_SIZE = 4, 2, 24, 16
FIGURES = {"step": "ms", "memory": "MB", "packing": "s", "start": "s"}
LAYERS = ["conv 4 3", "relu", "maxpool 4", "code", "upsample 4", "conv image 3"]
WARM_UP = 10
SIZES = [1_000, 10_000, 100_000]


class Noise(Dataset):
    """Images of noise, the same for the same number."""

    name = "Noise"

    def __init__(self, num_images: int) -> None:
        super().__init__(None, Dataset.HParams.model_validate({"image_size": SIZE, "preprocess": []}))
        self.environments = [f"camera{number}" for number in range(ENVIRONMENTS)]
        self.classes = [str(number) for number in range(CLASSES)]
        self.samples = [
            Sample(index % ENVIRONMENTS, f"{index:06}", index // ENVIRONMENTS % CLASSES, f"{index:06}")
            for index in range(num_images)
        ]

    def read(self, index: int) -> np.ndarray:
        return np.frombuffer(np.random.default_rng(index).bytes(SIZE * SIZE * 3), np.uint8).reshape(SIZE, SIZE, 3)

    def content(self, index: int) -> str:
        return f"noise {index}"


def main() -> int:
    options = parser(__doc__, pairs=3, quick="1,000 and 10,000 images, few steps, once")
    options.add_argument("--sizes", type=positive, nargs="+", default=SIZES, help="numbers of images")
    options.add_argument("--steps", type=positive, default=300, help="that are timed: 300")
    options.add_argument("--measure", type=Path, metavar="CACHE", help="measure one size in this process, as JSON")
    return guarded_by(options, run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, or measure one size."""
    smallest = ENVIRONMENTS * BATCH_SIZE * 2
    if min(arguments.sizes) < smallest:
        raise UserError(f"--sizes {min(arguments.sizes)} is too small. Give {smallest} or more")
    if arguments.measure is None:
        return compare(arguments)
    print(json.dumps(measure(arguments.sizes[0], arguments.steps, arguments.measure)))
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Print the table and the line for programs; return the exit status."""
    if arguments.quick:
        vars(arguments).update(sizes=[1_000, 10_000], steps=40, pairs=1)
    sizes, pairs = sorted(arguments.sizes), arguments.pairs
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as folder:
        packing = {size: in_process(size, 1, Path(folder))["start"] for size in sizes}
        for _ in range(pairs):
            for size in sizes:
                found[size].append(in_process(size, arguments.steps, Path(folder)))
    figures = {
        size: {key: statistics.median(one[key] for one in found[size]) for key in ("step", "memory", "start")}
        | {"packing": packing[size]}
        for size in sizes
    }
    print(f"{ENVIRONMENTS} environments, {BATCH_SIZE} images of each a step; medians of {pairs}")
    print(f"{'images':>10}" + "".join(f"{f'{key} ({unit})':>15}" for key, unit in FIGURES.items()))
    for size in sizes:
        print(f"{size:10}" + "".join(f"{figures[size][key]:15.2f}" for key in FIGURES))
    first, last = figures[sizes[0]], figures[sizes[-1]]
    ratios = {key: last[key] / first[key] for key in FIGURES}
    print(f"{'ratio':>10}" + "".join(f"{ratios[key]:15.2f}" for key in FIGURES))
    more: dict[str, Any] = {f"{key}_ratio": ratios[key] for key in ("memory", "start")} | {"sizes": figures}
    print(record("scale", ratios["step"], last["step"], first["step"], "ms/step", pairs, **more))
    return 0


def in_process(size: int, steps: int, cache: Path) -> dict[str, float]:
    """Measure one size in a new process."""
    command = [SCRIPT, "--measure", cache, "--sizes", size, "--steps", steps]
    return json.loads(output_of(command, cache).splitlines()[-1])


def measure(size: int, steps: int, cache: Path) -> dict[str, float]:
    """Return the figures of one size; `start` includes the packing where the pack is not there yet."""
    started = time.perf_counter()
    dataset = Noise(size)  # stays, as in a run
    images = prepare(
        dataset, trial_seed=0, holdout_fraction=0.2, subset_size=None, cache_dir=cache, num_workers=1,
        skip_unreadable=False, strict=False, report=lambda line: None,
    )  # fmt: skip
    start = time.perf_counter() - started
    engine, sources = Engine("cpu"), list(range(ENVIRONMENTS))
    algorithm = AE(images.input_shape, CLASSES, ENVIRONMENTS, {"layers": LAYERS, "latent_dim": 16})
    engine.prepare(algorithm)
    loader = TrainLoader(images, sources, BATCH_SIZE, 0, Augment(AUGMENT))
    times = []
    with ReadAhead(loader.read, 0, WARM_UP + steps) as ahead:
        for step in range(WARM_UP + steps):
            began = time.perf_counter()
            torch.manual_seed(step)
            algorithm.update(loader.finish(next(ahead), step, engine.to_device))
            times.append(time.perf_counter() - began)
    return {"start": start, "step": 1000 * statistics.median(times[WARM_UP:]), "memory": anonymous_memory()}


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
