"""What training changed in each layer of a run, and what the layers answer.

Does the loss move, and has it come to rest? Do the weights of each layer change? Which units never answer, or answer
the same whatever the image? What do the layers make of an image, and what did the model make of it before it learnt?

Layers are the modules that are called (a convolution, a norm, an activation). What a forward method computes by itself,
such as `torch.tanh(x)`, is no layer here. The loss is read from what the run wrote down; everything else is measured.
"""

import csv
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainbed import checkpoint, evaluator, metrics
from domainbed.algorithms.base import (
    Algorithm,
    Encoder,
    Predictor,
    Reconstructor,
    Segmenter,
    parameters_of,
    reconstruct_with,
)
from domainbed.analysis import plots
from domainbed.analysis.extras import require
from domainbed.analysis.opened import OpenedRun
from domainbed.analysis.recorded import RecordedRun
from domainbed.datasets.splits import TRAIN
from domainbed.engine import Engine
from domainbed.errors import UserError, explain_os_errors
from domainbed.reconstructions import mask_panel, sheet

#: A weight matrix that changed by a smaller share of its norm has hardly moved: the Adadelta run of docs/results.md,
#: which learnt nothing, lies at 0.3 to 0.5 %, those that learnt something at 8 % and more. Scales of a norm begin at 1
#: and move less in healthy runs, too, so of them only those that did not move at all are named.
HARDLY_MOVED = 0.01
#: A unit is constant where images explain a smaller share than this, squared, of what varies in its layer.
CONSTANT = 0.01
#: Differences of means beyond so many standard errors are more than noise.
STANDARD_ERRORS = 3.0
#: Activations that are 0 or nearly so for every negative input, so that a unit below 0 everywhere says nothing.
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)
#: Shares of dead or constant units from which they are named.
MANY = 0.5
#: Rows of the table and of the plots, and of a sheet of channel maps; deeper networks are shown by block.
MAX_ROWS, MAX_MAPS = 60, 24
#: Images of which a gradient is taken: one batch of them must fit into memory.
GRADIENT_IMAGES = 32
RECONSTRUCTIONS = 8
TILE_PX = 96


@dataclass
class Layer:
    """One layer, as one image passes it.

    Attributes:
        name: of the module. kind: its class and sizes, in words.
        shape: of the output for one image; empty where no image passes it.
        parameters: numbers that belong to the layer itself. trainable: whether a gradient moves any of them. matrix:
            whether a matrix or kernel is among them.
        change: |now - init| / |init| of all of them, of buffers where there are no parameters; None without any, or
            where they all began at 0.
        norms: |init| and |now - init|.
        dead: share of the units that are never above 0, of rectifiers; None for other layers.
        constant: share of the units that are the same for every image; None where no image passes.
        is_answer: whether an image passes it on the way to an answer without noise.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    parameters: int = 0
    trainable: bool = False
    matrix: bool = False
    change: float | None = None
    norms: tuple[float, float] | None = None
    dead: float | None = None
    constant: float | None = None
    is_answer: bool = False

    @property
    def hardly_moved(self) -> bool:
        """Whether training left its weights where they were."""
        if not self.trainable or self.norms is None:
            return False
        return self.norms[1] == 0 or (self.matrix and self.change is not None and self.change < HARDLY_MOVED)


def analyse(
    run: OpenedRun,
    folder: Path,
    images_of: str = "held-out",
    per_environment: int | None = 64,
    num_images: int = 3,
    max_channels: int = 10,
) -> dict[str, Any]:
    """Look at the layers of a run, at its loss, and at its weights before and after.

    Args:
        run: opened. folder: for the pictures.
        images_of: one of `opened.CHOICES`; which images are passed through the model.
        per_environment: at most so many of each environment; None for all.
        num_images: images whose channel maps are drawn, a picture each.
        max_channels: channels of a layer that are drawn, those that vary most.

    Returns:
        structure, loss, layers, environments, findings (in words), notes (what can't be shown), pictures.

    Raises:
        UserError: there are no such images, or no matplotlib.
    """
    notes: list[str] = []
    rows = run.rows(images_of, per_environment)
    everything = np.concatenate([*rows.values()])
    chosen = spread(rows, RECONSTRUCTIONS)
    before = _before(run, notes)
    layers = structure(run, everything[:1], before.algorithm if before else None)
    measure_units(run, everything, layers)
    found: dict[str, Any] = {
        "run": str(run.path),
        "title": run.title,
        "images_of": images_of,
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
        *_plot_losses(run, folder, found["loss"]),
        *_plot_changes(run, folder, layers),
        *_plot_units(run, folder, layers, len(everything)),
        *_draw_before_and_after(run, before, folder, chosen),
        *_draw_maps(run, folder, layers, chosen[:num_images], max_channels),
    ]
    return found | {"pictures": pictures}


def answers(algorithm: Algorithm, x: Tensor, y: Tensor) -> None:
    """Do what an algorithm can do with images, without noise, so that its layers are passed."""
    if isinstance(algorithm, Reconstructor):
        reconstruct_with(algorithm, x, y)
    elif isinstance(algorithm, Encoder):
        algorithm.encode(x)
    if isinstance(algorithm, Predictor):
        algorithm.predict(x)
    if isinstance(algorithm, Segmenter):
        algorithm.segment(x)


Keep = Callable[[str, nn.Module, Tensor], None]


@contextmanager
def watching(algorithm: nn.Module, keep: Keep) -> Iterator[None]:
    """Call keep(name, module, output) whenever a layer is passed for the first time in here."""
    seen: set[str] = set()

    def visit(name: str, module: nn.Module, output: Any) -> None:
        if name not in seen and isinstance(first := _first_tensor(output), Tensor):
            seen.add(name)
            keep(name, module, first)

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: visit(name, module, output))
        for name, module in algorithm.named_modules()
        if is_layer(module)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer: a leaf that does something, or one with parameters of its own."""
    if isinstance(module, nn.Identity | nn.Dropout):
        return False
    return not any(module.children()) or bool(_own(module))


def structure(run: OpenedRun, rows: np.ndarray, before: Algorithm | None) -> list[Layer]:
    """Return the layers in the order in which the loss passes them, then those that it does not need.

    Args:
        rows: (1,) of an image. before: the algorithm of the checkpoint `init`, or None.
    """
    algorithm = run.algorithm
    shapes: dict[str, tuple[int, ...]] = {}
    answering: set[str] = set()

    def shape(name: str, module: nn.Module, output: Tensor) -> None:
        shapes.setdefault(name, tuple(output.shape[1:]))

    def passed(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        with watching(algorithm, shape):  # first for the order: a codebook lies between encoder and decoder
            algorithm.losses([(x, y)])
        with watching(algorithm, lambda name, module, output: (shape(name, module, output), answering.add(name))[0]):
            answers(algorithm, x, y)
        return {}

    run.compute(rows, passed)
    modules = dict(algorithm.named_modules())
    began = dict(before.named_modules()) if before is not None else {}
    unpassed = [name for name, module in modules.items() if name not in shapes and _own(module)]
    layers = []
    for name in [*shapes, *unpassed]:
        module = modules[name]
        own = _own(module)
        layer = Layer(
            name or "(itself)",
            describe(module),
            shapes.get(name, ()),
            parameters=sum(one.numel() for one in own),
            trainable=any(one.requires_grad for one in own),
            matrix=any(one.ndim > 1 for one in own),
            is_answer=name in answering,
        )
        if name in began:
            _set_change(layer, module, began[name])
        moves_by_itself = not own and bool(layer.norms and layer.norms[1])  # such as a codebook of averages
        if name in answering or own or moves_by_itself:
            layers.append(layer)
    return layers


def describe(module: nn.Module) -> str:
    """Return what a layer is, such as "Conv2d 16 > 32, 4 x 4, stride 2"."""
    name = type(module).__name__
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        kernel = " x ".join(map(str, module.kernel_size))
        stride = "" if set(module.stride) == {1} else f", stride {module.stride[0]}"
        return f"{name} {module.in_channels} > {module.out_channels}, {kernel}{stride}"
    if isinstance(module, nn.Linear):
        return f"{name} {module.in_features} > {module.out_features}"
    return name


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _numbers(module: nn.Module) -> Tensor | None:
    """Return the parameters of a layer itself, or else its floating buffers, as one float64 vector."""
    own: list[Tensor] = list(_own(module)) or [b for b in module.buffers(recurse=False) if b.is_floating_point()]
    return torch.cat([one.detach().double().cpu().flatten() for one in own]) if own else None


def _set_change(layer: Layer, module: nn.Module, began: nn.Module) -> None:
    now, start = _numbers(module), _numbers(began)
    if now is None or start is None or now.shape != start.shape:
        return
    layer.norms = (start.norm().item(), (now - start).norm().item())
    layer.change = layer.norms[1] / layer.norms[0] if layer.norms[0] else None


def measure_units(run: OpenedRun, rows: np.ndarray, layers: list[Layer]) -> None:
    """Set the share of dead and of constant units of every layer, over some images.

    A unit is a channel of a map, or a number of a vector. Its variance over images is taken at each place and averaged
    over places, so that what draws the same pattern for every image is constant.
    """
    units: dict[str, _Units] = {}

    def passed(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        width: list[int | None] = [None]

        def keep(name: str, module: nn.Module, output: Tensor) -> None:
            width[0] = _width(module) or width[0]
            if output.ndim > 1 and output.is_floating_point():
                values = by_unit(output.detach().float(), width[0])
                units.setdefault(name, _Units(values[:1])).add(values)

        with watching(run.algorithm, keep):
            answers(run.algorithm, x, y)
        return {}

    run.compute(rows, passed, "layers")
    modules = dict(run.algorithm.named_modules())
    for layer in layers:
        if layer.name in units and len(rows) > 1:
            found = units[layer.name]
            layer.constant = found.constant().float().mean().item()
            if isinstance(modules[layer.name], RECTIFIERS):
                layer.dead = (found.highest <= 0).float().mean().item()


class _Units:
    """Largest value, and variance over images, of the units of one layer; sums are of differences from one image."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference.clone()  # (1, U, P)
        self.sum, self.squares = torch.zeros_like(self.reference[0]), torch.zeros_like(self.reference[0])
        self.highest = torch.full_like(self.sum[:, 0], -math.inf)  # (U,)
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Take the answers (B, U, P) to some images."""
        difference = values - self.reference
        self.sum += difference.sum(0)
        self.squares += difference.square().sum(0)
        self.highest = self.highest.maximum(values.amax((0, 2)))
        self.count += len(values)

    def constant(self) -> Tensor:
        """Return (U,) bool: whether images explain next to nothing of what varies over images, units and places."""
        mean = self.sum / self.count
        over_images = (self.squares / self.count - mean.square()).clamp(min=0)  # (U, P)
        in_layer = over_images.mean() + (self.reference[0] + mean).var(unbiased=False)
        return over_images.mean(1) <= CONSTANT**2 * in_layer


def _width(module: nn.Module) -> int | None:
    """Return the number of units that a layer with weights gives, None for one without."""
    weight = getattr(module, "weight", None)
    return getattr(module, "out_channels", None) or (weight.shape[0] if isinstance(weight, Tensor) else None)


def by_unit(output: Tensor, width: int | None = None) -> Tensor:
    """Return (B, U, P), units and their places, for the output of a layer.

    Args:
        output: (B, U), (B, U, H, W), or with the units last, (B, T, U) or (B, H, W, U), as transformers have them.
        width: U of the layer with weights that was passed last; it tells the two apart.
    """
    first, last = output.shape[1], output.shape[-1]
    units_last = output.ndim == 3 if width is None else last == width != first or (output.ndim == 3 and first != width)
    if output.ndim > 2 and units_last:
        output = output.movedim(-1, 1)
    return output.reshape(len(output), output.shape[1], -1)


def movement(values: Sequence[float]) -> dict[str, Any]:
    """Say whether a series of a loss moves, and whether it has come to rest, judged beside its noise.

    Args:
        values: of a loss, in the order of training.

    Returns:
        first, last: means of the first and of the last tenth of the values.
        decrease: (first - last) / |first|.
        noise: standard deviation of one value, from differences of neighbours in the second half, so that no trend
            enters: sqrt(mean (v[i+1] - v[i])^2 / 2) (von Neumann et al. 1941).
        moves: whether first and last differ by more than `STANDARD_ERRORS` standard errors; None below 8 values.
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
    fell = statistics.fmean(values[-2 * quarter : -quarter]) - statistics.fmean(values[-quarter:])
    at_rest = abs(fell) <= max(STANDARD_ERRORS * noise * math.sqrt(2 / quarter), 0.01 * abs(first - last))
    return found | {
        "noise": noise,
        "moves": abs(first - last) > STANDARD_ERRORS * noise * math.sqrt(2 / tenth),
        "end": "flat" if at_rest else "falling" if fell > 0 else "rising",
    }


def findings(found: Mapping[str, Any], layers: Sequence[Layer]) -> list[str]:
    """Return in words what a reader must know, or that there is nothing of the kind."""
    said = []
    for name, terms in found["loss"].items():
        loss = terms["movement"]
        if loss["moves"] is False:
            said.append(
                f"{name} does not move beyond its noise of {loss['noise']:.2g}: {loss['first']:.4g} at the start, "
                f"{loss['last']:.4g} at the end"
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
    return said or [
        "no fault found: the loss moves, the weights of every layer changed, few units are dead or constant"
    ]


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return names side by side, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def by_block(layers: Sequence[Layer], most: int = MAX_ROWS) -> list[tuple[str, list[Layer]]]:
    """Return layers by name or, where they are too many for a table, by block: the first parts of their names.

    As many parts are taken as give at most `most` blocks.
    """
    deepest = max(layer.name.count(".") for layer in layers) + 1
    for parts in range(deepest, 0, -1):
        blocks: dict[str, list[Layer]] = {}
        for layer in layers:
            blocks.setdefault(".".join(layer.name.split(".")[:parts]), []).append(layer)
        if len(blocks) <= most:
            break
    return list(blocks.items())


def change_of(layers: Sequence[Layer]) -> float | None:
    """Return the relative change of the weights of several layers together."""
    norms = [layer.norms for layer in layers if layer.norms is not None and layer.parameters]
    start, moved = (math.hypot(*(one[index] for one in norms)) for index in (0, 1))
    return moved / start if start else None


def spread(rows: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Return some rows, of every environment in turn, from all over it."""
    per_environment = -(-count // len(rows))
    picked = [
        of_one[np.linspace(0, len(of_one) - 1, min(len(of_one), per_environment)).astype(int)]
        for of_one in rows.values()
    ]
    turns = [one[turn] for turn in range(per_environment) for one in picked if turn < len(one)]
    return np.array(turns[:count])


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    inside = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((found for one in inside if (found := _first_tensor(one)) is not None), None)


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
    of_all = Algorithm.HParams.model_fields.keys() & hparams.keys()
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
        "training": {key: hparams[key] for key in Algorithm.HParams.model_fields if key in of_all},
        "settings": {key: value for key, value in hparams.items() if key not in of_all},
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
    recorded = RecordedRun.read(run.path)
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
    train = [run.images.select(one, TRAIN) for one in sources]
    mean = None
    if isinstance(run.algorithm, Reconstructor) and sum(map(len, train)):
        mean = torch.stack([run.pixels(part).mean(0) * len(part) for one in train for part in [one] if len(part)])
        mean = mean.sum(0) / sum(map(len, train))  # (C, H, W)
    found = {}
    for name, of_one in rows.items():
        environment = run.images.environments.index(name)
        one: dict[str, Any] = {
            "role": "left out of training" if run.is_target(environment) else "of the training's environments",
            "n": len(of_one),
            "before": _figures(before, of_one) if before else {},
            "after": _figures(run, of_one),
        }
        if mean is not None:
            x = run.pixels(of_one)
            one["psnr_mean_image"] = metrics.reconstruction(mean.expand_as(x), x)["psnr"].mean().item()
            one["psnr_black"] = metrics.reconstruction(torch.zeros_like(x), x)["psnr"].mean().item()
            one["brightness_images"] = x.mean().item()
        found[name] = one
    return found


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
            losses = run.algorithm.losses([(x, y)])
            losses["loss"].backward()
        run.algorithm.zero_grad(set_to_none=True)
        gradients = [one.grad for one in outputs if one.grad is not None]
        return {"zero": (gradients[0] == 0).float().flatten(1).mean(1)} if gradients else {}

    found = run.compute(rows, share)
    return found["zero"].mean().item() if found else None


def _write_csv(path: Path, layers: Sequence[Layer]) -> None:
    """Write every layer, whole, one a line."""
    columns = ["layer", "kind", "output", "parameters", "trainable", "norm_init", "norm_change", "change", "dead",
               "constant"]  # fmt: skip
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
                     one.constant]
                )  # fmt: skip


def _plot_losses(run: OpenedRun, folder: Path, losses: Mapping[str, Any]) -> list[dict[str, str]]:
    if not losses:
        return []
    figure, axes = plots.new_figure(4.2 * len(losses), 3.2, 1, len(losses))
    for (term, one), axis in zip(losses.items(), np.atleast_1d(axes).ravel(), strict=True):
        axis.plot(one["steps"], one["values"], color="#999999", linewidth=1, label="training batches")
        for index, (name, points) in enumerate(one["held_out"].items()):
            steps, values = zip(*points, strict=True)
            axis.plot(
                steps, values, color=plots.colour(index), marker=plots.marker(index), markersize=4,
                label=f"held out: {name}",
            )  # fmt: skip
        axis.set(title=term, xlabel="step")
        axis.axvline(run.meta["step"], color="#bbbbbb", linestyle=":", linewidth=1)
    np.atleast_1d(axes).ravel()[0].legend(fontsize=7)
    plots.save(figure, folder / "loss.png")
    parts = []
    for term, one in losses.items():
        moved = one["movement"]
        share = "" if moved["decrease"] is None else f" ({-moved['decrease']:+.1%})"
        verdict = {None: "too few records to judge", True: "more than its noise", False: "within its noise"}
        at_end = "" if moved["end"] is None else f", {moved['end']} at the end"
        parts.append(
            f"{term} goes from {moved['first']:.4g} to {moved['last']:.4g}{share}, {verdict[moved['moves']]}{at_end}"
        )
    return [
        {
            "file": "loss.png",
            "title": "Does the loss move?",
            "caption": f"{'; '.join(parts)}. The dotted line is the step of these weights.",
        }
    ]


def _plot_changes(run: OpenedRun, folder: Path, layers: Sequence[Layer]) -> list[dict[str, str]]:
    trained = [layer for layer in layers if layer.trainable and layer.change is not None]
    if not trained:
        return []
    blocks = by_block(trained)
    values = [100 * (change_of(members) or 0.0) for _, members in blocks]
    figure, axis = plots.new_figure(6.5, 1.1 + 0.19 * len(blocks))
    colours = [plots.COLOURS[any(one.hardly_moved for one in members)] for _, members in blocks]
    axis.barh(range(len(blocks)), values, color=colours, height=0.75)
    axis.set_yticks(range(len(blocks)), [name for name, _ in blocks], fontsize=7)
    axis.set(xlabel="change of the weights, % of their norm before training", title=run.title)
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    plots.save(figure, folder / "change.png")
    least = min(trained, key=lambda layer: layer.change or 0.0)
    most = max(trained, key=lambda layer: layer.change or 0.0)
    still = sum(layer.hardly_moved for layer in trained)
    return [
        {
            "file": "change.png",
            "title": "Do the weights change?",
            "caption": f"|after - before| / |before| of the weights, by {_what(blocks, trained)}: from "
            f"{least.change:.2%} ({least.name}) to {most.change:.1%} ({most.name}). {still} of {len(trained)} "
            f"layers hardly moved{' (orange)' if still else ''}: a weight matrix by less than {HARDLY_MOVED:.0%}, or "
            "the scales of a norm not at all.",
        }
    ]


def _plot_units(run: OpenedRun, folder: Path, layers: Sequence[Layer], num_images: int) -> list[dict[str, str]]:
    measured = [layer for layer in layers if layer.constant is not None]
    shown = [layer for layer in measured if layer.constant or layer.dead]
    if not shown:
        return []
    blocks = by_block(shown)
    worst = [
        (max(one.dead or 0.0 for one in members), max(one.constant or 0.0 for one in members)) for _, members in blocks
    ]
    figure, axis = plots.new_figure(6.5, 1.3 + 0.19 * len(blocks))
    places = np.arange(len(blocks))
    axis.barh(places - 0.2, [100 * dead for dead, _ in worst], height=0.38, color=plots.COLOURS[1], label="never > 0")
    axis.barh(
        places + 0.2, [100 * constant for _, constant in worst], height=0.38, color=plots.COLOURS[5],
        label="the same for every image",
    )  # fmt: skip
    axis.set_yticks(places, [name for name, _ in blocks], fontsize=7)
    axis.set(xlabel="% of the layer's units", title=run.title, xlim=(0, 100))
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(fontsize=7, loc="lower right", frameon=True, framealpha=0.9)
    plots.save(figure, folder / "units.png")
    rectifiers = [layer for layer in shown if layer.dead is not None]
    dead = max(rectifiers, key=lambda layer: layer.dead or 0.0, default=None)
    constant = max(shown, key=lambda layer: layer.constant or 0.0)
    about_dead = f"at most {dead.dead:.1%} never answer ({dead.name}); " if dead else ""
    return [
        {
            "file": "units.png",
            "title": "Units that say nothing",
            "caption": f"Share of the units of each {_what(blocks, shown, 'layer (of a block the worst)')} over "
            f"{num_images} images: {about_dead}at most {constant.constant:.1%} are the same for every image "
            f"({constant.name}). The other {len(measured) - len(shown)} of {len(measured)} layers have none of either.",
        }
    ]


def _what(blocks: Sequence[Any], layers: Sequence[Layer], otherwise: str = "block of layers") -> str:
    return "layer" if len(blocks) == len(layers) else otherwise


def _draw_before_and_after(
    run: OpenedRun, before: OpenedRun | None, folder: Path, rows: np.ndarray
) -> list[dict[str, str]]:
    """Draw what the model makes of the same images with the weights before and after."""
    x, path = run.pixels(rows), folder / "before_and_after.png"
    segments = isinstance(run.algorithm, Segmenter) and run.images.masks is not None
    if before is None or not (segments or isinstance(run.algorithm, Reconstructor)):
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [run.images.environments[run.images.environment[row]] for row in rows]
    if segments:
        logits = [_segmented(one, rows) for one in (before, run)]
        target = run.images.targets(rows, run.images.planes(rows))
        for when, answer in zip(("before", "after"), logits, strict=True):
            title = f"{run.title} · {when} training"
            mask_panel(x, answer, target, run.images.target_classes, title).save(folder / f"masks_{when}.png")
        dice = [metrics.segmentation(metrics.count_pixels(one, target))["dice_dataset"] or 0.0 for one in logits]
        return [
            {
                "file": f"masks_{when}.png",
                "title": f"Masks {when} training",
                "caption": f"The same {len(rows)} images, their true masks and the answers {when} training: Dice over "
                f"all their pixels {value:.3f}.",
            }
            for when, value in zip(("before", "after"), dice, strict=True)
        ]
    made = [
        one.compute(rows, lambda x, y, one=one: {"made": reconstruct_with(one.algorithm, x, y)})["made"].clamp(0, 1)
        for one in (before, run)
    ]
    tiles = {"input": x, "before training": made[0], "after": made[1]}
    sheet(tiles, names, f"{run.title} · before and after training").save(path)
    psnr = [metrics.reconstruction(one, x)["psnr"].mean().item() for one in made]
    return [
        {
            "file": path.name,
            "title": "Reconstructions before and after training",
            "caption": f"The same {len(rows)} images with the first weights and with these: PSNR {psnr[0]:.2f} dB "
            f"before, {psnr[1]:.2f} dB after.",
        }
    ]


def _segmented(run: OpenedRun, rows: np.ndarray) -> Tensor:
    algorithm: Any = run.algorithm
    return run.compute(rows, lambda x, y: {"logits": algorithm.segment(x)})["logits"]


def _draw_maps(
    run: OpenedRun, folder: Path, layers: Sequence[Layer], rows: np.ndarray, max_channels: int
) -> list[dict[str, str]]:
    """Draw the channel maps of each stage for some images, a picture each."""
    shown = stages(layers)
    if not shown or not len(rows):
        return []
    names = {layer.name for layer in shown}
    found = run.compute(rows, lambda x, y: _outputs(run.algorithm, x, y, names))
    outputs: Any = {}
    if isinstance(run.algorithm, Reconstructor):
        outputs = run.compute(rows, lambda x, y: {"output": reconstruct_with(run.algorithm, x, y)})
    pictures = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        first = [run.pixels(np.array([row])), *(one[number : number + 1].clamp(0, 1) for one in outputs.values())]
        resized = [_resized(tile.expand(-1, 3, -1, -1)) for tile in first]
        blank = torch.ones(max_channels - len(resized), 3, *resized[0].shape[-2:])
        tiles = {"input and output" if outputs else "input": torch.cat([*resized, blank])}
        for layer in shown:
            label = f"{layer.name}  {layer.kind.split()[0]}  {' x '.join(map(str, layer.shape))}"
            tiles[label] = channel_maps(found[layer.name][number], max_channels, resized[0].shape[-2:])
        image = str(run.images.names[row])
        name = f"activations_{number + 1}.png"
        sheet(tiles, [""] * max_channels, f"{run.title} · {image}").save(folder / name)
        pictures.append(
            {
                "file": name,
                "title": f"What the layers answer: {image}",
                "caption": f"The {max_channels} channels of each layer that vary most over the image, most first; "
                "dark is low and yellow is high, on one scale for the channels of a layer (0.5 to 99.5 % of their "
                "values). A vector is one square, its numbers row by row.",
            }
        )
    return pictures


def stages(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers whose maps are drawn: of each layer with a weight matrix, what its norm, activation and pooling
    make of it; of networks with more than `MAX_MAPS` of them the last before each change of the resolution."""
    groups: list[list[Layer]] = []
    for layer in layers:
        if layer.is_answer and layer.shape:
            if layer.matrix or not groups:
                groups.append([])
            groups[-1].append(layer)
    found = [next((one for one in reversed(group) if len(one.shape) == 3), group[-1]) for group in groups]
    if len(found) <= MAX_MAPS:
        return found
    return [one for one, after in zip(found, [*found[1:], None], strict=True) if not _same_size(one, after)]


def _same_size(one: Layer, after: Layer | None) -> bool:
    return after is not None and one.shape[1:] == after.shape[1:]


def _outputs(algorithm: Algorithm, x: Tensor, y: Tensor, names: set[str]) -> dict[str, Tensor]:
    """Return what some layers answer, by name, (B, U) or (B, U, H, W)."""
    found: dict[str, Tensor] = {}
    width: list[int | None] = [None]

    def keep(name: str, module: nn.Module, output: Tensor) -> None:
        width[0] = _width(module) or width[0]
        if name in names:
            units = by_unit(output.detach(), width[0]).clone()  # what follows may work in place
            size = output.shape[2:] if units.shape[1] == output.shape[1] else output.shape[1:-1]
            found[name] = units.unflatten(2, size) if math.prod(size) > 1 else units.flatten(1)

    with watching(algorithm, keep):
        answers(algorithm, x, y)
    return found


def channel_maps(output: Tensor, most: int, size: Sequence[int]) -> Tensor:
    """Return coloured pictures (N, 3, h, w) of the channels that vary most, N at most `most`.

    Args:
        output: (U, H, W), or (U,), which becomes one square picture. size: (h, w) of a picture.
    """
    colours = require("matplotlib", "analysis", "channel maps").colormaps[plots.SEQUENTIAL]
    if output.ndim == 1:
        side = math.ceil(math.sqrt(len(output)))
        output = F.pad(output, (0, side * side - len(output)), value=math.nan).reshape(1, side, side)
    elif len(output) > 1:
        order = output.flatten(1).var(1, unbiased=False).argsort(descending=True, stable=True)
        output = output[order[:most]]
    known = output[output.isfinite()]
    low, high = np.quantile(known.numpy(), [0.005, 0.995]) if len(known) else (0.0, 0.0)
    scaled = (output - low) / (high - low) if high > low else torch.zeros_like(output)
    resized = F.interpolate(scaled[:, None], size=tuple(size), mode="nearest-exact")[:, 0]
    picture = torch.from_numpy(colours(resized.clamp(0, 1).numpy())[..., :3]).float()
    picture[resized.isnan()] = 1.0
    return picture.movedim(-1, 1)


def _resized(tile: Tensor) -> Tensor:
    """Return images (N, 3, h, w), the longer side `TILE_PX`."""
    height, width = tile.shape[-2:]
    scale = TILE_PX / max(height, width)
    size = (round(height * scale), round(width * scale))
    return F.interpolate(tile, size=size, mode="nearest-exact" if scale >= 1 else "area")
