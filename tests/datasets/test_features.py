"""Vectors in the place of images: what the table and the array say, what they may not, and a run on them."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from in_memory import images_of

import domainbed
from domainbed import cli
from domainbed.algorithms.erm import ERM
from domainbed.datasets.augment import Augment
from domainbed.datasets.base import UNLABELLED
from domainbed.datasets.features import Features
from domainbed.datasets.labels import GRADES
from domainbed.datasets.loaders import TrainLoader, in_order
from domainbed.datasets.prepare import Images, prepare
from domainbed.datasets.vectors import Vectors, content_of
from domainbed.engine import Engine
from domainbed.errors import UserError
from domainbed.records import read_results
from domainbed.testing import check_algorithm, check_vectors

#: What a run on vectors needs, and is no default.
WORDS = ("--dataset", "Features", "--algorithm", "ERM", "--device", "cpu", "--precision", "float32")


def written(
    folder: Path,
    array: np.ndarray,
    environments: list[str],
    labels: list[Any],
    name: str = "features",
    **more: list[Any],
) -> Path:
    """Write a table beside an array, and return the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", array)
    cells = {"environment": environments, "label": labels} | more
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(cells)
        writer.writerows(zip(*cells.values(), strict=True))
    return folder / f"{name}.csv"


def gaussians(per_cell: int, num_features: int = 6, seed: int = 0) -> tuple[np.ndarray, list[str], list[int]]:
    """Return vectors of two classes whose means are 4 apart, of three environments that differ in a third direction."""
    generator = np.random.default_rng(seed)
    array, environments, labels = [], [], []
    for number, environment in enumerate(("a", "b", "c")):
        for label in (0, 1):
            centre = np.zeros(num_features)
            centre[0], centre[1] = 4 * label - 2, number
            array.append(centre + generator.standard_normal((per_cell, num_features)))
            environments += [environment] * per_cell
            labels += [label] * per_cell
    return np.concatenate(array).astype(np.float32), environments, labels


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return written(tmp_path / "data", *gaussians(20))


def opened(path: Path | None, **hparams: Any) -> Features:
    return Features(path, Features.HParams(**hparams))


def prepared(dataset: Features, tmp_path: Path, **changed: Any) -> Images:
    options: dict[str, Any] = {
        "trial_seed": 0, "holdout_fraction": 0.2, "subset_size": None, "cache_dir": tmp_path / "cache",
        "num_workers": 1, "skip_unreadable": False, "strict": False, "report": lambda _: None,
    }  # fmt: skip
    return prepare(dataset, **(options | changed))


# --- the table and the array ---


def test_rows_of_the_table_are_vectors_of_the_array_in_order(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    dataset = opened(
        written(
            tmp_path, array, ["north", "south"] * 3, ["mild", "no_dr", "", "mild", "severe", "no_dr"],
            group=["p1", "p2", "7.0", "7", "", "p2"], split=["train", "test", "val", "", "training", "test"],
        )
    )  # fmt: skip
    assert dataset.input_shape == (2,) and dataset.num_classes == 5 and dataset.ordinal
    assert dataset.environments == ["north", "south"] and dataset.classes == list(GRADES)
    assert [sample.name for sample in dataset.samples] == [f"vector {index}" for index in range(6)]
    assert [sample.environment for sample in dataset.samples] == [0, 1] * 3
    assert dataset.labels.tolist() == [1, 0, UNLABELLED, 1, 3, 0]
    assert [sample.group for sample in dataset.samples] == ["p1", "p2", "7", "7", "vector 4", "p2"]
    assert [sample.split for sample in dataset.samples] == ["train", "test", "val", None, "train", "test"]
    for index in range(6):
        assert dataset.read(index).tolist() == array[index].tolist()


def test_the_array_stays_on_the_disk(table: Path) -> None:
    dataset = opened(table)
    assert isinstance(dataset.array, np.memmap) and not dataset.array.flags.writeable


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4"])
def test_each_type_gives_float32(tmp_path: Path, dtype: str) -> None:
    array, environments, labels = gaussians(5)
    dataset = opened(written(tmp_path / "data", array.astype(dtype), environments, labels))
    images = prepared(dataset, tmp_path)
    pixels = images.pixels(np.arange(len(array)))
    assert pixels.dtype == torch.float32 and pixels.shape == (30, 6)
    assert torch.equal(pixels, torch.from_numpy(array.astype(dtype).astype(np.float32)))
    assert not (tmp_path / "cache").exists(), "there is nothing to decode"


def test_contents_are_those_of_the_numbers(tmp_path: Path) -> None:
    array = np.array([[1, 2], [1, 2], [2, 1]], dtype=np.float16)
    dataset = opened(written(tmp_path / "half", array, ["a", "b", "b"], [0, 1, 0]))
    whole = opened(written(tmp_path / "whole", array.astype(np.float32), ["a", "b", "b"], [0, 1, 0]))
    contents = [dataset.content(index) for index in range(3)]
    assert contents == [whole.content(index) for index in range(3)] == prepared(dataset, tmp_path).contents
    assert contents[0] == contents[1] != contents[2]
    assert contents == [content_of(vector) for vector in array], "of float16 as of float32"


def test_the_same_vector_in_two_environments_is_a_leak(tmp_path: Path) -> None:
    array = np.array([[1, 2], [1, 2], [2, 1], [3, 1]], dtype=np.float32)
    dataset = opened(written(tmp_path, array, ["a", "b", "b", "a"], [0, 1, 0, 1], group=["x", "y", "z", "z"]))
    text = "\n".join(prepared(dataset, tmp_path).leaks)
    assert "vector 0 = vector 1" in text and "z in vector 2, vector 3" in text
    with pytest.raises(UserError, match="vector 0 = vector 1"):
        prepared(dataset, tmp_path, strict=True)


def test_the_file_is_found_by_name_alone_or_as_told(tmp_path: Path) -> None:
    array, environments, labels = gaussians(2)
    first = written(tmp_path, array, environments, labels, "first")
    assert opened(tmp_path).array.shape == (12, 6)
    written(tmp_path, array[:, :3], environments, labels, "second")
    assert opened(first).array.shape == (12, 6)
    assert opened(first, array="second.npy").array.shape == (12, 3)
    (tmp_path / "first.npy").rename(tmp_path / "third.npy")
    with pytest.raises(UserError, match="has second.npy, third.npy. Name the file: array=<file>.npy"):
        opened(first)
    with pytest.raises(UserError, match="holds first.csv, second.csv. Give the path of one table"):
        opened(tmp_path)
    for path in tmp_path.glob("*.npy"):
        path.unlink()
    with pytest.raises(UserError, match=r"beside it a .npy file with one vector for each row, but .* has no .npy file"):
        opened(first)
    with pytest.raises(UserError, match="gone.npy: No such file or directory. Give a .npy file of vectors"):
        opened(first, array="gone.npy")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    array = np.zeros((2, 3), np.float32)
    path = written(tmp_path, array, ["a", "b"], [0, 1], hospital=["c", "d"])
    text = path.read_text().replace("environment", "site_of_capture").replace("label", "diagnosis")
    path.write_text(text)
    dataset = opened(path)
    assert dataset.environments == ["c", "d"] and "diagnosis as label" in "\n".join(dataset.log)
    assert opened(path, columns="environment:site_of_capture").environments == ["a", "b"]


# --- what is wrong with them ---


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, np.zeros((2, 3), np.float32), ["a", "b"], [0, 1])
    for column in ("environment", "label"):
        path.write_text(written(tmp_path, np.zeros((2, 3), np.float32), ["a", "b"], [0, 1]).read_text())
        path.write_text(path.read_text().replace(column, "x"))
        with pytest.raises(UserError, match=f"has no column '{column}'. It has .*x.*columns={column}:<column>"):
            opened(path)


def test_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, np.zeros((5, 3), np.float32), ["a", "b"] * 2, [0, 1] * 2)
    with pytest.raises(
        UserError, match=r"features.csv has 4 rows, but .*features.npy has 5 vectors. Row i of the table"
    ):
        opened(path)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 3)), r"holds float64, not float16 or float32. Save it again: .*astype\('float32'\)"),
        (np.zeros((4, 3), np.uint8), "holds uint8, not float16 or float32"),
        (np.zeros((4, 3), complex), "holds complex128, not float16 or float32"),
        (np.zeros(4, np.float32), r"holds an array of shape \(4,\), not one vector in each row"),
        (np.zeros((4, 3, 2), np.float32), r"holds an array of shape \(4, 3, 2\)"),
        (np.zeros((4, 0), np.float32), "features.npy"),
        (np.array([[{}]] * 4), "features.npy can't be read as an array"),
    ],
)
def test_an_array_of_another_kind_is_refused(tmp_path: Path, array: np.ndarray, says: str) -> None:
    path = written(tmp_path, array, ["a", "b"] * 2, [0, 1] * 2)
    with pytest.raises(UserError, match=says) as raised:
        opened(path)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, np.zeros((4, 3), np.float32), ["a", "b"] * 2, [0, 1] * 2)
    file = path.with_suffix(".npy")
    whole = file.read_bytes()
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    for content in (b"", b"no array", whole[:60], whole[:-10]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"features.npy can't be read as an array \(.*Give a .npy file of vectors"):
            opened(path)
    with pytest.raises(UserError, match="several.npz holds several arrays"):
        opened(path, array="several.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_that_are_not_finite_are_refused_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, dtype: str
) -> None:
    monkeypatch.setattr("domainbed.datasets.vectors._CHUNK_BYTES", 5 * 6 * 4)  # five vectors at once
    array, environments, labels = gaussians(5)
    array[3, 2] = array[17, 0] = value
    dataset = opened(written(tmp_path / "data", array.astype(dtype), environments, labels))
    says = "^2 of 30 vectors of Features hold NaN or infinite values: vector 3, vector 17. Compute them again"
    with pytest.raises(UserError, match=says) as raised:
        prepared(dataset, tmp_path, skip_unreadable=True)
    assert ("float16 holds no number beyond 65504" in str(raised.value)) == (dtype == "float16")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"environments": ["a", "", "b", "b"]}, "row 3 has no environment|row 2 has no environment"),
        ({"split": ["train", "hold", "", ""]}, "split 'hold' is none of train, val, test"),
        ({"labels": [0, -1, 1, 1]}, "label '-1' is negative; leave it empty"),
    ],
)
def test_cells_that_can_not_be_used_are_named_by_row(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    cells = {"environments": ["a", "a", "b", "b"], "labels": [0, 1, 0, 1]} | changed
    with pytest.raises(UserError, match=says):
        opened(written(tmp_path, np.zeros((4, 3), np.float32), **cells))


def test_no_place_is_one_message() -> None:
    with pytest.raises(UserError, match="Features needs a .csv.* but no --data_dir is given"):
        opened(None)


# --- the way of a vector through the loaders ---


def test_loaders_draw_the_same_rows_as_of_images_and_change_no_number(table: Path, tmp_path: Path) -> None:
    vectors = prepared(opened(table), tmp_path)
    assert isinstance(vectors.rows, Vectors) and vectors.are_vectors and vectors.input_shape == (6,)
    images = images_of(
        np.zeros((120, 4, 4, 3), np.uint8), vectors.environment, vectors.labels, environments=vectors.environments,
        classes=vectors.classes, split=vectors.split,
    )  # fmt: skip
    loaders = [
        TrainLoader(of, [0, 2], 8, seed=3, augment=Augment(()), class_balanced=balanced)
        for of in (vectors, images)
        for balanced in (False, True)
    ]
    engine = Engine("cpu", "float32")
    array = np.load(table.with_suffix(".npy"))
    for step in (0, 1, 7):
        for ours, theirs in zip(loaders[:2], loaders[2:], strict=True):
            for environment in (0, 2):
                rows = ours.row_indices(step, environment)
                assert np.array_equal(rows, theirs.row_indices(step, environment))
            found = ours.finish(ours.read(step), engine.to_device)
            for environment, (x, y) in zip((0, 2), found, strict=True):
                rows = ours.row_indices(step, environment)
                assert torch.equal(x, torch.from_numpy(array[rows]))
                assert torch.equal(y, torch.from_numpy(vectors.labels[rows]))
    rows = np.array([5, 2, 119])
    ((x, y),) = in_order(vectors, rows, 8)
    assert torch.equal(x, torch.from_numpy(array[rows])) and y.tolist() == vectors.labels[rows].tolist()


def test_numbers_beyond_0_and_1_reach_the_device_as_they_are() -> None:
    x = torch.tensor([[-300.0, 0.5], [1e6, 255.0]])
    assert torch.equal(Engine("cpu", "float32").to_device(x), x)


def test_a_subset_reads_its_own_rows(table: Path, tmp_path: Path) -> None:
    images = prepared(opened(table), tmp_path, subset_size=10)
    array = np.load(table.with_suffix(".npy"))
    for row, name in enumerate(images.names):
        index = int(name.removeprefix("vector "))
        assert np.array_equal(images.rows[row], array[index]) and images.contents[row] == content_of(array[index])
    assert images.describe() == "30 vectors of 6 numbers" and " 10 vectors: " in images.table()[0]


# --- runs ---


def accuracies(folder: Path) -> dict[str, float]:
    """Return the accuracy of each final part of the chosen model, by "environment/part"."""
    return {
        f"{one['environment']}/{one['part']}": one["metrics"]["accuracy"]
        for one in read_results(folder / "results.jsonl")
        if one["kind"] == "final" and one.get("checkpoint") == "best"
    }


def test_a_linear_probe_is_as_good_as_logistic_regression_and_as_the_best_there_is(tmp_path: Path, train) -> None:
    """Means 4 apart with unit covariance: the best classifier is right in Phi(2) = 97.7 % of the cases."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    array, environments, labels = gaussians(400)
    path = written(tmp_path / "data", array, environments, labels)
    words = ("--data_dir", path, "--test_envs", "c", "--steps", 200, "--checkpoint_freq", 100)
    status, _, err = train("probe", *WORDS, *words, "model=none", "lr=0.03", "batch_size=64", tiny=False)
    assert status == 0, err
    folder = Path("results/train_output/Features/probe")
    found = accuracies(folder)["c/whole"]
    is_target, y = np.array(environments) == "c", np.array(labels)
    judge = linear_model.LogisticRegression().fit(array[~is_target], y[~is_target])
    assert found == pytest.approx(judge.score(array[is_target], y[is_target]), abs=0.01)
    best = 0.5 * (1 + math.erf(2 / math.sqrt(2)))
    assert found == pytest.approx(best, abs=3 * math.sqrt(best * (1 - best) / is_target.sum()))


def test_a_perceptron_learns_what_no_line_tells_apart(tmp_path: Path, train) -> None:
    generator = np.random.default_rng(0)
    array = generator.uniform(-1, 1, (900, 2)).astype(np.float32)
    labels = (array.prod(1) > 0).astype(int).tolist()  # opposite quadrants: the best line is right in half of them
    path = written(tmp_path / "data", array, ["a", "b", "c"] * 300, labels)
    words = (*WORDS, "--data_dir", path, "--test_envs", "c", "--steps", 300, "--checkpoint_freq", 300, "lr=0.01")
    for name, words_of_model in {"mlp": ("mlp_width=64",), "none": ("model=none",)}.items():
        status, out, err = train(name, *words, *words_of_model, tiny=False)
        assert status == 0, err
        assert "Features: 900 vectors of 2 numbers" in out and "image_size" not in out
    results = Path("results/train_output/Features")
    assert accuracies(results / "mlp")["c/whole"] > 0.9
    assert accuracies(results / "none")["c/whole"] < 0.65


def test_a_run_is_resumed_bit_for_bit_loaded_and_evaluated_on_other_vectors(
    table: Path, tmp_path: Path, train, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*WORDS, "--data_dir", table, "--test_envs", "c", "--checkpoint_freq", 4, "mlp_width=16", "batch_size=8")
    assert train("straight", *words, "--steps", 8, tiny=False)[0] == 0

    update, calls = ERM.update, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return update(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ERM, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer_main("halted", *words, "--steps", 8)
    assert train("halted", "--resume", tiny=False)[0] == 0
    results = Path("results/train_output/Features")
    straight, halted = (domainbed.load(results / name).state_dict() for name in ("straight", "halted"))
    assert straight.keys() == halted.keys() and all(torch.equal(straight[key], halted[key]) for key in straight)
    recorded = yaml.safe_load((results / "straight" / "config.yaml").read_text())
    assert recorded["datasets"]["Features"] == {"array": None, "columns": []}

    array, _, labels = gaussians(20, seed=1)
    other = written(tmp_path / "other", array, ["later"] * 120, labels)
    capfd.readouterr()
    assert cli.main(["evaluate", str(results / "straight"), "--data_dir", str(other), "--device", "cpu"]) == 0
    assert "later" in capfd.readouterr().out, "one environment is enough to be evaluated on"
    algorithm = domainbed.load(results / "straight").eval()
    assert algorithm.predict(torch.from_numpy(array)).shape == (120, 2)

    narrow = written(tmp_path / "narrow", array[:, :4], ["later"] * 120, labels)
    assert cli.main(["evaluate", str(results / "straight"), "--data_dir", str(narrow), "--device", "cpu"]) == 2
    assert "takes vectors of 6 numbers, but these are of 4" in capfd.readouterr().err
    images = ["--dataset", "SyntheticFundus", "num_images=3"]
    assert cli.main(["evaluate", str(results / "straight"), *images, "--device", "cpu"]) == 2
    assert "the model takes vectors, but SyntheticFundus gives images" in capfd.readouterr().err
    for command in ("latents", "errors", "layers", "export"):
        assert cli.main([command, str(results / "straight")]) == 2, command
        assert "vectors" in capfd.readouterr().err, command

    np.save(table.with_suffix(".npy"), np.load(table.with_suffix(".npy")) + 1)
    status, _, err = train("halted", "--resume", tiny=False)
    assert status == 2 and "the images are not those that this run began with" in err


def trainer_main(*words: object) -> None:
    """Train without `guarded`, which turns an interrupt into an exit status."""
    from domainbed.cli.train import run

    run("train_all", [str(word) for word in words])


def test_one_environment_can_not_be_trained_on(tmp_path: Path, train) -> None:
    array, _, labels = gaussians(5)
    path = written(tmp_path / "data", array, ["only"] * 30, labels)
    status, _, err = train("one", *WORDS, "--data_dir", path, tiny=False)
    assert status == 2
    assert "names one environment only, 'only', so none can be left out. Give vectors of two environments" in err


def test_vectors_without_a_label_are_refused(tmp_path: Path, train) -> None:
    array, environments, labels = gaussians(5)
    path = written(tmp_path / "data", array, environments, ["", *labels[1:]])
    status, _, err = train("bare", *WORDS, "--data_dir", path, tiny=False)
    assert status == 2 and "1 of 30 images have no label: vector 0" in err and "out of table and array" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--algorithm", "AE"), "AE learns from images, but Features gives vectors"),
        (("--algorithm", "VAE_DG"), "VAE_DG learns from images, but Features gives vectors"),
        (("--algorithm", "UNet"), "UNet learns from images, but Features gives vectors"),
        (
            ("model=resnet18",),
            "Features gives vectors, and model = resnet18 takes images. Use model=mlp, or model=none",
        ),
        (("model=mnist_cnn",), "Features gives vectors, and model = mnist_cnn takes images"),
        (("image_size=64",), "image_size = 64 is no setting here: Features gives vectors, not images"),
        (("--preprocess", "resize"), "preprocess = resize is no setting here: Features gives vectors"),
        (("augment=horizontal_flip",), "augment = horizontal_flip is no setting here: Features gives vectors"),
    ],
)
def test_what_needs_images_is_refused_before_anything_is_read(words: tuple[str, ...], says: str, train) -> None:
    chosen = () if "--algorithm" in words else ("--algorithm", "ERM")
    nowhere = ("--data_dir", "nowhere.csv")  # which nobody misses
    status, _, err = train("refused", "--dataset", "Features", *nowhere, *chosen, *words, tiny=False)
    assert status == 2 and err.startswith("error: ") and says in err and len(err.strip().splitlines()) == 1


def test_a_file_of_settings_for_images_serves_vectors_too(table: Path, train) -> None:
    Path("shared.yaml").write_text("image_size: 64\nsteps: 2\n")
    words = (*WORDS, "--data_dir", table, "--test_envs", "c", "shared.yaml")
    status, out, err = train("shared", *words, tiny=False)
    assert status == 0, err
    assert "shared.yaml: image_size is not a setting of this run and is not used" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pack", "--dataset", "Features", "--algorithm", "ERM"], "pack decodes images ahead of their runs"),
        (["explore", "nowhere", "--dataset", "Features"], "explore looks at images, but Features gives vectors"),
    ],
)
def test_commands_for_images_refuse_vectors(words: list[str], says: str, capfd, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert says in capfd.readouterr().err


# --- the contract ---


def test_erm_keeps_the_contract_on_vectors() -> None:
    check_algorithm(ERM)


class ForImages(ERM):
    """Says that it takes vectors, and takes the mean over places."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return super().encode(x) + x.mean((2, 3)).sum()


class Willing(ERM):
    """Does not say that it takes vectors, and forgets to refuse them."""

    takes_vectors = False

    @classmethod
    def check_takes_vectors(cls, hparams: Any = None, of: str = "") -> None:
        pass


def test_the_check_of_vectors_can_fail() -> None:
    with pytest.raises(IndexError):
        check_vectors(ForImages)
    with pytest.raises(AssertionError, match="vectors are not refused"):
        check_vectors(Willing, model="mlp")
