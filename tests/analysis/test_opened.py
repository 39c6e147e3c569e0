"""A run opened again has the model and the images that it was trained with, and says what stands in its way."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import domainbed
from domainbed.analysis.opened import open_run
from domainbed.analysis.recorded import RecordedRun
from domainbed.errors import UserError

RUN = "results/train_output/DR/run"
STEPS = ["--steps", 2, "batch_size=4"]


@pytest.fixture
def run(photographs, train):
    status, _, err = train("run", "--data_dir", photographs, *STEPS, "--test_envs", "camera0", "latent_dim=4")
    assert status == 0, err
    return RUN


def opened(*arguments, **options):
    said = []
    return open_run(*arguments, **({"report": said.append, "device": "cpu"} | options)), said


def test_it_has_the_weights_and_the_images_of_the_run(run):
    found, _ = opened(run)
    loaded = domainbed.load(run)
    assert all(torch.equal(a, b) for a, b in zip(found.algorithm.parameters(), loaded.parameters(), strict=True))
    assert found.images.csv() == Path(f"{RUN}/images.csv").read_text()
    assert (found.target, found.checkpoint) == ("camera0", "best")
    assert str(found.folder_for("latents")) == f"{RUN}/analysis/latents/te_camera0_best"


def test_held_out_images_are_those_that_no_weight_was_fitted_to(run):
    found, _ = opened(run)
    rows = {which: found.rows(which) for which in ("held-out", "train", "all")}
    assert list(rows["train"]) == ["camera1", "camera2"] and len(rows["held-out"]["camera0"]) == 24
    for name, all_rows in rows["all"].items():
        split = found.images.split[all_rows]
        fitted = all_rows[split == "train"] if name != "camera0" else all_rows[:0]
        assert np.array_equal(fitted, rows["train"].get(name, all_rows[:0]))
        assert sorted([*fitted, *rows["held-out"][name]]) == all_rows.tolist()
    few = found.rows("all", per_environment=5)
    assert all(len(chosen) == 5 and set(chosen) <= set(rows["all"][name]) for name, chosen in few.items())


def test_answers_are_those_of_the_model_image_by_image(run):
    found, _ = opened(run, precision="float32")
    rows = np.concatenate(list(found.rows("all").values()))
    answers = found.compute(rows, lambda x, y: {"code": found.algorithm.encode(x), "label": y})
    x = found.images.pixels(rows).float() / 255
    with torch.no_grad():
        assert torch.allclose(answers["code"], domainbed.load(run).encode(x), atol=1e-5)
    assert torch.equal(answers["label"], torch.from_numpy(found.images.labels[rows]))


def test_an_unfinished_run_opens_at_what_it_has(run):
    folder = f"{RUN}/te_camera0"
    shutil.rmtree(f"{folder}/checkpoints/best")
    Path(f"{folder}/done").unlink()
    found, said = opened(run)
    assert found.checkpoint == "last" and any("not finished" in line for line in said)
    assert RecordedRun.read(run).is_finished(0, "camera0") is False
    with pytest.raises(UserError, match="no checkpoint 'best'. There are: last"):
        opened(run, checkpoint_name="best")


def test_an_exported_model_opens_too(run):
    found, _ = opened(f"{RUN}/te_camera0/model.safetensors")
    assert found.checkpoint == "best" and found.target == "camera0"
    assert len(found.rows("all")) == 3


def test_what_stands_in_the_way_is_said(photographs, run):
    def refused(spoil, says):
        spoilt = shutil.copytree(run, "spoilt")
        spoil(spoilt)
        with pytest.raises(UserError, match=says):
            opened(spoilt)
        shutil.rmtree(spoilt)

    def of_an_unknown_data_set(spoilt):
        config = yaml.safe_load((Path(spoilt) / "config.yaml").read_text())
        changed = config | {"dataset": "Nowhere", "datasets": {"Nowhere": config["datasets"]["DR"]}}
        (Path(spoilt) / "config.yaml").write_text(yaml.safe_dump(changed))

    def of_another_version(spoilt):
        path = Path(spoilt) / "te_camera0/checkpoints/best/checkpoint.json"
        path.write_text(path.read_text().replace('"format": 1', '"format": 7'))

    def half_written(spoilt):
        path = Path(spoilt) / "te_camera0/checkpoints/best/model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])

    refused(lambda spoilt: Path(spoilt, "config.yaml").unlink(), "is not the folder of a run")
    refused(lambda spoilt: shutil.rmtree(f"{spoilt}/te_camera0/checkpoints"), "There are: none")
    refused(lambda spoilt: shutil.rmtree(f"{spoilt}/te_camera0"), "the run has saved nothing yet")
    refused(of_an_unknown_data_set, "the data set 'Nowhere' is not built in. Name its file with --plugin")
    refused(of_another_version, "checkpoint format 7, but this version reads format 1")
    refused(half_written, "model.safetensors")
    next(photographs.glob("camera1/0/*")).unlink()
    refused(lambda spoilt: None, "not those that this run began with")
    shutil.rmtree(photographs)
    refused(lambda spoilt: None, "not in .* any more. Say where they are with --data_dir")


def test_images_that_moved_are_found_where_they_are_now(photographs, run):
    moved = photographs.rename(photographs.with_name("elsewhere"))
    found, _ = opened(run, data_dir=moved)
    assert len(found.images.names) == 72


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", "null"])
def test_an_exported_file_with_other_metadata_is_refused(tmp_path, content):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", {"config": content, "checkpoint": content})
    with pytest.raises(UserError, match="not one of this version"):
        opened(tmp_path / "model.safetensors")


def test_records_are_read_by_kind_target_and_seed(run):
    found = RecordedRun.read(run)
    assert found.trainings == [(0, "camera0")] and found.is_finished(0, "camera0")
    assert (found.name, found.algorithm, found.dataset) == ("run", "VAE_DG", "DR")
    assert found.hparams["latent_dim"] == 4
    assert {record["environment"] for record in found.of("eval", "camera0", 0)} == {"camera0", "camera1", "camera2"}
    assert found.of("eval", "camera1") == [] and found.of("eval", seed=1) == []


def test_a_run_without_records_is_refused(run):
    Path(f"{RUN}/results.jsonl").write_text('{"kind": "note", "te')
    with pytest.raises(UserError, match="recorded nothing yet"):
        RecordedRun.read(run)
