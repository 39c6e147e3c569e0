"""Images per second of a training step: VAE_DG with a ResNet-50 at 224 px, ours beside the plain way.

    python benchmarks/step.py [--batch_size 22] [--environments 3] [--compile] [--quick]

Both sides train the same network, built by the same class with random weights, on the same random images, which lie
on the device already; what differs is how. Ours is `Engine` with its automatic choices: bf16 where the hardware
computes in it, channels last, a fused optimiser, gradients checked to be finite, on a CPU freed memory kept. The
baseline is float32 as torch's defaults have it, NCHW, `torch.optim.Adam` as it is, zero_grad, backward, step, `.item()`
for each loss, in a process of its own; on a GPU with deterministic cuDNN, as DomainBed sets it. A measurement
is one step, after three that are not counted, in which memory grows most; they are taken in turn, and the ratio is that
of the medians.

The ceiling is the rate at which this machine multiplies matrices with `torch.mm`, the best of several. The operations
of a step are counted in forward and backward by torch's FlopCounterMode, which sees products and convolutions alone;
their rate divided by the ceiling of the precision that was used is the share.
"""

import argparse
import multiprocessing
import sys
from multiprocessing.connection import Connection

import torch
from paired import PlainTraining, guarded_by, in_turn, parser, record, seconds, vae_dg
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from domainbed.cli import positive
from domainbed.engine import Engine, out_of_memory_explained
from domainbed.errors import UserError

CLASSES = 5
WARM_UP = 3
#: Side of the matrices for the ceiling, and how often they are multiplied.
MATRIX, MATRIX_ON_GPU, PRODUCTS = 2048, 8192, 10


def main() -> int:
    options = parser(__doc__, pairs=5, quick="one pair, 4 images per environment")
    options.add_argument("--batch_size", type=positive, default=22, help="images per environment: 22, as VAE-DG has it")
    options.add_argument("--environments", type=positive, default=3, help="that are trained on: 3")
    options.add_argument("--model", default="resnet50", help="a timm model: resnet50")
    options.add_argument("--image_size", type=positive, default=224, help="in pixels: 224")
    options.add_argument("--compile", action="store_true", help="ours with compile=true; compiling is not timed")
    return guarded_by(options, compare)


@out_of_memory_explained("the benchmark")
def compare(arguments: argparse.Namespace) -> int:
    """Print the table and the line for programs; return the exit status."""
    if arguments.quick:
        vars(arguments).update(pairs=1, batch_size=min(4, arguments.batch_size))
    pairs = arguments.pairs
    images = arguments.batch_size * arguments.environments
    here, there = multiprocessing.get_context("spawn").Pipe()
    # a process of its own, so that neither side finds the memory that the other has kept
    worker = multiprocessing.get_context("spawn").Process(target=serve_baseline, args=(there, arguments), daemon=True)
    worker.start()
    there.close()  # the worker's alone: where it dies, `here` is told

    def baseline_says(asked: str | None = None) -> float:
        try:
            if asked:
                here.send(asked)
            return here.recv()
        except (EOFError, BrokenPipeError):
            worker.join()
            raise UserError(
                f"the process of the baseline has ended with exit status {worker.exitcode}. Where memory is short, try "
                "a smaller --batch_size"
            ) from None

    engine = Engine(compile=arguments.compile)
    algorithm = vae_dg(arguments.image_size, CLASSES, arguments.environments, model=arguments.model)
    engine.prepare(algorithm)
    minibatches = [  # as Engine.to_device gives them
        (x.contiguous(memory_format=torch.channels_last), y) for x, y in random_batches(arguments, engine.device)
    ]
    operations = baseline_says()
    for _ in range(WARM_UP):
        algorithm.update(minibatches)

    baseline, ours = in_turn(
        lambda: images / baseline_says("step"),
        lambda: images / seconds(lambda: algorithm.update(minibatches), engine.device),
        pairs,
    )
    worker.terminate()
    ceilings = {name: ceiling(dtype, engine.device) for name, dtype in DTYPES.items()}
    per_image = operations / images
    shares = {
        "ours": ours * per_image / ceilings[engine.precision],
        "baseline": baseline * per_image / ceilings["float32"],
    }
    size = arguments.image_size
    print(f"VAE_DG, {arguments.model}, {images} images of {size} px a step, on {engine.describe()}")
    print(f"{per_image / 1e9:.1f} GFLOP an image; medians of {pairs} {'pair' if pairs == 1 else 'pairs'}")
    print(f"{'':10} {'images/s':>10} {'GFLOP/s':>10} {'torch.mm':>10} {'share':>8}")
    for name, rate, precision in (("baseline", baseline, "float32"), ("ours", ours, engine.precision)):
        reached, possible = rate * per_image / 1e9, ceilings[precision] / 1e9
        print(f"{name:10} {rate:10.2f} {reached:10.1f} {possible:10.1f} {shares[name]:8.2f}  ({precision})")
    print(f"ratio {ours / baseline:.2f}")
    more = {
        "share_of_ceiling": shares["ours"],
        "baseline_share_of_ceiling": shares["baseline"],
        "ceiling_gflops": {name: found / 1e9 for name, found in ceilings.items()},
        "gflop_per_image": per_image / 1e9,
        "precision": engine.precision,
        "compiled": engine.compile,
    }
    print(record("step", ours / baseline, ours, baseline, "images/s", pairs, **more))
    return 0


def random_batches(arguments: argparse.Namespace, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return random images (B, 3, H, W) in [0, 1] and labels (B,) for each environment."""
    shape = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    return [
        (torch.rand(shape, device=device), torch.randint(CLASSES, shape[:1], device=device))
        for _ in range(arguments.environments)
    ]


def serve_baseline(connection: Connection, arguments: argparse.Namespace) -> None:
    """Tell the operations of a step of the baseline, and then, whenever asked, the seconds of another one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    algorithm = vae_dg(arguments.image_size, CLASSES, arguments.environments, model=arguments.model)
    training, minibatches = PlainTraining(algorithm, device), random_batches(arguments, device)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        for _ in range(WARM_UP - 1):
            training.step(minibatches)
        connection.send(count_operations(training, minibatches))
        while connection.recv():
            connection.send(seconds(lambda: training.step(minibatches), device))


DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def count_operations(training: PlainTraining, minibatches: list[tuple[Tensor, Tensor]]) -> float:
    """Return the floating-point operations of forward and backward; a product and its sum are two."""
    counter = FlopCounterMode(display=False)
    with counter:
        training.step(minibatches)
    return float(counter.get_total_flops())


def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of a large matrix product, the best of several."""
    side = MATRIX_ON_GPU if device.type == "cuda" else MATRIX
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * side**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(PRODUCTS))


if __name__ == "__main__":
    sys.exit(main())
