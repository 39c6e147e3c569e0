"""U-Net: a contracting path, an expanding path, and the features of the one beside those of the other at every level.

    image --encoder--> features at 1, 1/2, 1/4, … of its size --decoder--> logits of the image's size

Level l has a side of 1 / 2^l. The encoder is `ConvPyramid`, the paper's, or `TimmPyramid`, any backbone of timm with
features at several sizes. An image of any size is accepted: it is padded to a multiple of the coarsest cell, to two of
them at least, by repeating its border, half on either side, and the logits are cut back. Losses are in
`objectives.segmentation`.
"""

import math
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainbed.errors import UserError
from domainbed.networks import padding
from domainbed.networks.encoders import TimmEncoder, check_model, try_size, without_values


class ConvPyramid(nn.Module):
    """The contracting path of Ronneberger et al. 2015: two convolutions a level, channels doubled at each halving.

    Args:
        channels: C of the images.
        width: channels of level 0.
        depth: number of halvings.
        down: "maxpool" halves by 2 x 2 max pooling; "strided" by a 3 x 3 convolution of stride 2 that keeps the
            channels, as Springenberg et al. 2015 (arXiv 1412.6806) replace pooling. That one has weights of its own.

    Attributes:
        channels: of each level's features, by level.
    """

    def __init__(self, channels: int, width: int, depth: int, down: str) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.channels = dict(enumerate(widths))
        self.blocks = nn.ModuleList(
            [_block(inputs, outputs) for inputs, outputs in zip([channels, *widths], widths, strict=False)]
        )
        self.downs = nn.ModuleList(
            [nn.MaxPool2d(2) if down == "maxpool" else nn.Conv2d(one, one, 3, 2, 1) for one in widths[:-1]]
        )

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Return the features by level, (B, channels[l], H / 2^l, W / 2^l), for images (B, C, H, W) in [0, 1]."""
        features = {0: self.blocks[0](x - 0.5)}
        for level, (down, block) in enumerate(zip(self.downs, self.blocks[1:], strict=True), start=1):
            features[level] = block(down(features[level - 1]))
        return features


class TimmPyramid(nn.Module):
    """The features of a timm backbone at each of its sizes.

    Args:
        encoder: whose backbone, weights and normalisation are used; what comes after its features is dropped.

    Attributes:
        channels: of the features, by level; a level that the backbone skips is missing.

    Raises:
        UserError: the backbone has features at one size only.
    """

    def __init__(self, encoder: TimmEncoder, model: str) -> None:
        super().__init__()
        self.encoder = encoder
        backbone: Any = encoder.backbone
        last = _levels(backbone, model)
        self.indices = [index for index, _ in last.values()]
        self.channels = {level: channels for level, (_, channels) in last.items()}
        backbone.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Return the features by level, (B, channels[l], H / 2^l, W / 2^l), for images (B, C, H, W) in [0, 1]."""
        backbone: Any = self.encoder.backbone
        x = (x - self.encoder.mean) / self.encoder.std
        features = backbone.forward_intermediates(x, indices=self.indices, intermediates_only=True, output_fmt="NCHW")
        if self.encoder.dropout is not None:  # at the end of the contracting path, as Ronneberger et al. 2015 have it
            features[-1] = self.encoder.dropout(features[-1])
        return dict(zip(self.channels, features, strict=True))


def _levels(backbone: Any, model: str) -> dict[int, tuple[int, int]]:
    """Return index and channels of the last features at each level.

    Raises:
        UserError: there are features at one size only, or at none.
    """
    info = backbone.feature_info if hasattr(backbone, "forward_intermediates") else []
    last = {math.log2(one["reduction"]): (index, one["num_chs"]) for index, one in enumerate(info)}
    if len(last) < 2 or any(not level.is_integer() for level in last):
        raise no_pyramid(model)
    return {int(level): value for level, value in last.items()}


def no_pyramid(model: str) -> UserError:
    """Return the error for a backbone that a U-Net can't use."""
    return UserError(
        f"{model} has no features at several sizes, each half of the one before, which a U-Net needs. Choose a "
        "convolutional model, such as resnet18, or model=null for the plain U-Net"
    )


@cache
def padded_shape(model: str, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of the images that `UNetwork` gives to a timm encoder for images (C, H, W).

    Raises:
        UserError: the backbone has no features at several sizes.
    """
    channels, *size = input_shape
    check_model(model)
    published = timm.get_pretrained_cfg(model).input_size
    cell = 2 ** max(_levels(without_values(model, published), model))
    margins = padding.to_multiple(size, cell, least=2)
    height, width = size[0] + margins[2] + margins[3], size[1] + margins[0] + margins[1]
    shape = (channels, height, width)
    if isinstance(try_size(model, shape), str):  # as no multiple of its coarsest cell would do
        raise no_pyramid(model)
    with torch.random.fork_rng([]), torch.device("meta"), torch.no_grad():
        try:
            features = TimmPyramid(TimmEncoder(model, shape), model)(torch.empty(2, *shape))
        except Exception:  # each model fails in its own way where it has no such features
            raise no_pyramid(model) from None
    if any(one.shape[2:] != (height // 2**level, width // 2**level) for level, one in features.items()):
        raise no_pyramid(model)
    return shape


class UNetDecoder(nn.Module):
    """The expanding path: the side doubled, the features of that level beside it, two convolutions.

    Args:
        channels: of the encoder's features, by level.
        width: channels at level 0; doubled at each level below.
        up: "transposed" doubles the side by a 2 x 2 transposed convolution of stride 2 (the paper's up-convolution);
            "upsample" repeats every cell 2 x 2 times and convolves 3 x 3 (Odena et al. 2016, against checkerboards).
        num_classes: K.
    """

    def __init__(self, channels: dict[int, int], width: int, up: str, num_classes: int) -> None:
        super().__init__()
        deepest = max(channels)
        self.levels = list(range(deepest - 1, -1, -1))
        inputs = channels[deepest]
        ups, blocks = [], []
        for level in self.levels:
            outputs = width * 2**level
            ups.append(_up(inputs, outputs, up))
            blocks.append(_block(outputs + channels.get(level, 0), outputs))
            inputs = outputs
        self.ups, self.blocks = nn.ModuleList(ups), nn.ModuleList(blocks)
        self.head = nn.Conv2d(inputs, num_classes, 1)

    def forward(self, features: dict[int, Tensor]) -> Tensor:
        """Return logits (B, K, H, W) for the features by level."""
        x = features[max(features)]
        for level, up, block in zip(self.levels, self.ups, self.blocks, strict=True):
            x = up(x)
            x = block(torch.cat([features[level], x], dim=1) if level in features else x)
        return self.head(x)


class UNetwork(nn.Module):
    """Encoder and decoder, for images of any size.

    Args:
        encoder: a pyramid of features with an attribute `channels`, by level.
        width, up, num_classes: of `UNetDecoder`.
    """

    def __init__(self, encoder: ConvPyramid | TimmPyramid, width: int, up: str, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = UNetDecoder(encoder.channels, width, up, num_classes)
        self.cell = 2 ** max(encoder.channels)  # pixels a side of the coarsest cell

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, H, W) for images (B, C, H, W) in [0, 1]."""
        margins = padding.to_multiple(x.shape[-2:], self.cell, least=2)
        padded = F.pad(x, margins, mode="replicate") if any(margins) else x
        return F.pad(self.decoder(self.encoder(padded)), [-margin for margin in margins])


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions of 3 x 3, padded, each with instance normalisation (Ulyanov et al. 2016) and ReLU.

    Not BatchNorm: an answer must not depend on which images, or cameras, share the batch. Not larger groups: they leave
    whole channels off in every pixel, and then a narrow network with cross-entropy never answers a class of 2 % of the
    pixels, because what is left can only vote against it. nnU-Net (Isensee et al. 2021) normalises so, too.
    """
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        # a group for each channel is instance normalisation
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.GroupNorm(outputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _up(inputs: int, outputs: int, up: str) -> nn.Module:
    if up == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 2, 2)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inputs, outputs, 3, padding=1))
