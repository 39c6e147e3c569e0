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


def test_kl_between_two_gaussians_agrees_with_torch_distributions_in_every_dimension():
    (mean_q, logvar_q), (mean_p, logvar_p) = posterior(), posterior(seed=1)
    q, p = (Normal(m.double(), (0.5 * v.double()).exp()) for m, v in ((mean_q, logvar_q), (mean_p, logvar_p)))
    got = gaussian.kl(mean_q, logvar_q, mean_p, logvar_p)
    assert got.shape == (6, 5) and got.dtype == torch.float32
    torch.testing.assert_close(got.double(), kl_divergence(q, p), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, gaussian.kl(mean_p, logvar_p, mean_q, logvar_q))


def test_kl_between_two_gaussians_to_a_standard_normal_is_the_other_kl_and_to_itself_is_zero():
    mean, logvar = posterior()
    zero = torch.zeros(5)
    torch.testing.assert_close(gaussian.kl(mean, logvar, zero, zero), gaussian.kl_to_standard_normal(mean, logvar))
    assert gaussian.kl(mean, logvar, mean, logvar).eq(0).all()


def test_gradients_of_the_kl_between_two_gaussians_reach_both():
    arguments = [t.double().requires_grad_() for t in (*posterior(2, 3), *posterior(2, 3, seed=1))]
    assert torch.autograd.gradcheck(gaussian.kl, arguments)


def test_log_prob_agrees_with_torch_distributions():
    mean, logvar = posterior()
    z = posterior(seed=2)[0]
    expected = Normal(mean.double(), (0.5 * logvar.double()).exp()).log_prob(z.double())
    torch.testing.assert_close(gaussian.log_prob(z, mean, logvar).double(), expected, rtol=1e-5, atol=1e-5)


def test_free_bits_clamp_the_mean_of_a_group_not_the_kl_of_a_sample():
    kl = torch.tensor([[0.0, 3.0, 0.1], [0.8, 5.0, 0.3]])  # means 0.4, 4.0, 0.2
    assert gaussian.free_bits(kl, 0.5).item() == pytest.approx(0.5 + 4.0 + 0.5)
    assert gaussian.free_bits(kl, 0.3).item() == pytest.approx(0.4 + 4.0 + 0.3)  # of samples: 0.55 + 4.0 + 0.3
    assert gaussian.free_bits(kl, 0.0).item() == pytest.approx(kl.sum(1).mean().item())


def test_a_group_below_its_free_bits_feels_nothing_and_one_above_feels_its_kl():
    kl = torch.tensor([[0.0, 3.0], [0.8, 5.0]], requires_grad=True)
    gaussian.free_bits(kl, 0.5).backward()
    assert kl.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]


def test_the_capacity_penalty_is_the_distance_of_the_mean_kl_and_pulls_from_both_sides():
    kl = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)  # mean of the sums: 5
    for capacity, distance, slope in ((3.0, 2.0, 0.5), (9.0, 4.0, -0.5)):
        penalty = gaussian.capacity_penalty(kl, capacity)
        (grad,) = torch.autograd.grad(penalty, kl)
        assert penalty.item() == distance
        assert grad.eq(slope).all()
