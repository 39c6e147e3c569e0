"""Networks of a hierarchical VAE: strided convolutions with any widths, and two hierarchies of Gaussian levels.

    image --StridedEncoder--> features --BottomUp or Ladder--> z_1, …, z_L;   z_1 --StridedDecoder--> image

Level 1 is the lowest: the decoder reads it, and the standard normal prior is that of the highest, level L. A hierarchy
is told how to `draw` from a Gaussian (a sample, or its mean), and returns for each level the posterior and the prior
that the KL compares; divergences are in `objectives.gaussian`, the loss is in `algorithms.hvae`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainbed.errors import UserError
from domainbed.objectives.precision import at_least_float32

#: log sigma stays within +-5, as in the published code of NVAE (Vahdat & Kautz 2020): sigma between 0.007 and 148.
LOGVAR_BOUND = 10.0

#: Turns mean and logvar, (B, D) each, into z, (B, D).
Draw = Callable[[Tensor, Tensor], Tensor]


class StridedEncoder(nn.Module):
    """One convolution per width: the first keeps the resolution, each further one divides it by `stride`.

    An image whose side is no multiple of stride^(layers - 1) is padded with grey, half on either side. Kernels are
    twice as wide as the stride (3 for stride 1), so that every pixel is seen equally often.

    Args:
        input_shape: (C, H, W).
        hidden_dims: widths of the layers.
        stride: of all layers but the first.

    Attributes:
        grid: (C', H', W') of the last layer.
        num_features: F, the flattened grid.

    Raises:
        UserError: the image has fewer pixels a side than the strides divide by.
    """

    def __init__(self, input_shape: tuple[int, int, int], hidden_dims: Sequence[int], stride: int) -> None:
        super().__init__()
        channels, *size = input_shape
        self.margins, self.grid = _geometry(size, hidden_dims, stride)
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden_dims[0], 3, padding=1)]
        for inputs, outputs in zip(hidden_dims, hidden_dims[1:], strict=False):
            layers += [_norm(inputs), nn.LeakyReLU(0.01), nn.Conv2d(inputs, outputs, *_window(stride))]
        self.layers = nn.Sequential(*layers, _norm(hidden_dims[-1]), nn.LeakyReLU(0.01), nn.Flatten())
        self.num_features = math.prod(self.grid)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, F) for images (B, C, H, W) in [0, 1]."""
        return self.layers(F.pad(x - 0.5, self.margins))


class StridedDecoder(nn.Module):
    """The mirror image of `StridedEncoder`: a linear layer to its grid, back up, and a last layer of stride 1.

    Args:
        latent_dim: D.
        output_shape: (C, H, W) of the image.
        hidden_dims, stride: of the encoder, in the encoder's order.

    Raises:
        UserError: as for `StridedEncoder`.
    """

    def __init__(
        self, latent_dim: int, output_shape: tuple[int, int, int], hidden_dims: Sequence[int], stride: int
    ) -> None:
        super().__init__()
        channels, *size = output_shape
        (left, right, top, bottom), grid = _geometry(size, hidden_dims, stride)
        self.margins = (-left, -right, -top, -bottom)  # what the encoder pads, the decoder cuts off
        layers: list[nn.Module] = [nn.Linear(latent_dim, math.prod(grid)), nn.Unflatten(1, grid)]
        widths = list(reversed(hidden_dims))
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [_norm(inputs), nn.LeakyReLU(0.01), nn.ConvTranspose2d(inputs, outputs, *_window(stride))]
        layers += [_norm(widths[-1]), nn.LeakyReLU(0.01), nn.Conv2d(widths[-1], channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Return the raw output (B, C, H, W), such as logits, for latents (B, D)."""
        return F.pad(self.layers(z), self.margins)


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

    def descend(self, z: Tensor, draw: Draw) -> Tensor:
        """Return z_1 (B, D_1), drawn from the prior level by level, for z_L (B, D_L)."""
        for prior in reversed(self.priors):
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


def _geometry(
    size: Sequence[int], hidden_dims: Sequence[int], stride: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int]]:
    """Return the padding (left, right, top, bottom) that makes a size divisible, and the grid of the last layer."""
    height, width = size
    factor = stride ** (len(hidden_dims) - 1)
    if min(height, width) < factor:
        raise UserError(
            f"{len(hidden_dims)} layers (encoder_hidden_dims = {list(hidden_dims)}) with stride {stride} divide an "
            f"image's side by {factor}, but these are of {height} x {width} px. Give fewer layers, a smaller stride, "
            f"or image_size={factor} or more"
        )
    below, beside = -height % factor, -width % factor
    margins = (beside // 2, beside - beside // 2, below // 2, below - below // 2)
    return margins, (hidden_dims[-1], (height + below) // factor, (width + beside) // factor)


def _window(stride: int) -> tuple[int, int, int]:
    """Kernel, stride and padding with which a convolution divides a side by `stride` exactly, and back."""
    kernel = max(3, 2 * stride)
    return kernel, stride, (kernel - stride) // 2


def _norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 8 groups where that leaves at least two channels for each, else of one."""
    return nn.GroupNorm(math.gcd(8, channels) if channels >= 16 else 1, channels)


def _hidden(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.LeakyReLU(0.01)]
