"""Encoders: the normalisation is applied once, features are as wide as announced, frozen BatchNorm stays frozen."""

import copy

import pytest
import timm
import torch
from torch import nn

from domainbed.errors import UserError
from domainbed.networks.encoders import ConvEncoder, TimmEncoder, create_backbone

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def images(channels=3, side=32):
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_vit3"])
def test_an_encoder_is_timm_on_an_image_normalised_once(model):
    side = timm.get_pretrained_cfg(model).input_size[-1]
    encoder = TimmEncoder(model, (3, side, side)).eval()
    reference = timm.create_model(model, num_classes=0).eval()
    reference.load_state_dict(encoder.backbone.state_dict())
    config = reference.pretrained_cfg
    x = images(side=side)
    mean, std = (torch.tensor(config[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), reference((x - mean) / std))
        assert not torch.allclose(encoder(x), reference(x))


def test_statistics_are_those_of_the_weights_not_always_imagenets():
    assert TimmEncoder("test_efficientnet", (3, 32, 32)).mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert TimmEncoder("test_vit", (3, 32, 32)).mean.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_statistics_are_no_part_of_the_weights():
    assert not {"mean", "std"} & TimmEncoder("test_resnet", (3, 32, 32)).state_dict().keys()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels_take_the_mean_of_the_statistics(channels):
    encoder = TimmEncoder("test_efficientnet", (channels, 32, 32)).eval()
    assert encoder.mean.shape == encoder.std.shape == (1, channels, 1, 1)
    torch.testing.assert_close(encoder.mean.flatten(), torch.full((channels,), (0.485 + 0.456 + 0.406) / 3))
    assert encoder(images(channels)).shape == (2, encoder.num_features)


@pytest.mark.parametrize(
    "model",
    [
        "test_resnet",
        "test_efficientnet",
        "test_convnext",
        "resnet10t",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_035",
        "lcnet_035",
        "test_mambaout",
    ],
)
def test_features_are_as_wide_as_announced(model):
    encoder = TimmEncoder(model, (3, 32, 32)).eval()
    with torch.no_grad():
        assert encoder(images()).shape == (2, encoder.num_features)


def test_unknown_weights_of_a_known_model_are_one_message_with_those_it_has():
    with pytest.raises(UserError, match="no weights 'nonsense' of resnet50.*a1_in1k"):
        create_backbone("resnet50.nonsense", (3, 32, 32))


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("resnet5O", "'resnet50'"),
        ("resnest_50", "did you mean"),
        ("xyzzy", "timm.list_models()"),
    ],
)
def test_an_unknown_model_is_one_message_with_the_nearest_names(model, hint):
    with pytest.raises(UserError, match="timm has no model named") as raised:
        create_backbone(model, (3, 32, 32))
    message = str(raised.value)
    assert repr(model) in message and hint in message and "\n" not in message
    assert len(message) < 300, "timm knows more than a thousand names"


def train_once(encoder):
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    encoder(5 * images()).square().sum().backward()
    optimizer.step()


def state_of_batch_norm(encoder):
    return {
        f"{name}.{key}": value.clone()
        for name, module in encoder.backbone.named_modules()
        if isinstance(module, BATCH_NORM)
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet"])
def test_a_frozen_batch_norm_keeps_statistics_and_weights_in_training(model):
    encoder = TimmEncoder(model, (3, 32, 32))
    encoder.freeze_batch_norm()
    before = state_of_batch_norm(encoder)
    others = {name: p.clone() for name, p in encoder.named_parameters() if p.requires_grad}
    for _ in range(2):
        encoder.train()  # an evaluation ends with this
        train_once(encoder)
        encoder.eval()
    after = state_of_batch_norm(encoder)
    assert len(before) > 10
    assert not [key for key in before if not torch.equal(before[key], after[key])]
    assert others and all(not torch.equal(others[n], p) for n, p in encoder.named_parameters() if p.requires_grad)


def test_a_frozen_batch_norm_normalises_by_its_statistics_in_training_too():
    encoder = TimmEncoder("test_resnet", (3, 32, 32))
    encoder.freeze_batch_norm()
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.train()(x), torch.cat([encoder(one[None]) for one in x]), rtol=1e-4, atol=1e-5
        )


def test_a_copy_of_a_frozen_batch_norm_is_frozen_too():
    encoder = TimmEncoder("test_resnet", (3, 32, 32))
    encoder.freeze_batch_norm()
    copied = copy.deepcopy(encoder).train()
    assert copied.backbone.training
    assert not [m for m in copied.modules() if isinstance(m, BATCH_NORM) and m.training]
    before = state_of_batch_norm(copied)
    train_once(copied)
    assert all(torch.equal(before[key], value) for key, value in state_of_batch_norm(copied).items())


def test_a_batch_norm_that_is_not_frozen_does_move():
    encoder = TimmEncoder("test_resnet", (3, 32, 32)).train()
    before = state_of_batch_norm(encoder)
    train_once(encoder)
    after = state_of_batch_norm(encoder)
    still = [key for key in before if "running" in key and torch.equal(before[key], after[key])]
    assert not still, still
    assert any(not torch.equal(before[key], after[key]) for key in before if key.endswith(".weight"))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 33, 47), (3, 7, 9), (3, 65, 48)])
def test_the_plain_encoder_takes_every_size_and_announces_its_width(shape):
    encoder = ConvEncoder(shape)
    features = encoder(torch.rand(2, *shape))
    assert features.shape == (2, encoder.num_features)
    with torch.no_grad():
        alone = encoder(torch.zeros(1, *shape))
        torch.testing.assert_close(encoder(torch.cat([torch.zeros(1, *shape), torch.rand(1, *shape)]))[:1], alone)


def test_the_plain_encoder_ends_on_the_grid_on_which_the_decoder_begins():
    for side in (31, 64, 65):
        encoder = ConvEncoder((3, side, side))
        grid = encoder.layers[:-1](torch.rand(1, 3, side, side))
        assert grid.shape[-1] <= 8 and grid.flatten(1).shape[1] == encoder.num_features
