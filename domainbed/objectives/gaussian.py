"""Diagonal Gaussian posteriors: sampling and divergences.

A posterior is a pair of (B, D) tensors, the mean and the logarithm of the variance. Computed in float32 whatever the
precision of the network, because exp(logvar) overflows early in half precision.
"""

import torch
from torch import Tensor


def sample(mean: Tensor, logvar: Tensor) -> Tensor:
    """Draw z = mean + sigma * noise, noise ~ N(0, I), differentiable in mean and logvar (Kingma & Welling 2014, 2.4).

    Args:
        mean, logvar: (B, D).

    Returns:
        (B, D) float32.
    """
    mean, logvar = mean.float(), logvar.float()
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) per dimension, in nats (Kingma & Welling 2014, appendix B).

    Args:
        mean, logvar: (B, D).

    Returns:
        (B, D) float32; sum over the last axis for the divergence of a sample.
    """
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
