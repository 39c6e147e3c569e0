"""Reconstruction terms: how badly an output explains an image, per sample, summed over its values.

`bernoulli_nll` takes logits, `squared_error` takes values. A `Likelihood` is p(x|z) as a module: it takes the raw
output of a decoder, gives -log p(x|z) in nats, and knows which image that output stands for. Targets lie in [0, 1]:
this is what a data set delivers, and outside it a cross-entropy has no minimum, so it is checked here and not guessed
around.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainbed.objectives.precision import at_least_float32

#: Below this |logit| the continuous Bernoulli's normaliser and mean are Taylor series: their closed forms are
#: differences of large numbers there. Both agree to 1e-9 at the border.
TAYLOR_BELOW = 0.3
#: Where log sigma of the sigma-VAE is clipped, softly (Rybkin et al. 2021, appendix).
MIN_LOG_SIGMA = -6.0
#: Share of a batch in the running variance of the sigma-VAE, as of BatchNorm's statistics.
MOMENTUM = 0.1


class Likelihood(nn.Module):
    """p(x|z), given the raw output of a decoder.

    Attributes:
        batch_coupled: whether the value of a sample depends on the others of its training batch.
    """

    batch_coupled: ClassVar[bool] = False

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return -log p(target|z), (B,) nats, summed over values.

        Args:
            output: (B, ...), of a decoder, without an activation.
            target: (B, ...) in [0, 1].

        Raises:
            ValueError: the target leaves [0, 1].
        """
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """Return the mean of p(x|z), the reconstruction: in [0, 1], of the output's shape."""
        return torch.sigmoid(at_least_float32(output))


class Bernoulli(Likelihood):
    """Cross-entropy with logits; for grey values not a likelihood, see `bernoulli_nll`. Its mean is sigmoid(output)."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return bernoulli_nll(output, target)


class ContinuousBernoulli(Likelihood):
    """The cross-entropy made a density on [0, 1] (Loaiza-Ganem & Cunningham 2019).

    With p = sigmoid(output), NLL = BCE - log C(p), C(p) = 2 artanh(1 - 2p) / (1 - 2p). Its mean is not p but
    p / (2p - 1) + 1 / (2 artanh(1 - 2p)) (their eq. 8): nearer to 1/2.
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return bernoulli_nll(output, target) - _log_normaliser(at_least_float32(output)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        near, small, large = _split(at_least_float32(output) / 2)  # x; with it the mean is (1 + coth x - 1/x) / 2
        square = small.square()
        series = small * (1 / 3 - square * (1 / 45 - square * (2 / 945 - square / 4725)))
        return 0.5 + 0.5 * torch.where(near, series, 1 / torch.tanh(large) - 1 / large)


def _log_normaliser(logits: Tensor) -> Tensor:
    """log C(sigmoid(logits)) = log 2 + log(x coth x) with x = logits / 2, elementwise."""
    near, small, large = _split(logits / 2)
    square, size = small.square(), large.abs()
    series = square * (1 / 3 - square * (7 / 90 - square * (62 / 2835 - square * (127 / 18900))))
    return math.log(2) + torch.where(near, series, size.log() - torch.tanh(size).log())


def _split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where x is near 0, x there (else 0) and x elsewhere (else 1), so that no branch's gradient overflows."""
    near = x.abs() < TAYLOR_BELOW / 2
    return near, torch.where(near, x, 0.0), torch.where(near, 1.0, x)


class Gaussian(Likelihood):
    """N(x; sigmoid(output), sigma^2) in every value: SSE / (2 sigma^2) + D log sigma + D/2 log(2 pi).

    Args:
        sigma: the standard deviation, fixed, on the scale of x in [0, 1].
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        check_unit_range(target)
        error = squared_error(self.mean(output), target)
        return error / (2 * self.sigma**2) + target[0].numel() * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))


class SigmaVAE(Likelihood):
    """N(x; sigmoid(output), s^2) with the best s for the batch, one for all values (Rybkin et al. 2021, eq. 5).

    In training s^2 is the mean squared error of the batch, and the gradient flows through it; in evaluation it is the
    running mean of those, so that a value depends on no other image. log s is clipped softly at -6.

    It finds the balance with a KL of weight 1 by itself; a weight beta beside it is worth a sigma of s sqrt(beta).

    Attributes:
        variance: () buffer, the running mean; 1 before the first batch.
        num_batches: () buffer.
    """

    batch_coupled = True
    variance: Tensor
    num_batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        check_unit_range(target)
        num_values = target[0].numel()
        error = squared_error(self.mean(output), target)  # (B,)
        variance = error.mean() / num_values if self.training else self.variance.to(error.dtype)
        if self.training:
            self._remember(variance.detach())
        log_sigma = 0.5 * variance.clamp(min=torch.finfo(variance.dtype).tiny).log()
        log_sigma = MIN_LOG_SIGMA + F.softplus(log_sigma - MIN_LOG_SIGMA)
        return 0.5 * error * torch.exp(-2 * log_sigma) + num_values * (log_sigma + 0.5 * math.log(2 * math.pi))

    @torch.no_grad()
    def _remember(self, variance: Tensor) -> None:
        """Take a batch's variance into the running mean: the plain mean at first, then with `MOMENTUM`."""
        self.num_batches += 1
        self.variance.lerp_(variance.to(self.variance.dtype), (1 / self.num_batches).clamp(min=MOMENTUM))


class LogCosh(Likelihood):
    """Hyperbolic secant: p(x) = 1 / (pi sigma cosh t), t = (x - sigmoid(output)) / sigma, in every value.

    -log p = log cosh t + log pi + log sigma, with log cosh t = |t| + softplus(-2|t|) - log 2: half a square for small
    t, |t| for large ones. On [0, 1] sigma = 1 knows small t only, and is nearly half a squared error.

    Args:
        sigma: the scale, fixed; the standard deviation is sigma pi / 2.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        check_unit_range(target)
        distance = (self.mean(output) - target) / self.sigma
        return log_cosh(distance).flatten(1).sum(1) + target[0].numel() * math.log(math.pi * self.sigma)


class Laplace(Likelihood):
    """Laplace(x; sigmoid(output), sigma) in every value: |x - sigmoid(output)| / sigma + log(2 sigma).

    Where an output can't tell images apart its best answer is their median, not their mean: an edge whose place is
    uncertain stays an edge instead of becoming a ramp.

    Args:
        sigma: the scale, fixed; the standard deviation is sigma sqrt(2).
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        check_unit_range(target)
        error = (self.mean(output) - target).abs().flatten(1).sum(1)
        return error / self.sigma + target[0].numel() * math.log(2 * self.sigma)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "sigma_vae": SigmaVAE,
    "log_cosh": LogCosh,
    "laplace": Laplace,
}
#: Those with a scale that is given to them.
SCALED = ("gaussian", "log_cosh", "laplace")


def make_likelihood(name: str, sigma: float = 1.0) -> Likelihood:
    """Return a likelihood by its name in `LIKELIHOODS`; `sigma` is the scale of those in `SCALED`."""
    return LIKELIHOODS[name](sigma) if name in SCALED else LIKELIHOODS[name]()


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between sigmoid(logits) and grey values in [0, 1], in nats per sample.

    For grey values this is not a likelihood: its minimum is the entropy of the target, not zero
    (Loaiza-Ganem & Cunningham 2019). It is the reconstruction term of VAE-DG (Chokuwa & Khan 2023, eq. 4).

    Args:
        logits, target: (B, ...) of one shape.

    Returns:
        (B,), float32 or more.

    Raises:
        ValueError: the target leaves [0, 1], as an image normalised with ImageNet statistics does; see
            `check_unit_range`.
    """
    check_unit_range(target)
    logits = at_least_float32(logits)
    loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return loss.flatten(1).sum(1)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences per sample.

    Half of it is the negative log-likelihood of a Gaussian of unit variance, up to a constant.

    Args:
        output, target: (B, ...) of one shape.

    Returns:
        (B,), float32 or more.
    """
    return (at_least_float32(output) - at_least_float32(target)).square().flatten(1).sum(1)


def log_cosh(x: Tensor) -> Tensor:
    """Logarithm of cosh, elementwise, without overflow: |x| + softplus(-2 |x|) - log 2."""
    size = x.abs()
    return size + F.softplus(-2 * size) - math.log(2)


def check_unit_range(target: Tensor) -> None:
    """Raise `ValueError` if a target leaves [0, 1].

    On a CPU alone, and not in a compiled graph: a GPU would have to be waited for in every step.
    """
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = target.detach().aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must lie in [0, 1] to be reconstructed, but these span [{low.item():.3g}, {high.item():.3g}]. "
            "Normalisation belongs into the encoder, not into the data"
        )
