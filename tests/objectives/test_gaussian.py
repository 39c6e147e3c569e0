"""Gaussian posteriors against torch.distributions, Monte Carlo estimates and autograd."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from domainbed.objectives import gaussian


def posterior(batch=6, dims=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dims, generator=generator) * 2, torch.randn(batch, dims, generator=generator) * 1.5


def test_kl_agrees_with_torch_distributions_in_every_dimension():
    mean, logvar = posterior()
    expected = kl_divergence(Normal(mean.double(), (0.5 * logvar.double()).exp()), Normal(0.0, 1.0))
    got = gaussian.kl_to_standard_normal(mean, logvar)
    assert got.shape == (6, 5)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_kl_agrees_with_a_monte_carlo_estimate_from_its_own_samples():
    torch.manual_seed(0)
    mean, logvar = torch.tensor([[0.7, -1.2]]), torch.tensor([[-0.8, 0.5]])
    count = 200_000
    z = gaussian.sample(mean.expand(count, -1), logvar.expand(count, -1))
    log_ratio = Normal(mean, (0.5 * logvar).exp()).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    error = log_ratio.std(0) / math.sqrt(count)
    assert ((log_ratio.mean(0) - gaussian.kl_to_standard_normal(mean, logvar)[0]).abs() < 5 * error).all()


def test_kl_is_zero_for_the_prior_and_positive_elsewhere():
    assert gaussian.kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)).eq(0).all()
    assert gaussian.kl_to_standard_normal(*posterior(seed=1)).gt(0).all()


def test_samples_have_the_mean_and_the_variance_that_were_asked_for():
    torch.manual_seed(0)
    mean, logvar = torch.tensor([3.0, -2.0, 0.0]), torch.tensor([-2.0, 1.0, 0.0])
    count = 100_000
    z = gaussian.sample(mean.expand(count, -1), logvar.expand(count, -1))
    sigma = (0.5 * logvar).exp()
    assert ((z.mean(0) - mean).abs() < 5 * sigma / math.sqrt(count)).all()
    assert ((z.var(0) / sigma.square() - 1).abs() < 5 * math.sqrt(2 / count)).all()
    assert (torch.corrcoef(z.T) - torch.eye(3)).abs().max() < 5 / math.sqrt(count)


def test_every_sample_draws_noise_of_its_own():
    z = gaussian.sample(torch.zeros(4, 3), torch.zeros(4, 3))
    assert z.flatten().unique().numel() == 12


def test_gradients_of_the_kl_are_mean_and_half_of_variance_minus_one():
    mean, logvar = (tensor.requires_grad_() for tensor in posterior())
    gaussian.kl_to_standard_normal(mean, logvar).sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(logvar.grad, 0.5 * (logvar.detach().exp() - 1))


def test_a_sample_is_differentiable_in_mean_and_logvar():
    mean, logvar = (tensor.requires_grad_() for tensor in posterior())
    z = gaussian.sample(mean, logvar)
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(logvar.grad, 0.5 * (z - mean).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("term", [gaussian.sample, gaussian.kl_to_standard_normal])
def test_half_precision_goes_in_and_float32_comes_out(dtype, term):
    mean, logvar = (tensor.to(dtype) for tensor in posterior())
    torch.manual_seed(3)
    got = term(mean, logvar)
    torch.manual_seed(3)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, term(mean.float(), logvar.float()))


def test_a_variance_beyond_the_range_of_float16_stays_finite():
    logvar = torch.full((1, 1), 12.0, dtype=torch.float16)  # exp(12) > 65,504
    assert gaussian.kl_to_standard_normal(torch.zeros_like(logvar), logvar).isfinite().all()
