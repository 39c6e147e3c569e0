"""Weights from files, from the cache, and from a hub that isn't there. Nothing here reaches a network."""

import os
import socket
import threading
import time

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from domainbed import pretrained
from domainbed.algorithms.base import EncoderHParams, build_encoder
from domainbed.errors import UserError
from domainbed.networks.encoders import create_backbone

MODEL = "test_resnet"  # timm's own, of 0.5 million weights
HUB_ID = "timm/test_resnet.r160_in1k"


@pytest.fixture
def checkpoint():
    """A state dict with its classifier, as publishers give it."""
    torch.manual_seed(7)
    return timm.create_model(MODEL, num_classes=10).state_dict()


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """An empty cache, and an error for whoever looks up a name."""

    def refuse(*_, **__):
        raise socket.gaierror("no network in tests")

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def load(path, model=MODEL, channels=3):
    torch.manual_seed(99)
    backbone = create_backbone(model, (channels, 32, 32))
    pretrained.load_weights(backbone, model, path)
    return backbone


def assert_loaded(backbone, checkpoint):
    own = backbone.state_dict()
    assert len(own) > 20 and not [key for key in own if not torch.equal(own[key], checkpoint[key])]


def test_a_safetensors_file_is_loaded_and_its_head_is_ignored(tmp_path, checkpoint):
    save_file(checkpoint, tmp_path / "weights.safetensors")
    assert any(key.startswith("fc.") for key in checkpoint)
    assert_loaded(load(tmp_path / "weights.safetensors"), checkpoint)


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model", "model_state_dict"])
def test_a_torch_file_is_loaded_from_wherever_its_state_dict_is(tmp_path, checkpoint, wrapped):
    torch.save({wrapped: checkpoint, "epoch": 3} if wrapped else checkpoint, tmp_path / "weights.pth")
    assert_loaded(load(tmp_path / "weights.pth"), checkpoint)


def test_the_prefix_of_data_parallel_is_taken_off(tmp_path, checkpoint):
    torch.save({f"module.{key}": value for key, value in checkpoint.items()}, tmp_path / "weights.pth")
    assert_loaded(load(tmp_path / "weights.pth"), checkpoint)


def test_a_checkpoint_without_a_head_is_loaded(tmp_path):
    headless = timm.create_model(MODEL, num_classes=0).state_dict()
    save_file(headless, tmp_path / "weights.safetensors")
    assert_loaded(load(tmp_path / "weights.safetensors"), headless)


def test_weights_for_colour_are_summed_for_grey_images_as_timm_does(tmp_path, checkpoint):
    save_file(checkpoint, tmp_path / "weights.safetensors")
    grey, colour = (
        load(tmp_path / "weights.safetensors", channels=1).eval(),
        load(tmp_path / "weights.safetensors").eval(),
    )
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_every_fault_of_a_checkpoint_is_named(tmp_path, checkpoint):
    del checkpoint["conv1.0.weight"]
    checkpoint["surplus.weight"] = torch.zeros(3)
    checkpoint["bn1.weight"] = torch.zeros(5)
    torch.save(checkpoint, tmp_path / "weights.pth")
    with pytest.raises(UserError) as raised:
        load(tmp_path / "weights.pth")
    message = str(raised.value)
    assert "1 missing (conv1.0.weight)" in message
    assert "1 unexpected (surplus.weight)" in message
    assert "1 of another shape (bn1.weight (5,) for (" in message
    assert str(tmp_path / "weights.pth") in message and "model=<timm name>" in message


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path, checkpoint):
    checkpoint["bn1.weight"] = torch.zeros(5)
    torch.save(checkpoint, tmp_path / "weights.pth")
    backbone = create_backbone(MODEL, (3, 32, 32))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError):
        pretrained.load_weights(backbone, MODEL, tmp_path / "weights.pth")
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_the_weights_of_another_model_are_refused_in_one_short_sentence(tmp_path):
    save_file(timm.create_model("test_efficientnet", num_classes=10).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="does not fit test_resnet.*missing.*, ….*unexpected") as raised:
        load(tmp_path / "weights.safetensors")
    assert len(str(raised.value)) < 700 + len(str(tmp_path))


class Attack:
    """What a pickle can do while it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_holds_code_is_refused_and_not_executed(tmp_path, checkpoint):
    torch.save({"state_dict": checkpoint, "extra": Attack(str(tmp_path / "executed"))}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="can't be read as weights"):
        load(tmp_path / "weights.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_a_truncated_file_is_refused(tmp_path, checkpoint, suffix, kept):
    path = tmp_path / f"weights{suffix}"
    torch.save(checkpoint, path) if suffix == ".pth" else save_file(checkpoint, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match="can't be read as weights"):
        load(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(UserError, match="there is no file") as raised:
            load(path)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], {"state_dict": {"lr": 0.1}}, torch.zeros(3)])
def test_a_file_of_other_things_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no state dict of tensors"):
        load(tmp_path / "weights.pth")


def test_a_file_with_numbers_for_keys_is_refused(tmp_path):
    torch.save({0: torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(UserError):
        load(tmp_path / "weights.pth")


def test_an_encoder_is_built_from_the_file_that_is_named(tmp_path, checkpoint):
    save_file(checkpoint, tmp_path / "weights.safetensors")
    hparams = EncoderHParams(model=MODEL, pretrained=str(tmp_path / "weights.safetensors"), freeze_bn=True)
    assert_loaded(build_encoder(hparams, (3, 32, 32)).backbone, checkpoint)
    weights = pretrained.locate(MODEL, hparams.pretrained)
    assert weights.source == hparams.pretrained and not weights.warning


def test_an_encoder_that_had_to_be_random_warns():
    with pytest.warns(UserWarning, match="RANDOM"):
        build_encoder(EncoderHParams(model=MODEL, pretrained="auto"), (3, 32, 32))


def test_false_is_random_without_a_warning():
    weights = pretrained.locate(MODEL, "false")
    assert weights.source == "false" and not weights.warning


def test_true_without_a_network_names_the_file_to_fetch():
    with pytest.raises(UserError) as raised:
        pretrained.locate(MODEL, "true")
    message = str(raised.value)
    assert f"there are no weights of {MODEL}" in message
    assert f"Fetch model.safetensors of https://huggingface.co/{HUB_ID} and pass it as pretrained=<file>" in message


def test_auto_without_a_network_is_random_with_a_warning_that_names_the_file_to_fetch():
    weights = pretrained.locate(MODEL, "auto")
    assert weights.source == "false" and weights.warning
    assert "RANDOM" in weights.message and f"https://huggingface.co/{HUB_ID}" in weights.message
    assert "does not answer" in weights.message and "pretrained=false" in weights.message


def test_auto_takes_the_tag_that_is_named():
    assert "timm/resnet50.tv_in1k" in pretrained.locate("resnet50.tv_in1k", "auto").message


def test_frozen_statistics_of_random_weights_are_refused_where_auto_finds_none():
    with pytest.raises(UserError, match="RANDOM.*freeze_bn"):
        build_encoder(EncoderHParams(model=MODEL, pretrained="auto", freeze_bn=True), (3, 32, 32))


@pytest.mark.parametrize("hanging", ["getaddrinfo", "create_connection"])
def test_a_hub_that_hangs_costs_seconds_not_minutes(monkeypatch, hanging):
    released = threading.Event()

    def hang(*_, **__):
        released.wait(20)
        raise OSError("late")

    monkeypatch.setattr(socket, hanging, hang)
    monkeypatch.setattr(pretrained, "HUB_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(pretrained.answers, "__defaults__", (0.2,))
    start = time.monotonic()
    try:
        assert pretrained.locate(MODEL, "auto").warning
        assert time.monotonic() - start < 2
    finally:
        released.set()


def test_a_hub_has_less_than_5_seconds_to_answer():
    assert pretrained.HUB_TIMEOUT_SECONDS < 5
    assert pretrained.answers.__defaults__ == (pretrained.HUB_TIMEOUT_SECONDS,)


def test_a_port_that_answers_is_seen_and_a_closed_one_is_not(monkeypatch):
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert pretrained.answers(f"http://127.0.0.1:{port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        assert pretrained.answers("http://hub.invalid"), "asks the proxy, not the hub"
        monkeypatch.delenv("http_proxy")
    assert not pretrained.answers(f"http://127.0.0.1:{port}")


def test_offline_mode_asks_nobody(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(pretrained, "answers", lambda *_: pytest.fail("asked the hub"))
    weights = pretrained.locate(MODEL, "auto")
    assert weights.warning and "HF_HUB_OFFLINE is set" in weights.message
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        pretrained.locate(MODEL, "true")


@pytest.mark.parametrize("wanted", ["auto", "true"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_the_cache_are_taken_without_asking_anybody(monkeypatch, tmp_path, checkpoint, wanted, file):
    snapshot = tmp_path / "hub" / f"models--{HUB_ID.replace('/', '--')}" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    save_file(checkpoint, snapshot / file) if file.endswith("safetensors") else torch.save(checkpoint, snapshot / file)
    monkeypatch.setattr(pretrained, "answers", lambda *_: pytest.fail("asked the hub"))
    weights = pretrained.locate(MODEL, wanted)
    assert weights.source == str(snapshot / file) and not weights.warning
    assert_loaded(load(snapshot / file), checkpoint)


def test_a_download_that_fails_is_a_warning_with_its_reason(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("429 too many requests\nand a page of HTML")

    monkeypatch.setattr(pretrained, "answers", lambda *_: True)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    weights = pretrained.locate(MODEL, "auto")
    assert weights.warning and "429 too many requests" in weights.message and "HTML" not in weights.message


def test_weights_that_the_hub_gives_are_taken(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(pretrained, "answers", lambda *_: True)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *what, **_: asked.append(what) or str(tmp_path / "model.safetensors")
    )
    weights = pretrained.locate(MODEL, "true")
    assert asked == [(HUB_ID, "model.safetensors")]
    assert weights.source == str(tmp_path / "model.safetensors") and not weights.warning


def test_a_hub_that_accepts_and_stays_silent_costs_seconds(monkeypatch):
    """A server that never answers: listening, on loopback."""

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained, "answers", lambda *_: True)  # it does accept
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda repo, name: f"{address}/{repo}/{name}")
        start = time.monotonic()
        weights = pretrained.locate(MODEL, "auto")
        assert time.monotonic() - start < 8
    assert weights.warning and "does not offer them" in weights.message
