"""Codes that keep places: from an image to a map (c, h, w) of Gaussian latents, and back to the image.

    encoder = MapEncoder((3, 128, 128), channels=16, halvings=3)      # a patch of 8 x 8 px to 16 numbers
    decoder = MapDecoder((3, 128, 128), channels=16, halvings=3)
    start_from_components(encoder, decoder, batches)                  # batches of training images
    mean, logvar = encoder(x)                                         # (B, 16 * 16 * 16) each
    logits = decoder(mean)                                            # (B, 3, 128, 128)

The outputs of two paths are added. The linear path treats every patch alone. `start_from_components` sets it to
probabilistic principal components (Tipping & Bishop 1999), the global optimum of a linear VAE of patches (Lucas et al.
2019), so training starts where a linear code ends instead of searching for it. The residual path sees across patches
and starts at zero; it learns what a linear map of patches can't do.

A map is flat, (B, c h w), wherever an algorithm hands it on: a code is a vector to the rest of the program.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainbed.errors import UserError
from domainbed.networks import padding
from domainbed.objectives.precision import at_least_float32

#: Channels of the residual blocks at twice the grid's resolution; at the grid's own it is twice as many.
WIDTH = 64
#: Residual blocks at each of the two resolutions.
NUM_BLOCKS = 3
#: Output values are kept this far from 0 and 1, so that their logit is finite.
MARGIN = 1e-6


def map_shape(input_shape: Sequence[int], channels: int, halvings: int) -> tuple[int, int, int]:
    """Return (c, h, w) of the map of an image (C, H, W).

    Raises:
        UserError: the grid would have fewer than two places a side, or a place more numbers than its patch has values.
    """
    colours, *size = input_shape
    patch = 2**halvings
    if min(size) < 2 * patch:
        raise UserError(
            f"latent=map with latent_halvings={halvings} has one place per {patch} x {patch} px, but the images are "
            f"{size[0]} x {size[1]} px, and a map needs two places a side. Lower latent_halvings, raise image_size to "
            f"{2 * patch} or more, or use latent=vector"
        )
    if channels > colours * patch**2:
        raise UserError(
            f"latent_channels={channels} is more than the {colours * patch**2} values of a patch of {patch} x {patch} "
            f"px (latent_halvings={halvings}). Lower latent_channels or raise latent_halvings"
        )
    height, width = (math.ceil(side / patch) for side in size)
    return channels, height, width


class PreActivationBlock(nn.Module):
    """x + conv3x3(SiLU(conv3x3(SiLU(GroupNorm(x))))), the block of diffusion models' U-Nets without their time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(), start_at_zero(nn.Conv2d(channels, channels, 3, padding=1)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) for (B, C, h, w)."""
        return x + self.layers(x)


class MapEncoder(nn.Module):
    """q(z|x) = N(mean, exp(logvar)) over a map of latents.

    Images whose sides are not multiples of the patch are padded with grey, half on either side.

    Args:
        input_shape: (C, H, W).
        channels, halvings: c, and log2 of a patch's side.

    Attributes:
        shape: (c, h, w).

    Raises:
        UserError: as `map_shape`.
    """

    def __init__(self, input_shape: tuple[int, int, int], channels: int, halvings: int) -> None:
        super().__init__()
        colours, *size = input_shape
        self.shape = map_shape(input_shape, channels, halvings)
        patch = 2**halvings
        self.margins = padding.to_multiple(size, patch)
        self.linear = nn.Conv2d(colours, channels, patch, patch)
        self.linear_logvar = nn.Parameter(torch.zeros(channels))
        self.residual = nn.Sequential(
            nn.PixelUnshuffle(patch // 2), nn.Conv2d(colours * (patch // 2) ** 2, WIDTH, 3, padding=1), *_blocks(WIDTH),
            nn.PixelUnshuffle(2), nn.Conv2d(4 * WIDTH, 2 * WIDTH, 1), *_blocks(2 * WIDTH),
            nn.GroupNorm(8, 2 * WIDTH), nn.SiLU(), start_at_zero(nn.Conv2d(2 * WIDTH, 2 * channels, 1)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logvar, (B, c h w) each in float32 or more, for images (B, C, H, W) in [0, 1]."""
        centred = F.pad(x - 0.5, self.margins)
        mean, logvar = at_least_float32(self.residual(4 * centred)).chunk(2, dim=1)
        mean = mean + at_least_float32(self.linear(centred))
        logvar = logvar + self.linear_logvar[:, None, None]
        return mean.flatten(1), logvar.flatten(1)


class MapDecoder(nn.Module):
    """The mirror image of `MapEncoder`, with pixel shuffles. Returns the logits of its values, clipped to [0, 1].

    Args:
        output_shape: (C, H, W) of the image.
        channels, halvings: as for the encoder.
        condition_channels: channels that follow those of the map and that the linear path does not read.
    """

    def __init__(
        self, output_shape: tuple[int, int, int], channels: int, halvings: int, condition_channels: int = 0
    ) -> None:
        super().__init__()
        colours, *size = output_shape
        patch = 2**halvings
        self.shape = map_shape(output_shape, channels, halvings)
        self.margins = [-margin for margin in padding.to_multiple(size, patch)]  # what the encoder pads is cut off
        self.linear = nn.ConvTranspose2d(channels, colours, patch, patch, bias=False)
        self.linear_bias = nn.Parameter(torch.zeros(colours, patch, patch))  # an image patch, so that means can differ
        self.residual = nn.Sequential(
            nn.Conv2d(channels + condition_channels, 2 * WIDTH, 3, padding=1), *_blocks(2 * WIDTH),
            nn.Conv2d(2 * WIDTH, 4 * WIDTH, 1), nn.PixelShuffle(2), *_blocks(WIDTH),
            nn.GroupNorm(8, WIDTH), nn.SiLU(),
            start_at_zero(nn.Conv2d(WIDTH, colours * (patch // 2) ** 2, 3, padding=1)), nn.PixelShuffle(patch // 2),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (B, C, H, W) for maps (B, (c + condition_channels) h w)."""
        channels, height, width = self.shape
        z = z.unflatten(1, (-1, height, width))
        linear = at_least_float32(self.linear(z[:, :channels])) + self.linear_bias.tile(1, height, width)
        values = F.pad(0.5 + linear + at_least_float32(self.residual(z)), self.margins)
        return torch.logit(values, eps=MARGIN)


@torch.no_grad()
def start_from_components(encoder: MapEncoder, decoder: MapDecoder, batches: Iterable[Tensor]) -> float:
    """Set both linear paths to the probabilistic principal components of the patches of some images.

    With eigenvalues l_1 >= … >= l_D and eigenvectors U of the covariance of patches x, and s2 the mean of the
    eigenvalues left out, the maximum of the likelihood is x = U (L - s2)^(1/2) z + mean + N(0, s2), z ~ N(0, I). Its
    posterior is N(L^-1 (L - s2)^(1/2) U^T (x - mean), s2 L^-1) (Tipping & Bishop 1999, eq. 7 and 8).

    Args:
        encoder, decoder: of one another.
        batches: (B, C, H, W) each, in [0, 1].

    Returns:
        s2, the variance of the pixels that the components leave unexplained.
    """
    patch, channels = encoder.linear.kernel_size[0], encoder.shape[0]
    device = encoder.linear.weight.device
    count, total, square = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for x in batches:
        padded = F.pad(x.float() - 0.5, encoder.margins)
        patches = F.unfold(padded, patch, stride=patch).transpose(1, 2).flatten(0, 1)  # (B h w, D)
        count += len(patches)
        total = total + patches.sum(0).double().cpu()
        square = square + (patches.T @ patches).double().cpu()
    mean = total / count  # (D,)
    eigenvalues, eigenvectors = torch.linalg.eigh(square / count - mean.outer(mean))
    kept, left = eigenvalues[-channels:].flip(0), eigenvalues[: len(eigenvalues) - channels]
    noise = left.mean().clamp(min=1e-6) if len(left) else torch.tensor(1e-6, dtype=torch.float64)
    kept = torch.maximum(kept, 1.01 * noise)  # few images may have fewer components than the map has channels
    axes = eigenvectors[:, -channels:].flip(1)  # (D, c)
    gain = (kept - noise).sqrt()
    read = (axes * (gain / kept)).T.to(device)  # (c, D)
    encoder.linear.weight.copy_(read.unflatten(1, encoder.linear.weight.shape[1:]))
    encoder.linear.bias.copy_(-(read @ mean.to(device)))  # type: ignore[union-attr]
    encoder.linear_logvar.copy_((noise / kept).log())
    decoder.linear.weight.copy_((axes * gain).T.unflatten(1, decoder.linear.weight.shape[1:]))
    decoder.linear_bias.copy_(mean.unflatten(0, decoder.linear_bias.shape))
    return float(noise)


def _blocks(channels: int) -> list[nn.Module]:
    return [PreActivationBlock(channels) for _ in range(NUM_BLOCKS)]


def start_at_zero(layer: Any) -> Any:
    """Return the layer that ends a residual path, its weights zero (Zhang et al. 2019, arXiv 1901.09321)."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
