"""Diagonal Gaussians: sampling, densities, divergences, and the budgets that are set for a divergence.

A Gaussian is a pair of (B, D) tensors, the mean and the logarithm of the variance. Computed in float32 or more whatever
the precision of the network, because exp(logvar) overflows early in half precision.
"""

import math

import torch
from torch import Tensor

from domainbed.objectives import rows
from domainbed.objectives.precision import at_least_float32


def sample(mean: Tensor, logvar: Tensor) -> Tensor:
    """Draw z = mean + sigma * noise, noise ~ N(0, I), differentiable in mean and logvar (Kingma & Welling 2014, 2.4).

    Args:
        mean, logvar: (B, D).

    Returns:
        (B, D).
    """
    mean, logvar = at_least_float32(mean), at_least_float32(logvar)
    return mean + torch.exp(0.5 * logvar) * rows.randn_like(mean)


def log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, exp(logvar)) per dimension, in nats.

    Args:
        z, mean, logvar: (B, D).

    Returns:
        (B, D); sum over the last axis for the density of a sample.
    """
    z, mean, logvar = at_least_float32(z), at_least_float32(mean), at_least_float32(logvar)
    return -0.5 * ((z - mean).square() * (-logvar).exp() + logvar + math.log(2 * math.pi))


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) per dimension, in nats (Kingma & Welling 2014, appendix B).

    Args:
        mean, logvar: (B, D).

    Returns:
        (B, D); sum over the last axis for the divergence of a sample.
    """
    mean, logvar = at_least_float32(mean), at_least_float32(logvar)
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)


def kl(mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor) -> Tensor:
    """KL(N(mean_q, exp(logvar_q)) || N(mean_p, exp(logvar_p))) per dimension, in nats.

    Args:
        mean_q, logvar_q, mean_p, logvar_p: (B, D), or shapes that broadcast to it.

    Returns:
        (B, D); sum over the last axis for the divergence of a sample.
    """
    mean_q, logvar_q = at_least_float32(mean_q), at_least_float32(logvar_q)
    mean_p, logvar_p = at_least_float32(mean_p), at_least_float32(logvar_p)
    log_ratio = logvar_q - logvar_p
    return 0.5 * ((mean_q - mean_p).square() * (-logvar_p).exp() + log_ratio.exp() - 1.0 - log_ratio)


def free_bits(kl: Tensor, minimum: float) -> Tensor:
    """Sum over groups of max(minimum, mean KL of the group over the batch) (Kingma et al. 2016, appendix C.8).

    Clamped after the mean, so that a group costs nothing and feels nothing while its mean lies below the minimum,
    whatever single images do. The result depends on which images share the batch.

    Args:
        kl: (B, G) nats, a column per group of latent dimensions, or per dimension.
        minimum: lambda, in nats per group.

    Returns:
        () nats per sample.
    """
    return kl.mean(0).clamp(min=minimum).sum()


def capacity_penalty(kl: Tensor, capacity: Tensor | float) -> Tensor:
    """|mean over the batch of the KL - capacity|, in nats (Burgess et al. 2018, eq. 8, without its gamma).

    Args:
        kl: (B, G) nats, summed over its columns.
        capacity: () nats, the C of a step.

    Returns:
        () nats.
    """
    return (kl.sum(1).mean() - capacity).abs()
