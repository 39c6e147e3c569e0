"""Whole runs at a tiny size: what they leave, that they resume bit for bit, stop cleanly, and name what went wrong."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import domainbed
from domainbed.cli.train import main
from domainbed.engine import Engine
from domainbed.errors import UserError
from domainbed.registry import ALGORITHMS
from domainbed.testing import untrained_run

REPOSITORY = Path(__file__).parents[1]
SHORT = ["--steps", "4", "--checkpoint_freq", "2", "--recon_freq", "2", "--tb_freq", "1", "batch_size=4"]


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run_folder(name: str, dataset: str = "DR") -> Path:
    return Path("results/train_output") / dataset / name


def test_a_run_leaves_what_the_documentation_lists(train, photographs: Path) -> None:
    status, out, err = train("whole", "--data_dir", photographs, *SHORT)
    assert (status, err) == (0, "")
    folder = run_folder("whole")
    for target in ("camera0", "camera1", "camera2"):
        for name in ("init", "last", "best", "oracle"):
            assert (folder / f"te_{target}/checkpoints/{name}/model.safetensors").is_file()
        assert (folder / f"te_{target}/model.safetensors").is_file()
        assert (folder / f"te_{target}/done").is_file()
        for step in ("recon_step_0", "recon_step_2", "recon_final"):
            names = {path.name for path in (folder / step / f"te_{target}").iterdir()}
            assert names == {"samples.png", *(f"camera{i}_{split}.png" for i in range(3) for split in ("train", "val"))}
        assert list((folder / f"tensorboard/te_{target}").glob("events*"))
    for name in ("config.yaml", "log.txt", "summary.md", "summary_full.md", "summary.csv", "summary.json"):
        assert (folder / name).stat().st_size
    kinds = [record["kind"] for record in records(folder)]
    assert kinds.count("train") == 3 * 4
    assert kinds.count("eval") == 3 * 2 * 3  # targets, checkpoints, environments
    assert "majority class" in out and "oracle" in (folder / "summary_full.md").read_text()
    assert "beta" in (folder / "log.txt").read_text()


def test_the_mean_training_image_stands_beside_reconstructions(train, photographs: Path) -> None:
    assert train("mean", "--data_dir", photographs, "--test_envs", "0", "image_size=20", *SHORT)[0] == 0
    folder = run_folder("mean")
    with open(folder / "images.csv", newline="") as file:
        listed = list(csv.DictReader(file))

    def pixels(environments: list[str], split: str) -> np.ndarray:
        chosen = [row for row in listed if row["environment"] in environments and split in ("whole", row["split"])]
        return np.stack([np.asarray(Image.open(photographs / row["image"]), np.float64) / 255 for row in chosen])

    mean = pixels(["camera1", "camera2"], "train").mean(0)
    found = [record for record in records(folder) if record.get("protocol") == "mean training image"]
    assert {(r["environment"], r["part"]) for r in found} == {
        ("camera0", "whole"), ("camera0", "val"), ("camera1", "val"), ("camera2", "val"),
    }  # fmt: skip
    for record in found:
        expected = np.square(pixels([record["environment"]], record["part"]) - mean).mean()
        assert record["metrics"]["mse"] == pytest.approx(expected, rel=1e-4), record["environment"]
    assert "mean training image" in (folder / "summary.md").read_text()


def test_the_records_hold_the_losses_by_their_documented_names(train, photographs: Path) -> None:
    train("names", "--data_dir", photographs, "--test_envs", "0", *SHORT, "--tb_freq", 3)
    found = [record for record in records(run_folder("names")) if record["kind"] == "train"]
    assert [record["step"] for record in found] == [1, 3, 4]
    record = found[0]
    expected = {"total_loss", "recon_loss", "KLD_loss", "KLD_weighted", "y_loss", "kl_anneal_weight"}
    assert expected <= record.keys()
    assert "loss" not in record


def test_held_out_images_are_never_trained_on_and_the_target_not_at_all(train, photographs: Path, monkeypatch) -> None:
    from domainbed.datasets.loaders import TrainLoader

    seen: dict[str, set[str]] = {"names": set()}
    original = TrainLoader.row_indices

    def spy(self, step, environment):
        rows = original(self, step, environment)
        seen["names"] |= set(self.images.names[rows])
        seen["held_out"] = set(self.images.names[self.images.split != "train"])
        return rows

    monkeypatch.setattr(TrainLoader, "row_indices", spy)
    train("disjoint", "--data_dir", photographs, "--test_envs", "camera1", "--steps", "20", "batch_size=8")
    assert not seen["names"] & seen["held_out"]
    assert {name.split("/")[0] for name in seen["names"]} == {"camera0", "camera2"}
    assert len(seen["names"]) == 2 * 20  # every training image of both, nothing else: 24 less a fifth of each grade


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_a_stopped_run_goes_on_bit_for_bit(
    train, photographs: Path, request: pytest.FixtureRequest, algorithm: str, precision: str
) -> None:
    arguments = ["--data_dir", photographs, "--algorithm", algorithm, "--precision", precision, "--device", "cpu"]
    dataset = "DR"
    if ALGORITHMS[algorithm].needs_masks:
        dataset, arguments[1] = "Manifest", request.getfixturevalue("photographs_with_masks")
        arguments += ["--dataset", dataset, "width=4"]
    arguments += ["--test_envs", "0", *SHORT, "augment=crop_scale,horizontal_flip,color_jitter"]
    if algorithm == "VAE_DG":
        arguments += ["kl_anneal_end=4"]
    for key, name in ALGORITHMS[algorithm].HParams.runs.items():
        arguments += [f"{key}={untrained_run(ALGORITHMS[name], (3, 16, 16), num_classes=5).path}"]
    assert train("straight", *arguments)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)  # between two checkpoints
        assert train("stopped", *arguments)[0] == 130
    assert train("stopped", "--resume")[0] == 0
    straight, stopped = run_folder("straight", dataset), run_folder("stopped", dataset)
    for name in ("last", "best", "oracle", "init"):
        one, other = (load_file(f / "te_camera0/checkpoints" / name / "model.safetensors") for f in (straight, stopped))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert records(straight) == records(stopped)
    for path in sorted((straight / "recon_final").rglob("*.png")):
        assert np.array_equal(Image.open(path), Image.open(stopped / path.relative_to(straight))), path


@pytest.mark.parametrize("cut", [2, 3, 4])
def test_a_fine_tuned_run_says_its_rates_and_goes_on_bit_for_bit_around_the_step_at_which_the_encoder_begins(
    train, photographs: Path, cut: int
) -> None:
    import timm

    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "weights.safetensors")
    options = ["finetune=true", "pretrained=weights.safetensors", "head_first=3", "freeze_stages=1", "lr_warmup=2"]
    arguments = ["--data_dir", photographs, "--algorithm", "ERM", "--test_envs", "0", *SHORT, *options]
    status, out, _ = train("straight", *arguments, "--deterministic", "--precision", "float32")
    assert status == 0
    sentence = "fine-tuning: 1 of 5 stages of the encoder are frozen (stem); the encoder learns in 4 groups of layers"
    assert f"{sentence} with rates from 0.000184 to 0.0003; the rest with the rate 0.001; the encoder waits" in out
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, cut)
        assert train("stopped", *arguments, "--deterministic", "--precision", "float32")[0] == 130
    assert train("stopped", "--resume")[0] == 0
    straight, stopped = run_folder("straight"), run_folder("stopped")
    init, *others = (
        load_file(folder / "te_camera0/checkpoints" / name / "model.safetensors")
        for folder, name in ((straight, "init"), (straight, "last"), (stopped, "last"))
    )
    last = others[0]
    assert all(torch.equal(value, others[1][key]) for key, value in last.items())
    moved = {key for key, value in last.items() if not torch.equal(value, init[key])}
    frozen = {key for key in last if key.startswith(("encoder.backbone.conv1", "encoder.backbone.bn1"))}
    assert frozen and not moved & frozen and "encoder.backbone.layer4.0.conv1.weight" in moved
    assert records(straight) == records(stopped)


@pytest.mark.parametrize("algorithm", ["AE", "LatentClassifier", "VAE_DG"])
def test_with_every_option_of_the_step_a_stopped_run_goes_on_bit_for_bit_and_is_what_evaluate_finds(
    train, photographs: Path, algorithm: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from domainbed import cli

    options = ["lr_schedule=cosine", "lr_warmup=2", "clip_norm=0.5", "weight_ema=0.5", "accumulate=2"]
    arguments = ["--data_dir", photographs, "--algorithm", algorithm, "--test_envs", "0", *SHORT, *options]
    arguments += ["--deterministic", "--precision", "float32"]
    if algorithm == "LatentClassifier":
        arguments += [f"encoder_run={untrained_run(ALGORITHMS['AE'], (3, 16, 16), num_classes=5).path}"]
    assert train("straight", *arguments)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        assert train("stopped", *arguments)[0] == 130
    assert train("stopped", "--resume")[0] == 0
    straight, stopped = run_folder("straight"), run_folder("stopped")
    assert records(straight) == records(stopped)
    weights = {
        name: load_file(straight / "te_camera0/checkpoints" / name / "model.safetensors") for name in ("init", "last")
    }
    trained = torch.load(straight / "te_camera0/checkpoints/last/state.pt")["trained"]
    judged = [one for one in weights["last"].values() if one.is_floating_point()]
    assert not all(any(torch.equal(one, other) for other in judged) for one in trained), "else there is one set of them"
    if algorithm == "LatentClassifier":  # what it has made of the training images is there from the beginning
        (components,) = (one for name, one in weights["init"].items() if name.endswith("components"))
        assert not torch.equal(components, torch.eye(*components.shape))
    final = [
        one["metrics"]
        for one in records(straight)
        if one["kind"] == "final"
        and one["protocol"] == "last"
        and (one["environment"], one["part"]) == ("camera0", "whole")
    ]
    capfd.readouterr()
    words = [
        "evaluate",
        straight,
        "--data_dir",
        photographs,
        "--checkpoint",
        "last",
        "--json",
        "--precision",
        "float32",
    ]
    assert cli.main([*map(str, words)]) == 0
    found = json.loads(capfd.readouterr().out)["environments"]["camera0"]["metrics"]
    assert found.keys() == final[0].keys()
    for name, value in final[0].items():
        assert found[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process the signal of Ctrl-C when the given step has been taken."""
    from domainbed.algorithms.base import Algorithm

    original = Algorithm.finish_step

    def finish_step(self):
        original(self)
        if self.step.item() == step:
            os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(Algorithm, "finish_step", finish_step)


def test_a_run_killed_at_any_moment_goes_on_and_ends_the_same(tmp_path: Path, photographs: Path) -> None:
    command = [
        sys.executable, str(REPOSITORY / "train_all.py"), "--data_dir", str(photographs), "--test_envs", "0",
        "--steps", "40", "--checkpoint_freq", "3", "--precision", "float32", "--device", "cpu", "model=test_resnet",
        "pretrained=false", "image_size=16", "batch_size=4", "--results_dir", str(tmp_path / "results"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (tmp_path / "config.yaml").write_text("")
    options = {"env": environment, "cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    killed = tmp_path / "results/train_output/DR/killed"
    process = subprocess.Popen([*command, "killed"], **options)
    delays = iter((0.0, 0.15))
    kills = 0
    while process.poll() is None:
        if (killed / "te_camera0/checkpoints/last/checkpoint.json").exists():
            time.sleep(next(delays, 60))
            if process.poll() is None:
                process.kill()
                kills += 1
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
            process = subprocess.Popen([*command, "killed", "--resume"], **options)
            if kills == 2:
                break
        time.sleep(0.01)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert kills >= 1
    subprocess.run([*command, "straight"], check=True, **options)
    straight = tmp_path / "results/train_output/DR/straight"
    for name in ("last", "best"):
        one, other = (load_file(f / "te_camera0/checkpoints" / name / "model.safetensors") for f in (straight, killed))
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert records(straight) == records(killed)


def test_finished_targets_are_skipped_and_the_others_done(train, photographs: Path) -> None:
    assert train("several", "--data_dir", photographs, *SHORT)[0] == 0
    folder = run_folder("several")
    before = records(folder)
    stamp = (folder / "te_camera0/checkpoints/last/model.safetensors").stat().st_mtime_ns
    (folder / "te_camera2/done").unlink()
    status, out, _ = train("several", "--resume")
    assert status == 0
    assert out.count("done already") == 2
    assert (folder / "te_camera0/checkpoints/last/model.safetensors").stat().st_mtime_ns == stamp
    assert sorted(map(json.dumps, records(folder))) == sorted(map(json.dumps, before))


def test_seeds_repeat_the_run_with_the_same_splits(train, photographs: Path) -> None:
    status, _, _ = train("seeds", "--data_dir", photographs, "--test_envs", "0", "--seeds", "0", "1", *SHORT)
    assert status == 0
    folder = run_folder("seeds")
    one, other = (load_file(folder / f"seed_{s}/te_camera0/checkpoints/last/model.safetensors") for s in (0, 1))
    assert any(not torch.equal(one[key], other[key]) for key in one)
    found = {record["seed"]: record["n"] for record in records(folder) if record["kind"] == "final"}
    assert found.keys() == {0, 1} and len(set(found.values())) == 1
    assert "standard error" in (folder / "summary_full.md").read_text()
    assert domainbed.load(folder, seed=1).step.item() in (2, 4)
    with pytest.raises(UserError, match="seed=0.*seed=1"):
        domainbed.load(folder)


def test_two_environments_are_left_out_together(train, photographs: Path) -> None:
    status, _, _ = train("pair", "--data_dir", photographs, "--test_envs", "0,2", *SHORT)
    assert status == 0
    final = [record for record in records(run_folder("pair")) if record["kind"] == "final"]
    assert {record["target"] for record in final} == {"camera0+camera2"}
    targets = {record["environment"] for record in final if record["role"] == "target"}
    assert targets == {"camera0", "camera2"}
    assert domainbed.load(run_folder("pair")).num_domains == 1


def test_one_environment_trains_without_a_target(train, photographs: Path) -> None:
    status, out, _ = train("alone", "--data_dir", photographs, "environments=camera1", *SHORT)
    assert status == 0 and "without a target" in out
    assert (run_folder("alone") / "te_none/checkpoints/best").is_dir()
    assert not (run_folder("alone") / "te_none/checkpoints/oracle").exists()


def test_loading_gives_back_the_answers_of_the_run(train, photographs: Path) -> None:
    train("loaded", "--data_dir", photographs, "--test_envs", "0", *SHORT)
    folder = run_folder("loaded")
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    by_name = domainbed.load(folder, target="camera0", checkpoint="best")
    exported = domainbed.load(folder / "te_camera0/model.safetensors")
    assert not by_name.training
    assert torch.equal(by_name.predict(x), exported.predict(x))
    last = domainbed.load(folder, checkpoint="last")
    assert last.step.item() == 4
    raw = load_file(folder / "te_camera0/checkpoints/last/model.safetensors")
    assert all(torch.equal(value, raw[key]) for key, value in last.state_dict().items())


def test_what_train_subset_left_out_is_recorded(train, photographs: Path) -> None:
    train("subset", "--data_dir", photographs, "--subset_size", "12", *SHORT, script="train_subset")
    (run_folder("subset") / "te_camera0/done").unlink()
    assert train("subset", "--resume", script="train_all")[0] == 0
    assert [path.name for path in run_folder("subset").glob("te_*")] == ["te_camera0"]
    assert train("again", run_folder("subset") / "config.yaml", tiny=False, script="train_all")[0] == 0
    assert records(run_folder("again")) == records(run_folder("subset"))


def test_train_subset_asks_for_no_more_than_there_is_unless_it_is_told_to(train, photographs: Path) -> None:
    status, out, _ = train("few", "--data_dir", photographs, *SHORT, script="train_subset")
    assert status == 0 and "few: VAE_DG on DR, 24 images of each environment" in out
    assert "! 24 images of each environment are taken, because camera" in out
    config = (run_folder("few") / "config.yaml").read_text()
    assert "subset_size: 24  # automatic, train_subset" in config
    status, _, err = train("more", "--data_dir", photographs, "--subset_size", "100", *SHORT, script="train_subset")
    assert status == 2 and "'camera0' has 24" in err


def test_the_written_configuration_repeats_the_run(train, photographs: Path) -> None:
    train("first", "--data_dir", photographs, "--test_envs", "0", "lr=0.002", *SHORT)
    config = run_folder("first") / "config.yaml"
    assert yaml.safe_load(config.read_text())["algorithms"]["VAE_DG"]["lr"] == 0.002
    assert train("second", config, tiny=False)[0] == 0
    assert records(run_folder("first")) == records(run_folder("second"))


def test_going_on_with_other_settings_is_refused(train, photographs: Path) -> None:
    train("kept", "--data_dir", photographs, "--test_envs", "0", *SHORT)
    status, _, err = train("kept", "--resume", "lr=0.5", "--steps", "9")
    assert status == 2
    assert "lr was 0.0001 and is now 0.5" in err and "steps was 4 and is now 9" in err


def test_a_loss_that_is_not_finite_names_step_term_and_environment(train, photographs: Path, monkeypatch) -> None:
    from domainbed.algorithms.vae_dg import VAE_DG

    original = VAE_DG.losses

    def losses(self, minibatches):
        terms = original(self, minibatches)
        bright = torch.cat([x for x, _ in minibatches]).mean((1, 2, 3)).max() > 0.55  # camera2 alone is that bright
        if self.step.item() >= 2 and bright:
            terms["y_loss"] = terms["y_loss"] * float("nan")
            terms["loss"] = terms["loss"] + terms["y_loss"]
        return terms

    monkeypatch.setattr(VAE_DG, "losses", losses)
    status, _, err = train("nan", "--data_dir", photographs, "--test_envs", "0", *SHORT, "augment=")
    assert status == 2
    assert "step 3" in err and "y_loss" in err and "the minibatch of camera2 alone" in err
    assert "camera1" not in err
    few = [one.replace("batch_size=4", "batch_size=1") for one in SHORT]
    status, _, err = train("few", "--data_dir", photographs, "--test_envs", "0", *few, "augment=")
    assert status == 2 and "whether that of camera1 or of camera2 alone does can't be computed" in err
    weights = load_file(run_folder("nan") / "te_camera0/checkpoints/last/model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_a_second_process_is_refused_while_one_writes(train, photographs: Path) -> None:
    from domainbed.records import RunFolder

    train("locked", "--data_dir", photographs, "--test_envs", "0", *SHORT)
    holder = RunFolder(run_folder("locked"), resume=True)
    code = (
        "import sys; from pathlib import Path; from domainbed.records import RunFolder\n"
        f"RunFolder(Path({str(run_folder('locked').resolve())!r}), resume=True)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode != 0 and f"another process (number {os.getpid()})" in other.stderr
    holder.close()
    RunFolder(run_folder("locked"), resume=True).close()
    with pytest.raises(UserError, match="exists already"):
        RunFolder(run_folder("locked"), resume=False)


def test_a_full_disk_stops_with_what_it_means_and_keeps_the_older_checkpoint(train, photographs, monkeypatch) -> None:
    import errno

    train("full", "--data_dir", photographs, "--test_envs", "0", *SHORT)
    folder = run_folder("full")
    before = (folder / "te_camera0/checkpoints/last/model.safetensors").read_bytes()
    (folder / "te_camera0/done").unlink()
    (folder / "te_camera0/checkpoints/last/checkpoint.json").write_text(
        (folder / "te_camera0/checkpoints/last/checkpoint.json").read_text().replace('"step": 4', '"step": 3')
    )
    original = Path.write_bytes

    def write_bytes(self, data):
        if self.name == "state.pt":
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    status, _, err = train("full", "--resume")
    assert status == 2 and "disk is full" in err and "--resume" in err
    assert (folder / "te_camera0/checkpoints/last/model.safetensors").read_bytes() == before
    assert not list((folder / "te_camera0/checkpoints").glob(".*.new"))


def test_an_interrupt_before_the_first_checkpoint_leaves_a_run_to_go_on_with(train, photographs: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        status, out, _ = train("early", "--data_dir", photographs, "--test_envs", "0", *SHORT)
    assert status == 130 and "Go on with --resume" in out
    status, out, _ = train("early", "--resume")
    assert status == 0 and "goes on after step 1" in out


def test_a_signal_during_the_last_step_stops_the_run_before_the_next_target(train, photographs: Path) -> None:
    arguments = ["--data_dir", photographs, "--test_envs", "0", "1", *SHORT]
    assert train("straight", *arguments)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)
        status, out, _ = train("stopped", *arguments)
    assert status == 130 and "stopped by SIGINT after step 4" in out and "target camera1" not in out
    assert train("stopped", "--resume")[0] == 0
    assert records(run_folder("straight")) == records(run_folder("stopped"))


def test_a_batch_that_can_not_be_cut_is_refused_before_anything_is_decoded(train, photographs: Path) -> None:
    status, out, err = train("uneven", "--data_dir", photographs, *SHORT, "--accumulate", "3")
    assert status == 2 and "batch_size = 4 can't be cut into 3 equal parts" in err and "Use batch_size=3" in err
    assert "images of" not in out and not run_folder("uneven").exists()


@pytest.mark.parametrize(
    ("algorithm", "setting", "says"),
    [
        ("VAE", "latent=map latent_halvings=4", "a map needs two places a side"),
        ("CVAE", "latent=map latent_channels=500", "more than the 192 values of a patch"),
        ("VAE_DG", "latent=map latent_halvings=4", "a map needs two places a side"),
        ("HVAE", "stride=4", "divide an image's side by 256"),
        ("AE", "layers=maxpool 32,code,upsample 32,conv image 3", "too small for so many layers"),
    ],
)
def test_images_too_small_for_an_algorithm_are_refused_before_any_is_decoded(
    train, photographs: Path, algorithm: str, setting: str, says: str
) -> None:
    settings = [setting] if algorithm == "AE" else setting.split()
    status, out, err = train("small", "--algorithm", algorithm, "--data_dir", photographs, *settings, *SHORT)
    assert status == 2 and says in err and "decoded" not in out


def test_annealing_that_does_not_end_stands_in_the_summary(train, photographs: Path) -> None:
    arguments = ["--data_dir", photographs, "--test_envs", "0", "--algorithm", "VAE_DG", *SHORT]
    arguments += ["model=test_resnet", "pretrained=false", "latent_dim=8"]
    for name, end, said in (("short", 100, True), ("enough", 2, False)):
        assert train(name, *arguments, f"kl_anneal_end={end}")[0] == 0
        notes = [record["text"] for record in records(run_folder(name)) if record["kind"] == "note"]
        assert any("ends before its annealing" in note for note in notes) == said
        assert ("ends before its annealing" in (run_folder(name) / "summary_full.md").read_text()) == said


def test_a_finished_target_leaves_no_model_in_memory(train, photographs: Path, monkeypatch) -> None:
    models: list[weakref.ref] = []
    prepare = Engine.prepare

    def remembered(self, algorithm, steps=None):
        assert [model for model in models if model() is not None] == []
        models.append(weakref.ref(algorithm))
        prepare(self, algorithm, steps)

    monkeypatch.setattr(Engine, "prepare", remembered)
    assert train("light", "--data_dir", photographs, "--test_envs", "0", "1", *SHORT)[0] == 0
    assert len(models) == 2


def test_train_subset_holds_out_the_first_environment_only(train, photographs: Path) -> None:
    status, _, _ = train("subset", "--data_dir", photographs, "--subset_size", "12", *SHORT, script="train_subset")
    assert status == 0
    assert [path.name for path in run_folder("subset").glob("te_*")] == ["te_camera0"]
    whole = [r for r in records(run_folder("subset")) if r["kind"] == "final" and r["part"] == "whole"]
    assert {record["n"] for record in whole} == {12}


def test_unlabelled_images_train_an_autoencoder(train, photographs: Path, tmp_path) -> None:
    rows = [f"{path},{path.parent.parent.name}" for path in sorted(photographs.rglob("*.png"))]
    (tmp_path / "images.csv").write_text("path,environment\n" + "\n".join(rows) + "\n")
    arguments = ["--dataset", "Manifest", "--data_dir", tmp_path / "images.csv", "--test_envs", "0", *SHORT]
    status, out, _ = train("ae", *arguments, "--algorithm", "AE")
    assert status == 0 and "selected by total_loss" in out
    status, _, err = train("vae", *arguments)
    assert status == 2 and "has no column 'label'" in err and "--algorithm AE" in err


@pytest.mark.parametrize("algorithm", ["VAE_DG", "AE"])
def test_the_pictures_show_the_images_and_their_reconstructions(train, photographs: Path, algorithm: str) -> None:
    train("pictures", "--data_dir", photographs, "--test_envs", "0", "--algorithm", algorithm, *SHORT)
    picture = np.asarray(Image.open(run_folder("pictures") / "recon_final/te_camera0/camera2_val.png")).astype(float)
    tiles = picture[44:140, 118:214]  # the first input: a camera2 image, grade 0, of mean 160 in every channel
    assert tiles.mean() == pytest.approx(159.5, abs=6)


def test_tensorboard_has_a_large_picture_with_fewer_bytes(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from domainbed.records import Board

    noise = np.random.default_rng(0).normal(128, 20, (80, 120, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).resize((480, 320), Image.Resampling.BICUBIC).save(tmp_path / "large.png")
    board = Board(tmp_path / "board", 0)
    board.picture("large", tmp_path / "large.png", 3)
    board.close()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    (picture,) = events.Images("large")
    assert len(picture.encoded_image_string) < (tmp_path / "large.png").stat().st_size / 2 and picture.step == 3
    with Image.open(tmp_path / "large.png") as file, Image.open(io.BytesIO(picture.encoded_image_string)) as shown:
        assert (picture.width, picture.height) == file.size == shown.size
        assert np.abs(np.asarray(file, dtype=float) - np.asarray(shown)).mean() < 4


def test_tensorboard_holds_the_scalars_the_pictures_and_the_histograms(train, photographs: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("events", "--data_dir", photographs, "--test_envs", "0", *SHORT)
    events = EventAccumulator(str(run_folder("events") / "tensorboard/te_camera0"))
    events.Reload()
    tags = events.Tags()
    assert {"train/total_loss", "camera1_source_val/kappa", "camera0_target_val/psnr"} <= set(tags["scalars"])
    picture = events.Images("reconstructions/camera0_val")[0]
    file = run_folder("events") / "recon_step_0/te_camera0/camera0_val.png"
    assert picture.encoded_image_string == file.read_bytes()
    with Image.open(file) as opened:
        assert (picture.width, picture.height) == opened.size
    assert "latent/camera1_mean" in tags["histograms"]
    steps = [event.step for event in events.Scalars("train/total_loss")]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("algorithm", "num_pictures", "kinds", "num_encoded"),
    [
        ("VAE_DG", 6 + 1, {"mean", "sigma"}, 6),
        ("CVAE", 6 + 1, {"mean", "sigma"}, 6),
        ("ERM", 0, {"code"}, 3),
        ("UNet", 6, set(), 6),
    ],
)
def test_pictures_and_histograms_show_the_same_in_whatever_batches_they_are_computed(
    train, photographs: Path, photographs_with_masks: Path, monkeypatch, algorithm, num_pictures, kinds, num_encoded
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from domainbed import reconstructions

    encoded: list[int] = []

    def counting(model, *arguments):
        """`dump`, which notes the batches that are encoded."""
        shared = getattr(model, model.shared_in_evaluation[0])
        forward, shared.forward = shared.forward, lambda x: (encoded.append(len(x)), forward(x))[1]
        try:
            return dump(model, *arguments)
        finally:
            del shared.forward

    dump = reconstructions.dump
    monkeypatch.setattr(reconstructions, "dump", counting)
    pictures, histograms = {}, {}
    data_dir, dataset = (photographs_with_masks, "Manifest") if algorithm == "UNet" else (photographs, "DR")
    options = ["--algorithm", algorithm, "--test_envs", "0", "--precision", "float32", "--dataset", dataset, *SHORT]
    options += ["model=null", "width=4", "depth=2"] if algorithm == "UNet" else ["image_size=20"]
    for batch_size in (4, 24, 64):  # a picture alone, three, all
        encoded.clear()
        name = f"batch_{batch_size}"
        assert train(name, "--data_dir", data_dir, "--eval_batch_size", batch_size, *options, "--steps", "1")[0] == 0
        per_dump = num_encoded // min(num_encoded, max(1, batch_size // 8))
        assert len(encoded) == 2 * per_dump, "at the beginning and at the end, each picture's images once"
        pictures[batch_size] = {
            path.name: np.asarray(Image.open(path)).astype(int)
            for path in sorted((run_folder(name, dataset) / "recon_step_0").rglob("*.png"))
        }
        events = EventAccumulator(str(run_folder(name, dataset) / "tensorboard/te_camera0"), {"histograms": 0})
        events.Reload()
        histograms[batch_size] = {tag: events.Histograms(tag)[0].histogram_value for tag in events.Tags()["histograms"]}
    assert len(pictures[4]) == num_pictures
    assert len({picture.tobytes() for picture in pictures[4].values()}) == num_pictures
    cameras = ("camera0", "camera1", "camera2")
    assert histograms[4].keys() == {f"latent/{camera}_{kind}" for camera in cameras for kind in kinds}
    sums = sorted(found.sum for tag, found in histograms[4].items() if not tag.endswith("sigma"))
    assert all(after - before > 1e-3 * abs(after) for before, after in pairwise(sums)), "else no mix-up would be seen"
    for batch_size in (24, 64):
        assert pictures[batch_size].keys() == pictures[4].keys()
        assert histograms[batch_size].keys() == histograms[4].keys()
        for name, picture in pictures[4].items():  # a difference is shown 3 times as large
            assert np.abs(pictures[batch_size][name] - picture).max() <= 3, name
        for tag, found in histograms[4].items():
            again = histograms[batch_size][tag]
            assert again.num == found.num and again.sum == pytest.approx(found.sum, rel=1e-4), tag
    if "mean" not in kinds:
        return
    with open(run_folder("batch_64") / "images.csv", newline="") as file:
        held_out = [row for row in csv.DictReader(file) if (row["environment"], row["split"]) == ("camera1", "val")]
    assert len(held_out) <= 8, "else not all of them are shown"
    x = torch.stack([torch.from_numpy(np.array(Image.open(photographs / row["image"]))) for row in held_out])
    mean, _ = domainbed.load(run_folder("batch_64"), checkpoint="init").posterior(x.permute(0, 3, 1, 2) / 255)
    assert histograms[64]["latent/camera1_mean"].num == mean.numel()
    assert histograms[64]["latent/camera1_mean"].sum == pytest.approx(mean.sum().item(), rel=1e-3)


def test_a_plugin_trains_resumes_and_loads(train, photographs: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        '"""My idea."""\n'
        "from domainbed.algorithms.erm import ERM\n"
        "from domainbed.registry import ALGORITHMS\n\n"
        '@ALGORITHMS.register("Mine")\n'
        "class Mine(ERM):\n"
        '    """My idea, in one file."""\n'
    )
    arguments = ["--data_dir", photographs, "--test_envs", "0", "--plugin", plugin, "--algorithm", "Mine", *SHORT]
    assert train("mine", *arguments)[0] == 0
    arguments = f"{str(run_folder('mine').resolve())!r}, plugin=[{str(plugin)!r}]"
    code = f"import domainbed; print(type(domainbed.load({arguments})).__name__)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "Mine", loaded.stderr
    code = code.replace(f", plugin=[{str(plugin)!r}]", "")
    untrusted = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "code: if you trust the one that has it" in untrusted.stderr


def test_the_scripts_are_the_command_line() -> None:
    for script in ("train_all", "train_subset"):
        shown = subprocess.run([sys.executable, REPOSITORY / f"{script}.py", "--help"], capture_output=True, text=True)
        assert shown.returncode == 0 and f"usage: python {script}.py" in shown.stdout
    assert main("train_all", ["--help"]) == 0


def test_environments_named_by_numbers_are_left_out_by_name_and_resumed(train, photographs: Path) -> None:
    for old, new in ((2, 3), (1, 2), (0, 1)):
        (photographs / f"camera{old}").rename(photographs / str(new))
    assert train("numbers", "--data_dir", photographs, *SHORT)[0] == 0
    folder = run_folder("numbers")
    assert {path.name for path in folder.glob("te_*")} == {"te_1", "te_2", "te_3"}
    (folder / "te_2/done").unlink()
    assert train("numbers", "--resume")[0] == 0
    status, _, err = train("numbers", "--resume", "--test_envs", "1")
    assert status == 2 and "other targets" in err


def test_going_on_with_other_images_is_refused_by_name(train, photographs: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        assert train("moved", "--data_dir", photographs, "--test_envs", "0", *SHORT)[0] == 130
    moved = photographs.with_name("elsewhere")
    photographs.rename(moved)
    (moved / "camera1/0/05.png").rename(moved / "camera1/2/25.png")
    status, _, err = train("moved", "--resume", "--data_dir", moved)
    assert status == 2 and "camera1/0/05.png" in err and "camera1/2/25.png" in err
    (moved / "camera1/2/25.png").rename(moved / "camera1/0/05.png")
    assert train("moved", "--resume", "--data_dir", moved)[0] == 0


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take names in UTF-8 alone")
def test_a_file_whose_name_is_no_text_is_an_image_like_another(train, photographs: Path) -> None:
    odd = os.path.join(os.fsencode(photographs), b"camera1", b"0", b"caf\xe9.png")
    os.rename(photographs / "camera1/0/00.png", odd)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        assert train("odd", "--data_dir", photographs, "--test_envs", "0", *SHORT)[0] == 130
    assert train("odd", "--resume")[0] == 0
    assert b"camera1/0/caf\xe9.png," in (run_folder("odd") / "images.csv").read_bytes()
    assert domainbed.cli.main(["report", "--quick", str(run_folder("odd"))]) == 0
    with open(odd, "wb") as file:
        file.write(b"no image")
    status, _, err = train("unreadable", "--data_dir", photographs, *SHORT)
    assert status == 2 and "1 of 72 images can't be read" in err and "camera1/0/caf" in err


def test_a_table_whose_rows_and_columns_were_put_in_another_order_is_the_same_run(
    train, photographs_with_masks: Path
) -> None:
    table = photographs_with_masks
    arguments = ["--dataset", "Manifest", "--data_dir", table, "--algorithm", "UNet", "width=4", "--test_envs", "0"]
    assert train("straight", *arguments, *SHORT)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        assert train("stopped", *arguments, *SHORT)[0] == 130
    head, *rows = table.read_text().splitlines()
    columns = [4, 3, 2, 0, 1]  # of the two kinds, the second first
    shuffled = [head, *np.random.default_rng(0).permutation(rows).tolist()]
    table.write_text("\n".join(",".join(line.split(",")[k] for k in columns) for line in shuffled) + "\n")
    assert train("stopped", "--resume")[0] == 0
    assert records(run_folder("stopped", "Manifest")) == records(run_folder("straight", "Manifest"))


def test_going_on_with_classes_in_another_order_is_refused(train, photographs: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        assert train("turned", "--data_dir", photographs, "--test_envs", "0", *SHORT)[0] == 130
    path = run_folder("turned") / "te_camera0/checkpoints/last/checkpoint.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"classes": meta["classes"][::-1]}))
    status, _, err = train("turned", "--resume")
    assert status == 2 and f"learnt the classes {', '.join(meta['classes'][::-1])}" in err


def test_going_on_with_images_in_another_order_is_refused(tmp_path: Path) -> None:
    from domainbed.datasets.prepare import check_same_images

    path = tmp_path / "images.csv"
    path.write_text("image,split\na,train\nb,train\n")
    check_same_images(path, path.read_text())
    with pytest.raises(UserError, match="their order differs"):
        check_same_images(path, "image,split\nb,train\na,train\n")


def test_a_gradient_that_is_not_finite_stops_before_it_moves_a_weight(train, photographs: Path, monkeypatch) -> None:
    from domainbed.algorithms.erm import ERM

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    original = ERM.losses

    def losses(self, minibatches):
        terms = original(self, minibatches)
        return {"loss": Poison.apply(terms["loss"])} if self.training and self.step.item() == 3 else terms

    monkeypatch.setattr(ERM, "losses", losses)
    status, _, err = train("poison", "--data_dir", photographs, "--test_envs", "0", "--algorithm", "ERM", *SHORT)
    assert status == 2 and "step 4" in err and "the gradient" in err
    weights = load_file(run_folder("poison") / "te_camera0/checkpoints/last/model.safetensors")
    assert weights["step"].item() == 2 and all(value.isfinite().all() for value in weights.values())


def test_faults_of_a_later_target_are_found_before_the_first_is_trained(train, photographs: Path) -> None:
    for path in sorted((photographs / "camera0").rglob("*.png"))[5:19]:
        path.unlink()
    status, _, err = train("early", "--data_dir", photographs, *SHORT, "batch_size=9")
    assert status == 2 and "camera0 has" in err
    assert not run_folder("early").joinpath("te_camera0").exists()
    assert train("early", "--data_dir", photographs, *SHORT)[0] == 0  # the name is still free


def test_a_run_that_trained_nothing_leaves_nothing_to_the_next_of_its_name(
    train, photographs: Path, monkeypatch
) -> None:
    from domainbed.algorithms.vae_dg import VAE_DG

    original = VAE_DG.losses
    nan = torch.tensor(float("nan"))
    monkeypatch.setattr(
        VAE_DG,
        "losses",
        lambda self, batches: (found := original(self, batches)) | {"loss": found["loss"] * nan},
    )
    assert train("again", "--data_dir", photographs, "--test_envs", "0", *SHORT)[0] == 2
    monkeypatch.setattr(VAE_DG, "losses", original)
    assert train("again", "--data_dir", photographs, "--test_envs", "0", *SHORT)[0] == 0
    assert train("other", "--data_dir", photographs, "--test_envs", "0", *SHORT)[0] == 0
    assert records(run_folder("again")) == records(run_folder("other"))


def test_a_resumed_run_has_one_curve_in_tensorboard(train, photographs: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        train("curve", "--data_dir", photographs, "--test_envs", "0", *SHORT)
    train("curve", "--resume")
    events = EventAccumulator(str(run_folder("curve") / "tensorboard/te_camera0"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/total_loss")] == [1, 2, 3, 4]


def test_the_published_loss_is_evaluated_per_image_whatever_the_batch() -> None:
    from domainbed.algorithms.vae_dg import VAE_DG
    from domainbed.evaluator import evaluate
    from domainbed.testing import NoNoise, build, minibatches

    algorithm = build(VAE_DG, latent_dim=8, paper_compat=True, recon_reduction="sum", loss_multiplier_kl=500.0).eval()
    x, y = minibatches(batch=6)[0]
    with torch.no_grad(), NoNoise():
        together = evaluate(algorithm, [(x, y)], list(range(6))).losses
        apart = evaluate(algorithm, [(x[:4], y[:4]), (x[4:], y[4:])], list(range(6))).losses
    assert together == pytest.approx(apart, rel=1e-4)


@pytest.mark.parametrize("where", ["results.jsonl", "events", "png"])
def test_a_disk_that_is_full_anywhere_is_one_message(train, photographs: Path, monkeypatch, where: str) -> None:
    import errno

    from domainbed import reconstructions

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "results.jsonl":
        real = json.dumps
        monkeypatch.setattr(json, "dumps", lambda *a, **k: full() if "allow_nan" in k else real(*a, **k))
    elif where == "events":
        from torch.utils.tensorboard import SummaryWriter

        monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    else:
        monkeypatch.setattr(reconstructions.Image.Image, "save", full)
    status, _, err = train("full", "--data_dir", photographs, "--test_envs", "0", *SHORT)
    assert status == 2 and "disk is full" in err


def test_the_pictures_show_every_class_that_is_there() -> None:
    from types import SimpleNamespace

    from domainbed.reconstructions import fixed_rows

    labels = np.array([0] * 50 + [1] + [3] * 9 + [4] * 2)
    images = SimpleNamespace(labels=labels, select=lambda environment, split: np.arange(len(labels)))
    assert labels[fixed_rows(images, 0, "val")].tolist() == [0, 0, 0, 1, 3, 3, 4, 4]


def test_the_best_score_so_far_is_logged_with_its_sign(train, photographs: Path, monkeypatch) -> None:
    from domainbed import model_selection

    for metric, score, shown in (("kappa", -0.25, "best so far -0.25"), ("total_loss", -0.5, "best so far 0.5")):
        monkeypatch.setattr(model_selection, "score", lambda *_, score=score: score)
        arguments = ["--data_dir", photographs, "--test_envs", "0", "--select_by", metric, *SHORT]
        assert shown in train(f"signed_{metric}", *arguments)[1]


@pytest.mark.parametrize(("mode", "what"), [(True, "a training step"), (False, "an evaluation")])
def test_memory_that_runs_out_is_one_message_and_the_run_goes_on(train, photographs: Path, mode, what) -> None:
    from domainbed.algorithms.vae_dg import VAE_DG

    original = VAE_DG.losses

    def losses(self, minibatches):
        if self.step.item() == 3 + (not mode) and self.training == mode:  # between two checkpoints, or at the second
            torch.empty(1 << 60)
        return original(self, minibatches)

    arguments = ["--data_dir", photographs, "--test_envs", "0", *SHORT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VAE_DG, "losses", losses)
        status, _, err = train("memory", *arguments)
    assert status == 2 and err.startswith(f"error: {what} ran out of memory") and len(err.splitlines()) == 1
    assert "Traceback" not in err and "batch_size" in err and "what was saved before is untouched" in err
    for name in ("init", "last", "best"):
        assert domainbed.load(run_folder("memory"), checkpoint=name).step.item() == (0 if name == "init" else 2)
    status, out, _ = train("memory", "--resume", "--eval_batch_size", "8")
    assert status == 0 and "WARNING: eval_batch_size was 64 and is now 8" in out
    assert domainbed.load(run_folder("memory"), checkpoint="last").step.item() == 4


def test_a_run_goes_on_with_other_batches_of_evaluation(train, photographs: Path) -> None:
    assert train("batches", "--data_dir", photographs, "--test_envs", "0", *SHORT)[0] == 0
    folder = run_folder("batches")
    before = [record for record in records(folder) if record["kind"] == "final"]
    (folder / "te_camera0" / "done").unlink()  # as if it had been stopped in its last judgement
    (folder / "results.jsonl").write_text(
        "".join(f"{json.dumps(record)}\n" for record in records(folder) if record["kind"] != "final")
    )
    status, out, _ = train("batches", "--resume", "--eval_batch_size", "5")
    assert status == 0 and "WARNING: eval_batch_size was 64 and is now 5" in out
    again = [record for record in records(folder) if record["kind"] == "final"]
    assert len(again) == len(before) > 5
    place = ("protocol", "environment", "part", "n")
    for one, other in zip(before, again, strict=True):
        assert [one[key] for key in place] == [other[key] for key in place]
        losses = [{key: value for key, value in r["metrics"].items() if "loss" in key} for r in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert losses[0] or one["checkpoint"] is None


def test_the_last_judgement_asks_a_model_once_for_each_image(train, photographs: Path, monkeypatch) -> None:
    from domainbed.trainer import Training

    asked: list[list[int]] = []
    outputs, final_figures = Training.outputs, Training.final_figures

    def count_rows(self, rows):
        asked[-1] += rows.tolist()
        return outputs(self, rows)

    def count(self, with_train):
        asked.append([])
        with monkeypatch.context() as patch:
            patch.setattr(Training, "outputs", count_rows)
            return final_figures(self, with_train)

    monkeypatch.setattr(Training, "final_figures", count)
    assert train("once", "--data_dir", photographs, "--test_envs", "0", *SHORT)[0] == 0
    assert asked and all(len(rows) == len(set(rows)) for rows in asked)
    assert len(asked[0]) == 72, "of the best weights, every image has its figures"
    final = [record for record in records(run_folder("once")) if record.get("checkpoint") == "best"]
    assert {(r["environment"], r["part"]): r["n"] for r in final} == {
        ("camera0", "whole"): 24, ("camera0", "val"): 4,
        ("camera1", "val"): 4, ("camera1", "train"): 20, ("camera2", "val"): 4, ("camera2", "train"): 20,
    }  # fmt: skip


def test_samples_are_those_of_the_last_weights_from_noise_that_stays(train, photographs: Path) -> None:
    start = ["--data_dir", photographs, "--test_envs", "0", "image_size=16", *SHORT]
    assert train("sampler", *start, "--algorithm", "VAE")[0] == 0
    model = domainbed.load(run_folder("sampler"), checkpoint="last")
    torch.manual_seed(0)
    with torch.no_grad():
        expected = model.decode(torch.randn(16, 128))
    picture = np.asarray(Image.open(run_folder("sampler") / "recon_final/te_camera0/samples.png"))
    for number in (0, 7, 8, 15):
        top, left = 44 + 100 * (number // 8), 118 + 100 * (number % 8)  # 16 px are shown as 96, with a gap of 4
        tile = picture[top : top + 96 : 6, left : left + 96 : 6] / 255
        np.testing.assert_allclose(tile, expected[number].permute(1, 2, 0).numpy(), atol=0.51 / 255)
    assert train("autoencoder", *start, "--algorithm", "AE")[0] == 0
    assert not list(run_folder("autoencoder").rglob("samples.png"))


@pytest.mark.parametrize("algorithm", ["AE", "ERM", "VAE"])
def test_a_run_that_diverges_in_its_last_step_says_so_and_keeps_what_was_saved(
    train, photographs: Path, algorithm: str
) -> None:
    words = ["--data_dir", photographs, "--algorithm", algorithm, "--test_envs", "0", "lr=1e20", "batch_size=4"]
    status, _, err = train("one", *words, "--steps", 1)
    assert status == 2 and "has diverged" in err and "lower lr" in err and "camera1, camera2" in err, err
    assert not (run_folder("one") / "config.yaml").exists(), "its name is free again"


def test_codes_and_pixels_that_are_not_finite_are_left_out_of_histograms_and_marked_in_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from domainbed.reconstructions import to_image
    from domainbed.records import Board

    board = Board(tmp_path, 0)
    board.histogram("none", torch.full((3,), torch.nan), 0)
    board.histogram("some", torch.tensor([1.0, torch.inf, 1.0, torch.nan]), 0)
    board.scalars({"nan": math.nan, "inf": math.inf}, 0)
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["histograms"] == ["some"] and events.Histograms("some")[0].histogram_value.num == 2
    tile = torch.tensor([[[0.5, torch.nan]]])
    assert [to_image(tile, (2, 1)).getpixel((x, 0)) for x in (0, 1)] == [(128, 128, 128), (255, 0, 255)]


def test_a_target_alone_whose_loss_is_not_finite_is_a_warning(train, photographs: Path, monkeypatch) -> None:
    from domainbed import evaluator

    original = evaluator.figures

    def figures(outputs, **options):
        record = original(outputs, **options)
        if outputs.labels.shape and outputs.groups[0].startswith("camera0"):
            record["metrics"]["total_loss"] = None
        return record

    monkeypatch.setattr(evaluator, "figures", figures)
    status, out, _ = train("far", "--data_dir", photographs, "--test_envs", "0", "--algorithm", "ERM", *SHORT)
    assert status == 0 and "WARNING: the loss on held-out images of camera0 is not finite after step 2" in out
    folder = run_folder("far")
    for path in (folder / "summary.json", folder / "te_camera0/checkpoints/last/checkpoint.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"JSON has no {name}"))


@pytest.mark.filterwarnings("ignore:Glyph")  # of matplotlib's font, which has no Chinese
@pytest.mark.parametrize("name", ["x" * 300, "\u773c" * 100, 'site: "A" | B?', "0", "-x", ".hidden"], ids=range(6))
def test_an_environment_of_any_name_is_trained_opened_and_gone_on_with(
    train, photographs: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from domainbed import cli
    from domainbed.algorithms.finished import find_targets

    table = tmp_path / "images.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "environment", "label"])
        for path in sorted(photographs.rglob("*.png")):
            rows.writerow([path, name if "camera0" in str(path) else path.parts[-3], path.parts[-2]])
    words = ["--dataset", "Manifest", "--data_dir", table, "--algorithm", "ERM", "--test_envs", name]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        assert train("named", *words, *SHORT)[0] == 130
    status, out, err = train("named", "--resume")
    assert (status, err) == (0, "") and "goes on after step 3" in out
    folder = run_folder("named", "Manifest")
    assert list(find_targets(folder)) == [(None, name)]
    assert {one["target"] for one in records(folder) if "target" in one} == {name}
    assert domainbed.load(folder, target=name).name == "ERM"
    for command in (["errors", folder, "--device", "cpu"], ["report", folder, "--quick"]):
        assert cli.main([*map(str, command)]) == 0, capfd.readouterr().err
    assert "done already" in train("named", "--resume")[1]
    assert all(len(os.fsencode(path.name)) <= 255 and "|" not in path.name for path in folder.rglob("*"))


def test_a_folder_that_an_earlier_version_named_is_gone_on_with(train, photographs: Path) -> None:
    (photographs / "camera0").rename(photographs / "camera:0")
    words = ["--data_dir", photographs, "--algorithm", "AE", "--test_envs", "camera:0"]
    assert train("old", *words, *SHORT)[0] == 0
    (folder,) = run_folder("old").glob("te_*")
    folder.rename(folder.with_name("te_camera:0"))
    assert "done already" in train("old", "--resume")[1]


def test_two_targets_that_a_file_system_takes_for_one_are_told_apart(train, photographs: Path) -> None:
    words = ["--data_dir", photographs, "--algorithm", "AE", *SHORT]
    assert train("one", *words, "--test_envs", "0")[0] == 0
    folder = run_folder("one")
    (folder / "te_camera1").symlink_to("te_camera0")  # as if the names differed in case, on a share of Windows
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace('"camera0"]', '"camera1"]'))
    status, _, err = train("one", "--resume")
    assert status == 2 and "holds the training of target camera0, so camera1 has no folder of its own" in err


def test_a_threshold_is_fixed_on_the_sources_and_stays_with_the_weights(train, photographs: Path, capfd) -> None:
    from sklearn.metrics import recall_score, roc_auc_score, roc_curve

    from domainbed import cli

    start = ["--algorithm", "ERM", "--data_dir", photographs, "--test_envs", "0", "image_size=20"]
    assert train("flags", *start, *SHORT)[0] == 0
    folder = run_folder("flags").resolve()
    with open(folder / "images.csv", newline="") as file:
        listed = list(csv.DictReader(file))

    def scores(checkpoint: str, environments: list[str], splits: list[str]) -> tuple[np.ndarray, np.ndarray]:
        chosen = [row for row in listed if row["environment"] in environments and row["split"] in splits]
        pixels = np.stack([np.asarray(Image.open(photographs / row["image"]), np.float32) / 255 for row in chosen])
        with torch.no_grad():
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            probabilities = domainbed.load(folder, checkpoint=checkpoint).predict(x).softmax(1)
        return np.array([row["class"] == "moderate" for row in chosen]), probabilities[:, 2:].sum(1).numpy()

    final = [record for record in records(folder) if record["kind"] == "final"]
    by_place = {(r["checkpoint"], r["environment"], r["part"]): r for r in final if r["checkpoint"]}
    sources = ["camera1", "camera2"]
    for checkpoint, chosen_on in (("best", sources), ("last", sources), ("oracle", ["camera0"])):
        record = by_place[checkpoint, "camera0", "whole"]
        positive, score = scores(checkpoint, chosen_on, ["val"])
        _, found, thresholds = roc_curve(positive, score, drop_intermediate=False)
        threshold = record["operating_point"]["threshold"]
        assert ((score >= threshold) == (score >= thresholds[found >= 0.9].max())).all()
        assert record["operating_point"]["chosen_on"] == chosen_on
        assert record["operating_point"]["positives"] == [2, 3, 4]
        positive, score = scores(checkpoint, ["camera0"], ["train", "val"])
        flagged = score >= threshold
        assert record["metrics"]["sensitivity"] == pytest.approx(recall_score(positive, flagged))
        assert record["metrics"]["specificity"] == pytest.approx(recall_score(~positive, ~flagged))
        assert record["metrics"]["auc_referable"] == pytest.approx(roc_auc_score(positive, score), abs=0.01)
        assert record["intervals"].keys() >= {"sensitivity", "specificity", "youden", "auc_referable"}
        everywhere = {r["operating_point"]["threshold"] for r in final if r["checkpoint"] == checkpoint}
        assert everywhere == {threshold}
    (always,) = [r for r in final if r["protocol"] == "majority class" and r["part"] == "whole"]
    assert {always["metrics"]["sensitivity"], always["metrics"]["specificity"]} == {0, 1}

    capfd.readouterr()
    for model, options, checkpoint in ((folder, [], "best"), (folder, ["--checkpoint", "oracle"], "oracle"),
                                       (folder / "te_camera0/model.safetensors", [], "best")):  # fmt: skip
        arguments = [str(model), "--data_dir", str(photographs / "camera0"), "--device", "cpu", *options]
        assert cli.main(["evaluate", *arguments, "--json"]) == 0
        evaluated = json.loads(capfd.readouterr().out)
        expected = by_place[checkpoint, "camera0", "whole"]
        assert evaluated["operating_point"] == expected["operating_point"]
        for key in ("metrics", "intervals"):
            for name in ("sensitivity", "specificity", "youden", "auc_referable"):
                assert evaluated["environments"]["camera0"][key][name] == expected[key][name]
        assert evaluated["environments"]["camera0"]["majority"]["sensitivity"] == always["metrics"]["sensitivity"]
    assert cli.main(["evaluate", *arguments]) == 0
    out = capfd.readouterr().out
    assert "flags an image where the probability of moderate, severe or proliferative is at least" in out
    assert "sensitivity" in out

    # the classes that a threshold is for stay with it, whatever names mean to a later version
    for record in final:
        if "operating_point" in record:
            record["operating_point"] |= {"positives": [0, 1], "threshold": 0.5}
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in final))
    arguments = [str(folder), "--data_dir", str(photographs / "camera0"), "--device", "cpu", "--json"]
    assert cli.main(["evaluate", *arguments]) == 0
    evaluated = json.loads(capfd.readouterr().out)["environments"]["camera0"]["metrics"]
    referable, score = scores("best", ["camera0"], ["train", "val"])
    assert (
        evaluated["sensitivity"] == recall_score(~referable, 1 - score >= 0.5) != recall_score(referable, score >= 0.5)
    )


def test_a_run_of_an_older_version_has_no_threshold_and_is_read_all_the_same(train, photographs: Path, capfd) -> None:
    from domainbed import cli

    start = ["--algorithm", "ERM", "--data_dir", photographs, "--test_envs", "0", *SHORT]
    for name in ("old", "new"):
        assert train(name, *start)[0] == 0
    folder = run_folder("old").resolve()
    lines = records(folder)
    for line in lines:
        line.pop("operating_point", None)
        for figures in (line.get("metrics", {}), line.get("intervals", {})):
            for name in ("sensitivity", "specificity", "youden", "auc_referable"):
                figures.pop(name, None)
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert train("old", "--resume")[0] == 0
    assert "each class counted alike" in (folder / "summary.md").read_text()
    assert "sensitivity" not in (folder / "summary.md").read_text() + (folder / "summary_full.md").read_text()
    capfd.readouterr()
    assert cli.main(["evaluate", str(folder), "--data_dir", str(photographs / "camera0")]) == 0
    out = capfd.readouterr().out
    assert "recorded no threshold for this checkpoint" in out and "sensitivity  " not in out
    for command in (["report", str(folder), "--quick"], ["compare", str(folder), str(run_folder("new").resolve())]):
        assert cli.main(command) == 0


def test_one_camera_says_that_its_threshold_was_chosen_on_the_same_images(train, photographs: Path) -> None:
    status, out, _ = train(
        "one", "--algorithm", "ERM", "--data_dir", photographs, "environments=camera1", "--seeds", "0", "1", *SHORT
    )
    assert status == 0
    text = (run_folder("one") / "summary.md").read_text()
    assert "For camera1 these are the same images, which flatters." in text
    assert "at a threshold that was chosen on these same images." in text
    last_lines = " ".join(out.split("summary, pictures and weights are in")[1].splitlines()[1:])
    conclusion = json.loads((run_folder("one") / "summary.json").read_text())["conclusion"]
    assert last_lines.split() == conclusion.split(), "the terminal ends with the paragraph"
    assert conclusion in text and text.index(conclusion) < text.index("| environment")


def test_held_out_images_without_a_positive_fix_no_threshold(train, photographs: Path) -> None:
    for path in photographs.glob("camera[12]/2/*.png"):  # so of the sources nothing is to be found
        path.unlink()
    status, _, err = train(
        "none", "--algorithm", "ERM", "--data_dir", photographs, "--test_envs", "0", "--select_by", "accuracy", *SHORT
    )
    assert status == 0, err
    found = [r for r in records(run_folder("none")) if r["kind"] == "final" and r["checkpoint"] in ("best", "oracle")]
    for record in found:
        assert (record["operating_point"]["threshold"] is None) == (record["checkpoint"] == "best")
        assert (record["metrics"]["specificity"] is None) == (record["checkpoint"] == "best")
    assert "each class counted alike" in (run_folder("none") / "summary.md").read_text()


def test_an_image_of_two_cameras_is_not_called_unseen(train, photographs: Path) -> None:
    start = ["--algorithm", "ERM", "--data_dir", photographs, "--test_envs", "0", *SHORT]
    assert train("apart", *start)[0] == 0
    assert "camera0 (never seen): " in (run_folder("apart") / "summary.md").read_text()
    (photographs / "camera1/0/copy.png").write_bytes((photographs / "camera0/0/00.png").read_bytes())
    assert train("shared", *start)[0] == 0
    assert "camera0 (left out of this training): " in (run_folder("shared") / "summary.md").read_text()


def test_a_cvae_without_a_judge_is_built_on_no_run_that_may_have_seen_the_target(train, photographs: Path) -> None:
    assert train("alone", "--algorithm", "CVAE", "--data_dir", photographs, "--test_envs", "0", *SHORT)[0] == 0
    assert "camera0 (never seen): " in (run_folder("alone") / "summary.md").read_text()
