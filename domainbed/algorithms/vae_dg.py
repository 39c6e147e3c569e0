"""Variational autoencoder whose latent code also predicts the label, for domain generalisation.

Chokuwa & Khan 2023, "Generalizing Across Domains in Diabetic Retinopathy via Variational Autoencoders"
(arXiv 2309.11301). A backbone encodes an image of any camera, a decoder reconstructs it, a linear head reads the grade
from the same code; the images of all training environments are one batch.

    loss = recon_loss + loss_multiplier_kl * a(step) * KLD_loss + loss_multiplier_y * y_loss

    recon_loss = -log p(x|z), z ~ q(z|x) = N(mean(x), exp(logvar(x))); the published one is BCE(decoder(z), x)
    KLD_loss   = KL(q(z|x) || N(0, I))
    y_loss     = class_weights[y] * -log softmax(head(z))[y]
    a          = annealing from kl_anneal_start to kl_anneal_end, once or in cycles; 1 in evaluation

`recon_reduction: mean` takes recon_loss as the mean over pixels and KLD_loss as the mean over latent dimensions, `sum`
as the sums; every run prints what its weights mean beside sums in nats. `recon_nats` and `KLD_nats` are logged as sums
either way. `paper_compat: true` is the published code: its 39-pixel decoder, its weights, and its loss, which sums
reconstruction and label loss over the batch but averages the KL over batch and dimensions, so that the weight of the
KL changes with the batch size; evaluation reports the same per image. The target stays in [0, 1] there too (the
published code feeds normalised images to the cross-entropy, which today's torch refuses).

With `latent: map` z is a map of `latent_channels` numbers for each patch of the image (`networks.maps`). Its mean is
what the patch shows plus what the backbone knows of the whole image, which is the same at every place; the head reads
the mean over places. The published code has a vector, so `paper_compat` has one.

It does not align environments: nothing in the loss knows which camera an image comes from.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm, EncoderHParams, LabelHParams, LabelLoss, build_encoder, concatenate
from domainbed.algorithms.variational import LatentHParams, LikelihoodHParams, LikelihoodName, check_annealing
from domainbed.hparams import Field, NonNegativeFloat, PositiveInt, StepCount
from domainbed.networks.decoders import ConvDecoder, PublishedVAEDGDecoder
from domainbed.networks.maps import MapDecoder, MapEncoder, start_at_zero, start_from_components
from domainbed.objectives import gaussian, schedules, weights
from domainbed.objectives.likelihoods import Gaussian, make_likelihood
from domainbed.registry import ALGORITHMS

HIDDEN = 1024  # width of both fully connected layers, in the paper and its code


@ALGORITHMS.register("VAE_DG")
class VAE_DG(Algorithm):
    """VAE with a timm encoder whose latent code also predicts the label (Chokuwa & Khan 2023)."""

    class HParams(EncoderHParams, LabelHParams, LikelihoodHParams, LatentHParams):
        """Options of VAE_DG."""

        latent_dim: PositiveInt = Field(256, description="latent=vector: size M of z")
        likelihood: LikelihoodName = Field(
            "bernoulli", description=LikelihoodHParams.model_fields["likelihood"].description
        )
        recon_reduction: Literal["mean", "sum"] = Field(
            "mean", description="mean or sum, over pixels for the reconstruction and over dimensions for the KL"
        )
        loss_multiplier_kl: NonNegativeFloat = Field(
            1e-4, description="weight of the KL term; see the run's first lines"
        )
        loss_multiplier_y: NonNegativeFloat = Field(0.1, description="weight of the label loss")
        kl_anneal_start: StepCount = Field(0, description="step at which the KL weight leaves 0")
        kl_anneal_end: StepCount = Field(5000, description="step at which the KL weight is full")
        kl_anneal_cyclical: bool = Field(False, description="repeat the annealing every kl_anneal_cycle_length steps")
        kl_anneal_cycle_length: PositiveInt = Field(10_000, description="length of a cycle of the annealing, in steps")
        decoder: Literal["full", "published"] = Field(
            "full", description="full: up to the image's resolution; published: 39 pixels, stretched"
        )
        paper_compat: bool = Field(False, description="loss, weights, decoder and steps of the published code")

        presets = {
            "paper_compat": {
                "latent": "vector",
                "likelihood": "bernoulli",
                "structure": "none",
                "decoder": "published",
                "recon_reduction": "sum",
                "loss_multiplier_kl": 50_000.0,
                "loss_multiplier_y": 50_000.0,
                "kl_anneal_end": 0,
                "steps": 15_000,
            }
        }

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            cycle_length = self.kl_anneal_cycle_length if self.kl_anneal_cyclical else None
            check_annealing(self.kl_anneal_start, self.kl_anneal_end, cycle_length)
            if self.paper_compat and self.recon_reduction != "sum":
                raise ValueError("paper_compat = true sums over the batch. Leave recon_reduction out, or paper_compat")
            published = ("vector", "bernoulli", "none")
            if self.paper_compat and (self.latent, self.likelihood, self.structure) != published:
                raise ValueError(
                    "paper_compat = true has latent = vector, likelihood = bernoulli and structure = none, as the "
                    "published code has. Leave those out, or paper_compat"
                )
            if self.latent == "map" and self.decoder == "published":
                raise ValueError("decoder = published draws from a vector. Leave decoder out, or latent = map")

        def idle(self) -> dict[str, str]:
            """Return what belongs to another schedule, or to the other kind of code."""
            of_map = {"decoder": "latent = map"} if self.latent == "map" else {}
            cyclical = {} if self.kl_anneal_cyclical else {"kl_anneal_cycle_length": "kl_anneal_cyclical = false"}
            return super().idle() | cyclical | of_map

    needs_labels = True
    shared_in_evaluation = ("encoder", "patches")

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        self.latent_map: tuple[int, int, int] | None = None
        self.patches: MapEncoder | None = None
        self.encoder = build_encoder(h, input_shape)
        if h.latent == "map":
            self.patches = MapEncoder(input_shape, h.latent_channels, h.latent_halvings)
            self.latent_map = self.patches.shape
        self.latent_size: int = math.prod(self.latent_map or (h.latent_dim,))  # M
        self.to_posterior = nn.Sequential(
            nn.Linear(self.encoder.num_features, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, h.latent_channels if self.latent_map else 2 * h.latent_dim),
        )  # fmt: skip
        if self.latent_map:
            start_at_zero(self.to_posterior[-1])
            self.decoder: nn.Module = MapDecoder(input_shape, h.latent_channels, h.latent_halvings)
            self.head: nn.Module = nn.Linear(h.latent_channels, num_classes)
        else:
            if h.decoder == "published":
                self.decoder = PublishedVAEDGDecoder(h.latent_dim, input_shape, HIDDEN)
            else:
                self.decoder = ConvDecoder(h.latent_dim, input_shape, (HIDDEN, HIDDEN))
            self.head = nn.Sequential(nn.ReLU(), nn.Linear(h.latent_dim, num_classes))
        self.likelihood = make_likelihood(h.likelihood, h.sigma)
        self.structure = h.make_structure(input_shape)
        self.label_loss = LabelLoss(num_classes, self.hparams.class_weights)

    @property
    def batch_coupled(self) -> bool:
        return bool(self.hparams.paper_compat or self.likelihood.batch_coupled)

    def set_class_counts(self, counts: Tensor) -> None:
        self.label_loss.set_class_counts(counts)

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, y = concatenate(minibatches)  # (B, C, H, W) in [0, 1], (B,)
        mean, logvar = self.posterior(x)  # (B, M) each
        z = gaussian.sample(mean, logvar)  # (B, M)
        output = self.decoder(z)  # (B, C, H, W)
        recon_nats = self.likelihood(output, x)  # (B,)
        kl_nats = gaussian.kl_to_standard_normal(mean, logvar).sum(1)  # (B,)
        label = self.label_loss(self.logits(z), y)  # (B,)
        annealing = self.annealing()
        kl_weight = self.hparams.loss_multiplier_kl * annealing
        if self.hparams.paper_compat and self.training:
            recon, label_term, kl = recon_nats.sum(), label.sum(), kl_nats.mean() / mean.shape[1]
        elif self.hparams.paper_compat:  # the same per image of a training batch, whatever batch it is evaluated in
            recon, label_term, kl = recon_nats.mean(), label.mean(), kl_nats.mean() / mean.shape[1]
            kl_weight = kl_weight / (self.hparams.batch_size * self.num_domains)
        elif self.hparams.recon_reduction == "mean":
            recon, label_term, kl = recon_nats.mean() / x[0].numel(), label.mean(), kl_nats.mean() / mean.shape[1]
        else:
            recon, label_term, kl = recon_nats.mean(), label.mean(), kl_nats.mean()
        kl_weighted = kl_weight * kl
        terms = {
            "loss": recon + kl_weighted + self.hparams.loss_multiplier_y * label_term,
            "recon_loss": recon,
            "KLD_loss": kl,
            "KLD_weighted": kl_weighted,
            "y_loss": label_term,
            "kl_anneal_weight": annealing,
            "recon_nats": recon_nats.mean(),
            "KLD_nats": kl_nats.mean(),
        }
        return self.structure.add_to(terms, lambda: self.likelihood.mean(output), x)

    def annealing(self) -> Tensor:
        """Return the annealing weight, a () tensor: of the current step in training, 1 in evaluation."""
        return self.annealing_at(self.step) if self.training else torch.ones_like(self.step, dtype=torch.float32)

    def annealing_at(self, step: Tensor) -> Tensor:
        """Return the annealing weights of steps, a tensor of the same shape."""
        h = self.hparams
        if h.kl_anneal_cyclical:
            return schedules.cyclical(step, h.kl_anneal_start, h.kl_anneal_end, h.kl_anneal_cycle_length)
        return schedules.linear(step, h.kl_anneal_start, h.kl_anneal_end)

    def explain_weights(self, steps: int, batch_size: int) -> weights.WeightMeaning:
        schedule = self.annealing_at(torch.arange(steps + 1))
        return weights.describe(
            "batch_sum" if self.hparams.paper_compat else self.hparams.recon_reduction,
            num_values=self.input_shape[0] * self.input_shape[1] * self.input_shape[2],
            num_latents=self.latent_size,
            kl_weight=self.hparams.loss_multiplier_kl,
            label_weight=self.hparams.loss_multiplier_y,
            batch_size=batch_size,
            annealing_mean=schedules.mean_over(schedule[:-1]),
            annealing_reached=schedule.max().item(),
            sigma=self.likelihood.sigma if isinstance(self.likelihood, Gaussian) else None,
            latent_map=self.latent_map,
            structure=self.hparams.structure,
            structure_weight=self.hparams.structure_weight,
        )

    def see_training_images(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Start a map from the principal components of the images' patches."""
        if self.patches is not None and isinstance(self.decoder, MapDecoder):
            start_from_components(self.patches, self.decoder, batches())

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        known = self.to_posterior(self.encoder(x)).float()  # (B, 2 M), or (B, c) for a map
        if self.patches is None or self.latent_map is None:
            mean, logvar = known.chunk(2, dim=1)
            return mean, logvar
        mean, logvar = self.patches(x)
        return mean + known.repeat_interleave(math.prod(self.latent_map[1:]), dim=1), logvar

    def logits(self, z: Tensor) -> Tensor:
        """Return class logits (B, K) for codes (B, M); those of a map are read from the mean over its places."""
        return self.head(z if self.latent_map is None else z.unflatten(1, self.latent_map).mean((2, 3)))

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.likelihood.mean(self.decoder(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def predict(self, x: Tensor) -> Tensor:
        return self.logits(self.encode(x))

    def sample(self, n: int) -> Tensor:
        return self.decode(torch.randn(n, self.latent_size, device=self.step.device))
