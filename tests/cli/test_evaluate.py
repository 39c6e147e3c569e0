"""`python -m domainbed evaluate`: what it prints. What it refuses is in `test_bad_input`."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from domainbed import cli
from domainbed.cli.evaluate import open_dataset, table
from domainbed.registry import DATASETS

RUN = ["--steps", "2", "--checkpoint_freq", "2", "--recon_freq", "0", "batch_size=4", "--test_envs", "0"]


def found(confusion: list[list[int]] | None) -> dict:
    metrics = {"accuracy": 0.75, "recall": confusion and [0.9, None], "confusion": confusion}
    figures = {"n": 10, "num_groups": 10, "metrics": metrics, "intervals": {}}
    return {
        "run": "results/r", "checkpoint": "best", "step": 2, "trained_on": ["a"], "notes": [],
        "classes": ["healthy", "proliferative"], "environments": {"new": figures},
    }  # fmt: skip


def test_the_confusion_names_true_and_predicted_classes_in_aligned_columns() -> None:
    lines = table(found([[9, 1], [0, 0]])).splitlines()
    head, rule, *rows = (line for line in lines if "|" in line)
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "true class", "recall", "images", "predicted healthy", "predicted proliferative",
    ]  # fmt: skip
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        ["healthy", "0.900", "10", "9", "1"],
        ["proliferative", "–", "0", "0", "0"],
    ]
    bars = [[at for at, letter in enumerate(line) if letter == "|"] for line in (head, rule, *rows)]
    assert all(one == bars[0] for one in bars)


def test_baselines_that_an_algorithm_brings_along_stand_beside_it() -> None:
    result = found(None)
    result["environments"]["new"]["metrics"] |= {"accuracy_pca": 0.5, "accuracy_minus_pca": 0.25}
    result["environments"]["new"]["intervals"] = {"accuracy_minus_pca": [-0.125, 0.5]}
    lines = [" ".join(line.split()) for line in table(result).splitlines()]
    assert "pca 0.5000" in lines and "accuracy - pca 0.2500 [-0.1250, 0.5000]" in lines


def test_answers_that_are_not_finite_have_no_confusion() -> None:
    assert "|" not in table(found(None))


def test_an_environment_of_a_data_set_that_names_its_own_is_one_camera(tmp_path: Path) -> None:
    classes = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    for environment in ("art_painting", "cartoon", "photo", "sketch"):
        for name in classes:
            path = tmp_path / "PACS" / environment / name / "a.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(path)
    recorded = DATASETS["PACS"].HParams().model_dump(mode="json")
    config = {"dataset": "PACS", "data_dir": str(tmp_path), "datasets": {"PACS": recorded}}
    arguments = SimpleNamespace(dataset=None, data_dir=tmp_path / "PACS" / "sketch", settings=[])
    dataset, _ = open_dataset(arguments, config, classes)
    assert dataset.environments == ["sketch"] and len(dataset.samples) == len(classes)


def test_memory_that_runs_out_is_one_message(train, photographs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from domainbed.algorithms.vae_dg import VAE_DG

    assert train("judged", "--data_dir", photographs, *RUN)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VAE_DG, "predict", lambda self, x: torch.empty(1 << 60))
        status = cli.main(["evaluate", "results/train_output/DR/judged", "--data_dir", str(photographs)])
    err = capfd.readouterr().err
    assert status == 2 and err.startswith("error: an evaluation ran out of memory") and "Traceback" not in err
