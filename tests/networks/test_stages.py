"""Layers inserted behind stages, and maps before the pooling: shapes, no change where none is meant, old keys."""

import copy
import io

import pytest
import timm
import torch
from torch import nn

from domainbed.algorithms.erm import ERM
from domainbed.errors import UserError
from domainbed.networks.encoders import TimmEncoder, map_shape, stage_places
from domainbed.networks.plain_encoders import IdentityEncoder, PerceptronEncoder, SmallCNN
from domainbed.networks.stages import StagedEncoder
from domainbed.testing import build, check_parts_make_the_same_step, check_resume_is_exact, minibatches

#: By model: side of the images, names of the stages, shapes of the first and the last, and of the map.
MODELS = {
    "resnet18": (64, ["stem", "layer1", "layer2", "layer3", "layer4"], (64, 16, 16), (512, 2, 2), (512, 2, 2)),
    "tf_efficientnet_lite0": (
        64, ["stem", *(f"blocks.{index}" for index in range(7))], (32, 32, 32), (320, 2, 2), (1280, 2, 2)
    ),
    "convnext_atto": (64, ["stem", *(f"stages.{index}" for index in range(4))], (40, 16, 16), (320, 2, 2), (320, 2, 2)),
    "vit_tiny_patch16_224": (
        64, ["stem", *(f"blocks.{index}" for index in range(12))], (17, 192), (17, 192), (17, 192)
    ),
    "mnist_cnn": (28, ["conv1", "conv2", "conv3", "conv4"], (64, 28, 28), (128, 14, 14), (128, 14, 14)),
}  # fmt: skip


def made(model: str, **options: float) -> StagedEncoder:
    torch.manual_seed(0)
    shape = (3, MODELS[model][0], MODELS[model][0])
    encoder = SmallCNN(shape) if model == "mnist_cnn" else TimmEncoder(model, shape, **options)
    for parameter in encoder.parameters():  # some blocks begin as the identity, and layers behind them would do nothing
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return encoder.eval()


def images(model: str, number: int = 2) -> torch.Tensor:
    side = MODELS[model][0]
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(1))


class Spy(nn.Module):
    """Multiplies by a factor and remembers what it was given."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.given = factor, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given.append(tuple(x.shape))
        return x * self.factor


class Square(Spy):
    """Squares, which no normalisation undoes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).square()


class Noise(nn.Module):
    """Moves each channel, in training alone, as MixStyle and its like do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(len(x), x.shape[1], *[1] * (x.ndim - 2)) if self.training else x


@pytest.mark.parametrize("model", MODELS)
def test_the_pooled_map_is_what_the_encoder_gives(model: str) -> None:
    encoder, x = made(model), images(model)
    with torch.no_grad():
        features = encoder.features_map(x)
        assert features.shape[1:] == encoder.map_shape == MODELS[model][4]
        torch.testing.assert_close(encoder.pool(features), encoder(x), rtol=0, atol=0)


def test_the_map_of_a_convolutional_network_is_pooled_by_its_mean() -> None:
    for model in ("resnet18", "tf_efficientnet_lite0", "mnist_cnn"):
        encoder, x = made(model), images(model)
        torch.testing.assert_close(encoder.features_map(x).mean((2, 3)), encoder(x))
    vit, x = made("vit_tiny_patch16_224"), images("vit_tiny_patch16_224")
    torch.testing.assert_close(vit.features_map(x)[:, 0], vit(x))  # its class token


def test_pooling_has_the_dropout_of_the_encoder() -> None:
    encoder, x = made("resnet18", dropout=0.5), images("resnet18")
    features = encoder.features_map(x)
    encoder.train()
    torch.manual_seed(0)
    assert (encoder.pool(features) == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("model", MODELS)
def test_an_inserted_layer_is_called_once_with_the_shape_of_its_stage(model: str) -> None:
    _, names, first, last, _ = MODELS[model]
    stages = made(model).stages
    assert [stage.name for stage in stages] == names
    assert (stages[0].shape, stages[-1].shape) == (first, last)
    for number, stage in enumerate(stages):
        encoder, x = made(model), images(model)
        spy = Square()
        with torch.no_grad():
            before = encoder(x)
            encoder.insert_after(number if number % 2 else stage.name, spy)
            assert not torch.allclose(encoder(x), before), f"{stage.name}: the layer changed nothing"
        assert spy.given == [(2, *stage.shape)]


@pytest.mark.parametrize("model", MODELS)
def test_an_inserted_identity_changes_nothing_bit_for_bit(model: str) -> None:
    encoder, x = made(model), images(model)
    with torch.no_grad():
        before = encoder(x)
        for number in range(len(encoder.stages)):
            encoder.insert_after(number, nn.Identity())
        assert torch.equal(encoder(x), before)


def test_a_layer_behind_a_stage_is_given_what_the_next_stage_would_get() -> None:
    encoder, x = made("resnet18"), images("resnet18")
    backbone = encoder.backbone
    with torch.no_grad():
        stem = backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1((x - encoder.mean) / encoder.std))))
        expected = backbone.layer2(2 * backbone.layer1(3 * stem))
        expected = backbone.forward_head(backbone.layer4(backbone.layer3(expected)))
        encoder.insert_after("stem", Spy(3))
        encoder.insert_after("layer1", Spy(2))
        torch.testing.assert_close(encoder(x), expected)
        torch.testing.assert_close(encoder.pool(encoder.features_map(x)), expected)


def test_layers_behind_one_stage_are_called_in_order() -> None:
    encoder, x = made("mnist_cnn"), images("mnist_cnn")
    calls: list[str] = []
    for name in ("first", "second"):
        layer = nn.Identity()
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
        encoder.insert_after(1, layer)
    encoder(x)
    assert calls == ["first", "second"]


@pytest.mark.parametrize("model", MODELS)
def test_keys_are_those_of_old_and_a_layer_adds_its_own(model: str) -> None:
    plain, changed = made(model), made(model)
    if isinstance(plain, TimmEncoder):
        backbone = timm.create_model(model, num_classes=0, **({"img_size": 64} if "vit" in model else {}))
        assert list(plain.state_dict()) == [f"backbone.{key}" for key in backbone.state_dict()]
    keys = list(plain.state_dict())
    changed.insert_after(1, nn.Identity())
    assert list(changed.state_dict()) == keys, "a layer without weights has no keys"
    changed.insert_after(1, nn.Linear(4, 4))
    added = [key for key in changed.state_dict() if key not in keys]
    assert added == [f"inserted.1.{key}" for key in nn.Linear(4, 4).state_dict()]
    saved = io.BytesIO()
    torch.save(plain.state_dict(), saved)
    saved.seek(0)
    missing, unexpected = changed.load_state_dict(torch.load(saved), strict=False)
    assert missing == added and not unexpected


def test_a_copy_has_an_inserted_layer_of_its_own() -> None:
    encoder, x = made("resnet18"), images("resnet18")
    encoder.insert_after("stem", Spy(2))
    encoder.insert_after("layer1", Spy(2))
    copied = copy.deepcopy(encoder)
    with torch.no_grad():
        assert torch.equal(copied(x), encoder(x))
        for layer in copied.inserted:
            layer.factor = 5
        assert not torch.allclose(copied(x), encoder(x))
    assert [len(layer.given) for layer in encoder.inserted] == [2, 2]


def test_an_inserted_layer_is_trained_and_knows_whether_it_is() -> None:
    algorithm = build(ERM)
    layer = nn.Sequential(nn.Conv2d(32, 32, 1), Noise())
    algorithm.encoder.insert_after("layer1", layer)
    before = layer[0].weight.clone()
    algorithm.update(minibatches())
    assert not torch.equal(layer[0].weight, before)
    x, _ = minibatches()[0]
    algorithm.eval()
    with torch.no_grad():
        assert torch.equal(algorithm.predict(x), algorithm.predict(x))
        algorithm.train()
        assert not torch.equal(algorithm.predict(x), algorithm.predict(x))


class Styled(ERM):
    """ERM with a layer behind two stages."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        for stage in (0, 1):
            channels = self.encoder.stages[stage].shape[0]
            self.encoder.insert_after(stage, nn.Conv2d(channels, channels, 1))


def test_an_algorithm_with_inserted_layers_resumes_exactly_and_takes_the_same_step_in_parts() -> None:
    check_resume_is_exact(Styled, model="test_resnet")
    check_parts_make_the_same_step(Styled, model="test_resnet")
    check_resume_is_exact(Styled, model="test_resnet", encoder_lr=1e-4, layer_decay=0.5)


# --- what can't be done ---


@pytest.mark.parametrize(
    ("encoder", "name"), [(PerceptronEncoder((12,), 16, 3, 0.0), "mlp"), (IdentityEncoder((12,)), "model = none")]
)
def test_an_encoder_without_stages_refuses(encoder: StagedEncoder, name: str) -> None:
    says = f"no layer can be inserted between the stages of {name}: it has none. Choose another model, such as resnet50"
    with pytest.raises(UserError, match=says):
        encoder.insert_after(0, nn.Identity())
    x = torch.zeros(2, 12)
    for ask in (lambda: encoder.map_shape, lambda: encoder.features_map(x), lambda: encoder.pool(x)):
        with pytest.raises(UserError, match=f"{name} has no map of features: it does not pool"):
            ask()


@pytest.mark.parametrize("stage", [-1, 5, "layer5", "conv1"])
def test_a_stage_that_is_not_there_is_one_message_with_those_that_are(stage: int | str) -> None:
    encoder = made("resnet18")
    says = f"resnet18 has no stage {stage!r} to insert a layer behind. Its stages are 0 stem, 1 layer1, .*4 layer4"
    with pytest.raises(UserError, match=says):
        encoder.insert_after(stage, nn.Identity())
    assert encoder.inserted is None


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("swin_tiny_patch4_window7_224", r"a stage gives \(56, 56, 96\), with the channels last"),
        ("hrnet_w18_small", "a stage gives a list, not one tensor"),
        ("twins_svt_small", "they are not computed one after the other"),
        ("poolformerv2_s12", "timm does not tell its stages apart"),
        ("rdnet_tiny", "timm does not tell its stages apart"),
    ],
)
def test_a_model_whose_stages_can_not_be_told_apart_is_refused(model: str, why: str) -> None:
    side = timm.get_pretrained_cfg(model).input_size[-1]
    with pytest.raises(UserError, match=f"between the stages of {model}: {why}. Choose another model"):
        stage_places(model, (3, side, side))


def test_a_model_without_a_map_of_features_is_refused() -> None:
    with pytest.raises(UserError, match=r"swin_tiny_patch4_window7_224 has no map of features: .*channels last"):
        map_shape("swin_tiny_patch4_window7_224", (3, 224, 224))
    with pytest.raises(UserError, match="crossvit_tiny_240 has no map of features: a stage gives a list, not one"):
        map_shape("crossvit_tiny_240", (3, 240, 240))
