"""Does a classifier mean the probabilities that it gives? Calibration errors and the diagram that shows them.

The confidence of an answer is the probability of the class that is answered; a calibrated model that is 80 % confident
is right 80 % of the time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from domainbed.analysis import plots

#: Bins of a diagram and of both errors (Guo et al. 2017, section 2 and their experiments).
NUM_BINS = 15


def figures(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of calibration.

    Args:
        probabilities: (N, K) float, N >= 1. labels: (N,) long.

    Returns:
        confidence: mean probability of the answered class.
        ece: expected calibration error, sum over bins of n_b / N |accuracy_b - confidence_b|, of `NUM_BINS` bins of
            equal width (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599, eq. 3).
        ece_adaptive: the same with bins of equal numbers of images (Nixon et al. 2019, arXiv 1904.01685), which leaves
            no bin empty and none with most of the images.
        brier: mean over images of sum over classes of (p_k - [y = k])^2, from 0 to 2 (Brier 1950).
        nll: mean over images of -log p_y, in nats; a probability of 0 counts as the smallest positive float.
    """
    confidence, answers = probabilities.double().max(1)  # (N,) each
    right = (answers == labels).double()
    one_hot = F.one_hot(labels, probabilities.shape[1])
    p_true = probabilities.gather(1, labels[:, None])[:, 0].clamp_min(torch.finfo(torch.float32).tiny)
    equal_width = [confidence_bin for confidence_bin in of_equal_width(confidence) if len(confidence_bin)]
    equal_mass = [one for one in confidence.argsort(stable=True).tensor_split(NUM_BINS) if len(one)]
    return {
        "confidence": confidence.mean().item(),
        "ece": _error(confidence, right, equal_width),
        "ece_adaptive": _error(confidence, right, equal_mass),
        "brier": (probabilities.double() - one_hot).square().sum(1).mean().item(),
        "nll": -p_true.double().log().mean().item(),
    }


def of_equal_width(confidence: Tensor) -> list[Tensor]:
    """Return the indices of the images in each of `NUM_BINS` bins ((b - 1) / B, b / B] of confidence (N,)."""
    number = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    return [(number == one).nonzero()[:, 0] for one in range(NUM_BINS)]


def _error(confidence: Tensor, right: Tensor, bins: list[Tensor]) -> float:
    gaps = [len(one) * (right[one].mean() - confidence[one].mean()).abs().item() for one in bins]
    return sum(gaps) / len(confidence)


def draw(path: Path, answers: Mapping[str, tuple[Tensor, Tensor]], title: str) -> None:
    """Write the reliability diagrams (DeGroot & Fienberg 1983) of some environments side by side.

    Args:
        answers: name to probabilities (N, K) and labels (N,). title: stands above.
    """
    columns = min(4, len(answers))
    rows = -(-len(answers) // columns)
    figure, axes = plots.new_figure(0.4 + 2.4 * columns, 0.5 + 2.6 * rows, rows, columns, sharex=True, sharey=True)
    panels: Any = np.atleast_1d(axes).ravel()
    for axis, (name, (probabilities, labels)) in zip(panels, answers.items(), strict=False):
        confidence, answered = probabilities.double().max(1)
        right = (answered == labels).double()
        found = [one for one in of_equal_width(confidence) if len(one)]
        x, y = ([values[one].mean().item() for one in found] for values in (confidence, right))
        sizes = [len(one) / len(labels) for one in found]
        axis.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
        axis.vlines(x, x, y, color=plots.COLOURS[1], linewidth=1)  # the gaps that the error adds up
        axis.scatter(x, y, s=[8 + 160 * size for size in sizes], color=plots.COLOURS[0], zorder=2)
        error = figures(probabilities, labels)["ece"]
        axis.set_title(f"{name}\nECE {error:.3f}, n = {len(labels)}", fontsize=9)
        axis.set(xlim=(0, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    for axis in panels[len(answers) :]:
        axis.set_axis_off()
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("share of right answers", fontsize=9)
    figure.suptitle(title, fontsize=10)
    plots.save(figure, path)
