"""A prior over the discrete codes of a finished run, and with it samples of images.

The second stage of van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv 1711.00937, section 3.3):
a network p(codes) is fitted to the codes that a finished VQ-VAE gives the training images. It is the Gated PixelCNN of
van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders" (arXiv 1606.05328), with `num_layers`
layers of `hidden_dim` channels.

    loss = -log p(codes(x)) = - sum over the grid, in reading order, of log p(code | codes before it)      in nats

`bits_per_code` is the same per code, in bits: log2 K for a uniform distribution. `bits_by_frequency` is what has to be
beaten: the cost of independent codes, each with its frequency in the training images (add-one smoothed).

    python train_all.py codes --algorithm VQVAE
    python train_all.py prior --algorithm CodePrior codes_run=results/train_output/<dataset>/codes

`sample` draws codes one by one and decodes them; a grid of h x w cells costs h w passes of the network. The finished
run is frozen, in evaluation mode, and its weights are saved with this run's. It knows neither labels nor environments,
and it does not reconstruct: that is the other run's.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from domainbed.algorithms import finished
from domainbed.algorithms.base import Algorithm, Coder, concatenate
from domainbed.hparams import Field, PositiveFloat, PositiveInt
from domainbed.networks.autoregressive import GatedPixelCNN
from domainbed.registry import ALGORITHMS


@ALGORITHMS.register("CodePrior")
class CodePrior(Algorithm):
    """Gated PixelCNN over the codes of a finished VQVAE run: gives that run samples."""

    class HParams(Algorithm.HParams):
        """Options of CodePrior."""

        codes_run: finished.RunPath = Field(
            None, description="finished run that makes the codes, such as results/train_output/CIFAR10/vqvae_cifar10"
        )
        hidden_dim: PositiveInt = Field(64, description="channels of the network")
        num_layers: PositiveInt = Field(8, description="gated layers; each looks one row and one column further")
        lr: PositiveFloat = Field(1e-3, description="learning rate")

        runs = {"codes_run": "VQVAE"}

    frequencies: Tensor  # (K,) of the codes of the training images

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        self.frozen = finished.frozen(h, "codes_run", input_shape, Coder)
        self.prior = GatedPixelCNN(self.coder.num_codes, h.hidden_dim, h.num_layers)
        self.register_buffer("frequencies", torch.full((self.coder.num_codes,), 1 / self.coder.num_codes))

    @property
    def coder(self) -> Any:
        """The finished algorithm, a `Coder`."""
        return self.frozen.algorithm

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, _ = concatenate(minibatches)  # (B, C, H, W) in [0, 1]
        codes = self.codes(x)  # (B, h, w)
        nll = self.prior.nll(codes).mean()
        return {
            "loss": nll,
            "bits_per_code": nll / (codes[0].numel() * math.log(2)),
            "bits_by_frequency": -self.frequencies[codes].log2().mean(),
        }

    def see_training_images(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Count the codes of the training images."""
        counts = torch.ones_like(self.frequencies, dtype=torch.long)
        for x in batches():
            counts += torch.bincount(self.codes(x).flatten(), minlength=len(counts))
        self.frequencies.copy_(counts / counts.sum())

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Return the codes (B, h, w) of images (B, C, H, W)."""
        return self.coder.codes(x)

    def sample(self, n: int) -> Tensor:
        return self.coder.decode_codes(self.prior.sample(n, self.coder.grid))
