"""Minibatches out of packed rows, read ahead of the step; their order is a function of seed and step.

    with ReadAhead(loader.read, start, steps) as ahead:
        for step in range(start, steps):
            minibatches = loader.finish(next(ahead), engine.to_device)

A loader keeps no state: step `step` can be asked for at any time, so resuming a run is asking for the next step.
Where rows come from is `prepare` and `packed`; how they are changed is `augment`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from domainbed.datasets.augment import Augment, AugmentParams
from domainbed.datasets.prepare import Images
from domainbed.errors import UserError
from domainbed.minibatch import Minibatch

T = TypeVar("T")

#: Steps that are read ahead: one is being copied, one waits, one is read.
AHEAD = 3


@dataclass
class Raw:
    """What one step needs of one environment, as it is stored.

    Attributes:
        rows: (B,) of the images. labels: (B,). pixels: uint8 (B, C, H, W), or vectors, float32 (B, F).
        planes: uint8 (B, H, W) masks, or None.
        params: how they are augmented. second: how they are for a second view, or None.
    """

    rows: np.ndarray
    labels: Tensor
    pixels: Tensor
    planes: Tensor | None
    params: AugmentParams
    second: AugmentParams | None = None

    def pinned(self) -> "Raw":
        """Return the same in memory that a GPU copies from while other work goes on."""
        planes = None if self.planes is None else self.planes.pin_memory()
        second = None if self.second is None else self.second.pinned()
        return Raw(self.rows, self.labels.pin_memory(), self.pixels.pin_memory(), planes, self.params.pinned(), second)


class TrainLoader:
    """One augmented minibatch per training environment for every step.

    Each environment is walked in permutations of its training rows, one after the other; with `class_balanced` rows
    are drawn so that each class is equally likely.

    Args:
        images: the images of the run.
        environments: indices of the training environments.
        batch_size: images per environment and step.
        seed: of order and augmentation.
        augment: what is done to the images.
        second_view: whether each minibatch has its images twice, augmented by two draws.
        process, num_processes: which share of every batch is wanted, of how many equal ones.
        pin: whether what is read is put where a GPU can copy it from while other work goes on.

    Raises:
        UserError: an environment has fewer training images than `batch_size`; a second view without augmentation.
    """

    def __init__(
        self,
        images: Images,
        environments: list[int],
        batch_size: int,
        seed: int,
        augment: Augment,
        class_balanced: bool = False,
        second_view: bool = False,
        process: int = 0,
        num_processes: int = 1,
        pin: bool = False,
    ) -> None:
        self.images, self.environments, self.batch_size, self.seed = images, environments, batch_size, seed
        self.augment, self.class_balanced, self.second_view, self.pin = augment, class_balanced, second_view, pin
        if second_view and not augment.names:
            raise UserError(
                "this algorithm compares two views of an image, but augment is empty, so that both are the same. Name "
                "some changes, such as augment=horizontal_flip,color_jitter"
            )
        size, left = divmod(batch_size, num_processes)
        if left:
            raise ValueError(f"{batch_size} images can't be shared equally by {num_processes} processes")
        self.share = slice(process * size, (process + 1) * size)
        self.order = lru_cache(maxsize=2 * len(environments))(self._order)  # an epoch's is asked for at every step
        self.rows = {environment: images.select(environment, "train") for environment in environments}
        small = {images.environments[e]: len(rows) for e, rows in self.rows.items() if len(rows) < batch_size}
        if small:
            if not min(small.values()):
                bare = ", ".join(name for name, count in small.items() if not count)
                raise UserError(
                    f"{bare} has no training images: all are held out. Add images or leave it out as a target"
                )
            listed = ", ".join(f"{name} has {count}" for name, count in small.items())
            raise UserError(
                f"batch_size = {batch_size} is more than the training images of an environment: {listed}. "
                f"Use batch_size={min(small.values())} or less, or more images per environment"
            )

    def row_indices(self, step: int, environment: int) -> np.ndarray:
        """Return the (batch_size,) rows of one environment in one step."""
        rows = self.rows[environment]
        if self.class_balanced:
            labels = self.images.labels[rows]
            counts = np.bincount(labels)
            probabilities = 1.0 / counts[labels] / np.count_nonzero(counts)
            generator = np.random.default_rng((self.seed, environment, 1, step))
            return rows[generator.choice(len(rows), self.batch_size, p=probabilities)]
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // len(rows)
        chosen = [
            self.order(environment, int(epoch))[positions[epochs == epoch] % len(rows)] for epoch in np.unique(epochs)
        ]
        return rows[np.concatenate(chosen)]

    def _order(self, environment: int, epoch: int) -> np.ndarray:
        """Return the permutation in which one environment's training rows are walked in one epoch."""
        generator = np.random.default_rng((self.seed, environment, 0, epoch))
        return generator.permutation(len(self.rows[environment]))

    def read(self, step: int) -> list[Raw]:
        """Return this process's share of a step's images, as stored, and their augmentation, of every environment.

        Any thread may call it.
        """
        found = []
        for environment in self.environments:
            chosen = self.row_indices(step, environment)
            rows, keys = chosen[self.share], self.keys(chosen)[self.share]
            params = self.augment.draw(keys, self.seed, step)
            second = self.augment.draw(keys, self.seed, step, view=1) if self.second_view else None
            targets, planes = self.images.targets(rows, None), self.images.planes(rows)
            raw = Raw(rows, targets, self.images.pixels(rows), planes, params, second)
            found.append(raw.pinned() if self.pin else raw)
        return found

    def finish(self, raw: list[Raw], to_device: Callable[[Tensor], Tensor]) -> list[Minibatch]:
        """Return the minibatches on the device, augmented there.

        In a run with masks, these take the place of labels: (B, H, W) or (B, K, H, W), see `masks.to_target`. A mask is
        changed with its image.

        Args:
            raw: of `read`.
            to_device: takes uint8 images to float32 in [0, 1] on the device, and vectors as they are.
        """
        minibatches = []
        for environment, stored in enumerate(raw):
            images = to_device(stored.pixels)
            second = None if stored.second is None else self.augment(images, stored.second)[0]
            planes = None if stored.planes is None else stored.planes.to(images.device, non_blocking=True)
            x, planes = self.augment(images, stored.params, planes)
            y = stored.labels if planes is None else self.images.targets(stored.rows, planes)
            minibatches.append(Minibatch(x, y.to(x.device, non_blocking=True), environment, second))
        return minibatches

    def keys(self, rows: np.ndarray) -> list[int]:
        """Numbers to key the augmentation by: the row, another one when it is drawn twice into one batch."""
        seen: dict[int, int] = {}
        keys = []
        for row in rows.tolist():
            keys.append(row + seen.get(row, 0) * len(self.images.labels))
            seen[row] = seen.get(row, 0) + 1
        return keys


class ReadAhead(Generic[T]):
    """Calls a function of the step in a thread of its own, a few steps before each is asked for.

    Args:
        read: what a step needs; called in order, for each step once.
        start, stop: first step, and the one after the last.

    Attributes:
        waited: seconds that `next` has waited for `read`.
    """

    def __init__(self, read: Callable[[int], T], start: int, stop: int) -> None:
        self.read, self.waited = read, 0.0
        self._steps = iter(range(start, stop))
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._waiting: deque[Future[T]] = deque()
        for _ in range(AHEAD):
            self._ask()

    def __enter__(self) -> "ReadAhead[T]":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __next__(self) -> T:
        """Return what the next step needs; an error of `read` is raised here."""
        if not self._waiting:
            raise StopIteration
        began = time.monotonic()
        found = self._waiting.popleft().result()
        self.waited += time.monotonic() - began
        self._ask()
        return found

    def _ask(self) -> None:
        for step in self._steps:
            self._waiting.append(self._thread.submit(self.read, step))
            break


def in_order(images: Images, rows: np.ndarray, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images uint8 (B, C, H, W), labels (B,) or masks) of some rows, in their order, as they are.

    Vectors are float32 (B, F).
    """
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        yield images.pixels(chosen), images.targets(chosen, images.planes(chosen))
