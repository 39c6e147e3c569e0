"""The parts of an ELBO put together, on a model whose likelihood is known: a linear-Gaussian VAE.

z ~ N(0, I), x|z ~ N(W z + b, sigma^2 I), so x ~ N(b, W W' + sigma^2 I) exactly. The columns of W are orthogonal, so the
posterior is a diagonal Gaussian too. W is so small that W z + b stays within (0, 1), where images live.
"""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from domainbed.objectives import gaussian
from domainbed.objectives.likelihoods import make_likelihood

D, M, B, SIGMA = 12, 3, 5, 0.05


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(D, M, generator=generator, dtype=torch.float64))
    weight = basis * torch.tensor([0.05, 0.03, 0.01], dtype=torch.float64)  # (D, M), orthogonal columns
    bias = 0.4 + 0.2 * torch.rand(D, generator=generator, dtype=torch.float64)
    x = bias + torch.randn(B, M, generator=generator, dtype=torch.float64) @ weight.T
    x = (x + SIGMA * torch.randn(B, D, generator=generator, dtype=torch.float64)).clamp(0, 1)
    variance = 1 / (1 + weight.square().sum(0) / SIGMA**2)  # (M,)
    mean = variance * ((x - bias) @ weight) / SIGMA**2  # (B, M)
    exact = MultivariateNormal(bias, weight @ weight.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)).log_prob(x)
    likelihood = make_likelihood("gaussian", SIGMA)

    def log_likelihood(z):
        """log p(x|z), (N,), for N / B codes of every image, with the decoder's output before its sigmoid."""
        return -likelihood(torch.logit(bias + z @ weight.T), x.repeat(len(z) // B, 1))

    return log_likelihood, mean, variance.log().expand(B, M), exact


def elbo(log_likelihood, mean, logvar):
    """The ELBO without noise: points at +-sqrt(M) sigma on each axis give the mean of a quadratic function exactly."""
    step = math.sqrt(M) * (0.5 * logvar).exp()
    axes = torch.eye(M, dtype=torch.float64)
    points = [mean + sign * step * axis for axis in axes for sign in (-1, 1)]
    expectation = torch.stack([log_likelihood(z) for z in points]).mean(0)
    return expectation - gaussian.kl_to_standard_normal(mean, logvar).sum(1)


def test_the_elbo_with_the_exact_posterior_is_the_exact_log_likelihood(model):
    log_likelihood, mean, logvar, exact = model
    torch.testing.assert_close(elbo(log_likelihood, mean, logvar), exact, rtol=1e-10, atol=1e-9)


def test_with_the_exact_posterior_every_sample_has_the_weight_p_of_x(model):
    log_likelihood, mean, logvar, exact = model
    torch.manual_seed(0)
    for _ in range(5):
        z = gaussian.sample(mean, logvar)
        prior = gaussian.log_prob(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
        log_weight = log_likelihood(z) + prior - gaussian.log_prob(z, mean, logvar).sum(1)
        torch.testing.assert_close(log_weight, exact, rtol=1e-10, atol=1e-9)


def test_the_gap_of_the_elbo_is_the_kl_to_the_exact_posterior(model):
    log_likelihood, mean, logvar, exact = model
    wrong = (mean + 0.3, logvar + 0.5)
    gap = gaussian.kl(*wrong, mean, logvar).sum(1)
    assert (gap > 0.1).all()
    torch.testing.assert_close(exact - elbo(log_likelihood, *wrong), gap, rtol=1e-8, atol=1e-8)


def test_elbo_is_below_the_importance_weighted_bound_which_is_below_log_p(model):
    log_likelihood, mean, logvar, exact = model
    wrong = (mean + 0.3, logvar + 0.5)
    torch.manual_seed(0)
    many = [parameter.repeat(300 * 20, 1) for parameter in wrong]  # 300 estimates with K = 20 samples each
    z = gaussian.sample(*many)
    prior = gaussian.log_prob(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
    log_weights = log_likelihood(z) + prior - gaussian.log_prob(z, *many).sum(1)
    bound = (log_weights.reshape(300, 20, B).logsumexp(1) - math.log(20)).mean(0)
    assert (elbo(log_likelihood, *wrong) < bound).all()
    assert (bound < exact).all()
