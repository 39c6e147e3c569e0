"""What the benchmarks with a baseline share: pairs taken in turn, the line for programs, and the plain way of training.

    baseline, ours = in_turn(measure_baseline, measure_ours, pairs=5)
    print(record("run", baseline / ours, ours, baseline, "s", pairs=5))

The plain way is that of DomainBed's `scripts/train.py` and of SWAD, written anew: one ImageFolder per environment,
Pillow decoding every file each time, a DataLoader with workers of its own for the training part of each source and for
both parts of every environment, all of them evaluated after step 0, every `checkpoint_freq` steps, and after the last.
Two things are kinder to it than DomainBed: evaluation does not augment, and nothing is normalised outside of the
network, which does that itself.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from domainbed.algorithms.vae_dg import VAE_DG
from domainbed.cli import Parser, guarded, positive
from domainbed.datasets.augment import COLOR_JITTER, CROP_RATIO, CROP_SCALE
from domainbed.datasets.base import Dataset
from domainbed.errors import UserError

#: Share of each environment that DomainBed and this project hold out, and DomainBed's batch in evaluation.
HOLDOUT_FRACTION, EVAL_BATCH_SIZE = 0.2, 64
#: Workers of each of DomainBed's loaders, where there are as many cores.
WORKERS = 8
#: Names of the changes that both sides make to a training image.
GEOMETRIC = ["crop_scale", "horizontal_flip"]
AUGMENT = [*GEOMETRIC, "color_jitter"]


def parser(docstring: str, pairs: int, quick: str) -> Parser:
    """Return a parser with what every benchmark has: --pairs and --quick."""
    found = Parser(description=docstring.partition("\n")[0])
    found.add_argument("--pairs", type=positive, default=pairs, help=f"times that each is measured, in turn: {pairs}")
    found.add_argument("--quick", action="store_true", help=f"{quick}: within a minute")
    return found


def guarded_by(parser: Parser, compare: Callable[[argparse.Namespace], int]) -> int:
    """Run a benchmark on its command line and return the exit status; a mistake is one message."""
    return guarded(lambda: compare(parser.parse_args()))


def in_turn(baseline: Callable[[], float], ours: Callable[[], float], pairs: int) -> tuple[float, float]:
    """Return the median of each, measured one after the other, pair by pair."""
    found = [(baseline(), ours()) for _ in range(pairs)]
    return statistics.median(one for one, _ in found), statistics.median(one for _, one in found)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the time that some work takes, on a GPU until it is done there."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def output_of(command: Sequence[object], folder: Path) -> str:
    """Run a Python program in a folder and return what it printed.

    Raises:
        UserError: it fails, with the last line that it wrote.
    """
    words = [str(word) for word in command]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UserError(f"{' '.join(words)} failed with status {done.returncode}: {said}")
    return done.stdout


def timed(command: Sequence[object], folder: Path) -> float:
    """Run a Python program in a folder and return its wall time in seconds; errors are those of `output_of`."""
    started = time.perf_counter()
    output_of(command, folder)
    return time.perf_counter() - started


def record(name: str, ratio: float, ours: float, baseline: float, unit: str, pairs: int, **more: Any) -> str:
    """Return the line for programs: a benchmark's figures as JSON; a ratio above 1 is in our favour."""
    figures = {"benchmark": name, "ratio": ratio, "ours": ours, "baseline": baseline, "unit": unit, "pairs": pairs}
    return json.dumps(figures | more)


def environments_in(data_dir: Path) -> list[Path]:
    """Return the folders of all environments.

    Raises:
        UserError: there is none.
    """
    folders = sorted(path for path in data_dir.expanduser().glob("*") if path.is_dir() and path.name[0] != ".")
    if not folders:
        raise UserError(f"{data_dir} holds no folder. Give <environment>/<class>/<image>")
    return folders


def export(dataset: Dataset, folder: Path) -> None:
    """Write all images of a data set as <environment>/<class>/<number>.png."""
    for index, sample in enumerate(dataset.samples):
        place = folder / dataset.environments[sample.environment] / dataset.classes[sample.label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.read(index)).save(place / f"{index:06d}.png")


# --- the plain way ---


def augmentation(size: int, jitter: bool = True) -> list[Callable]:
    """Return DomainBed's changes of a training image, on Pillow's images, as strong as ours; then a tensor."""
    return [
        transforms.RandomResizedCrop(size, scale=CROP_SCALE, ratio=CROP_RATIO),
        transforms.RandomHorizontalFlip(),
        *([transforms.ColorJitter(**COLOR_JITTER)] if jitter else []),
        transforms.ToTensor(),
    ]


class Plain:
    """Loaders of one training, with one environment left out.

    Args:
        data_dir: <environment>/<class>/<image>.
        target: index of the environment that is left out.
        size: of the images, in pixels.
        batch_size: images per environment and step.
        workers: of each loader; they start here and stay, as DomainBed's do.

    Raises:
        UserError: there are no environments, or one has fewer training images than `batch_size`.

    Attributes:
        num_classes: K. sources: indices of the training environments.
        train: an endless iterator over batches for each source.
        evaluations: a loader for the training part and the held-out part of every environment.
    """

    def __init__(self, data_dir: Path, target: int, size: int, batch_size: int, workers: int) -> None:
        folders = environments_in(data_dir)
        whole = [transforms.Resize((size, size)), transforms.ToTensor()]
        plain = [ImageFolder(str(folder), transforms.Compose(whole)) for folder in folders]
        augmented = [ImageFolder(str(folder), transforms.Compose(augmentation(size))) for folder in folders]
        parts = [held_out(len(images), environment) for environment, images in enumerate(plain)]
        self.num_classes = max(len(images.classes) for images in plain)
        self.sources = [environment for environment in range(len(folders)) if environment != target]
        small = [folder.name for folder, (_, rest) in zip(folders, parts, strict=True) if len(rest) < batch_size]
        if small:
            raise UserError(
                f"{', '.join(small)}: fewer than {batch_size} images to train on. Give a smaller --batch_size"
            )
        self.train = [
            endless(Subset(augmented[e], parts[e][1]), batch_size, workers, replacement=True) for e in self.sources
        ]
        self.evaluations = [
            PlainEvaluation(Subset(images, parts[e][side]), workers)
            for side in (1, 0)
            for e, images in enumerate(plain)
        ]

    def minibatches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the next batch of each source."""
        return [next(batches) for batches in self.train]


class PlainEvaluation:
    """All images of a part once, each time that it is iterated over, by workers that stay between the times."""

    def __init__(self, images: Subset, workers: int) -> None:
        self._batches = endless(images, EVAL_BATCH_SIZE, workers, replacement=False)
        self._length = -(-len(images) // EVAL_BATCH_SIZE)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (next(self._batches) for _ in range(self._length))


class Again(Sampler):
    """The batches of a sampler, over and over."""

    def __init__(self, batches: BatchSampler) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield from self.batches


def endless(images: Subset, batch_size: int, workers: int, replacement: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Return an iterator over shuffled batches without an end; its workers start at once."""
    order = RandomSampler(images, replacement=replacement)
    batches = BatchSampler(order, batch_size, drop_last=replacement)
    return iter(DataLoader(images, batch_sampler=Again(batches), num_workers=workers))


def held_out(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the images that are held out of an environment, and the others."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    edge = int(HOLDOUT_FRACTION * count)
    return order[:edge], order[edge:]


def evaluates(step: int, steps: int, checkpoint_freq: int) -> bool:
    """Whether DomainBed evaluates after a step, counted from 0."""
    return step % checkpoint_freq == 0 or step == steps - 1


class PlainTraining:
    """A network of VAE_DG, trained as torch's defaults have it: float32, NCHW, Adam, each logged loss read at once.

    Args:
        algorithm: the network with its loss, which is ours, so that both sides compute the same.
        device: where it is trained.
    """

    def __init__(self, algorithm: VAE_DG, device: torch.device | str = "cpu") -> None:
        self.algorithm, self.device = algorithm.to(device), device
        self.optimizer = torch.optim.Adam(algorithm.parameters(), lr=algorithm.hparams.lr)

    def step(self, minibatches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Take a step on images in [0, 1] and labels; return the losses."""
        losses = self.algorithm([(x.to(self.device), y.to(self.device)) for x, y in minibatches])
        self.optimizer.zero_grad()
        losses["loss"].backward()
        self.optimizer.step()
        self.algorithm.finish_step()
        return {name: value.item() for name, value in losses.items()}

    def accuracy(self, batches: PlainEvaluation) -> float:
        """Return the share of right answers."""
        right = count = 0
        self.algorithm.eval()
        with torch.no_grad():
            for x, y in batches:
                right += int((self.algorithm.predict(x.to(self.device)).argmax(1).cpu() == y).sum())
                count += len(y)
        self.algorithm.train()
        return right / max(count, 1)


def vae_dg(size: int, num_classes: int, num_domains: int, **settings: Any) -> VAE_DG:
    """Return VAE_DG with random weights for images (3, size, size)."""
    return VAE_DG((3, size, size), num_classes, num_domains, {"pretrained": "false", **settings})
