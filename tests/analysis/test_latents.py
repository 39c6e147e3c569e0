"""Figures and maps of codes: against scikit-learn, and on codes where the answer is known."""

import sys
from pathlib import Path
from types import SimpleNamespace

import in_memory
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from domainbed.algorithms.autoencoder import AE
from domainbed.algorithms.code_prior import CodePrior
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.hvae import HVAE
from domainbed.algorithms.latent_classifier import LatentClassifier
from domainbed.algorithms.vae import VAE
from domainbed.algorithms.vqvae import VQVAE
from domainbed.analysis import latents
from domainbed.cli.latents import table
from domainbed.datasets.base import UNLABELLED
from domainbed.errors import UserError
from domainbed.testing import build, minibatches


def blobs(apart: float, count: int = 120, size: int = 4) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Codes of three labels around centres that are `apart`, and two images of each patient."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) // 2 % 3
    code = generator.normal(size=(count, size))
    code[:, 0] += apart * (labels == 1)
    code[:, 1] += apart * (labels == 2)
    return torch.from_numpy(code), labels, np.array([f"patient {index // 2}" for index in range(count)])


def test_neighbours_are_those_of_scikit_learn_without_the_own_patient() -> None:
    code, labels, groups = blobs(1.5)
    found = latents.nearest_neighbours(code, labels, groups, 3)
    for index in range(len(code)):
        others = groups != groups[index]
        oracle = KNeighborsClassifier(latents.NUM_NEIGHBOURS).fit(code.numpy()[others], labels[others])
        shares = oracle.predict_proba(code.numpy()[index : index + 1])[0] / np.bincount(labels)
        assert found[index] == shares.argmax()


def test_a_rare_label_is_answered_as_soon_as_a_frequent_one() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [600, 60])
    code = torch.from_numpy(generator.normal(size=(660, 3)))
    code[:, 0] += torch.from_numpy(1.5 * labels)
    answers = latents.nearest_neighbours(code, labels, np.arange(660), 2)
    assert (answers[labels == 1] == 1).mean() > 0.6  # a plain majority: 0.27
    assert (answers[labels == 0] == 0).mean() > 0.6


def test_what_is_known_of_a_patient_alone_is_chance() -> None:
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 12)
    code = torch.from_numpy(generator.normal(size=(60, 16))[patients])  # every image of a patient has the same code
    labels = generator.integers(0, 2, 60)[patients]
    found = latents.separation(code, labels, patients.astype(str), ["no", "yes"], [])
    assert found["neighbours"]["balanced_accuracy"] == pytest.approx(0.5, abs=0.2)
    assert found["probe"]["balanced_accuracy"] == pytest.approx(0.5, abs=0.2)


def test_labels_far_apart_and_labels_that_are_not_in_the_code() -> None:
    code, labels, groups = blobs(30.0)
    apart = latents.separation(code, labels, groups, ["a", "b", "c"], [])
    assert apart["probe"]["balanced_accuracy"] == apart["neighbours"]["balanced_accuracy"] == 1.0
    assert apart["silhouette"] > 0.8 and apart["chance"] == pytest.approx(1 / 3)
    code, labels, groups = blobs(0.0)
    mixed = latents.separation(code, labels, groups, ["a", "b", "c"], [])
    low, high = mixed["probe"]["interval"]
    assert low < 1 / 3 < high and abs(mixed["silhouette"]) < 0.05


def test_more_dimensions_than_the_probe_reads_are_reduced_first() -> None:
    code, labels, groups = blobs(30.0)
    wide = torch.cat([code, 0.01 * torch.randn(len(code), 400, generator=torch.Generator().manual_seed(0))], dim=1)
    assert (latents.linear_probe(wide, labels, groups) == labels).all()


def test_a_label_of_few_patients_is_left_out_and_said() -> None:
    code, labels, groups = blobs(3.0)
    labels[:4] = 3  # two patients
    notes: list[str] = []
    found = latents.separation(code, labels, groups, ["a", "b", "c", "rare"], notes)
    assert found["names"] == ["a", "b", "c"] and found["images"] == 116
    assert len(notes) == 1 and "rare" in notes[0]
    assert latents.separation(code, np.zeros(len(code), int), groups, ["a"], []) is None


def test_images_without_a_label_belong_to_no_class() -> None:
    code, labels, groups = blobs(30.0)
    bare = np.arange(len(labels)) % 5 == 0
    notes: list[str] = []
    found = latents.separation(code, np.where(bare, UNLABELLED, labels), groups, ["a", "b", "c"], notes)
    kept = latents.separation(code[torch.from_numpy(~bare)], labels[~bare], groups[~bare], ["a", "b", "c"], [])
    assert found == kept and not notes


def test_principal_components_are_those_of_scikit_learn() -> None:
    code = blobs(3.0, size=12)[0]
    code = code - code.mean(0)
    figures, scores = latents.principal_components(code)
    oracle = PCA(10).fit(code.numpy())
    assert figures["explained_variance_ratio"] == pytest.approx(oracle.explained_variance_ratio_)
    assert scores[:, :10].abs().numpy() == pytest.approx(np.abs(oracle.transform(code.numpy())), abs=1e-6)
    needed = int(np.searchsorted(PCA().fit(code.numpy()).explained_variance_ratio_.cumsum(), 0.9)) + 1
    assert figures["components_for"]["0.9"] == needed


def test_one_scale_leaves_dimensions_that_hardly_vary_small() -> None:
    code = torch.stack([torch.linspace(-1, 1, 50), 1e-3 * torch.linspace(1, -1, 50)], dim=1)
    scaled = latents.scale(code)
    assert scaled.std(0)[0] / scaled.std(0)[1] == pytest.approx(1000, rel=1e-4)
    assert latents.scale(torch.full((50, 3), 7.0)) is None


class Grids:
    """Coder whose codes are the brightness of an image: dark is 0, middle 2, bright 4; the half below is 6."""

    num_codes, grid = 8, (2, 2)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        grids = torch.full((len(x), 2, 2), 6)
        grids[:, 0] = (x[:, 1:].mean((1, 2, 3)) * 255 // 60).long()[:, None] * 2
        return grids


def test_use_of_a_codebook() -> None:
    run = in_memory.opened(build(VAE, latent_dim=2))
    run.algorithm.codes, run.algorithm.num_codes, run.algorithm.grid = Grids().codes, 8, (2, 2)
    use = latents.codebook_use(run, {"dark alone": np.arange(12), "all": np.arange(36)})
    assert use["environments"]["dark alone"]["used"] == 2
    assert use["environments"]["dark alone"]["perplexity"] == pytest.approx(2)
    shares = [1 / 2, 1 / 6, 1 / 6, 1 / 6]
    assert use["environments"]["all"]["perplexity"] == pytest.approx(np.exp(-sum(p * np.log(p) for p in shares)))
    assert use["used"] == 4 and use["codes"] == 8


def look(algorithm, folder: Path, **options):
    options = {"maps": ("pca",), **options}
    return latents.analyse(in_memory.opened(algorithm, in_memory.graded(20)), folder, **options)


def test_a_run_from_images_to_pictures(tmp_path: Path) -> None:
    found = look(build(VAE, latent_dim=6), tmp_path, maps=("pca", "tsne"), perplexities=(4, 12, 500))
    assert found["environments"] == {
        "first": {"images": 30, "role": "held out"},
        "second": {"images": 60, "role": "left out of training"},
    }
    assert [*found["maps"]] == ["pca", "tsne_4", "tsne_12"]
    assert found["map"]["kind"] == "t-SNE, perplexity 12"
    assert np.shape(found["map"]["points"]) == (len(found["map"]["rows"]), 2) == (found["images"], 2)
    assert all(0.5 < one["trustworthiness"] <= 1 for one in found["maps"].values())
    assert {one["file"] for one in found["pictures"]} == {path.name for path in tmp_path.glob("*.png")}
    assert any("perplexity 500" in note for note in found["notes"])
    # brightness and colour are all that differs, and a random encoder keeps them
    assert found["class"]["probe"]["interval"][0] > found["class"]["chance"]
    assert found["environment"]["neighbours"]["interval"][0] > found["environment"]["chance"]


def test_the_same_twice(tmp_path: Path) -> None:
    first, second = (look(build(AE, latent_dim=6), tmp_path / name, maps=("pca", "tsne")) for name in "ab")
    assert first == second
    assert (tmp_path / "a" / "tsne_30.png").read_bytes() == (tmp_path / "b" / "tsne_30.png").read_bytes()


def test_umap_is_asked_for_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class UMAP:
        def __init__(self, **options):
            asked.append(options)

        def fit_transform(self, values):
            return values[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    found = look(build(AE, latent_dim=6), tmp_path, maps=("umap",), neighbours=(5, 20))
    assert [one["n_neighbors"] for one in asked] == [5, 20] and [*found["maps"]] == ["umap_5", "umap_20"]
    assert len({one["random_state"] for one in asked}) == 1 and None not in [one["random_state"] for one in asked]


def test_collapse_is_named(tmp_path: Path) -> None:
    algorithm = build(VAE, latent_dim=6)
    torch.nn.init.zeros_(algorithm.to_posterior.weight)
    torch.nn.init.zeros_(algorithm.to_posterior.bias)
    found = look(algorithm, tmp_path)
    assert found["posterior"]["active_units"] == 0 and found["class"] is None and not found["maps"]
    assert "POSTERIOR COLLAPSE" in found["findings"][0] and any("same for every image" in one for one in found["notes"])


def test_a_dead_level_is_named(tmp_path: Path) -> None:
    algorithm = build(HVAE, latent_dims=[6, 3], encoder_hidden_dims=[4, 8], mode="ladder")
    torch.nn.init.normal_(algorithm.hierarchy.likelihoods[0].layers[-1].weight)
    for parameter in algorithm.hierarchy.likelihoods[1].layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    found = look(algorithm, tmp_path)
    assert [level["dead"] for level in found["posterior"]["levels"]] == [False, True]
    assert [one for one in found["findings"] if one.startswith("LEVEL 2 IS DEAD")]


def test_codes_that_lie_elsewhere_than_the_prior_are_named(tmp_path: Path) -> None:
    algorithm = build(VAE, latent_dim=6)
    torch.nn.init.normal_(algorithm.to_posterior.weight, std=1e-3)
    torch.nn.init.constant_(algorithm.to_posterior.bias, 3.0)
    found = look(algorithm, tmp_path, maps=())
    assert any(one.startswith("THE PRIOR IS ELSEWHERE") for one in found["findings"])
    found["posterior"] |= {"marginal_kl_nats": 0.5, "mutual_information_nats": 0.2}
    assert not any(one.startswith("THE PRIOR") for one in latents.findings(found))


def test_a_codebook_that_is_hardly_used_is_named() -> None:
    found = {"posterior": None, "class": None, "environment": None, "codebook": {"perplexity": 20.0, "codes": 512}}
    assert latents.findings(found)[0].startswith("CODEBOOK HARDLY USED")
    found["codebook"]["perplexity"] = 200.0
    assert latents.findings(found) == []


@pytest.mark.parametrize(
    ("probe", "neighbours", "said"),
    [
        ([0.25, 0.45], [0.28, 0.40], "the class can't be read off the code"),
        ([0.25, 0.45], [0.40, 0.60], "10 neighbours name the class better than chance and a linear probe does not"),
        ([0.40, 0.60], [0.28, 0.40], None),
    ],
)
def test_a_code_without_the_class_is_named(probe: list[float], neighbours: list[float], said: str | None) -> None:
    both = {
        name: {"balanced_accuracy": sum(interval) / 2, "interval": interval}
        for name, interval in (("probe", probe), ("neighbours", neighbours))
    }
    figures = {"posterior": None, "codebook": None, "class": both | {"chance": 1 / 3}, "environment": None}
    found = latents.findings(figures)
    assert found == [] if said is None else found[0].startswith(said)


def test_a_code_with_the_environment_is_named(tmp_path: Path) -> None:
    run = in_memory.opened(build(AE, latent_dim=6), in_memory.graded(20))
    run.algorithm.encode = lambda x: x.mean((2, 3))
    found = latents.analyse(run, tmp_path, maps=())
    assert any(one.startswith("the environment is written in the code") for one in found["findings"])


def test_images_without_labels_are_mapped_by_environment_alone(tmp_path: Path) -> None:
    run = in_memory.opened(build(AE, latent_dim=6))
    run.images.classes = []
    found = latents.analyse(run, tmp_path, maps=("pca",))
    assert found["class"] is None and found["environment"] and found["pictures"][0]["title"].endswith("by environment")


@pytest.mark.parametrize("cls", [VQVAE, ERM])
def test_what_an_algorithm_has_is_shown(cls, tmp_path: Path) -> None:
    algorithm = build(cls)
    algorithm.update(minibatches())  # a codebook begins with the first batch
    found = look(algorithm, tmp_path)
    assert (found["codebook"] is not None) is (cls is VQVAE)
    assert found["posterior"] is None and found["maps"]


@pytest.mark.parametrize(
    "cls, others", [(LatentClassifier, "model. Name"), (CodePrior, "`traverse` draws its samples")]
)
def test_a_model_without_codes_is_refused_with_what_to_do(cls, others: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{cls.name} gives no code.*`layers` and `errors`.*{others}"):
        look(build(cls), tmp_path)


def test_codes_that_are_not_finite_are_not_taken_for_equal_ones(tmp_path: Path) -> None:
    run = in_memory.opened(build(AE, latent_dim=4))
    run.algorithm.encode = lambda x: torch.full((len(x), 4), torch.nan)
    with pytest.raises(UserError, match="not finite"):
        latents.analyse(run, tmp_path)


def test_two_images_have_no_map_and_it_is_said(tmp_path: Path) -> None:
    found = latents.analyse(in_memory.opened(build(AE, latent_dim=4)), tmp_path, per_environment=1)
    assert found["images"] == 2 and found["maps"] == {} and any("no maps" in note for note in found["notes"])


def test_a_map_is_read_by_its_mean_over_places_and_its_kl_by_channel_and_place(tmp_path: Path) -> None:
    run = in_memory.opened(build(VAE, latent="map", latent_channels=3, latent_halvings=2))
    found = latents.analyse(run, tmp_path, maps=("pca",))
    assert found["code_dimensions"] == 3 * 64
    figures = found["posterior"]["map"]
    kl = np.array(found["posterior"]["kl_per_dimension_nats"]).reshape(3, 8, 8)
    np.testing.assert_allclose(figures["kl_per_channel_nats"], kl.sum((1, 2)))
    np.testing.assert_allclose(figures["kl_per_place_nats"], kl.sum(0))
    assert len(found["pca"]["explained_variance_ratio"]) == 3
    assert any(line.startswith("variance, of 3 dimensions: ") for line in table(found))
    assert any("a map of 3 channels at 8 x 8 places" in note for note in found["notes"])
    assert (tmp_path / "kl.png").is_file()
