"""Hierarchies of Gaussian levels: who depends on whom, and the merge against a closed form."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from domainbed.networks.hierarchical import (
    LOGVAR_BOUND,
    BottomUp,
    ConditionalGaussian,
    Ladder,
    merge,
)


def mean_of(mean, logvar):
    return mean


def test_a_logvar_is_the_raw_output_near_zero_and_never_leaves_the_bound():
    gaussian = ConditionalGaussian(2, 1)
    with torch.no_grad():
        nn.init.zeros_(gaussian.layers[-1].weight)
        for raw in (-1e6, -0.1, 0.0, 0.1, 1e6):
            gaussian.layers[-1].bias.copy_(torch.tensor([raw, raw]))
            mean, logvar = gaussian(torch.zeros(1, 2))
            assert mean.item() == pytest.approx(raw)
            assert abs(logvar.item()) <= LOGVAR_BOUND
            if abs(raw) < 1:
                assert logvar.item() == pytest.approx(raw, abs=1e-5)


def test_half_precision_goes_in_and_float32_comes_out():
    with torch.autocast("cpu", torch.bfloat16):
        assert [value.dtype for value in ConditionalGaussian(4, 3, 8)(torch.randn(2, 4))] == [torch.float32] * 2


def test_the_merge_is_the_normalised_product_of_the_densities():
    generator = torch.Generator().manual_seed(0)
    first_mean, first_logvar, second_mean, second_logvar = torch.randn(4, 5, 3, generator=generator).double() * 1.5
    mean, logvar = merge((first_mean, first_logvar), (second_mean, second_logvar))
    precisions = (-first_logvar).exp(), (-second_logvar).exp()
    expected = (first_mean * precisions[0] + second_mean * precisions[1]) / (precisions[0] + precisions[1])
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(logvar.exp(), 1 / (precisions[0] + precisions[1]))
    z = torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(-1, 1, 1)  # the quotient of the densities is a constant
    first, second = (Normal(m, (0.5 * v).exp()) for m, v in ((first_mean, first_logvar), (second_mean, second_logvar)))
    rest = first.log_prob(z) + second.log_prob(z) - Normal(mean, (0.5 * logvar).exp()).log_prob(z)
    torch.testing.assert_close(rest, rest[:1].expand_as(rest))


def test_the_merge_survives_precisions_that_overflow():
    mean, logvar = merge(
        (torch.tensor([1.0, 1.0]), torch.tensor([-200.0, 200.0])), (torch.zeros(2), torch.tensor([0.0, -200.0]))
    )
    assert mean.tolist() == [1.0, 0.0]
    assert logvar.tolist() == [-200.0, -200.0]


@pytest.mark.parametrize("hierarchy", [BottomUp, Ladder])
@pytest.mark.parametrize("latent_dims", [[3], [3, 2], [4, 3, 2]])
def test_levels_come_lowest_first_and_the_highest_has_the_standard_normal_prior(hierarchy, latent_dims):
    torch.manual_seed(0)
    levels = hierarchy(6, latent_dims, 8)(torch.randn(5, 6), mean_of)
    assert [level.z.shape for level in levels] == [(5, dim) for dim in latent_dims]
    assert all(value.shape == level.z.shape for level in levels for value in level)
    assert levels[-1].prior_mean.eq(0).all() and levels[-1].prior_logvar.eq(0).all()
    for level in levels[:-1]:
        assert level.prior_mean.ne(0).any()


@pytest.mark.parametrize(
    ("hierarchy", "posteriors"),
    [(BottomUp, [{0}, {1}, {2}]), (Ladder, [{0, 2}, {0, 3}, {0}])],
)
def test_each_level_depends_on_what_its_factor_is_conditioned_on(hierarchy, posteriors):
    """0 stands for the features, l for z_l; the priors are p(z_l | z_l+1) in both."""
    torch.manual_seed(0)
    latent_dims = [4, 3, 2]
    features = torch.randn(5, 6, requires_grad=True)
    codes = {dim: torch.randn(5, dim, requires_grad=True) for dim in latent_dims}
    levels = hierarchy(6, latent_dims, 8)(features, lambda mean, logvar: codes[mean.shape[1]])

    def conditions(value):
        inputs = [features, *codes.values()]
        if not value.requires_grad:
            return set()
        grads = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
        return {index for index, grad in enumerate(grads) if grad is not None and grad.ne(0).any()}

    for value in ("mean", "logvar"):
        assert [conditions(getattr(level, value)) for level in levels] == posteriors
        assert [conditions(getattr(level, f"prior_{value}")) for level in levels] == [{2}, {3}, set()]


def test_the_ladder_merges_every_level_but_the_highest():
    torch.manual_seed(0)
    ladder, features = Ladder(6, [4, 3, 2], 8), torch.randn(5, 6)
    first, second, third = ladder(features, mean_of)
    upward = ladder.upward[0](features)
    for level, likelihood in ((first, ladder.likelihoods[0](features)), (second, ladder.likelihoods[1](upward))):
        precisions = (-likelihood[1]).exp() + (-level.prior_logvar).exp()
        torch.testing.assert_close(level.logvar, -precisions.log())
        weighted = likelihood[0] * (-likelihood[1]).exp() + level.prior_mean * (-level.prior_logvar).exp()
        torch.testing.assert_close(level.mean, weighted / precisions)
    mean, logvar = ladder.likelihoods[2](ladder.upward[1](upward))
    assert torch.equal(third.mean, mean) and torch.equal(third.logvar, logvar)


def test_descending_goes_through_the_priors_from_the_highest_to_the_lowest():
    torch.manual_seed(0)
    hierarchy, z = BottomUp(6, [4, 3, 2], 8), torch.randn(5, 2)
    middle = hierarchy.priors[1](z)[0]
    assert torch.equal(hierarchy.descend(z, mean_of), hierarchy.priors[0](middle)[0])
    assert torch.equal(BottomUp(6, [2], 8).descend(z, mean_of), z)
