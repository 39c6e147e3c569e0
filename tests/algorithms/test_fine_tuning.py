"""Fine-tuning a timm encoder: rates by layer, frozen stages, the head first, dropout, stochastic depth, the recipe."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import nn

from domainbed.algorithms import fine_tuning
from domainbed.algorithms.base import Algorithm, EncoderHParams, LabelHParams, build_encoder, check_encoder
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.unet import UNet
from domainbed.algorithms.vae_dg import VAE_DG
from domainbed.engine import Engine
from domainbed.errors import UserError
from domainbed.hparams import Layer, resolve
from domainbed.networks.encoders import Dropout, TimmEncoder, create_backbone, stages_of
from domainbed.objectives import rows, schedules
from domainbed.settings import RunSettings
from domainbed.testing import (
    build,
    check_evaluation_is_deterministic,
    check_parts_make_the_same_step,
    check_resume_is_exact,
    check_runs_on_a_gpu,
    check_save_and_load,
    minibatches,
)

SMALL: dict[type[Algorithm], dict[str, Any]] = {ERM: {}, VAE_DG: {"latent_dim": 8}, UNet: {"width": 4}}
BY_LAYER = {"lr": 1e-2, "encoder_lr": 1e-3, "layer_decay": 0.5}


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """Options of a tiny backbone whose weights are a file."""
    torch.manual_seed(3)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    return {"model": "test_resnet", "pretrained": str(tmp_path / "weights.safetensors")}


def settings_of(algorithm: Algorithm) -> dict[str, tuple[float, float]]:
    """Return (lr, weight_decay) of every parameter, by name."""
    names = {id(parameter): name for name, parameter in algorithm.named_parameters()}
    groups = [group for optimizer in algorithm.optimizers().values() for group in optimizer.param_groups]
    found = [(names[id(one)], (group["lr"], group["weight_decay"])) for group in groups for one in group["params"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def train(algorithm: Algorithm, engine: Engine, start: int, end: int) -> None:
    for step in range(start, end):
        torch.manual_seed(1000 + step)
        algorithm.update(minibatches(seed=step, algorithm=algorithm))


def changed(before: dict[str, torch.Tensor], algorithm: nn.Module) -> set[str]:
    return {key for key, value in algorithm.state_dict().items() if not torch.equal(value, before[key])}


# --- rates by layer ---

#: What comes after a dot in the name of a layer, and how many groups lie between it and the encoder's last.
TABLES = {
    "resnet18": {
        "conv1.": 8, "bn1.": 8, "layer1.0.": 7, "layer1.1.": 6, "layer2.0.": 5, "layer2.1.": 4, "layer3.0.": 3,
        "layer3.1.": 2, "layer4.0.": 1, "layer4.1.": 0,
    },
    "tf_efficientnet_lite0": {
        "conv_stem.": 16, "bn1.": 16, "blocks.0.0.": 15, "blocks.1.0.": 14, "blocks.1.1.": 13, "blocks.2.0.": 12,
        "blocks.2.1.": 11, "blocks.3.0.": 10, "blocks.3.1.": 9, "blocks.3.2.": 8, "blocks.4.0.": 7, "blocks.4.1.": 6,
        "blocks.4.2.": 5, "blocks.5.0.": 4, "blocks.5.1.": 3, "blocks.5.2.": 2, "blocks.5.3.": 1, "blocks.6.0.": 0,
        "conv_head.": 0, "bn2.": 0,
    },
    "test_vit": {
        "cls_token": 6, "pos_embed": 6, "patch_embed.": 6, "blocks.0.": 5, "blocks.1.": 4, "blocks.2.": 3,
        "blocks.3.": 2, "blocks.4.": 1, "blocks.5.": 0, "norm.": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("model", TABLES)
def test_each_layer_has_the_rate_of_a_table_made_by_hand_and_one_dimensional_tensors_no_weight_decay(
    model: str,
) -> None:
    side = 160 if model == "test_vit" else 64
    algorithm = build(ERM, (3, side, side), model=model, weight_decay=0.1, optimizer="adamw", **BY_LAYER)
    found = settings_of(algorithm)
    assert found.keys() == dict(algorithm.named_parameters()).keys()
    for name, parameter in algorithm.named_parameters():
        inside = name.removeprefix("encoder.backbone.")
        between = [number for prefix, number in TABLES[model].items() if inside != name and inside.startswith(prefix)]
        expected = 1e-3 * 0.5 ** between[0] if between else 1e-2
        assert bool(between) == (inside != name), name
        decayed = parameter.ndim > 1 and inside not in ("cls_token", "pos_embed")
        assert found[name] == pytest.approx((expected, 0.1 if decayed else 0.0)), name


@pytest.mark.parametrize("cls", SMALL)
@pytest.mark.parametrize("hparams", [{"encoder_lr": 1e-5}, {"layer_decay": 0.5}, {"head_first": 2}])
def test_every_algorithm_with_a_timm_encoder_has_groups_of_all_its_parameters(
    cls: type[Algorithm], hparams: dict[str, Any]
) -> None:
    algorithm = build(cls, lr=1e-3, **hparams, **SMALL[cls])
    found = settings_of(algorithm)
    assert found.keys() == dict(algorithm.named_parameters()).keys()
    encoder = {name: rate for name, (rate, _) in found.items() if ".backbone." in name}
    others = {rate for name, (rate, _) in found.items() if ".backbone." not in name}
    assert others == {1e-3} and max(encoder.values()) == hparams.get("encoder_lr", 1e-3)
    assert (len(set(encoder.values())) > 1) == ("layer_decay" in hparams)
    fine_tuning.check(algorithm, algorithm.optimizers())


@pytest.mark.parametrize("cls", SMALL)
def test_without_these_settings_there_is_one_group_as_ever(cls: type[Algorithm]) -> None:
    algorithm = build(cls, weight_decay=0.1, dropout=0.5, **SMALL[cls])
    (group,) = algorithm.optimizers()["main"].param_groups
    assert [id(one) for one in group["params"]] == [id(one) for one in algorithm.parameters()]
    assert (group["lr"], group["weight_decay"]) == (algorithm.hparams.lr, 0.1) and fine_tuning.START not in group


def test_adamw_decays_matrices_alone() -> None:
    algorithm = build(ERM, optimizer="adamw", weight_decay=0.5, encoder_lr=0.1, lr=0.1)
    before = {name: value.clone() for name, value in algorithm.named_parameters()}
    for parameter in algorithm.parameters():
        parameter.grad = torch.zeros_like(parameter)
    algorithm.optimizers()["main"].step()
    for name, value in algorithm.named_parameters():
        factor = 1 - 0.1 * 0.5 if value.ndim > 1 else 1.0
        assert torch.allclose(value, factor * before[name], rtol=1e-6, atol=0), name


# --- frozen stages ---


@pytest.mark.parametrize("cls", SMALL)
def test_frozen_stages_keep_weights_and_statistics_bit_for_bit_while_the_rest_moves(
    cls: type[Algorithm], weights: dict[str, str]
) -> None:
    algorithm = build(cls, freeze_stages=2, weight_decay=0.1, optimizer="adamw", lr=1e-2, **weights, **SMALL[cls])
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    algorithm.train()
    before = copy.deepcopy(algorithm.state_dict())
    train(algorithm, engine, 0, 3)
    moved = changed(before, algorithm)
    of_backbone = {name: name.partition(".backbone.")[2] for name in before}
    frozen = {name for name, inside in of_backbone.items() if inside.startswith(("conv1.", "bn1.", "layer1."))}
    assert any("running_mean" in name for name in frozen) and not moved & frozen
    still = {name for name in before.keys() - moved - frozen if ".backbone." in name}
    assert not still, "the later stages learn, statistics and counters included"


def test_all_stages_may_be_frozen_and_the_head_learns(weights: dict[str, str]) -> None:
    algorithm = build(ERM, freeze_stages=5, encoder_lr=1e-3, **weights)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    before = copy.deepcopy(algorithm.state_dict())
    train(algorithm, engine, 0, 1)
    assert changed(before, algorithm) == {"head.weight", "head.bias", "step"}


def test_stages_are_those_of_the_network() -> None:
    lite = ["stem", *(f"blocks.{index}" for index in range(7))]
    for model, names in {
        "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4"],
        "tf_efficientnet_lite0": lite,
        "test_vit": ["stem", *(f"blocks.{index}" for index in range(6))],
    }.items():
        assert list(stages_of(create_backbone(model, (3, 160, 160)), model)) == names


# --- the head first ---


def test_a_schedule_that_starts_later_is_the_schedule_of_the_steps_that_remain() -> None:
    for name in ("constant", "cosine", "step"):
        options: dict[str, Any] = {"warmup": 4, "step_size": 5, "gamma": 0.3}
        late = [schedules.learning_rate(name, step, 30, start=10, **options) for step in range(30)]
        assert late[:10] == [0.0] * 10
        assert late[10:] == [schedules.learning_rate(name, step, 20, **options) for step in range(20)]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adadelta"])
def test_the_encoder_waits_for_the_head(optimizer: str) -> None:
    algorithm = build(ERM, head_first=2, optimizer=optimizer, weight_decay=0.1, lr=0.1)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm, 6)
    start = {name: value.clone() for name, value in algorithm.named_parameters()}
    train(algorithm, engine, 0, 2)
    moved = {name for name, value in algorithm.named_parameters() if not torch.equal(value, start[name])}
    assert moved == {"head.weight", "head.bias"}
    train(algorithm, engine, 2, 5)  # not one step: zeros at the end of each block hide what is before them
    assert not [name for name, value in algorithm.named_parameters() if torch.equal(value, start[name])]


def test_the_warm_up_of_the_encoder_is_counted_from_where_it_begins() -> None:
    algorithm = build(ERM, head_first=3, lr_schedule="cosine", lr_warmup=2, lr=1.0, encoder_lr=0.5, layer_decay=0.5)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm, 9)
    for step in range(9):
        train(algorithm, engine, step, step + 1)
        groups = engine.stepper.optimizers["main"].param_groups
        rates = {group["lr"] for group in groups if fine_tuning.START in group}
        (head,) = {group["lr"] for group in groups if fine_tuning.START not in group}
        assert head == schedules.learning_rate("cosine", step, 9, warmup=2)
        factor = schedules.learning_rate("cosine", step - 3, 6, warmup=2) if step >= 3 else 0.0
        assert rates == {0.5 * 0.5**between * factor for between in range(5)}


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_goes_on_bit_for_bit_across_the_step_at_which_the_encoder_begins(stop: int) -> None:
    hparams = {
        **BY_LAYER, "head_first": 2, "lr_schedule": "cosine", "lr_warmup": 2, "optimizer": "adamw", "dropout": 0.3,
        "drop_path": 0.3, "weight_ema": 0.5, "weight_decay": 0.1,
    }  # fmt: skip
    straight, first = build(ERM, **hparams), build(ERM, **hparams)
    engines = [Engine("cpu", "float32") for _ in range(3)]
    engines[0].prepare(straight, 6)
    train(straight, engines[0], 0, 6)
    engines[1].prepare(first, 6)
    train(first, engines[1], 0, stop)
    second = build(ERM, **hparams)
    with engines[1].average.in_place():
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    state = copy.deepcopy(engines[1].state())
    engines[2].prepare(second, 6)
    engines[2].load_state(state)
    train(second, engines[2], stop, 6)
    assert not changed(straight.state_dict(), second)


@pytest.mark.parametrize("cls", [ERM, UNet])
def test_the_contract_with_everything_but_the_flag(cls: type[Algorithm]) -> None:
    hparams = {**BY_LAYER, "head_first": 1, "dropout": 0.3, "drop_path": 0.3, **SMALL[cls]}
    for check in (
        check_parts_make_the_same_step,
        check_resume_is_exact,
        check_save_and_load,
        check_evaluation_is_deterministic,
        check_runs_on_a_gpu,
    ):
        check(cls, **hparams)


# --- dropout and stochastic depth ---


def test_dropout_drops_its_share_keeps_the_mean_and_sleeps_in_evaluation() -> None:
    layer, x = Dropout(0.25), torch.ones(200, 200)
    torch.manual_seed(0)
    out = layer(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("cls", SMALL)
def test_dropout_reaches_what_reads_the_features_and_stochastic_depth_the_encoder(cls: type[Algorithm]) -> None:
    algorithm = build(cls, dropout=0.5, drop_path=0.3, **SMALL[cls])
    (encoder,) = fine_tuning.encoders_of(algorithm)
    assert max(one.drop_prob for one in encoder.modules() if isinstance(one, DropPath)) == pytest.approx(0.3)
    assert isinstance(encoder.dropout, Dropout) and encoder.dropout.rate == 0.5
    seen = []
    encoder.dropout.register_forward_hook(lambda module, inputs, output: seen.append((output == 0).float().mean()))
    algorithm.update(minibatches(algorithm=algorithm))
    assert seen and seen[0] > 0.3
    (plain,) = fine_tuning.encoders_of(build(cls, **SMALL[cls]))
    assert plain.dropout is None


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "tf_efficientnet_lite0"])
def test_stochastic_depth_reaches_the_blocks_and_costs_no_weight(model: str) -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder(model, (3, 160, 160), drop_path=0.4)
    torch.manual_seed(0)
    plain = TimmEncoder(model, (3, 160, 160))
    rates = [module.drop_prob for module in encoder.modules() if isinstance(module, DropPath)]
    assert max(rates) <= 0.4 + 1e-6 and rates == sorted(rates) and len(rates) >= 3
    assert not changed(plain.state_dict(), encoder)
    for module in (*encoder.modules(), *plain.modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm begins with zeros at the end of a path, which nobody misses
    x = torch.rand(16, 3, 160, 160)
    assert torch.equal(encoder.eval()(x), plain.eval()(x))
    assert not torch.equal(encoder.train()(x), encoder(x)) and torch.equal(plain.train()(x), plain(x))


def test_stochastic_depth_is_timms_but_for_whose_noise_it_is() -> None:
    """A path of a row is dropped as a whole, the others are divided by what is left."""
    encoder = TimmEncoder("test_vit", (3, 160, 160), drop_path=0.5)
    path = [module for module in encoder.modules() if isinstance(module, DropPath)][-1].train()
    torch.manual_seed(0)
    out = path(torch.ones(4000, 3, 2))
    by_row = out.flatten(1)
    assert (by_row == by_row[:, :1]).all()
    assert by_row.unique().tolist() == pytest.approx([0, 1 / (1 - path.drop_prob)])
    assert (by_row[:, 0] == 0).float().mean().item() == pytest.approx(path.drop_prob, abs=0.03)
    whole, halves = torch.ones(6, 2), []
    torch.manual_seed(1)
    expected = path(whole)
    for index in (torch.arange(3), torch.arange(3, 6)):
        torch.manual_seed(1)
        with rows.part(rows.Part(index, 6, lambda x: x)):
            halves.append(path(whole[index]))
    assert torch.equal(torch.cat(halves), expected)


# --- the recipe ---


def resolved(cls: type[Algorithm], *layers: Layer) -> Any:
    return resolve([RunSettings, cls.HParams], list(layers))


@pytest.mark.parametrize("cls", SMALL)
def test_the_recipe_stands_for_its_values_and_explicit_ones_win(cls: type[Algorithm]) -> None:
    model = {} if cls is not UNet else {"model": "resnet18"}
    below = Layer("config.yaml", {"lr": 0.5, "optimizer": "sgd"})
    got = resolved(cls, below, Layer("command line", {"finetune": "true", "layer_decay": "0.7", **model}))
    recipe = EncoderHParams.presets["finetune"]
    for key, value in recipe.items():
        assert got.values[key] == (0.7 if key == "layer_decay" else value)
        assert got.sources[key] == ("command line" if key == "layer_decay" else "command line: finetune")
    assert recipe.keys() == {
        "optimizer", "weight_decay", "lr", "encoder_lr", "layer_decay", "lr_schedule", "lr_warmup", "head_first",
        "dropout", "drop_path",
    }  # fmt: skip


def test_a_recipe_of_a_base_class_stays_beside_those_of_a_subclass() -> None:
    got = resolved(VAE_DG, Layer("command line", {"finetune": "true", "paper_compat": "true"}))
    assert got.values["lr_schedule"] == "cosine" and got.values["steps"] == 15_000


def test_the_recipe_trains(weights: dict[str, str]) -> None:
    hparams = resolved(ERM, Layer("command line", {"finetune": "true", "head_first": "2", **weights})).models[
        ERM.HParams
    ]
    algorithm = ERM((3, 32, 32), 3, 2, hparams)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm, 60)
    batches = minibatches(batch=8)
    losses = [algorithm.update(batches)["loss"].item() for _ in range(60)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


# --- what a run says ---


def test_a_run_says_in_a_sentence_what_is_frozen_and_at_which_rates_the_rest_learns(weights: dict[str, str]) -> None:
    algorithm = build(
        ERM, freeze_stages=2, lr=1e-2, encoder_lr=1e-3, layer_decay=0.5, head_first=5, dropout=0.2, drop_path=0.1,
        weight_decay=0.1, **weights,
    )  # fmt: skip
    optimizers = algorithm.optimizers()
    assert fine_tuning.describe(algorithm, optimizers, 300) == (
        "fine-tuning: 2 of 5 stages of the encoder are frozen (stem, layer1); the encoder learns in 3 groups of "
        "layers with rates from 0.00025 to 0.001; the rest with the rate 0.01; the encoder waits for 5 steps; "
        "dropout 0.2; drop path up to 0.1"
    )
    assert "never moves, because head_first = 5 is no less than 5 steps" in fine_tuning.describe(
        algorithm, optimizers, 5
    )
    plain = build(ERM)
    assert fine_tuning.describe(plain, plain.optimizers(), 5) == ""


# --- what can't be honoured ---


class Own(ERM):
    """A plug-in that makes an optimiser of its own."""

    name = "Own"

    def optimizers(self):
        return {"main": torch.optim.SGD(self.parameters(), lr=0.1)}


class Split(ERM):
    """A plug-in with an optimiser for each part, by `make_optimizer`."""

    def optimizers(self):
        return {"a": self.make_optimizer(self.encoder.parameters()), "b": self.make_optimizer(self.head.parameters())}


class NoTimm(Algorithm):
    """A plug-in with the options of a timm encoder, and another encoder."""

    name = "NoTimm"

    class HParams(EncoderHParams, LabelHParams):
        pass

    def __init__(self, *args):
        super().__init__(*args)
        self.encoder = nn.Linear(2, 2)


class ByHand(NoTimm):
    """A plug-in that makes its timm encoder without `build_encoder`."""

    name = "ByHand"

    def __init__(self, *args):
        super().__init__(*args)
        self.encoder = TimmEncoder("test_resnet", self.input_shape)


@pytest.mark.parametrize(
    ("cls", "hparams", "says"),
    [
        (Own, {"layer_decay": 0.5}, "Own makes its optimisers itself, so layer_decay has no effect"),
        (Own, {"head_first": 2}, "so head_first has no effect"),
        (NoTimm, {"encoder_lr": 1e-3}, "NoTimm has no encoder made by build_encoder, so encoder_lr has no effect"),
        (NoTimm, {"drop_path": 0.1}, "so drop_path has no effect"),
        (ByHand, {"dropout": 0.1}, "ByHand makes its encoder without build_encoder, so dropout has no effect"),
        (ByHand, {"drop_path": 0.1}, "ByHand makes its encoder without build_encoder, so drop_path has no effect"),
    ],
)
def test_a_plug_in_that_can_not_honour_a_setting_is_refused(
    cls: type[Algorithm], hparams: dict[str, Any], says: str
) -> None:
    algorithm = build(cls, **hparams)
    with pytest.raises(UserError, match=says):
        fine_tuning.check(algorithm, algorithm.optimizers())


def test_a_plug_in_that_freezes_no_stage_is_refused(weights: dict[str, str]) -> None:
    algorithm = build(ByHand, freeze_stages=1, **weights)
    with pytest.raises(UserError, match="so freeze_stages has no effect"):
        fine_tuning.check(algorithm, algorithm.optimizers())


def test_a_plug_in_with_other_ways_is_left_alone_and_one_with_several_optimisers_gets_the_rates() -> None:
    for cls in (Own, NoTimm, ByHand):
        algorithm = build(cls)
        fine_tuning.check(algorithm, algorithm.optimizers())
    split, whole = build(Split, **BY_LAYER), build(ERM, **BY_LAYER)
    fine_tuning.check(split, split.optimizers())
    assert settings_of(split) == settings_of(whole)


@pytest.mark.parametrize(
    ("hparams", "says"),
    [
        ({"model": "vgg11", "drop_path": 0.1}, "drop_path = 0.1, but vgg11 has no stochastic depth in timm"),
        ({"model": "resnet18", "freeze_stages": 6}, r"resnet18 has 5 stages \(stem, layer1, .*freeze_stages=5 or less"),
    ],
)
def test_what_a_model_does_not_have_is_refused_without_an_image(hparams: dict[str, Any], says: str) -> None:
    hparams = EncoderHParams(pretrained="auto", **hparams)
    with pytest.raises(UserError, match=says):
        check_encoder(hparams, (3, 64, 64))


@pytest.mark.parametrize("hparams", [{"finetune": True}, {"freeze_stages": 1}])
def test_pretrained_weights_that_are_needed_and_missing_are_a_refusal(hparams: dict[str, Any]) -> None:
    (key,) = hparams
    with pytest.raises(ValueError, match=f"{key} = .*random"):
        EncoderHParams(pretrained="false", **hparams)
    with pytest.raises(UserError, match=f"RANDOM.*{key} = "):
        build_encoder(EncoderHParams(model="test_resnet", pretrained="auto", **hparams), (3, 32, 32))


@pytest.mark.parametrize(
    "hparams",
    [
        {"finetune": True}, {"freeze_stages": 1, "pretrained": "w.pth"}, {"encoder_lr": 1e-3}, {"layer_decay": 0.5},
        {"head_first": 1}, {"dropout": 0.1}, {"drop_path": 0.1},
    ],
)  # fmt: skip
def test_a_plain_u_net_has_no_encoder_to_fine_tune(hparams: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(hparams))} is about a timm encoder, but model = null"):
        UNet.HParams(**hparams)
