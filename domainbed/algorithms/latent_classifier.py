"""A classifier on the frozen encoder of a finished run, beside the same classifier on pixels and on their PCA.

The linear probe of Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes"
(arXiv 1610.01644): what a small network reads from a code says what is in it. It says so only beside what the same
network reads from the pixels, and from as many principal components of them: three probes are trained at once, on

    latent    layer=latent: encode(x) of the finished run; layer=features: what its `encoder` gives, flattened
    pixels    the values of the image
    pca       their first min(size of latent, number of values, 3072) principal components

each less its mean over the training images of this run's sources, divided by one scale, and each by a network of its
own: one linear layer (head=linear), or layers of `hidden_dims` with ReLU before it (head=mlp). The scale makes the mean
variance 1; it is not one of every value, because a pixel that hardly changes on the training cameras, such as a black
corner, would be blown up on a camera where it does.

    loss = y_loss + y_loss_pixels + y_loss_pca      each a mean of class_weights[y] * -log softmax(head(input))[y]

The three share no parameter, so that each is trained as it would be alone. `predict` is that of the latent; it chooses
the checkpoint, at which all three are judged: accuracy_pixels, accuracy_pca, and accuracy_minus_pixels and
accuracy_minus_pca, differences on the same images.

    python train_all.py first --algorithm AE
    python train_all.py probe --algorithm LatentClassifier encoder_run=results/train_output/<dataset>/first

The finished run is frozen, in evaluation mode, and its weights are saved with this run's. Its encoder runs in every
step: codes are not kept, because images may be augmented. It neither fine-tunes the encoder nor reconstructs.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from domainbed.algorithms import finished
from domainbed.algorithms.base import Algorithm, Encoder, LabelHParams, LabelLoss, concatenate
from domainbed.errors import UserError
from domainbed.hparams import Field, PositiveFloat, PositiveInt
from domainbed.minibatch import Minibatch
from domainbed.registry import ALGORITHMS

#: As many as an image of 3 x 32 x 32 has values.
MAX_COMPONENTS = 3072
#: Components are saved with every checkpoint, one float per value and component: no more than a GiB of them.
MAX_FLOATS = 2**28
#: Up to so many values, those of 3 x 32 x 32, the covariance is decomposed as a whole.
EXACT_VALUES = 3072
POWER_PASSES = 4
#: Components whose variance is below this share of the largest are rounding of float32 products, and are left out.
ROUNDING = 1e-6

Batches = Callable[[], Iterable[Tensor]]


@ALGORITHMS.register("LatentClassifier")
class LatentClassifier(Algorithm):
    """Linear or MLP probe on a finished run's frozen encoder, beside the same on pixels and on PCA."""

    class HParams(LabelHParams):
        """Options of LatentClassifier."""

        encoder_run: finished.RunPath = Field(
            None, description="finished run whose encoder is probed, such as results/train_output/CIFAR10/vae_cifar10"
        )
        layer: Literal["latent", "features"] = Field(
            "latent", description="latent: the code; features: what the encoder gives before it, flattened"
        )
        head: Literal["linear", "mlp"] = Field("linear", description="linear: one layer; mlp: hidden_dims before it")
        hidden_dims: list[PositiveInt] = Field([], description="widths of the hidden layers of head=mlp")
        lr: PositiveFloat = Field(1e-3, description="learning rate")

        runs = {"encoder_run": "AE"}

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            if self.head == "linear" and self.hidden_dims:
                raise ValueError(
                    f"hidden_dims = {self.hidden_dims}, but head = linear has no hidden layer. Use head=mlp, or leave "
                    "them out"
                )
            if self.head == "mlp" and not self.hidden_dims:
                raise ValueError("head = mlp needs the widths of its hidden layers. Give hidden_dims, such as [256]")

    needs_labels = True
    shared_in_evaluation = ("inputs",)

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        frozen = finished.frozen(h, "encoder_run", input_shape, Encoder if h.layer == "latent" else None)
        self.inputs = ProbeInputs(frozen, h.layer, input_shape)
        self.heads = nn.ModuleDict(
            {name: make_head(size, h.hidden_dims, num_classes) for name, size in self.inputs.sizes.items()}
        )
        self.label_loss = LabelLoss(num_classes, h.class_weights)

    def set_class_counts(self, counts: Tensor) -> None:
        self.label_loss.set_class_counts(counts)

    def see_training_images(self, batches: Batches) -> None:
        self.inputs.fit(batches)

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, y = concatenate(minibatches)  # (B, C, H, W) in [0, 1], (B,)
        inputs = self.inputs(x)
        nll = {name: self.label_loss(head(inputs[name]), y).mean() for name, head in self.heads.items()}
        terms = {"y_loss": nll["latent"], "y_loss_pixels": nll["pixels"], "y_loss_pca": nll["pca"]}
        return {"loss": torch.stack([*nll.values()]).sum(), **terms}

    def evaluation_terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return self.losses([Minibatch(x, y)])

    def predict(self, x: Tensor) -> Tensor:
        return self.heads["latent"](self.inputs(x)["latent"])  # (B, K)

    def predict_pixels(self, x: Tensor) -> Tensor:
        """Return the answer (B, K) of the probe on pixels."""
        return self.heads["pixels"](self.inputs(x)["pixels"])

    def predict_pca(self, x: Tensor) -> Tensor:
        """Return the answer (B, K) of the probe on principal components."""
        return self.heads["pca"](self.inputs(x)["pca"])

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"pixels": self.predict_pixels(x), "pca": self.predict_pca(x)}


def make_head(size: int, hidden_dims: list[int], num_classes: int) -> nn.Sequential:
    """Return linear layers from `size` over `hidden_dims` to K classes, with ReLU between them."""
    widths = [size, *hidden_dims, num_classes]
    layers = [part for pair in zip(widths, widths[1:], strict=False) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Standardise(nn.Module):
    """Subtract a mean and divide by one scale, both fixed; the identity before `set`.

    Args:
        size: number of values D.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(()))

    def set(self, mean: Tensor, variance: Tensor) -> None:
        """Take mean and variance, (D,) each; the scale is the root of the mean variance, or 1 where nothing varies."""
        deviation = variance.clamp(min=0).mean().sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """Return (B, D) for (B, D)."""
        return (values - self.mean) / self.scale


class ProbeInputs(nn.Module):
    """What the probes read of images: code, pixels and principal components, in float32 and without gradients.

    Before `fit` nothing is standardised, and the components are the first values of the image.

    Args:
        frozen: the finished run. layer: "latent" or "features".
        input_shape: (C, H, W).

    Attributes:
        sizes: number of values of each.

    Raises:
        UserError: the run's algorithm has no such layer.
    """

    components: Tensor

    def __init__(self, frozen: finished.Frozen, layer: str, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.frozen, self.layer = frozen, layer
        with torch.no_grad():
            size = self.codes(torch.zeros(1, *input_shape)).shape[1]
        num_pixels = math.prod(input_shape)
        self.sizes = {"latent": size, "pixels": num_pixels, "pca": components_beside(size, num_pixels)}
        self.standardise: Any = nn.ModuleDict({name: Standardise(size) for name, size in self.sizes.items()})
        self.register_buffer("components", torch.eye(num_pixels, self.sizes["pca"]))

    def codes(self, x: Tensor) -> Tensor:
        """Return what the finished run makes of images, (B, D), in float32."""
        algorithm: Any = self.frozen.algorithm
        if self.layer == "latent":
            return algorithm.encode(x).float()
        encoder = getattr(algorithm, "encoder", None)
        features = encoder(x) if isinstance(encoder, nn.Module) else None
        if not isinstance(features, Tensor):
            raise UserError(
                f"layer = features, but {algorithm.name}, the algorithm of encoder_run, has no part `encoder` that "
                "gives one tensor. Use layer=latent, or a run of an algorithm that has one, such as AE, VAE or ERM"
            )
        return features.flatten(1).float()

    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the (B, D) inputs of each probe for images (B, C, H, W) in [0, 1]."""
        codes = self.codes(x)
        with torch.autocast(x.device.type, enabled=False):
            pixels = x.flatten(1).float()  # (B, P)
            scores = (pixels - self.standardise["pixels"].mean) @ self.components  # (B, k)
            values = {"latent": codes, "pixels": pixels, "pca": scores}
            return {name: self.standardise[name](value) for name, value in values.items()}

    @torch.no_grad()
    def fit(self, batches: Batches) -> None:
        """Take statistics and principal components from training images.

        Args:
            batches: gives an iterator of images (B, C, H, W) in [0, 1], the same whenever it is called.
        """
        self.standardise["latent"].set(*mean_and_variance(lambda: map(self.codes, batches())))
        with torch.autocast(self.components.device.type, enabled=False):

            def pixels() -> Iterable[Tensor]:
                return (x.flatten(1).float() for x in batches())

            mean, variance = mean_and_variance(pixels)
            self.standardise["pixels"].set(mean, variance)
            components, explained = principal_components(pixels, mean, self.sizes["pca"])
            self.components.copy_(components)
            self.standardise["pca"].set(torch.zeros_like(explained), explained)


def components_beside(size: int, num_values: int) -> int:
    """Return how many principal components of images with `num_values` stand beside a code of a size."""
    return min(size, num_values, MAX_COMPONENTS, max(1, MAX_FLOATS // num_values))


def mean_and_variance(batches: Batches) -> tuple[Tensor, Tensor]:
    """Return mean and variance (of the population), (D,) float64 each, of rows that come in batches (B, D)."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for values in batches():
        values = values.double()
        count, total, squares = count + len(values), total + values.sum(0), squares + values.square().sum(0)
    mean = total / count
    return mean, squares / count - mean.square()


def principal_components(batches: Batches, mean: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """Principal component analysis of rows that come in batches, in memory that does not grow with their number.

    Up to `EXACT_VALUES` values a row, the eigenvectors of the covariance. Above, the same within a subspace of twice as
    many dimensions as are asked for, which `POWER_PASSES` passes of subspace iteration turn towards the leading ones
    (Halko, Martinsson & Tropp 2011, section 4.5). The same rows give the same answer.

    Args:
        batches: gives an iterator of rows (B, P), the same whenever it is called.
        mean: (P,) of all rows.
        num_components: k <= P.

    Returns:
        (P, k) orthonormal components, and the variance (k,) of the rows along each, largest first; both are 0 where
        nothing but rounding is left, as there is where rows are fewer than components.
    """
    num_values = len(mean)
    mean = mean.float()
    width = num_values if num_values <= EXACT_VALUES else min(num_values, 2 * num_components)
    basis: Tensor | None = None  # (P, width); none stands for the identity
    if width < num_values:
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(num_values, width, generator=generator).to(mean.device)).Q
        for _ in range(POWER_PASSES):
            image = torch.zeros_like(basis)
            for rows in batches():
                centred = rows - mean
                image += centred.T @ (centred @ basis)
            basis = torch.linalg.qr(image).Q
    count, covariance = 0, torch.zeros(width, width, dtype=torch.float64, device=mean.device)
    for rows in batches():
        scores = rows - mean if basis is None else (rows - mean) @ basis  # (B, width)
        count += len(scores)
        covariance += scores.T @ scores
    variances, vectors = torch.linalg.eigh(covariance / count)  # in ascending order
    leading = vectors.flip(1)[:, :num_components].float()
    variances = variances.flip(0)[:num_components]
    kept = variances > ROUNDING * variances[0]
    return (leading if basis is None else basis @ leading) * kept, variances * kept
