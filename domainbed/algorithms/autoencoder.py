"""Plain convolutional autoencoder: a code, no prior on it, no labels.

Hinton & Salakhutdinov 2006 with convolutions. Encoder and decoder are mirror images: strides of 2 down to a grid of
at most 8 cells a side, and transposed convolutions back up.

    loss = reduction over pixels of (decoder(encoder(x)) - x)^2       recon_reduction: mean | sum

It has no distribution over codes, so it gives no samples and no likelihood, and it uses no labels.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.hparams import Field, PositiveFloat, PositiveInt
from domainbed.networks.decoders import ConvDecoder
from domainbed.networks.encoders import ConvEncoder
from domainbed.objectives.likelihoods import squared_error
from domainbed.registry import ALGORITHMS


@ALGORITHMS.register("AE")
class AE(Algorithm):
    """Plain convolutional autoencoder: squared error, no prior, no labels."""

    class HParams(Algorithm.HParams):
        """Options of AE."""

        latent_dim: PositiveInt = Field(256, description="size D of the code")
        recon_reduction: Literal["mean", "sum"] = Field("mean", description="reduction of the loss over pixels")
        lr: PositiveFloat = Field(1e-3, description="learning rate")

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.encoder = ConvEncoder(input_shape)
        self.bottleneck = nn.Linear(self.encoder.num_features, self.hparams.latent_dim)
        self.decoder = ConvDecoder(self.hparams.latent_dim, input_shape)

    def losses(self, minibatches: Any, unlabeled: Any = None) -> dict[str, Tensor]:
        x, _ = concatenate(minibatches)  # (B, C, H, W) in [0, 1]
        recon = squared_error(self.reconstruct(x), x)  # (B,)
        if self.hparams.recon_reduction == "mean":
            recon = recon / x[0].numel()
        return {"loss": recon.mean(), "recon_loss": recon.mean()}

    def encode(self, x: Tensor) -> Tensor:
        return self.bottleneck(self.encoder(x))  # (B, D)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(z).float())  # (B, C, H, W)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
