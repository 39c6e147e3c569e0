"""Reconstruction losses that are no likelihoods: they compare an image with values, and know no distribution.

`squared_error`, `bernoulli_nll` and everything that is -log p(x|z) are in `likelihoods`.
"""

import torch
from torch import Tensor

from domainbed.objectives import likelihoods
from domainbed.objectives.precision import at_least_float32

#: Keras' `epsilon()`: how far its cross-entropy keeps a prediction away from 0 and 1.
KERAS_EPSILON = 1e-7


def clipped_bce(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between values clipped to [1e-7, 1 - 1e-7] and grey values: Keras' `binary_crossentropy`.

        p = min(max(output, 1e-7), 1 - 1e-7),  loss = sum of -target log p - (1 - target) log(1 - p)

    The output is taken for a probability whether it is one or not. Where it lies outside of the bounds, as a linear
    output may and a ReLU's zeros do, the loss is large and the gradient is exactly zero.

    Args:
        output: (B, ...), any values. target: (B, ...) in [0, 1].

    Returns:
        (B,) nats, float32 or more.

    Raises:
        ValueError: the target leaves [0, 1]; see `likelihoods.check_unit_range`.
    """
    likelihoods.check_unit_range(target)
    p = at_least_float32(output).clamp(KERAS_EPSILON, 1 - KERAS_EPSILON)
    target = target.to(p.dtype)
    return -(target * p.log() + (1 - target) * torch.log1p(-p)).flatten(1).sum(1)


def log_cosh(output: Tensor, target: Tensor) -> Tensor:
    """Sum of log cosh(output - target) per sample: half a square for small differences, the difference for large ones.

    With values in [0, 1] all differences are small; `likelihoods.LogCosh` has a scale, and the normaliser.

    Args:
        output, target: (B, ...) of one shape.

    Returns:
        (B,), float32 or more.
    """
    return likelihoods.log_cosh(at_least_float32(output) - at_least_float32(target)).flatten(1).sum(1)
