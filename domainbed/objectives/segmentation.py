"""Losses of a mask: cross-entropy, a value per image, and soft Dice, one value for a whole batch.

A mask comes in one of two forms, and its rank says which:

    exclusive classes    long (B, H, W), a class index per pixel; the network's logits (B, K, H, W) meet a softmax
    overlapping kinds    float (B, K, H, W), 1 where a pixel is of a kind, else 0; the logits meet a sigmoid

A pixel that nobody labelled is `IGNORE_INDEX` in the first form and nan in the second. It enters no sum: neither its
logits nor its place in a mean. Everything is computed in float32 at least. Figures of finished masks (IoU, Dice of
answers) are in `metrics`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from domainbed.objectives.precision import at_least_float32

#: Class index of a pixel that nobody labelled: the default of `torch.nn.functional.cross_entropy`.
IGNORE_INDEX = -100


def pixel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return (B,) nats per pixel: -log p(target), the mean over an image's labelled pixels.

    Overlapping kinds are a Bernoulli each, and their nats are summed. The mean over pixels, not the sum, so that the
    term has the size of `dice_loss` whatever the resolution. An image without a labelled pixel has 0.

    Args:
        logits: (B, K, H, W).
        target: a mask in either form.

    Raises:
        ValueError: logits and mask don't belong together.
    """
    logits = at_least_float32(logits)
    labelled = _labelled(logits, target)  # (B, 1, H, W)
    if target.ndim == 3:
        nll = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORE_INDEX)  # (B, H, W)
    else:
        known = target.nan_to_num().to(logits.dtype)
        nll = F.binary_cross_entropy_with_logits(logits, known, reduction="none").sum(1)  # (B, H, W)
    # `where`, because a product would keep the nan of a logit that does not count
    return nll.where(labelled[:, 0], 0.0).sum((1, 2)) / labelled.sum((1, 2, 3)).clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return (): 1 - the mean over classes of 2 sum(p y) / (sum(p) + sum(y)), sums over batch and space.

    Soft Dice (Milletari et al. 2016, arXiv 1606.04797, without their squares), p by one softmax or sigmoid. Background
    is a class like any other. A class that the batch's masks lack says nothing about the overlap and is left out of the
    mean; without any class the loss is 0. The value for a batch is not the mean of its images' values, so whoever uses
    it is `batch_coupled`.

    Args:
        logits: (B, K, H, W).
        target: a mask in either form.

    Raises:
        ValueError: logits and mask don't belong together.
    """
    logits = at_least_float32(logits)
    labelled = _labelled(logits, target)  # (B, 1, H, W)
    if target.ndim == 3:
        probabilities = logits.softmax(1)
        known = target.where(labelled[:, 0], 0)
        true = F.one_hot(known, logits.shape[1]).movedim(-1, 1).to(logits.dtype)  # (B, K, H, W)
    else:
        probabilities, true = logits.sigmoid(), target.nan_to_num().to(logits.dtype)
    probabilities, true = probabilities.where(labelled, 0.0), true.where(labelled, 0.0)
    overlap = (probabilities * true).sum((0, 2, 3))  # (K,)
    sizes = probabilities.sum((0, 2, 3)) + true.sum((0, 2, 3))  # (K,)
    present = true.sum((0, 2, 3)) > 0  # (K,)
    dice = 2 * overlap / sizes.where(present, 1.0)  # (K,); in a class that is present, the sum is 1 at least
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def _labelled(logits: Tensor, target: Tensor) -> Tensor:
    """Return (B, 1, H, W) bool: which pixels count.

    A pixel of overlapping kinds counts if all of its kinds are known.
    """
    if target.ndim == 3 and not target.is_floating_point() and target.shape == logits[:, 0].shape:
        return (target != IGNORE_INDEX)[:, None]
    if target.ndim == 4 and target.is_floating_point() and target.shape == logits.shape:
        return ~torch.isnan(target).any(1, keepdim=True)
    batch, classes, height, width = logits.shape
    raise ValueError(
        f"a mask of {target.dtype} {tuple(target.shape)} for logits of {tuple(logits.shape)}: give class indices "
        f"({batch}, {height}, {width}) of whole numbers, or kinds ({batch}, {classes}, {height}, {width}) of floats"
    )
