"""Networks of a hierarchical VAE: every size and stride, who depends on whom, and the merge against a closed form."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from domainbed.errors import UserError
from domainbed.networks.hierarchical import (
    LOGVAR_BOUND,
    BottomUp,
    ConditionalGaussian,
    Ladder,
    StridedDecoder,
    StridedEncoder,
    merge,
)

SIZES = [(32, 32), (33, 33), (17, 23), (64, 48), (16, 16), (47, 19)]


def mean_of(mean, logvar):
    return mean


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


def test_a_logvar_is_the_raw_output_near_zero_and_never_leaves_the_bound():
    gaussian = ConditionalGaussian(2, 1)
    with torch.no_grad():
        nn.init.zeros_(gaussian.layers[-1].weight)
        for raw in (-1e6, -0.1, 0.0, 0.1, 1e6):
            gaussian.layers[-1].bias.copy_(torch.tensor([raw, raw]))
            mean, logvar = gaussian(torch.zeros(1, 2))
            assert mean.item() == pytest.approx(raw)
            assert abs(logvar.item()) <= LOGVAR_BOUND
            if abs(raw) < 1:
                assert logvar.item() == pytest.approx(raw, abs=1e-5)


def test_half_precision_goes_in_and_float32_comes_out():
    with torch.autocast("cpu", torch.bfloat16):
        assert [value.dtype for value in ConditionalGaussian(4, 3, 8)(torch.randn(2, 4))] == [torch.float32] * 2


def test_the_merge_is_the_normalised_product_of_the_densities():
    generator = torch.Generator().manual_seed(0)
    first_mean, first_logvar, second_mean, second_logvar = torch.randn(4, 5, 3, generator=generator).double() * 1.5
    mean, logvar = merge((first_mean, first_logvar), (second_mean, second_logvar))
    precisions = (-first_logvar).exp(), (-second_logvar).exp()
    expected = (first_mean * precisions[0] + second_mean * precisions[1]) / (precisions[0] + precisions[1])
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(logvar.exp(), 1 / (precisions[0] + precisions[1]))
    z = torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(-1, 1, 1)  # the quotient of the densities is a constant
    first, second = (Normal(m, (0.5 * v).exp()) for m, v in ((first_mean, first_logvar), (second_mean, second_logvar)))
    rest = first.log_prob(z) + second.log_prob(z) - Normal(mean, (0.5 * logvar).exp()).log_prob(z)
    torch.testing.assert_close(rest, rest[:1].expand_as(rest))


def test_the_merge_survives_precisions_that_overflow():
    mean, logvar = merge(
        (torch.tensor([1.0, 1.0]), torch.tensor([-200.0, 200.0])), (torch.zeros(2), torch.tensor([0.0, -200.0]))
    )
    assert mean.tolist() == [1.0, 0.0]
    assert logvar.tolist() == [-200.0, -200.0]


@pytest.mark.parametrize("hierarchy", [BottomUp, Ladder])
@pytest.mark.parametrize("latent_dims", [[3], [3, 2], [4, 3, 2]])
def test_levels_come_lowest_first_and_the_highest_has_the_standard_normal_prior(hierarchy, latent_dims):
    torch.manual_seed(0)
    levels = hierarchy(6, latent_dims, 8)(torch.randn(5, 6), mean_of)
    assert [level.z.shape for level in levels] == [(5, dim) for dim in latent_dims]
    assert all(value.shape == level.z.shape for level in levels for value in level)
    assert levels[-1].prior_mean.eq(0).all() and levels[-1].prior_logvar.eq(0).all()
    for level in levels[:-1]:
        assert level.prior_mean.ne(0).any()


@pytest.mark.parametrize(
    ("hierarchy", "posteriors"),
    [(BottomUp, [{0}, {1}, {2}]), (Ladder, [{0, 2}, {0, 3}, {0}])],
)
def test_each_level_depends_on_what_its_factor_is_conditioned_on(hierarchy, posteriors):
    """0 stands for the features, l for z_l; the priors are p(z_l | z_l+1) in both."""
    torch.manual_seed(0)
    latent_dims = [4, 3, 2]
    features = torch.randn(5, 6, requires_grad=True)
    codes = {dim: torch.randn(5, dim, requires_grad=True) for dim in latent_dims}
    levels = hierarchy(6, latent_dims, 8)(features, lambda mean, logvar: codes[mean.shape[1]])

    def conditions(value):
        inputs = [features, *codes.values()]
        if not value.requires_grad:
            return set()
        grads = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
        return {index for index, grad in enumerate(grads) if grad is not None and grad.ne(0).any()}

    for value in ("mean", "logvar"):
        assert [conditions(getattr(level, value)) for level in levels] == posteriors
        assert [conditions(getattr(level, f"prior_{value}")) for level in levels] == [{2}, {3}, set()]


def test_the_ladder_merges_every_level_but_the_highest():
    torch.manual_seed(0)
    ladder, features = Ladder(6, [4, 3, 2], 8), torch.randn(5, 6)
    first, second, third = ladder(features, mean_of)
    upward = ladder.upward[0](features)
    for level, likelihood in ((first, ladder.likelihoods[0](features)), (second, ladder.likelihoods[1](upward))):
        precisions = (-likelihood[1]).exp() + (-level.prior_logvar).exp()
        torch.testing.assert_close(level.logvar, -precisions.log())
        weighted = likelihood[0] * (-likelihood[1]).exp() + level.prior_mean * (-level.prior_logvar).exp()
        torch.testing.assert_close(level.mean, weighted / precisions)
    mean, logvar = ladder.likelihoods[2](ladder.upward[1](upward))
    assert torch.equal(third.mean, mean) and torch.equal(third.logvar, logvar)


def test_descending_goes_through_the_priors_from_the_highest_to_the_lowest():
    torch.manual_seed(0)
    hierarchy, z = BottomUp(6, [4, 3, 2], 8), torch.randn(5, 2)
    middle = hierarchy.priors[1](z)[0]
    assert torch.equal(hierarchy.descend(z, mean_of), hierarchy.priors[0](middle)[0])
    assert torch.equal(BottomUp(6, [2], 8).descend(z, mean_of), z)
