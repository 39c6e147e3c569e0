"""Label-conditioned VAE: draws an image again under a label that is given, its own or another, in its own style.

Kingma et al. 2014 (arXiv 1406.5298) and Sohn et al. 2015, "Learning Structured Output Representation using Deep
Conditional Generative Models". With s the given label, e its embedding, and z of `latent_dim` dimensions:

    loss = E[-log p(x|z, s)] + beta * a(step) * KL(q(z|x, s) || p(z|s)) + judge_weight * y_loss

    conditioning     q(z|x, s) = N(mean, exp(logvar))           p(z|s) = N(mean, exp(logvar))     decoder
    decoder          mean(x), logvar(x)                         0, 0                              sees z and e(s)
    prior            mean(x) + e_m(s), logvar(x) + e_v(s)       e_m(s), e_v(s)                    sees z
    posterior        mean(x) + e_m(s), logvar(x) + e_v(s)       0, 0                              sees z

    s      = y, or with probability `perturbed_share` in training another class, each equally likely; y in evaluation
    y_loss = -log softmax(judge(reconstruction))[s], by the frozen classifier of `judge_run`

Likelihood, annealing and reductions are those of `variational`. In `posterior` the KL pays for whatever the label adds
to z, and a sample of p(z) knows no label. `prior` moves the prior along, so that the label's mean costs nothing;
`decoder` tells the decoder instead, and z need not hold the label at all.

Also under a perturbed label the reconstruction is compared with x. The judge pulls the other way, and judge_weight
(lambda) settles how far; without a judge, perturbed labels teach the model to distrust labels. The judge is not trained
here: its gradient goes to encoder, decoder and embedding. In evaluation `judged_clean` is the share of reconstructions
under y that the judge reads as y, and `judged_perturbed` that of those under the next class, (y + 1) mod K, that it
reads as that class. A decoder can learn to please its own judge: `benchmarks/cvae_labels.py` asks another one.

With `latent: map` z is a map of `latent_channels` numbers for each patch (`networks.maps`), and an embedding has as
many, the same at every place.

To reconstruct an image it needs a label. It does not predict labels and does not know which environment an image comes
from.
"""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainbed.algorithms import finished
from domainbed.algorithms.base import Algorithm, Predictor, concatenate
from domainbed.algorithms.finished import RunPath
from domainbed.algorithms.variational import LatentHParams, VAEHParams, VariationalObjective
from domainbed.errors import UserError
from domainbed.hparams import Field, Kind, NonNegativeFloat, PositiveFloat, PositiveInt
from domainbed.networks.maps import MapDecoder, MapEncoder, start_from_components
from domainbed.networks.strided import StridedDecoder, StridedEncoder
from domainbed.objectives import gaussian, rows, weights
from domainbed.registry import ALGORITHMS

#: The coarsest grid of the convolutions has about this many cells a side.
GRID = 4

Share = Annotated[float, Field(ge=0, lt=1), Kind("a share from 0 to below 1, such as 0.1")]


@ALGORITHMS.register("CVAE")
class CVAE(Algorithm):
    """Label-conditioned VAE: reconstructs an image under a given label, taught by a frozen judge of labels."""

    class HParams(VAEHParams, LatentHParams):
        """Options of CVAE."""

        conditioning: Literal["prior", "decoder", "posterior"] = Field(
            "prior", description="what sees the label: prior and posterior; the decoder; or the posterior alone"
        )
        latent_dim: PositiveInt = Field(32, description="latent=vector: size D of z")
        width: PositiveInt = Field(
            32, description="latent=vector: channels of every convolution, of the encoder and the decoder"
        )
        perturbed_share: Share = Field(0.1, description="share of labels that training replaces by another class")
        judge_run: RunPath = Field(
            None, description="finished run whose classifier reads reconstructions; with judge_weight=0 none is needed"
        )
        judge_weight: NonNegativeFloat = Field(
            0.0, description="lambda, weight of the judge's cross-entropy; at 0 it only reports"
        )
        lr: PositiveFloat = Field(1e-3, description="learning rate")

        runs: ClassVar[dict[str, str]] = {"judge_run": "ERM"}

        def idle(self) -> dict[str, str]:
            """Return what belongs to a vector too, where the code is a map."""
            return super().idle() | ({"width": "latent = map"} if self.latent == "map" else {})

        def needs_run(self, key: str) -> bool:
            """Whether a judge is needed: not where it would have no weight."""
            return self.judge_weight > 0

    needs_labels = True
    judge: finished.Frozen | None

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        in_decoder = h.conditioning == "decoder"
        self.latent_map: tuple[int, int, int] | None = None
        self.latent_size: int = h.latent_dim  # D
        halvings = max(0, math.ceil(math.log2(min(input_shape[1:]) / GRID)))
        widths = [h.width] * (halvings + 1)
        if h.latent == "map":
            self.encoder: nn.Module = MapEncoder(input_shape, h.latent_channels, h.latent_halvings)
            self.latent_map = self.encoder.shape
            self.latent_size = math.prod(self.latent_map)
        else:
            self.encoder = StridedEncoder(input_shape, widths, stride=2)
            self.to_posterior = nn.Linear(self.encoder.num_features, 2 * h.latent_dim)
        size = h.latent_dim if self.latent_map is None else h.latent_channels
        given = size if in_decoder else 0  # what the decoder reads of the label
        self.embedding = nn.Embedding(num_classes, size if in_decoder else 2 * size)
        if h.latent == "map":
            self.decoder: nn.Module = MapDecoder(input_shape, size, h.latent_halvings, given)
        else:
            self.decoder = StridedDecoder(size + given, input_shape, widths, stride=2)
        self.objective = VariationalObjective(h, input_shape, self.latent_size, self.latent_map)
        self.judge = self.make_judge(input_shape) if h.judge_run or h.needs_run("judge_run") else None

    def make_judge(self, input_shape: tuple[int, int, int]) -> finished.Frozen:
        """Return the frozen judge.

        Raises:
            UserError: it can't be used: of another input size or number of classes, or no classifier.
        """
        judge = finished.frozen(self.hparams, "judge_run", input_shape, Predictor)
        if judge.algorithm.num_classes != self.num_classes:
            raise UserError(
                f"judge_run: that run tells {judge.algorithm.num_classes} classes apart, but these images have "
                f"{self.num_classes}. Use a judge that was trained on the same classes"
            )
        return judge

    @property
    def batch_coupled(self) -> bool:
        return self.objective.batch_coupled

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, y = concatenate(minibatches)  # (B, C, H, W) in [0, 1], (B,)
        given = perturb(y, self.hparams.perturbed_share, self.num_classes) if self.training else y  # (B,)
        mean, logvar = self.posterior(x, given)  # (B, D) each
        kl = gaussian.kl(mean, logvar, *self.prior(given))  # (B, D)
        output = self.raw_decode(gaussian.sample(mean, logvar), given)  # (B, C, H, W)
        terms = self.objective(output, x, kl, self.step)
        if self.judge is None:
            return terms
        y_loss = F.cross_entropy(self.judge_logits(self.objective.likelihood.mean(output)), given)
        terms |= {"loss": terms["loss"] + self.hparams.judge_weight * y_loss, "y_loss": y_loss}
        if not self.training:
            terms["judged_clean"] = self.judged(x, y)
            terms["judged_perturbed"] = self.judged(x, (y + 1) % self.num_classes)
        return terms

    def judge_logits(self, images: Tensor) -> Tensor:
        """Return the judge's logits (B, K), float32, for images in [0, 1], differentiable in these."""
        assert self.judge is not None, "without judge_run nobody judges"
        classifier: Any = self.judge.algorithm
        return classifier.predict(images).float()

    def judged(self, x: Tensor, given: Tensor) -> Tensor:
        """Return the share, () float32, of the reconstructions under given labels that the judge reads as these."""
        return (self.judge_logits(self.reconstruct(x, given)).argmax(1) == given).float().mean()

    def see_training_images(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Start a map from the principal components of the images' patches."""
        if isinstance(self.encoder, MapEncoder) and isinstance(self.decoder, MapDecoder):
            start_from_components(self.encoder, self.decoder, batches())

    def explain_weights(self, steps: int, batch_size: int) -> weights.WeightMeaning:
        return self.objective.explain(steps, batch_size, None if self.judge is None else self.hparams.judge_weight)

    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and logvar, (B, D) each, of q(z|x, y); without y the image's part alone, which knows no label."""
        if self.latent_map is not None:
            mean, logvar = self.encoder(x)
        else:
            mean, logvar = self.to_posterior(self.encoder(x)).float().chunk(2, dim=1)
        if y is None or self.hparams.conditioning == "decoder":
            return mean, logvar
        label_mean, label_logvar = self.embedded(y).chunk(2, dim=1)
        return mean + label_mean, logvar + label_logvar

    def prior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logvar, (B, D) each, of p(z|y)."""
        if self.hparams.conditioning == "prior":
            mean, logvar = self.embedded(y).chunk(2, dim=1)
            return mean, logvar
        standard = torch.zeros(len(y), self.latent_size, device=y.device)
        return standard, standard

    def raw_decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Return the decoder's raw output (B, C, H, W); it sees y with `conditioning: decoder` alone."""
        if self.hparams.conditioning == "decoder":
            z = torch.cat([z, self.embedded(y)], dim=1)
        return self.decoder(z)

    def embedded(self, y: Tensor | None) -> Tensor:
        """Return the embeddings of labels (B,), the same at every place of a map: (B, D) or (B, 2 D)."""
        e = self.embedding(y)
        return e if self.latent_map is None else e.repeat_interleave(math.prod(self.latent_map[1:]), dim=1)

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return E[x|z, y], (B, C, H, W), for z of q(z|x, y) or p(z|y); without y E[x|z], each label equally likely."""
        if y is None and self.hparams.conditioning == "decoder":
            each = [self.decode(z, torch.full_like(z[:, 0], k, dtype=torch.int64)) for k in range(self.num_classes)]
            return torch.stack(each).mean(0)
        return self.objective.likelihood.mean(self.raw_decode(z, y))

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1]: x again under the labels y (B,), from the mean of q(z|x, y)."""
        return self.decode(self.posterior(x, y)[0], y)

    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n images (n, C, H, W) of the labels y (n,), or of labels drawn uniformly.

        With `conditioning: posterior` the prior knows no label, and neither do its samples.
        """
        if y is None:
            y = torch.randint(self.num_classes, (n,), device=self.step.device)
        return self.decode(gaussian.sample(*self.prior(y)), y)


def perturb(y: Tensor, share: float, num_classes: int) -> Tensor:
    """Replace each label with probability `share` by another class, each of the others equally likely; (B,) long."""
    others = (y + rows.randint_like(y, 1, num_classes)) % num_classes
    return torch.where(rows.rand_like(y.float()) < share, others, y)
