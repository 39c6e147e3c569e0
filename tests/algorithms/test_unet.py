"""U-Net in each of its forms keeps the contract, learns, and says what it can't be given."""

import pytest
import torch

from domainbed.algorithms.unet import UNet
from domainbed.errors import UserError
from domainbed.metrics import count_pixels, segmentation
from domainbed.objectives.segmentation import dice_loss, pixel_cross_entropy
from domainbed.testing import build, check_algorithm, check_shapes, minibatches

SMALL = {"model": None, "width": 8, "depth": 2}  # the contract of the encoder of timm is in test_contract.py


@pytest.mark.parametrize(
    "hparams",
    [
        {"down": "maxpool", "up": "transposed", "loss": "ce"},
        {"down": "strided", "up": "upsample", "loss": "dice", "output": "sigmoid"},
        {"loss": "ce+dice", "output": "sigmoid"},
    ],
    ids=["paper", "strided, upsample, dice of kinds", "both losses of kinds"],
)
def test_the_contract_in_each_form(hparams: dict) -> None:
    check_algorithm(UNet, **SMALL, **hparams)


def test_the_contract_with_the_depth_of_the_paper() -> None:
    check_shapes(UNet, model=None, width=4, depth=4)


@pytest.mark.parametrize("loss", ["ce", "dice", "ce+dice"])
def test_the_loss_is_that_of_the_objective(loss: str) -> None:
    algorithm = build(UNet, loss=loss, **SMALL).eval()
    batches = minibatches(algorithm=algorithm)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        terms, logits = algorithm.losses(batches), algorithm.segment(x)
    expected = {"ce_loss": pixel_cross_entropy(logits, y).mean(), "dice_loss": dice_loss(logits, y)}
    expected = {name: value for name, value in expected.items() if name.partition("_")[0] in loss}
    assert terms.pop("loss").item() == pytest.approx(sum(value.item() for value in expected.values()), rel=1e-5)
    assert terms.keys() == expected.keys() and algorithm.batch_coupled == ("dice" in loss)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_it_learns_one_batch_by_heart(output: str) -> None:
    algorithm = build(UNet, lr=1e-2, output=output, **SMALL)
    batches = minibatches(algorithm=algorithm)
    for _ in range(200):
        algorithm.update(batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        figures = segmentation(count_pixels(algorithm.eval().segment(x), y))
    assert figures["dice_dataset"] > 0.9


@pytest.mark.parametrize(
    ("num_classes", "hparams", "says"),
    [
        (1, {"output": "softmax"}, "output=sigmoid"),
        (1, {}, "output=sigmoid"),
        (0, {}, "there is none"),
    ],
)
def test_a_number_of_classes_that_the_output_can_not_have(num_classes: int, hparams: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        UNet((3, 16, 16), num_classes, 1, {"width": 4, "depth": 1, **hparams})


@pytest.mark.parametrize("hparams", [{"pretrained": "weights.pth"}, {"freeze_bn": True}])
def test_what_is_about_an_encoder_needs_one(hparams: dict) -> None:
    with pytest.raises(ValueError, match="Name one, such as model=resnet18"):
        UNet.HParams(**hparams)
