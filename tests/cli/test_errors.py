"""`python -m domainbed errors`: on a trained run, what it prints and leaves."""

import csv
import json
from pathlib import Path

import pytest
from refusal import refused

from domainbed import cli

RUN = ["--steps", "2", "--checkpoint_freq", "2", "--recon_freq", "0", "batch_size=4", "--test_envs", "0"]


def test_the_errors_of_a_run(train, photographs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train("judged", "--data_dir", photographs, "--algorithm", "VAE_DG", *RUN)
    folder = Path("results/train_output/DR/judged")
    capfd.readouterr()
    assert cli.main(["errors", str(folder), "--num_worst", "2"]) == 0
    lines = [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()]
    assert "| figure [95 % interval] | camera0 (left out) | camera1 | camera2 |" in lines
    assert "| images (groups) | 24 (24) | 4 (4) | 4 (4) |" in lines
    assert any(line.startswith("| ECE | ") for line in lines)
    assert any(line.startswith("| camera0 | PSNR (dB) | ") for line in lines)
    made = folder / "analysis" / "errors" / "te_camera0_best"
    found = json.loads((made / "figures.json").read_text())
    assert all((made / one["file"]).is_file() for one in found["pictures"])
    with (made / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["environment"] for row in rows] == ["camera0"] * 24 + ["camera1"] * 4 + ["camera2"] * 4
    right = [row["right"] == "True" for row in rows if row["environment"] == "camera0"]
    assert found["environments"]["camera0"]["metrics"]["accuracy"] == pytest.approx(sum(right) / 24)
    recorded = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    (final,) = (
        one
        for one in recorded
        if one["kind"] == "final" and one["part"] == "whole" and one.get("checkpoint") == "best"
        and one["protocol"].startswith("training")
    )  # fmt: skip
    for name in ("accuracy", "psnr", "ssim"):  # the same images, the same weights
        assert found["environments"]["camera0"]["metrics"][name] == pytest.approx(final["metrics"][name], rel=1e-5)


def test_a_model_that_answers_nothing_is_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused((cli.main(["errors", str(tmp_path)]), *capfd.readouterr()), "is not the folder of a run")
    refused((cli.main(["errors", str(tmp_path), "--num_worst", "0"]), *capfd.readouterr()), "--num_worst")
