"""Convolutional variational autoencoder, with a weight on its KL term.

Kingma & Welling 2014, "Auto-Encoding Variational Bayes" (arXiv 1312.6114); Higgins et al. 2017, "beta-VAE". The loss,
with likelihoods and schedules, is that of `variational`:

    loss = E[-log p(x|z)] + beta * a(step) * KL(q(z|x) || N(0, I)),    z ~ q(z|x) = N(mean(x), exp(logvar(x)))

beta = 1 with `recon_reduction: sum` is the negative ELBO. With `latent: vector` z has `latent_dim` dimensions. With
`latent: map` it has `latent_channels` numbers for each patch of 2^`latent_halvings` px, so it can hold where vessels
run; encoder and decoder are those of `networks.maps`, and start from the principal components of the patches.

It uses no labels and does not know which environment an image comes from.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.algorithms.variational import LatentHParams, VAEHParams, VariationalObjective
from domainbed.hparams import Field, PositiveFloat, PositiveInt
from domainbed.networks.decoders import ConvDecoder
from domainbed.networks.encoders import ConvEncoder
from domainbed.networks.maps import MapDecoder, MapEncoder, start_from_components
from domainbed.objectives import gaussian, weights
from domainbed.registry import ALGORITHMS


@ALGORITHMS.register("VAE")
class VAE(Algorithm):
    """Convolutional beta-VAE: six likelihoods, annealing, free bits or a capacity; no labels."""

    class HParams(VAEHParams, LatentHParams):
        """Options of VAE."""

        latent_dim: PositiveInt = Field(128, description="latent=vector: size D of z")
        lr: PositiveFloat = Field(1e-3, description="learning rate")

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        self.latent_map: tuple[int, int, int] | None = None
        self.latent_size: int = h.latent_dim  # D
        if h.latent == "map":
            self.encoder: nn.Module = MapEncoder(input_shape, h.latent_channels, h.latent_halvings)
            self.decoder: nn.Module = MapDecoder(input_shape, h.latent_channels, h.latent_halvings)
            self.latent_map = self.encoder.shape
            self.latent_size = math.prod(self.latent_map)
        else:
            self.encoder = ConvEncoder(input_shape)
            self.to_posterior = nn.Linear(self.encoder.num_features, 2 * h.latent_dim)
            self.decoder = ConvDecoder(h.latent_dim, input_shape)
        self.objective = VariationalObjective(h, input_shape, self.latent_size, self.latent_map)

    @property
    def batch_coupled(self) -> bool:
        return self.objective.batch_coupled

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, _ = concatenate(minibatches)  # (B, C, H, W) in [0, 1]
        mean, logvar = self.posterior(x)  # (B, D) each
        z = gaussian.sample(mean, logvar)  # (B, D)
        kl = gaussian.kl_to_standard_normal(mean, logvar)  # (B, D)
        return self.objective(self.decoder(z), x, kl, self.step)

    def see_training_images(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Start a map from the principal components of the images' patches."""
        if isinstance(self.encoder, MapEncoder) and isinstance(self.decoder, MapDecoder):
            start_from_components(self.encoder, self.decoder, batches())

    def explain_weights(self, steps: int, batch_size: int) -> weights.WeightMeaning:
        return self.objective.explain(steps, batch_size)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.latent_map is not None:
            return self.encoder(x)
        mean, logvar = self.to_posterior(self.encoder(x)).float().chunk(2, dim=1)
        return mean, logvar

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.objective.likelihood.mean(self.decoder(z))  # (B, C, H, W)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def sample(self, n: int) -> Tensor:
        return self.decode(torch.randn(n, self.latent_size, device=self.step.device))
