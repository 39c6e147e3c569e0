import math

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from domainbed import metrics
from domainbed.datasets.masks import IGNORE, MaskClasses, labelled_values, to_target
from domainbed.errors import UserError
from domainbed.model_selection import PROTOCOLS, SELECTION_METRICS, better, defined_environments, resolve, score


@pytest.mark.parametrize(
    ("can_predict", "num_classes", "ordinal", "expected"),
    [
        (True, 5, True, "kappa"),
        (True, 5, False, "accuracy"),
        (False, 5, True, "total_loss"),
        (True, 1, True, "total_loss"),
    ],
)
def test_auto(can_predict, num_classes, ordinal, expected):
    assert resolve("auto", can_predict, num_classes, ordinal) == expected


def test_every_metric_can_be_named():
    for name in SELECTION_METRICS:
        of_masks = name.startswith(("dice", "iou", "pixel"))
        assert resolve(name, True, 5, True, can_reconstruct=True, learns_masks=of_masks) == name


@pytest.mark.parametrize(
    ("select_by", "arguments", "reason", "offered", "withheld"),
    [
        ("kapa", (True, 5, True), "did you mean 'kappa'", "auto", "\n"),
        ("auc", (False, 5, True), "no predict", "total_loss", "accuracy"),
        ("accuracy", (True, 1, False), "has 1", "total_loss", "macro_f1"),
        ("kappa", (True, 5, False), "no order", "accuracy, ", "one of kappa"),
        ("ssim", (True, 5, False, False), "no reconstruct", "accuracy, ", "psnr"),
    ],
)
def test_a_metric_that_is_not_given_is_refused(select_by, arguments, reason, offered, withheld):
    with pytest.raises(UserError) as error:
        resolve(select_by, *arguments)
    assert reason in str(error.value) and offered in str(error.value) and withheld not in str(error.value)


def test_a_score_is_a_mean_over_environments_and_higher_is_better():
    figures = {"a": {"kappa": 0.2, "mse": 0.1}, "b": {"kappa": 0.6, "mse": 0.3}}
    assert score("kappa", figures) == pytest.approx(0.4)
    assert score("mse", figures) == pytest.approx(-0.2)
    assert math.isnan(score("kappa", figures | {"c": {"kappa": None}}))
    with pytest.raises(UserError, match=r"no psnr for a\. Use auto or one of kappa, mse"):
        score("psnr", figures)
    with pytest.raises(ValueError):
        score("psnr", {})


def test_better_is_strict_and_nan_never_wins():
    assert better(0.1, None) and better(0.2, 0.1) and better(-1.0, -2.0) and better(0.0, -1.0)
    assert not better(0.1, 0.1) and not better(0.0, 0.1)
    assert not better(math.nan, None) and not better(math.nan, 0.1) and not better(math.inf, 0.1)


def test_environments_of_one_class_are_left_out_of_kappa_and_auc():
    labels = {"a": torch.tensor([0, 1]), "b": torch.tensor([1, 1]), "c": [], "d": [2, 0]}
    for metric in ("kappa", "auc"):
        assert defined_environments(metric, labels) == (["a", "d"], ["b", "c"])
    for metric in ("accuracy", "total_loss"):
        assert defined_environments(metric, labels) == (["a", "b", "d"], ["c"])


OVERLAP = ("dice_dataset", "iou_dataset", "dice_image", "iou_image")
KINDS, CLASSES = MaskClasses(("disc", "cup"), exclusive=False), MaskClasses(("retina", "disc"), exclusive=True)


def test_environments_whose_masks_are_background_alone_are_left_out_of_dice_and_iou():
    values = {"a": {0, 1}, "b": {0}, "c": set(), "d": {2}}
    for metric in OVERLAP:
        assert defined_environments(metric, values) == (["a", "d"], ["b", "c"])
    assert defined_environments("pixel_accuracy", values) == (["a", "b", "d"], ["c"])


@pytest.mark.parametrize("classes", [KINDS, CLASSES])
@pytest.mark.parametrize("metric", [*OVERLAP, "pixel_accuracy"])
def test_a_checkpoint_that_invents_pixels_never_wins(metric, classes):
    """Marked are one of two images of a, and none of b; of c nobody labelled a pixel. Both answers have half of a."""
    planes = np.zeros((5, 4, 4), np.uint8)
    planes[0, :2], planes[4] = 1, IGNORE
    environments = {"a": planes[:2], "b": planes[2:4], "c": planes[4:]}
    modest, inventing = np.zeros_like(planes), np.zeros_like(planes)
    modest[0, 0] = inventing[0, 0] = inventing[1:, 3, 3] = 1

    def figures(answer):
        target, given = (to_target(torch.from_numpy(one), classes) for one in (planes, answer))
        logits = (given if given.ndim == 4 else one_hot(given, 2).movedim(-1, 1)).float() - 0.5
        counts = metrics.count_pixels(logits, target).counts
        parts = {"a": counts[:2], "b": counts[2:4], "c": counts[4:]}
        return {name: metrics.segmentation(metrics.MaskCounts(part, classes.exclusive)) for name, part in parts.items()}

    scored, _ = defined_environments(metric, {name: labelled_values(one) for name, one in environments.items()})
    assert scored == (["a", "b"] if metric == "pixel_accuracy" else ["a"])
    scores = [score(metric, {name: figures(answer)[name] for name in scored}) for answer in (modest, inventing)]
    expected = {"dice_dataset": 2 / 3, "dice_image": 2 / 3, "iou_dataset": 1 / 2, "iou_image": 1 / 2}
    share = (16 * 4 - 4) / (16 * 4) if classes.exclusive else (32 * 4 - 4) / (32 * 4)
    assert scores[0] == pytest.approx(expected.get(metric, share))
    assert better(scores[0], scores[1]) and not better(scores[1], scores[0])


def test_no_environment_left_is_the_user_s_to_mend():
    with pytest.raises(UserError, match=r"a has 1, b has none\. Use select_by=accuracy"):
        defined_environments("kappa", {"a": [1, 1], "b": []})
    with pytest.raises(UserError, match=r"held-out images in one .* b has none\. Hold out more images"):
        defined_environments("accuracy", {"b": []})
    with pytest.raises(UserError, match=r"not background in one .* a has none, b has none\. Use select_by=total_loss"):
        defined_environments("dice_image", {"a": {0}, "b": set()})
    with pytest.raises(UserError, match=r"a labelled pixel in one .* a has none\. Hold out more images"):
        defined_environments("pixel_accuracy", {"a": set()})


def test_every_protocol_has_its_checkpoint():
    assert sorted(PROTOCOLS.values()) == ["best", "last", "oracle"]
    assert "oracle" in next(name for name, checkpoint in PROTOCOLS.items() if checkpoint == "oracle")


def test_an_algorithm_that_learns_masks_is_selected_by_dice():
    assert resolve("auto", False, 5, True, learns_masks=True) == "dice_dataset"
    assert resolve("auto", True, 5, True, learns_masks=True) == "dice_dataset"
    assert resolve("iou_image", False, 0, False, learns_masks=True) == "iou_image"
    assert resolve("total_loss", False, 0, False, learns_masks=True) == "total_loss"
    assert all(SELECTION_METRICS[name] == "higher" for name in SELECTION_METRICS if name.startswith(("dice", "iou")))
    with pytest.raises(UserError, match="kappa is a figure of labels, and this algorithm learns masks.*dice_dataset"):
        resolve("kappa", True, 5, True, learns_masks=True)
    with pytest.raises(UserError, match="needs an algorithm that learns masks.*one of kappa"):
        resolve("dice_dataset", True, 5, True)
