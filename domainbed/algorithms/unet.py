"""U-Net: a class for every pixel, from features at several resolutions.

Ronneberger, Fischer & Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation" (arXiv 1505.04597).

    loss = ce_loss               loss: ce
           dice_loss             loss: dice
           ce_loss + dice_loss   loss: ce+dice

    ce_loss   = mean over images and labelled pixels of -log softmax(logits)[y], or of the Bernoullis' sum over kinds
    dice_loss = 1 - mean over classes of 2 sum(p y) / (sum(p) + sum(y)),  p = softmax(logits) or sigmoid(logits)

`output` says whether the classes of a pixel exclude each other (softmax) or its kinds may overlap (sigmoid); a run
takes it from the data set's masks. `down` and `up` are two choices of how the side is halved and doubled, see
`networks.unet`; with `model`, a timm backbone takes the place of the contracting path, and `depth` and `down` are its.

It differs from the paper where that is common today: convolutions are padded, so that the mask has the size of the
image; instance normalisation follows each; the crops, the elastic deformation and the weights at borders between cells
are left out. Images of all training environments are one batch, and nothing in the loss knows which one an image comes
from.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from domainbed.algorithms.base import (
    Algorithm,
    EncoderHParams,
    MaskHParams,
    build_encoder,
    concatenate,
)
from domainbed.errors import UserError
from domainbed.hparams import Field, PositiveFloat, PositiveInt
from domainbed.networks.encoders import TimmEncoder
from domainbed.networks.unet import ConvPyramid, TimmPyramid, UNetwork, no_pyramid, padded_shape
from domainbed.objectives.segmentation import dice_loss, pixel_cross_entropy
from domainbed.registry import ALGORITHMS


@ALGORITHMS.register("UNet")
class UNet(Algorithm):
    """U-Net: a class for every pixel, or several overlapping kinds, learnt from masks."""

    class HParams(EncoderHParams, MaskHParams):
        """Options of UNet."""

        model: str | None = Field(  # type: ignore[assignment]
            None, description="name of a timm model as encoder; null: the plain U-Net's own"
        )
        down: Literal["maxpool", "strided"] = Field(
            "maxpool", description="halve the side by pooling, or a convolution"
        )
        up: Literal["transposed", "upsample"] = Field(
            "transposed", description="double the side by a transposed convolution, or by repeating and a convolution"
        )
        loss: Literal["ce", "dice", "ce+dice"] = Field("ce", description="cross-entropy, soft Dice, or their sum")
        depth: PositiveInt = Field(4, description="number of halvings")
        width: PositiveInt = Field(64, description="channels at full resolution, doubled at each halving")
        lr: PositiveFloat = Field(1e-3, description="learning rate")

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            if self.model is not None and self.timm_model is None:
                raise ValueError(str(no_pyramid(self.model)))

        def encoder_shape(self, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
            """Return the shape to which images are padded."""
            return padded_shape(str(self.model), input_shape)

        def idle(self) -> dict[str, str]:
            """Return what a timm encoder decides itself."""
            return super().idle() | (
                {} if self.model is None else dict.fromkeys(("down", "depth"), f"model = {self.model}")
            )

    needs_masks = True
    shared_in_evaluation = ("network",)

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        if h.output != "sigmoid" and num_classes < 2:
            raise UserError(
                f"output = {h.output} tells classes of a pixel apart, but there is "
                f"{'only one' if num_classes else 'none'}. Use output=sigmoid for masks of a single kind"
            )
        side = min(input_shape[1:])
        if h.model is None and side < 2**h.depth:
            raise UserError(
                f"depth = {h.depth} halves the side of an image {h.depth} times, but these are of {input_shape[1]} x "
                f"{input_shape[2]} px. Use depth={side.bit_length() - 1} or less, or a larger image_size"
            )
        encoder: ConvPyramid | TimmPyramid
        if h.model is None:
            encoder = ConvPyramid(input_shape[0], h.width, h.depth, h.down)
        else:
            backbone = build_encoder(h, input_shape)
            assert isinstance(backbone, TimmEncoder), "HParams lets no other one pass"
            encoder = TimmPyramid(backbone, h.model)
        self.network = UNetwork(encoder, h.width, h.up, num_classes)

    @property
    def batch_coupled(self) -> bool:
        return "dice" in self.hparams.loss

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, y = concatenate(minibatches)  # (B, C, H, W) in [0, 1], (B, H, W) or (B, K, H, W)
        logits = self.segment(x)  # (B, K, H, W)
        terms: dict[str, Tensor] = {}
        if "ce" in self.hparams.loss:
            terms["ce_loss"] = pixel_cross_entropy(logits, y).mean()
        if "dice" in self.hparams.loss:
            terms["dice_loss"] = dice_loss(logits, y)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def segment(self, x: Tensor) -> Tensor:
        return self.network(x)
