"""What a weight means: the same objective stated with sums, in nats, whatever reductions it was given with.

With sums over D values of an image and M latent dimensions, an objective is

    -log p(x|z) + beta KL(q(z|x) || p(z)) + label_weight (-log p(y|z)).

With means over both, a weight w on the KL is beta = w D / M and a label weight v is v D, for the same likelihood
(dividing a loss by D changes the length of a gradient, not its direction). `beta_norm = beta M / D` is comparable
between image sizes (Higgins et al. 2017, appendix A.4).
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class WeightMeaning:
    """The weights of one run, translated.

    Attributes:
        reduction: how the loss reduces pixels and latent dimensions.
        num_values: D, values of an image. num_latents: M, latent dimensions.
        kl_weight: the weight as given.
        beta: its meaning beside sums in nats, after annealing.
        beta_mean: the mean of beta over the steps of this run.
        beta_reached: the largest beta of this run.
        beta_norm: beta M / D.
        label_weight: the weight as given. label_weight_nats: its meaning beside sums in nats.
    """

    reduction: str
    num_values: int
    num_latents: int
    kl_weight: float
    beta: float
    beta_mean: float
    beta_reached: float
    beta_norm: float
    label_weight: float
    label_weight_nats: float

    def as_dict(self) -> dict[str, float | int | str]:
        """The attributes by name, for the records."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same in sentences."""
        size, latents = f"{self.num_values:,} values of an image", f"{self.num_latents:,} latent dimensions"
        lines = [
            f"What the KL weight means: the loss takes {self.reduction} ({size}, {latents}).",
            f"  KL weight {self.kl_weight:g} is beta = {_number(self.beta)} beside sums in nats after annealing "
            f"(mean over this run {_number(self.beta_mean)}); beta_norm = {self.beta_norm:.3g}.",
            f"  Label weight {self.label_weight:g} is {_number(self.label_weight_nats)} beside sums in nats.",
        ]
        if self.beta_reached < self.beta * (1 - 1e-9):
            share = self.beta_reached / self.beta
            lines.append(
                f"  WARNING: this run ends before its annealing does: the KL weight reaches {share:.2f} of its value, "
                f"beta = {_number(self.beta_reached)}. Lower kl_anneal_end or raise --steps. "
                "Evaluation uses the full weight."
            )
        return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def describe(
    reduction: str,
    *,
    num_values: int,
    num_latents: int,
    kl_weight: float,
    label_weight: float,
    batch_size: int,
    annealing_mean: float,
    annealing_reached: float,
) -> WeightMeaning:
    """Translate the weights of a loss.

    Args:
        reduction: "mean" (over pixels, over latent dimensions), "sum" (over both) or "batch_sum" (the published VAE-DG:
            reconstruction and label loss summed over the batch, the KL's mean over batch and latent dimensions).
        num_values, num_latents: D and M.
        kl_weight, label_weight: as given.
        batch_size: images in one step, over all environments; matters for "batch_sum" alone.
        annealing_mean, annealing_reached: annealing weight over the run, its mean and its largest.
    """
    if reduction == "mean":
        beta, label, words = kl_weight * num_values / num_latents, label_weight * num_values, "means"
    elif reduction == "sum":
        beta, label, words = kl_weight, label_weight, "sums"
    elif reduction == "batch_sum":
        beta, label = kl_weight / (batch_size * num_latents), label_weight
        words = f"sums for the reconstruction and a mean for the KL, so that beta depends on the batch ({batch_size})"
    else:
        raise ValueError(f"no reduction named {reduction!r}: mean, sum or batch_sum")
    return WeightMeaning(
        words, num_values, num_latents, kl_weight, beta, beta * annealing_mean, beta * annealing_reached,
        beta * num_latents / num_values, label_weight, label,
    )  # fmt: skip
