"""How weights move: what an algorithm's `train_step` takes its steps with.

    def train_step(self, minibatches, stepper):
        loss = …
        stepper.minimise(loss, "main")                          # one step of the optimiser "main"
        return {"loss": loss}

`Stepper` is the plain one, for tests and notebooks. That of the engine takes the same steps in the run's precision,
with its schedule, clipping and check that everything is finite. An algorithm never sees which one it is given.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Gradients = Sequence[Tensor | None]


class Stepper:
    """Takes the optimiser steps of one algorithm.

    Args:
        algorithm: whose `optimizers()` are made here.

    Attributes:
        optimizers: by name.
        taken: training steps so far, counted by whoever calls `train_step`.
    """

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm
        self.optimizers: dict[str, Optimizer] = algorithm.optimizers()
        self.taken = int(algorithm.step)

    def parameters(self, name: str = "main") -> list[Tensor]:
        """Return the parameters that an optimiser moves."""
        return parameters_of(self.optimizers[name])

    def minimise_losses(self, minibatches: Any) -> dict[str, Tensor]:
        """Take a step of the optimiser "main" on the algorithm's `losses()["loss"]`; return all of its terms.

        This is the step of an algorithm that has no `train_step` of its own, and the only one that is computed in parts
        where a run has several processes or `accumulate`.
        """
        terms: dict[str, Tensor] = self.algorithm(minibatches)
        self.minimise(terms["loss"])
        return terms

    def minimise(self, loss: Tensor, name: str = "main") -> None:
        """Take one step of an optimiser on a loss, () tensor. Only its own parameters get a gradient, and move."""
        self.apply(self.backward(loss, name), name)

    def gradients(
        self, loss: Tensor, parameters: Iterable[Tensor], create_graph: bool = False, retain_graph: bool | None = None
    ) -> list[Tensor | None]:
        """Return the gradient of a loss, () tensor, for each parameter; None where it has none. Nothing moves.

        Args:
            loss: to be differentiated.
            parameters: such as `stepper.parameters("main")`.
            create_graph: whether the gradients are to be differentiated themselves.
            retain_graph: whether the loss is to be differentiated again; as `create_graph` unless given.
        """
        return list(
            torch.autograd.grad(
                loss, list(parameters), create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
            )
        )

    def apply(self, gradients: Gradients, name: str = "main") -> None:
        """Take one step of an optimiser on these gradients, one for each of `parameters(name)`."""
        optimizer = self.optimizers[name]
        for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
            parameter.grad = _laid_out_as(parameter, gradient)
        optimizer.step()

    def restart(self, name: str = "main") -> None:
        """Let an optimiser forget its moments, as if it had just been made. Its learning rate stays on schedule."""
        self.optimizers[name].state.clear()

    def backward(self, loss: Tensor, name: str = "main") -> list[Tensor | None]:
        """Return the gradients of an optimiser's parameters, with `Tensor.backward`."""
        parameters = self.parameters(name)
        self.optimizers[name].zero_grad(set_to_none=True)
        # with several optimisers, the others' parameters are spared gradients that nobody asked for
        loss.backward(inputs=None if len(self.optimizers) == 1 else parameters)
        return [parameter.grad for parameter in parameters]


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters that an optimiser moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _laid_out_as(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    """Return a gradient in the memory format of its parameter, which fused optimisers count on."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
