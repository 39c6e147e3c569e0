"""Figures of classification, reconstruction and masks, and their bootstrap intervals: pure functions on tensors.

A figure that a set of images does not define, such as the recall of a class that it lacks, is None: never nan, which
JSON has not, and never 0, which reads like a result. A classifier's point figures are torchmetrics' (imported where it
is used: it costs 2 s), class by class, because torchmetrics lets an absent class into a macro mean as 0. Intervals come
from closed forms that take a thousand resamples at once. Which images are measured is `evaluator`'s business.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domainbed.objectives.segmentation import IGNORE_INDEX

MSE_FLOOR = 1e-10
"""Smallest mean squared error that PSNR tells apart, 100 dB: a perfect image would be infinite and so would any mean
that it enters. One grey level of 8 bits is 48 dB, so no image but a copy comes near."""
SSIM_WINDOW_PX = 11
_SSIM_CHUNK = 300_000
"""Values that SSIM compares at once on a CPU, so that they stay in its cache (docs/performance.md)."""
SENSITIVITY = 0.9
"""Share of the positives that an operating point has to find on the images that it is chosen on: about what published
systems for referable diabetic retinopathy reach (Ting et al. 2017: 0.905)."""
_CHUNK = 2**22  # weights held at once while resampling: 32 MiB


def classification(
    probabilities: Tensor, labels: Tensor, ordinal: bool, positives: Sequence[int] = ()
) -> dict[str, Any]:
    """Figures of a classifier.

    Args:
        probabilities: (N, K) float, N >= 1, K >= 2; the answer is the most probable class.
        labels: (N,) long in 0 .. K - 1.
        ordinal: whether the classes are ordered, such as the grades of a disease.
        positives: the classes to be found, see `datasets.labels.positives`.

    Returns:
        accuracy: share of right answers.
        balanced_accuracy: mean recall over the classes present in `labels` (Brodersen et al. 2010).
        macro_f1: mean F1 over the classes present in labels or answers.
        auc: area under the ROC curve, each class against the rest, mean over the classes that have both positives and
            negatives (Hand & Till 2001 discuss the alternatives); None where there is none.
        auc_referable: area under the ROC curve of the summed probability of `positives`, where they are several: with a
            single positive class of two it is `auc`.
        kappa: Cohen's kappa with quadratic weights (Cohen 1968), only if `ordinal`; None where `labels` hold a single
            class, for which it is 0 or 0/0 whatever the answers.
        recall: K values, None for a class that `labels` lack.
        confusion: K x K counts, rows are true classes.

        Every figure is None if a probability is not finite.
    """
    from torchmetrics.functional import classification as tm

    num_classes = _check(probabilities, labels)
    if not probabilities.isfinite().all():
        names = ["accuracy", "balanced_accuracy", "macro_f1", "auc", *["auc_referable"] * (len(positives) > 1)]
        return dict.fromkeys([*names, *["kappa"] * ordinal, "recall", "confusion"])
    answers = probabilities.argmax(1)
    present = labels.bincount(minlength=num_classes) > 0
    seen = present | (answers.bincount(minlength=num_classes) > 0)
    recall = tm.multiclass_recall(answers, labels, num_classes, average="none")  # (K,)
    f1 = tm.multiclass_f1_score(answers, labels, num_classes, average="none")  # (K,)
    auc = [  # clamped: torchmetrics takes values outside [0, 1] for logits, and its sigmoid would tie the small ones
        tm.binary_auroc(probabilities[:, k].clamp(0, 1), (labels == k).long()).item()
        for k in range(num_classes)
        if present[k] and present.sum() > 1
    ]
    figures: dict[str, Any] = {
        "accuracy": tm.multiclass_accuracy(answers, labels, num_classes, average="micro").item(),
        "balanced_accuracy": recall[present].mean().item(),
        "macro_f1": f1[seen].mean().item(),
        "auc": sum(auc) / len(auc) if auc else None,
    }
    if len(positives) > 1:
        ones = torch.ones(len(labels), 1, dtype=torch.float64)
        figures["auc_referable"] = _number(
            _weighted_auc(positive_scores(probabilities, positives), is_positive(labels, positives), ones)
        )
    if ordinal:
        kappa = tm.multiclass_cohen_kappa(answers, labels, num_classes, weights="quadratic")
        figures["kappa"] = kappa.item() if present.sum() > 1 else None
    figures["recall"] = [value if there else None for value, there in zip(recall.tolist(), present, strict=True)]
    figures["confusion"] = tm.multiclass_confusion_matrix(answers, labels, num_classes).tolist()
    return figures


def positive_scores(probabilities: Tensor, positives: Sequence[int]) -> Tensor:
    """Return the summed probability (N,) of the classes to be found, in float64, of probabilities (N, K)."""
    return probabilities[:, list(positives)].double().sum(1)


def is_positive(labels: Tensor, positives: Sequence[int]) -> Tensor:
    """Return whether labels (N,) are of the classes to be found, (N,) bool."""
    return torch.isin(labels, torch.tensor(list(positives)))


def choose_threshold(scores: Tensor, positive: Tensor, sensitivity: float = SENSITIVITY) -> float | None:
    """Return the threshold at which `scores >= threshold` finds this share of the positives and flags the fewest.

    It lies midway between the lowest score that has to be flagged and the next lower one, or 0: at a score itself, the
    last bit of a later evaluation would decide about that image. Equal scores are flagged together, so that the share
    that is found may be larger.

    Args:
        scores: (N,) float in [0, 1]. positive: (N,) bool.
        sensitivity: in (0, 1].

    Returns:
        None where there is no positive, or a score is not finite.
    """
    ranked = scores[positive].sort(descending=True).values  # (P,)
    if not len(ranked) or not scores.isfinite().all():
        return None
    found = torch.arange(1, len(ranked) + 1, dtype=torch.float64) / len(ranked)
    lowest = ranked[found >= sensitivity][0]
    below = scores[scores < lowest]
    return ((lowest + (below.max() if len(below) else 0)) / 2).item()


@dataclass(frozen=True)
class Flags:
    """Which of N images a fixed threshold flags.

    Attributes:
        flagged: (N,) bool. positive: (N,) bool, whether the image should be flagged.
    """

    flagged: Tensor
    positive: Tensor


def screening(flags: Flags | None) -> dict[str, float | None]:
    """Figures of flagging images at a fixed threshold.

    Args:
        flags: of N >= 1 images; None where there is no threshold, or a score is not finite.

    Returns:
        sensitivity: share of the positives that are flagged; None without a positive.
        specificity: share of the negatives that are not; None without a negative.
        youden: sensitivity + specificity - 1 (Youden 1950): 0 for flagging all, none or at random.
    """
    if flags is None:
        return dict.fromkeys(("sensitivity", "specificity", "youden"))
    ones = torch.ones(len(flags.positive), 1, dtype=torch.float64)
    return {name: _number(value) for name, value in _of_flags(flags, ones).items()}


def majority(
    train_counts: Sequence[int], labels: Tensor, ordinal: bool, positives: Sequence[int] = ()
) -> dict[str, Any]:
    """Figures of always answering the most frequent training class: what a model has to beat.

    The answer never changes, so AUC is 0.5 and kappa 0 by definition, where they are defined at all. The lowest of
    equally frequent classes is taken.

    Args:
        train_counts: number of training images of each of K >= 2 classes, over all source environments.
        labels: (N,) long, the images measured.
        ordinal: as in `classification`, whose figures are returned.
        positives: the classes to be found. Where there are any, the figures of `screening` are returned as well: every
            image is flagged if the answer is one of them, else none.

    Raises:
        ValueError: there is no training image.
    """
    if not sum(train_counts):
        raise ValueError("no training labels: there is no most frequent class")
    counts = torch.tensor(train_counts)  # (K,)
    answer = counts.argmax()
    constant = F.one_hot(answer, len(counts)).float().expand(len(labels), -1)
    figures = classification(constant, labels, ordinal, positives)
    if positives:
        flagged = is_positive(answer.expand(len(labels)), positives)
        figures |= screening(Flags(flagged, is_positive(labels, positives)))
    return figures


def beside(probabilities: Tensor, baselines: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Accuracy of baselines, and how far an algorithm's own is above it, image by image.

    The mean of differences on the same images is the paired difference, and so is its bootstrap interval.

    Args:
        probabilities: (B, K) of the algorithm.
        baselines: name to logits (B, K).
        labels: (B,) long.

    Returns:
        accuracy_<name>: (B,) 1 or 0. accuracy_minus_<name>: (B,) 1, 0 or -1. nan where an answer is not finite.
    """

    def right_of(answers: Tensor) -> Tensor:
        return (answers.argmax(1) == labels).float().where(answers.isfinite().all(1), math.nan)

    right = right_of(probabilities)
    figures: dict[str, Tensor] = {}
    for name, logits in baselines.items():
        theirs = right_of(logits)
        figures |= {f"accuracy_{name}": theirs, f"accuracy_minus_{name}": right - theirs}
    return figures


def reconstruction(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Figures of each reconstructed image, in float32 also inside autocast or where TF32 is allowed.

    Args:
        output: (B, C, H, W) in [0, 1].
        target: (B, C, H, W) in [0, 1].

    Returns:
        mse: (B,) mean squared error over channels and pixels.
        psnr: (B,) dB for a range of 1, at most 100 (`MSE_FLOOR`).
        ssim: (B,) structural similarity with the Gaussian window of 11 px, sigma 1.5 (Wang et al. 2004), mean over
            channels and windows inside the image; left out where the image is smaller than the window.
    """
    if output.shape != target.shape:
        raise ValueError(f"a reconstruction of shape {tuple(output.shape)} for images of {tuple(target.shape)}")
    output, target = output.float(), target.float()
    mse = (output - target).square().mean((1, 2, 3))
    figures = {"mse": mse, "psnr": -10 * mse.clamp_min(MSE_FLOOR).log10()}
    if min(target.shape[-2:]) >= SSIM_WINDOW_PX:
        at_once = max(1, _SSIM_CHUNK // target.shape[1:].numel()) if target.device.type == "cpu" else len(target)
        pairs = zip(output.split(at_once), target.split(at_once), strict=True)
        figures["ssim"] = torch.cat([_ssim(*some) for some in pairs])
    return figures


@dataclass(frozen=True)
class MaskCounts:
    """How many pixels of N masks are answered rightly and wrongly; what nobody labelled counts nowhere.

    Attributes:
        counts: (N, K, 4) int64 true positives, false positives, false negatives, true negatives of each class; -1 for
            an image with an answer that is not finite.
        exclusive: whether the K classes exclude each other, the first being the background, or are kinds that overlap.
    """

    counts: Tensor
    exclusive: bool

    @classmethod
    def joined(cls, parts: "Sequence[MaskCounts]") -> "MaskCounts":
        """Return the counts of several batches as one, on the CPU."""
        return cls(torch.cat([part.counts for part in parts]).cpu(), parts[0].exclusive)


def count_pixels(answer: Tensor, target: Tensor) -> MaskCounts:
    """Compare answers with masks, image by image.

    Args:
        answer: logits (B, K, H, W). The class with the largest one is answered, or every kind whose probability is
            above 1/2.
        target: as in `objectives.segmentation`: class indices (B, H, W), or kinds (B, K, H, W).
    """
    exclusive = target.ndim == 3
    if exclusive:
        num_classes = answer.shape[1]
        labelled = (target != IGNORE_INDEX)[:, None]  # (B, 1, H, W)
        # a pixel without label gets a class of its own, which is cut off
        true = F.one_hot(target.where(labelled[:, 0], num_classes), num_classes + 1).movedim(-1, 1)[:, :-1].bool()
        found = F.one_hot(answer.argmax(1), num_classes).movedim(-1, 1).bool()  # (B, K, H, W)
    else:
        labelled, true, found = ~target.isnan().any(1, keepdim=True), target == 1, answer > 0
    cells = [true & found, ~true & found, true & ~found, ~true & ~found]
    counts = torch.stack([(cell & labelled).sum((2, 3)) for cell in cells], dim=2)  # (B, K, 4)
    return MaskCounts(counts.where(answer.isfinite().flatten(1).all(1)[:, None, None], -1), exclusive)


def segmentation(masks: MaskCounts) -> dict[str, Any]:
    """Figures of N >= 1 masks.

    Returns:
        pixel_accuracy: share of labelled pixels that are answered rightly, of kinds the mean over them.
        iou_dataset, dice_dataset: TP / (TP + FP + FN) and 2 TP / (2 TP + FP + FN) of each class, from the pixels of all
            images together, mean over the classes. The background has no part in it: it is most of every image, and
            would lift any model's mean. Nor has a class that is neither in the masks nor in the answers.
        iou_image, dice_image: the same of each image alone, mean over images. An image in which no class but the
            background is marked or answered has no such figure, and no part in the mean.
        iou_per_class, dice_per_class: K values from all images together, the background's among them.

        None where a figure is not defined, and every figure where an answer is not finite.
    """
    ones = torch.ones(len(masks.counts), 1, dtype=torch.float64)
    figures: dict[str, Any] = {name: _number(value) for name, value in _of_masks(masks, ones).items()}
    for name, values in _overlap(_finite_counts(masks).sum(0)).items():
        figures[f"{name}_per_class"] = [_number(value) for value in values]
    return figures


def bootstrap(
    groups: Sequence[Hashable], *, level: float = 0.95, **arguments: Any
) -> dict[str, tuple[float, float] | None]:
    """Percentile intervals (Efron 1979) from drawing groups, such as patients, with replacement.

    Images of one patient resemble each other, so that drawing images would make the intervals too narrow (Field &
    Welsh 2007). A resample in which a figure is undefined is left out of that figure's interval.

    Args:
        groups: N names, images of one group share one.
        level: share of the resampled figures inside the interval.
        arguments: the others of `resamples`, which say of what.

    Returns:
        Name to (low, high); None where more than half of the resamples leave the figure undefined, and with a single
        group, which cannot be resampled.
    """
    several = len(set(groups)) > 1
    found = resamples(groups, **arguments)
    return {name: interval(values, level) if several else None for name, values in found.items()}


def resamples(
    groups: Sequence[Hashable],
    *,
    probabilities: Tensor | None = None,
    labels: Tensor | None = None,
    ordinal: bool = False,
    per_image: Mapping[str, Tensor] | None = None,
    masks: MaskCounts | None = None,
    positives: Sequence[int] = (),
    flags: Flags | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return figures (num_resamples,) of groups drawn with replacement, by name, nan where undefined.

    Args:
        groups: N names, images of one group share one.
        probabilities: (N, K), and labels, (N,): as in `classification`; both or neither.
        ordinal: as in `classification`.
        per_image: name to (N,) figures of single images, whose mean is taken.
        masks: counts of N masks, as in `segmentation`.
        positives: as in `classification`. flags: of N images, as in `screening`; the threshold stays fixed.
        num_resamples: how often as many groups as there are get drawn.
        seed: of a generator of its own: the caller's random state is neither read nor moved.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of_row = torch.tensor([numbers[group] for group in groups])  # (N,)
    num_groups, chunk = len(numbers), max(1, _CHUNK // len(groups))
    generator = torch.Generator().manual_seed(seed)
    chunks: list[dict[str, Tensor]] = []
    for start in range(0, num_resamples, chunk):
        drawn = torch.randint(num_groups, (min(chunk, num_resamples - start), num_groups), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(drawn.shape, dtype=torch.float64)
        )
        weights = times.T[group_of_row]
        chunks.append(weighted(weights, probabilities, labels, ordinal, per_image, masks, positives, flags))
    return {name: torch.cat([figures[name] for figures in chunks]) for name in chunks[0]}


def interval(values: Tensor, level: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile interval of resampled figures (R,); None where more than half of them are undefined."""
    known = values[values.isfinite()]
    if 2 * len(known) < len(values):
        return None
    bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = known.quantile(bounds).tolist()
    return low, high


def weighted(
    weights: Tensor,
    probabilities: Tensor | None = None,
    labels: Tensor | None = None,
    ordinal: bool = False,
    per_image: Mapping[str, Tensor] | None = None,
    masks: MaskCounts | None = None,
    positives: Sequence[int] = (),
    flags: Flags | None = None,
) -> dict[str, Tensor]:
    """The figures of `classification`, `segmentation` and `screening`, and means of images', for R weightings at once.

    Args:
        weights: (N, R) float64, how often each image counts; the other arguments are those of `bootstrap`.

    Returns:
        Name to (R,) float64, nan where undefined. With weights of 1 these are the point figures.
    """
    figures: dict[str, Tensor] = {}
    if probabilities is not None and labels is not None:
        num_classes = _check(probabilities, labels)
        cells = labels * num_classes + probabilities.argmax(1)  # (N,)
        confusion = weights.new_zeros(num_classes**2, weights.shape[1]).index_add_(0, cells, weights)
        figures |= _from_confusion(confusion.T.reshape(-1, num_classes, num_classes), ordinal)
        auc = [_weighted_auc(probabilities[:, k], labels == k, weights) for k in range(num_classes)]
        figures["auc"] = torch.stack(auc).nanmean(0)
        if len(positives) > 1:
            scores = positive_scores(probabilities, positives)
            figures["auc_referable"] = _weighted_auc(scores, is_positive(labels, positives), weights)
        if not probabilities.isfinite().all():
            figures = {name: torch.full_like(values, math.nan) for name, values in figures.items()}
    for name, values in (per_image or {}).items():
        figures[name] = (values.double() @ weights) / weights.sum(0)
    figures |= _of_masks(masks, weights) if masks is not None else {}
    return figures | (_of_flags(flags, weights) if flags is not None else {})


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM (B,) for a range of 1.

    Not torchmetrics', which also averages windows that hang over the mirrored border (0.01 to 0.04 more or less for
    images of 11 to 24 px), convolves with the 121 weights of the window (36 ms for an RGB image of 224 px on a core,
    against 6 ms here) and, on a GPU, does so in TF32 by default although moments are then subtracted.
    """
    window = [math.exp(-((at - SSIM_WINDOW_PX // 2) ** 2) / (2 * 1.5**2)) for at in range(SSIM_WINDOW_PX)]
    taps = [weight / sum(window) for weight in window]

    def blur(x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H - 10, W - 10): only windows inside the image
        for dim in (2, 3):
            length = x.shape[dim] - SSIM_WINDOW_PX + 1
            total = taps[0] * x.narrow(dim, 0, length)
            for start, tap in enumerate(taps[1:], start=1):
                total.add_(x.narrow(dim, start, length), alpha=tap)
            x = total
        return x

    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a * a) + blur(b * b) - mean_a.square() - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2, 3))


def _from_confusion(confusion: Tensor, ordinal: bool) -> dict[str, Tensor]:
    """Figures (R,) of confusion matrices (R, K, K); 0/0, so nan, marks a class that has no share in a mean."""
    true, answered = confusion.sum(2), confusion.sum(1)  # (R, K) each
    right, total = confusion.diagonal(dim1=1, dim2=2), confusion.sum((1, 2))  # (R, K), (R,)
    figures = {
        "accuracy": right.sum(1) / total,
        "balanced_accuracy": (right / true).nanmean(1),
        "macro_f1": (2 * right / (true + answered)).nanmean(1),
    }
    if ordinal:
        grade = torch.arange(confusion.shape[1], dtype=confusion.dtype)
        distance = (grade[:, None] - grade).square()  # (K, K)
        observed = (distance * confusion).sum((1, 2))
        by_chance = torch.einsum("ri,ij,rj->r", true, distance, answered) / total
        figures["kappa"] = (1 - observed / by_chance).where((true > 0).sum(1) > 1, math.nan)
    return figures


def _weighted_auc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Chance (R,) that a positive scores above a negative, ties counting half (Hanley & McNeil 1982)."""
    negatives, order = scores[~positive].sort()
    weight_upto = F.pad(weights[~positive][order].cumsum(0), (0, 0, 1, 0))  # (negatives + 1, R)
    below = torch.searchsorted(negatives, scores[positive].contiguous())
    not_above = torch.searchsorted(negatives, scores[positive].contiguous(), right=True)
    won = (weight_upto[below] + weight_upto[not_above]) / 2  # (positives, R)
    weight = weights[positive]
    return (weight * won).sum(0) / (weight.sum(0) * weight_upto[-1])


def _of_flags(flags: Flags, weights: Tensor) -> dict[str, Tensor]:
    """Figures (R,) of `screening` for weights (N, R); nan where undefined."""
    positive, flagged = flags.positive.double(), flags.flagged.double()
    sensitivity = (flagged * positive) @ weights / (positive @ weights)
    specificity = ((1 - flagged) * (1 - positive)) @ weights / ((1 - positive) @ weights)
    return {"sensitivity": sensitivity, "specificity": specificity, "youden": sensitivity + specificity - 1}


def _of_masks(masks: MaskCounts, weights: Tensor) -> dict[str, Tensor]:
    """Figures (R,) of `segmentation` for weights (N, R), without those per class; nan where undefined."""
    counts, scored = _finite_counts(masks), slice(1 if masks.exclusive else 0, None)
    pooled = torch.einsum("nkc,nr->rkc", counts, weights)  # (R, K, 4)
    right = pooled[..., 0] if masks.exclusive else pooled[..., 0] + pooled[..., 3]  # (R, K)
    total = pooled[..., 0] + pooled[..., 2] if masks.exclusive else pooled.sum(2)  # of classes, each pixel has one
    figures = {"pixel_accuracy": right.sum(1) / total.sum(1)}
    for name, values in _overlap(pooled).items():
        figures[f"{name}_dataset"] = values[:, scored].nanmean(1)
    for name, values in _overlap(counts).items():
        of_image = values[:, scored].nanmean(1)  # (N,)
        defined = of_image.isfinite().double()  # none where an answer is not finite, which makes it 0/0
        figures[f"{name}_image"] = (of_image.nan_to_num() @ weights) / (defined @ weights)
    return figures


def _finite_counts(masks: MaskCounts) -> Tensor:
    """Return the counts as float64, all of them nan if an answer is not finite."""
    return masks.counts.double().where((masks.counts >= 0).all(), math.nan)


def _overlap(counts: Tensor) -> dict[str, Tensor]:
    """IoU and Dice (…) of counts (…, 4); nan for a class that is neither in the masks nor in the answers."""
    true_positives, false_positives, false_negatives = counts.double().unbind(-1)[:3]
    errors = false_positives + false_negatives
    return {
        "iou": true_positives / (true_positives + errors),
        "dice": 2 * true_positives / (2 * true_positives + errors),
    }


def _number(value: Tensor) -> float | None:
    return value.item() if value.isfinite() else None


def _check(probabilities: Tensor, labels: Tensor) -> int:
    """Return K; raise `ValueError` for shapes that no figure is defined for."""
    shape = probabilities.shape
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2 or labels.shape != shape[:1]:
        raise ValueError(
            f"probabilities of shape {tuple(shape)} and labels of {tuple(labels.shape)}: figures need "
            "(N, K) and (N,) with N >= 1 images and K >= 2 classes"
        )
    return shape[1]
