"""Which differences count, and which figures are compared at all: on planted runs whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from planted_runs import plant
from scipy import stats

from domainbed import metrics
from domainbed.analysis import comparable
from domainbed.analysis.compare import (
    EQUAL,
    EXCEEDS,
    NO_SEED,
    NO_SPREAD,
    ONE_SEED,
    WITHIN,
    analyse,
    check,
    curve,
    differences,
    holm,
)
from domainbed.analysis.recorded import RecordedRun
from domainbed.errors import UserError
from domainbed.summary import COLUMNS

#: As every run of a VAE records them; a run may change some.
ELBO = {"reduction": "sums", "beta": 1.0, "capacity": None, "label_weight": None}


def accuracies(values: dict[tuple[int, str], float]) -> dict[tuple[int, str], dict[str, float]]:
    return {place: {"accuracy": value} for place, value in values.items()}


def read(*folders: Path) -> list[RecordedRun]:
    return [RecordedRun.read(folder) for folder in folders]


def judged(*folders: Path) -> list[dict]:
    runs = read(*folders)
    return differences(runs, [run.name for run in runs], [comparable.digests(run) for run in runs])[0]


def test_the_difference_of_two_runs_is_the_paired_t_test_of_scipy_over_seeds(tmp_path: Path) -> None:
    a = {0: 0.71, 1: 0.74, 2: 0.69, 3: 0.77}
    b = {0: 0.60, 1: 0.66, 2: 0.58, 3: 0.64}
    one = plant(tmp_path / "one", accuracies({(seed, "x"): value for seed, value in a.items()}))
    other = plant(tmp_path / "other", accuracies({(seed, "x"): value for seed, value in b.items()}))
    (entry,) = judged(one, other)
    oracle = stats.ttest_rel(list(a.values()), list(b.values()))
    assert entry["p"] == pytest.approx(oracle.pvalue) == entry["p_holm"]
    assert entry["difference"] / entry["se"] == pytest.approx(oracle.statistic)
    assert (entry["n"], entry["verdict"], entry["better"]) == (4, EXCEEDS, "one")
    unpaired = stats.ttest_ind(list(a.values()), list(b.values())).pvalue
    assert entry["p"] < unpaired  # that seeds belong together is what makes it sharp


def test_targets_are_averaged_within_each_seed_and_only_where_both_runs_have_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.uniform(0.4, 0.6, (2, 3, 2))  # run, seed, target
    cells = [(seed, target) for seed in range(3) for target in range(2)]
    one = {(seed, "xy"[target]): a[seed, target] for seed, target in cells} | {(seed, "z"): 0.9 for seed in range(3)}
    other = {(seed, "xy"[target]): b[seed, target] for seed, target in cells} | {(7, "x"): 0.1, (7, "y"): 0.1}
    (entry,) = judged(plant(tmp_path / "one", accuracies(one)), plant(tmp_path / "other", accuracies(other)))
    oracle = stats.ttest_rel(a.mean(1), b.mean(1))
    assert (entry["p"], entry["seeds"], entry["targets"]) == (pytest.approx(oracle.pvalue), [0, 1, 2], ["x", "y"])


def test_noise_alone_is_seldom_taken_for_a_difference() -> None:
    """The test holds its level: of pairs that differ by nothing, about 5 % are called different."""
    from domainbed.analysis.compare import two_sided_p

    gaps = np.random.default_rng(0).normal(size=(4000, 3))
    t = gaps.mean(1) / (gaps.std(1, ddof=1) / np.sqrt(3))
    assert np.mean([two_sided_p(one, 2) < 0.05 for one in t]) == pytest.approx(0.05, abs=0.012)


def test_what_one_seed_can_not_tell_is_said(tmp_path: Path) -> None:
    one = plant(tmp_path / "one", accuracies({(0, "x"): 0.9}))
    other = plant(tmp_path / "other", accuracies({(0, "x"): 0.1}))
    elsewhere = plant(tmp_path / "elsewhere", accuracies({(1, "x"): 0.5}))
    assert [entry["verdict"] for entry in judged(one, other)] == [ONE_SEED]
    assert [entry["verdict"] for entry in judged(one, elsewhere)] == [NO_SEED]


def test_seeds_that_all_say_the_same_are_no_evidence_that_there_is_no_noise(tmp_path: Path) -> None:
    always = {
        name: plant(tmp_path / name, accuracies({(seed, "x"): value for seed in range(3)}))
        for name, value in (("one", 0.5), ("same", 0.5), ("other", 0.25))
    }
    assert [entry["verdict"] for entry in judged(always["one"], always["same"])] == [EQUAL]
    assert [entry["verdict"] for entry in judged(always["one"], always["other"])] == [NO_SPREAD]


def test_holm_as_the_paper_steps_down() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_many_pairs_raise_the_bar(tmp_path: Path) -> None:
    noise = [(0, 0, 0), (0, 0.002, -0.002), (0.01, 0, -0.01), (-0.01, 0.02, 0), (0.01, -0.01, 0), (0, 0.01, 0.02)]
    folders = [
        plant(tmp_path / f"run{k}", accuracies({(s, "x"): 0.5 + 0.01 * k + one for s, one in enumerate(of_seeds)}))
        for k, of_seeds in enumerate(noise)
    ]
    alone, among = judged(*folders[:2])[0], judged(*folders)[0]
    assert alone["p"] == among["p"] < 0.05 and alone["verdict"] == EXCEEDS
    assert among["p_holm"] > 0.05 and among["verdict"] == WITHIN


def test_a_lower_error_is_the_better_one_and_total_loss_only_counts_where_it_is_the_same_quantity(
    tmp_path: Path,
) -> None:
    def vae(name: str, values: list[float], likelihood: str, beta: float = 1.0) -> Path:
        figures = {(seed, "x"): {"total_loss": value, "psnr": 20 + seed / 8} for seed, value in enumerate(values)}
        hparams = {"likelihood": likelihood, "beta": beta, "recon_reduction": "sum", "sigma": 0.1, "free_bits": 0.0}
        return plant(tmp_path / name, figures, algorithm="VAE", hparams=hparams, weights=ELBO | {"beta": beta})

    gaussian, found = vae("gaussian", [10.0, 12.0, 11.0], "gaussian"), vae("found", [5.0, 7.5, 6.2], "sigma_vae")
    bernoulli, other_beta = (
        vae("bernoulli", [1.0, 2.0, 3.5], "bernoulli"),
        vae("beta", [1.0, 2.0, 3.5], "gaussian", 4.0),
    )
    entries = {entry["metric"]: entry for entry in judged(gaussian, found)}
    assert entries["total_loss"]["better"] == "found"  # two bounds on the same quantity
    for folder in (bernoulli, other_beta):
        assert [entry["metric"] for entry in judged(gaussian, folder)] == ["psnr"]
    notes = analyse(read(gaussian, bernoulli), tmp_path / "out")["notes"]
    assert any("total_loss" in note and "likelihood" in note for note in notes)


def test_other_images_labels_or_splits_are_not_compared(tmp_path: Path) -> None:
    figures = accuracies({(0, "x"): 0.5, (1, "x"): 0.6})
    step = {(seed, "x"): {10: {"accuracy": 0.5}} for seed in range(2)}
    one = plant(tmp_path / "one", figures, curves=step)
    other = plant(tmp_path / "other", figures, curves=step, content="another ")
    found = analyse(read(one, other), tmp_path / "out")
    assert found["differences"] == [] and not found["curves"]["target"]
    assert any("x, whose images" in note for note in found["notes"])
    assert analyse(read(one, plant(tmp_path / "third", figures, curves=step)), tmp_path / "out")["curves"]["target"]


def test_figures_of_pixels_need_the_same_size_and_those_of_labels_do_not(tmp_path: Path) -> None:
    figures = {(0, "x"): {"accuracy": 0.5, "psnr": 20.0}}
    small = {"datasets": {"DR": {"image_size": 32, "preprocess": ["resize"]}}}
    found = analyse(
        read(plant(tmp_path / "a", figures), plant(tmp_path / "b", figures, settings=small)), tmp_path / "out"
    )
    assert [entry["metric"] for entry in found["differences"]] == ["accuracy"] and found["metrics"] == ["accuracy"]
    assert any("psnr" in note and "image_size" in note for note in found["notes"])


def test_every_figure_of_labels_can_be_compared_between_algorithms(tmp_path: Path) -> None:
    answers, labels = torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 1])
    figures = metrics.classification(answers, labels, ordinal=True, positives=(1, 2))
    figures |= metrics.screening(metrics.Flags(labels > 0, labels > 1))
    values = {name: value for name, value in figures.items() if isinstance(value, float)}
    assert {"auc_referable", "sensitivity", "specificity"} <= values.keys()
    runs = read(*(plant(tmp_path / name, {(0, "x"): values}, algorithm=name) for name in ("ERM", "VAE_DG")))
    found = analyse(runs, tmp_path / "out")
    assert set(found["metrics"]) == values.keys() & COLUMNS.keys() and not any(
        "not compared" in n for n in found["notes"]
    )


def test_runs_are_labelled_by_what_differs(tmp_path: Path) -> None:
    figures = accuracies({(0, "x"): 0.5})
    runs = read(*(plant(tmp_path / f"lr{k}", figures, hparams={"lr": 0.1**k}) for k in (1, 2)))
    assert check(runs) == ["lr1 (lr=0.1)", "lr2 (lr=0.01)"]
    assert check(read(runs[0].folder, plant(tmp_path / "again" / "lr1", figures))) == [
        str(tmp_path / "lr1"), str(tmp_path / "again" / "lr1")
    ]  # fmt: skip


def test_what_is_no_comparison_is_refused(tmp_path: Path) -> None:
    figures = accuracies({(0, "x"): 0.5})
    one, other = plant(tmp_path / "one", figures), plant(tmp_path / "other", figures, dataset="TCell")
    for folders, says in (((one,), "two runs"), ((one, one), "twice"), ((one, other), "TCell")):
        with pytest.raises(UserError, match=says):
            analyse(read(*folders), tmp_path / "out")


def test_a_curve_is_the_mean_over_targets_then_over_seeds(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 5))  # target, seed, step
    planted = {
        (seed, "xy"[target]): {10 * step: {"psnr": values[target, seed, step]} for step in range(5)}
        for target in range(2)
        for seed in range(3)
    }
    run = RecordedRun.read(plant(tmp_path / "run", {}, curves=planted))
    drawn = curve(run, "target", "psnr", ["x", "y"])
    assert drawn is not None and drawn["steps"] == [0, 10, 20, 30, 40]
    assert drawn["mean"] == pytest.approx(values.mean((0, 1)))
    assert drawn["sd"] == pytest.approx(values.mean(0).std(0, ddof=1))


def test_an_unfinished_run_is_marked_and_a_half_finished_one_shows_what_is_whole(tmp_path: Path) -> None:
    def steps(last: int, value: float) -> dict[int, dict[str, float]]:
        return {step: {"accuracy": value} for step in range(10, last + 1, 10)}

    figures = accuracies({(0, "x"): 0.5})
    done = plant(tmp_path / "done", figures, curves={(0, "x"): steps(50, 0.5)})
    begun = plant(tmp_path / "begun", {}, curves={(0, "x"): steps(20, 0.4)}, unfinished=[(0, "x")])
    half = plant(
        tmp_path / "half", figures, curves={(0, "x"): steps(50, 0.5), (1, "x"): steps(10, 0.9)}, unfinished=[(1, "x")]
    )
    found = analyse(read(done, begun, half), tmp_path / "out")
    drawn = {one["run"]: one for one in found["curves"]["target"]["accuracy"]}
    assert drawn["begun"]["steps"] == [10, 20] and not drawn["begun"]["finished"]
    assert drawn["half"]["steps"] == [10, 20, 30, 40, 50] and drawn["half"]["mean"] == [0.5] * 5
    assert any("begun is unfinished" in note for note in found["notes"])
    assert any("1 of 2 trainings" in note for note in found["notes"])
    assert {row["run"] for row in found["tables"]} == {"done", "half"}


def test_trivial_answers_stand_beside_the_runs_once(tmp_path: Path) -> None:
    figures = accuracies({(0, "x"): 0.5, (1, "x"): 0.75})
    runs = read(*(plant(tmp_path / name, figures, majority={"accuracy": 0.25}) for name in ("one", "other")))
    rows = analyse(runs, tmp_path / "out")["tables"]
    assert [(row["protocol"], row["run"]) for row in rows][2:] == [("majority class", None)]
    accuracy = rows[0]["figures"]["accuracy"]
    assert accuracy.pop("interval") is None  # of two seeds
    assert accuracy == pytest.approx({"mean": 0.625, "sd": np.std([0.5, 0.75], ddof=1), "se": 0.125, "n": 2})


def test_rate_against_distortion_joins_runs_that_differ_in_beta_alone(tmp_path: Path) -> None:
    def run(name: str, beta: float, latent_dim: int = 8) -> Path:
        figures = {"KLD_nats": 10 / beta, "mse": 0.01 * beta}
        return plant(
            tmp_path / name, {(seed, "x"): figures for seed in range(2)}, algorithm="VAE", sources=figures,
            weights=ELBO | {"beta": beta}, hparams={"beta": beta, "latent_dim": latent_dim},
        )  # fmt: skip

    found = analyse(read(run("a", 4.0), run("b", 1.0), run("wide", 2.0, 16)), tmp_path / "out")
    points = found["rate_distortion"]
    assert [(point["beta"], point["sources"]["kl"]["mean"]) for point in points] == [
        (1.0, 10.0),
        (2.0, 5.0),
        (4.0, 2.5),
    ]
    assert points[0]["series"] == points[2]["series"] != points[1]["series"]
    assert (tmp_path / "out" / "rate_distortion.png").is_file()
    assert not analyse(read(tmp_path / "a", run("c", 4.0)), tmp_path / "out")["rate_distortion"]


def test_runs_that_hold_out_other_images_are_not_put_on_one_line_of_rate_and_distortion(tmp_path: Path) -> None:
    weights = {"beta": 1.0, "capacity": None}
    seen = {"KLD_nats": 1.0, "mse": 0.5}

    def run(name: str, beta: float, target: str = "x", content: str = "") -> Path:
        return plant(
            tmp_path / name, {(0, target): seen}, algorithm="VAE", hparams={"beta": beta},
            weights=weights | {"beta": beta}, sources=seen, content=content,
        )  # fmt: skip

    first = run("first", 1.0)
    for other, drawn in (
        (run("same", 2.0), True), (run("target", 2.0, "y"), False), (run("images", 2.0, "x", "b"), False),
    ):  # fmt: skip
        assert bool(analyse(read(first, other), tmp_path / "out")["rate_distortion"]) == drawn


def test_eight_runs_have_a_legend_that_stays_inside_the_picture(tmp_path: Path) -> None:
    from PIL import Image

    step = {(0, "x"): {10: {"accuracy": 0.5}, 20: {"accuracy": 0.75}}}
    folders = [plant(tmp_path / f"a_rather_long_name_of_a_run_{k}", {}, curves=step) for k in range(8)]
    found = analyse(read(*folders), tmp_path / "out")
    for picture in found["pictures"]:
        pixels = np.asarray(Image.open(tmp_path / "out" / picture["file"]).convert("L"))
        assert (pixels[:, :2] == 255).all() and (pixels[:, -2:] == 255).all() and (pixels[-2:] == 255).all()
