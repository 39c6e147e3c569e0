"""Reconstruction terms: how badly an output explains an image, per sample, summed over its values.

`bernoulli_nll` takes logits, `squared_error` takes values. Targets lie in [0, 1]: this is what a data set delivers,
and outside it a cross-entropy has no minimum, so it is checked here and not guessed around.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between sigmoid(logits) and grey values in [0, 1], in nats per sample.

    For grey values this is not a likelihood: its minimum is the entropy of the target, not zero
    (Loaiza-Ganem & Cunningham 2019). It is the reconstruction term of VAE-DG (Chokuwa & Khan 2023, eq. 4).

    Args:
        logits, target: (B, ...) of one shape.

    Returns:
        (B,) float32.

    Raises:
        ValueError: the target leaves [0, 1], as an image normalised with ImageNet statistics does.
    """
    check_unit_range(target)
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return loss.flatten(1).sum(1)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences per sample.

    Half of it is the negative log-likelihood of a Gaussian of unit variance, up to a constant.

    Args:
        output, target: (B, ...) of one shape.

    Returns:
        (B,) float32.
    """
    return (output.float() - target.float()).square().flatten(1).sum(1)


def check_unit_range(target: Tensor) -> None:
    """Raise `ValueError` if a target leaves [0, 1]. Not compiled into a graph, and skipped there."""
    if torch.compiler.is_compiling():
        return
    low, high = target.detach().aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must lie in [0, 1] to be reconstructed, but these span [{low.item():.3g}, {high.item():.3g}]. "
            "Normalisation belongs into the encoder, not into the data"
        )
