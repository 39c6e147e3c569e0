"""Where a run is wrong, and how wrong: the most wrong answers, the worst reconstructions and masks, by environment.

Every image that is looked at has a line in errors.csv, so that whoever wants another order can sort it. The figures of
an environment are those of `evaluator`; beside them stand calibration (`calibration`) and how much worse the images
are that were left out of training.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domainbed import classification_report, evaluator, metrics
from domainbed.algorithms.base import Predictor, Reconstructor, Segmenter, needs_label, reconstruct_with
from domainbed.analysis import calibration, plots
from domainbed.analysis.opened import OpenedRun
from domainbed.errors import UserError, explain_os_errors
from domainbed.paths import folder_name
from domainbed.reconstructions import mask_panel

#: Figures whose difference between environments is given, and whether more of it is better.
COMPARED = {
    "accuracy": True, "balanced_accuracy": True, "kappa": True, "psnr": True, "ssim": True, "mse": False,
    "dice_image": True,
}  # fmt: skip
#: Share of the errors of the pictured pixels up to which the colours of an error map reach.
TOP_OF_SCALE = 0.995


@dataclass
class Answers:
    """What a model answered for the images of one environment, on the CPU.

    Attributes:
        rows: (N,) of the images. outputs: as `evaluator` has them, without losses.
        dice: (N,) of each image's mask, nan where nothing is marked or answered; None without masks.
    """

    rows: np.ndarray
    outputs: evaluator.Outputs
    dice: Tensor | None

    @property
    def probabilities(self) -> Tensor:
        """(N, K); asked for only where the algorithm predicts."""
        assert self.outputs.probabilities is not None
        return self.outputs.probabilities


def analyse(
    run: OpenedRun, folder: Path, images: str = "held-out", per_environment: int | None = None, num_worst: int = 8
) -> dict[str, Any]:
    """Find the errors of a run on some of its images.

    Args:
        run: opened. folder: for pictures and errors.csv.
        images: one of `analysis.CHOICES`. per_environment: at most so many of each environment; None for all.
        num_worst: images in a picture.

    Returns:
        environments (figures, intervals, calibration and the names of the worst images of each), differences (of what
        was left out of training from the rest), notes, pictures.

    Raises:
        UserError: the algorithm gives no answer that can be wrong; there are no such images; or no matplotlib.
    """
    predicts = isinstance(run.algorithm, Predictor) and len(run.classes) > 1 and not run.algorithm.needs_masks
    reconstructs = isinstance(run.algorithm, Reconstructor)
    segments = isinstance(run.algorithm, Segmenter) and run.images.masks is not None
    if not (predicts or reconstructs or segments):
        raise UserError(
            f"{run.config['algorithm']} neither predicts classes nor reconstructs or segments images, so no answer of "
            "it can be wrong. Look at it with `layers`, or at its samples with `traverse`"
        )
    notes = []
    if reconstructs and needs_label(run.algorithm):
        notes.append("reconstructions are given the true label, because the algorithm can't do without")
    answers = {
        name: answers_for(run, rows, predicts, reconstructs, segments, name)
        for name, rows in run.rows(images, per_environment).items()
    }
    undefined = predicts and not all(one.probabilities.isfinite().all() for one in answers.values())
    if undefined:
        notes.append("some probabilities are not finite: no figures of a classifier, and no calibration")
    if reconstructs:
        errors = torch.cat([one.outputs.per_image["mse"] for one in answers.values()])
        if broken := int((~errors.isfinite()).sum()):
            notes.append(f"reconstructions of {broken} of {len(errors)} images are not finite: no figures of them")
    environments: dict[str, Any] = {}
    for name, one in answers.items():
        environments[name] = {
            "role": run.roles(one.rows),
            "is_target": run.is_target(run.images.environments.index(name)),
            **evaluator.figures(one.outputs, ordinal=run.images.ordinal, intervals=True),
        }
        if predicts and not undefined:
            environments[name]["calibration"] = calibration.figures(one.probabilities, one.outputs.labels)
    worst = {name: worst_of(one, run.images.ordinal, num_worst, undefined) for name, one in answers.items()}
    for name, orders in worst.items():
        environments[name]["worst"] = {
            kind: [_in_words(run, answers[name], index) for index in order] for kind, order in orders.items()
        }
    _write_csv(folder / "errors.csv", run, answers)
    pictures: list[dict[str, str]] = []
    if predicts and not undefined:
        pictures += _draw_calibration(run, folder, answers, environments)
        pictures += _draw_confusions(run, folder, environments)
        pictures += _draw_wrong_answers(run, folder, answers, worst)
    if reconstructs:
        pictures += _draw_reconstructions(run, folder, answers, worst)
    if segments:
        pictures += _draw_masks(run, folder, answers, worst)
    return {
        **run.about, "images_of": images, "classes": run.classes,
        "environments": environments, "differences": differences(run, answers, undefined), "notes": notes,
        "pictures": pictures,
    }  # fmt: skip


def answers_for(
    run: OpenedRun, rows: np.ndarray, predicts: bool, reconstructs: bool, segments: bool, doing: str
) -> Answers:
    """Return what the model answers for images of one environment, and how wrong each answer is."""
    algorithm: Any = run.algorithm
    exclusive: list[bool] = []

    def answer(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with evaluator.computed_once(algorithm):
            if predicts:
                found["probabilities"] = algorithm.predict(x).float().softmax(1)
            if reconstructs:
                found |= metrics.reconstruction(reconstruct_with(algorithm, x, y), x)
            if segments:
                counted = metrics.count_pixels(algorithm.segment(x), y)
                exclusive[:] = [counted.exclusive]
                found["counts"] = counted.counts
        return found

    found = run.compute(rows, answer, doing)
    probabilities, counts = found.pop("probabilities", None), found.pop("counts", None)
    masks = None if counts is None else metrics.MaskCounts(counts, exclusive[0])
    dice = None
    if masks is not None:
        single = [metrics.segmentation(metrics.MaskCounts(one, masks.exclusive)) for one in masks.counts.split(1)]
        dice = torch.tensor([math.nan if one["dice_image"] is None else one["dice_image"] for one in single])
    outputs = evaluator.Outputs(
        labels=torch.from_numpy(run.images.labels[rows]),
        groups=run.images.groups[rows].tolist(),
        probabilities=probabilities,
        per_image=found,
        needs_label=needs_label(algorithm),
        masks=masks,
    )
    return Answers(rows, outputs, dice)


def worst_of(answers: Answers, ordinal: bool, num_worst: int, undefined: bool = False) -> dict[str, list[int]]:
    """Return indices of the worst images, the worst first, by what they are worst at.

    Returns:
        confident: wrong answers by their probability. far: wrong answers by the distance of grades, then by their
        probability; only of ordered classes. reconstruction: by mean squared error. mask: by Dice, without images that
        have none.
    """
    found: dict[str, Tensor] = {}
    if answers.outputs.probabilities is not None and not undefined:
        probability, answer = answers.probabilities.max(1)
        wrong = (answer != answers.outputs.labels).nonzero()[:, 0]
        found["confident"] = wrong[probability[wrong].argsort(descending=True, stable=True)]
        if ordinal:
            distance = (answer - answers.outputs.labels).abs()[found["confident"]]
            found["far"] = found["confident"][distance.argsort(descending=True, stable=True)]
    if "mse" in answers.outputs.per_image:
        found["reconstruction"] = answers.outputs.per_image["mse"].argsort(descending=True, stable=True)
    if answers.dice is not None:
        defined = answers.dice.isfinite().nonzero()[:, 0]
        found["mask"] = defined[answers.dice[defined].argsort(stable=True)]
    return {name: order[:num_worst].tolist() for name, order in found.items()}


def differences(run: OpenedRun, answers: Mapping[str, Answers], undefined: bool = False) -> list[dict[str, Any]]:
    """Return how far the figures of each environment that was left out are from those of the others, pooled.

    The interval is the 95 % percentile interval of the difference, of groups of images drawn with replacement on
    either side by itself (Efron & Tibshirani 1993, chapter 8).

    Returns:
        environment, figure, value, others, difference, interval, and verdict: "worse", "better" or, where the interval
        holds 0 or is undefined, "not told apart".
    """
    targets = [name for name in answers if run.is_target(run.images.environments.index(name))]
    others = [one for name, one in answers.items() if name not in targets]
    if not targets or not others:
        return []
    pooled = _resampled(others, run.images.ordinal, undefined, seed=0)
    found = []
    for number, name in enumerate(targets, start=1):
        of_target = _resampled([answers[name]], run.images.ordinal, undefined, seed=number)
        for figure, more_is_better in COMPARED.items():
            if figure not in of_target or figure not in pooled:
                continue
            (value, drawn), (beside, drawn_beside) = of_target[figure], pooled[figure]
            difference = value - beside
            bounds = None
            if all(len(set(one.outputs.groups)) > 1 for one in (answers[name], *others)):
                bounds = metrics.interval(drawn - drawn_beside)
            verdict = "not told apart"
            if bounds and bounds[0] * bounds[1] > 0:
                verdict = "better" if (difference > 0) == more_is_better else "worse"
            found.append({
                "environment": name, "figure": figure, "value": value, "others": beside, "difference": difference,
                "interval": bounds, "verdict": verdict,
            })  # fmt: skip
    return found


def _resampled(parts: Sequence[Answers], ordinal: bool, undefined: bool, seed: int) -> dict[str, tuple[float, Tensor]]:
    """Return the figures of all images of some environments, and the same of resamples, (R,), by name."""
    outputs = [one.outputs for one in parts]
    groups = [(number, group) for number, one in enumerate(outputs) for group in one.groups]
    probabilities = [one.probabilities for one in outputs if one.probabilities is not None]
    masks = [one.masks for one in outputs if one.masks is not None]
    data: dict[str, Any] = {
        "probabilities": torch.cat(probabilities) if probabilities and not undefined else None,
        "labels": torch.cat([one.labels for one in outputs]),
        "ordinal": ordinal,
        "per_image": {name: torch.cat([one.per_image[name] for one in outputs]) for name in outputs[0].per_image},
        "masks": metrics.MaskCounts.joined(masks) if masks else None,
    }
    drawn = metrics.resamples(groups, seed=seed, **data)
    whole = metrics.weighted(torch.ones(len(groups), 1, dtype=torch.float64), **data)
    return {name: (value.item(), drawn[name]) for name, value in whole.items() if value.isfinite().all()}


def _in_words(run: OpenedRun, answers: Answers, index: int) -> dict[str, Any]:
    """Return what errors.csv says of one image, without what its algorithm can't answer."""
    row, outputs = answers.rows[index], answers.outputs
    environment = int(run.images.environment[row])
    said: dict[str, Any] = {
        "image": str(run.images.names[row]),
        "environment": run.images.environments[environment],
        "split": str(run.images.split[row]),
        "role": run.role(environment, str(run.images.split[row])),
        "group": str(run.images.groups[row]),
    }
    label = int(outputs.labels[index])
    if run.classes and label >= 0:
        said["class"] = run.classes[label]
    if outputs.probabilities is not None:
        probability, answer = answers.probabilities[index].max(0)
        said |= {"answer": run.classes[int(answer)], "probability": probability.item()}
        said |= {"probability_of_class": answers.probabilities[index, label].item(), "right": int(answer) == label}
        if run.images.ordinal:
            said["grade_distance"] = abs(int(answer) - label)
    said |= {name: values[index].item() for name, values in outputs.per_image.items()}
    if answers.dice is not None:
        dice = answers.dice[index].item()
        said["dice"] = dice if math.isfinite(dice) else None
    return said


def _write_csv(path: Path, run: OpenedRun, answers: Mapping[str, Answers]) -> None:
    """Write a line for every image, in the order of the data set."""
    lines = [_in_words(run, one, index) for one in answers.values() for index in range(len(one.rows))]
    with explain_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


def _draw_calibration(
    run: OpenedRun, folder: Path, answers: Mapping[str, Answers], environments: Mapping[str, Any]
) -> list[dict[str, str]]:
    calibration.draw(
        folder / "calibration.png",
        {name: (one.probabilities, one.outputs.labels) for name, one in answers.items()},
        run.title,
    )
    parts = [
        f"{name} {one['calibration']['ece']:.3f} (confidence {one['calibration']['confidence']:.2f}, accuracy "
        f"{one['metrics']['accuracy']:.2f})"
        for name, one in environments.items()
    ]
    return [
        {
            "file": "calibration.png",
            "title": "Does the model mean its probabilities?",
            "caption": f"Share of right answers against confidence, in {calibration.NUM_BINS} bins of equal width; a "
            "larger dot is more images, dots below the dashed line are overconfident. Expected calibration error: "
            f"{'; '.join(parts)}.",
        }
    ]


def _draw_confusions(run: OpenedRun, folder: Path, environments: Mapping[str, Any]) -> list[dict[str, str]]:
    pictures = []
    for name, one in environments.items():
        file = f"confusion_{folder_name(name)}.png"
        title = f"{run.config['algorithm']} · {run.run_name} · {name} ({one['role']})"
        plots.save_image(classification_report.picture(run.classes, one["metrics"]["confusion"], title), folder / file)
        counts = np.array(one["metrics"]["confusion"])
        np.fill_diagonal(counts, 0)
        true, answer = np.unravel_index(counts.argmax(), counts.shape)
        most = (
            f"the most frequent error is {run.classes[answer]} for {run.classes[true]} ({counts.max()} images)"
            if counts.any()
            else "there is no error"
        )
        pictures.append(
            {
                "file": file,
                "title": f"Confusion matrix: {name} ({one['role']})",
                "caption": f"True classes in rows, answers in columns, {one['n']} images: accuracy "
                f"{one['metrics']['accuracy']:.3f}; {most}.",
            }
        )
    return pictures


_KINDS = {
    "confident": "Most confident wrong answers",
    "far": "Wrong answers furthest from the true grade",
}


def _draw_wrong_answers(
    run: OpenedRun, folder: Path, answers: Mapping[str, Answers], worst: Mapping[str, Mapping[str, list[int]]]
) -> list[dict[str, str]]:
    pictures = []
    for name, orders in worst.items():
        said = {index: _in_words(run, answers[name], index) for order in orders.values() for index in order}
        for kind, title in _KINDS.items():
            order = orders.get(kind, [])
            if not order:
                continue
            labels = [
                f"true: {said[one]['class']}\nanswer: {said[one]['answer']}\np = {said[one]['probability']:.2f}"
                for one in order
            ]
            file = f"{kind}_{folder_name(name)}.png"
            heading = f"{run.title} · {name} ({run.roles(answers[name].rows)})"
            _draw_grid(folder / file, [run.pixels(answers[name].rows[order])], [""], labels, heading)
            outputs = answers[name].outputs
            wrong = int((answers[name].probabilities.argmax(1) != outputs.labels).sum())
            first = said[order[0]]
            distance = f", {first['grade_distance']} grades away" if kind == "far" else ""
            pictures.append(
                {
                    "file": file,
                    "title": f"{title}: {name} ({run.roles(answers[name].rows)})",
                    "caption": f"{len(order)} of {wrong} wrong answers for {len(outputs.labels)} images, the worst "
                    f"first: {first['answer']} for {first['class']} with probability {first['probability']:.2f}"
                    f"{distance}.",
                }
            )
    return pictures


def _draw_reconstructions(
    run: OpenedRun, folder: Path, answers: Mapping[str, Answers], worst: Mapping[str, Mapping[str, list[int]]]
) -> list[dict[str, str]]:
    """Draw the worst reconstructions of each environment; the colours of the error maps mean the same in all."""
    drawn = {}
    for name, orders in worst.items():
        rows = answers[name].rows[orders["reconstruction"]]
        made = run.compute(rows, lambda x, y: {"made": reconstruct_with(run.algorithm, x, y)})["made"].clamp(0, 1)
        x = run.pixels(rows)
        drawn[name] = x, made, (x - made).abs().mean(1, keepdim=True)  # the map: (N, 1, H, W), mean over channels
    errors = np.concatenate([one.numpy().ravel() for *_, one in drawn.values()])
    top = max(float(np.quantile(errors, TOP_OF_SCALE)), 1e-6)
    pictures = []
    for name, (x, made, error) in drawn.items():
        per_image, order = answers[name].outputs.per_image, worst[name]["reconstruction"]
        labels = [
            f"{per_image['psnr'][one]:.1f} dB" + (f"\nSSIM {per_image['ssim'][one]:.2f}" if "ssim" in per_image else "")
            for one in order
        ]
        file = f"reconstructions_{folder_name(name)}.png"
        heading = f"{run.title} · {name} ({run.roles(answers[name].rows)})"
        _draw_grid(folder / file, [x, made, error], ["input", "output", "|error|"], labels, heading, top)
        pictures.append(
            {
                "file": file,
                "title": f"Worst reconstructions: {name} ({run.roles(answers[name].rows)})",
                "caption": f"The {len(order)} of {len(per_image['psnr'])} images with the largest mean squared error, "
                f"the worst first ({per_image['psnr'][order[0]]:.1f} dB, mean of all {per_image['psnr'].mean():.1f} "
                f"dB). Error maps: |output - input|, mean over channels, from 0 (dark) to {top:.2f} and more (yellow), "
                "on the same scale for all environments.",
            }
        )
    return pictures


def _draw_masks(
    run: OpenedRun, folder: Path, answers: Mapping[str, Answers], worst: Mapping[str, Mapping[str, list[int]]]
) -> list[dict[str, str]]:
    algorithm: Any = run.algorithm
    pictures = []
    for name, orders in worst.items():
        order, dice = orders["mask"], answers[name].dice
        if not order or dice is None:
            continue
        rows = answers[name].rows[order]
        logits = run.compute(rows, lambda x, y: {"logits": algorithm.segment(x)})["logits"]
        target = run.images.targets(rows, run.images.planes(rows))
        file = f"masks_{folder_name(name)}.png"
        heading = f"{run.title} · {name} ({run.roles(answers[name].rows)})"
        picture = mask_panel(run.pixels(rows), logits, target, run.images.target_classes, heading)
        plots.save_image(picture, folder / file)
        pictures.append(
            {
                "file": file,
                "title": f"Worst masks: {name} ({run.roles(answers[name].rows)})",
                "caption": f"The {len(order)} of {len(dice)} images with the lowest Dice, the worst first "
                f"({dice[order[0]]:.3f}, mean of all {dice.nanmean():.3f}).",
            }
        )
    return pictures


def _draw_grid(
    path: Path,
    tiles: Sequence[Tensor],
    names: Sequence[str],
    labels: Sequence[str],
    title: str,
    top: float | None = None,
) -> None:
    """Write rows of images under each other.

    Args:
        tiles: (N, C, H, W) in [0, 1] for each row; a last one of errors (N, 1, H, W) where there is a `top`.
        names: of the rows. labels: N texts above the columns. top: of the colours of the error maps.
    """
    columns = len(labels)
    figure, axes = plots.new_figure(max(3.0, 0.7 + 1.15 * columns), 0.75 + 1.2 * len(tiles), len(tiles), columns)
    axes = np.asarray(axes, dtype=object).reshape(len(tiles), columns)
    last = None
    for row, (tile, name) in enumerate(zip(tiles, names, strict=True)):
        is_error = top is not None and row == len(tiles) - 1
        for column, image in enumerate(tile):
            axis = axes[row, column]
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
            values = image.movedim(0, -1).numpy() if len(image) == 3 else image[0].numpy()
            options = {"cmap": plots.SEQUENTIAL, "vmin": 0, "vmax": top} if is_error else {"cmap": "gray"}
            last = axis.imshow(values, **({"vmin": 0, "vmax": 1} | options))
            if row == 0:
                axis.set_title(labels[column], fontsize=6.5)
        axes[row, 0].set_ylabel(name, fontsize=8)
    if top is not None:
        bar = figure.colorbar(last, ax=axes[-1].tolist(), fraction=0.02, pad=0.01)
        bar.ax.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=8)
    plots.save(figure, path)
