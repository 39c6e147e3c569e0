"""What layers take on a CPU as torch computes them, and by the way around that the engine takes in bf16 where it pays.

    python benchmarks/kernels.py [--batch_size 66] [--quick]

GroupNorm is timed forward and backward, ReLU forward alone, on random channels-last images; in turn, and the ratio is
that of the medians. `engine.avoid_slow_kernels` goes around in bf16 for groups of fewer than `WIDE_GROUP` channels and
for ReLU; the other rows are why it does not elsewhere. Where a newer torch brings the rows to 1, it can go.

    GroupNorm C G    of C channels in G groups, as in VAE_DG's decoder, or one channel a group, as in the U-Net. Way
                     around: in NCHW order, both conversions included
    ReLU C           of C channels, in place. Way around: into another tensor
"""

import argparse
import sys
from collections.abc import Callable

import torch
from paired import guarded_by, in_turn, parser, record, seconds
from torch import Tensor
from torch.nn import functional as F

from domainbed.cli import positive
from domainbed.machine import keep_freed_memory

#: Channels, groups, and the side of the images.
GROUP_NORMS = [(16, 8, 224), (32, 8, 112), (64, 8, 56), (128, 8, 28), (64, 64, 112), (256, 256, 28)]
RELU = (64, 112)


def main() -> int:
    options = parser(__doc__, pairs=5, quick="one pair of 4 images")
    options.add_argument("--batch_size", type=positive, default=66, help="images: 66")
    return guarded_by(options, compare)


def compare(arguments: argparse.Namespace) -> int:
    """Print the table and the lines for programs; return the exit status."""
    if arguments.quick:
        vars(arguments).update(pairs=1, batch_size=min(4, arguments.batch_size))
    keep_freed_memory()
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        precision = str(dtype).removeprefix("torch.")
        for channels, groups, side in GROUP_NORMS:
            x = random_images(arguments.batch_size, channels, side, dtype)
            name = f"GroupNorm {channels} {groups}"
            rows.append((name, precision, *in_turn(*group_norms(x, groups), arguments.pairs)))
        x = random_images(arguments.batch_size, *RELU, dtype)
        ways = milliseconds(lambda x=x: F.relu_(x)), milliseconds(lambda x=x: F.relu(x))
        rows.append((f"ReLU {RELU[0]}", precision, *in_turn(*ways, arguments.pairs)))
    print(f"{arguments.batch_size} images, milliseconds, medians of {arguments.pairs} pairs")
    print(f"{'':28} {'torch':>8} {'around':>8} {'ratio':>8}")
    for name, precision, straight, around in rows:
        print(f"{name:18} {precision:9} {straight:8.1f} {around:8.1f} {straight / around:8.2f}")
    for name, precision, straight, around in rows:
        title = f"kernels/{name.replace(' ', '_')}/{precision}"
        print(record(title, straight / around, around, straight, "ms", arguments.pairs))
    return 0


def random_images(count: int, channels: int, side: int, dtype: torch.dtype) -> Tensor:
    """Return (B, C, side, side), channels last."""
    return torch.randn(count, channels, side, side).to(dtype, memory_format=torch.channels_last)


def group_norms(x: Tensor, groups: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return what times GroupNorm of some images, with weights in float32, as it is and in NCHW order."""
    weight, bias = (value.requires_grad_() for value in (torch.ones(x.shape[1]), torch.zeros(x.shape[1])))
    given, gradient = x.clone().requires_grad_(), torch.randn_like(x)

    def back(output: Tensor) -> None:
        torch.autograd.grad(output, [given, weight, bias], gradient)

    def around() -> Tensor:
        output = F.group_norm(given.contiguous(), groups, weight, bias)
        return output.contiguous(memory_format=torch.channels_last)

    return milliseconds(lambda: back(F.group_norm(given, groups, weight, bias))), milliseconds(lambda: back(around()))


def milliseconds(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that takes the time of some work; the work is done once before, so that memory has grown."""
    work()
    return lambda: seconds(work, torch.device("cpu")) * 1e3


if __name__ == "__main__":
    sys.exit(main())
