"""Encoders: the normalisation is applied once, features are as wide as announced, frozen BatchNorm stays frozen."""

import copy

import pytest
import timm
import torch
from torch import nn

from domainbed.errors import UserError
from domainbed.networks import encoders
from domainbed.networks.encoders import ConvEncoder, TimmEncoder, check_model, create_backbone, feature_width

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


def reacts_to_last_row_and_column(encoder, shape):
    """Return whether the features change with the last row, and with the last column."""
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    row, column = x.clone(), x.clone()
    row[..., -1, :] = 1 - row[..., -1, :]
    column[..., -1] = 1 - column[..., -1]
    with torch.no_grad():
        return [not torch.equal(encoder(x), encoder(changed)) for changed in (row, column)]


#: The last pixels fall behind the last patch, or behind the last window of a convolution without padding.
BLIND = [
    ("vit_small_patch14_dinov2", 64, "56 or 70"),
    ("vit_tiny_patch16_224", 28, "16 or 32"),
    ("inception_v3", 224, "203 or 235"),
]


@pytest.mark.parametrize(("model", "side", "sizes"), BLIND)
def test_a_model_that_would_ignore_the_border_of_an_image_is_refused_with_sizes_that_fit(model, side, sizes):
    with pytest.raises(UserError, match=f"ignore the last rows or columns.* Use image_size={sizes}, or another model"):
        TimmEncoder(model, (3, side, side))


def test_one_ignored_border_is_enough_to_be_refused():
    for shape in ((3, 64, 60), (3, 60, 64)):
        with pytest.raises(UserError, match="vit_tiny_patch16_224 and images of .* ignore the last rows or columns"):
            TimmEncoder("vit_tiny_patch16_224", shape)


@pytest.mark.parametrize(
    ("model", "side"),
    [("vit_tiny_patch16_224", 64), ("test_vit", 32), ("test_resnet", 33), ("test_convnext", 100), 
     ("tf_efficientnet_lite0", 47), ("swin_tiny_patch4_window7_224", 40)],
)  # fmt: skip
def test_an_accepted_model_reacts_to_the_last_row_and_column(model, side):
    encoder = TimmEncoder(model, (3, side, side)).eval()
    assert all(reacts_to_last_row_and_column(encoder, (3, side, side)))


def test_the_check_of_a_size_moves_no_random_numbers():
    for model, side in (("test_resnet", 48), ("test_convnext", 52)):  # the second needs a look at the border
        torch.manual_seed(3)
        expected = torch.rand(5)
        torch.manual_seed(3)
        feature_width(model, (3, side, side))
        assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize(
    ("model", "side", "says"),
    [
        ("inception_v3", 64, "Use image_size=75, or another model"),
        ("densenet121", 16, "Use image_size=32, or another model"),
    ],
)
def test_a_model_that_cant_take_a_size_is_one_message_with_sizes_that_fit(model, side, says):
    with pytest.raises(UserError, match=f"^{model} and images of {side} x {side} px: ") as raised:
        feature_width(model, (3, side, side))
    message = str(raised.value)
    assert "can't take them" in message and message.endswith(says) and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tf_efficientnet_b0_ns", "tf_efficientnet_b0.ns_jft_in1k"),
        ("convnext_tiny_in22ft1k", "convnext_tiny.fb_in22k_ft_in1k"),
    ],
)
def test_a_deprecated_name_is_refused_with_the_name_of_today(old, new):
    with pytest.raises(UserError, match=f"timm has renamed {old} to {new}. Use model={new}"):
        check_model(old)
    check_model(new)


def test_every_deprecated_name_is_refused_and_its_new_name_accepted():
    names = timm.models.get_deprecated_models()
    assert len(names) > 100
    for old, new in names.items():
        with pytest.raises(UserError, match="timm has re") as raised:
            check_model(old)
        if new:
            check_model(str(raised.value).rpartition("model=")[2])


def test_an_address_is_no_name_of_a_model():
    with pytest.raises(UserError, match="hf-hub:timm/resnet50.a1_in1k is an address. Use timm's name"):
        check_model("hf-hub:timm/resnet50.a1_in1k")


def test_a_model_without_a_feature_vector_or_without_its_package_is_refused(monkeypatch):
    def lacking(*_, **__):
        raise ImportError("No module named 'exotic'")

    monkeypatch.setattr(encoders, "try_size", encoders.try_size.__wrapped__)
    monkeypatch.setattr(encoders, "create_backbone", lambda *_: nn.Identity())
    with pytest.raises(UserError, match=r"gives \(2, 3, 31, 31\) for two images, not a feature vector each"):
        feature_width("test_resnet", (3, 31, 31))
    monkeypatch.setattr(encoders, "create_backbone", lacking)
    with pytest.raises(UserError, match="needs a package that is not installed .*exotic"):
        feature_width("test_resnet", (3, 31, 31))


#: The smallest model of each of timm's modules.
FAMILIES = """
    beit_base_patch16_224 halonet_h1 test_byobnet cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
    test_convnext cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
    deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvit_b0 efficientvit_m0
    vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m
    ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
    test_mambaout test_coatnet poolformerv2_s12 gmlp_ti16_224 lcnet_035 mobilenetv5_base mobilevit_xxs
    mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small test_nfnet pit_ti_224
    pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d
    test_resnet resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
    starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window16_256 swinv2_cr_tiny_224
    tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny test_vit
    vit_tiny_r_s16_p8_224 test_vit_relpos samvit_base_patch16_224 vitamin_small_224 volo_d1_224
    ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
""".split()  # noqa: SIM905


@pytest.mark.parametrize("model", [name for name in FAMILIES if timm.is_model(name)])
def test_every_family_of_timm_gives_a_feature_vector_or_is_refused(model):
    side = timm.get_pretrained_cfg(model).input_size[-1]
    width = encoders.try_size(model, (3, side, side))
    backbone = encoders.without_values(model, (3, side, side))
    assert width == (getattr(backbone, "head_hidden_size", None) or backbone.num_features)


@pytest.mark.parametrize("model", [name for name in FAMILIES if timm.is_model(name)])
def test_every_family_of_timm_has_stages_and_a_map_or_is_refused_by_name(model):
    side = timm.get_pretrained_cfg(model).input_size[-1]
    for ask in (encoders.stage_places, encoders.map_shape):
        try:
            found = ask(model, (3, side, side))
        except UserError as error:
            assert model in str(error) and "\n" not in str(error)
            continue
        assert found
        if ask is encoders.stage_places:
            names = list(encoders.stages_of(encoders.without_values(model, (3, side, side)), model))
            assert [stage.name for stage in found] == names[: len(found)] and len(found) > 1


def test_every_family_of_timm_is_among_them():
    """Of the version that is installed here, and later ones until they have new families."""
    missing = [module for module in timm.list_modules() if not {*timm.list_models(module=module)} & {*FAMILIES}]
    assert not missing, f"add the smallest model of {missing}"
