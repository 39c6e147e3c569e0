"""What variational autoencoders share: options, and how likelihood and KL become the terms of a loss.

    loss = E[-log p(x|z)] + beta * a(step) * KL                       kl_anneal: constant | linear | cyclical
    loss = E[-log p(x|z)] + gamma * |KL - a(step) * capacity|         kl_anneal: capacity (Burgess et al. 2018)

    KL = mean over the batch of the sum over latent dimensions, with free_bits = lambda > 0 in the first form
         the sum over dimensions of max(lambda, mean over the batch)  (Kingma et al. 2016)
    a  = 1, or rising from kl_anneal_start to kl_anneal_end, once or in cycles; 1 in evaluation

`recon_reduction: sum` takes both terms in nats, so that beta = 1 is the ELBO; `mean` divides the reconstruction by the
number of pixel values and the KL term by the number of latent dimensions. How z comes about and what its KL is, is the
algorithm's: `VAE`, `HVAE`, `CVAE`. The mathematics is in `objectives`.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm
from domainbed.hparams import Field, NonNegativeFloat, PositiveFloat, PositiveInt, StepCount
from domainbed.networks.maps import map_shape
from domainbed.objectives import gaussian, schedules, weights
from domainbed.objectives.likelihoods import SCALED, Gaussian, make_likelihood
from domainbed.objectives.structure import StructureTerm

LikelihoodName = Literal["bernoulli", "continuous_bernoulli", "gaussian", "sigma_vae", "log_cosh", "laplace"]


class LikelihoodHParams(Algorithm.HParams):
    """Options of algorithms whose reconstruction term is a likelihood."""

    likelihood: LikelihoodName = Field(
        "sigma_vae", description="p(x|z): its negative logarithm is the reconstruction term"
    )
    sigma: PositiveFloat = Field(
        1.0, description="scale of likelihood gaussian, log_cosh and laplace, for images in [0, 1]"
    )
    structure: Literal["none", "gradient", "ms_ssim"] = Field(
        "none", description="term for fine structure beside the likelihood, not in nats: gradient, ms_ssim, or none"
    )
    structure_weight: NonNegativeFloat = Field(1.0, description="weight of that term")

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if self.likelihood not in SCALED and self.sigma != type(self).model_fields["sigma"].default:
            raise ValueError(
                f"sigma = {self.sigma:g} is the scale of likelihood = {', '.join(SCALED)}, but this run has "
                f"likelihood = {self.likelihood}. Leave sigma out, or choose one of those"
            )

    def idle(self) -> dict[str, str]:
        """Return the weight of a term that is not there."""
        return super().idle() | ({"structure_weight": "structure = none"} if self.structure == "none" else {})

    def check_size(self, input_shape: tuple[int, int, int]) -> None:
        """Raise `UserError` where images (C, H, W) are too small for the term for fine structure."""
        super().check_size(input_shape)
        self.make_structure(input_shape)

    def make_structure(self, input_shape: tuple[int, int, int]) -> StructureTerm:
        """Return the term for fine structure, of images (C, H, W)."""
        return StructureTerm(self.structure, self.structure_weight, input_shape[1:])


class LatentHParams(Algorithm.HParams):
    """Options of algorithms whose code is a vector or a map."""

    latent: Literal["vector", "map"] = Field(
        "vector", description="vector: latent_dim numbers an image; map: latent_channels numbers for each patch of it"
    )
    latent_halvings: PositiveInt = Field(3, description="latent=map: a patch has a side of 2^latent_halvings px")
    latent_channels: PositiveInt = Field(16, description="latent=map: numbers for each patch")

    def check_size(self, input_shape: tuple[int, int, int]) -> None:
        """Raise `UserError` where images (C, H, W) are too small for the map."""
        super().check_size(input_shape)
        if self.latent == "map":
            map_shape(input_shape, self.latent_channels, self.latent_halvings)

    def idle(self) -> dict[str, str]:
        """Return what belongs to the other kind of code."""
        keys = ("latent_halvings", "latent_channels") if self.latent == "vector" else ("latent_dim",)
        return super().idle() | dict.fromkeys(keys, f"latent = {self.latent}")


class VAEHParams(LikelihoodHParams):
    """Options of variational autoencoders."""

    recon_reduction: Literal["mean", "sum"] = Field(
        "sum", description="mean or sum, over pixels for the reconstruction and over dimensions for the KL"
    )
    beta: NonNegativeFloat = Field(1.0, description="weight of the KL term; see the run's first lines")
    kl_anneal: Literal["constant", "linear", "cyclical", "capacity"] = Field(
        "constant", description="how the KL weight, or the capacity, goes with the step"
    )
    kl_anneal_start: StepCount = Field(0, description="step at which the KL weight leaves 0")
    kl_anneal_end: StepCount = Field(5000, description="step at which the KL weight is full")
    kl_anneal_cycle_length: PositiveInt = Field(10_000, description="length of a cycle of the annealing, in steps")
    capacity: PositiveFloat = Field(25.0, description="nats at which kl_anneal=capacity holds the KL in the end")
    gamma: PositiveFloat = Field(1000.0, description="weight of the KL's distance from the capacity")
    free_bits: NonNegativeFloat = Field(0.0, description="nats of each latent dimension's mean KL that cost nothing")

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        cyclical = self.kl_anneal == "cyclical"
        check_annealing(self.kl_anneal_start, self.kl_anneal_end, self.kl_anneal_cycle_length if cyclical else None)
        if self.kl_anneal == "capacity" and (self.beta != 1.0 or self.free_bits):
            raise ValueError(
                "kl_anneal = capacity weighs the KL with gamma and sets its size itself. Leave beta and free_bits out"
            )

    def idle(self) -> dict[str, str]:
        """Return what belongs to another schedule."""
        keys = {
            "constant": ("kl_anneal_start", "kl_anneal_end", "kl_anneal_cycle_length", "capacity", "gamma"),
            "linear": ("kl_anneal_cycle_length", "capacity", "gamma"),
            "cyclical": ("capacity", "gamma"),
            "capacity": ("kl_anneal_cycle_length",),
        }[self.kl_anneal]
        return super().idle() | dict.fromkeys(keys, f"kl_anneal = {self.kl_anneal}")


def check_annealing(start: int, end: int, cycle_length: int | None) -> None:
    """Raise `ValueError` where an annealing ends before it starts, or after its cycle does (None: no cycles)."""
    if start > end:
        raise ValueError(f"kl_anneal_start = {start} lies behind kl_anneal_end = {end}")
    if cycle_length is not None and end > cycle_length:
        raise ValueError(
            f"kl_anneal_end = {end} lies behind the end of a cycle (kl_anneal_cycle_length = {cycle_length}), so the "
            "KL would never get its full weight. Lower kl_anneal_end or lengthen the cycle"
        )


class VariationalObjective(nn.Module):
    """Turns the output of a decoder and the KL of its code into the terms of the loss.

    Args:
        hparams: the options.
        input_shape: (C, H, W) of the images.
        num_latents: M, latent dimensions of all levels together.
        latent_map: (c, h, w) of a code that is a map.

    Attributes:
        likelihood: p(x|z), also for `likelihood.mean(output)`, the reconstruction.
        batch_coupled: whether a term depends on which images share the batch.
    """

    def __init__(
        self,
        hparams: VAEHParams,
        input_shape: tuple[int, int, int],
        num_latents: int,
        latent_map: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.hparams, self.num_latents, self.latent_map = hparams, num_latents, latent_map
        self.num_values = input_shape[0] * input_shape[1] * input_shape[2]
        self.likelihood = make_likelihood(hparams.likelihood, hparams.sigma)
        self.structure = hparams.make_structure(input_shape)
        self.batch_coupled = bool(self.likelihood.batch_coupled or hparams.free_bits or hparams.kl_anneal == "capacity")

    def forward(self, output: Tensor, x: Tensor, kl: Tensor, step: Tensor) -> dict[str, Tensor]:
        """Return the terms under their standard names, () each; "loss" is their sum.

        Args:
            output: (B, C, H, W), of the decoder, for one sample of the code.
            x: (B, C, H, W) in [0, 1].
            kl: (B, G) nats, a column per latent dimension, or per group of them; free bits are per column.
            step: () of the algorithm.
        """
        h = self.hparams
        annealing = self.annealing(step) if self.training else torch.ones_like(step, dtype=torch.float32)
        recon_nats, kl_nats = self.likelihood(output, x).mean(), kl.sum(1).mean()
        if h.kl_anneal == "capacity":
            weighted = h.gamma * gaussian.capacity_penalty(kl, annealing * h.capacity)
        else:
            weighted = h.beta * annealing * (gaussian.free_bits(kl, h.free_bits) if h.free_bits else kl_nats)
        values, latents = (self.num_values, self.num_latents) if h.recon_reduction == "mean" else (1, 1)
        terms = {
            "loss": recon_nats / values + weighted / latents,
            "recon_loss": recon_nats / values,
            "KLD_loss": kl_nats / latents,
            "KLD_weighted": weighted / latents,
            "kl_anneal_weight": annealing,
            "recon_nats": recon_nats,
            "KLD_nats": kl_nats,
        }
        return self.structure.add_to(terms, lambda: self.likelihood.mean(output), x)

    def annealing(self, step: Tensor) -> Tensor:
        """Return the annealing weights of steps, a float32 tensor of the same shape."""
        h = self.hparams
        if h.kl_anneal == "constant":
            return torch.ones_like(step, dtype=torch.float32)
        if h.kl_anneal == "cyclical":
            return schedules.cyclical(step, h.kl_anneal_start, h.kl_anneal_end, h.kl_anneal_cycle_length)
        return schedules.linear(step, h.kl_anneal_start, h.kl_anneal_end)

    def explain(self, steps: int, batch_size: int, label_weight: float | None = None) -> weights.WeightMeaning:
        """Say what the weights mean in a run of `steps` steps of `batch_size` images, for `explain_weights`."""
        h = self.hparams
        schedule = self.annealing(torch.arange(steps + 1))
        return weights.describe(
            h.recon_reduction,
            num_values=self.num_values,
            num_latents=self.num_latents,
            kl_weight=h.gamma if h.kl_anneal == "capacity" else h.beta,
            label_weight=label_weight,
            batch_size=batch_size,
            annealing_mean=schedules.mean_over(schedule[:-1]),
            annealing_reached=schedule.max().item(),
            capacity=h.capacity if h.kl_anneal == "capacity" else None,
            sigma=self.likelihood.sigma if isinstance(self.likelihood, Gaussian) else None,
            latent_map=self.latent_map,
            structure=h.structure,
            structure_weight=h.structure_weight,
        )
