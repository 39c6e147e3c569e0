"""Reconstruction terms against torch.distributions, numpy, mpmath, numerical integration and closed forms."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, ContinuousBernoulli, Normal

from domainbed.objectives.likelihoods import (
    LIKELIHOODS,
    SCALED,
    TAYLOR_BELOW,
    SigmaVAE,
    bernoulli_nll,
    make_likelihood,
    squared_error,
)

SHAPE = (4, 3, 5, 6)


def images(seed=0):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def logits(seed=1):
    return 3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def entropy(p):
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


def test_bernoulli_nll_of_black_and_white_is_that_of_torch_distributions():
    target = images().round()
    expected = -Bernoulli(logits=logits().double()).log_prob(target.double()).flatten(1).sum(1)
    torch.testing.assert_close(bernoulli_nll(logits(), target).double(), expected, rtol=1e-5, atol=1e-4)


def test_bernoulli_nll_of_grey_values_is_the_cross_entropy():
    target, output = images().double(), logits().double()
    p = output.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).flatten(1).sum(1)
    torch.testing.assert_close(bernoulli_nll(logits(), images()).double(), expected, rtol=1e-5, atol=1e-4)


def test_the_minimum_of_bernoulli_nll_is_the_entropy_of_the_target_not_zero():
    target = images().clamp(0.01, 0.99)
    best = torch.logit(target).requires_grad_()
    loss = bernoulli_nll(best, target)
    torch.testing.assert_close(loss, entropy(target).flatten(1).sum(1))
    loss.sum().backward()
    assert best.grad.abs().max() < 1e-5
    assert (loss > 1).all()
    for shift in (-0.1, 0.1):
        assert (bernoulli_nll(best + shift, target) > loss).all()


def test_bernoulli_nll_stays_finite_and_keeps_its_gradient_at_extreme_logits():
    output = torch.tensor([[[[-200.0, 200.0]]]], requires_grad=True)
    loss = bernoulli_nll(output, torch.tensor([[[[1.0, 0.0]]]]))
    assert loss.item() == pytest.approx(400.0)
    loss.sum().backward()
    assert output.grad.flatten().tolist() == pytest.approx([-1.0, 1.0])


def test_squared_error_agrees_with_numpy():
    output, target = logits().numpy().astype(np.float64), images().numpy().astype(np.float64)
    expected = ((output - target) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(squared_error(logits(), images()).numpy(), expected, rtol=1e-5)


def test_half_a_squared_error_is_a_gaussian_nll_up_to_a_constant():
    output, target = logits(), images()
    nll = -torch.distributions.Normal(output, 1.0).log_prob(target).flatten(1).sum(1)
    constant = 0.5 * target[0].numel() * np.log(2 * np.pi)
    torch.testing.assert_close(0.5 * squared_error(output, target), nll - constant, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("term", [bernoulli_nll, squared_error])
def test_a_term_is_one_value_per_sample_whatever_else_is_in_the_batch(term):
    output, target = logits(), images()
    whole = term(output, target)
    assert whole.shape == (4,)
    alone = torch.cat([term(output[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(term(output.repeat(3, 1, 1, 1), target.repeat(3, 1, 1, 1)), whole.repeat(3))


@pytest.mark.parametrize("term", [bernoulli_nll, squared_error])
def test_half_precision_outputs_give_float32_sums(term):
    output = logits().bfloat16()
    got = term(output, images())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, term(output.float(), images()))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-0.5, r"\[-0\.5, 1\]"), (2.25, r"\[0, 2\.25\]"), (255.0, r"\[0, 255\]"), (float("nan"), "nan")],
)
def test_a_target_outside_zero_to_one_is_refused_with_its_range(value, shown):
    target = torch.tensor([0.0, 1.0, 0.5]).reshape(1, 1, 1, 3).clone()
    target[..., 2] = value
    with pytest.raises(ValueError, match=shown):
        bernoulli_nll(torch.zeros_like(target), target)


def test_an_image_with_imagenet_normalisation_is_refused():
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    target = (images() - mean.reshape(1, 3, 1, 1)) / std.reshape(1, 3, 1, 1)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\].*Normalisation belongs into the encoder"):
        bernoulli_nll(logits(), target)


def test_black_and_white_are_inside():
    bernoulli_nll(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]]))


def likelihood(name, sigma=0.3):
    """A likelihood whose value of a sample is its own: the sigma-VAE with a remembered variance of sigma^2."""
    made = make_likelihood(name, sigma).eval()
    if name == "sigma_vae":
        made.variance.fill_(sigma**2)
    return made


def test_every_name_makes_its_likelihood_and_the_scaled_ones_take_a_scale():
    for name, cls in LIKELIHOODS.items():
        assert type(make_likelihood(name)) is cls
    assert [make_likelihood(name, 0.2).sigma for name in SCALED] == [0.2, 0.2, 0.2]
    assert [name for name, cls in LIKELIHOODS.items() if cls.batch_coupled] == ["sigma_vae"]


def oracle(name, sigma, output, target):
    """-log p of torch.distributions in float64, per sample."""
    output, target = output.double(), target.double()
    p = output.sigmoid()
    if name == "sigma_vae":  # softly clipped
        sigma = math.exp(-6 + math.log1p(math.exp(math.log(sigma) + 6)))
    if name == "bernoulli":
        log_prob = Bernoulli(logits=output, validate_args=False).log_prob(target)
    elif name == "continuous_bernoulli":
        log_prob = ContinuousBernoulli(logits=output).log_prob(target)
    elif name == "log_cosh":
        log_prob = -torch.log(math.pi * sigma * torch.cosh((target - p) / sigma))
    elif name == "laplace":
        log_prob = torch.distributions.Laplace(p, sigma).log_prob(target)
    else:
        log_prob = Normal(p, sigma).log_prob(target)
    return -log_prob.flatten(1).sum(1)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_agrees_with_its_density(name, sigma):
    got = likelihood(name, sigma)(logits(), images())
    assert got.shape == (4,) and got.dtype == torch.float32
    torch.testing.assert_close(got.double(), oracle(name, sigma, logits(), images()), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("output", [-4.0, -0.31, -1e-5, 0.0, 0.2, 0.29, 2.0])
@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "bernoulli"])
def test_a_density_integrates_to_one_and_its_mean_is_its_mean(name, output):
    """With a scale so small that no mass lies outside [0, 1]."""
    made = likelihood(name, sigma=1e-3)
    nodes, weights = np.polynomial.legendre.leggauss(50)
    # Gauss-Legendre in each of 2,000 pieces; one ends where a Laplace density has its kink
    edges = np.union1d(np.linspace(0, 1, 2001), 1 / (1 + np.exp(-output)))
    x = (edges[:-1, None] + (nodes + 1) / 2 * np.diff(edges)[:, None]).reshape(-1, 1)
    w = (weights / 2 * np.diff(edges)[:, None]).reshape(-1)
    given = torch.full((len(x), 1), output, dtype=torch.float64)
    density = made(given, torch.from_numpy(x)).neg().exp().numpy()
    assert density @ w == pytest.approx(1, abs=1e-6)
    assert density @ (w * x[:, 0]) == pytest.approx(made.mean(given[:1]).item(), abs=1e-6)


def test_the_bernoulli_probabilities_of_black_and_white_sum_to_one():
    nll = make_likelihood("bernoulli")(torch.full((2, 1), 0.7), torch.tensor([[0.0], [1.0]]))
    assert nll.neg().exp().sum().item() == pytest.approx(1)


LOGITS = [0.0, 1e-9, -1e-6, 1e-3, -0.05, 0.1, -0.299, 0.301, 1.0, -8.0, 40.0, -200.0, 1e4]


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_the_continuous_bernoulli_has_fifty_digits_of_mpmath_behind_it(logit, target, dtype, tolerance):
    """Value, gradient and mean: p(x) = exp(logit x) logit / (exp(logit) - 1); the gradient is mean - x."""
    made, output = make_likelihood("continuous_bernoulli"), torch.tensor([[logit]], dtype=dtype, requires_grad=True)
    nll = made(output, torch.tensor([[target]], dtype=dtype))
    (gradient,) = torch.autograd.grad(nll.sum(), output)
    with mpmath.workdps(50):
        eta, x = mpmath.mpf(output.item()), mpmath.mpf(torch.tensor(target, dtype=dtype).item())
        partition = mpmath.expm1(eta) / eta if eta else mpmath.mpf(1)
        mean = float(1 / (1 - mpmath.exp(-eta)) - 1 / eta) if eta else 0.5
        expected = float(mpmath.log(partition) - eta * x)
    assert nll.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert made.mean(output).item() == pytest.approx(mean, rel=tolerance, abs=tolerance)
    assert gradient.item() == pytest.approx(mean - float(x), rel=tolerance, abs=tolerance)


def test_the_continuous_bernoulli_is_smooth_where_series_and_closed_form_meet():
    made = make_likelihood("continuous_bernoulli")
    for side in (-TAYLOR_BELOW, TAYLOR_BELOW):
        below, above = (
            torch.tensor([[side * f]], dtype=torch.float64, requires_grad=True) for f in (1 - 1e-9, 1 + 1e-9)
        )
        for value in (made.mean, lambda output: made(output, torch.zeros_like(output).detach())):
            one, other = value(below).sum(), value(above).sum()
            assert one.item() == pytest.approx(other.item(), abs=1e-8)
            slopes = [torch.autograd.grad(v, at)[0].item() for v, at in ((one, below), (other, above))]
            assert slopes[0] == pytest.approx(slopes[1], abs=1e-8)


def test_the_mean_of_the_continuous_bernoulli_is_nearer_to_a_half_than_p():
    output = logits()
    mean, p = make_likelihood("continuous_bernoulli").mean(output), output.sigmoid()
    assert ((mean - 0.5).abs() < (p - 0.5).abs()).all()
    assert not torch.allclose(mean, p, atol=0.05)


@pytest.mark.parametrize("value", [-1e30, -1e4, 1e4, 1e30])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_extreme_outputs_give_finite_losses_and_gradients_and_an_image(name, value):
    made, output = make_likelihood(name).train(), torch.full((2, 3), value, requires_grad=True)
    nll = made(output, torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, 1.0]]))
    (gradient,) = torch.autograd.grad(nll.sum(), output)
    mean = made.mean(output)
    assert nll.isfinite().all() and gradient.isfinite().all()
    assert mean.min() >= 0 and mean.max() <= 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_are_those_of_finite_differences(name, training):
    made = likelihood(name).train(training)
    output = torch.tensor([[0.0, 1e-3, -0.2], [0.5, -3.0, 6.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.0, 0.3, 1.0], [0.9, 0.5, 0.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda output: made(output, target), output)
    assert torch.autograd.gradcheck(made.mean, output)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_is_one_value_per_sample_whatever_else_is_in_the_batch(name):
    made, output, target = likelihood(name), logits(), images()
    whole = made(output, target)
    alone = torch.cat([made(output[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_half_precision_goes_in_and_float32_comes_out(name):
    made, output = likelihood(name), logits().bfloat16()
    assert made(output, images()).dtype == made.mean(output).dtype == torch.float32
    torch.testing.assert_close(made(output, images()), made(output.float(), images()))


@pytest.mark.parametrize("value", [-0.5, 1.001, 255.0, float("nan")])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_refuses_a_target_outside_zero_to_one(name, value):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        make_likelihood(name)(torch.zeros(1, 2), torch.tensor([[0.5, value]]))


def test_log_cosh_is_half_a_square_for_small_errors_and_a_distance_for_large_ones():
    target = torch.tensor([[0.501]], dtype=torch.float64)
    constant = math.log(math.pi)
    nll = make_likelihood("log_cosh")(torch.zeros_like(target), target).item()
    assert nll - constant == pytest.approx(0.5 * 0.001**2, rel=1e-5)
    nll = make_likelihood("log_cosh", 0.01)(torch.zeros_like(target), torch.ones_like(target)).item()
    assert nll - constant - math.log(0.01) == pytest.approx(50 - math.log(2), rel=1e-12)


def test_the_variance_of_the_sigma_vae_is_the_best_one_for_the_batch():
    """The NLL of the batch is D/2 (log(2 pi MSE) + 1), and no other variance gives less."""
    made, output, target = SigmaVAE().train(), logits().double(), images().double()
    mse = squared_error(output.sigmoid(), target).mean() / target[0].numel()
    expected = 0.5 * target[0].numel() * (math.log(2 * math.pi) + mse.log() + 1)
    nll = made(output, target).mean()
    assert nll.item() == pytest.approx(expected.item(), rel=1e-4)  # rel: the soft clip moves log sigma by 0.01
    for factor in (0.8, 1.25):
        assert -Normal(output.sigmoid(), factor * mse.sqrt()).log_prob(target).flatten(1).sum(1).mean() > nll


def test_the_gradient_of_the_sigma_vae_is_that_of_a_gaussian_with_the_best_sigma():
    output, target = logits().double().requires_grad_(), images().double()
    sigma = (squared_error(output.sigmoid(), target).mean() / target[0].numel()).sqrt().item()
    (got,) = torch.autograd.grad(SigmaVAE().train()(output, target).sum(), output)
    (fixed,) = torch.autograd.grad(make_likelihood("gaussian", sigma)(output, target).sum(), output)
    assert (got - fixed).norm() < 0.02 * fixed.norm()  # but for the soft clip


@pytest.mark.parametrize("error", [0.0, 1e-6])
def test_the_sigma_vae_never_believes_in_less_than_exp_of_minus_six(error):
    made, target = SigmaVAE().train(), torch.full((2, 5), 0.5)
    output = torch.full((2, 5), 4 * error, requires_grad=True)
    nll = made(output, target)
    assert nll[0].item() == pytest.approx(5 * (-6 + 0.5 * math.log(2 * math.pi)), abs=0.01)
    (gradient,) = torch.autograd.grad(nll.sum(), output)
    assert gradient.isfinite().all()


def test_the_sigma_vae_evaluates_with_the_running_variance_and_does_not_move_it():
    made = SigmaVAE().train()
    target = torch.full((3, 100), 0.5)
    variances = [0.04, 0.01, 0.09]
    for variance in variances:
        made(torch.logit(target + variance**0.5), target)
    assert made.variance.item() == pytest.approx(sum(variances) / 3, rel=1e-5)  # a plain mean at first
    before = {key: value.clone() for key, value in made.state_dict().items()}
    assert set(before) == {"variance", "num_batches"}
    got = made.eval()(torch.zeros(1, 100), target[:1])
    expected = -Normal(0.5, before["variance"].sqrt()).log_prob(target[:1]).sum(1)
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0)
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_the_running_variance_of_the_sigma_vae_follows_a_run_that_gets_better():
    made, target = SigmaVAE().train(), torch.full((1, 10), 0.5)
    for _ in range(100):
        made(torch.logit(target + 0.4), target)
    for _ in range(100):
        made(torch.logit(target + 0.1), target)
    assert made.variance.item() == pytest.approx(0.01, rel=1e-3)
