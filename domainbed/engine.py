"""An algorithm on one device in one precision, alone or with other processes; accelerate does the work.

Its step is in `stepping`, the running mean of its weights in `averages`, detours around slow kernels in `kernels`, and
how the precision is chosen in `device`.

    engine = Engine("auto", "auto")
    engine.prepare(algorithm, steps=10_000)
    losses = algorithm.update(minibatches)         # calls engine.step

The batch of a step may be computed in parts: each of several processes (started by torchrun) has its share of every
environment's images, and cuts that into `accumulate` pieces. The step is the same in however many parts (`rows`).
"""

import gc
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor

from domainbed.algorithms.base import Algorithm
from domainbed.averages import WeightAverage
from domainbed.device import check_compiler, convolves_in_tf32, resolve_precision
from domainbed.errors import UserError
from domainbed.kernels import avoid_slow_kernels, keep_tiny_convolutions_in_float32
from domainbed.machine import check_launcher, keep_freed_memory
from domainbed.minibatch import Minibatch
from domainbed.stepping import NonFiniteLoss, RunStepper, check_finite, cut

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|_ALLOC_FAILED")
#: What NCCL says when two processes have one GPU.
ONE_GPU = re.compile("Duplicate GPU")
#: What gloo and NCCL say when another process has gone.
PARTNER_LOST = re.compile("[Cc]onnection (closed|reset|refused)|by peer|Broken pipe|NCCL|gloo|[Tt]imed out")
Result = TypeVar("Result")
#: That processes wait for each other: while one decodes, the others have nothing to do. One that ends is noticed at
#: once.
WAIT = timedelta(days=1)


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
        self.stepper: RunStepper
        self.average: WeightAverage

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
        with self.alike():
            self.refuse_parts(algorithm)
            self.refuse_compiling(algorithm)
        if self.compile:
            algorithm.compile()
        self.stepper = RunStepper(algorithm, self.accelerator, self.accumulate, steps)
        self.average = WeightAverage(algorithm, algorithm.hparams.weight_ema)
        self.algorithm, algorithm.engine = algorithm, self

    def refuse_parts(self, algorithm: Algorithm) -> None:
        """Raise `UserError` where a batch is to be computed in parts and would not be the same batch."""
        why = None
        if algorithm.batch_coupled:
            why = "a term of its loss depends on the whole batch (free bits, a capacity, batch statistics, batch Dice)"
        elif type(algorithm).train_step is not Algorithm.train_step:
            why = "it takes its optimiser steps itself, on whole batches (train_step)"
        elif len(algorithm.optimizers()) > 1:
            why = "it has several optimisers"
        if self.num_parts > 1 and why:
            raise UserError(
                f"{algorithm.name or type(algorithm).__name__} can't compute a step in {self.num_parts} parts "
                f"(processes: {self.num_processes}, accumulate = {self.accumulate}): {why}. Use one process and "
                "accumulate=1, or a loss without that term"
            )

    def refuse_compiling(self, algorithm: Algorithm) -> None:
        """Raise `UserError` where compiled code could not do what the algorithm asks for."""
        if self.compile and algorithm.second_order:
            raise UserError(
                f"compile = true, but {algorithm.name or type(algorithm).__name__} differentiates gradients, which "
                "torch.compile does not support. Leave compile out"
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
            self.algorithm = None
            del self.stepper, self.average
        self.accelerator.free_memory()
        gc.collect()
        torch.cuda.empty_cache()

    @out_of_memory_explained("a training step")
    def step(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """Take one step of the algorithm; return its detached terms, of a batch in parts the means over all parts.

        Args:
            minibatches: this process's share of every environment's batch, of a size that `accumulate` divides.

        Raises:
            NonFiniteLoss: before any weight moved; in an algorithm that takes several steps, before that one did.
            UserError: out of memory, or another process has ended.
            ValueError: a cosine schedule, and `prepare` was not told the number of steps.
        """
        assert self.algorithm is not None, "prepare an algorithm first"
        self.stepper.begin_step()
        self.average.begin()
        with self.partners_explained(), self.accelerator.autocast():
            terms = self.algorithm.train_step(minibatches, self.stepper)
        self.algorithm.finish_step()
        self.stepper.taken += 1
        self.average.update(self.stepper.taken)
        return {name: value.detach() for name, value in terms.items()}

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
                check_finite({"loss": loss}, list(gradients))
        except NonFiniteLoss:
            return False
        except (ValueError, RuntimeError):
            return None
        return True

    # --- what a checkpoint holds beside the weights ---

    def state(self) -> dict[str, Any]:
        """Return what a run needs to go on beside the weights that are evaluated."""
        assert self.algorithm is not None, "prepare an algorithm first"
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.stepper.optimizers.items()}
        own = self.algorithm.training_state()
        return {"optimizers": optimizers} | self.average.state() | ({"algorithm": own} if own else {})

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned; the algorithm holds the weights that are evaluated.

        Raises:
            KeyError, ValueError: it is of another algorithm or optimiser.
        """
        assert self.algorithm is not None, "prepare an algorithm first"
        for name, optimizer in self.stepper.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.stepper.taken = int(self.algorithm.step)
        self.average.load_state(state)
        if "algorithm" in state:
            self.algorithm.load_training_state(state["algorithm"])

    def stop_averaging(self) -> None:
        """Evaluate the weights as they are from now on, such as those of a checkpoint."""
        assert self.algorithm is not None, "prepare an algorithm first"
        self.average = WeightAverage(self.algorithm, 0.0)

    # --- evaluation ---

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
        evaluated = self.average.in_place() if algorithm is self.algorithm else nullcontext()
        try:
            with (
                out_of_memory_explained("an evaluation"),
                self.partners_explained(),
                torch.no_grad(),
                evaluated,
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
            for tensor in [*buffers, *(self.average.mean or ())]:
                tensor.copy_(broadcast(tensor))

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
