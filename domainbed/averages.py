"""Running means of the weights, which are then what is evaluated and kept.

average = WeightAverage(algorithm, decay=0.999)
average.update(step)             # after each optimiser step
with average.in_place():         # the mean in the weights' place
    …
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of the weights that are trained and of what else changes with the steps.

    Args:
        module: whose weights are averaged.
        decay: of the average, below 1; 0 for none, which leaves the weights as they are.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.mean: list[Tensor] | None = None  # begins with the first step

    def tensors(self) -> list[Tensor]:
        """Return what is averaged: weights with a gradient, and buffers of floating point."""
        weights = [parameter.data for parameter in self.module.parameters() if parameter.requires_grad]
        return weights + [buffer for buffer in self.module.buffers() if buffer.is_floating_point()]

    def begin(self) -> None:
        """Take the weights as they are for the mean, before the first step moves them."""
        if self.decay and self.mean is None:
            self.mean = [tensor.clone() for tensor in self.tensors()]

    def update(self, num_steps: int) -> None:
        """Add the weights after a step, the `num_steps`-th."""
        if self.mean is not None:
            # at first over fewer steps, so that the random weights of the start are soon forgotten, as TensorFlow's
            # ExponentialMovingAverage does where it is told the number of updates
            decay = min(self.decay, (1 + num_steps) / (10 + num_steps))
            torch._foreach_lerp_(self.mean, self.tensors(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the mean in the place of the weights, where there is one."""
        if self.mean is None:
            yield
            return
        mean, self.mean = self.mean, None  # inside, the weights are the mean
        live = self.tensors()
        trained = [tensor.clone() for tensor in live]
        torch._foreach_copy_(live, mean)
        try:
            yield
        finally:
            torch._foreach_copy_(live, trained)
            self.mean = mean

    def state(self) -> dict[str, Any]:
        """Return the trained weights, where a checkpoint holds the mean in their place."""
        return {} if self.mean is None else {"trained": [tensor.clone() for tensor in self.tensors()]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned; the module holds the mean."""
        if "trained" in state:
            live = self.tensors()
            self.mean = [tensor.clone() for tensor in live]
            for tensor, trained in zip(live, state["trained"], strict=True):
                tensor.copy_(trained)
