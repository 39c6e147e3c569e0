"""VAE and what `variational` shares: the contract in each form, terms by hand, schedules, weights, learning."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.distributions import Bernoulli, ContinuousBernoulli, Laplace, Normal, kl_divergence

from domainbed.algorithms.vae import VAE
from domainbed.algorithms.variational import VAEHParams
from domainbed.objectives.likelihoods import LIKELIHOODS, SCALED
from domainbed.testing import NoNoise, build, check_algorithm, minibatches

SHAPE, LATENT = (3, 16, 16), 8
D = 3 * 16 * 16
FORMS = [
    {"likelihood": "bernoulli", "beta": 0.1, "kl_anneal": "linear", "kl_anneal_start": 1, "kl_anneal_end": 10},
    {"likelihood": "continuous_bernoulli", "kl_anneal": "cyclical", "kl_anneal_end": 2, "kl_anneal_cycle_length": 4},
    {"likelihood": "gaussian", "sigma": 0.1, "recon_reduction": "mean", "beta": 0.01},
    {"likelihood": "sigma_vae", "free_bits": 0.5},
    {"likelihood": "log_cosh", "sigma": 0.1, "kl_anneal": "capacity", "kl_anneal_end": 30, "gamma": 10.0},
    {"likelihood": "laplace", "sigma": 0.05, "latent": "map", "latent_channels": 6, "latent_halvings": 2},
]


def tiny(**hparams):
    torch.manual_seed(0)
    return VAE(SHAPE, 0, 2, {"latent_dim": LATENT} | hparams)


def losses(algorithm, seed=1):
    """The terms of one batch, with the same noise whatever the algorithm."""
    torch.manual_seed(seed)
    return algorithm.losses(minibatches(SHAPE))


@pytest.mark.parametrize("hparams", FORMS, ids=lambda hparams: f"{hparams['likelihood']}")
def test_vae_keeps_the_contract_in_each_of_its_forms(hparams):
    check_algorithm(VAE, latent_dim=16, **hparams)


def test_every_likelihood_can_be_chosen():
    assert set(VAEHParams.model_fields["likelihood"].annotation.__args__) == set(LIKELIHOODS)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_loss_is_the_negative_elbo_of_torch_distributions(name):
    algorithm = tiny(likelihood=name, **({"sigma": 0.2} if name in SCALED else {}))
    x = torch.cat([images for images, _ in minibatches(SHAPE)])
    terms = losses(algorithm)
    with torch.no_grad():
        mean, logvar = algorithm.posterior(x)
        posterior = Normal(mean, (0.5 * logvar).exp())
        torch.manual_seed(1)
        output = algorithm.decoder(mean + posterior.scale * torch.randn_like(mean))
        p = output.sigmoid()
        log_prob = {
            "bernoulli": lambda: Bernoulli(logits=output, validate_args=False).log_prob(x),
            "continuous_bernoulli": lambda: ContinuousBernoulli(logits=output).log_prob(x),
            "gaussian": lambda: Normal(p, 0.2).log_prob(x),
            "sigma_vae": lambda: Normal(p, (p - x).square().mean().sqrt()).log_prob(x),
            "laplace": lambda: Laplace(p, 0.2).log_prob(x),
            "log_cosh": lambda: -((x - p) / 0.2).cosh().log() - math.log(math.pi * 0.2),
        }[name]()
        kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
        recon = -log_prob.flatten(1).sum(1).mean()
    # the soft clip of the sigma-VAE costs 0.08 nats here
    assert terms["recon_loss"].item() == pytest.approx(recon.item(), rel=1e-4, abs=0.1)
    assert terms["KLD_loss"].item() == pytest.approx(kl.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx((terms["recon_loss"] + terms["KLD_loss"]).item(), rel=1e-6)


def test_the_terms_have_their_standard_names_and_the_loss_is_their_sum():
    algorithm = tiny(beta=4.0, kl_anneal="linear", kl_anneal_end=100)
    algorithm.step.fill_(25)
    terms = losses(algorithm)
    assert set(terms) == {
        "loss", "recon_loss", "KLD_loss", "KLD_weighted", "kl_anneal_weight", "recon_nats", "KLD_nats"
    }  # fmt: skip
    assert terms["kl_anneal_weight"].item() == 0.25
    assert terms["KLD_weighted"].item() == pytest.approx(0.25 * 4.0 * terms["KLD_loss"].item())
    assert terms["loss"].item() == pytest.approx((terms["recon_loss"] + terms["KLD_weighted"]).item())


def test_means_are_sums_divided_by_values_and_by_latents():
    sums, means = losses(tiny()), losses(tiny(recon_reduction="mean"))
    for name, size in (("recon_loss", D), ("KLD_loss", LATENT), ("KLD_weighted", LATENT)):
        assert size * means[name].item() == pytest.approx(sums[name].item(), rel=1e-5)
    for name in ("recon_nats", "KLD_nats"):
        assert means[name].item() == sums[name].item() == sums[name.replace("nats", "loss")].item()


def gradient(algorithm):
    losses(algorithm)["loss"].backward()
    return torch.cat([parameter.grad.double().flatten() for parameter in algorithm.parameters()])


@pytest.mark.parametrize("wrong", [1.0, 1.1])
@pytest.mark.parametrize("form", [*({"likelihood": name} for name in LIKELIHOODS), {"kl_anneal": "capacity"}])
def test_means_and_sums_of_one_objective_have_one_gradient_up_to_the_factor_d(form, wrong):
    key = "gamma" if form.get("kl_anneal") == "capacity" else "beta"
    means = tiny(recon_reduction="mean", **form, **{key: 0.02})
    beta = means.explain_weights(10, 8).beta
    sums = tiny(recon_reduction="sum", **form, **{key: wrong * beta})
    one, other = gradient(sums), D * gradient(means)
    assert ((one - other).norm() / one.norm() < 1e-4) == (wrong == 1.0)


@pytest.mark.parametrize(
    ("hparams", "weights"),
    [
        ({}, [1, 1, 1, 1]),
        ({"kl_anneal": "linear", "kl_anneal_start": 10, "kl_anneal_end": 30}, [0, 0.5, 1, 1]),
        ({"kl_anneal": "cyclical", "kl_anneal_end": 20, "kl_anneal_cycle_length": 40}, [0, 1, 0, 1]),
        ({"kl_anneal": "capacity", "kl_anneal_end": 40}, [0, 0.5, 1, 1]),
    ],
)
def test_a_schedule_goes_with_the_step_in_training_and_is_full_in_evaluation(hparams, weights):
    algorithm = tiny(**hparams)
    for step, weight in zip((0, 20, 40, 60), weights, strict=True):
        algorithm.step.fill_(step)
        assert losses(algorithm.train())["kl_anneal_weight"].item() == weight
        assert losses(algorithm.eval())["kl_anneal_weight"].item() == 1


def test_the_capacity_grows_with_the_step_and_gamma_weighs_the_distance_of_the_kl():
    algorithm = tiny(kl_anneal="capacity", kl_anneal_end=100, capacity=8.0, gamma=30.0)
    algorithm.step.fill_(25)
    for mode, capacity in ((True, 2.0), (False, 8.0)):
        terms = losses(algorithm.train(mode))
        expected = 30 * abs(terms["KLD_nats"].item() - capacity)
        assert terms["KLD_weighted"].item() == pytest.approx(expected, rel=1e-5)


def test_free_bits_are_paid_for_each_dimension_and_leave_the_reported_kl_alone():
    free, plain = losses(tiny(free_bits=100.0)), losses(tiny())
    assert free["KLD_weighted"].item() == pytest.approx(100.0 * LATENT)
    assert free["KLD_loss"].item() == plain["KLD_loss"].item() < 100.0


@pytest.mark.parametrize(
    ("hparams", "coupled"),
    [
        *(({"likelihood": name}, name == "sigma_vae") for name in LIKELIHOODS),
        ({"likelihood": "gaussian", "free_bits": 0.5}, True),
        ({"likelihood": "gaussian", "kl_anneal": "capacity"}, True),
        ({"likelihood": "gaussian", "kl_anneal": "linear"}, False),
    ],
)
def test_what_depends_on_the_batch_says_so(hparams, coupled):
    assert tiny(**hparams).batch_coupled is coupled


def test_every_term_of_a_batch_is_the_mean_of_those_of_its_images():
    algorithm = tiny(likelihood="gaussian", sigma=0.1, beta=2.0).eval()
    x, y = minibatches(SHAPE)[0]
    with torch.no_grad(), NoNoise():
        together = algorithm.losses([(x, y)])
        alone = [algorithm.losses([(x[i : i + 1], y[i : i + 1])]) for i in range(len(x))]
    for key, value in together.items():
        torch.testing.assert_close(value, torch.stack([one[key] for one in alone]).mean())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_reconstruction_is_the_mean_of_the_likelihood_at_the_mean_of_the_posterior(name):
    algorithm = tiny(likelihood=name).eval()
    x = minibatches(SHAPE)[0][0]
    with torch.no_grad():
        output = algorithm.decoder(algorithm.posterior(x)[0]).double()
        mean = ContinuousBernoulli(logits=output).mean if name == "continuous_bernoulli" else output.sigmoid()
        torch.testing.assert_close(algorithm.reconstruct(x).double(), mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("hparams", "says"),
    [
        ({"kl_anneal_start": 9, "kl_anneal_end": 5}, "kl_anneal_start = 9 lies behind kl_anneal_end = 5"),
        (
            {"kl_anneal": "cyclical", "kl_anneal_end": 20, "kl_anneal_cycle_length": 10},
            "kl_anneal_end = 20 lies behind the end of a cycle",
        ),
        ({"likelihood": "bernoulli", "sigma": 0.1}, "sigma = 0.1 is the scale of likelihood = gaussian, log_cosh"),
        ({"kl_anneal": "capacity", "beta": 2.0}, "Leave beta and free_bits out"),
        ({"kl_anneal": "capacity", "free_bits": 0.1}, "Leave beta and free_bits out"),
    ],
)
def test_options_that_contradict_each_other_are_refused(hparams, says):
    with pytest.raises(ValidationError, match=says):
        VAE.HParams(**hparams)


def test_a_cycle_length_matters_to_cycles_alone():
    VAE.HParams(kl_anneal="linear", kl_anneal_end=20_000, kl_anneal_cycle_length=10)


def test_the_weights_are_explained_without_a_label_and_with_the_implied_sigma():
    meaning = tiny(likelihood="gaussian", sigma=0.5, beta=4.0).explain_weights(10, 8)
    text = "\n".join(meaning.lines())
    assert meaning.implied_sigma == 1.0 and meaning.label_weight is None
    assert "The implied sigma is 1:" in text and "abel" not in text
    assert tiny().explain_weights(10, 8).implied_sigma is None


def test_the_implied_sigma_is_that_of_the_elbo_with_the_same_gradient():
    weighted = tiny(likelihood="gaussian", sigma=0.3, beta=0.04)
    sigma = weighted.explain_weights(10, 8).implied_sigma
    assert sigma == pytest.approx(0.06)
    elbo = tiny(likelihood="gaussian", sigma=sigma)
    one, other = gradient(weighted), 0.04 * gradient(elbo)
    assert (one - other).norm() < 1e-4 * one.norm()


def test_a_capacity_is_explained_as_what_it_is():
    meaning = tiny(kl_anneal="capacity", kl_anneal_end=100).explain_weights(50, 8)
    text = "\n".join(meaning.lines())
    assert "25 nats" in text and "1,000" in text
    assert meaning.warning and "the capacity reaches 0.5 of its value, 12.5 nats" in meaning.warning


def test_a_run_that_ends_before_its_annealing_is_warned():
    assert tiny(kl_anneal="linear", kl_anneal_end=100).explain_weights(50, 8).warning
    assert tiny(kl_anneal_end=100).explain_weights(50, 8).warning is None


def test_samples_are_means_of_codes_from_the_prior():
    algorithm = tiny().eval()
    with torch.no_grad():
        torch.manual_seed(3)
        got = algorithm.sample(5)
        torch.manual_seed(3)
        torch.testing.assert_close(got, algorithm.decode(torch.randn(5, LATENT)))


def test_a_posterior_that_costs_too_much_collapses_and_a_cheap_one_does_not():
    x = torch.cat([images for images, _ in minibatches(SHAPE)])

    def codes(beta):
        algorithm = build(VAE, SHAPE, latent_dim=LATENT, likelihood="gaussian", sigma=0.1, beta=beta, lr=3e-3)
        for step in range(80):
            torch.manual_seed(step)
            terms = algorithm.update(minibatches(SHAPE))
        error = (algorithm.eval().reconstruct(x) - x).square().mean().item()
        return terms["KLD_nats"].item(), error

    variance = (x - x.mean(0)).square().mean().item()  # the error of answering the mean image
    (cheap, close), (dear, far) = codes(0.1), codes(1000.0)
    assert cheap > 5 and close < 0.5 * variance
    assert dear < 0.5 and far > 0.8 * variance
