"""Autoencoder with a discrete code: a grid of indices into a codebook that follows the encoder.

van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv 1711.00937), with the codebook of moving
averages of its appendix A.1. Each vector z of the encoder's grid of h x w cells becomes the nearest e of `num_codes`
vectors of `code_dim`, on which the decoder builds the image; gradients pass from e to z as if they were one.

    loss = recon_loss + commitment_weight * commitment_loss

    recon_loss      = -log p(x|e)                        likelihood, sigma
    commitment_loss = sum over the grid of |z - sg[e]|^2     sg: no gradient
    codebook        : averages with `ema_decay` of the vectors that chose each code, moved after each optimiser step;
                      a code that is used less than `restart_below` times the mean is put onto a vector of the batch

`recon_reduction: mean` divides the first by the number of pixel values and the second by that of the grid's, h w D;
`sum` takes both as sums. The codebook begins as vectors of the first batch, when that has passed.

Logged beside them: `perplexity`, exp of the entropy of the codes in about the last 1 / (1 - ema_decay) training batches
(in evaluation too: it describes the codebook, not the images that are evaluated); and `bits_per_code`, what a code of
these images costs under those frequencies, the figure that a prior over codes has to beat. While codes still change
their meaning, as in the first hundreds of steps, both are too high: they are of a mixture over time.

It has no prior over codes, so it gives no samples: `CodePrior` is one, trained by a run of its own. It uses no labels.
"""

import math
from typing import Any, Literal

from torch import Tensor

from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.algorithms.variational import LikelihoodHParams, LikelihoodName
from domainbed.hparams import Field, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from domainbed.networks.quantizer import GridDecoder, GridEncoder, VectorQuantizer
from domainbed.objectives import rows
from domainbed.objectives.likelihoods import make_likelihood, squared_error
from domainbed.registry import ALGORITHMS

#: 2 sigma^2 = 0.063, the variance of CIFAR-10's values in [0, 1], by which the authors' code divides the squared error.
SIGMA = 0.178


@ALGORITHMS.register("VQVAE")
class VQVAE(Algorithm):
    """VQ-VAE: the code is a grid of indices into a codebook of moving averages (van den Oord et al. 2017)."""

    class HParams(LikelihoodHParams):
        """Options of VQVAE."""

        num_codes: PositiveInt = Field(512, description="size K of the codebook")
        code_dim: PositiveInt = Field(64, description="size D of its vectors")
        num_halvings: PositiveInt = Field(2, description="2: the grid of codes has a quarter of the image's side")
        hidden_dim: PositiveInt = Field(128, description="channels of encoder and decoder at the grid")
        num_blocks: PositiveInt = Field(2, description="residual blocks of encoder and decoder, each")
        commitment_weight: NonNegativeFloat = Field(0.25, description="weight of the commitment loss, the paper's beta")
        ema_decay: Fraction = Field(0.99, description="decay of the codebook's averages")
        restart_below: PositiveFloat = Field(
            0.03, description="share of the mean use below which a code is put onto a vector of the batch"
        )
        likelihood: LikelihoodName = Field(
            "gaussian", description=LikelihoodHParams.model_fields["likelihood"].description
        )
        sigma: PositiveFloat = Field(SIGMA, description=LikelihoodHParams.model_fields["sigma"].description)
        recon_reduction: Literal["mean", "sum"] = Field(
            "mean", description="mean or sum, over pixels for the reconstruction and over the grid for the commitment"
        )
        lr: PositiveFloat = Field(3e-4, description="learning rate")

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        sizes = (h.code_dim, h.hidden_dim, h.num_halvings, h.num_blocks)
        self.encoder = GridEncoder(input_shape, *sizes)
        self.quantizer = VectorQuantizer(h.num_codes, h.code_dim, h.ema_decay, h.restart_below)
        self.decoder = GridDecoder(input_shape, *sizes)
        self.likelihood = make_likelihood(h.likelihood, h.sigma)
        self.structure = h.make_structure(input_shape)
        self.num_codes: int = h.num_codes
        self.grid = self.encoder.grid
        self.seen = rows.Collected()  # between `losses` and `after_step`, never saved

    @property
    def batch_coupled(self) -> bool:
        return self.likelihood.batch_coupled

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, _ = concatenate(minibatches)  # (B, C, H, W) in [0, 1]
        z = self.encoder(x)  # (B, D, h, w)
        quantized, codes = self.quantizer(z)  # (B, D, h, w), (B, h, w)
        output = self.decoder(quantized)  # (B, C, H, W)
        recon_nats = self.likelihood(output, x)  # (B,)
        commitment = squared_error(z, quantized.detach())  # (B,)
        if self.training:
            self.seen.add(z.detach(), codes)
        values, latents = (x[0].numel(), z[0].numel()) if self.hparams.recon_reduction == "mean" else (1, 1)
        recon, commitment = recon_nats.mean() / values, commitment.mean() / latents
        weighted = self.hparams.commitment_weight * commitment
        terms = {
            "loss": recon + weighted,
            "recon_loss": recon,
            "commitment_loss": commitment,
            "commitment_weighted": weighted,
            "recon_nats": recon_nats.mean(),
            "perplexity": self.quantizer.perplexity(),
            "bits_per_code": self.quantizer.nll(codes).mean() / (codes[0].numel() * math.log(2)),
        }
        return self.structure.add_to(terms, lambda: self.likelihood.mean(output), x)

    def after_step(self) -> None:
        """Move the codebook towards the vectors of the step's batch, as they were before the step."""
        self.quantizer.update(*self.seen.whole())

    def codes(self, x: Tensor) -> Tensor:
        return self.quantizer.nearest(self.encoder(x))  # (B, h, w)

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self.likelihood.mean(self.decoder(self.quantizer.lookup(codes)))  # (B, C, H, W)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codebook vectors of the grid, flattened: (B, D h w)."""
        return self.quantizer.lookup(self.codes(x)).flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for flattened grids (B, D h w), as they are: not quantised again."""
        return self.likelihood.mean(self.decoder(z.unflatten(1, (self.hparams.code_dim, *self.grid))))

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode_codes(self.codes(x))
