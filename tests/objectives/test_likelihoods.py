"""Reconstruction terms against torch.distributions, numpy and closed forms."""

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli

from domainbed.objectives.likelihoods import bernoulli_nll, squared_error

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
