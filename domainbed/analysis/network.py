"""The layers of a network: which there are, how far training moved them, and what their units answer.

Layers are the modules that are called (a convolution, a norm, an activation). What a forward method computes by itself,
such as `torch.tanh(x)`, is no layer here.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm, Encoder, Predictor, Reconstructor, Segmenter, reconstruct_with
from domainbed.analysis.opened import OpenedRun

#: A weight matrix that changed by a smaller share of its norm has hardly moved: the Adadelta run of docs/results.md,
#: which learnt nothing, lies at 0.3 to 0.5 %, those that learnt something at 8 % and more. Scales of a norm begin at 1
#: and move less in healthy runs, too, so of them only those that did not move at all are named.
HARDLY_MOVED = 0.01
#: A unit is constant where images explain a smaller share than this, squared, of what varies in its layer.
CONSTANT = 0.01
#: Activations that are 0, or nearly so, for every input well below 0: a unit there says nothing and gets no gradient.
#: Leaky ones let both through.
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish)
#: Rows of a table or a plot; deeper networks are shown by block.
MAX_ROWS = 60

Keep = Callable[[str, nn.Module, Tensor], None]


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
        not_finite: share of the units that answer an image with a number that is not finite. Where there are any, dead
            and constant are None; None where no image passes.
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
    not_finite: float | None = None
    is_answer: bool = False

    @property
    def hardly_moved(self) -> bool:
        """Whether training left its weights where they were."""
        if not self.trainable or self.norms is None:
            return False
        return self.norms[1] == 0 or (self.matrix and self.change is not None and self.change < HARDLY_MOVED)


def answers(algorithm: Algorithm, x: Tensor, y: Tensor) -> None:
    """Do what an algorithm can do with images, so that its layers are passed; one that can only learn does that."""
    if not isinstance(algorithm, Reconstructor | Encoder | Predictor | Segmenter):
        algorithm.evaluation_terms(x, y)
    if isinstance(algorithm, Reconstructor):
        reconstruct_with(algorithm, x, y)
    elif isinstance(algorithm, Encoder):
        algorithm.encode(x)
    if isinstance(algorithm, Predictor):
        algorithm.predict(x)
    if isinstance(algorithm, Segmenter):
        algorithm.segment(x)


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

    def keep_shape(name: str, module: nn.Module, output: Tensor) -> None:
        shapes.setdefault(name, tuple(output.shape[1:]))

    def keep_answering(name: str, module: nn.Module, output: Tensor) -> None:
        answering.add(name)
        keep_shape(name, module, output)

    def passed(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        with watching(algorithm, keep_shape):  # first for the order: a codebook lies between encoder and decoder
            algorithm.evaluation_terms(x, y)
        with watching(algorithm, keep_answering):
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
    """Set the share of dead, of constant and of not finite units of every layer, over some images.

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
            layer.not_finite = (~found.finite).float().mean().item()
            if layer.not_finite:
                continue
            layer.constant = found.constant().float().mean().item()
            if isinstance(modules[layer.name], RECTIFIERS):
                layer.dead = (found.highest <= 0).float().mean().item()


class _Units:
    """Largest value, and variance over images, of the units of one layer; sums are of differences from one image.

    Attributes:
        highest: (U,). finite: (U,) bool, whether all values are finite.
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference.clone()  # (1, U, P)
        self.sum, self.squares = torch.zeros_like(self.reference[0]), torch.zeros_like(self.reference[0])
        self.highest = torch.full_like(self.sum[:, 0], -math.inf)  # (U,)
        self.finite = torch.ones_like(self.highest, dtype=torch.bool)
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Take the answers (B, U, P) to some images."""
        difference = values - self.reference
        self.sum += difference.sum(0)
        self.squares += difference.square().sum(0)
        self.highest = self.highest.maximum(values.amax((0, 2)))
        self.finite &= values.isfinite().all(2).all(0)
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
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
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


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    inside = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((found for one in inside if (found := _first_tensor(one)) is not None), None)


def outputs(algorithm: Algorithm, x: Tensor, y: Tensor, names: set[str]) -> dict[str, Tensor]:
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
