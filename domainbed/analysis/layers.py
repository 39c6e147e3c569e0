"""What training changed in each layer of a run, and what the layers answer.

Does the loss move, and has it come to rest? Do the weights of each layer change? Which units never answer, or answer
the same whatever the image? What do the layers make of an image, and what did the model make of it before it learnt?

What a layer is says `network`. The loss is read from what the run wrote down; everything else is measured.
"""

import csv
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from domainbed import checkpoint, evaluator, metrics
from domainbed.algorithms.base import (
    Algorithm,
    Reconstructor,
    reconstruct_with,
)
from domainbed.algorithms.stepper import parameters_of
from domainbed.analysis import layer_pictures
from domainbed.analysis.network import HARDLY_MOVED, Layer, measure_units, structure, watching
from domainbed.analysis.opened import OpenedRun
from domainbed.analysis.recorded import RecordedRun
from domainbed.datasets.loaders import in_order
from domainbed.datasets.splits import TRAIN
from domainbed.engine import Engine
from domainbed.errors import UserError, explain_os_errors

#: Differences of means beyond so many standard errors are more than noise.
STANDARD_ERRORS = 3.0
#: Shares of dead or constant units from which they are named.
MANY = 0.5
#: Images of which a gradient is taken: one batch of them must fit into memory.
GRADIENT_IMAGES = 32
RECONSTRUCTIONS = 8


def analyse(
    run: OpenedRun,
    folder: Path,
    images: str = "held-out",
    per_environment: int | None = 64,
    num_images: int = 3,
    max_channels: int = 10,
) -> dict[str, Any]:
    """Look at the layers of a run, at its loss, and at its weights before and after.

    Args:
        run: opened. folder: for the pictures.
        images: one of `analysis.CHOICES`; which images are passed through the model.
        per_environment: at most so many of each environment; None for all.
        num_images: images whose channel maps are drawn, a picture each.
        max_channels: channels of a layer that are drawn, those that vary most.

    Returns:
        structure, loss, layers, environments, findings (in words), notes (what can't be shown), pictures.

    Raises:
        UserError: there are no such images, or no matplotlib.
    """
    notes: list[str] = []
    rows = run.rows(images, per_environment)
    everything = np.concatenate([*rows.values()])
    chosen = spread(rows, RECONSTRUCTIONS)
    before = _before(run, notes)
    layers = structure(run, everything[:1], before.algorithm if before else None)
    measure_units(run, everything, layers)
    found: dict[str, Any] = {
        **run.about,
        "images_of": images,
        "num_images": len(everything),
        "structure": _summary(run, layers),
        "loss": _losses(run, notes),
        "layers": [dataclasses.asdict(layer) for layer in layers],
        "environments": _environments(run, before, rows),
        "without_gradient": _without_gradient(run, before, layers),
        "notes": notes,
    }
    found["findings"] = findings(found, layers)
    _write_csv(folder / "layers.csv", layers)
    pictures = [
        *layer_pictures.plot_losses(run, folder, found["loss"]),
        *layer_pictures.plot_changes(run, folder, layers),
        *layer_pictures.plot_units(run, folder, layers, len(everything)),
        *layer_pictures.draw_before_and_after(run, before, folder, chosen),
        *layer_pictures.draw_maps(run, folder, layers, chosen[:num_images], max_channels),
    ]
    return found | {"pictures": pictures}


def movement(values: Sequence[float]) -> dict[str, Any]:
    """Say whether a series of a loss moves, and whether it has come to rest, judged beside its noise.

    Args:
        values: of a loss, in the order of training.

    Returns:
        first, last: means of the first and of the last tenth of the values.
        decrease: (first - last) / |first|.
        noise: standard deviation of one value, from differences of neighbours in the second half, so that no trend
            enters: sqrt(mean (v[i+1] - v[i])^2 / 2) (von Neumann et al. 1941).
        moves: whether the means of the first and of the last tenth, or of the first and of the last quarter, differ by
            more than `STANDARD_ERRORS` standard errors; None below 8 values. A tenth sees a fall that ends early, a
            quarter a slow one in few values.
        end: "falling", "rising" or "flat": the means of the last two quarters compared in the same way; a move of
            less than 1 % of |first - last| is flat. None below 8 values.
    """
    tenth, quarter = max(1, len(values) // 10), len(values) // 4
    first, last = statistics.fmean(values[:tenth]), statistics.fmean(values[-tenth:])
    found: dict[str, Any] = {"num_values": len(values), "first": first, "last": last, "noise": None, "moves": None}
    found |= {"decrease": (first - last) / abs(first) if first else None, "end": None}
    if len(values) < 8:
        return found
    half = values[len(values) // 2 :]
    noise = math.sqrt(statistics.fmean((b - a) ** 2 for a, b in zip(half, half[1:], strict=False)) / 2)

    def differ(one: Sequence[float], other: Sequence[float]) -> bool:
        error = noise * math.sqrt(2 / len(one))
        return abs(statistics.fmean(one) - statistics.fmean(other)) > STANDARD_ERRORS * error

    before, at_end = values[-2 * quarter : -quarter], values[-quarter:]
    fell = statistics.fmean(before) - statistics.fmean(at_end)
    at_rest = not differ(before, at_end) or abs(fell) <= 0.01 * abs(first - last)
    return found | {
        "noise": noise,
        "moves": differ(values[:tenth], values[-tenth:]) or differ(values[:quarter], at_end),
        "end": "flat" if at_rest else "falling" if fell > 0 else "rising",
    }


def findings(found: Mapping[str, Any], layers: Sequence[Layer]) -> list[str]:
    """Return in words what a reader must know, or that there is nothing of the kind."""
    said = []
    if broken := [layer for layer in layers if layer.not_finite]:
        named = [f"{layer.name} ({layer.not_finite:.0%})" for layer in broken]
        said.append(
            f"NOT FINITE: {listed(named)} answer images with numbers that are not finite: the training has diverged. "
            "Look at another --checkpoint, or train again with a lower lr or with clip_norm=1"
        )
    for name, terms in found["loss"].items():
        loss = terms["movement"]
        if loss["moves"] is False:
            said.append(
                f"{name} does not move beyond its noise of {loss['noise']:.2g} in {loss['num_values']} records: "
                f"{loss['first']:.4g} from step {terms['steps'][0]} on, {loss['last']:.4g} at the end"
            )
        elif name == "total_loss" and loss["end"] in ("falling", "rising"):
            more = (
                "still falls at the end: more steps would go on teaching" if loss["end"] == "falling" else "rises again"
            )
            said.append(f"{name} {more}")
    if still := [layer for layer in layers if layer.hardly_moved]:
        named = [f"{one.name} ({0 if one.change is None else one.change:.2%})" for one in still]
        said.append(f"weights that hardly moved (less than {HARDLY_MOVED:.0%}): {listed(named)}")
    dead = [layer for layer in layers if (layer.dead or 0) >= MANY]
    if dead:
        named = [f"{layer.name} ({layer.dead:.0%})" for layer in dead]
        said.append(f"activations with {MANY:.0%} or more dead units: {listed(named)}")
    constant = [layer for layer in layers if (layer.constant or 0) >= MANY and (layer.dead or 0) < MANY]
    if constant:
        named = [f"{layer.name} ({layer.constant:.0%})" for layer in constant]
        said.append(f"layers of which {MANY:.0%} or more answers every image alike: {listed(named)}")
    for name, one in found["environments"].items():
        after, mean = one["after"].get("psnr"), one.get("psnr_mean_image")
        if after is not None and mean is not None and after <= mean:
            said.append(f"{name}: reconstructions ({after:.2f} dB) are no better than the mean image ({mean:.2f} dB)")
    if said:
        return said
    judged = ["the loss"] * any(one["movement"]["moves"] is not None for one in found["loss"].values())
    judged += ["the change of the weights"] * any(layer.norms is not None for layer in layers)
    judged += ["the units"] * any(layer.constant is not None for layer in layers)
    return [f"no fault found in {', '.join(judged)}"] if judged else []


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return names side by side, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def spread(rows: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Return some rows, of every environment in turn, from all over it."""
    per_environment = -(-count // len(rows))
    picked = [
        of_one[np.linspace(0, len(of_one) - 1, min(len(of_one), per_environment)).astype(int)]
        for of_one in rows.values()
    ]
    turns = [one[turn] for turn in range(per_environment) for one in picked if turn < len(one)]
    return np.array(turns[:count])


def _before(run: OpenedRun, notes: list[str]) -> OpenedRun | None:
    """Return the run with the weights of its checkpoint `init`, or None, and say why."""
    if "folder" not in run.meta or run.checkpoint == "init":
        notes.append(
            "no comparison with the weights before training: "
            + ("these are they" if run.checkpoint == "init" else "an exported model has no checkpoint `init`")
        )
        return None
    try:
        algorithm, _, meta = checkpoint.load_with_meta(run.path, run.target, run.meta["seed"], "init")
    except UserError as error:
        notes.append(f"no comparison with the weights before training: {error}")
        return None
    engine = Engine(run.engine.device.type, run.engine.precision)
    engine.prepare(algorithm)
    return dataclasses.replace(run, algorithm=algorithm, engine=engine, meta=meta, checkpoint="init")


def _summary(run: OpenedRun, layers: Sequence[Layer]) -> dict[str, Any]:
    """Counts of weights, optimiser, length of the training and all other settings of a run."""
    config, name = run.config, run.config["algorithm"]
    hparams = dict(config["algorithms"][name])
    sources = [run.images.environments.index(one) for one in run.meta["sources"] if one in run.images.environments]
    train = sum(len(run.images.select(one, TRAIN)) for one in sources)
    batch = hparams["batch_size"] * len(run.meta["sources"])
    used = {key: value for key, value in hparams.items() if key not in run.algorithm.hparams.idle()}
    of_all = Algorithm.HParams.model_fields.keys()
    optimizers = {
        key: f"{type(one).__name__}, {sum(p.numel() for p in parameters_of(one)):,} weights"
        for key, one in run.algorithm.optimizers().items()
    }
    return {
        "algorithm": name,
        "input_shape": list(run.meta["input_shape"]),
        "dataset": config["dataset"],
        "layers": len(layers),
        "parameters": sum(one.numel() for one in run.algorithm.parameters()),
        "trainable": sum(one.numel() for one in run.algorithm.parameters() if one.requires_grad),
        "optimizers": optimizers,
        "training": {key: value for key, value in used.items() if key in of_all},
        "settings": {key: value for key, value in used.items() if key not in of_all},
        "data": config["datasets"][config["dataset"]],
        "steps": run.meta["step"],
        "steps_asked": config["steps"],
        "batch": batch,
        "train_images": train,
        "epochs": run.meta["step"] * batch / train if train else None,
    }


def _losses(run: OpenedRun, notes: list[str]) -> dict[str, Any]:
    """Return for every term of the loss its movement, its values in training and those of held-out images."""
    if "folder" not in run.meta:
        notes.append("no losses over training: an exported model has no records")
        return {}
    try:
        recorded = RecordedRun.read(run.path)
    except UserError as error:
        notes.append(f"no losses over training: {error}")
        return {}
    training = recorded.of("train", run.target, run.meta["seed"])
    evaluations = recorded.of("eval", run.target, run.meta["seed"])
    terms = [key for key in (training[0] if training else ()) if key.endswith("_loss")]
    found: dict[str, Any] = {}
    for term in terms:
        values = [(one["step"], one[term]) for one in training if one.get(term) is not None]
        if not values:
            continue
        held_out: dict[str, Any] = {}
        for one in evaluations:
            if one["metrics"].get(term) is not None:
                held_out.setdefault(f"{one['environment']} ({one['role']})", []).append(
                    [one["step"], one["metrics"][term]]
                )
        steps, series = zip(*values, strict=True)
        found[term] = {"movement": movement(series), "steps": steps, "values": series, "held_out": held_out}
    if not found:
        notes.append("no losses over training: none was recorded yet")
    return found


def _environments(run: OpenedRun, before: OpenedRun | None, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the figures of each environment's images with the weights before and after, and of trivial answers."""
    sources = [run.images.environments.index(one) for one in run.meta["sources"] if one in run.images.environments]
    train = np.concatenate([run.images.select(one, TRAIN) for one in sources]) if sources else np.empty(0, np.int64)
    mean = None
    if isinstance(run.algorithm, Reconstructor) and len(train):
        batches = in_order(run.images, train, int(run.config["eval_batch_size"]))
        of_all = ((x.float() / 255, torch.zeros(len(x), dtype=torch.long)) for x, _ in batches)
        mean = evaluator.mean_images(of_all, 1)[0]  # (C, H, W)
    found = {}
    for name, of_one in rows.items():
        one: dict[str, Any] = {
            "role": run.roles(of_one),
            "n": len(of_one),
            "before": _figures(before, of_one) if before else {},
            "after": _figures(run, of_one),
        }
        if mean is not None:
            trivial = run.compute(of_one, lambda x, y: _of_trivial_answers(x, mean.to(x.device)))
            one |= {key: values.mean().item() for key, values in trivial.items()}
        found[name] = one
    return found


def _of_trivial_answers(x: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Return (B,) each: the PSNR in dB of the mean image (C, H, W) and of black for x (B, C, H, W), and x's mean."""
    return {
        "psnr_mean_image": metrics.reconstruction(mean.expand_as(x), x)["psnr"],
        "psnr_black": metrics.reconstruction(torch.zeros_like(x), x)["psnr"],
        "brightness_images": x.mean((1, 2, 3)),
    }


def _figures(run: OpenedRun, rows: np.ndarray) -> dict[str, Any]:
    size = int(run.config["eval_batch_size"])
    outputs = evaluator.evaluate_rows(run.algorithm, run.engine, run.images, rows, size)
    found = evaluator.figures(outputs, ordinal=run.images.ordinal, intervals=False)["metrics"]
    if isinstance(run.algorithm, Reconstructor):
        made = run.compute(
            rows, lambda x, y: {"brightness": reconstruct_with(run.algorithm, x, y).float().mean((1, 2, 3))}
        )
        found["brightness"] = made["brightness"].mean().item()
    return found


def _without_gradient(run: OpenedRun, before: OpenedRun | None, layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the share of values of the last layer with weights to which the loss of training images sends no gradient.

    Where it is 1 before training, nothing can be learnt.
    """
    last = [layer.name for layer in layers if layer.trainable and layer.is_answer]
    try:
        rows = run.rows("train", GRADIENT_IMAGES)
    except UserError:
        return {}
    if not last:
        return {}
    chosen = spread(rows, GRADIENT_IMAGES)
    found: dict[str, Any] = {"layer": last[-1]}
    for when, one in (("before", before), ("after", run)):
        if one is not None:
            found[when] = _share_without_gradient(one, chosen, last[-1])
    return found


def _share_without_gradient(run: OpenedRun, rows: np.ndarray, name: str) -> float | None:
    outputs: list[Tensor] = []

    def keep(layer: str, module: nn.Module, output: Tensor) -> None:
        if layer == name and output.requires_grad:
            output.retain_grad()
            outputs.append(output)

    def share(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        outputs.clear()
        with torch.enable_grad(), watching(run.algorithm, keep):
            losses = run.algorithm.evaluation_terms(x, y)
            losses["loss"].backward()
        run.algorithm.zero_grad(set_to_none=True)
        gradients = [one.grad for one in outputs if one.grad is not None]
        return {"zero": (gradients[0] == 0).float().flatten(1).mean(1)} if gradients else {}

    found = run.compute(rows, share)
    return found["zero"].mean().item() if found else None


def _write_csv(path: Path, layers: Sequence[Layer]) -> None:
    """Write every layer, whole, one a line."""
    columns = ["layer", "kind", "output", "parameters", "trainable", "norm_init", "norm_change", "change", "dead",
               "constant", "not_finite"]  # fmt: skip
    with explain_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for one in layers:
                shape = " x ".join(map(str, one.shape))
                norms = one.norms or (None, None)
                writer.writerow(
                    [one.name, one.kind, shape, one.parameters, one.trainable, *norms, one.change, one.dead,
                     one.constant, one.not_finite]
                )  # fmt: skip
