"""Two hierarchies of Gaussian levels between the features of an encoder and the code of a decoder.

    image --encoder--> features --BottomUp or Ladder--> z_1, …, z_L;   z_1 --decoder--> image

Level 1 is the lowest: the decoder reads it, and the standard normal prior is that of the highest, level L. A hierarchy
is told how to `draw` from a Gaussian (a sample, or its mean), and returns for each level the posterior and the prior
that the KL compares; divergences are in `objectives.gaussian`, the loss is in `algorithms.hvae`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from domainbed.objectives.precision import at_least_float32

#: log sigma stays within +-5, as in the published code of NVAE (Vahdat & Kautz 2020): sigma between 0.007 and 148.
LOGVAR_BOUND = 10.0

#: Turns mean and logvar, (B, D) each, into z, (B, D).
Draw = Callable[[Tensor, Tensor], Tensor]


class ConditionalGaussian(nn.Module):
    """N(mean(h), exp(logvar(h))) for vectors h; the logvar is 10 tanh(raw / 10), so it stays within +-10.

    Args:
        inputs: size of h. outputs: D.
        hidden_dim: width of a hidden layer with LayerNorm between them; without one, mean and raw logvar are linear.
    """

    def __init__(self, inputs: int, outputs: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden = [] if hidden_dim is None else _hidden(inputs, hidden_dim)
        self.layers = nn.Sequential(*hidden, nn.Linear(hidden_dim or inputs, 2 * outputs))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logvar, (B, D) each in float32 or more, for (B, inputs)."""
        mean, raw = at_least_float32(self.layers(h)).chunk(2, dim=1)
        return mean, LOGVAR_BOUND * torch.tanh(raw / LOGVAR_BOUND)


class Level(NamedTuple):
    """One level l of a hierarchy for a batch of images; all (B, D_l).

    Attributes:
        z: drawn from the posterior.
        mean, logvar: of the posterior, given what this level was drawn from.
        prior_mean, prior_logvar: of p(z_l | z_l+1); zeros, the standard normal, for the highest level.
    """

    z: Tensor
    mean: Tensor
    logvar: Tensor
    prior_mean: Tensor
    prior_logvar: Tensor


class Hierarchy(nn.Module):
    """The prior p(z_L) p(z_L-1 | z_L) … p(z_1 | z_2) with p(z_L) = N(0, I). Subclasses add the posterior.

    Args:
        num_features: F of the encoder.
        latent_dims: D_1, …, D_L, the lowest level first.
        hidden_dim: width of the hidden layers between levels.
    """

    def __init__(self, num_features: int, latent_dims: Sequence[int], hidden_dim: int) -> None:
        super().__init__()
        self.priors = nn.ModuleList(
            ConditionalGaussian(above, below, hidden_dim)
            for below, above in zip(latent_dims, latent_dims[1:], strict=False)
        )  # p(z_l | z_l+1)

    def forward(self, features: Tensor, draw: Draw) -> list[Level]:
        """Draw every level for features (B, F). The lowest level comes first."""
        raise NotImplementedError

    def descend(self, z: Tensor, draw: Draw, level: int | None = None) -> Tensor:
        """Return z_1 (B, D_1), drawn from the prior level by level, for z (B, D_l) of a level.

        Args:
            level: its index, 0 being the lowest; None for the highest.
        """
        for prior in reversed(self.priors[:level]):
            z = draw(*prior(z))
        return z


class BottomUp(Hierarchy):
    """Posterior q(z_1|x) q(z_2|z_1) … q(z_L|z_L-1): each level is drawn from the one below."""

    def __init__(self, num_features: int, latent_dims: Sequence[int], hidden_dim: int) -> None:
        super().__init__(num_features, latent_dims, hidden_dim)
        self.posteriors = nn.ModuleList(
            [ConditionalGaussian(num_features, latent_dims[0])]
            + [
                ConditionalGaussian(below, above, hidden_dim)
                for below, above in zip(latent_dims, latent_dims[1:], strict=False)
            ]
        )

    def forward(self, features: Tensor, draw: Draw) -> list[Level]:
        below, drawn = features, []
        for posterior in self.posteriors:
            mean, logvar = posterior(below)
            below = draw(mean, logvar)
            drawn.append((below, mean, logvar))
        levels = []
        for prior, level, (above, *_) in zip(self.priors, drawn, drawn[1:], strict=False):
            levels.append(Level(*level, *prior(above)))
        return [*levels, Level(*drawn[-1], torch.zeros_like(below), torch.zeros_like(below))]


class Ladder(Hierarchy):
    """Ladder posterior q(z_L|x) q(z_L-1|x, z_L) … q(z_1|x, z_2) (Sonderby et al. 2016).

    A deterministic pass upward gives each level a Gaussian of what the image says about it. Downward, this is merged
    with the prior given the level above; the highest level has the upward Gaussian alone.
    """

    def __init__(self, num_features: int, latent_dims: Sequence[int], hidden_dim: int) -> None:
        super().__init__(num_features, latent_dims, hidden_dim)
        widths = [num_features] + [hidden_dim] * (len(latent_dims) - 1)
        self.upward = nn.ModuleList(
            nn.Sequential(*_hidden(inputs, outputs)) for inputs, outputs in zip(widths, widths[1:], strict=False)
        )
        self.likelihoods = nn.ModuleList(
            ConditionalGaussian(width, latent_dim) for width, latent_dim in zip(widths, latent_dims, strict=True)
        )

    def forward(self, features: Tensor, draw: Draw) -> list[Level]:
        deterministic = [features]
        for layer in self.upward:
            deterministic.append(layer(deterministic[-1]))
        *lower, (mean, logvar) = [one(d) for one, d in zip(self.likelihoods, deterministic, strict=True)]
        z = draw(mean, logvar)
        levels = [Level(z, mean, logvar, torch.zeros_like(z), torch.zeros_like(z))]
        for likelihood, prior in zip(reversed(lower), reversed(self.priors), strict=True):
            given_above = prior(z)
            posterior = merge(likelihood, given_above)
            z = draw(*posterior)
            levels.append(Level(z, *posterior, *given_above))
        return levels[::-1]


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and logvar of the normalised product of two Gaussians, given as mean and logvar.

    Precisions add, means are weighted by precision (Sonderby et al. 2016). In logarithms, so that no precision
    overflows.
    """
    (first_mean, first_logvar), (second_mean, second_logvar) = first, second
    share = torch.sigmoid(second_logvar - first_logvar)  # of the first in the sum of precisions
    mean = second_mean + share * (first_mean - second_mean)
    return mean, -torch.logaddexp(-first_logvar, -second_logvar)


def _hidden(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.LeakyReLU(0.01)]
