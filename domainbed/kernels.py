"""Detours around kernels of the CPU that are slow or wrong in bf16; everything else is torch's choice."""

from functools import partial

import torch
from torch import Tensor, nn


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
