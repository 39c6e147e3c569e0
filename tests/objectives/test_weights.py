"""What weights mean: numbers worked out by hand, and equal gradients of two forms of one objective."""

import pytest
import torch

from domainbed.algorithms import vae_dg
from domainbed.objectives import weights

SHAPE, CLASSES, LATENT, BATCH = (3, 32, 32), 3, 8, 6
D = SHAPE[0] * SHAPE[1] * SHAPE[2]


def describe(reduction="mean", **given):
    given = {
        "num_values": 3 * 224 * 224, "num_latents": 256, "kl_weight": 1e-4, "label_weight": 0.1, "batch_size": 66,
        "annealing_mean": 1.0, "annealing_reached": 1.0,
    } | given  # fmt: skip
    return weights.describe(reduction, **given)


def test_the_defaults_at_224_pixels_are_beta_0_059_and_a_label_weight_of_15053():
    meaning = describe()
    assert meaning.beta == pytest.approx(0.0588, abs=5e-5)
    assert f"{meaning.beta:.3f}" == "0.059"
    assert round(meaning.label_weight_nats) == 15_053
    assert meaning.beta_norm == pytest.approx(1e-4)


def test_beside_sums_a_weight_is_beta_as_it_stands():
    meaning = describe("sum", kl_weight=4.0, label_weight=2.0)
    assert (meaning.beta, meaning.label_weight_nats) == (4.0, 2.0)
    assert meaning.beta_norm == pytest.approx(4.0 * 256 / 150_528)


@pytest.mark.parametrize("batch", [1, 66, 128])
def test_the_published_loss_is_beta_50000_over_batch_and_latents(batch):
    meaning = describe("batch_sum", kl_weight=50_000.0, label_weight=50_000.0, batch_size=batch)
    assert meaning.beta == pytest.approx(50_000 / (batch * 256))
    assert meaning.label_weight_nats == 50_000
    assert f"({batch})" in meaning.lines()[0]


def test_only_the_published_loss_asks_for_the_batch_size():
    for reduction in ("mean", "sum"):
        assert describe(reduction, batch_size=1) == describe(reduction, batch_size=1000)


def test_an_unknown_reduction_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="no reduction named 'max': mean, sum or batch_sum"):
        describe("max")


def test_the_lines_and_the_record_say_the_numbers():
    meaning = describe(annealing_mean=0.5)
    text = "\n".join(meaning.lines())
    for number in ("150,528", "256", "0.0001", "0.0588", "0.0294"):
        assert number in text, number
    assert meaning.as_dict()["beta_mean"] == pytest.approx(0.0294)
    assert "WARNING" not in text


def test_the_label_weight_is_printed_as_a_number_that_people_read():
    assert "15,053" in "\n".join(describe().lines())


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(vae_dg, "HIDDEN", 32)


def tiny(**given):
    torch.manual_seed(0)
    options = {
        "model": "test_resnet", "pretrained": "false", "latent_dim": LATENT, "kl_anneal_end": 0, "decoder": "published",
        "loss_multiplier_kl": 3.0, "loss_multiplier_y": 5.0,
    }  # fmt: skip
    return vae_dg.VAE_DG(SHAPE, CLASSES, 2, options | given)


def minibatches():
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.rand(BATCH // 2, *SHAPE, generator=generator),
            torch.randint(CLASSES, (BATCH // 2,), generator=generator),
        )
        for _ in range(2)
    ]


def gradient(algorithm):
    """All gradients as one vector, in float64, with the same noise for every algorithm."""
    torch.manual_seed(2)
    algorithm.losses(minibatches())["loss"].backward()
    return torch.cat([parameter.grad.double().flatten() for parameter in algorithm.parameters()])


def meaning_of(algorithm):
    return algorithm.explain_weights(steps=10, batch_size=BATCH)


def assert_proportional(one, other, factor):
    error = (one - factor * other).norm() / one.norm()
    assert error < 1e-4, f"off by {error:.2g} of the gradient's length"


@pytest.mark.parametrize("given", [{"loss_multiplier_kl": 0.02, "loss_multiplier_y": 0.05}])
@pytest.mark.parametrize("decoder", ["published", "full"])
def test_means_and_sums_of_one_objective_have_one_gradient_up_to_the_factor_d(given, decoder):
    means = tiny(recon_reduction="mean", decoder=decoder, **given)
    meaning = meaning_of(means)
    sums = tiny(
        recon_reduction="sum", decoder=decoder,
        loss_multiplier_kl=meaning.beta, loss_multiplier_y=meaning.label_weight_nats,
    )  # fmt: skip
    assert_proportional(gradient(sums), gradient(means), D)


@pytest.mark.parametrize("wrong", ["loss_multiplier_kl", "loss_multiplier_y"])
def test_the_comparison_of_gradients_sees_a_weight_that_is_off_by_a_tenth(wrong):
    means = tiny(recon_reduction="mean", loss_multiplier_kl=0.02, loss_multiplier_y=0.05)
    meaning = meaning_of(means)
    given = {"loss_multiplier_kl": meaning.beta, "loss_multiplier_y": meaning.label_weight_nats}
    sums = tiny(recon_reduction="sum", **given | {wrong: 1.1 * given[wrong]})
    with pytest.raises(AssertionError, match="off by"):
        assert_proportional(gradient(sums), gradient(means), D)


def test_paper_compat_and_sums_have_one_gradient_up_to_the_batch_size():
    published = tiny(paper_compat=True, recon_reduction="sum", loss_multiplier_kl=3000.0, loss_multiplier_y=500.0)
    meaning = meaning_of(published)
    assert meaning.beta == pytest.approx(3000 / (BATCH * LATENT))
    sums = tiny(
        recon_reduction="sum", loss_multiplier_kl=meaning.beta, loss_multiplier_y=meaning.label_weight_nats
    )  # fmt: skip
    assert published.batch_coupled and not sums.batch_coupled
    assert_proportional(gradient(published), gradient(sums), BATCH)


def test_annealing_scales_the_kl_alone():
    algorithm = tiny(recon_reduction="mean", kl_anneal_end=100)
    algorithm.step.fill_(25)
    torch.manual_seed(2)
    losses = algorithm.losses(minibatches())
    assert losses["kl_anneal_weight"].item() == 0.25
    assert losses["KLD_weighted"].item() == pytest.approx(0.25 * 3.0 * losses["KLD_loss"].item())
    total = losses["recon_loss"] + losses["KLD_weighted"] + 5.0 * losses["y_loss"]
    assert losses["loss"].item() == pytest.approx(total.item())
    assert algorithm.eval().annealing().item() == 1.0


def test_nats_are_logged_as_sums_whatever_the_reduction():
    torch.manual_seed(2)
    means = tiny(recon_reduction="mean").losses(minibatches())
    torch.manual_seed(2)
    sums = tiny(recon_reduction="sum").losses(minibatches())
    for name in ("recon_nats", "KLD_nats"):
        torch.testing.assert_close(means[name], sums[name])
    torch.testing.assert_close(means["recon_loss"] * D, sums["recon_loss"])
    torch.testing.assert_close(means["KLD_loss"] * LATENT, sums["KLD_loss"])


def test_a_run_that_ends_before_its_annealing_is_warned_with_the_weight_that_it_reaches():
    meaning = tiny(kl_anneal_end=5000).explain_weights(steps=2000, batch_size=BATCH)
    warning = meaning.warning
    assert warning and "ends before its annealing" in warning and "reaches 0.4 of its value" in warning
    assert meaning.beta_reached == pytest.approx(0.4 * meaning.beta, rel=1e-3)
    assert meaning.beta_mean == pytest.approx(0.2 * meaning.beta, rel=1e-3)


@pytest.mark.parametrize(
    ("steps", "kl_anneal_end", "share"), [(11, 5000, "0.0022"), (2, 10**6, "2e-06"), (4990, 5000, "0.998")]
)
def test_the_share_that_is_reached_is_never_rounded_to_nothing_or_all(steps, kl_anneal_end, share):
    meaning = tiny(kl_anneal_end=kl_anneal_end).explain_weights(steps, BATCH)
    assert meaning.warning and f"reaches {share} of its value" in meaning.warning


@pytest.mark.parametrize("steps", [5001, 10_000])
def test_a_run_that_outlasts_its_annealing_is_not_warned(steps):
    assert tiny(kl_anneal_end=5000).explain_weights(steps, BATCH).warning is None


def test_a_run_as_long_as_its_annealing_is_not_warned():
    assert tiny(kl_anneal_end=5000).explain_weights(5000, BATCH).warning is None


def test_without_a_label_loss_nothing_is_said_of_one():
    meaning = describe(label_weight=None)
    assert (meaning.label_weight, meaning.label_weight_nats) == (None, None)
    assert "abel" not in "\n".join(meaning.lines())
    assert "Label weight 0 is 0" in "\n".join(describe(label_weight=0.0).lines())


def test_the_implied_sigma_is_sigma_times_the_root_of_beta():
    assert describe("sum", kl_weight=4.0, sigma=0.5).implied_sigma == 1.0
    meaning = describe("mean", kl_weight=1e-4, sigma=1.0)
    assert meaning.implied_sigma == pytest.approx((1e-4 * 150_528 / 256) ** 0.5)
    assert "implied sigma is 0.2425" in "\n".join(meaning.lines())
    assert describe().implied_sigma is None and "sigma" not in "\n".join(describe().lines())


def test_beside_a_capacity_the_weight_is_gamma_and_the_annealing_is_that_of_the_capacity():
    meaning = describe(
        "mean", kl_weight=0.1, capacity=25.0, sigma=0.5, annealing_mean=0.5, annealing_reached=0.8, label_weight=None
    )
    assert meaning.beta == meaning.beta_mean == meaning.beta_reached == pytest.approx(58.8)
    assert (meaning.capacity, meaning.capacity_reached, meaning.implied_sigma) == (25.0, 20.0, None)
    text = "\n".join(meaning.lines())
    assert "gamma 0.1 is 58.8 beside sums in nats" in text and "ends at 25 nats" in text
    assert "beta =" not in text
    assert meaning.warning and "the capacity reaches 0.8 of its value, 20 nats" in meaning.warning
