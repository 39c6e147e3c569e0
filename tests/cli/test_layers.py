"""`python -m domainbed layers`: on a trained run, what it prints and leaves."""

import json
from pathlib import Path

import pytest
from refusal import refused

from domainbed import cli

RUN = ["--steps", "12", "--checkpoint_freq", "6", "--recon_freq", "0", "tb_freq=1", "--test_envs", "0"]


def test_a_run_is_looked_into(train, photographs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train("seen", "--data_dir", photographs, "--algorithm", "AE", *RUN, "batch_size=4", "latent_dim=8", "lr=0.01")
    folder = Path("results/train_output/DR/seen")
    capfd.readouterr()
    assert cli.main(["layers", str(folder), "--num_images", "1", "--checkpoint", "last"]) == 0
    out = capfd.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "length 12 of 12 steps of 8 images = 2.4 epochs of 40 images" in lines
    assert any(line.startswith("| total_loss | 0.") for line in lines)
    assert any(line.startswith("| encoder.layers.0 | Conv2d 3 > ") for line in lines)
    made = folder / "analysis" / "layers" / "te_camera0_last"
    names = {"loss.png", "change.png", "before_and_after.png", "activations_1.png", "layers.csv", "figures.json"}
    assert names <= {path.name for path in made.iterdir()}
    found = json.loads((made / "figures.json").read_text())
    assert found["structure"]["parameters"] == sum(one["parameters"] for one in found["layers"])
    assert all(one["change"] > 0 for one in found["layers"] if one["trainable"])
    psnr = found["environments"]["camera1"]
    assert psnr["after"]["psnr"] != psnr["before"]["psnr"]
    assert len(found["loss"]["total_loss"]["steps"]) == 12

    assert cli.main(["layers", str(folder), "--checkpoint", "init", "--out", "first", "--json"]) == 0
    first = json.loads(capfd.readouterr().out)
    assert any("these are they" in note for note in first["notes"])
    assert first["environments"]["camera1"]["after"]["psnr"] == psnr["before"]["psnr"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["layers", str(tmp_path)])
    refused((status, *capfd.readouterr()), "is not the folder of a run")
    status = cli.main(["layers", str(tmp_path), "--images", "some"])
    refused((status, *capfd.readouterr()), "--images", "held-out")
