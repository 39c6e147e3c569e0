"""Device, precision, processes, compilation and the optimiser step. The only file that knows them; accelerate does the
work.

    engine = Engine("auto", "auto")
    engine.prepare(algorithm, steps=10_000)
    losses = algorithm.update(minibatches)         # calls engine.step

The batch of a step may be computed in parts: each of several processes (started by torchrun) has its share of every
environment's images, and cuts that into `accumulate` pieces. The step is the same in however many parts (`rows`).
"""

import gc
import json
import os
import platform
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm, Gradients, Minibatch, move, parameters_of, take_gradients
from domainbed.algorithms.fine_tuning import START
from domainbed.errors import UserError
from domainbed.machine import check_launcher, default_cache_dir, keep_freed_memory
from domainbed.objectives import rows, schedules

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|_ALLOC_FAILED")
#: What NCCL says when two processes have one GPU.
ONE_GPU = re.compile("Duplicate GPU")
#: What gloo and NCCL say when another process has gone.
PARTNER_LOST = re.compile("[Cc]onnection (closed|reset|refused)|by peer|Broken pipe|NCCL|gloo|[Tt]imed out")
Result = TypeVar("Result")
#: That processes wait for each other: while one decodes, the others have nothing to do. One that ends is noticed at
#: once.
WAIT = timedelta(days=1)


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
            f"{doing} ran out of memory ({reason}). Compute each step in pieces with accumulate=2 or more, lower "
            "batch_size (for an evaluation --eval_batch_size, also with --resume) or image_size, or choose a smaller "
            "model; what was saved before is untouched"
        ) from None


class Engine:
    """Runs an algorithm on one device in one precision, alone or with other processes.

    Args:
        device: "auto", "cpu" or "cuda"; auto is a GPU where there is one.
        precision: "auto", "float32" or "bf16"; auto is bf16 where the hardware computes in it and is faster so.
        accumulate: pieces in which the batch of a step is computed, one after the other.
        compile: whether the loss is compiled by torch.compile; its random numbers are then others, of the same seed.
        deterministic: whether kernels that add in varying order are refused; on a CPU there are none in use here.

    Attributes:
        device: torch.device. precision: "float32" or "bf16", as resolved.
        process: number of this process. num_processes: how many there are.

    Raises:
        UserError: the device or the precision is not to be had.
    """

    def __init__(
        self,
        device: str = "auto",
        precision: str = "auto",
        accumulate: int = 1,
        compile: bool = False,
        deterministic: bool = False,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("device = cuda, but torch finds no usable GPU. Use --device cpu, or install a CUDA build")
        check_launcher()
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]  # a run's settings are its own, and are recorded
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        if compile:
            check_compiler(on_cpu)
        if on_cpu:
            keep_freed_memory()
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = not deterministic
        # accelerate keeps its settings in process-wide state; several runs in one process must not inherit them
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            processes = PartialState(cpu=on_cpu, timeout=WAIT)
        except torch.distributed.DistError as error:
            where = f"{os.environ.get('MASTER_ADDR')}, port {os.environ.get('MASTER_PORT')}"
            raise UserError(
                f"the processes of this run can't meet at {where} (MASTER_ADDR, MASTER_PORT): "
                f"{str(error).strip().partition(chr(10))[0][:200]}. Choose a free port, with torchrun --master_port"
            ) from None
        self.process, self.num_processes = processes.process_index, processes.num_processes
        # one process measures for all, on a machine where the others are quiet
        found = [resolve_precision(precision, on_cpu) if self.is_main else ""]
        if self.num_processes > 1:
            with self.partners_explained():
                found = broadcast_object_list(found)
        self.precision: str = found[0]
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if self.precision == "bf16" else "no")
        self.device = self.accelerator.device
        self.accumulate, self.compile, self.deterministic = accumulate, compile, deterministic
        self.algorithm: Algorithm | None = None
        self.average: list[Tensor] | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.process == 0

    @property
    def num_parts(self) -> int:
        """In how many parts the batch of a step is computed."""
        return self.num_processes * self.accumulate

    def describe(self) -> str:
        """Device, precision and what else decides whether a run repeats bit for bit."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        in_tf32 = self.device.type == "cuda" and self.precision == "float32" and convolves_in_tf32()
        precision = f"{self.precision}{' (convolutions in TF32)' * in_tf32}"
        parts = [f"{self.device.type} ({name})", precision, f"{torch.get_num_threads()} threads"]
        parts += [f"{self.num_processes} processes"] * (self.num_processes > 1)
        parts += [f"{self.accumulate} pieces"] * (self.accumulate > 1) + ["compiled"] * self.compile
        parts += ["deterministic"] * self.deterministic
        return ", ".join([*parts, f"torch {torch.__version__}"])

    # --- an algorithm and its step ---

    @out_of_memory_explained("preparing the model")
    def prepare(self, algorithm: Algorithm, steps: int | None = None) -> None:
        """Move an algorithm to the device, make its optimisers, and inject this engine into it.

        Args:
            algorithm: to be trained.
            steps: of the whole run, which a cosine schedule of the learning rate ends with; not needed to evaluate.

        Raises:
            UserError: out of memory; or the batch is to be computed in parts, and the algorithm can't be.
        """
        algorithm.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.device.type == "cpu" and self.precision == "bf16":
            keep_tiny_convolutions_in_float32(algorithm)
            if not self.compile:  # which writes kernels of its own
                avoid_slow_kernels(algorithm)
        optimizers = algorithm.optimizers()
        with self.alike():
            self.refuse_parts(algorithm, len(optimizers))
        if self.compile:
            algorithm.compile()
        self.module, *prepared = self.accelerator.prepare(algorithm, *optimizers.values())
        self.optimizers: dict[str, Any] = dict(zip(optimizers, prepared, strict=True))
        self.rates = {name: [group["lr"] for group in one.param_groups] for name, one in self.optimizers.items()}
        self.starts = {
            name: [group.get(START, 0) for group in one.param_groups] for name, one in self.optimizers.items()
        }
        self.algorithm, self.steps, self.taken = algorithm, steps, int(algorithm.step)
        self.average = None  # begins with the first step
        algorithm.engine = self

    def refuse_parts(self, algorithm: Algorithm, num_optimizers: int) -> None:
        """Raise `UserError` where a batch is to be computed in parts and would not be the same batch."""
        why = None
        if algorithm.batch_coupled:
            why = "a term of its loss depends on the whole batch (free bits, a capacity, batch statistics, batch Dice)"
        elif num_optimizers > 1:
            why = "it has several optimisers"
        if self.num_parts > 1 and why:
            raise UserError(
                f"{algorithm.name or type(algorithm).__name__} can't compute a step in {self.num_parts} parts "
                f"(processes: {self.num_processes}, accumulate = {self.accumulate}): {why}. Use one process and "
                "accumulate=1, or a loss without that term"
            )

    def check_batch_size(self, batch_size: int) -> None:
        """Raise `UserError` where an environment's batch can't be cut into equal parts."""
        if batch_size % self.num_parts:
            raise UserError(
                f"batch_size = {batch_size} can't be cut into {self.num_parts} equal parts (processes: "
                f"{self.num_processes}, accumulate = {self.accumulate}). Use "
                f"batch_size={max(1, round(batch_size / self.num_parts)) * self.num_parts}"
            )

    def release(self) -> None:
        """Forget the algorithm, so that the next one finds the memory free."""
        if self.algorithm is not None:
            self.algorithm.engine = None
        self.algorithm, self.module, self.optimizers, self.average = None, None, {}, None
        self.accelerator.free_memory()
        gc.collect()
        torch.cuda.empty_cache()

    @out_of_memory_explained("a training step")
    def step(self, minibatches: list[Minibatch], unlabeled: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Take one optimiser step; return the detached terms of the loss, means over all parts.

        Args:
            minibatches: this process's share of every environment's batch, of a size that `accumulate` divides.
            unlabeled: likewise.

        Raises:
            NonFiniteLoss: before any weight moved.
            UserError: out of memory, or another process has ended.
            ValueError: a cosine schedule, and `prepare` was not told the number of steps.
        """
        assert self.algorithm is not None, "prepare an algorithm first"
        with self.partners_explained():
            losses, gradients = self.compute(minibatches, unlabeled)
        norms = check_finite(losses, gradients)
        hparams = self.algorithm.hparams
        if hparams.clip_norm is not None:
            for name, norm in norms.items():
                present = [one for one in gradients[name] if one is not None]
                torch._foreach_mul_(present, (hparams.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        if hparams.lr_schedule != "constant" or hparams.lr_warmup or any(map(any, self.starts.values())):
            self.set_rates()
        if hparams.weight_ema and self.average is None:
            self.average = [one.clone() for one in self.averaged_tensors()]
        move(gradients, self.optimizers)
        self.algorithm.finish_step()
        self.taken += 1
        if self.average is not None:
            # at first over fewer steps, so that the random weights of the start are soon forgotten, as TensorFlow's
            # ExponentialMovingAverage does where it is told the number of updates
            decay = min(hparams.weight_ema, (1 + self.taken) / (10 + self.taken))
            torch._foreach_lerp_(self.average, self.averaged_tensors(), 1 - decay)
        return losses

    def set_rates(self) -> None:
        """Set the learning rate of the step that comes."""
        assert self.algorithm is not None, "prepare an algorithm first"
        hparams = self.algorithm.hparams
        if self.steps is None and hparams.lr_schedule == "cosine":
            raise ValueError("a cosine schedule needs the number of steps of the run: engine.prepare(algorithm, steps)")
        for name, optimizer in self.optimizers.items():
            for group, rate, start in zip(optimizer.param_groups, self.rates[name], self.starts[name], strict=True):
                group["lr"] = rate * schedules.learning_rate(
                    hparams.lr_schedule, self.taken, self.steps or 0,
                    warmup=hparams.lr_warmup, step_size=hparams.lr_step_size, gamma=hparams.lr_gamma, start=start,
                )  # fmt: skip

    def compute(
        self, minibatches: list[Minibatch], unlabeled: list[Tensor] | None
    ) -> tuple[dict[str, Tensor], Gradients]:
        """Return the terms of the loss and the gradients of a batch: of all its pieces, and of all processes."""
        if self.num_parts == 1:
            losses = self.module(minibatches, unlabeled)
            gradients = take_gradients(losses, self.optimizers, self.accelerator.backward)
            return {name: value.detach() for name, value in losses.items()}, gradients
        ((optimizer_name, optimizer),) = self.optimizers.items()  # several are refused
        optimizer.zero_grad(set_to_none=True)
        generators = self.generators()
        total: dict[str, Tensor] = {}
        for piece in range(self.accumulate):
            self.set_generators(generators)
            is_last = piece == self.accumulate - 1
            with (
                rows.part(self.part(minibatches, piece)),
                nullcontext() if is_last else self.accelerator.no_sync(self.module),
            ):
                losses = self.module(*(cut(one, piece, self.accumulate) for one in (minibatches, unlabeled)))
                self.accelerator.backward(losses["loss"] / self.accumulate)
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach().float() / self.accumulate
        means = self.accelerator.reduce(torch.stack(list(total.values())), "mean")
        losses = dict(zip(total, means.unbind(), strict=True))
        return losses, {optimizer_name: [parameter.grad for parameter in parameters_of(optimizer)]}

    def part(self, minibatches: list[Minibatch], piece: int) -> rows.Part:
        """Return which rows of the whole batch, all environments joined, a piece of this process's share has."""
        found, start = [], 0
        for x, _ in minibatches:
            size = len(x) // self.accumulate
            first = start + (self.process * self.accumulate + piece) * size
            found.append(torch.arange(first, first + size, device=self.device))
            start += len(x) * self.num_processes
        return rows.Part(torch.cat(found), start, self.accelerator.gather)

    def generators(self) -> list[Any]:
        """The state of every generator that an algorithm may draw from."""
        states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def set_generators(self, states: list[Any]) -> None:
        """Put back what `generators` returned."""
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[3], self.device)

    def is_finite(self, minibatches: list[Minibatch]) -> bool | None:
        """Whether loss and gradients of some minibatches are finite; moves no weight. For finding a culprit.

        None where they can't be computed, such as BatchNorm of a single image.
        """
        assert self.algorithm is not None, "prepare an algorithm first"
        try:
            for piece in range(self.accumulate):
                loss = self.algorithm(cut(minibatches, piece, self.accumulate))["loss"]
                parameters = [parameter for parameter in self.algorithm.parameters() if parameter.requires_grad]
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                check_finite({"loss": loss}, {"main": list(gradients)})
        except NonFiniteLoss:
            return False
        except (ValueError, RuntimeError):
            return None
        return True

    # --- the weights that are judged ---

    def averaged_tensors(self) -> list[Tensor]:
        """Weights that are trained, and what else changes with the steps: the tensors that `weight_ema` averages."""
        assert self.algorithm is not None, "prepare an algorithm first"
        weights = [one.data for one in self.algorithm.parameters() if one.requires_grad]
        return weights + [one for one in self.algorithm.buffers() if one.is_floating_point()]

    @contextmanager
    def judged_weights(self) -> Iterator[None]:
        """Have the running mean of the weights in the algorithm's place, where there is one."""
        if self.average is None:
            yield
            return
        average, self.average = self.average, None  # inside, the weights are what is judged
        live = self.averaged_tensors()
        trained = [one.clone() for one in live]
        torch._foreach_copy_(live, average)
        try:
            yield
        finally:
            torch._foreach_copy_(live, trained)
            self.average = average

    def state(self) -> dict[str, Any]:
        """What a run needs to go on beside the weights that are judged."""
        found: dict[str, Any] = {"optimizers": {name: one.state_dict() for name, one in self.optimizers.items()}}
        return found if self.average is None else found | {"trained": [one.clone() for one in self.averaged_tensors()]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned; the algorithm holds the weights that are judged.

        Raises:
            KeyError, ValueError: it is of another algorithm or optimiser.
        """
        assert self.algorithm is not None, "prepare an algorithm first"
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.taken = int(self.algorithm.step)
        if "trained" in state:
            live = self.averaged_tensors()
            self.average = [one.clone() for one in live]
            for one, trained in zip(live, state["trained"], strict=True):
                one.copy_(trained)

    def stop_averaging(self) -> None:
        """Judge the weights as they are from now on, such as those of a checkpoint."""
        self.average = None

    @contextmanager
    def evaluation(self, algorithm: Algorithm, seed: int) -> Iterator[None]:
        """Evaluation mode without gradients, in the run's precision, with noise that leaves training's alone.

        Of the algorithm that is trained, the weights are those that are judged. cuDNN chooses its kernels by rule, not
        by trying them: batches have many sizes here, and figures must not depend on which kernel was quicker.

        Raises:
            UserError: what runs inside is out of memory, or another process has ended.
        """
        training, benchmark = algorithm.training, torch.backends.cudnn.benchmark
        algorithm.eval()
        torch.backends.cudnn.benchmark = False
        devices = [self.device] if self.device.type == "cuda" else []
        judged = self.judged_weights() if algorithm is self.algorithm else nullcontext()
        try:
            with (
                out_of_memory_explained("an evaluation"),
                self.partners_explained(),
                torch.no_grad(),
                judged,
                self.accelerator.autocast(),
                torch.random.fork_rng(devices=devices),
            ):
                torch.manual_seed(seed)
                yield
        finally:
            algorithm.train(training)
            torch.backends.cudnn.benchmark = benchmark

    @out_of_memory_explained("moving images to the device")
    def to_device(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) as float32 in [0, 1] on the device, channels last.

        Floats, which are vectors (B, F), keep their values.

        Raises:
            UserError: out of memory.
        """
        if self.device.type == "cuda" and not images.is_pinned():
            images = images.pin_memory()
        images = images.to(self.device, non_blocking=True)
        if images.is_floating_point():  # vectors: there is no byte to be scaled
            return images.float()
        return images.to(torch.float32, memory_format=torch.channels_last).div_(255.0)

    # --- the other processes ---

    def share_statistics(self) -> None:
        """Give all processes the main one's statistics of BatchNorm, which is what it saves."""
        if self.num_processes == 1 or self.algorithm is None:
            return
        with self.partners_explained():
            buffers = [one for one in self.algorithm.buffers() if one.is_floating_point()]
            for one in [*buffers, *(self.average or ())]:
                one.copy_(broadcast(one))

    def on_main(self, function: Callable[[], Result]) -> Result | None:
        """Call a function in the main process while the others wait; where it fails by a user's mistake, all end.

        Raises:
            UserError: of the function, in every process.
        """
        result, failure = None, None
        if self.is_main:
            try:
                result = function()
            except UserError as error:
                failure = error
        with self.partners_explained():
            (message,) = broadcast_object_list([None if failure is None else str(failure)])
        if failure is not None:
            raise failure
        if message is not None:
            with self.alike():
                raise UserError(message)
        return result

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Inside, a user's mistake is met by every process: the main one alone says it."""
        try:
            yield
        except UserError as error:
            error.said = not self.is_main
            raise

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        if self.num_processes == 1:
            return flag
        with self.partners_explained():
            return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device)) > 0)

    def agreed(self, flag: bool) -> bool:
        """Whether it is true in the main process, whatever the others see of the disk."""
        return self.any(flag and self.is_main)

    def gathered(self, objects: list[Any]) -> list[Any]:
        """Return the objects of all processes, in the order of their numbers."""
        if self.num_processes == 1:
            return objects
        with self.partners_explained():
            return gather_object(objects)

    @contextmanager
    def partners_explained(self) -> Iterator[None]:
        """Turn what fails because another process has ended into a `UserError`; that process says why it did.

        So is what NCCL says of memory that it lacks, and of two processes on one GPU.
        """
        try:
            yield
        except RuntimeError as error:
            if self.num_processes == 1:
                raise
            if OUT_OF_MEMORY.search(str(error)):
                with out_of_memory_explained("computing in several processes"):
                    raise
            if ONE_GPU.search(str(error)):
                raise UserError(
                    f"two of {self.num_processes} processes have one GPU, and each needs one of its own. Start as many "
                    "as there are GPUs, or compute on the processor with --device cpu"
                ) from None
            if not PARTNER_LOST.search(str(error)):
                raise
            reason = str(error).strip().partition("\n")[0][:200]
            raise UserError(
                f"another process of this run has ended or does not answer ({reason}); its own message says why. Go on "
                "with --resume, or start again if nothing was saved yet"
            ) from None


def cut(batches: Any, piece: int, pieces: int) -> Any:
    """Return one of several equal pieces of every environment's batch: pairs (x, y), tensors, or None.

    Raises:
        UserError: a batch can't be cut into so many equal pieces.
    """
    if batches is None:
        return None

    def of(one: Tensor) -> Tensor:
        if len(one) % pieces:
            raise UserError(
                f"accumulate = {pieces} pieces of {len(one)} images are not equal. Use a batch_size that it divides"
            )
        size = len(one) // pieces
        return one[piece * size : (piece + 1) * size]

    return [tuple(map(of, one)) if isinstance(one, (tuple, list)) else of(one) for one in batches]


def check_finite(losses: dict[str, Tensor], gradients: Gradients) -> dict[str, Tensor]:
    """Return the norm of the gradients of each optimiser, () tensors; one answer is read from the device.

    Raises:
        NonFiniteLoss: a term of the loss, or a gradient, is infinite or not a number.
    """
    # one pass; a norm keeps any nan or infinity
    found = {name: [one for one in several if one is not None] for name, several in gradients.items()}
    norms = {name: torch.nn.utils.get_total_norm(several) for name, several in found.items() if several}
    finite = torch.stack([one.detach().float() for one in (*losses.values(), *norms.values())]).isfinite()
    if not finite.all():
        fine = finite.tolist()
        terms = [name for name, one in zip(losses, fine, strict=False) if not one]
        raise NonFiniteLoss(
            terms
            or [
                "the gradient" if name == "main" else f"the gradient of {name}"
                for name, one in zip(norms, fine[len(losses) :], strict=True)
                if not one
            ]
        )
    return norms


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
        return type(convolution).forward(convolution, x.float() if tiny else x)  # timm's subclasses have their own


#: GroupNorm of at least so many channels a group is faster in channels-last order in bf16 (`benchmarks/kernels.py`).
WIDE_GROUP = 8


def avoid_slow_kernels(module: nn.Module) -> None:
    """Compute GroupNorm of narrow groups in NCHW order where it is in bf16, and ReLU not in place.

    torch's channels-last GroupNorm goes back through the groups of each pixel one by one, and its bf16 kernels that
    write a large tensor into itself take twice as long as those that write another (docs/performance.md, measured on a
    Xeon with torch 2.15).
    """
    for part in module.modules():
        if isinstance(part, nn.GroupNorm) and part.num_channels < WIDE_GROUP * part.num_groups:
            part.forward = partial(_normalise, part)  # type: ignore[method-assign]
        elif isinstance(part, nn.ReLU):  # others, such as LeakyReLU, would keep another tensor for the way back
            part.inplace = False


def _normalise(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    if x.dtype != torch.bfloat16 or x.ndim != 4:
        return type(norm).forward(norm, x)
    return type(norm).forward(norm, x.contiguous()).contiguous(memory_format=torch.channels_last)


def resolve_precision(precision: str, on_cpu: bool) -> str:
    """Return "float32" or "bf16".

    Raises:
        UserError: bf16 is asked for on a GPU that can't compute in it.
    """
    supported = cpu_has_bf16() if on_cpu else torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not on_cpu and not supported:
        raise UserError("precision = bf16, but this GPU does not compute in bf16. Use --precision float32")
    if precision == "auto":
        return "bf16" if supported and bf16_pays(torch.device("cpu" if on_cpu else "cuda")) else "float32"
    return precision


def check_compiler(on_cpu: bool) -> None:
    """Raise `UserError` where torch.compile lacks the compiler of what it writes: C++ for a CPU, C for a GPU."""
    variable, usual = ("CXX", ["g++"]) if on_cpu else ("CC", ["gcc", "clang"])
    names = [os.environ[variable]] if variable in os.environ else usual
    if not any(map(shutil.which, names)):
        what = "a C++ compiler for the processor" if on_cpu else "a C compiler for the GPU"
        raise UserError(
            f"compile = true needs {what}, and there is no {' or '.join(map(repr, names))}. Install one, such as "
            f"{usual[0]}, name it in ${variable}, or leave compile out"
        )


def convolves_in_tf32() -> bool:
    """Whether the GPU computes convolutions of float32 with 10 bits of mantissa, torch's default."""
    try:
        return torch.cuda.is_tf32_supported() and torch.backends.cudnn.allow_tf32
    except RuntimeError:  # where the newer switch was used, torch refuses to read the older one
        return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AVX512-BF16, AMX, or Arm's BF16)."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_cpuinfo().split())


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: unknown
        return ""


def bf16_pays(device: torch.device) -> bool:
    """Whether convolutions are faster in bf16 than in float32; measured once per machine, and remembered.

    `precision.json` in the folder for decoded images has the answer by processor, number of threads and version of
    torch. Delete it to have it measured again.
    """
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {_NUM_IMAGES['cuda']} images"
    else:
        model = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
        name = f"{model[1] if model else platform.machine()}, {torch.get_num_threads()} threads"
    key, path = f"{name}, torch {torch.__version__}", default_cache_dir() / "precision.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(known, dict) or key not in known:
        seconds = {kind: _seconds_of_convolutions(device, kind == "bf16") for kind in ("float32", "bf16")}
        known = (known if isinstance(known, dict) else {}) | {key: seconds}
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(known, indent=1), encoding="utf-8")
            os.replace(draft, path)
    return bool(known[key]["bf16"] < known[key]["float32"])


#: Of so many images: few don't keep a GPU busy, and starting kernels would be what is timed.
_NUM_IMAGES = {"cpu": 4, "cuda": 64}


def _seconds_of_convolutions(device: torch.device, in_bf16: bool) -> float:
    """Return the least time of some repetitions of convolutions as a ResNet has them, forward and backward."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        layers = [nn.Conv2d(64, 128, 1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 64, 1)]
        network = nn.Sequential(*layers).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(_NUM_IMAGES[device.type], 64, 56, 56, device=device).to(memory_format=torch.channels_last)
    times = []
    for _ in range(5):
        _synchronize(device)
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            loss = network(x).float().square().mean()
        loss.backward()
        _synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
