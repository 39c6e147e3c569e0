"""Penalties on features that differ between environments. Each compares two environments, in float32 or more.

    pairs = mean_over_pairs(coral, [features_of_a, features_of_b, features_of_c])      # (), 0 for equal distributions

They take features (N, F) of one environment and (M, F) of another; whatever gives features can be penalised.
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from domainbed.objectives.precision import at_least_float32


def coral(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference of the means, plus that of the covariances.

    Sun & Saenko 2016, "Deep CORAL" (arXiv 1607.01719), eq. 1 and 2, has the covariances alone, over 4 F^2. The form
    here is that of DomainBed, which published tables use: both terms, each a mean over its entries.

    Args:
        first, second: features (N, F) and (M, F); N and M of 2 or more.

    Returns:
        () tensor.
    """
    with torch.autocast(first.device.type, enabled=False):  # covariances in bf16 would be rounding
        (mean, covariance), (other_mean, other_covariance) = (_moments(at_least_float32(x)) for x in (first, second))
    return (mean - other_mean).square().mean() + (covariance - other_covariance).square().mean()


def mean_over_pairs(penalty: Callable[[Tensor, Tensor], Tensor], features: Sequence[Tensor]) -> Tensor:
    """Return the mean of a penalty over all pairs of environments, () tensor.

    Args:
        penalty: of two environments' features.
        features: (N_e, F) of two environments or more.
    """
    return torch.stack([penalty(first, second) for first, second in combinations(features, 2)]).mean()


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (F,) and the unbiased covariance (F, F) of features (N, F)."""
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)
