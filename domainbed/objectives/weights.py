"""What a weight means: the same objective stated with sums, in nats, whatever reductions it was given with.

With sums over D values of an image and M latent dimensions, an objective is

    -log p(x|z) + beta KL(q(z|x) || p(z)) + label_weight (-log p(y|z)).

With means over both, a weight w on the KL is beta = w D / M and a label weight v is v D, for the same likelihood
(dividing a loss by D changes the length of a gradient, not its direction). `beta_norm = beta M / D` is comparable
between image sizes (Higgins et al. 2017, appendix A.4). Beside a Gaussian likelihood of fixed sigma, beta is another
sigma: SSE / (2 sigma^2) + beta KL is beta times the negative ELBO of a Gaussian of sigma sqrt(beta), the implied sigma.

With a capacity C (Burgess et al. 2018) the weight, gamma, is on |KL - C| and converts in the same way.
"""

import math
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
        label_weight: the weight as given, None without labels. label_weight_nats: its meaning beside sums in nats.
        implied_sigma: of a Gaussian likelihood with beta = 1 and the same minimum; None for other likelihoods.
        capacity: C after annealing, in nats, None without one; kl_weight and beta are then those of |KL - C|.
        capacity_reached: the largest C of this run.
        latent_map: (c, h, w) of a code that is a map, M = c h w; None for a vector.
        structure: name of a term that is no likelihood; None without one. structure_weight: as given.
        structure_weight_nats: its meaning beside sums in nats.
    """

    reduction: str
    num_values: int
    num_latents: int
    kl_weight: float
    beta: float
    beta_mean: float
    beta_reached: float
    beta_norm: float
    label_weight: float | None = None
    label_weight_nats: float | None = None
    implied_sigma: float | None = None
    capacity: float | None = None
    capacity_reached: float | None = None
    latent_map: tuple[int, int, int] | None = None
    structure: str | None = None
    structure_weight: float | None = None
    structure_weight_nats: float | None = None

    def as_dict(self) -> dict[str, float | int | str | None]:
        """The attributes by name, for the records."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same in sentences."""
        size, latents = f"{self.num_values:,} values of an image", f"{self.num_latents:,} latent dimensions"
        if self.latent_map is not None:
            channels, height, width = self.latent_map
            latents += f": {channels} channels at {height} x {width} places"
        lines = [f"What the KL weight means: the loss takes {self.reduction} ({size}, {latents})."]
        if self.capacity is None:
            lines.append(
                f"  KL weight {self.kl_weight:g} is beta = {_number(self.beta)} beside sums in nats after annealing "
                f"(mean over this run {_number(self.beta_mean)}); beta_norm = {self.beta_norm:.3g}."
            )
        else:
            lines.append(
                f"  gamma {self.kl_weight:g} is {_number(self.beta)} beside sums in nats, on the distance of the KL "
                f"from a capacity that ends at {_number(self.capacity)} nats."
            )
        if self.implied_sigma is not None:
            lines.append(
                f"  The implied sigma is {_number(self.implied_sigma)}: with beta = 1, a Gaussian of that sigma has "
                "the same minimum."
            )
        if self.label_weight is not None and self.label_weight_nats is not None:
            lines.append(
                f"  Label weight {self.label_weight:g} is {_number(self.label_weight_nats)} beside sums in nats."
            )
        if self.structure_weight is not None and self.structure_weight_nats is not None:
            lines.append(
                f"  Structure weight {self.structure_weight:g} ({self.structure}) is "
                f"{_number(self.structure_weight_nats)} beside sums in nats. What it weighs is no likelihood, so the "
                "loss bounds nothing."
            )
        return lines

    @property
    def warning(self) -> str | None:
        """What is wrong with the annealing; None where nothing is."""
        what, unit, full, reached = "KL weight", "beta = {}", self.beta, self.beta_reached
        if self.capacity is not None and self.capacity_reached is not None:
            what, unit, full, reached = "capacity", "{} nats", self.capacity, self.capacity_reached
        if reached >= full * (1 - 1e-9):
            return None
        return (
            f"the run ends before its annealing does: the {what} reaches {_number(reached / full)} of its value, "
            f"{unit.format(_number(reached))}. Lower kl_anneal_end or raise --steps. Evaluation uses the full weight"
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def describe(
    reduction: str,
    *,
    num_values: int,
    num_latents: int,
    kl_weight: float,
    batch_size: int,
    annealing_mean: float,
    annealing_reached: float,
    label_weight: float | None = None,
    sigma: float | None = None,
    capacity: float | None = None,
    latent_map: tuple[int, int, int] | None = None,
    structure: str = "none",
    structure_weight: float = 0.0,
) -> WeightMeaning:
    """Translate the weights of a loss.

    Args:
        reduction: "mean" (over pixels, over latent dimensions), "sum" (over both) or "batch_sum" (the published VAE-DG:
            reconstruction and label loss summed over the batch, the KL's mean over batch and latent dimensions).
        num_values, num_latents: D and M.
        kl_weight: as given; beside a capacity, the weight of |KL - capacity|.
        batch_size: images in one step, over all environments; matters for "batch_sum" alone.
        annealing_mean, annealing_reached: annealing weight over the run, its mean and its largest.
        label_weight: as given; None where the loss has no label term.
        sigma: of a Gaussian likelihood, fixed; None for another.
        capacity: in nats; None where the KL itself is weighed. Annealing is then of the capacity, not of the weight.
        latent_map: (c, h, w) of a code that is a map.
        structure, structure_weight: name and weight, as given, of a term that is no likelihood.
    """
    if reduction == "mean":
        beta, label_factor, words = kl_weight * num_values / num_latents, num_values, "means"
    elif reduction == "sum":
        beta, label_factor, words = kl_weight, 1, "sums"
    elif reduction == "batch_sum":
        beta, label_factor = kl_weight / (batch_size * num_latents), 1
        words = f"sums for the reconstruction and a mean for the KL, so that beta depends on the batch ({batch_size})"
    else:
        raise ValueError(f"no reduction named {reduction!r}: mean, sum or batch_sum")
    weighed = capacity is None  # else the annealing is the capacity's
    return WeightMeaning(
        reduction=words,
        num_values=num_values,
        num_latents=num_latents,
        kl_weight=kl_weight,
        beta=beta,
        beta_mean=beta * annealing_mean if weighed else beta,
        beta_reached=beta * annealing_reached if weighed else beta,
        beta_norm=beta * num_latents / num_values,
        label_weight=label_weight,
        label_weight_nats=None if label_weight is None else label_weight * label_factor,
        implied_sigma=sigma * math.sqrt(beta) if sigma is not None and weighed else None,
        capacity=capacity,
        capacity_reached=None if capacity is None else capacity * annealing_reached,
        latent_map=latent_map,
        structure=None if structure == "none" else structure,
        structure_weight=None if structure == "none" else structure_weight,
        structure_weight_nats=None if structure == "none" else structure_weight * label_factor,
    )
