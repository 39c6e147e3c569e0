"""Plain convolutional autoencoder: a code, no prior on it, no labels.

Hinton & Salakhutdinov 2006 with convolutions; with `noise`, a denoising autoencoder (Vincent et al. 2008, with the
Gaussian corruption of Vincent et al. 2010, section 3.3).

    loss = reduction over values of l(f(decoder(encoder(x + noise * epsilon))), x)        recon_reduction: mean | sum

    epsilon ~ N(0, 1) in training, 0 in evaluation
    f = output:  sigmoid | linear | relu | softmax (over channels, so that a grey image is 1 everywhere)
    l = loss:    mse           (f - x)^2
                 log_cosh      log cosh(f - x)
                 bce           cross-entropy with the logit f; with output=sigmoid the logit is what enters the sigmoid
                 bce_clipped   cross-entropy with the probability f clipped to [1e-7, 1 - 1e-7], as Keras computes it:
                               outside of that interval its gradient is zero

Without `layers`, strides of 2 lead down to a grid of at most 8 cells a side, a fully connected layer to a code of
`latent_dim`, and the mirror image back up. With `layers`, encoder and decoder are those of the list (`networks.layers`)
and `latent_dim: null` leaves out the fully connected layers: the code is the flattened grid.

A reconstruction is f clipped to [0, 1], for `bce` the sigmoid of the logit. It has no distribution over codes, so it
gives no samples and no likelihood, and it uses no labels.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.hparams import Field, Kind, Names, NonNegativeFloat, PositiveFloat, PositiveInt
from domainbed.networks import layers
from domainbed.networks.decoders import ConvDecoder
from domainbed.networks.encoders import ConvEncoder
from domainbed.objectives import reconstruction, rows
from domainbed.objectives.likelihoods import bernoulli_nll, squared_error
from domainbed.objectives.precision import at_least_float32
from domainbed.registry import ALGORITHMS

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "linear": nn.Identity(),
    "relu": torch.relu,
    "softmax": partial(torch.softmax, dim=1),
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "log_cosh": reconstruction.log_cosh,
    "bce": bernoulli_nll,
    "bce_clipped": reconstruction.clipped_bce,
}


def _check(texts: list[str]) -> list[str]:
    if texts:
        layers.parse(texts)
    return texts


Layers = Annotated[
    Names,
    AfterValidator(_check),
    Kind("a list of layers, such as conv 16 3, relu, maxpool 2, code, upsample 2, conv image 3"),
]


@ALGORITHMS.register("AE")
class AE(Algorithm):
    """Plain convolutional autoencoder: any list of layers, output and loss; no prior, no labels."""

    class HParams(Algorithm.HParams):
        """Options of AE."""

        layers: Layers = Field([], description="layers from the image to `code` and back; none: strides of 2, mirrored")
        latent_dim: PositiveInt | None = Field(
            256, description="size D of a fully connected code; null, with layers only: the code is their grid"
        )
        output: Literal["sigmoid", "linear", "relu", "softmax"] = Field("sigmoid", description="what ends the decoder")
        loss: Literal["mse", "log_cosh", "bce", "bce_clipped"] = Field(
            "mse", description="mse, log_cosh, bce (with logits), or bce_clipped (Keras', of probabilities)"
        )
        recon_reduction: Literal["mean", "sum"] = Field("mean", description="reduction of the loss over pixels")
        noise: NonNegativeFloat = Field(0.0, description="standard deviation of noise on the input, in training only")
        initialisation: Literal["torch", "glorot"] = Field(
            "torch", description="torch's own, or glorot: uniform, with biases of 0, as Keras has it"
        )
        lr: PositiveFloat = Field(1e-3, description="learning rate")

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            if self.latent_dim is None and not self.layers:
                raise ValueError("latent_dim = null leaves the code to the grid of `layers`. Give layers, or a size")

        def check_size(self, input_shape: tuple[int, int, int]) -> None:
            """Raise `UserError` where images (C, H, W) are too small for the layers."""
            super().check_size(input_shape)
            if self.layers:
                with torch.device("meta"):  # shapes alone
                    layers.LayerEncoder(layers.parse(self.layers)[0], input_shape)

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        self.encoder: ConvEncoder | layers.LayerEncoder
        self.decoder: ConvDecoder | layers.LayerDecoder
        if h.layers:
            down, up = layers.parse(h.layers)
            self.encoder = layers.LayerEncoder(down, input_shape)
            self.decoder = layers.LayerDecoder(up, self.encoder.grid, input_shape, h.latent_dim)
        else:
            self.encoder = ConvEncoder(input_shape)
            self.decoder = ConvDecoder(h.latent_dim, input_shape)
        self.bottleneck = nn.Linear(self.encoder.num_features, h.latent_dim) if h.latent_dim else nn.Identity()
        if h.initialisation == "glorot":
            layers.initialise_glorot(self)
        if h.output == "softmax" and input_shape[0] == 1:
            warnings.warn("output = softmax over a single channel is 1 everywhere: nothing can be learnt", stacklevel=2)

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, _ = concatenate(minibatches)  # (B, C, H, W) in [0, 1]
        corrupted = x + self.hparams.noise * rows.randn_like(x) if self.training and self.hparams.noise else x
        output = self.output(self.encode(corrupted))  # (B, C, H, W)
        recon = LOSSES[self.hparams.loss](output, x)  # (B,)
        if self.hparams.recon_reduction == "mean":
            recon = recon / x[0].numel()
        return {"loss": recon.mean(), "recon_loss": recon.mean()}

    def output(self, z: Tensor) -> Tensor:
        """Return what the loss compares with the images, (B, C, H, W): logits for bce, else values."""
        raw = at_least_float32(self.decoder(z))
        is_logit = self.hparams.loss == "bce" and self.hparams.output == "sigmoid"
        return raw if is_logit else OUTPUTS[self.hparams.output](raw)

    def encode(self, x: Tensor) -> Tensor:
        return self.bottleneck(self.encoder(x))  # (B, D)

    def decode(self, z: Tensor) -> Tensor:
        output = self.output(z)  # (B, C, H, W)
        return torch.sigmoid(output) if self.hparams.loss == "bce" else output.clamp(0.0, 1.0)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
