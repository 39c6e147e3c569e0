"""Encoders that are not timm's: shapes, numbers of parameters, outputs layer by layer, and what they refuse."""

import pytest
import torch
from torch.nn import functional as F

from domainbed.algorithms.base import build_encoder, check_encoder
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.unet import UNet
from domainbed.algorithms.vae_dg import VAE_DG
from domainbed.cli.train import main
from domainbed.errors import UserError
from domainbed.hparams import Layer, resolve
from domainbed.networks.encoders import PLAIN, check_model
from domainbed.networks.plain_encoders import IdentityEncoder, PerceptronEncoder, SmallCNN, plain_encoder
from domainbed.settings import RunSettings
from domainbed.testing import check_algorithm


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_cnn_is_four_convolutions_with_group_norm_behind_relu_and_the_mean_over_places() -> None:
    torch.manual_seed(0)
    encoder, x = SmallCNN((2, 28, 28)), drawn(2, 28, 28)
    for parameter in encoder.parameters():  # a norm's weights begin as the identity, which would hide their place
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    weights = dict(encoder.named_parameters())
    expected = x
    for stage, stride in enumerate((1, 2, 1, 1)):
        convolution = (weights[f"layers.{stage}.0.weight"], weights[f"layers.{stage}.0.bias"])
        norm = (weights[f"layers.{stage}.2.weight"], weights[f"layers.{stage}.2.bias"])
        expected = F.group_norm(F.conv2d(expected, *convolution, stride=stride, padding=1).relu(), 8, *norm)
        assert expected.shape == (4, (64, 128, 128, 128)[stage], *[28 if stage == 0 else 14] * 2)
    torch.testing.assert_close(encoder(x), F.adaptive_avg_pool2d(expected, 1).flatten(1))
    assert encoder.num_features == 128


@pytest.mark.parametrize(("channels", "number"), [(1, 370_560), (2, 371_136), (3, 371_712)])
def test_the_cnn_has_as_many_parameters_as_the_published_one(channels: int, number: int) -> None:
    """Of facebookresearch/DomainBed, commit b93c22a."""
    assert num_parameters(SmallCNN((channels, 28, 28))) == number


@pytest.mark.parametrize("side", [1, 7, 28, 33])
def test_the_cnn_takes_any_size(side: int) -> None:
    assert SmallCNN((3, side, side))(drawn(3, side, side)).shape == (4, 128)


@pytest.mark.parametrize("shape", [(12,), (3, 5, 7)])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_perceptron_has_relu_behind_every_layer_but_the_last(shape: tuple[int, ...], depth: int) -> None:
    encoder, x = PerceptronEncoder(shape, 16, depth, 0.0), drawn(*shape)
    linear = [module for module in encoder.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == depth and encoder.num_features == 16
    expected = x.reshape(4, -1)
    for layer in linear[:-1]:
        expected = (expected @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(encoder(x), expected @ linear[-1].weight.T + linear[-1].bias)
    inputs = torch.Size(shape).numel()
    assert num_parameters(encoder) == (inputs + 1) * 16 + (depth - 1) * 17 * 16


def test_the_perceptron_flattens_images_alike_in_any_memory_format() -> None:
    encoder, x = PerceptronEncoder((3, 8, 8), 16, 3, 0.0), drawn(3, 8, 8)
    torch.testing.assert_close(encoder(x.contiguous(memory_format=torch.channels_last)), encoder(x))


def test_dropout_of_the_perceptron_is_on_hidden_layers_in_training_alone() -> None:
    encoder, x = PerceptronEncoder((12,), 2000, 3, 0.25), drawn(12)
    torch.manual_seed(0)
    hidden = encoder.layers[:3](x)  # flattened, linear, dropped
    assert (hidden == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not (encoder(x) == 0).any(), "the features themselves are not dropped"
    assert torch.equal(encoder.eval()(x), encoder(x))


def test_no_encoder_hands_vectors_on() -> None:
    encoder, x = IdentityEncoder((12,)), drawn(12)
    assert encoder(x) is x and encoder.num_features == 12 and not encoder.state_dict()


@pytest.mark.parametrize(
    ("model", "shape", "says"),
    [
        ("none", (3, 28, 28), "model = none hands vectors on as they are, but these are images of 3 x 28 x 28"),
        ("mnist_cnn", (12,), "model = mnist_cnn convolves images, but these are vectors of 12 numbers. Use model=mlp"),
    ],
)
def test_an_encoder_refuses_what_it_is_not_for(model: str, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        plain_encoder(model, shape, 16, 3, 0.0)
    with pytest.raises(UserError, match=says):
        check_encoder(ERM.HParams(model=model), shape)
    with pytest.raises(UserError, match=says):
        build_encoder(ERM.HParams(model=model), shape)


def test_a_timm_backbone_refuses_vectors() -> None:
    hparams = ERM.HParams(model="test_resnet", pretrained="false")
    for make in (build_encoder, check_encoder):
        with pytest.raises(UserError, match="model = test_resnet is a backbone .* these are vectors of 12 numbers"):
            make(hparams, (12,))


def test_no_name_is_also_one_of_timm() -> None:
    for name in PLAIN:
        with pytest.raises(UserError, match="timm has no model named"):
            check_model(name)
    with pytest.raises(UserError, match="did you mean 'mnist_cnn'"):
        check_model("mnist_cn")


@pytest.mark.parametrize("model", ["mlp", "mnist_cnn"])
def test_erm_keeps_the_contract(model: str) -> None:
    check_algorithm(ERM, model=model, mlp_width=32, mlp_dropout=0.2 if model == "mlp" else 0.0)


def test_vae_dg_takes_the_small_cnn() -> None:
    algorithm = VAE_DG((1, 28, 28), 10, 2, {"model": "mnist_cnn", "latent_dim": 8})
    assert algorithm.reconstruct(drawn(1, 28, 28)).shape == (4, 1, 28, 28)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"freeze_bn": True}, "freeze_bn is about a timm encoder, but model = mlp"),
        ({"freeze_stages": 1}, "freeze_stages is about a timm encoder, but model = mlp"),
        ({"encoder_lr": 1e-4}, "encoder_lr is about a timm encoder, but model = mlp"),
        ({"dropout": 0.1}, "dropout is about a timm encoder, but model = mlp"),
        ({"pretrained": "true"}, "pretrained is about a timm encoder, but model = mlp"),
        ({"finetune": True}, "finetune is about a timm encoder, but model = mlp"),
        ({"mlp_depth": 1}, "mlp_depth = 1 is not a whole number of 2 or more"),
        ({"mlp_width": 0}, "mlp_width = 0 is not a whole number of 1 or more"),
        ({"mlp_dropout": 1}, "mlp_dropout = 1 is not a number from 0 to less than 1"),
    ],
)
def test_what_does_not_go_together_is_one_message(values: dict, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        resolve([RunSettings, ERM.HParams], [Layer("command line", {"model": "mlp"} | values)])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("model", PLAIN)
def test_a_unet_refuses_an_encoder_without_features_at_several_sizes(model: str) -> None:
    with pytest.raises(ValueError, match=f"{model} has no features at several sizes"):
        UNet.HParams(model=model)


def test_settings_of_another_encoder_are_idle() -> None:
    keys = {"mlp_width", "mlp_depth", "mlp_dropout"}
    assert not keys & ERM.HParams(model="mlp").idle().keys()
    assert ERM.HParams(model="mnist_cnn").idle()["mlp_width"] == "model = mnist_cnn"
    assert keys <= ERM.HParams().idle().keys() and UNet.HParams().idle()["mlp_depth"] == "model = null"


def test_a_run_says_idle_settings_and_nothing_of_weights(train) -> None:
    words = ("--algorithm", "ERM", "--test_envs", 0, "--subset_size", 10, "--steps", 2, "--dataset", "SyntheticFundus")
    run = ("cnn", *words, "num_images=12", "batch_size=2", "pretrained=auto", "model=mnist_cnn", "mlp_width=8")
    status, out, err = train(*run)
    assert status == 0, err
    assert "mlp_width = 8 has no effect, because model = mnist_cnn" in out
    assert "RANDOM" not in out and "pretrained" not in out.replace("pretrained=auto", "")


def test_a_run_with_an_impossible_encoder_ends_before_images_are_read(train) -> None:
    status, _, err = train("none", "--algorithm", "ERM", "--steps", 2, "--dataset", "SyntheticFundus", "model=none")
    assert status == 2 and err.startswith("error: model = none hands vectors on as they are")
    assert main("train_all", ["x", "--algorithm", "ERM", "model=mlp", "mlp_depth=1"]) == 2
