"""Hierarchical VAE: its KL against torch.distributions, its bound against an exact log-likelihood, and the contract."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from domainbed.algorithms.hvae import HVAE, kl_terms
from domainbed.errors import UserError
from domainbed.networks.hierarchical import BottomUp, Ladder
from domainbed.objectives import gaussian
from domainbed.testing import CHECKS, build, check_batch_size_does_not_matter, minibatches

SMALL = {"encoder_hidden_dims": [8, 16, 16], "lr": 3e-3}
MODES = ["bottom_up", "ladder"]


def normal(mean, logvar):
    return Normal(mean, (0.5 * logvar).exp())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("latent_dims", [[6], [6, 4], [6, 4, 3]], ids=lambda dims: f"{len(dims)} levels")
@pytest.mark.parametrize("mode", MODES)
def test_contract_in_both_modes_at_every_depth(mode, latent_dims, check):
    check(HVAE, mode=mode, latent_dims=latent_dims, **SMALL)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("stride", [1, 4])
def test_contract_with_other_strides(stride, check):
    widths = {1: [4, 4], 4: [8, 16, 16]}[stride]
    check(HVAE, stride=stride, latent_dims=[6, 4], encoder_hidden_dims=widths, lr=1e-2)


@pytest.mark.parametrize("recon_reduction", ["mean", "sum"])
@pytest.mark.parametrize("mode", MODES)
def test_no_term_depends_on_the_batch_where_the_likelihood_does_not(mode, recon_reduction):
    hparams = {"likelihood": "bernoulli", "recon_reduction": recon_reduction, "latent_dims": [6, 4], **SMALL}
    assert not build(HVAE, mode=mode, **hparams).batch_coupled
    check_batch_size_does_not_matter(HVAE, mode=mode, **hparams)


def hierarchy(cls, latent_dims, seed=0):
    torch.manual_seed(seed)
    return cls(6, latent_dims, 8).double()


def log_densities(levels):
    """log q and log p of the drawn z, by torch.distributions, summed over levels and dimensions."""
    q = sum(normal(level.mean, level.logvar).log_prob(level.z).sum(1) for level in levels)
    p = sum(normal(level.prior_mean, level.prior_logvar).log_prob(level.z).sum(1) for level in levels)
    return q, p


@pytest.mark.parametrize("latent_dims", [[3], [3, 2], [4, 3, 2]], ids=lambda dims: f"{len(dims)} levels")
@pytest.mark.parametrize(("mode", "cls"), [("bottom_up", BottomUp), ("ladder", Ladder)])
def test_kl_agrees_with_a_monte_carlo_estimate_from_log_densities(mode, cls, latent_dims):
    """KL(q || p) of the whole hierarchy is E_q[log q(z_1, …, z_L|x) - log p(z_1, …, z_L)], whatever the mode."""
    features = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).expand(200_000, -1)
    model = hierarchy(cls, latent_dims, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # so that levels depend on each other, and a closed form in place of a sample is seen
        levels = model(features, gaussian.sample)
    got = torch.cat(kl_terms(levels, mode), dim=1).sum(1)
    q, p = log_densities(levels)
    difference = got - (q - p)  # of the same sample, so that little noise is left
    error = difference.std() / math.sqrt(len(features))
    assert error < 0.02 < got.mean()
    assert abs(difference.mean()) < 5 * error


@pytest.mark.parametrize("latent_dims", [[3], [3, 2], [4, 3, 2]], ids=lambda dims: f"{len(dims)} levels")
def test_every_term_of_the_ladder_is_the_divergence_of_torch_distributions(latent_dims):
    levels = hierarchy(Ladder, latent_dims)(torch.randn(5, 6).double(), gaussian.sample)
    for got, level in zip(kl_terms(levels, "ladder"), levels, strict=True):
        expected = kl_divergence(normal(level.mean, level.logvar), normal(level.prior_mean, level.prior_logvar))
        torch.testing.assert_close(got, expected)
        assert got.shape == level.z.shape and got.ge(0).all()


def test_bottom_up_estimates_the_lower_levels_with_their_sample_and_takes_the_highest_in_closed_form():
    *lower, highest = hierarchy(BottomUp, [4, 3, 2])(torch.randn(5, 6).double(), gaussian.sample)
    *estimates, closed = kl_terms([*lower, highest], "bottom_up")
    for got, level in zip(estimates, lower, strict=True):
        log_q = normal(level.mean, level.logvar).log_prob(level.z)
        torch.testing.assert_close(got, log_q - normal(level.prior_mean, level.prior_logvar).log_prob(level.z))
    torch.testing.assert_close(closed, kl_divergence(normal(highest.mean, highest.logvar), Normal(0.0, 1.0)))


class Affine(nn.Module):
    """N(weight h + bias, variance), in place of a network."""

    def __init__(self, weight, variance, bias=0.0):
        super().__init__()
        self.weight, self.logvar, self.bias = weight, math.log(variance), bias

    def forward(self, h):
        return self.weight * h + self.bias, torch.full_like(h, self.logvar)


class LinearGaussian:
    """z_2 ~ N(0, 1), z_1|z_2 ~ N(a z_2, s), x|z_1 ~ N(b z_1, r): everything about it is known exactly."""

    a, s, b, r = 0.8, 0.5, 1.5, 0.3
    x = torch.tensor([-2.0, -0.3, 0.0, 1.1, 3.0], dtype=torch.float64)

    def __init__(self):
        var_1 = self.a**2 + self.s
        self.log_px = Normal(0.0, math.sqrt(self.b**2 * var_1 + self.r)).log_prob(self.x)
        # conditionals of the joint Gaussian of (z_1, z_2, x), by its covariance
        self.joint = torch.tensor(
            [
                [var_1, self.a, self.b * var_1],
                [self.a, 1.0, self.b * self.a],
                [self.b * var_1, self.b * self.a, self.b**2 * var_1 + self.r],
            ],
            dtype=torch.float64,
        )

    def given(self, which, what):
        """Weights and variance of p(which | what) of the zero-mean joint."""
        c, given = self.joint, list(what)
        weights = torch.linalg.solve(c[given][:, given], c[given][:, which])
        return weights, (c[which, which] - weights @ c[given][:, which]).item()

    def bottom_up(self, error=0.0):
        """The exact posterior, or one that is off by `error` in the mean of each level."""
        found = BottomUp(1, [1, 1], 1)
        (z1,), var_1 = self.given(0, [2])
        (z2,), var_2 = self.given(1, [0])
        found.posteriors = nn.ModuleList([Affine(z1, var_1, error), Affine(z2, var_2, error)])
        found.priors = nn.ModuleList([Affine(self.a, self.s)])
        return found

    def ladder(self, error=0.0):
        """The same with q(z_2|x) and, from the likelihood of z_1 alone, the merge with p(z_1|z_2)."""
        found = Ladder(1, [1, 1], 1)
        (z2,), var_2 = self.given(1, [2])
        found.upward = nn.ModuleList([nn.Identity()])
        found.likelihoods = nn.ModuleList([Affine(1 / self.b, self.r / self.b**2, error), Affine(z2, var_2, error)])
        found.priors = nn.ModuleList([Affine(self.a, self.s)])
        return found

    def bound(self, hierarchy, mode, count):
        """Estimates of E[log p(x|z_1)] - KL, (count, number of x)."""
        features = self.x.repeat(count)[:, None]
        levels = hierarchy(features, gaussian.sample)
        kl = torch.cat(kl_terms(levels, mode), dim=1).sum(1)
        log_px_given_z = Normal(self.b * levels[0].z, math.sqrt(self.r)).log_prob(features)[:, 0]
        return (log_px_given_z - kl).reshape(count, -1)


def test_the_linear_gaussian_oracle_agrees_with_torch_distributions():
    model = LinearGaussian()
    joint, x = MultivariateNormal(torch.zeros(3, dtype=torch.float64), model.joint), model.x
    z1, z2 = torch.tensor(0.4).double(), torch.tensor(-0.7).double()
    conditional = (
        Normal(0.0, 1.0).log_prob(z2)
        + Normal(model.a * z2, math.sqrt(model.s)).log_prob(z1)
        + Normal(model.b * z1, math.sqrt(model.r)).log_prob(x)
    )
    torch.testing.assert_close(joint.log_prob(torch.stack([z1.expand_as(x), z2.expand_as(x), x], dim=1)), conditional)


@pytest.mark.parametrize("mode", MODES)
def test_the_bound_is_the_exact_log_likelihood_for_the_exact_posterior(mode):
    torch.manual_seed(0)
    model, count = LinearGaussian(), 200_000
    bound = model.bound(getattr(model, mode)(), mode, count)
    error = bound.std(0) / math.sqrt(count)
    assert error.max() < 3e-3
    assert ((bound.mean(0) - model.log_px).abs() < 5 * error).all()


@pytest.mark.parametrize("mode", MODES)
def test_the_bound_lies_below_the_log_likelihood_for_any_other_posterior(mode):
    torch.manual_seed(0)
    model, count = LinearGaussian(), 200_000
    bound = model.bound(getattr(model, mode)(error=0.3), mode, count)
    assert (bound.mean(0) + 5 * bound.std(0) / math.sqrt(count) < model.log_px).all()


def test_one_level_makes_both_modes_the_same_plain_vae():
    x, _ = minibatches()[0]
    terms = {}
    for mode in MODES:
        algorithm = build(HVAE, mode=mode, likelihood="bernoulli", latent_dims=[6], **SMALL).eval()
        torch.manual_seed(0)
        terms[mode] = algorithm.losses([(x, None)])
    assert terms["bottom_up"].keys() == terms["ladder"].keys()
    assert all(torch.equal(value, terms["ladder"][key]) for key, value in terms["bottom_up"].items())

    torch.manual_seed(0)
    mean, logvar = algorithm.posterior(x)
    q = normal(mean, logvar)
    z = mean + torch.randn_like(mean) * q.scale
    nll = nn.functional.binary_cross_entropy_with_logits(algorithm.decoder(z), x, reduction="sum") / len(x)
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum() / len(x)
    torch.testing.assert_close(terms["ladder"]["recon_loss"], nll)
    torch.testing.assert_close(terms["ladder"]["KLD_loss"], kl)
    torch.testing.assert_close(terms["ladder"]["KLD_level_1"], kl)
    torch.testing.assert_close(terms["ladder"]["loss"], nll + kl)


@pytest.mark.parametrize("mode", MODES)
def test_levels_are_logged_in_nats_and_add_up(mode):
    algorithm = build(HVAE, mode=mode, latent_dims=[6, 4, 3], recon_reduction="mean", **SMALL)
    terms = algorithm.losses(minibatches())
    levels = [terms[f"KLD_level_{level}"] for level in (1, 2, 3)]
    assert "KLD_level_4" not in terms
    torch.testing.assert_close(sum(levels), terms["KLD_nats"])
    torch.testing.assert_close(terms["KLD_nats"] / 13, terms["KLD_loss"])  # a mean over the dimensions of all levels


@pytest.mark.parametrize(("anneal", "weights"), [("linear", [0, 0.25, 0.5]), ("cyclical", [0, 0.5, 0])])
def test_annealing_weighs_the_kl_of_all_levels_alike_and_not_in_evaluation(anneal, weights):
    cycle = {"kl_anneal_end": 4} if anneal == "linear" else {"kl_anneal_end": 2, "kl_anneal_cycle_length": 2}
    algorithm = build(HVAE, latent_dims=[6, 4], beta=3.0, kl_anneal=anneal, **cycle, **SMALL)
    for weight in weights:
        terms = algorithm.update(minibatches())
        torch.testing.assert_close(terms["KLD_weighted"], 3.0 * weight * terms["KLD_nats"])
    terms = algorithm.eval().losses(minibatches())
    torch.testing.assert_close(terms["KLD_weighted"], 3.0 * terms["KLD_nats"])


@pytest.mark.parametrize("term", ["recon_loss", "KLD_loss"])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_every_level(mode, term):
    algorithm = build(HVAE, mode=mode, latent_dims=[6, 4, 3], **SMALL)
    algorithm.losses(minibatches())[term].backward()
    without = {name for name, p in algorithm.hierarchy.named_parameters() if p.grad is None or not p.grad.any()}
    if term == "recon_loss" and mode == "bottom_up":  # the image is drawn from z_1, and z_1 from the image alone
        assert without == {name for name, _ in algorithm.hierarchy.named_parameters() if "posteriors.0" not in name}
    else:
        assert not without


@pytest.mark.parametrize("mode", MODES)
def test_a_code_is_the_means_of_all_levels_and_its_image_comes_from_the_lowest(mode):
    algorithm = build(HVAE, mode=mode, latent_dims=[6, 4], **SMALL).eval()
    x, _ = minibatches()[0]
    with torch.no_grad():
        code = algorithm.encode(x)
        levels = algorithm.hierarchy(algorithm.encoder(x), lambda mean, logvar: mean)
        assert torch.equal(code, torch.cat([level.z for level in levels], dim=1))
        assert torch.equal(algorithm.decode(code), algorithm.reconstruct(x))
        assert torch.equal(algorithm.decode(code[:, :6]), algorithm.reconstruct(x))
        assert not torch.allclose(algorithm.decode(code + torch.eye(10)[0]), algorithm.reconstruct(x), atol=1e-4)


def test_samples_are_drawn_from_the_highest_level_down():
    torch.manual_seed(0)
    algorithm = build(HVAE, latent_dims=[1, 1], **SMALL).eval()
    algorithm.hierarchy.priors = nn.ModuleList([Affine(2.0, 0.5, bias=3.0)])
    seen = []
    algorithm.decoder.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.no_grad():
        for _ in range(20):
            algorithm.sample(200)
    z = torch.cat(seen)  # ~ N(3, 2^2 + 0.5)
    assert abs(z.mean() - 3.0) < 5 * math.sqrt(4.5 / len(z))
    assert abs(z.var() / 4.5 - 1) < 5 * math.sqrt(2 / len(z))


@pytest.mark.parametrize("mode", MODES)
def test_huge_weights_leave_loss_and_gradients_finite(mode):
    algorithm = build(HVAE, mode=mode, latent_dims=[6, 4, 3], **SMALL)
    with torch.no_grad():
        for parameter in algorithm.hierarchy.parameters():
            parameter.mul_(100)
    terms = algorithm.losses(minibatches())
    terms["loss"].backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad.isfinite().all() for p in algorithm.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_the_kl_is_float32_under_autocast(mode):
    algorithm = build(HVAE, mode=mode, latent_dims=[6, 4], **SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        terms = algorithm.losses(minibatches())
    assert {value.dtype for value in terms.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("hparams", "says"),
    [
        ({"latent_dims": [8, 0]}, "latent_dims"),
        ({"latent_dims": []}, r"latent_dims = \[\] is empty. Give at least one size"),
        ({"encoder_hidden_dims": []}, r"encoder_hidden_dims = \[\] is empty"),
        ({"stride": 3}, "stride = 3 is not one of 1, 2 and 4"),
        ({"latent_dims": [8, 4, 2], "encoder_hidden_dims": [8, 8]}, "has 3 levels, more than .* Give fewer levels"),
    ],
)
def test_a_mistake_is_refused_with_what_to_do(hparams, says):
    with pytest.raises(ValidationError, match=says):
        HVAE.HParams(**hparams)


def test_too_small_an_image_is_refused_with_what_to_do():
    with pytest.raises(UserError, match="divide an image's side by 16, but these are of 15 x 64 px. Give fewer layers"):
        HVAE((3, 15, 64), 0, 1, {})


@pytest.mark.parametrize("mode, image_level", [("bottom_up", 0), ("ladder", 2)])
def test_a_level_is_decoded_through_the_means_of_the_priors_below(mode: str, image_level: int) -> None:
    algorithm = build(HVAE, latent_dims=[6, 4, 3], encoder_hidden_dims=[4, 8, 8], mode=mode).eval()
    assert algorithm.latent_dims == [6, 4, 3] and algorithm.image_level == image_level
    z = [torch.randn(2, size, generator=torch.Generator().manual_seed(size)) for size in (6, 4, 3)]
    with torch.no_grad():
        below = algorithm.hierarchy.priors[0](z[1])[0]
        assert torch.equal(algorithm.decode_level(z[0], 0), algorithm.decode(z[0]))
        assert torch.equal(algorithm.decode_level(z[1], 1), algorithm.decode(below))
        two_below = algorithm.hierarchy.priors[0](algorithm.hierarchy.priors[1](z[2])[0])[0]
        assert torch.equal(algorithm.decode_level(z[2], 2), algorithm.decode(two_below))
