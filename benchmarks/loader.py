"""Images per second and core, from files to an augmented batch: packed rows beside a loader that decodes again.

    python benchmarks/loader.py --data_dir DR_originals/ [--quick]

The baseline is written as DomainBed and SWAD have it: torchvision's ImageFolder of one environment, Pillow decoding
every file at its full size each time, RandomResizedCrop to 224 px, a flip, ColorJitter with hue, ToTensor, Normalize.
Ours is `prepare` (decode once, to 224 px) and `TrainLoader` with the same changes, but for Normalize, which an encoder
does here. Both run in this process on one thread, so that a rate is that of one core; they are timed in turn, and the
ratio is that of the medians.

    geometric      crop and flip, rows packed before
    color_jitter   the same and brightness, contrast, saturation, hue
    first epoch    crop and flip; ours decodes and packs every image first
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from paired import AUGMENT, GEOMETRIC, augmentation, environments_in, guarded_by, in_turn, parser, record
from torchvision import transforms
from torchvision.datasets import ImageFolder

from domainbed.datasets.augment import Augment
from domainbed.datasets.loaders import TrainLoader
from domainbed.datasets.prepare import Images, prepare
from domainbed.engine import Engine
from domainbed.registry import DATASETS

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> int:
    options = parser(__doc__, pairs=5, quick="two pairs, few images")
    options.add_argument("--data_dir", type=Path, required=True, help="<environment>/<class>/<image>, at full size")
    return guarded_by(options, compare)


def compare(arguments: argparse.Namespace) -> int:
    """Print the table and the line for programs; return the exit status."""
    torch.set_num_threads(1)
    pairs, epochs = (2, 4) if arguments.quick else (arguments.pairs, 20)
    environments = environments_in(arguments.data_dir)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        images = packed(arguments.data_dir, Path(cache))
        for name, jitter in (("geometric", False), ("color_jitter", True)):
            found = in_turn(
                partial(decoding_rate, environments[:1], jitter),
                partial(packed_rate, images, jitter, epochs),
                pairs,
            )
            rows.append((name, *found))
    rows.append(("first epoch", *in_turn(
        lambda: decoding_rate(environments, False), lambda: first_epoch_rate(arguments.data_dir), pairs
    )))  # fmt: skip
    print(f"{len(images.names)} images, images per second and core, medians of {pairs} pairs")
    print(f"{'':14} {'decoding':>10} {'packed':>10} {'ratio':>8}")
    for name, baseline, ours in rows:
        print(f"{name:14} {baseline:10.1f} {ours:10.1f} {ours / baseline:8.1f}")
    for name, baseline, ours in rows:
        print(record(f"loader/{name.replace(' ', '_')}", ours / baseline, ours, baseline, "images/s/core", pairs))
    return 0


def decoding_rate(environments: list[Path], jitter: bool) -> float:
    """Images per second of the plain way: every file is decoded again."""
    changes = [*augmentation(SIZE, jitter), transforms.Normalize(MEAN, STD)]
    started, count = time.perf_counter(), 0
    for folder in environments:
        data = ImageFolder(str(folder), transforms.Compose(changes))
        for x, _ in torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, num_workers=0):
            count += len(x)
    return count / (time.perf_counter() - started)


def packed(data_dir: Path, cache: Path) -> Images:
    """Return the images decoded to 224 px, in a cache of their own."""
    cls = DATASETS["DR"]
    dataset = cls(data_dir, cls.HParams(image_size=SIZE, preprocess=["resize"]))
    return prepare(
        dataset, trial_seed=0, holdout_fraction=0.2, subset_size=None, cache_dir=cache, num_workers=1,
        skip_unreadable=False, strict=False, report=lambda line: None,
    )  # fmt: skip


def packed_rate(images: Images, jitter: bool, epochs: int) -> float:
    """Images per second of `TrainLoader`, over several epochs of the training images."""
    names = AUGMENT if jitter else GEOMETRIC
    sources = range(len(images.environments))
    batch = min(8, *(len(images.select(e, "train")) for e in sources))
    loader, engine = TrainLoader(images, list(sources), batch, 0, Augment(names)), Engine("cpu", "float32")
    steps = max(1, epochs * len(images.names) // (batch * len(sources)))
    started = time.perf_counter()
    for step in range(steps):
        loader.finish(loader.read(step), engine.to_device)
    return steps * batch * len(sources) / (time.perf_counter() - started)


def first_epoch_rate(data_dir: Path) -> float:
    """Training images per second, each given once, with the packing of all images before."""
    engine, count = Engine("cpu", "float32"), 0
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        images = packed(data_dir, Path(cache))
        for environment in range(len(images.environments)):
            loader = TrainLoader(images, [environment], 1, 0, Augment(GEOMETRIC))
            for step in range(len(loader.rows[environment])):
                loader.finish(loader.read(step), engine.to_device)
                count += 1
        return count / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
