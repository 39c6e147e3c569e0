"""Decoders: from a latent vector (B, D) to logits of an image (B, C, H, W), before the sigmoid.

`ConvDecoder` ends at the image's own resolution, whatever it is. `PublishedVAEDGDecoder` is the one of the published
VAE-DG, which ends at 39 x 39 pixels and is stretched; it stands here to be compared with. `strided` has another pair.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Channels at the output's resolution, and the most at any other. Each doubling of the side halves the channels,
#: so that every level costs about the same number of operations.
FINAL_CHANNELS, MAX_CHANNELS = 16, 256
#: The coarsest grid has at most this many cells a side: 7 for 224 pixels, as in a ResNet.
MAX_BASE = 8


class ConvDecoder(nn.Module):
    """Fully connected layers, then transposed convolutions that double the side up to the resolution of the image.

    The grid begins at ceil(side / 2^n) with the smallest n that makes it at most `MAX_BASE`, and the surplus of an odd
    size is cut off at the end, so every size works. GroupNorm (Wu & He 2018), not BatchNorm: a reconstruction must not
    depend on which images, or cameras, share the batch.

    Args:
        latent_dim: D.
        output_shape: (C, H, W) of the image.
        hidden_dims: widths of the fully connected layers between the latent vector and the grid.
    """

    def __init__(self, latent_dim: int, output_shape: tuple[int, int, int], hidden_dims: tuple[int, ...] = ()) -> None:
        super().__init__()
        channels, self.height, self.width = output_shape
        doublings = max(0, math.ceil(math.log2(max(self.height, self.width) / MAX_BASE)))
        widths = [min(MAX_CHANNELS, FINAL_CHANNELS * 2**level) for level in range(doublings, -1, -1)]
        base = (widths[0], math.ceil(self.height / 2**doublings), math.ceil(self.width / 2**doublings))
        layers: list[nn.Module] = []
        for inputs, outputs in zip((latent_dim, *hidden_dims), hidden_dims, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.01)]
        layers += [nn.Linear((latent_dim, *hidden_dims)[-1], math.prod(base)), nn.Unflatten(1, base)]
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.GroupNorm(8, inputs), nn.LeakyReLU(0.01), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)]
        layers += [nn.GroupNorm(8, widths[-1]), nn.LeakyReLU(0.01), nn.Conv2d(widths[-1], channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (B, C, H, W) for latents (B, D)."""
        x = self.layers(z)
        top, left = (x.shape[-2] - self.height) // 2, (x.shape[-1] - self.width) // 2
        return x[..., top : top + self.height, left : left + self.width]


class PublishedVAEDGDecoder(nn.Module):
    """The decoder of the published VAE-DG (Chokuwa & Khan 2023, arXiv 2309.11301): a 39-pixel image, stretched.

    4 x 4 x 64, then transposed convolutions of kernel 3, stride 2 and no padding to 32, 8 and C channels
    (4 -> 9 -> 19 -> 39), BatchNorm throughout, a sigmoid, and a bilinear interpolation to the image's size. The
    interpolation is of values, not of logits, so this returns the logit of the stretched values.
    """

    def __init__(self, latent_dim: int, output_shape: tuple[int, int, int], hidden_dim: int = 1024) -> None:
        super().__init__()
        channels, *self.size = output_shape
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(),
            nn.Linear(hidden_dim, 64 * 4 * 4), nn.BatchNorm1d(64 * 4 * 4), nn.ReLU(),
            nn.Unflatten(1, (64, 4, 4)),
            nn.ConvTranspose2d(64, 32, 3, 2), nn.BatchNorm2d(32, momentum=0.01), nn.ReLU(),
            nn.ConvTranspose2d(32, 8, 3, 2), nn.BatchNorm2d(8, momentum=0.01), nn.ReLU(),
            nn.ConvTranspose2d(8, channels, 3, 2), nn.BatchNorm2d(channels, momentum=0.01),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (B, C, H, W) for latents (B, D)."""
        values = torch.sigmoid(self.layers(z).float())
        stretched = F.interpolate(values, size=self.size, mode="bilinear", align_corners=False)
        return torch.logit(stretched, eps=1e-6)
