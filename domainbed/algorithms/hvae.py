"""Hierarchical variational autoencoder: one or more levels of Gaussian latents above a strided convolutional encoder.

Generative model: p(z_L) p(z_L-1|z_L) … p(z_1|z_2) p(x|z_1), p(z_L) = N(0, I). The image depends on z_1 alone. There are
as many levels as `latent_dims` has sizes, the lowest first; the loss, with likelihoods and schedules, is that of
`variational`:

    loss = E[-log p(x|z_1)] + beta * a(step) * KL

    mode: bottom_up   q(z_1|x) q(z_2|z_1) … q(z_L|z_L-1)    (Rezende et al. 2014; Burda et al. 2016, section 2)
          KL = sum over l < L of E_q[log q(z_l|z_l-1) - log p(z_l|z_l+1)] + E_q[KL(q(z_L|z_L-1) || p(z_L))]
    mode: ladder      q(z_L|x) q(z_L-1|x, z_L) … q(z_1|x, z_2)    (Sonderby et al. 2016, arXiv 1602.02282)
          KL = KL(q(z_L|x) || p(z_L)) + sum over l < L of E_q[KL(q(z_l|x, z_l+1) || p(z_l|z_l+1))]

KL divergences between Gaussians are computed in closed form, given one sample of what they are conditioned on. The
lower levels of bottom_up have none, because there q conditions on the level below and p on the level above: they are
estimated with that sample. Their expectation may be negative; that of the sum over levels, KL(q || p) of the whole
hierarchy, is not. `KLD_level_1` … `KLD_level_L` are logged in nats. With one level both modes are the same plain VAE.

`encoder_hidden_dims` are the widths of the encoder, whose first layer has stride 1 and the others `stride`; the decoder
is its mirror image. What lies between two levels is one hidden layer, as wide as the encoder's last.

It has no skip connections beside z_1 and no spatial latents, as the deep hierarchies since NVAE have; LayerNorm stands
where the ladder's authors have BatchNorm. It uses no labels and does not know which environment an image comes from.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.algorithms.variational import VAEHParams, VariationalObjective
from domainbed.hparams import Field, PositiveInt
from domainbed.networks.hierarchical import BottomUp, Ladder, Level
from domainbed.networks.strided import StridedDecoder, StridedEncoder, margins_and_grid
from domainbed.objectives import gaussian, weights
from domainbed.registry import ALGORITHMS

STRIDES = (1, 2, 4)


@ALGORITHMS.register("HVAE")
class HVAE(Algorithm):
    """Hierarchical VAE of one or more latent levels, inferred from below or by a ladder; no labels."""

    class HParams(VAEHParams):
        """Options of HVAE."""

        encoder_hidden_dims: list[PositiveInt] = Field(
            [16, 32, 64, 128, 256], description="widths of the encoder's layers; the first one has stride 1"
        )
        stride: PositiveInt = Field(2, description="1, 2 or 4: stride of the layers but the first")
        latent_dims: list[PositiveInt] = Field([128], description="sizes D_1, …, D_L of z_1, …, z_L, the lowest first")
        mode: Literal["bottom_up", "ladder"] = Field(
            "bottom_up", description="bottom_up: z_2 is drawn from z_1; ladder: z_1 from the image and z_2"
        )

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            if self.stride not in STRIDES:
                raise ValueError(f"stride = {self.stride} is not one of 1, 2 and 4. Choose one of those")
            for key in ("encoder_hidden_dims", "latent_dims"):
                if not self[key]:
                    raise ValueError(f"{key} = [] is empty. Give at least one size, such as {key}=[128]")
            if len(self.latent_dims) > len(self.encoder_hidden_dims):
                raise ValueError(
                    f"latent_dims = {self.latent_dims} has {len(self.latent_dims)} levels, more than the encoder has "
                    f"layers (encoder_hidden_dims = {self.encoder_hidden_dims}). Give fewer levels or more layers"
                )

        def check_size(self, input_shape: tuple[int, int, int]) -> None:
            """Raise `UserError` where images (C, H, W) are too small for the encoder's strides."""
            super().check_size(input_shape)
            margins_and_grid(input_shape[1:], self.encoder_hidden_dims, self.stride)

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        self.encoder = StridedEncoder(input_shape, h.encoder_hidden_dims, h.stride)
        hierarchy = {"bottom_up": BottomUp, "ladder": Ladder}[h.mode]
        self.hierarchy = hierarchy(self.encoder.num_features, h.latent_dims, h.encoder_hidden_dims[-1])
        self.decoder = StridedDecoder(h.latent_dims[0], input_shape, h.encoder_hidden_dims, h.stride)
        self.objective = VariationalObjective(h, input_shape, sum(h.latent_dims))

    @property
    def batch_coupled(self) -> bool:
        return self.objective.batch_coupled

    @property
    def latent_dims(self) -> list[int]:
        """Sizes D_1, …, D_L of the levels, the lowest first."""
        return list(self.hparams.latent_dims)

    @property
    def image_level(self) -> int:
        """Index of the level that is drawn from the image alone: the lowest of bottom_up, the highest of a ladder."""
        return 0 if self.hparams.mode == "bottom_up" else len(self.latent_dims) - 1

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, _ = concatenate(minibatches)  # (B, C, H, W) in [0, 1]
        levels = self.hierarchy(self.encoder(x), gaussian.sample)
        kl = kl_terms(levels, self.hparams.mode)  # (B, D_l) each
        terms = self.objective(self.decoder(levels[0].z), x, torch.cat(kl, dim=1), self.step)
        return terms | {f"KLD_level_{level}": one.sum(1).mean() for level, one in enumerate(kl, start=1)}

    def explain_weights(self, steps: int, batch_size: int) -> weights.WeightMeaning:
        return self.objective.explain(steps, batch_size)

    def level_kl(self, x: Tensor) -> list[Tensor]:
        return kl_terms(self.hierarchy(self.encoder(x), gaussian.sample), self.hparams.mode)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logvar of all levels side by side, (B, D_1 + … + D_L) each.

        Where a level is conditioned on another one, it is on that one's mean.
        """
        levels = self.hierarchy(self.encoder(x), lambda mean, logvar: mean)
        return torch.cat([level.mean for level in levels], dim=1), torch.cat([level.logvar for level in levels], dim=1)

    def encode(self, x: Tensor) -> Tensor:
        """Return the means of all levels side by side, the lowest first, (B, D_1 + … + D_L)."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return images for codes of `encode`, or for z_1 alone: the columns behind D_1 don't change the image."""
        output = self.decoder(z[:, : self.hparams.latent_dims[0]])
        return self.objective.likelihood.mean(output)  # (B, C, H, W)

    def decode_level(self, z: Tensor, level: int) -> Tensor:
        return self.decode(self.hierarchy.descend(z, lambda mean, logvar: mean, level))

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def sample(self, n: int) -> Tensor:
        """Draw from the prior, from z_L down to z_1; the image is the mean of p(x|z_1)."""
        highest = torch.randn(n, self.hparams.latent_dims[-1], device=self.step.device)
        return self.decode(self.hierarchy.descend(highest, gaussian.sample))


def kl_terms(levels: list[Level], mode: str) -> list[Tensor]:
    """Return what each level adds to the KL, per latent dimension, in nats: (B, D_l), the lowest level first.

    Args:
        levels: of a hierarchy that drew samples.
        mode: bottom_up, where the levels but the highest are estimated with their sample; or ladder.
    """
    terms = [gaussian.kl(level.mean, level.logvar, level.prior_mean, level.prior_logvar) for level in levels]
    if mode == "bottom_up":
        for index, level in enumerate(levels[:-1]):
            log_q = gaussian.log_prob(level.z, level.mean, level.logvar)
            terms[index] = log_q - gaussian.log_prob(level.z, level.prior_mean, level.prior_logvar)
    return terms
