"""Which checkpoint a protocol would choose.

Gulrajani & Lopez-Paz 2021, "In Search of Lost Domain Generalization": an algorithm is not specified without the way its
model is selected. Training-domain validation pools held-out images of the source environments; test-domain validation
looks at the target and is an oracle, which no user of an unseen target has. A run keeps a checkpoint for each, and the
last one, and every figure names its protocol. The figures are `metrics`', the files `checkpoint`'s.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from domainbed.errors import UserError, did_you_mean

Direction = Literal["higher", "lower"]

SELECTION_METRICS: dict[str, Direction] = {
    "kappa": "higher",
    "accuracy": "higher",
    "balanced_accuracy": "higher",
    "macro_f1": "higher",
    "auc": "higher",
    "dice_dataset": "higher",
    "iou_dataset": "higher",
    "dice_image": "higher",
    "iou_image": "higher",
    "pixel_accuracy": "higher",
    "psnr": "higher",
    "ssim": "higher",
    "total_loss": "lower",
    "recon_loss": "lower",
    "mse": "lower",
}
"""What `select_by` may name, and which way is better."""

PROTOCOLS = {"training-domain validation": "best", "last": "last", "oracle (test-domain validation)": "oracle"}
"""Protocol, as it is called wherever a figure is shown, to the checkpoint that it chooses."""

_OF_CLASSES = ("kappa", "accuracy", "balanced_accuracy", "macro_f1", "auc")
_OF_IMAGES = ("psnr", "ssim", "mse", "recon_loss")
_OF_SEVERAL_CLASSES = ("kappa", "auc")
_OF_OVERLAP = ("dice_dataset", "iou_dataset", "dice_image", "iou_image")
OF_MASKS = (*_OF_OVERLAP, "pixel_accuracy")
"""Figures of masks; the others are of labels, images or losses."""


def resolve(
    select_by: str,
    can_predict: bool,
    num_classes: int,
    ordinal: bool,
    can_reconstruct: bool | None = None,
    learns_masks: bool = False,
) -> str:
    """Return the metric that the run selects by.

    "auto" is Dice from the pixels of all images for an algorithm that learns masks, kappa for a predictor of ordered
    classes, accuracy for a predictor of others, else the total loss.

    Args:
        select_by: "auto" or a name in `SELECTION_METRICS`.
        can_predict: whether the algorithm has `predict`.
        num_classes: of the data set; with a single one there is nothing to predict.
        ordinal: whether the classes are ordered.
        can_reconstruct: whether the algorithm has `reconstruct`; None leaves that to `score`, which sees the figures.
        learns_masks: whether masks take the place of labels in this run.

    Raises:
        UserError: the name is unknown, or this algorithm on these labels has no such figure.
    """
    predicts = can_predict and num_classes > 1 and not learns_masks
    if select_by == "auto" and learns_masks:
        return "dice_dataset"
    if select_by == "auto":
        return ("kappa" if ordinal else "accuracy") if predicts else "total_loss"
    if select_by not in SELECTION_METRICS:
        hint = did_you_mean(select_by, ["auto", *SELECTION_METRICS])
        raise UserError(f"no selection metric named {select_by!r}{hint}")
    reason = None
    if select_by in OF_MASKS and not learns_masks:
        reason = "needs an algorithm that learns masks, and this one does not"
    elif select_by in _OF_CLASSES and learns_masks:
        reason = "is a figure of labels, and this algorithm learns masks"
    elif select_by in _OF_CLASSES and not can_predict:
        reason = "needs an algorithm that predicts labels, and this one has no predict"
    elif select_by in _OF_CLASSES and not predicts:
        reason = f"needs two classes or more, and this data set has {num_classes}"
    elif select_by == "kappa" and not ordinal:
        reason = "is quadratic weighted and needs ordered classes, and those of this data set have no order"
    elif select_by in _OF_IMAGES and can_reconstruct is False:
        reason = "needs an algorithm that reconstructs images, and this one has no reconstruct"
    if reason is not None:
        can = [
            name
            for name in SELECTION_METRICS
            if (name not in _OF_CLASSES or predicts)
            and (name != "kappa" or ordinal)
            and (name not in _OF_IMAGES or can_reconstruct is not False)
            and (name not in OF_MASKS or learns_masks)
        ]
        raise UserError(f"select_by={select_by} {reason}. Use auto or one of {', '.join(can)}")
    return select_by


def required(metric: str) -> str:
    """Return what the held-out part of an environment has to hold, or `metric` is undefined there."""
    if metric in _OF_SEVERAL_CLASSES:
        return "images of at least two classes"
    if metric in _OF_OVERLAP:
        return "masks with a pixel that is not background"
    return "masks with a labelled pixel" if metric in OF_MASKS else "images"


def defined_environments(metric: str, held_out: Mapping[str, Iterable[Any]]) -> tuple[list[str], list[str]]:
    """Return the environments that a checkpoint's score is the mean over, and those left out, by name.

    Left out is an environment without held-out images and, for kappa and AUC, one whose held-out images are all of one
    class; for IoU and Dice, one whose held-out masks are background alone, where finding nothing is right and has no
    figure, and a single wrong pixel makes it 0; for pixel accuracy, one in which nobody labelled a pixel. Labels and
    masks alone decide, no answer does: a run asks once and every checkpoint is scored over the same environments.

    Args:
        metric: as `resolve` returned it.
        held_out: environment to the labels, (N,), of its held-out part; for a metric in `OF_MASKS` to the values of
            its masks' labelled pixels, where 0 is the background (`datasets.masks.labelled_values`).

    Raises:
        UserError: no environment is left.
    """
    least = 2 if metric in _OF_SEVERAL_CLASSES else 1
    no_part = {0} if metric in _OF_OVERLAP else set()
    num_classes = {name: len({int(value) for value in values} - no_part) for name, values in held_out.items()}
    left_out = [name for name, count in num_classes.items() if count < least]
    if len(left_out) == len(num_classes):
        found = ", ".join(f"{name} has {count or 'none'}" for name, count in num_classes.items())
        instead = "accuracy" if least > 1 else "total_loss" if metric in _OF_OVERLAP else None
        raise UserError(
            f"select_by={metric} needs held-out {required(metric)} in one environment or more, but "
            f"{found or 'there is no environment'}. "
            + (f"Use select_by={instead} or hold out more images" if instead else "Hold out more images")
        )
    return [name for name in num_classes if name not in left_out], left_out


def score(metric: str, figures: Mapping[str, Mapping[str, Any]]) -> float:
    """Return one number for a checkpoint, higher is better: the mean over environments, negated for a loss.

    Every environment counts alike, however many images it has (Gulrajani & Lopez-Paz 2021).

    Args:
        metric: as `resolve` returned it.
        figures: environment, of those `defined_environments` returned, to its metrics.

    Returns:
        nan where an environment's figure is undefined, which `better` never lets win.

    Raises:
        UserError: an environment has no such figure at all.
    """
    values = []
    for environment, known in figures.items():
        if metric not in known:
            can = [name for name in SELECTION_METRICS if name in known]
            raise UserError(
                f"select_by={metric}: this run gives no {metric} for {environment}. Use auto or one of {', '.join(can)}"
            )
        values.append(math.nan if known[metric] is None else float(known[metric]))
    if not values:
        raise ValueError("a score is a mean over environments, and there is none")
    sign = 1 if SELECTION_METRICS[metric] == "higher" else -1
    return sign * sum(values) / len(values)


def better(new: float, old: float | None) -> bool:
    """Whether a score is strictly above the best so far, None if there is none; nan and infinities never win."""
    return math.isfinite(new) and (old is None or new > old)
