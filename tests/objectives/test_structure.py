"""Terms for fine structure against loops, closed forms of flat images, and the losses that they are added to."""

import numpy as np
import pytest
import torch

from domainbed.errors import UserError
from domainbed.objectives.structure import SCALES, GradientDifference, MultiScaleDissimilarity
from domainbed.registry import ALGORITHMS


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_gradient_difference_is_that_of_a_loop():
    a, b = images(2, 3, 5, 7), images(2, 3, 5, 7, seed=1)
    for got, one, other in zip(GradientDifference()(a, b), a.double().numpy(), b.double().numpy(), strict=True):
        down = [abs((one[c, i + 1, j] - one[c, i, j]) - (other[c, i + 1, j] - other[c, i, j]))
                for c in range(3) for i in range(4) for j in range(7)]  # fmt: skip
        right = [abs((one[c, i, j + 1] - one[c, i, j]) - (other[c, i, j + 1] - other[c, i, j]))
                 for c in range(3) for i in range(5) for j in range(6)]  # fmt: skip
        assert got.item() == pytest.approx((np.mean(down) + np.mean(right)) / 2, rel=1e-5)


def test_a_line_that_is_left_out_costs_what_its_edges_are_worth_and_a_brighter_image_nothing():
    line = torch.zeros(1, 1, 8, 8)
    line[:, :, :, 4] = 0.5
    distance = GradientDifference()
    assert distance(torch.zeros_like(line), line).item() == pytest.approx(2 * 0.5 / 7 / 2)  # 2 of 7 differences a row
    assert distance(line + 0.3, line).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("side", "scales"), [(11, 1), (12, 2), (44, 3), (98, 3), (99, 4), (175, 4), (176, 5), (224, 5)]
)
def test_ms_ssim_of_flat_images_is_their_luminance_at_the_coarsest_scale_that_fits(side, scales):
    """Without variance every scale's contrast term is 1; the last scale has (2ab + c1) / (a^2 + b^2 + c1)."""
    a, b, c1 = 0.2, 0.7, 0.01**2
    luminance = (2 * a * b + c1) / (a**2 + b**2 + c1)
    exponent = SCALES[scales - 1] / sum(SCALES[:scales])
    distance = MultiScaleDissimilarity((side, side))
    assert len(distance.exponents) == scales
    flat = torch.full((2, 3, side, side), 1.0, dtype=torch.float64)  # a variance of float32 has rounding of 1e-4 here
    np.testing.assert_allclose(distance(a * flat, b * flat), 1 - ((luminance + 1) / 2) ** exponent, rtol=1e-6)


@pytest.mark.parametrize("distance", [GradientDifference(), MultiScaleDissimilarity((48, 48))])
def test_equal_images_have_no_distance_and_opposite_ones_a_finite_gradient(distance):
    x = images(2, 3, 48, 48)
    np.testing.assert_allclose(distance(x, x), 0, atol=1e-5)
    output = (1 - x).requires_grad_()
    distance(output, x).sum().backward()
    assert output.grad.isfinite().all() and output.grad.abs().sum() > 0


def test_ms_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(UserError, match="window of 11 px, but the images are 8 x 32 px. Use structure=gradient"):
        MultiScaleDissimilarity((8, 32))


@pytest.mark.parametrize("name", ["VAE", "CVAE", "HVAE", "VAE_DG", "VQVAE"])
@pytest.mark.parametrize("structure", ["gradient", "ms_ssim"])
def test_it_is_added_to_the_loss_of_every_algorithm_with_a_likelihood(name, structure):
    x, y = images(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
    small = {"VAE_DG": {"model": "resnet10t", "pretrained": "false"}}.get(name, {})

    def terms(**given):
        torch.manual_seed(0)
        algorithm = ALGORITHMS[name]((3, 32, 32), 2, 1, small | given)
        torch.manual_seed(1)
        return algorithm, algorithm.losses([(x, y)])

    _, plain = terms()
    algorithm, with_term = terms(structure=structure, structure_weight=3.0)
    assert with_term["structure_loss"] > 0
    torch.testing.assert_close(with_term["loss"], plain["loss"] + 3 * with_term["structure_loss"])
    torch.testing.assert_close(with_term["recon_nats"], plain["recon_nats"])
    if hasattr(algorithm, "explain_weights"):
        meaning = algorithm.explain_weights(10, 4)
        factor = 3 * 32 * 32 if "means" in meaning.reduction else 1
        assert meaning.structure_weight_nats == 3.0 * factor
        assert "no likelihood" in meaning.lines()[-1]


def test_a_weight_without_a_term_has_no_effect_and_the_published_loss_has_no_term():
    hparams = ALGORITHMS["VAE"].HParams
    assert hparams(structure_weight=2.0).idle()["structure_weight"] == "structure = none"
    assert "structure_weight" not in hparams(structure="gradient").idle()
    with pytest.raises(ValueError, match="structure = none, as the published code has"):
        ALGORITHMS["VAE_DG"].HParams(paper_compat=True, recon_reduction="sum", structure="gradient")
