"""Decoders: every size, no dependence on the batch, and how much detail each of the two can show."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.networks.decoders import ConvDecoder, PublishedVAEDGDecoder

SIZES = [(7, 7), (8, 8), (9, 9), (31, 31), (33, 33), (64, 64), (65, 48), (48, 65), (1, 1), (5, 70), (224, 224)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decoder", [ConvDecoder, PublishedVAEDGDecoder])
def test_every_size_comes_out_as_asked(decoder, size):
    with torch.no_grad():
        assert decoder(4, (3, *size)).eval()(torch.randn(1, 4)).shape == (1, 3, *size)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("decoder", [ConvDecoder, PublishedVAEDGDecoder])
def test_every_number_of_channels_comes_out_as_asked(decoder, channels):
    assert decoder(4, (channels, 17, 17))(torch.randn(2, 4)).shape == (2, channels, 17, 17)


def test_the_grid_begins_with_at_most_8_cells_and_doubles():
    def sides(size):
        decoder, seen = ConvDecoder(4, (3, size, size)), []
        for layer in decoder.layers:
            if isinstance(layer, nn.ConvTranspose2d | nn.Unflatten):
                layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.shape[-1]))
        with torch.no_grad():
            decoder(torch.randn(1, 4))
        return seen

    assert sides(224) == [7, 14, 28, 56, 112, 224]
    assert sides(64) == [8, 16, 32, 64]
    assert sides(65) == [5, 10, 20, 40, 80]
    assert sides(8) == [8]


def test_hidden_layers_have_the_widths_that_were_asked_for():
    linear = [layer for layer in ConvDecoder(4, (3, 16, 16), (10, 20)).layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear[:2]] == [(4, 10), (10, 20)]
    assert linear[2].in_features == 20


def test_a_reconstruction_does_not_depend_on_what_shares_its_batch():
    decoder = ConvDecoder(4, (3, 33, 33), (16,)).train()
    z = torch.randn(5, 4)
    with torch.no_grad():
        together = decoder(z)
        alone = torch.cat([decoder(one[None]) for one in z])
        beside_others = decoder(torch.cat([z[:1], 100 * torch.randn(3, 4)]))[:1]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[:1], beside_others, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in decoder.modules())


def test_the_published_decoder_has_batch_norm_throughout():
    decoder, z = PublishedVAEDGDecoder(4, (3, 20, 20), 16).train(), torch.randn(4, 4)
    with torch.no_grad():
        assert not torch.allclose(decoder(z)[:1], decoder(torch.cat([z[:1], 9 * torch.randn(3, 4)]))[:1], atol=1e-3)


def test_the_published_decoder_is_39_pixels_wide_with_the_published_widths():
    decoder = PublishedVAEDGDecoder(256, (3, 224, 224))
    linear = [layer for layer in decoder.layers if isinstance(layer, nn.Linear)]
    convolutions = [layer for layer in decoder.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(256, 1024), (1024, 1024)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(64, 32), (32, 8), (8, 3)]
    assert {(layer.kernel_size, layer.stride, layer.padding) for layer in convolutions} == {((3, 3), (2, 2), (0, 0))}
    with torch.no_grad():
        assert decoder.eval().layers(torch.randn(1, 256)).shape == (1, 3, 39, 39)


def test_the_published_output_is_a_bilinear_stretch_of_the_values_of_39_pixels():
    torch.manual_seed(0)
    decoder = PublishedVAEDGDecoder(8, (3, 224, 224), 32).eval()
    z = 3 * torch.randn(2, 8)
    with torch.no_grad():
        small = torch.sigmoid(decoder.layers(z))
        expected = F.interpolate(small, size=(224, 224), mode="bilinear", align_corners=False)
        torch.testing.assert_close(torch.sigmoid(decoder(z)), expected, rtol=1e-4, atol=1e-5)


def detail(image):
    """Variance of what differs from the mean of the two neighbours left and right, over the image's own variance."""
    middle = image[..., 1:-1] - 0.5 * (image[..., :-2] + image[..., 2:])
    return (middle.var() / image.var()).item()


def test_only_the_full_decoder_can_draw_detail_of_one_pixel_at_224():
    torch.manual_seed(0)
    full, published = ConvDecoder(8, (3, 224, 224)), PublishedVAEDGDecoder(8, (3, 224, 224), 32).eval()
    with torch.no_grad():
        *_, last = (layer for layer in full.layers if isinstance(layer, nn.ConvTranspose2d))
        last.weight.zero_()
        last.weight[:, :, :, 1:3] = torch.tensor([1.0, -1.0])  # each cell paints one column light, the next one dark
        stripes = torch.sigmoid(full(10 * torch.randn(1, 8)))
        sharpest = max(
            detail(torch.sigmoid(_random_weights(published, seed)(scale * torch.randn(1, 8))))
            for seed in range(5)
            for scale in (1, 100)
        )
    assert detail(stripes) > 0.5
    assert sharpest < 0.1


def _random_weights(decoder, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        parameter.copy_(3 * torch.randn(parameter.shape, generator=generator))
    return decoder


@pytest.mark.parametrize("decoder", [ConvDecoder, PublishedVAEDGDecoder])
def test_every_parameter_gets_a_gradient_and_none_is_infinite(decoder):
    torch.manual_seed(0)
    module = decoder(4, (3, 33, 33))
    module(torch.randn(4, 4)).square().sum().backward()
    without = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without, f"no finite gradient: {without}"
