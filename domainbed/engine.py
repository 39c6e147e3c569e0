"""Device, precision and the optimiser step. The only file that knows them; accelerate does the work.

An engine is injected into an algorithm (`engine.prepare(algorithm)`), whose `update` then calls `engine.step`.
"""

import gc
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm, Minibatch, step_optimizers
from domainbed.errors import UserError

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")


class NonFiniteLoss(Exception):
    """A term of the loss is infinite or not a number. The weights have not moved.

    Attributes:
        terms: the names of the terms.
    """

    def __init__(self, terms: list[str]) -> None:
        super().__init__(f"not finite: {', '.join(terms)}")
        self.terms = terms


@contextmanager
def out_of_memory_explained(doing: str) -> Iterator[None]:
    """Turn memory that ran out, the processor's or a GPU's, into a `UserError` that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # told by its text: only a GPU's allocator has an exception of its own, the CPU's and the driver have none
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"{doing} ran out of memory ({reason}). Lower batch_size (for an evaluation --eval_batch_size, also with "
            "--resume) or image_size, or choose a smaller model; what was saved before is untouched"
        ) from None


class Engine:
    """Runs an algorithm on one device in one precision.

    Args:
        device: "auto", "cpu" or "cuda"; auto is a GPU where there is one.
        precision: "auto", "float32" or "bf16"; auto is bf16 where the hardware computes in it.

    Attributes:
        device: torch.device. precision: "float32" or "bf16", as resolved.

    Raises:
        UserError: the device or the precision is not to be had.
    """

    def __init__(self, device: str = "auto", precision: str = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("device = cuda, but torch finds no usable GPU. Use --device cpu, or install a CUDA build")
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        self.precision = resolve_precision(precision, on_cpu)
        # accelerate keeps its settings in process-wide state; several runs in one process must not inherit them
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if self.precision == "bf16" else "no")
        self.device = self.accelerator.device
        self.algorithm: Algorithm | None = None

    def describe(self) -> str:
        """Device, precision and what else decides whether a run repeats bit for bit."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
        return f"{self.device.type} ({name}), {self.precision}, {threads}"

    @out_of_memory_explained("preparing the model")
    def prepare(self, algorithm: Algorithm) -> None:
        """Move an algorithm to the device, make its optimisers, and inject this engine into it.

        Raises:
            UserError: out of memory.
        """
        algorithm.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.device.type == "cpu" and self.precision == "bf16":
            keep_tiny_convolutions_in_float32(algorithm)
        optimizers = algorithm.optimizers()
        self.module, *prepared = self.accelerator.prepare(algorithm, *optimizers.values())
        self.optimizers: dict[str, Any] = dict(zip(optimizers, prepared, strict=True))
        self.algorithm = algorithm
        algorithm.engine = self

    def release(self) -> None:
        """Forget the algorithm, so that the next one finds the memory free."""
        if self.algorithm is not None:
            self.algorithm.engine = None
        self.algorithm, self.module, self.optimizers = None, None, {}
        self.accelerator.free_memory()
        gc.collect()

    @out_of_memory_explained("a training step")
    def step(self, minibatches: list[Minibatch], unlabeled: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Take one optimiser step; return the detached terms of the loss.

        Raises:
            NonFiniteLoss: before anything moved.
            UserError: out of memory.
        """
        assert self.algorithm is not None, "prepare an algorithm first"
        losses = self.module(minibatches, unlabeled)
        finite = torch.stack([value.detach().float() for value in losses.values()]).isfinite()
        if not finite.all():
            raise NonFiniteLoss([key for key, fine in zip(losses, finite.tolist(), strict=True) if not fine])
        step_optimizers(losses, self.optimizers, self.accelerator.backward, check_gradients)
        self.algorithm.finish_step()
        return {key: value.detach() for key, value in losses.items()}

    def is_finite(self, minibatches: list[Minibatch]) -> bool:
        """Whether loss and gradients of some minibatches are finite; moves no weight. For finding a culprit."""
        assert self.algorithm is not None, "prepare an algorithm first"
        try:
            loss = self.module(minibatches)["loss"]
            parameters = [parameter for parameter in self.algorithm.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            check_gradients({"main": [gradient for gradient in gradients if gradient is not None]})
        except NonFiniteLoss:
            return False
        except (ValueError, RuntimeError):  # such as BatchNorm with a single image: nothing can be said
            return True
        return bool(loss.isfinite())

    @contextmanager
    def evaluation(self, algorithm: Algorithm, seed: int) -> Iterator[None]:
        """Evaluation mode without gradients, in the run's precision, with noise that leaves training's alone.

        Raises:
            UserError: what runs inside is out of memory.
        """
        training = algorithm.training
        algorithm.eval()
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with (
                out_of_memory_explained("an evaluation"),
                torch.no_grad(),
                self.accelerator.autocast(),
                torch.random.fork_rng(devices=devices),
            ):
                torch.manual_seed(seed)
                yield
        finally:
            algorithm.train(training)

    @out_of_memory_explained("moving images to the device")
    def to_device(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) as float32 in [0, 1] on the device, channels last.

        Raises:
            UserError: out of memory.
        """
        if self.device.type == "cuda":
            images = images.pin_memory()
        images = images.to(self.device, non_blocking=True)
        return images.to(torch.float32, memory_format=torch.channels_last).div_(255.0)

    def optimizer_state(self) -> dict[str, Any]:
        """The state of every optimiser by name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Put back what `optimizer_state` returned."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])


def check_gradients(gradients: dict[str, list[Tensor]]) -> None:
    """Raise `NonFiniteLoss` where a gradient is infinite or not a number; one number is read from the device."""
    for name, found in gradients.items():
        if found and not torch.nn.utils.get_total_norm(found).isfinite():  # one pass; a norm keeps any nan or infinity
            raise NonFiniteLoss(["the gradient" if name == "main" else f"the gradient of {name}"])


def keep_tiny_convolutions_in_float32(module: nn.Module) -> None:
    """Compute strided convolutions of images no larger than their kernel or stride in float32.

    On CPUs with bf16 units torch (2.11 to 2.15, by oneDNN) returns uninitialised memory as the weight gradient of
    kernel taps that meet nothing but padding: a 3 x 3 convolution of stride 2 on one pixel, which a ResNet-50 has for
    images of 16 px, gets gradients of 1e30 or NaN. So few pixels cost nothing in float32.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and max(part.stride) > 1:
            part.forward = partial(_convolve, part)  # type: ignore[method-assign]


def _convolve(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    tiny = min(x.shape[-2:]) <= max(*convolution.kernel_size, *convolution.stride)
    with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu") and not tiny):
        return nn.Conv2d.forward(convolution, x.float() if tiny else x)


def resolve_precision(precision: str, on_cpu: bool) -> str:
    """Return "float32" or "bf16".

    Raises:
        UserError: bf16 is asked for on a GPU that can't compute in it.
    """
    supported = cpu_has_bf16() if on_cpu else torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not on_cpu and not supported:
        raise UserError("precision = bf16, but this GPU does not compute in bf16. Use --precision float32")
    if precision == "auto":
        return "bf16" if supported else "float32"
    return precision


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AVX512-BF16, AMX, or Arm's BF16)."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux: unknown, so no
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)
