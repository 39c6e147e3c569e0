"""Which rows of a step's batch are here, when it is computed in parts: by several processes, or one after the other.

A random draw belongs to a row of the batch. Each part draws for the whole batch, from the same state of the generator,
and keeps its own rows, so that a step is the same in however many parts it is computed:

    noise = rows.randn_like(mean)       # instead of torch.randn_like(mean)

What has to see the whole batch at once, after the step, collects it:

    self.seen.add(z.detach(), codes)    # in `losses`, once for each part
    z, codes = self.seen.whole()        # in `after_step`: of all parts and processes, in the order of the batch

Without parts these are torch's functions. The engine says which part is computed (`part`).

In an evaluation a draw belongs to an image (`keyed`): what is found out about it is the same whatever batch it is in.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One part of a step's batch.

    Attributes:
        rows: (b,) long, on the device: which rows of the batch, all environments joined, this part has.
        total: rows of the whole batch.
        gather: returns the tensors (n, …) of all processes, joined along the first dimension.
    """

    rows: Tensor
    total: int
    gather: Callable[[Tensor], Tensor]


_current: Part | None = None  # one training is computed at a time
_generators: list[torch.Generator] | None = None  # one for each row, in an evaluation


@contextmanager
def part(now: Part | None) -> Iterator[None]:
    """Let what is drawn inside belong to one part of a batch; None for a batch that is whole."""
    global _current
    before, _current = _current, now
    try:
        yield
    finally:
        _current = before


@contextmanager
def keyed(keys: Sequence[int]) -> Iterator[None]:
    """Let each row of a batch draw from a generator of its own, which its key seeds, on the CPU.

    Args:
        keys: (B,) numbers from 0 to 2^64 - 1. What is drawn inside for B rows is taken for theirs; for another number
            it comes from torch's own generator.
    """
    global _generators
    before, _generators = _generators, [torch.Generator().manual_seed(key) for key in keys]
    try:
        yield
    finally:
        _generators = before


def randn_like(x: Tensor) -> Tensor:
    """Return N(0, 1) noise for the rows (B, …) of a batch, of their shape, type and device."""
    return _own(torch.randn_like, Tensor.normal_, x)


def rand_like(x: Tensor) -> Tensor:
    """Return uniform noise in [0, 1), likewise."""
    return _own(torch.rand_like, Tensor.uniform_, x)


def randint_like(x: Tensor, low: int, high: int) -> Tensor:
    """Return whole numbers from low to high - 1, each equally likely, likewise."""
    return _own(torch.randint_like, Tensor.random_, x, low, high)


def _own(draw: Callable[..., Tensor], fill: Callable[..., Tensor], x: Tensor, *arguments: Any) -> Tensor:
    if _generators is not None and len(x) == len(_generators):
        drawn = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        for row, generator in zip(drawn, _generators, strict=True):
            fill(row, *arguments, generator=generator)
        return drawn.to(x.device, non_blocking=True)
    now = _current
    if now is None:
        return draw(x, *arguments)
    if len(x) != len(now.rows):
        raise ValueError(
            f"noise is drawn for the {len(now.rows)} rows of a batch, all environments joined, but x has {len(x)}. "
            "Draw it for all of them at once, or let the algorithm be batch_coupled"
        )
    # numbers are drawn in the order of memory, so the whole has the layout of its part
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (now.total, *x.shape[1:])
    whole = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    return draw(whole, *arguments)[now.rows]


class Collected:
    """Tensors of the parts of one step's batch, put together when the step is taken."""

    def __init__(self) -> None:
        self._parts: list[tuple[Part | None, tuple[Tensor, ...]]] = []

    def add(self, *tensors: Tensor) -> None:
        """Keep tensors (b, …) of the part that is computed now."""
        if _current is None:
            self._parts.clear()  # one that was computed and not stepped on
        self._parts.append((_current, tensors))

    def whole(self) -> tuple[Tensor, ...]:
        """Return the tensors (B, …) of the whole batch, in its order, and forget them.

        Raises:
            RuntimeError: none were added since the last time.
        """
        if not self._parts:
            raise RuntimeError("nothing was collected: the batch is computed in training mode first")
        (now, tensors), *_ = self._parts
        if now is not None:
            joined = [torch.cat(several) for several in zip(*(found for _, found in self._parts), strict=True)]
            order = now.gather(torch.cat([one.rows for one, _ in self._parts if one is not None])).argsort()
            tensors = tuple(now.gather(one)[order] for one in joined)
        self._parts.clear()
        return tensors
