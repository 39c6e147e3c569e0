"""What layers that the engine goes around take in bf16 on a CPU, as torch computes them and as the engine does.

    python benchmarks/kernels.py [--batch_size 66] [--quick]

Each layer is timed forward and backward on random channels-last images, activations forward alone; as it is, and after
`engine.avoid_weak_kernels`. They are timed in turn, and the ratio is that of the medians. Above 1 the detour pays;
where a newer torch brings a row to 1, it can go. In float32 the engine leaves layers as they are; the same detour is
timed there for comparison.

    GroupNorm C G    of C channels in G groups: layers of VAE_DG's decoder, and a U-Net's, with one channel a group
    ReLU             of 64 channels, in place; the detour writes another tensor
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable

import torch
from paired import guarded_by, in_turn, parser, record
from torch import Tensor, nn

from domainbed.cli import positive
from domainbed.engine import avoid_weak_kernels, keep_freed_memory

#: Layers, and the side of their images.
LAYERS: list[tuple[str, nn.Module, int, int]] = [
    ("GroupNorm 16 8", nn.GroupNorm(8, 16), 16, 224),
    ("GroupNorm 32 8", nn.GroupNorm(8, 32), 32, 112),
    ("GroupNorm 64 64", nn.GroupNorm(64, 64), 64, 112),
    ("GroupNorm 256 256", nn.GroupNorm(256, 256), 256, 28),
    ("ReLU", nn.ReLU(inplace=True), 64, 112),
]


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
        for name, layer, channels, side in LAYERS:
            x = torch.randn(arguments.batch_size, channels, side, side).to(dtype, memory_format=torch.channels_last)
            learns = isinstance(layer, nn.GroupNorm)
            sides = [timed_on(x, one, learns) for one in (copy.deepcopy(layer), around(layer, dtype))]
            rows.append((name, str(dtype).removeprefix("torch."), *in_turn(*sides, arguments.pairs)))
    print(f"{arguments.batch_size} images, milliseconds, medians of {arguments.pairs} pairs")
    print(f"{'':28} {'torch':>8} {'detour':>8} {'ratio':>8}")
    for name, dtype, torchs, ours in rows:
        print(f"{name:18} {dtype:9} {torchs:8.1f} {ours:8.1f} {torchs / ours:8.2f}")
    for name, dtype, torchs, ours in rows:
        title = f"kernels/{name.replace(' ', '_')}/{dtype}"
        print(record(title, torchs / ours, ours, torchs, "ms", arguments.pairs))
    return 0


def around(layer: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a copy of a layer that takes the detour, in float32 too."""
    layer = copy.deepcopy(layer)
    avoid_weak_kernels(layer)
    if not isinstance(layer, nn.GroupNorm) or dtype == torch.bfloat16:
        return layer
    return lambda x: layer(x.contiguous()).contiguous(memory_format=torch.channels_last)


def timed_on(x: Tensor, layer: Callable[[Tensor], Tensor], learns: bool) -> Callable[[], float]:
    """Return a function that takes the milliseconds of a layer on some images, backward too where it learns."""
    given, gradient = x.clone().requires_grad_(learns), torch.randn_like(x)

    def once() -> float:
        given.grad = None
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            output = layer(given)
        if learns:
            output.backward(gradient)
        return (time.perf_counter() - started) * 1e3

    once()  # until what it needs is in memory
    return once


if __name__ == "__main__":
    sys.exit(main())
