"""What dimensions draw: on decoders and codes where the answer is known, and with scikit-learn as the oracle."""

from pathlib import Path

import in_memory
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import mutual_info_score

from domainbed.algorithms.autoencoder import AE
from domainbed.algorithms.code_prior import CodePrior
from domainbed.algorithms.cvae import CVAE
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.hvae import HVAE
from domainbed.algorithms.latent_classifier import LatentClassifier
from domainbed.algorithms.vae import VAE
from domainbed.algorithms.vqvae import VQVAE
from domainbed.analysis import traverse
from domainbed.analysis.opened import OpenedRun
from domainbed.datasets.synthetic_fundus import SyntheticFundus
from domainbed.errors import UserError
from domainbed.testing import build

SETTINGS = {"num_images": 30, "image_size": 32}


def brightness_alone(run: OpenedRun) -> list[torch.Tensor]:
    """Make dimension 2 of a code the brightness of the image, and nothing else; return the codes that it is shown."""
    shown = []

    def decode(z: torch.Tensor) -> torch.Tensor:
        shown.append(z.clone())
        return torch.sigmoid(z[:, 2])[:, None, None, None].expand(-1, 3, 32, 32)

    run.algorithm.decode = decode
    return shown


def test_a_dimension_changes_the_image_as_the_decoder_says(tmp_path: Path) -> None:
    run = in_memory.opened(build(VAE, latent_dim=4))
    brightness_alone(run)
    found = traverse.analyse(run, tmp_path, dimensions=4, components=2)
    by_dimension = {one["dimension"]: one for one in found["dimensions"]}
    bright = by_dimension[2]
    ends = torch.tensor([bright["mean"] - 3 * bright["sigma"], bright["mean"] + 3 * bright["sigma"]]).sigmoid()
    assert bright["image_change"] == pytest.approx((ends[1] - ends[0]).item(), abs=1e-5)
    assert [by_dimension[d]["image_change"] for d in (0, 1, 3)] == [0, 0, 0]
    assert {one["file"] for one in found["pictures"]} == {path.name for path in tmp_path.glob("*.png")}


def test_one_dimension_moves_and_the_others_stay_as_the_image_has_them(tmp_path: Path) -> None:
    run = in_memory.opened(build(VAE, latent_dim=4))
    shown = brightness_alone(run)
    space = traverse.CodeSpace(run, np.arange(72))
    found = {"dimensions": space.describe(4), "pictures": []}
    traverse.traverse(run, found, space, 5, tmp_path)
    with torch.no_grad():
        own = run.algorithm.encode(run.pixels(np.array([5])))[0]
    for index, one in enumerate(found["dimensions"]):
        rows = torch.cat(shown)[7 * index : 7 * index + 7]
        others = [d for d in range(4) if d != one["dimension"]]
        assert torch.allclose(rows[:, others], own[others].expand(7, -1), atol=1e-5)
        moved = (rows[:, one["dimension"]] - one["mean"]) / one["sigma"]
        assert torch.allclose(moved, torch.arange(-3.0, 4), atol=1e-4)


def test_sigma_is_that_of_all_posteriors_together() -> None:
    run = in_memory.opened(build(VAE, latent_dim=4))
    rows = np.arange(72)
    space = traverse.CodeSpace(run, rows)
    with torch.no_grad():
        mean, logvar = run.algorithm.posterior(run.pixels(rows))
        samples = mean + (logvar / 2).exp() * torch.randn(4000, *mean.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(space.sigma.float(), samples.flatten(0, 1).std(0), rtol=0.02)
    assert torch.allclose(space.mean.float(), samples.flatten(0, 1).mean(0), atol=0.02)


def test_dimensions_come_by_kl_and_without_a_posterior_by_variance() -> None:
    described = traverse.CodeSpace(in_memory.opened(build(VAE, latent_dim=6)), np.arange(72)).describe(3)
    kl = [one["kl_nats"] for one in described]
    assert len(kl) == 3 and kl == sorted(kl, reverse=True)
    described = traverse.CodeSpace(in_memory.opened(build(AE, latent_dim=6)), np.arange(72)).describe(6)
    sigma = [one["sigma"] for one in described]
    assert sigma == sorted(sigma, reverse=True) and {one["kl_nats"] for one in described} == {None}


def test_a_hierarchy_is_traversed_level_by_level(tmp_path: Path) -> None:
    algorithm = build(HVAE, latent_dims=[6, 3], encoder_hidden_dims=[4, 8], mode="ladder")
    for parameter in algorithm.hierarchy.priors[0].layers[-1].parameters():
        torch.nn.init.zeros_(parameter)  # z_1 does not depend on z_2
    found = traverse.analyse(in_memory.opened(algorithm), tmp_path, dimensions=2, components=2)
    assert [one["level"] for one in found["dimensions"]] == [1, 1, 2, 2]
    assert [one["dimension"] < 6 for one in found["dimensions"]] == [True, True, False, False]
    assert [one["image_change"] > 0 for one in found["dimensions"]] == [True, True, False, False]
    assert len([*tmp_path.glob("traversal_*_level_2.png")]) == 1


def test_anchors_begin_with_the_target_and_differ() -> None:
    run = in_memory.opened(build(AE, latent_dim=2))
    rows = traverse.anchors(run, run.rows("held-out"), 4)
    assert [int(run.images.environment[row]) for row in rows] == [1, 0, 1, 0] and len(set(rows)) == 4
    few = dict(zip(run.images.environments, (np.array([5]), np.array([7, 9, 11])), strict=True))
    assert sorted(traverse.anchors(run, few, 4)) == [5, 7, 9, 11]  # no image twice where one camera has few
    with pytest.raises(UserError, match="num_images = 5, but there are 4 images"):
        traverse.anchors(run, few, 5)


def test_interpolations_end_at_the_reconstructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = in_memory.opened(build(AE, latent_dim=4))
    sheets = []
    monkeypatch.setattr(
        traverse.reconstructions, "sheet", lambda rows, *rest: sheets.append(rows) or Image.new("L", (1, 1))
    )
    traverse.interpolate(run, {"notes": [], "pictures": []}, run.rows("held-out"), tmp_path)
    assert [*sheets[0]] == ["first, 1", "first, 2", "second, 1", "second, 2", "first to second"]
    for tiles in sheets[0].values():
        with torch.no_grad():
            expected = run.algorithm.reconstruct(tiles[[0, -1]])
        assert torch.allclose(tiles[[1, -2]], expected, atol=1e-5)
    across = sheets[0]["first to second"]
    assert torch.equal(across[0], sheets[0]["first, 1"][0])
    assert torch.equal(across[-1], sheets[0]["second, 2"][-1])


def test_a_mixture_draws_where_the_codes_are(tmp_path: Path) -> None:
    run = in_memory.opened(build(AE, latent_dim=3), in_memory.graded(40))
    run.algorithm.encode = lambda x: x.mean((2, 3))  # brightness and colour: three clusters of the training images
    drawn = []
    run.algorithm.decode = lambda z: drawn.append(z) or torch.zeros(len(z), 3, 32, 32)
    found: dict = {"notes": [], "mixture": None}
    traverse.from_mixture(run, found, 3, 60)
    rows = run.rows("train")["first"]
    codes = run.pixels(rows).mean((2, 3))
    nearest = torch.cdist(torch.cat(drawn), codes).min(1).values
    assert nearest.max() < 0.02  # the clusters are 0.2 apart
    near = torch.cdist(torch.cat(drawn), torch.stack([codes[run.images.labels[rows] == k].mean(0) for k in range(3)]))
    assert near.argmin(1).unique().tolist() == [0, 1, 2]
    assert traverse.from_mixture(run, found, 1000, 8) is None and "1000 Gaussians" in found["notes"][0]


def test_labels_are_told_and_drawn_under_each(tmp_path: Path) -> None:
    algorithm = build(CVAE, conditioning="decoder", latent_dim=4, width=4)
    found = traverse.analyse(in_memory.opened(algorithm), tmp_path, dimensions=2)
    assert (tmp_path / "samples_per_label.png").is_file() and found["mixture"] is None
    assert found["label_change"] > 0
    torch.nn.init.zeros_(algorithm.embedding.weight)
    found = traverse.analyse(in_memory.opened(algorithm), tmp_path, dimensions=2)
    assert found["label_change"] == pytest.approx(0, abs=1e-6)
    assert any("NOT LISTEN TO THE LABEL" in one for one in found["findings"])


def test_a_collapsed_posterior_is_named(tmp_path: Path) -> None:
    algorithm = build(VAE, latent_dim=4)
    torch.nn.init.zeros_(algorithm.to_posterior.weight)
    found = traverse.analyse(in_memory.opened(algorithm), tmp_path, dimensions=2, components=2)
    assert found["findings"][0].startswith("POSTERIOR COLLAPSE")


def test_a_decoder_that_does_not_listen_is_named(tmp_path: Path) -> None:
    run = in_memory.opened(build(AE, latent_dim=4))
    run.algorithm.decode = lambda z: torch.full((len(z), 3, 32, 32), 0.5)
    found = traverse.analyse(run, tmp_path, dimensions=2, components=2)
    assert any("NOT LISTEN TO THE CODE" in one for one in found["findings"])


@pytest.mark.parametrize("cls", [AE, VAE, VQVAE, CodePrior])
def test_images_that_are_not_finite_are_not_taken_for_a_decoder_that_does_not_listen(cls, tmp_path: Path) -> None:
    run = in_memory.opened(build(cls))
    for name in ("decode", "sample"):
        if hasattr(cls, name):
            setattr(
                run.algorithm, name, lambda z: torch.full((z if isinstance(z, int) else len(z), 3, 32, 32), torch.nan)
            )
    with pytest.raises(UserError, match=f"{cls.name} draws numbers that are not finite.*--checkpoint"):
        traverse.analyse(run, tmp_path, dimensions=2, components=2)


@pytest.mark.parametrize("cls, pictures", [(VQVAE, ["interpolations.png"]), (CodePrior, ["samples.png"])])
def test_what_an_algorithm_can_do_is_shown(cls, pictures: list[str], tmp_path: Path) -> None:
    found = traverse.analyse(in_memory.opened(build(cls)), tmp_path)
    assert [one["file"] for one in found["pictures"]] == pictures and not found["dimensions"]


@pytest.mark.parametrize("cls, others", [(ERM, "`latents`, `layers`"), (LatentClassifier, "traverse. `layers`")])
def test_a_model_that_draws_nothing_is_refused_with_what_to_do(cls, others: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{cls.name} draws no images.*{others}"):
        traverse.analyse(in_memory.opened(build(cls)), tmp_path)


# --- known factors ---


def planted_factors(count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    light, camera = generator.normal(size=count), generator.integers(0, 4, count)
    codes = np.stack([-light, camera + 0.1 * generator.normal(size=count), generator.normal(size=count)], axis=1)
    names = np.array(["wide", "round", "narrow", "handheld"])[camera]
    return codes, {"light": light, "camera": names, "eye": generator.integers(0, 2, count), "constant": np.ones(count)}


def test_each_dimension_is_found_to_follow_what_it_was_made_of() -> None:
    codes, factors = planted_factors(1000)
    found = traverse.follow(codes, factors)
    assert found["names"] == ["light", "camera", "eye"]
    share = np.array(found["share"])
    assert share[0, 0] > 0.97 and share[1, 1] > 0.8 and share[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]].max() < 0.02
    assert np.array(found["significant"]).tolist() == [[True, False, False], [False, True, False], [False] * 3]
    assert found["spearman"][0][0] == pytest.approx(spearmanr(codes[:, 0], factors["light"]).statistic)
    assert found["spearman"][1][1] is None
    assert found["mig_per_factor"]["light"] > 0.95 and found["mig_per_factor"]["eye"] < 0.02


def test_two_dimensions_that_share_a_factor_have_no_gap() -> None:
    light, noise = np.random.default_rng(0).normal(size=(2, 500))
    found = traverse.follow(np.stack([light, 2 * light + 1, noise], axis=1), {"light": light})
    assert found["mig"] == pytest.approx(0, abs=1e-12)


def test_mutual_information_is_that_of_scikit_learn() -> None:
    codes, factors = planted_factors(300)
    first, second = traverse._cut(codes[:, 2] + 0.5 * factors["light"], 10), traverse._cut(factors["light"], 10)
    assert np.bincount(first).tolist() == [30] * 10
    table = np.zeros((10, 10))
    np.add.at(table, (first, second), 1)
    nats, entropy = traverse._mutual_information(table)
    assert nats == pytest.approx(mutual_info_score(first, second)) and entropy == pytest.approx(np.log(10))


def test_few_values_are_not_cut_and_equal_ones_stay_together() -> None:
    values = np.array([0.0] * 50 + [1.0, 2.0] * 25)
    assert traverse._cut(values, 10).tolist() == values.astype(int).tolist()
    counts = np.random.default_rng(0).poisson(0.5, 300) * 1.0
    counts[:20] = np.arange(20)
    cut = traverse._cut(counts, 10)
    assert all(len(set(cut[counts == value])) == 1 for value in set(counts))


def test_chance_is_taken_off() -> None:
    generator = np.random.default_rng(1)
    codes, light = generator.normal(size=(150, 300)), generator.normal(size=150)
    fifths = traverse._cut(light, 5)
    raw = np.mean([mutual_info_score(traverse._cut(column, 5), fifths) for column in codes.T]) / np.log(5)
    found = traverse.follow(codes, {"light": light})
    assert raw > 0.03 and np.mean(found["share"]) < 0.02 and np.mean(found["significant"]) < 0.01


def test_factors_of_a_data_set_belong_to_its_images(tmp_path: Path) -> None:
    run = in_memory.opened(build(ERM), dataset="SyntheticFundus", data_dir=None, datasets={"SyntheticFundus": SETTINGS})
    names = [f"{camera}/{index}" for camera in ("round45", "wide50") for index in range(30)]
    run.images.names = np.array([*names, *names[:12]], dtype=object)
    dataset = SyntheticFundus(None, SyntheticFundus.HParams(**SETTINGS))
    numbers = {sample.name: index for index, sample in enumerate(dataset.samples)}
    factors = traverse.known_factors(run)(np.array([3, 40]))
    expected = [dataset.factors(numbers[name]) for name in ("round45/3", "wide50/10")]
    assert {name: values.tolist() for name, values in factors.items()} == {
        name: [one[name] for one in expected] for name in expected[0]
    }
    found = traverse.analyse(run, tmp_path)
    assert (tmp_path / "factors.png").is_file() and found["dimensions"][0]["image_change"] is None
    assert traverse.known_factors(in_memory.opened(build(ERM))) is None


def test_a_label_that_is_told_is_no_factor_that_the_code_follows(tmp_path: Path) -> None:
    algorithm = build(CVAE, conditioning="posterior", latent_dim=4, width=4)
    run = in_memory.opened(algorithm)
    torch.nn.init.normal_(algorithm.embedding.weight, std=100.0)
    run.images.labels = np.random.default_rng(0).permutation(run.images.labels)
    rows = np.arange(72)
    space = traverse.CodeSpace(run, rows)
    labels = {"label": np.array(run.classes)[run.images.labels[rows]]}
    assert np.max(traverse.follow(space.codes.numpy(), labels)["share"]) > 0.5
    found = {"dimensions": space.describe(4), "pictures": []}
    traverse.add_factors(run, found, space, labels, tmp_path)
    assert np.max(found["factors"]["share"]) < 0.2


def test_a_channel_of_a_map_moves_at_every_place_by_the_range_of_its_mean(tmp_path: Path) -> None:
    run = in_memory.opened(build(VAE, latent="map", latent_channels=3, latent_halvings=2))
    shown = []

    def decode(z: torch.Tensor) -> torch.Tensor:
        shown.append(z.clone())
        return torch.sigmoid(z[:, 64:128].mean(1))[:, None, None, None].expand(-1, 3, 32, 32)

    run.algorithm.decode = decode
    found = traverse.analyse(run, tmp_path, images="all", dimensions=3, components=2)
    assert found["code_map"] == (3, 8, 8) and {one["dimension"] for one in found["dimensions"]} == {0, 1, 2}
    by_dimension = {one["dimension"]: one for one in found["dimensions"]}
    space = traverse.CodeSpace(run, np.arange(72))
    pooled = space.codes.reshape(72, 3, 64).mean(2).numpy()
    np.testing.assert_allclose([by_dimension[d]["mean"] for d in range(3)], pooled.mean(0), atol=1e-5)
    middle = by_dimension[1]
    ends = torch.tensor([middle["mean"] - 3 * middle["sigma"], middle["mean"] + 3 * middle["sigma"]]).sigmoid()
    assert middle["image_change"] == pytest.approx((ends[1] - ends[0]).item(), abs=1e-5)
    assert by_dimension[0]["image_change"] == by_dimension[2]["image_change"] == 0
    moved = (shown[0][0] - shown[0][-1]).reshape(3, 64)  # against the image's own code
    assert (moved.std(1) < 1e-5).all() and (moved.abs().amax(1) > 1e-3).sum() == 1
    assert [path.name for path in tmp_path.glob("traversal_*.png")]
