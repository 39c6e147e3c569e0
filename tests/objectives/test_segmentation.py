"""Losses of masks against segmentation_models_pytorch, torch and values worked out by hand."""

import pytest
import torch
from segmentation_models_pytorch import losses as smp
from torch.nn import functional as F

from domainbed.objectives.segmentation import IGNORE_INDEX, dice_loss, pixel_cross_entropy

B, K, SIDE = 3, 4, 9


def classes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, K, SIDE, SIDE, generator=generator)
    return logits, torch.randint(K, (B, SIDE, SIDE), generator=generator)


def kinds(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, K, SIDE, SIDE, generator=generator)
    return logits, (torch.rand(B, K, SIDE, SIDE, generator=generator) < 0.3).float()


@pytest.mark.parametrize("seed", range(3))
def test_dice_is_the_oracle_s_where_every_class_is_present(seed: int) -> None:
    logits, target = classes(seed)
    assert dice_loss(logits, target).item() == pytest.approx(
        smp.DiceLoss("multiclass")(logits, target).item(), abs=1e-6
    )
    logits, target = kinds(seed)
    assert dice_loss(logits, target).item() == pytest.approx(
        smp.DiceLoss("multilabel")(logits, target).item(), abs=1e-6
    )


def test_dice_by_hand() -> None:
    """Two pixels: p = 3/4 and 1/4 for class 1, which is right for the first: 2 (3/4) / (1 + 1), and the same for 0."""
    logits = torch.tensor([[[[0.25, 0.75]], [[0.75, 0.25]]]]).log()  # (1, 2, 1, 2)
    assert dice_loss(logits, torch.tensor([[[1, 0]]])).item() == pytest.approx(1 - 0.75)
    # one class only: what is absent is no part of the mean. 2 (3/4 + 1/4) / (1 + 2)
    assert dice_loss(logits, torch.tensor([[[1, 1]]])).item() == pytest.approx(1 - 2 / 3)


def test_dice_pools_the_batch_before_it_divides() -> None:
    logits, target = kinds()
    p = logits.sigmoid()
    expected = 1 - (2 * (p * target).sum((0, 2, 3)) / (p + target).sum((0, 2, 3))).mean()
    single = torch.stack([dice_loss(one[None], mask[None]) for one, mask in zip(logits, target, strict=True)]).mean()
    assert dice_loss(logits, target).item() == pytest.approx(expected.item(), abs=1e-6)
    assert abs(single - expected) > 1e-4


def test_a_batch_without_any_kind_costs_nothing() -> None:
    logits = torch.randn(2, K, 3, 3, requires_grad=True)
    loss = dice_loss(logits, torch.zeros(2, K, 3, 3))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_cross_entropy_is_torch_s_mean_over_pixels() -> None:
    logits, target = classes()
    expected = F.cross_entropy(logits, target, reduction="none").mean((1, 2))
    torch.testing.assert_close(pixel_cross_entropy(logits, target), expected)
    logits, target = kinds()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean((1, 2))
    torch.testing.assert_close(pixel_cross_entropy(logits, target), expected)


@pytest.mark.parametrize("make", [classes, kinds])
@pytest.mark.parametrize("loss", [dice_loss, pixel_cross_entropy])
def test_what_nobody_labelled_counts_nowhere(make, loss) -> None:
    """Ignoring the right half is the same as never having seen it, whatever the network says there."""
    logits, target = make()
    logits[..., 5:] = torch.nan
    logits.requires_grad_()
    hidden = target.clone()
    hidden[..., 5:] = IGNORE_INDEX if target.ndim == 3 else torch.nan
    found = loss(logits, hidden)
    torch.testing.assert_close(found, loss(logits[..., :5], target[..., :5]))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert not gradient[..., 5:].nan_to_num().any() and gradient[..., :5].isfinite().all()


def test_an_image_without_any_label_has_no_cross_entropy() -> None:
    logits, target = classes()
    target[1] = IGNORE_INDEX
    found = pixel_cross_entropy(logits, target)
    assert found[1] == 0 and (found[[0, 2]] > 0).all()


@pytest.mark.parametrize("make", [classes, kinds])
def test_half_precision_is_computed_in_float32(make) -> None:
    logits, target = make()
    for loss in (dice_loss, pixel_cross_entropy):
        found = loss(logits.bfloat16(), target)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, loss(logits.bfloat16().float(), target))


@pytest.mark.parametrize(
    "target",
    [torch.zeros(B, SIDE, SIDE), torch.zeros(B, SIDE, SIDE - 1).long(), torch.zeros(B, K + 1, SIDE, SIDE)],
    ids=["floats for class indices", "another size", "another number of kinds"],
)
def test_a_mask_that_does_not_fit(target: torch.Tensor) -> None:
    for loss in (dice_loss, pixel_cross_entropy):
        with pytest.raises(ValueError, match="for logits of"):
            loss(classes()[0], target)
