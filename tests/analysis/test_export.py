"""Exported files give what the model gives, in runtimes that know nothing of it, and their cards run."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import CLASSES, expected, saved

import domainbed
from domainbed.analysis import card, export, exported
from domainbed.errors import UserError
from domainbed.networks.encoders import TimmEncoder
from domainbed.registry import DATASETS


@pytest.fixture(scope="module")
def vae_dg(tmp_path_factory: pytest.TempPathFactory):
    """A model that can do everything but masks, exported in all formats: (algorithm, folder, what was found)."""
    folder = tmp_path_factory.mktemp("vae_dg")
    algorithm, path = saved("VAE_DG", folder, data={"preprocess": ["gray_ntsc", "resize"]})
    found = export.analyse(path, folder / "out", formats=[*export.FORMATS], licence="CC0, made up")
    return algorithm, folder / "out", found


def test_torch_export(vae_dg) -> None:
    algorithm, folder, _ = vae_dg
    x = torch.rand(5, 1, 16, 16)
    module = torch.export.load(folder / "model.pt2").module()
    for value, truth in zip(module(x), expected(algorithm, x).values(), strict=True):
        torch.testing.assert_close(value, truth, atol=1e-5, rtol=1e-5)
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("extra/domainbed.json"))
        assert json.loads(archive.read(name))["licence"] == "CC0, made up"


def test_safetensors_is_what_domainbed_loads(vae_dg) -> None:
    algorithm, folder, _ = vae_dg
    again = domainbed.load(folder / "model.safetensors")
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.predict(x), algorithm.predict(x))
    with safe_open(folder / "model.safetensors", "pt") as file:
        about = json.loads(file.metadata()["domainbed"])
    assert about["run"] == "model.safetensors" and about["checkpoint"] == "best"


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_code_of_the_card_runs_as_it_stands(vae_dg, tmp_path: Path, monkeypatch, capsys) -> None:
    algorithm, folder, _ = vae_dg
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    monkeypatch.chdir(folder)
    Image.fromarray(pixels).save("image.png")
    codes = blocks((folder / "MODEL_CARD.md").read_text())
    assert len(codes) == 3
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((16, 16), Image.Resampling.BILINEAR))
    with torch.no_grad():
        truth = algorithm.predict(torch.from_numpy(grey / np.float32(255))[None, None]).softmax(1)[0].tolist()
    for code in codes:
        exec(compile(code, "card", "exec"), {})
        printed = capsys.readouterr().out
        for name, probability in zip(CLASSES, truth, strict=True):
            assert f"{name}: {probability:.3f}" in printed


def test_the_card_says_what_a_receiver_must_know(vae_dg) -> None:
    _, folder, _ = vae_dg
    written = (folder / "MODEL_CARD.md").read_text()
    for text in (
        "not a medical device", "CC0, made up", "trained on: clinic, field", '["gray_ntsc", "resize"]', "2. severe",
        "without the records of its run", "chosen by training-domain validation, total_loss", "latent_dim: 8",
    ):  # fmt: skip
        assert text in written
    assert "q(z\\|x)" in written  # a bar would end the cell


def test_a_model_no_better_than_none_is_said_so() -> None:
    def record(checkpoint: str | None, protocol: str, metrics: dict, intervals: dict | None = None) -> dict:
        place = {"target": "a", "seed": 0, "environment": "a", "role": "target", "part": "whole"}
        return place | {
            "checkpoint": checkpoint, "protocol": protocol, "metrics": metrics, "intervals": intervals or {},
        }  # fmt: skip

    intervals = {"accuracy": [0.45, 0.60], "kappa": [0.1, 0.3], "mse": [0.02, 0.03]}
    records = [
        record("best", "training-domain validation", {"accuracy": 0.52, "kappa": 0.2, "mse": 0.025}, intervals),
        record(None, "majority class", {"accuracy": 0.5, "kappa": 0.0}),
        record(None, "mean training image", {"mse": 0.01}),
    ]
    assert card.not_better(records) == [
        "a: accuracy 0.52 [0.45, 0.6] is not better than 0.5, that of the majority class.",
        "a: MSE 0.025 [0.02, 0.03] is not better than 0.01, that of the mean training image.",
    ]
    source = [one | {"role": "source", "part": "val"} for one in records]
    assert not card.not_better(source)  # a run with a target is about that


@pytest.mark.parametrize("channels", [1, 3])
def test_the_encoder_in_timm(channels: int, tmp_path: Path, monkeypatch, capsys) -> None:
    data = {"preprocess": ["gray_ntsc", "resize"]} if channels == 1 else None
    algorithm, path = saved("ERM", tmp_path, size=32, data=data)
    found = export.analyse(path, tmp_path / "out", part="encoder")
    assert found["files"][0]["difference"]["features"] <= 1e-6
    file = tmp_path / "out" / "encoder.safetensors"
    overlay = timm.create_model(
        "test_resnet", pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), num_classes=0, in_chans=channels
    ).eval()
    plain = timm.create_model("test_resnet", num_classes=0, in_chans=channels).eval()
    plain.load_state_dict(load_file(file), strict=True)
    with safe_open(file, "pt") as opened:
        mean, std = (torch.tensor(json.loads(opened.metadata()[key])) for key in ("mean", "std"))
    x = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        truth = algorithm.encode(x)
        for backbone in (overlay, plain):
            features = backbone((x - mean[:, None, None]) / std[:, None, None])
            torch.testing.assert_close(features, truth, atol=1e-6, rtol=0)
    monkeypatch.chdir(tmp_path / "out")
    Image.new("RGB", (20, 20), "red").save("image.png")
    (code,) = blocks(Path("MODEL_CARD.md").read_text())
    exec(compile(code, "card", "exec"), {})
    assert f"features: (1, {truth.shape[1]})" in capsys.readouterr().out


def test_an_encoder_that_is_none_or_another_runs(tmp_path: Path) -> None:
    _, path = saved("AE", tmp_path)
    with pytest.raises(UserError, match="AE has no timm backbone of its own"):
        export.analyse(path, tmp_path / "out", part="encoder")
    judged, _ = saved("CVAE", tmp_path / "judged")  # has a frozen ERM
    assert any(isinstance(one, TimmEncoder) for one in judged.modules()) and export.encoder_of(judged) is None


def test_a_file_that_disagrees_is_deleted(tmp_path: Path, monkeypatch) -> None:
    _, path = saved("ERM", tmp_path)
    real = export.runner

    def wrong(path: Path, outputs):
        answer = real(path, outputs)
        return lambda x: {name: value + 2e-4 * max(1, value.abs().max()) for name, value in answer(x).items()}

    monkeypatch.setattr(export, "runner", wrong)
    with pytest.raises(UserError, match="model.pt2 does not agree with the model: logits differs by"):
        export.analyse(path, tmp_path / "out", formats=["torch.export"])
    assert not [*(tmp_path / "out").iterdir()]


def test_two_codes_at_one_distance_are_no_disagreement() -> None:
    class Coded:
        def answer(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            codes = torch.zeros(len(x), 20, 20, dtype=torch.long)
            return {"codes": codes, "reconstruction": torch.zeros(len(x), 1)}

    def runtime(wrong: int):
        def answer(x: torch.Tensor) -> dict[str, torch.Tensor]:
            found = Coded().answer(x)
            if len(x) > 1:
                found["codes"][0].view(-1)[:wrong] = 1
                found["reconstruction"][0] = 1.0  # of the image whose code differs
            return found

        return answer

    x = torch.zeros(4, 1)
    assert export.verify(Path("f"), Coded(), runtime(1), x)["reconstruction"] == 0
    with pytest.raises(UserError, match=r"2\.5% of the codes differ"):
        export.verify(Path("f"), Coded(), runtime(40), x)


def test_which_model_a_file_is(tmp_path: Path) -> None:
    _, path = saved("AE", tmp_path / "my_run" / "seed_1" / "te_none")
    with pytest.raises(UserError, match="was exported from 'best'. Give the run's folder for 'last'"):
        export.analyse(path, tmp_path / "out", checkpoint_name="last")
    assert export.analyse(path, tmp_path / "out", checkpoint_name="best")["about"]["run"] == "my_run"


def test_chosen_outputs(tmp_path: Path) -> None:
    algorithm, path = saved("VAE", tmp_path)
    assert export.choose_outputs(algorithm, "VAE", ["reconstruction", "mean"]) == ["mean", "reconstruction"]
    with pytest.raises(UserError, match="VAE gives no logits.*It gives: mean, logvar, reconstruction"):
        export.analyse(path, tmp_path / "out", formats=["onnx"], outputs=["logits"])


def test_checked_on_the_runs_images(photographs: Path, tmp_path: Path) -> None:
    _, path = saved("AE", tmp_path, data_dir=photographs)
    found = export.analyse(path, tmp_path / "out")
    assert found["checked_on"] == "16 images of the run's data set" and not found["notes"]
    found = export.analyse(path, tmp_path / "out", data_dir=tmp_path / "gone")
    assert found["checked_on"] == "16 random images" and "gone" in found["notes"][0]


def test_images_that_fail_to_open_do_not_keep_a_model_from_being_handed_on(photographs, tmp_path, monkeypatch) -> None:
    def fail(self, data_dir, hparams) -> None:
        raise ValueError("bytes that are no text")

    _, path = saved("AE", tmp_path, data_dir=photographs)
    monkeypatch.setattr(DATASETS["Folder"], "__init__", fail)
    found = export.analyse(path, tmp_path / "out")
    assert found["checked_on"] == "16 random images" and "bytes that are no text" in found["notes"][0]


def test_group_normalisation_in_float64() -> None:
    x = torch.rand(2, 6, 5, 7, dtype=torch.float64) * 3 + 100
    weight, bias = torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    for groups in (1, 3, 6):
        truth = torch.nn.functional.group_norm(x, groups, weight, bias)
        torch.testing.assert_close(export._group_norm(x, groups, weight, bias), truth)


def test_normalised_channels_survive_onnx(tmp_path: Path) -> None:
    class Norm(torch.nn.Module):
        outputs = ("y",)

        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.GroupNorm(2, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.norm(x),)

    algorithm, path = saved("ERM", tmp_path)
    about = exported.about_model(path, algorithm, *_meta(path), ["y"])
    x = 20 + 0.01 * torch.rand(
        1, 2, 192, 192, generator=torch.Generator().manual_seed(0)
    )  # a mean far above its spread
    export._write_onnx(tmp_path / "norm.onnx", Norm().eval(), about, x.repeat(2, 1, 1, 1))
    found = exported.runner(tmp_path / "norm.onnx", ["y"])(x)["y"]
    truth = torch.nn.functional.group_norm(x.double(), 2)
    assert (found - truth).abs().max() < 2e-3  # 20 in float32 has a last digit of 2e-6, a 1500th of the deviation


def _meta(path: Path):
    from domainbed.algorithms.finished import read_export

    return read_export(path)


def test_files_that_export_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    (tmp_path / "bad.pt2").write_bytes(b"no archive")
    for name in ("bad.onnx", "bad.pt2"):
        with pytest.raises(UserError, match=f"{name} is broken"):
            exported.read_about(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "foreign.pt2", "w") as archive:
        archive.writestr("foreign/data", "x")
    with pytest.raises(UserError, match="was not written by `python -m domainbed export`"):
        exported.read_about(tmp_path / "foreign.pt2")
    with pytest.raises(UserError, match="there is no file"):
        exported.read_about(tmp_path / "gone.onnx")
    with pytest.raises(UserError, match="is of format 99"):
        exported.parse_about(tmp_path, '{"format": 99}')
