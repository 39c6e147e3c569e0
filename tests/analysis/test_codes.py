"""Codes and what they tell of an image, against closed forms and torch.distributions."""

import math

import in_memory
import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from domainbed.algorithms.cvae import CVAE
from domainbed.algorithms.hvae import HVAE
from domainbed.algorithms.vae import VAE
from domainbed.analysis import codes
from domainbed.testing import build


def posteriors(mean: torch.Tensor, variance: float, dims: list[int] | None = None) -> codes.Posteriors:
    mean = mean.double()
    logvar = torch.full_like(mean, math.log(variance))
    zeros = torch.zeros_like(mean)
    kl = kl_divergence(Normal(mean, logvar.div(2).exp()), Normal(zeros, 1.0))
    return codes.Posteriors(mean, logvar, kl, zeros, zeros, dims or [mean.shape[1]], 0)


def normal(count: int, size: int, deviation: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return deviation * torch.randn(count, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size, variance", [(1, 1.0), (2, 0.5)])
def test_mutual_information_of_a_gaussian_channel(size: int, variance: float) -> None:
    # z = x + noise, x ~ N(0, I): I(x; z) = size / 2 log(1 + 1 / variance), the capacity of each of the channels
    mean = normal(2000, size)
    found = codes.mutual_information(mean, torch.full_like(mean, math.log(variance)))
    assert found == pytest.approx(size / 2 * math.log(1 + 1 / variance), abs=0.05)


def test_mutual_information_of_posteriors_that_do_not_meet_is_log_n() -> None:
    mean = 100.0 * torch.arange(300)[:, None]
    assert codes.mutual_information(mean, torch.zeros_like(mean)) == pytest.approx(math.log(300), abs=1e-9)


def test_mutual_information_does_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    mean = normal(60, 3)
    whole = codes.mutual_information(mean, torch.zeros_like(mean))
    monkeypatch.setattr(codes, "_CHUNK", 60 * 7)
    assert codes.mutual_information(mean, torch.zeros_like(mean)) == pytest.approx(whole, abs=1e-12)


def test_a_posterior_that_has_collapsed() -> None:
    found = codes.information(posteriors(torch.zeros(50, 4), 1.0))
    assert found["kl_nats"] == pytest.approx(0, abs=1e-12) and found["active_units"] == 0
    assert found["mutual_information_nats"] == pytest.approx(0, abs=1e-12)
    assert [level["dead"] for level in found["levels"]] == [True]


def test_the_kl_is_mutual_information_where_all_codes_together_fill_the_prior() -> None:
    # means ~ N(0, 3/4) and variance 1/4: their mixture is N(0, 1), so that the whole KL is I(x; z) = log 2
    found = codes.information(posteriors(normal(2000, 1, 0.75**0.5), 0.25))
    assert found["kl_nats"] == pytest.approx(math.log(2), abs=0.05)
    assert found["mutual_information_nats"] == pytest.approx(math.log(2), abs=0.05)
    assert found["marginal_kl_nats"] == pytest.approx(0, abs=0.02)


def test_a_code_that_lies_elsewhere_than_its_prior_is_all_marginal_kl() -> None:
    found = codes.information(posteriors(torch.full((50, 2), 3.0), 1.0))
    assert found["marginal_kl_nats"] == pytest.approx(9.0) and found["active_units"] == 0


def test_units_are_active_by_the_variance_of_their_means() -> None:
    mean = torch.stack([normal(500, 1)[:, 0], 0.05 * normal(500, 1)[:, 0]], dim=1)  # variances 1 and 0.0025
    posterior = posteriors(mean, 1.0, [1, 1])
    assert posterior.active.tolist() == [True, False]
    assert [level["active_units"] for level in codes.information(posterior)["levels"]] == [1, 0]


def test_codes_of_a_run_are_its_posterior() -> None:
    run = in_memory.opened(build(VAE, latent_dim=5))
    rows = np.arange(40)  # more than a batch
    found = codes.read(run, rows)
    with torch.no_grad():
        mean, logvar = run.algorithm.posterior(run.pixels(rows))
    expected = kl_divergence(Normal(mean, logvar.div(2).exp()), Normal(0.0, 1.0))
    assert torch.allclose(found.code, mean, atol=1e-5)
    assert torch.allclose(found.posterior.kl.float(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode, image_level", [("bottom_up", 0), ("ladder", 1)])
def test_each_level_of_a_hierarchy_has_its_own_prior(mode: str, image_level: int) -> None:
    run = in_memory.opened(build(HVAE, latent_dims=[6, 3], encoder_hidden_dims=[4, 8], mode=mode))
    rows = np.arange(36)
    posterior = codes.read(run, rows).posterior
    assert posterior.latent_dims == [6, 3] and posterior.image_level == image_level
    # what the loss calls KLD_level_1 and _2, with other samples of the noise
    with torch.no_grad():
        many = [run.algorithm.losses([(run.pixels(rows), None)]) for _ in range(40)]
    for number, columns in enumerate(posterior.levels, start=1):
        expected = torch.stack([one[f"KLD_level_{number}"] for one in many])
        assert posterior.kl[:, columns].sum(1).mean() == pytest.approx(
            expected.mean().item(), abs=5 * expected.std().item() + 1e-4
        )


def test_the_marginal_kl_is_left_out_where_the_prior_of_a_level_is_another_level() -> None:
    for mode, there in (("bottom_up", False), ("ladder", True)):
        run = in_memory.opened(build(HVAE, latent_dims=[6, 3], encoder_hidden_dims=[4, 8], mode=mode))
        found = codes.information(codes.read(run, np.arange(20)).posterior)
        assert (found["marginal_kl_nats"] is not None) is there


@pytest.mark.parametrize("conditioning", ["prior", "decoder", "posterior"])
def test_a_label_that_is_told_is_in_the_posterior_and_not_in_the_code(conditioning: str) -> None:
    run = in_memory.opened(build(CVAE, conditioning=conditioning, latent_dim=4, width=4))
    rows = np.arange(20)
    found = codes.read(run, rows)
    x, y = run.pixels(rows), torch.from_numpy(run.images.labels[rows])
    with torch.no_grad():
        mean, logvar = run.algorithm.posterior(x, y)
        prior_mean, prior_logvar = run.algorithm.prior(y)
        assert torch.allclose(found.code, run.algorithm.encode(x), atol=1e-5)
    expected = kl_divergence(
        Normal(mean, logvar.div(2).exp()), Normal(prior_mean, torch.as_tensor(prior_logvar).div(2).exp())
    )
    assert torch.allclose(found.posterior.kl.float(), expected, rtol=1e-4, atol=1e-5)
    assert found.posterior.prior_is_standard is (conditioning != "prior")
