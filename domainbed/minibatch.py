"""The images of one environment in one step. It lies below data sets and algorithms, which both know it.

x, y = minibatch
minibatch.environment, minibatch.second_view
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Minibatch:
    """Images of one environment and what is learnt from them. Unpacks as (x, y).

    Not a tuple: DistributedDataParallel would rebuild a tuple from its items and lose the rest.

    Attributes:
        x: images (B, C, H, W) in [0, 1]; from a data set of vectors, those (B, F) as they are, for an algorithm that
            `takes_vectors`.
        y: class indices (B,); masks where the algorithm needs them: class indices (B, H, W), or kinds that may overlap
            (B, K, H, W), see `objectives.segmentation`.
        environment: the number of the training environment, from 0 to num_domains - 1.
        second_view: x augmented anew (B, C, H, W); None unless the algorithm has `needs_second_view`.
    """

    x: Tensor
    y: Tensor
    environment: int = 0
    second_view: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x, self.y))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return (self.x, self.y)[index]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Minibatch":
        """Return the same environment's minibatch with a function applied to each tensor."""
        second = None if self.second_view is None else function(self.second_view)
        return Minibatch(function(self.x), function(self.y), self.environment, second)


def as_minibatches(batches: Iterable[Any]) -> list[Minibatch]:
    """Return minibatches; a plain pair (x, y) is taken for that of the environment at its place in the list."""
    return [
        batch if isinstance(batch, Minibatch) else Minibatch(batch[0], batch[1], environment)
        for environment, batch in enumerate(batches)
    ]
