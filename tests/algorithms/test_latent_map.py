"""VAE, VAE_DG and CVAE with a map of places for a code: the contract, what reads the map, what is refused."""

import pytest
import torch
from pydantic import ValidationError

from domainbed.algorithms.base import map_of
from domainbed.algorithms.cvae import CVAE
from domainbed.algorithms.vae import VAE
from domainbed.algorithms.vae_dg import VAE_DG
from domainbed.errors import UserError
from domainbed.testing import build, check_algorithm, check_parts_make_the_same_step, minibatches

MAP = {"latent": "map", "latent_channels": 6, "latent_halvings": 2}
SHAPE = (3, 32, 32)
PLACES = 8 * 8


@pytest.mark.parametrize("likelihood", ["bernoulli", "sigma_vae"])
def test_vae_dg_keeps_the_contract_with_a_map(likelihood: str) -> None:
    check_algorithm(VAE_DG, likelihood=likelihood, **MAP)


@pytest.mark.parametrize("conditioning", ["prior", "decoder", "posterior"])
def test_cvae_keeps_the_contract_with_a_map(conditioning: str) -> None:
    check_algorithm(CVAE, conditioning=conditioning, **MAP)


@pytest.mark.parametrize("cls", [VAE, CVAE])
def test_a_step_in_parts_is_the_same_step_with_a_map(cls: type) -> None:
    check_parts_make_the_same_step(cls, likelihood="gaussian", **MAP)


@pytest.mark.parametrize("cls", [VAE, VAE_DG, CVAE])
def test_a_map_that_has_seen_the_training_images_draws_them_at_once(cls: type) -> None:
    """Smooth images are nearly in the span of six components, so the start is already close to them."""
    algorithm = build(cls, SHAPE, **MAP).eval()
    x, y = minibatches(SHAPE)[0]
    given = (x, y) if cls is CVAE else (x,)
    with torch.no_grad():
        before = (algorithm.reconstruct(*given) - x).square().mean()
        algorithm.see_training_images(lambda: x.split(2))
        after = (algorithm.reconstruct(*given) - x).square().mean()
    variance = (x - x.mean((0, 2, 3), keepdim=True)).square().mean()
    if cls is not CVAE:  # its label embeddings are random at first, and move the code
        assert after < 0.05 * variance
    assert after < before


def test_the_head_reads_the_mean_over_places_and_what_the_backbone_knows_is_at_each() -> None:
    algorithm = build(VAE_DG, SHAPE, **MAP).eval()
    x, _ = minibatches(SHAPE)[0]
    torch.nn.init.normal_(algorithm.to_posterior[-1].weight)
    with torch.no_grad():
        code = algorithm.encode(x).unflatten(1, (6, PLACES))
        own = algorithm.patches(x)[0].unflatten(1, (6, PLACES))
        added = code - own
        torch.testing.assert_close(added, added[..., :1].expand_as(added), atol=1e-4, rtol=1e-4)
        assert added.abs().max() > 0.01
        torch.testing.assert_close(algorithm.predict(x), algorithm.head(code.mean(2)))


def test_a_label_moves_each_place_of_a_map_alike() -> None:
    algorithm = build(CVAE, SHAPE, **MAP).eval()
    mean, logvar = algorithm.prior(torch.tensor([0, 2]))
    for values in (mean, logvar):
        places = values.unflatten(1, (6, PLACES))
        assert torch.equal(places, places[..., :1].expand_as(places)) and not torch.equal(values[0], values[1])


@pytest.mark.parametrize("cls", [VAE, VAE_DG, CVAE])
def test_the_meaning_of_the_kl_weight_names_channels_and_places(cls: type) -> None:
    algorithm = build(cls, SHAPE, **MAP)
    assert map_of(algorithm) == (6, 8, 8) and map_of(build(cls, SHAPE)) is None
    meaning = algorithm.explain_weights(10, 8)
    assert meaning.num_latents == 6 * PLACES
    assert "384 latent dimensions: 6 channels at 8 x 8 places" in meaning.lines()[0]
    assert meaning.as_dict()["latent_map"] == (6, 8, 8)


@pytest.mark.parametrize("cls", [VAE, VAE_DG, CVAE])
def test_options_of_the_other_code_are_reported_as_without_effect(cls: type) -> None:
    assert {"latent_halvings", "latent_channels"} <= cls.HParams().idle().keys()
    idle = cls.HParams(latent="map").idle()
    assert "latent_dim" in idle and "latent_channels" not in idle


@pytest.mark.parametrize("cls", [VAE, VAE_DG, CVAE])
def test_every_option_that_a_map_leaves_unused_is_reported(cls: type) -> None:
    """A size that changes no shape of a map's networks has no effect."""
    others = {"width": 16, "latent_dim": 7}

    def parameters(**options: object) -> list[tuple[int, ...]]:
        return [tuple(one.shape) for one in build(cls, SHAPE, **MAP | options).parameters()]

    for key in others.keys() & cls.HParams.model_fields.keys():
        assert parameters(**{key: others[key]}) == parameters() and key in cls.HParams(latent="map").idle()


@pytest.mark.parametrize(
    ("hparams", "says"),
    [
        ({"paper_compat": True, "recon_reduction": "sum", "latent": "map"}, "paper_compat = true has latent = vector"),
        ({"decoder": "published", "latent": "map"}, "decoder = published draws from a vector"),
        ({"paper_compat": True, "recon_reduction": "sum", "likelihood": "laplace"}, "likelihood = bernoulli"),
    ],
)
def test_what_the_published_code_has_not_is_refused(hparams: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        VAE_DG.HParams(**hparams)


@pytest.mark.parametrize("cls", [VAE, VAE_DG, CVAE])
def test_images_too_small_for_a_map_are_refused(cls: type) -> None:
    with pytest.raises(UserError, match="the images are 32 x 32 px, and a map needs two places a side"):
        build(cls, SHAPE, latent="map", latent_halvings=5)
