"""Map codes: scikit-learn's principal components and the exact likelihood at the start; places stay places."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from domainbed.errors import UserError
from domainbed.networks.maps import MapDecoder, MapEncoder, map_shape, start_from_components
from domainbed.objectives import gaussian

SHAPE, CHANNELS, HALVINGS = (3, 24, 16), 5, 2
PATCH = 2**HALVINGS
NUM_VALUES = 3 * PATCH**2


@pytest.fixture
def images() -> torch.Tensor:
    """Images (40, C, H, W) whose patches have many directions of different variance, inside [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(NUM_VALUES, NUM_VALUES, generator=generator) * 0.9 ** torch.arange(NUM_VALUES)
    height, width = SHAPE[1] // PATCH, SHAPE[2] // PATCH
    patches = torch.randn(40, height * width, NUM_VALUES, generator=generator) @ mixing.T
    folded = torch.nn.functional.fold(patches.transpose(1, 2), SHAPE[1:], PATCH, stride=PATCH)
    return 0.5 + 0.3 * folded / folded.abs().max()


def patches_of(x: torch.Tensor) -> np.ndarray:
    """Patches (B h w, D) of images, cut out by numpy."""
    b, c, h, w = x.shape
    cut = x.numpy().reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH).transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(-1, c * PATCH * PATCH).astype(np.float64)


def started(x: torch.Tensor) -> tuple[MapEncoder, MapDecoder, float]:
    torch.manual_seed(0)
    encoder, decoder = MapEncoder(SHAPE, CHANNELS, HALVINGS), MapDecoder(SHAPE, CHANNELS, HALVINGS)
    noise = start_from_components(encoder, decoder, x.split(7))
    return encoder, decoder, noise


def test_the_start_is_scikit_learns_principal_components(images: torch.Tensor) -> None:
    encoder, decoder, noise = started(images)
    patches = patches_of(images)
    oracle = PCA(CHANNELS, svd_solver="full").fit(patches)
    unbiased = (len(patches) - 1) / len(patches)  # scikit-learn divides by N - 1
    assert noise == pytest.approx(oracle.noise_variance_ * unbiased, rel=1e-4)
    values = oracle.explained_variance_ * unbiased
    shrunk = (patches - oracle.mean_) @ oracle.components_.T * (values - noise) / values @ oracle.components_
    with torch.no_grad():
        drawn = patches_of(decoder(encoder(images)[0]).sigmoid())
    np.testing.assert_allclose(drawn, shrunk + oracle.mean_, atol=2e-5)


def test_the_elbo_at_the_start_is_the_exact_log_likelihood(images: torch.Tensor) -> None:
    """The posterior of the linear model is exact, so bound and log p(x) are one; scikit-learn knows the latter."""
    encoder, decoder, noise = started(images)
    patches = patches_of(images)
    oracle = PCA(CHANNELS, svd_solver="full").fit(patches * math.sqrt(len(patches) / (len(patches) - 1)))
    oracle.mean_ = patches.mean(0)
    exact = oracle.score_samples(patches).sum()
    with torch.no_grad():
        mean, logvar = encoder(images)
        kl = gaussian.kl_to_standard_normal(mean, logvar).double().sum()
        gain = decoder.linear.weight.double().flatten(1)  # (c, D)
        variance = logvar.double().unflatten(1, encoder.shape).exp().movedim(1, -1).reshape(-1, CHANNELS)
        spread = (variance * gain.square().sum(1)).sum()  # axes are orthogonal: tr(W S W^T)
        error = (decoder(mean).sigmoid().double() - images.double()).square().sum()
    nll = 0.5 * ((error + spread) / noise + images.numel() * math.log(2 * math.pi * noise))
    assert float(-nll - kl) == pytest.approx(exact, rel=1e-4)


def test_the_posterior_variance_at_the_start_is_that_of_bayes_rule(images: torch.Tensor) -> None:
    """Prior precision 1 plus |w|^2 / s2 from the decoder's axis w: the variance is s2 / (s2 + |w|^2)."""
    encoder, decoder, noise = started(images)
    with torch.no_grad():
        variance = encoder(images)[1].exp().unflatten(1, encoder.shape)
        axes = decoder.linear.weight.flatten(1).square().sum(1)
    torch.testing.assert_close(variance, (noise / (noise + axes))[:, None, None].expand_as(variance), rtol=1e-4, atol=0)


def test_places_stay_places(images: torch.Tensor) -> None:
    """At the start a patch of the image moves its own numbers of the code and no others, and the reverse."""
    encoder, decoder, _ = started(images)
    other = images[:1].clone()
    other[:, :, 4:8, 8:12] = 0.2
    with torch.no_grad():
        moved = (encoder(other)[0] != encoder(images[:1])[0]).unflatten(1, encoder.shape).any(1)[0]
        z = torch.zeros(1, math.prod(encoder.shape)).unflatten(1, encoder.shape)
        z[0, :, 3, 1] = 1.0
        drawn = (decoder(z.flatten(1)) != decoder(torch.zeros_like(z).flatten(1))).any(1)[0]
    assert moved.nonzero().tolist() == [[1, 2]]
    rows, columns = drawn.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 15, 4, 7)


def test_more_channels_than_the_images_have_components_stay_finite() -> None:
    flat = torch.rand(6, 1, 1, 1).expand(6, *SHAPE).clone()  # one component: brightness
    encoder, decoder, _ = started(flat)
    with torch.no_grad():
        mean, logvar = encoder(flat)
        assert mean.isfinite().all() and logvar.isfinite().all()
        torch.testing.assert_close(decoder(mean).sigmoid(), flat, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(3, 24, 17), (1, 19, 30), (3, 16, 16)])
@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_any_size_comes_back_at_its_own_size(shape: tuple[int, int, int], halvings: int) -> None:
    encoder, decoder = MapEncoder(shape, 4, halvings), MapDecoder(shape, 4, halvings)
    with torch.no_grad():
        mean, logvar = encoder(torch.rand(2, *shape))
    channels, height, width = encoder.shape
    assert mean.shape == logvar.shape == (2, channels * height * width)
    assert (height, width) == tuple(math.ceil(side / 2**halvings) for side in shape[1:])
    assert decoder(mean).shape == (2, *shape)


def test_images_too_small_for_a_map_are_refused_with_sizes_that_fit() -> None:
    with pytest.raises(UserError, match="per 8 x 8 px, but the images are 12 x 15 px.*raise image_size to 16"):
        map_shape((3, 12, 15), 16, 3)
    with pytest.raises(UserError, match="latent_channels=16 is more than the 12 values of a patch of 2 x 2"):
        map_shape((3, 32, 32), 16, 1)
