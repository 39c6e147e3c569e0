"""Encoders: from images (B, C, H, W) in [0, 1] to feature vectors (B, F).

`TimmEncoder` is any backbone of timm, `ConvEncoder` a plain convolutional one; `strided` has one of chosen widths. An
encoder owns the statistics that its weights expect (ImageNet's, for pretrained ones) and applies them itself: nothing
outside knows of a normalisation. Where weights come from is `pretrained`; what is done with the features is not here.
"""

import math
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from domainbed.errors import UserError, did_you_mean
from domainbed.networks.decoders import FINAL_CHANNELS, MAX_BASE, MAX_CHANNELS


class TimmEncoder(nn.Module):
    """A timm backbone without its head, with the normalisation that its weights expect.

    Args:
        model: timm's name, e.g. "resnet50" or "resnet50.tv_in1k".
        input_shape: (C, H, W); weights for 3 channels are summed over the colours for C = 1.

    Attributes:
        num_features: F.

    Raises:
        UserError: timm has no such model, or it can't take images of that size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: str, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels = input_shape[0]
        backbone: Any = create_backbone(model, input_shape)
        self.backbone = backbone
        # some models (mobilenetv3, vgg, …) have a layer between the pooled features and the classifier
        self.num_features: int = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        mean, std = (torch.tensor(backbone.pretrained_cfg[key]) for key in ("mean", "std"))
        if channels != 3:
            mean, std = mean.mean().expand(channels), std.mean().expand(channels)
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1).clone(), persistent=False)
        self.register_buffer("std", std.reshape(1, -1, 1, 1).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, F) for images (B, C, H, W) in [0, 1]."""
        return self.backbone((x - self.mean) / self.std)

    def freeze_batch_norm(self) -> None:
        """Keep the running statistics and the affine weights of every BatchNorm as they are, also in training."""
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
                module.eval()
                module.train = partial(_stay, module)  # type: ignore[assignment, method-assign]


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Take the place of `train` where a module must not change its mode."""
    return module


def create_backbone(model: str, input_shape: tuple[int, int, int]) -> nn.Module:
    """Return timm's `model` with random weights and no head."""
    check_model(model)
    channels, *size = input_shape
    fixed = timm.get_pretrained_cfg(model).fixed_input_size  # as transformers with learnt positions have it
    try:
        return timm.create_model(
            model, pretrained=False, in_chans=channels, num_classes=0, **({"img_size": tuple(size)} if fixed else {})
        )
    except (AssertionError, TypeError) as error:
        if not fixed:
            raise
        raise UserError(
            f"{model} can't take images of {size[0]} x {size[1]} px ({error}). Choose another image_size or model"
        ) from None


def check_model(model: str) -> None:
    """Raise `UserError` with the nearest names where timm has no model of that name."""
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models()).partition(" known names")[0]
        raise UserError(f"timm has no model named {name!r}{near} timm.list_models() lists all")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise UserError(f"timm has no weights {tag!r} of {name}{did_you_mean(tag, tags)}")


class ConvEncoder(nn.Module):
    """Convolutions of stride 2 down to a small grid, the mirror image of `ConvDecoder`.

    Args:
        input_shape: (C, H, W).

    Attributes:
        num_features: F, the flattened grid.
    """

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        halvings = max(0, math.ceil(math.log2(max(height, width) / MAX_BASE)))
        widths = [min(MAX_CHANNELS, FINAL_CHANNELS * 2**level) for level in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.GroupNorm(8, inputs), nn.LeakyReLU(0.01), nn.Conv2d(inputs, outputs, 3, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.LeakyReLU(0.01), nn.Flatten())
        self.num_features = widths[-1] * math.ceil(height / 2**halvings) * math.ceil(width / 2**halvings)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, F) for images (B, C, H, W) in [0, 1]."""
        return self.layers(x - 0.5)
