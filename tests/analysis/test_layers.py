"""What `layers` says of networks whose faults are planted, and of every algorithm."""

import copy
import csv
from pathlib import Path
from typing import Any

import in_memory
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from domainbed import testing
from domainbed.algorithms.base import Algorithm
from domainbed.analysis import layer_pictures, layers, network
from domainbed.analysis.network import Layer
from domainbed.cli.layers import lines
from domainbed.registry import ALGORITHMS

SIDE = 16


@pytest.fixture(scope="module")
def images():
    """24 images from two cameras, of three classes; half of the cameras' images are held out."""
    generator = np.random.default_rng(0)
    return in_memory.images(
        generator.integers(0, 256, (24, SIDE, SIDE, 3), dtype=np.uint8), generator.integers(0, 3, 24)
    )


class Planted(Algorithm):
    """Four channels between image and image: the first dead, the second the same for every image, the others sound."""

    class HParams(Algorithm.HParams):
        """None of its own."""

    def __init__(self, input_shape: Any = (3, SIDE, SIDE), num_classes: int = 3, num_domains: int = 1) -> None:
        super().__init__(input_shape, num_classes, num_domains, self.HParams())
        torch.manual_seed(0)
        self.first, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.last, self.out = nn.Conv2d(4, 3, 1), nn.ReLU()
        with torch.no_grad():
            self.first.bias.copy_(torch.tensor([-10.0, 1.0, 0.0, 0.0]))
            self.first.weight[1] = 0

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x = torch.cat([x for x, _ in minibatches])
        return {"loss": F.mse_loss(self.reconstruct(x), x)}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.out(self.last(self.act(self.first(x)))).clamp(0, 1)


def test_dead_and_constant_units_are_those_that_were_planted(images) -> None:
    run = in_memory.opened(Planted(), images)
    rows = np.arange(24)
    found = network.structure(run, rows[:1], None)
    network.measure_units(run, rows, found)
    by_name = {layer.name: layer for layer in found}
    assert by_name["act"].dead == 0.25 and by_name["act"].constant == 0.5
    assert by_name["first"].dead is None and by_name["first"].constant == 0.25  # before the ReLU the first one varies


def test_a_unit_counts_as_alive_if_one_image_wakes_it(images) -> None:
    algorithm = Planted()
    with torch.no_grad():  # red, summed over the window, exceeds this bias in the brightest window only
        x = torch.from_numpy(images.rows).permute(0, 3, 1, 2).float() / 255
        algorithm.first.weight[0] = 0
        algorithm.first.weight[0, 0, 1, 1] = 1
        brightest = x[:, 0].flatten(1).amax(1).sort(descending=True).values
        algorithm.first.bias[0] = -1.0
    assert brightest[0] == 1  # at the bias: 0, not above it
    run = in_memory.opened(algorithm, images)
    (layer,) = (one for one in network.structure(run, np.arange(1), None) if one.name == "act")
    network.measure_units(run, np.arange(24), [layer])
    assert layer.dead == 0.25
    with torch.no_grad():
        algorithm.first.bias[0] = -0.999
    network.measure_units(run, np.arange(24), [layer])
    assert layer.dead == 0


def test_a_model_that_has_diverged_is_not_called_sound(images, tmp_path: Path) -> None:
    algorithm = Planted()
    torch.nn.init.constant_(algorithm.last.weight, torch.nan)
    found = layers.analyse(in_memory.opened(algorithm, images), tmp_path)
    assert found["findings"][0] == (
        "NOT FINITE: last (100%), out (100%) answer images with numbers that are not finite: the training has "
        "diverged. Look at another --checkpoint, or train again with a lower lr or with clip_norm=1"
    )
    by_name = {one["name"]: one for one in found["layers"]}
    assert by_name["act"]["dead"] == 0.25 and by_name["out"]["dead"] is None and by_name["out"]["constant"] is None
    table = "\n".join(lines(found))
    assert "NOT FINITE" in table and "no fault found" not in table


def test_a_pattern_that_no_image_changes_is_constant_and_one_that_images_change_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    pattern = torch.rand(1, 2, 30, generator=generator).repeat(50, 1, 1)
    pattern[:, 1] += 0.1 * torch.randn(50, 1, generator=generator)
    units = network._Units(pattern[:1])
    for part in pattern.split(7):
        units.add(part)
    assert units.constant().tolist() == [True, False]
    assert torch.equal(units.highest, pattern.amax((0, 2)))
    assert torch.allclose(units.squares / 50 - (units.sum / 50) ** 2, pattern.var(0, unbiased=False), atol=1e-6)


def test_weights_that_did_not_move_are_named_and_the_others_are_measured(images) -> None:
    before = Planted()
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.first.parameters():
            parameter.mul_(1.5)
    found = network.structure(in_memory.opened(after, images), np.arange(1), before)
    first, last = (next(one for one in found if one.name == name) for name in ("first", "last"))
    assert first.change == pytest.approx(0.5) and not first.hardly_moved
    assert last.change == 0 and last.hardly_moved
    start, moved = (torch.cat([one.detach().flatten() for one in of.parameters()]) for of in (before, after))
    assert network.change_of([first, last]) == pytest.approx(((moved - start).norm() / start.norm()).item())
    after.last.requires_grad_(False)
    (last,) = (
        one for one in network.structure(in_memory.opened(after, images), np.arange(1), before) if one.name == "last"
    )
    assert not last.trainable and not last.hardly_moved  # it was not meant to move


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Layer("norm", "GroupNorm", trainable=True, change=0.004, norms=(1.0, 0.004)), False),
        (Layer("norm", "GroupNorm", trainable=True, change=0.0, norms=(1.0, 0.0)), True),
        (Layer("conv", "Conv2d", trainable=True, matrix=True, change=0.004, norms=(1.0, 0.004)), True),
        (Layer("zeros", "Conv2d", trainable=True, matrix=True, change=None, norms=(0.0, 0.3)), False),
        (Layer("zeros", "Conv2d", trainable=True, matrix=True, change=None, norms=(0.0, 0.0)), True),
    ],
)
def test_what_hardly_moved(layer: Layer, expected: bool) -> None:
    assert layer.hardly_moved is expected


def test_scales_of_norms_and_what_moves_without_a_gradient_are_told_apart(images) -> None:
    before = testing.build(ALGORITHMS["VQVAE"], (3, SIDE, SIDE), num_codes=8, hidden_dim=8, code_dim=4)
    after = copy.deepcopy(before)
    after.quantizer.embedding += 1
    found = {one.name: one for one in network.structure(in_memory.opened(after, images), np.arange(1), before)}
    codebook = found["quantizer"]
    assert codebook.parameters == 0 and not codebook.trainable and codebook.norms[1] == pytest.approx(32**0.5)
    names = list(found)
    assert names.index("encoder.layers.0") < names.index("quantizer") < names.index("decoder.layers.0")


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_has_all_its_weights_in_the_table(name: str) -> None:
    cls = ALGORITHMS[name]
    algorithm = testing.build(cls)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    masks = generator.integers(0, 2, (8, 32, 32), dtype=np.uint8) if cls.needs_masks else None
    if masks is not None:
        algorithm = cls((3, 32, 32), 2, 1, testing.small(cls, (3, 32, 32)) | {"width": 4, "output": "softmax"})
    run = in_memory.opened(algorithm, in_memory.images(pixels, generator.integers(0, 3, 8), masks=masks))
    found = network.structure(run, np.arange(1), copy.deepcopy(algorithm))
    network.measure_units(run, np.arange(8), found)
    assert sum(one.parameters for one in found) == sum(one.numel() for one in algorithm.parameters())
    assert len({one.name for one in found}) == len(found)
    answering = [one for one in found if one.is_answer]
    assert all(0 <= one.constant <= 1 for one in answering if one.constant is not None)
    maps = layer_pictures.stages(found)
    assert bool(maps) == bool(answering)
    got = run.compute(np.arange(2), lambda x, y: network.outputs(run.algorithm, x, y, {one.name for one in maps}))
    assert {len(value) for value in got.values()} <= {2} and got.keys() == {one.name for one in maps}


@pytest.mark.parametrize(
    ("shape", "width", "expected"),
    [
        ((2, 5), None, (2, 5, 1)),
        ((2, 5, 3, 4), 5, (2, 5, 12)),  # a convolution
        ((2, 3, 4, 5), 5, (2, 5, 12)),  # a linear layer over a map with the channels last, as in ConvNeXt
        ((2, 7, 5), 5, (2, 5, 7)),  # tokens
        ((2, 5, 7), 5, (2, 5, 7)),
        ((2, 8, 3, 4), 96, (2, 8, 12)),  # unflattened
    ],
)
def test_units_are_found_wherever_a_layer_puts_them(shape: Any, width: int | None, expected: Any) -> None:
    output = torch.arange(np.prod(shape)).reshape(shape).float()
    units = network.by_unit(output, width)
    assert units.shape == expected
    if shape == (2, 3, 4, 5):
        assert torch.equal(units[:, 1], output[..., 1].flatten(1))


def test_many_layers_are_shown_by_block() -> None:
    names = [f"encoder.layer{i}.{j}.{part}" for i in range(4) for j in range(6) for part in ("conv", "bn", "act")]
    made = [Layer(name, "Conv2d", parameters=2, norms=(1.0, 0.5), change=0.5) for name in [*names, "head"]]
    assert len(network.by_block(made, most=100)) == 73
    blocks = network.by_block(made, most=30)
    assert [name for name, _ in blocks][:2] == ["encoder.layer0.0", "encoder.layer0.1"] and len(blocks) == 25
    assert [len(members) for _, members in blocks] == [3] * 24 + [1]
    assert network.change_of(blocks[0][1]) == pytest.approx(0.5)


def test_of_a_deep_network_the_last_map_of_each_resolution_is_drawn() -> None:
    def stage(name: str, *shape: int) -> list[Layer]:
        return [
            Layer(f"{name}.conv", "Conv2d", shape, matrix=True, is_answer=True),
            Layer(f"{name}.act", "ReLU", shape, is_answer=True),
        ]

    sizes = [(8, 32, 32)] * 3 + [(16, 16, 16)] * 3 + [(64,), (64,), (10,), (64,)] + [(8, 32, 32)] * 20
    made = [layer for number, shape in enumerate(sizes) for layer in stage(f"s{number}", *shape)]
    drawn = layer_pictures.stages(made)
    assert [layer.name for layer in drawn] == ["s2.act", "s5.act", "s7.act", "s8.act", "s9.act", "s29.act"]
    assert len(layer_pictures.stages(made[:40])) == 20  # few enough to draw them all


def noisy(values: Any, noise: float = 0.05) -> list[float]:
    return (np.asarray(values) + noise * np.random.default_rng(1).standard_normal(len(values))).tolist()


@pytest.mark.parametrize(
    ("values", "moves", "end"),
    [
        (noisy(np.full(60, 2.0)), False, "flat"),
        (noisy(np.linspace(3, 1, 60)), True, "falling"),
        (noisy(1 + 2 * np.exp(-np.arange(60) / 5)), True, "flat"),
        (noisy(np.concatenate([np.linspace(3, 1, 40), np.linspace(1, 2, 20)])), True, "rising"),
        (noisy(np.linspace(3, 1, 24), 1.0), True, "flat"),  # a slow fall in few values
        (noisy(np.concatenate([np.linspace(9, 1, 6), np.ones(74)]), 2.5), True, "flat"),  # one that ends early
        ([3.0, 2.0, 1.0], None, None),
        ([1.0] * 20, False, "flat"),
    ],
)
def test_a_loss_is_judged_beside_its_noise(values: list[float], moves: bool | None, end: str | None) -> None:
    found = layers.movement(values)
    assert (found["moves"], found["end"]) == (moves, end)


def test_noise_of_a_loss_is_that_which_was_added() -> None:
    found = layers.movement(noisy(np.linspace(3, 1, 4000), noise=0.2))
    assert found["noise"] == pytest.approx(0.2, rel=0.05)
    assert found["decrease"] == pytest.approx(1.8 / 2.9, rel=0.02)


@pytest.mark.parametrize(("bias", "expected"), [(-50.0, 1.0), (0.5, 0.0)])
def test_an_output_that_is_cut_off_everywhere_gets_no_gradient(images, bias: float, expected: float) -> None:
    algorithm = Planted()
    with torch.no_grad():
        algorithm.last.weight.mul_(1e-3)
        algorithm.last.bias.fill_(bias)
    run = in_memory.opened(algorithm, images)
    found = layers._without_gradient(run, None, network.structure(run, np.arange(1), None))
    assert found == {"layer": "last", "after": expected}
    assert all(one.grad is None for one in algorithm.parameters())


def test_the_channels_that_vary_most_come_first() -> None:
    maps = torch.zeros(5, 8, 8)
    maps[3, :4], maps[1, :4], maps[4] = 1.0, 0.5, 0.7  # the last is bright everywhere: it does not vary
    drawn = layer_pictures.channel_maps(maps, 2, (16, 16))
    assert drawn.shape == (2, 3, 16, 16)
    yellow, dark = drawn[0, :, 0, 0], drawn[0, :, -1, -1]
    assert yellow[0] > 0.9 and yellow[1] > 0.9 and dark.max() < 0.4
    assert torch.equal(drawn[1, :, -1, -1], dark) and drawn[1, 0, 0, 0] < yellow[0]  # one scale for both
    vector = layer_pictures.channel_maps(torch.arange(5.0), 2, (9, 9))
    assert vector.shape == (1, 3, 9, 9) and (vector[0, :, -1, -1] == 1).all()  # nothing in the last cell


def test_without_a_first_checkpoint_and_records_the_rest_is_shown_and_the_lack_said(images, tmp_path: Path) -> None:
    run = in_memory.opened(Planted(), images)
    found = layers.analyse(run, tmp_path, num_images=1, max_channels=3)
    assert any("exported model has no checkpoint" in note for note in found["notes"])
    assert found["loss"] == {} and all(one["change"] is None for one in found["layers"])
    assert {one["file"] for one in found["pictures"]} == {"units.png", "activations_1.png"}
    with Image.open(tmp_path / "activations_1.png") as picture:
        assert picture.size[0] > 3 * layer_pictures.TILE_PX
    with (tmp_path / "layers.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [one["layer"] for one in lines] == ["first", "act", "last", "out"]
    assert float(lines[1]["dead"]) == 0.25
    x = torch.from_numpy(images.rows[images.select(1)]).permute(0, 3, 1, 2).float() / 255
    figures = found["environments"]["camera1"]
    assert figures["role"] == "left out of training" and figures["n"] == len(x)
    assert figures["psnr_black"] == pytest.approx((-10 * x.square().mean((1, 2, 3)).log10()).mean().item(), rel=1e-5)
    assert figures["brightness_images"] == pytest.approx(x.mean().item())


def test_the_faults_are_told_in_words() -> None:
    still = {"moves": False, "num_values": 10, "first": 1.0, "last": 1.0, "noise": 0.1, "end": "flat"}
    found = {
        "loss": {"total_loss": {"movement": still, "steps": [1, 10]}},
        "environments": {"camera": {"after": {"psnr": 10.0}, "psnr_mean_image": 12.0}},
    }
    made = [
        Layer("still", "Conv2d", trainable=True, matrix=True, change=0.0, norms=(1.0, 0.0)),
        Layer("dead", "ReLU", dead=0.75, constant=0.75),
        Layer("same", "Conv2d", constant=1.0),
        Layer("sound", "Conv2d", trainable=True, matrix=True, change=0.5, norms=(1.0, 0.5), constant=0.0),
    ]
    said = "\n".join(layers.findings(found, made))
    for text in (
        "total_loss does not move",
        "1 from step 1 on",
        "still (0.00%)",
        "dead (75%)",
        "same (100%)",
        "no better than the mean",
    ):
        assert text in said
    assert "sound" not in said
    healthy = {"loss": {}, "environments": {}}
    assert layers.findings(healthy, made[3:]) == ["no fault found in the change of the weights, the units"]
    assert layers.findings(healthy, []) == []
