"""Lists of layers: the sizes and numbers of weights of known networks, Keras' padding, every size, every mistake."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from domainbed.errors import UserError
from domainbed.networks.layers import FORMS, LayerDecoder, LayerEncoder, build, initialise_glorot, parse

CONFIGS = Path(__file__).parents[2] / "configs"


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def networks(text: str, shape: tuple[int, int, int], latent_dim: int | None = None):
    down, up = parse(split(text))
    encoder = LayerEncoder(down, shape)
    return encoder, LayerDecoder(up, encoder.grid, shape, latent_dim)


# By hand, from the Keras models: kernel area x channels in x channels out + one bias for each channel out.
MODEL_4_WEIGHTS = [
    25 * 1 * 64 + 64, 25 * 64 * 32 + 32, 4 * 32 * 16 + 16,
    4 * 16 * 16 + 16, 25 * 16 * 32 + 32, 25 * 32 * 64 + 64, 9 * 64 * 1 + 1,
]  # fmt: skip
WEIGHTS = {
    "ae_model1": [320, 4624, 2320, 2320, 2320, 4640, 289],
    "ae_model4": MODEL_4_WEIGHTS,
    "ae_model6": [160, 1160, 584, 584, 584, 1168, 145],
    "ae_model7": MODEL_4_WEIGHTS,
    "ae_wide": [3328, 204_864, 18_464, 9248, 51_264, 204_928, 1153],
}
TOTALS = {"ae_model1": 16_833, "ae_model4": 120_673, "ae_model6": 4385, "ae_model7": 120_673, "ae_wide": 493_249}
# (channels, side) after each convolution, maximum and upsampling for a grey image of 96 px
MODEL_4_SHAPES = [
    (64, 96), (64, 48), (32, 48), (32, 24), (16, 24), (16, 12),
    (16, 12), (16, 24), (32, 24), (32, 48), (64, 48), (64, 96), (1, 96),
]  # fmt: skip
SHAPES = {
    "ae_model1": [
        (32, 96), (32, 48), (16, 48), (16, 24), (16, 24), (16, 12),
        (16, 12), (16, 24), (16, 24), (16, 48), (32, 48), (32, 96), (1, 96),
    ],
    "ae_model4": MODEL_4_SHAPES,
    "ae_model6": [
        (16, 96), (16, 48), (8, 48), (8, 24), (8, 24), (8, 12),
        (8, 12), (8, 24), (8, 24), (8, 48), (16, 48), (16, 96), (1, 96),
    ],
    "ae_model7": MODEL_4_SHAPES,
    "ae_wide": [
        (128, 96), (128, 48), (64, 48), (32, 48), (32, 24),
        (32, 24), (64, 24), (64, 48), (128, 48), (128, 96), (1, 96),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_shipped_models_have_the_weights_and_shapes_of_the_keras_ones(name):
    text = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["layers"]
    encoder, decoder = networks(text, (1, 96, 96))
    counts, shapes = [], []
    for network in (encoder, decoder):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                counts.append(sum(p.numel() for p in module.parameters()))
            if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.Upsample):
                module.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:3])))
    with torch.no_grad():
        assert decoder(encoder(torch.rand(1, 1, 96, 96))).shape == (1, 1, 96, 96)
    assert counts == WEIGHTS[name]
    assert sum(p.numel() for network in (encoder, decoder) for p in network.parameters()) == TOTALS[name]
    assert shapes == SHAPES[name]
    assert encoder.num_features == {"ae_model6": 8 * 12 * 12, "ae_wide": 32 * 24 * 24}.get(name, 16 * 12 * 12)


def ones(layer: str, side: int) -> list[float]:
    """What a kernel of ones gives for a row of the powers of 2: which cells each output adds up."""
    (parsed,), _ = parse([layer, "code", *(["upsample 2"] if "stride 2" in layer else [])])
    (module,), _ = build([parsed], (1, side, side), 1)
    for p in module.parameters():
        nn.init.constant_(p, p.ndim > 1)  # the bias is 0
    x = torch.zeros(1, 1, side, side)
    x[..., 0, :] = 2.0 ** torch.arange(side)
    with torch.no_grad():
        return module(x)[0, 0, 0].tolist()


def test_padding_is_as_little_as_needed_and_the_odd_cell_comes_after_as_in_keras():
    assert ones("conv 1 3", 4) == [0b0011, 0b0111, 0b1110, 0b1100]
    assert ones("conv 1 2", 4) == [0b0011, 0b0110, 0b1100, 0b1000]  # an even kernel looks to the right
    assert ones("conv 1 3 stride 2", 4) == [0b0111, 0b1100]  # an even side needs one zero only, after it
    assert ones("conv 1 3 stride 2", 5) == [0b00011, 0b01110, 0b11000]
    assert ones("conv 1 2 stride 2", 5) == [0b00011, 0b01100, 0b10000]


def test_a_maximum_over_an_odd_side_has_a_smaller_last_window():
    encoder, _ = networks("maxpool 2, code, upsample 2", (1, 5, 5))
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert encoder(x).tolist() == [[6, 8, 9, 16, 18, 19, 21, 23, 24]]
    assert encoder.grid == (1, 3, 3)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 2), (5, 2), (3, 3), (4, 3), (5, 3), (7, 3)])
def test_a_transposed_convolution_multiplies_the_side_by_its_stride(kernel, stride):
    _, up = parse([f"maxpool {stride}", "code", f"transposed 2 {kernel} stride {stride}"])
    modules, shape = build(up, (1, 3, 5), 1)
    assert nn.Sequential(*modules)(torch.rand(1, 1, 3, 5)).shape == (1, 2, 3 * stride, 5 * stride)
    assert shape == (2, 3 * stride, 5 * stride)


DEEP = [
    "conv 4 3, relu, maxpool 2, conv 4 2, maxpool 3, code, upsample 3, conv 4 5, relu, upsample 2, conv image 3",
    "conv 4 4 stride 3, conv 4 5 stride 2, code, transposed 4 4 stride 2, relu, transposed image 3 stride 3",
]


@pytest.mark.parametrize("text", DEEP)
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 7, 7), (3, 17, 23), (1, 33, 33), (5, 12, 70), (2, 24, 24)])
@pytest.mark.parametrize("latent_dim", [None, 3])
def test_every_size_and_number_of_channels_comes_out_as_it_went_in(text, shape, latent_dim):
    encoder, decoder = networks(text, shape, latent_dim)
    features = encoder(torch.rand(2, *shape))
    assert features.shape == (2, encoder.num_features) == (2, math.prod(encoder.grid))
    assert encoder.grid == (4, math.ceil(shape[1] / 6), math.ceil(shape[2] / 6))
    assert decoder(features if latent_dim is None else torch.rand(2, latent_dim)).shape == (2, *shape)


def test_the_surplus_of_a_size_that_was_rounded_up_is_cut_off_where_it_was_added():
    encoder, decoder = networks("maxpool 2, code, upsample 2", (1, 5, 5))
    out = decoder(encoder(torch.arange(25.0).reshape(1, 1, 5, 5)))[0, 0]
    assert out[0].tolist() == [6, 6, 8, 8, 9]
    assert out[4].tolist() == [21, 21, 23, 23, 24]


def test_a_layer_does_what_its_numbers_say():
    down, up = parse(split("conv 6 5 stride 2, leaky_relu 0.3, code, transposed 2 4 stride 2, conv image 3"))
    (conv, leaky), _ = build(down, (3, 9, 9), 3)
    (transposed, last), _ = build(up, (6, 5, 5), 3)
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride) == (3, 6, (5, 5), (2, 2))
    assert leaky(torch.tensor([-2.0, 2.0])).tolist() == pytest.approx([-0.6, 2.0])
    assert (transposed.in_channels, transposed.out_channels, transposed.kernel_size) == (6, 2, (4, 4))
    assert (last.in_channels, last.out_channels) == (2, 3)


def test_spaces_do_not_matter():
    assert [one.kind for one in parse(["  conv   8  3 ", "code", "conv\nimage 3"])[0]] == ["conv"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("conv 8 3, rleu, code, conv image 3", ["layer 2, 'rleu',", "did you mean 'relu'?", "maxpool"]),
        ("conv 8, code, conv image 3", ["layer 1, 'conv 8',", FORMS["conv"][0]]),
        ("conv 0 3, code, conv image 3", ["layer 1, 'conv 0 3',", "1 or more"]),
        ("conv 8 3 strides 2, code, conv image 3", ["layer 1,", "[stride <stride>]"]),
        ("conv eight 3, code, conv image 3", ["layer 1,"]),
        ("conv 8 3, leaky_relu, code, conv image 3", ["layer 2, 'leaky_relu',", "leaky_relu <slope>"]),
        ("maxpool 1, code, conv image 3", ["layer 1, 'maxpool 1',", "2 or more"]),
        ("relu 0.1, code, conv image 3", ["layer 1, 'relu 0.1',"]),
        ("maxpool 2, code, transposed image 3", ["layer 3,", "stride <stride>"]),
        ("maxpool 3, code, transposed image 2 stride 3", ["layer 3,", "kernel is smaller than its stride"]),
        ("maxpool 2, upsample 2, conv image 3", ["'code' stands there 0 times"]),
        ("code, code, conv image 3", ["'code' stands there 2 times"]),
        ("maxpool 2, maxpool 2, code, upsample 2, conv image 3", ["divided by 4 and multiplied by 2"]),
        ("conv 8 3 stride 2, code, conv image 3", ["divided by 2 and multiplied by 1"]),
    ],
)
def test_a_mistake_in_a_list_is_named_with_its_place_and_what_is_known(text, says):
    with pytest.raises(ValueError) as raised:
        parse(split(text))
    assert all(words in str(raised.value) for words in says), raised.value


def test_an_image_too_small_for_the_depth_says_so():
    text = "maxpool 2, maxpool 2, conv 4 3 stride 2, code, upsample 2, upsample 2, upsample 2, conv image 3"
    networks(text, (1, 5, 5))
    with pytest.raises(UserError, match=r"layer 3, 'conv 4 3 stride 2', divides .* 1 x 2 cells .*too small"):
        networks(text, (1, 4, 5))


def test_a_decoder_that_ends_with_other_channels_says_so():
    with pytest.raises(UserError, match="gives 4 channels, but the images have 3"):
        networks("conv 8 3, code, conv 4 3", (3, 8, 8))
    networks("conv 8 3, code, conv 3 3", (3, 8, 8))


def test_glorot_weights_fill_their_bounds_and_biases_are_zero():
    torch.manual_seed(0)
    encoder, decoder = networks(
        "conv 32 5, maxpool 2, conv 64 3, code, transposed 16 4 stride 2, conv image 3", (3, 8, 8), 100
    )
    fans = {
        encoder.layers[0]: (3 * 25, 32 * 25), encoder.layers[2]: (32 * 9, 64 * 9),
        decoder.layers[0]: (100, 64 * 16), decoder.layers[2]: (64 * 16, 16 * 16), decoder.layers[3]: (16 * 9, 3 * 9),
    }  # fmt: skip
    initialise_glorot(nn.ModuleList([encoder, decoder]))
    for layer, (fan_in, fan_out) in fans.items():
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert not layer.bias.any()
