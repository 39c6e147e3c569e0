"""A convolutional encoder of chosen widths and stride, and the decoder that is its mirror image.

They share their geometry: the decoder begins at the grid at which the encoder ends, and cuts off what the encoder pads.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from domainbed.errors import UserError
from domainbed.networks import padding


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
        self.margins, self.grid = margins_and_grid(size, hidden_dims, stride)
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
        margins, grid = margins_and_grid(size, hidden_dims, stride)
        self.margins = [-margin for margin in margins]  # what the encoder pads, the decoder cuts off
        layers: list[nn.Module] = [nn.Linear(latent_dim, math.prod(grid)), nn.Unflatten(1, grid)]
        widths = list(reversed(hidden_dims))
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [
                _norm(inputs),
                nn.LeakyReLU(0.01),
                nn.ConvTranspose2d(inputs, outputs, *_window(stride)),
            ]
        layers += [_norm(widths[-1]), nn.LeakyReLU(0.01), nn.Conv2d(widths[-1], channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Return the raw output (B, C, H, W), such as logits, for latents (B, D)."""
        return F.pad(self.layers(z), self.margins)


def margins_and_grid(
    size: Sequence[int], hidden_dims: Sequence[int], stride: int
) -> tuple[list[int], tuple[int, int, int]]:
    """Return the padding that makes a size (H, W) divisible, and the grid (C', H', W') of a strided encoder's end.

    Raises:
        UserError: a side has fewer pixels than the strides divide by.
    """
    factor = stride ** (len(hidden_dims) - 1)
    if min(size) < factor:
        raise UserError(
            f"{len(hidden_dims)} layers (encoder_hidden_dims = {list(hidden_dims)}) with stride {stride} divide an "
            f"image's side by {factor}, but these are of {size[0]} x {size[1]} px. Give fewer layers, a smaller "
            f"stride, or image_size={factor} or more"
        )
    height, width = (-(-side // factor) for side in size)
    return padding.to_multiple(size, factor), (hidden_dims[-1], height, width)


def _window(stride: int) -> tuple[int, int, int]:
    """Kernel, stride and padding with which a convolution divides a side by `stride` exactly, and back."""
    kernel = max(3, 2 * stride)
    return kernel, stride, (kernel - stride) // 2


def _norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 8 groups where that leaves at least two channels for each, else of one."""
    return nn.GroupNorm(math.gcd(8, channels) if channels >= 16 else 1, channels)
