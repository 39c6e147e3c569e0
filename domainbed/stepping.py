"""The optimiser step of a run: in parts and several processes, on a schedule, clipped, and only if all is finite.

stepper = RunStepper(algorithm, accelerator, accumulate=1, steps=10_000)
terms = algorithm.train_step(minibatches, stepper)
"""

import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.fine_tuning import START
from domainbed.algorithms.stepper import Gradients, Stepper
from domainbed.errors import UserError
from domainbed.minibatch import Minibatch
from domainbed.objectives import rows, schedules


class NonFiniteLoss(Exception):
    """A term of the loss is infinite or not a number. The step that it belongs to has moved no weight.

    Attributes:
        terms: the names of the terms.
    """

    def __init__(self, terms: list[str]) -> None:
        super().__init__(f"not finite: {', '.join(terms)}")
        self.terms = terms


class RunStepper(Stepper):
    """The stepper of a run.

    Args:
        algorithm: on its device.
        accelerator: whose precision and processes compute.
        accumulate: pieces in which `minimise_losses` computes a batch, one after the other.
        steps: of the whole run, which a cosine schedule ends with.
    """

    def __init__(self, algorithm: Algorithm, accelerator: Accelerator, accumulate: int, steps: int | None) -> None:
        super().__init__(algorithm)
        self.accelerator, self.accumulate, self.steps = accelerator, accumulate, steps
        self.device = accelerator.device
        self.module = accelerator.prepare(algorithm)
        self.hparams = algorithm.hparams
        self.rates = {name: [group["lr"] for group in one.param_groups] for name, one in self.optimizers.items()}
        self.starts = {
            name: [group.get(START, 0) for group in one.param_groups] for name, one in self.optimizers.items()
        }

    def begin_step(self) -> None:
        """Set the learning rates of the step that comes.

        Raises:
            ValueError: a cosine schedule without a number of steps.
        """
        hparams = self.hparams
        if hparams.lr_schedule == "constant" and not hparams.lr_warmup and not any(map(any, self.starts.values())):
            return
        if self.steps is None and hparams.lr_schedule == "cosine":
            raise ValueError("a cosine schedule needs the number of steps of the run: engine.prepare(algorithm, steps)")
        for name, optimizer in self.optimizers.items():
            for group, rate, start in zip(optimizer.param_groups, self.rates[name], self.starts[name], strict=True):
                group["lr"] = rate * schedules.learning_rate(
                    hparams.lr_schedule, self.taken, self.steps or 0,
                    warmup=hparams.lr_warmup, step_size=hparams.lr_step_size, gamma=hparams.lr_gamma, start=start,
                )  # fmt: skip

    def minimise_losses(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        if self.accelerator.num_processes == 1 and self.accumulate == 1:
            terms = self.module(minibatches)
            gradients: Gradients = self.backward(terms["loss"])
            terms = {name: value.detach() for name, value in terms.items()}
        else:
            terms, gradients = self.in_parts(minibatches)
        self.move(gradients, "main", terms)
        return terms

    def in_parts(self, minibatches: list[Minibatch]) -> tuple[dict[str, Tensor], Gradients]:
        """Return the terms of the loss and the gradients of a batch: of all its pieces, and of all processes."""
        self.optimizers["main"].zero_grad(set_to_none=True)
        generators = self.generators()
        total: dict[str, Tensor] = {}
        for piece in range(self.accumulate):
            self.set_generators(generators)
            is_last = piece == self.accumulate - 1
            with (
                rows.part(self.part(minibatches, piece)),
                nullcontext() if is_last else self.accelerator.no_sync(self.module),
            ):
                terms = self.module(cut(minibatches, piece, self.accumulate))
                with self.without_autocast():
                    (terms["loss"] / self.accumulate).backward()
            for name, value in terms.items():
                total[name] = total.get(name, 0) + value.detach().float() / self.accumulate
        means = self.accelerator.reduce(torch.stack(list(total.values())), "mean")
        gradients = [parameter.grad for parameter in self.parameters("main")]
        return dict(zip(total, means.unbind(), strict=True)), gradients

    def minimise(self, loss: Tensor, name: str = "main") -> None:
        self.move(self.backward(loss, name), name, {"loss": loss.detach()})

    def apply(self, gradients: Gradients, name: str = "main") -> None:
        self.move(gradients, name, {})

    def gradients(self, *args: Any, **options: Any) -> list[Tensor | None]:
        with self.without_autocast():
            return super().gradients(*args, **options)

    def backward(self, loss: Tensor, name: str = "main") -> list[Tensor | None]:
        with self.without_autocast():
            return super().backward(loss, name)

    def move(self, gradients: Gradients, name: str, terms: dict[str, Tensor]) -> None:
        """Take one step of an optimiser, clipped, if gradients and terms are finite.

        Raises:
            NonFiniteLoss: they are not; nothing has moved.
        """
        norm = check_finite(terms, gradients, name)
        if self.hparams.clip_norm is not None and norm is not None:
            present = [gradient for gradient in gradients if gradient is not None]
            torch._foreach_mul_(present, (self.hparams.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        super().apply(gradients, name)
        torch.clear_autocast_cache()  # weights that were cast to bf16 are not those that the next loss is to be of

    def without_autocast(self) -> Any:
        """Autocast is for the forward pass; the way back takes the precision that each operation had there."""
        return torch.autocast(self.device.type, enabled=False)

    def part(self, minibatches: list[Minibatch], piece: int) -> rows.Part:
        """Return which rows of the whole batch, all environments joined, a piece of this process's share has."""
        process, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        found, start = [], 0
        for x, _ in minibatches:
            size = len(x) // self.accumulate
            first = start + (process * self.accumulate + piece) * size
            found.append(torch.arange(first, first + size, device=self.device))
            start += len(x) * num_processes
        return rows.Part(torch.cat(found), start, self.accelerator.gather)

    def generators(self) -> list[Any]:
        """Return the state of every generator that an algorithm may draw from."""
        states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def set_generators(self, states: list[Any]) -> None:
        """Put back what `generators` returned."""
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[3], self.device)


def check_finite(terms: dict[str, Tensor], gradients: Gradients, name: str = "main") -> Tensor | None:
    """Return the norm of the gradients, a () tensor, or None without any; one answer is read from the device.

    Raises:
        NonFiniteLoss: a term, or a gradient, is infinite or not a number.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    norm = torch.nn.utils.get_total_norm(present) if present else None  # keeps any nan or infinity
    values = [value.detach().float() for value in (*terms.values(), *([norm] if norm is not None else []))]
    finite = torch.stack(values).isfinite() if values else torch.ones(1, dtype=torch.bool)
    if not finite.all():
        names = [term for term, is_finite in zip(terms, finite.tolist(), strict=False) if not is_finite]
        raise NonFiniteLoss(names or ["the gradient" if name == "main" else f"the gradient of {name}"])
    return norm


def cut(minibatches: list[Minibatch], piece: int, pieces: int) -> list[Minibatch]:
    """Return one of several equal pieces of every environment's minibatch.

    Raises:
        UserError: a minibatch can't be cut into so many equal pieces.
    """

    def of(tensor: Tensor) -> Tensor:
        if len(tensor) % pieces:
            raise UserError(
                f"accumulate = {pieces} pieces of {len(tensor)} images are not equal. Use a batch_size that it divides"
            )
        size = len(tensor) // pieces
        return tensor[piece * size : (piece + 1) * size]

    return [minibatch.map(of) for minibatch in minibatches]
