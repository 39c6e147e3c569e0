"""The strided encoder and its mirror image: every size, width and stride, and no pixel left out."""

import pytest
import torch
from torch import nn

from domainbed.errors import UserError
from domainbed.networks.strided import StridedDecoder, StridedEncoder

SIZES = [(32, 32), (33, 33), (17, 23), (64, 48), (16, 16), (47, 19)]


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_out_as_asked_and_the_grid_is_divided_by_the_strides(size, stride):
    encoder = StridedEncoder((3, *size), [8, 16, 32], stride)
    decoder = StridedDecoder(4, (1, *size), [8, 16, 32], stride)
    assert encoder.grid == (32, -(-size[0] // stride**2), -(-size[1] // stride**2))
    with torch.no_grad():
        features = encoder(torch.rand(2, 3, *size))
        assert features.shape == (2, encoder.num_features) == (2, 32 * encoder.grid[1] * encoder.grid[2])
        assert decoder(torch.randn(2, 4)).shape == (2, 1, *size)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_first_layer_of_the_encoder_and_the_last_of_the_decoder_keep_the_resolution(stride):
    widths = [16, 24, 40]
    encoder, decoder = StridedEncoder((3, 32, 32), widths, stride), StridedDecoder(4, (3, 32, 32), widths, stride)
    seen = []
    for layer in (*encoder.layers, *decoder.layers):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(tuple(output.shape[1:])))
    with torch.no_grad():
        encoder(torch.rand(1, 3, 32, 32))
        decoder(torch.randn(1, 4))
    second, third = 32 // stride, 32 // stride**2
    assert seen == [
        (16, 32, 32), (24, second, second), (40, third, third),
        (24, second, second), (16, 32, 32), (3, 32, 32),
    ]  # fmt: skip


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(32, 32), (19, 26)])
def test_every_pixel_is_seen_and_every_pixel_is_painted(size, stride):
    torch.manual_seed(0)
    x = torch.rand(1, 1, *size, requires_grad=True)
    StridedEncoder((1, *size), [8, 16, 16], stride)(x).square().sum().backward()
    assert x.grad.ne(0).all()
    with torch.no_grad():
        decoder = StridedDecoder(4, (1, *size), [8, 16, 16], stride)
        assert (decoder(torch.randn(1, 4)) - decoder(torch.randn(1, 4))).ne(0).all()


@pytest.mark.parametrize("stride", [2, 4])
def test_strides_and_kernels_paint_every_cell_with_the_same_number_of_taps(stride):
    """A kernel that is no multiple of the stride paints a checkerboard (Odena et al. 2016)."""
    decoder = StridedDecoder(1, (1, 8 * stride, 8 * stride), [4, 4], stride)
    layer = next(layer for layer in decoder.layers if isinstance(layer, nn.ConvTranspose2d))
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        painted = layer(torch.ones(1, 4, 8, 8))[..., stride:-stride, stride:-stride]
    assert painted.unique().numel() == 1


def test_an_image_with_fewer_pixels_than_the_strides_divide_by_is_refused_with_the_mend():
    with pytest.raises(UserError, match=r"divide an image's side by 256, but these are of 64 x 300 px.*image_size=256"):
        StridedEncoder((3, 64, 300), [8] * 5, 4)
    StridedEncoder((3, 16, 300), [8] * 5, 2)
    with pytest.raises(UserError, match="15 x 300"):
        StridedDecoder(4, (3, 15, 300), [8] * 5, 2)


@pytest.mark.parametrize(("widths", "side"), [([1], 8), ([3, 5], 2), ([8, 8], 2), ([20, 12], 2), ([16, 16], 2)])
def test_any_width_has_a_norm_that_leaves_something_even_on_a_grid_of_one_cell(widths, side):
    torch.manual_seed(0)
    encoder = StridedEncoder((1, side, side), widths, 2)
    with torch.no_grad():
        features = encoder(torch.rand(2, 1, side, side))
    assert (features[0] - features[1]).abs().max() > 1e-3
