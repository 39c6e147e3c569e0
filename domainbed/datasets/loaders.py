"""Batches of uint8 images out of packed rows; their order is a function of seed and step.

A loader keeps no state: batch `step` can be asked for at any time, so resuming a run is asking for the next step.
Where rows come from is `prepare` and `packed`; how they are changed is `augment`.
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from domainbed.datasets.augment import Augment
from domainbed.datasets.prepare import Images
from domainbed.errors import UserError


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

    Raises:
        UserError: an environment has fewer training images than `batch_size`.
    """

    def __init__(
        self,
        images: Images,
        environments: list[int],
        batch_size: int,
        seed: int,
        augment: Augment,
        class_balanced: bool = False,
    ) -> None:
        self.images, self.environments, self.batch_size, self.seed = images, environments, batch_size, seed
        self.augment, self.class_balanced = augment, class_balanced
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
            np.random.default_rng((self.seed, environment, 0, int(epoch))).permutation(len(rows))[
                positions[epochs == epoch] % len(rows)
            ]
            for epoch in np.unique(epochs)
        ]
        return rows[np.concatenate(chosen)]

    def minibatches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Return (images uint8 (B, C, H, W), labels (B,)) for every training environment.

        In a run with masks, these take the place of labels: (B, H, W) or (B, K, H, W), see `masks.to_target`. A mask is
        changed with its image.
        """
        batches = []
        for environment in self.environments:
            rows = self.row_indices(step, environment)
            planes = self.images.planes(rows)
            x, planes = self.augment(self.images.pixels(rows), self.keys(rows), self.seed, step, planes)
            batches.append((x, self.images.targets(rows, planes)))
        return batches

    def keys(self, rows: np.ndarray) -> list[int]:
        """Numbers to key the augmentation by: the row, another one when it is drawn twice into one batch."""
        seen: dict[int, int] = {}
        keys = []
        for row in rows.tolist():
            keys.append(row + seen.get(row, 0) * len(self.images.labels))
            seen[row] = seen.get(row, 0) + 1
        return keys


def in_order(images: Images, rows: np.ndarray, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images uint8 (B, C, H, W), labels (B,) or masks) of some rows, in their order, as they are."""
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        yield images.pixels(chosen), images.targets(chosen, images.planes(chosen))
