"""Encoders: from images (B, C, H, W) in [0, 1] to feature vectors (B, F).

`TimmEncoder` is any backbone of timm, `ConvEncoder` a plain convolutional one; `strided` has one of chosen widths, and
`plain_encoders` those that `model` may name in the place of timm's. What can be inserted between stages, and the map
before the pooling, are in `stages`. An
encoder owns the statistics that its weights expect (ImageNet's, for pretrained ones) and applies them itself: nothing
outside knows of a normalisation. Where weights come from is `pretrained`; what is done with the features is not here.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import timm
import torch
from timm.layers import DropPath
from timm.models import get_deprecated_models, group_parameters
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from domainbed.errors import UserError, did_you_mean
from domainbed.networks.decoders import FINAL_CHANNELS, MAX_BASE, MAX_CHANNELS
from domainbed.networks.stages import Stage, StagedEncoder, no_map, no_stages, why_no_places
from domainbed.objectives import rows

#: Names that `model` may have beside timm's, of the encoders in `plain_encoders`.
PLAIN = ("mlp", "mnist_cnn", "none")


class TimmEncoder(StagedEncoder):
    """A timm backbone without its head, with the normalisation that its weights expect.

    Args:
        model: timm's name, e.g. "resnet50" or "resnet50.tv_in1k".
        input_shape: (C, H, W); weights for 3 channels are summed over the colours for C = 1.
        dropout: share of the features that is set to 0 in training.
        drop_path: stochastic depth, timm's `drop_path_rate`.

    Attributes:
        num_features: F.
        dropout: the layer after the features, None without dropout.

    Raises:
        UserError: timm has no such model, it can't take images of that size, or it has no stochastic depth.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: str, input_shape: tuple[int, int, int], dropout: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.model, self.input_shape = model, input_shape
        channels = input_shape[0]
        self.num_features: int = feature_width(model, input_shape)
        backbone: Any = create_backbone(model, input_shape, drop_path)
        self.backbone = backbone
        self.dropout: Dropout | None = Dropout(dropout) if dropout else None
        mean, std = (torch.tensor(backbone.pretrained_cfg[key]) for key in ("mean", "std"))
        if channels != 3:
            mean, std = mean.mean().expand(channels), std.mean().expand(channels)
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1).clone(), persistent=False)
        self.register_buffer("std", std.reshape(1, -1, 1, 1).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, F) for images (B, C, H, W) in [0, 1]."""
        features = self.backbone((x - self.mean) / self.std)
        return features if self.dropout is None else self.dropout(features)

    @property
    def name(self) -> str:
        """timm's name of the backbone."""
        return self.model

    @property
    def stages(self) -> tuple[Stage, ...]:
        return stage_places(self.model, self.input_shape)

    @property
    def map_shape(self) -> tuple[int, ...]:
        return map_shape(self.model, self.input_shape)

    def features_map(self, x: Tensor) -> Tensor:
        map_shape(self.model, self.input_shape)
        return self.backbone.forward_features((x - self.mean) / self.std)

    def pool(self, features: Tensor) -> Tensor:
        features = self.backbone.forward_head(features)
        return features if self.dropout is None else self.dropout(features)

    def freeze_batch_norm(self) -> None:
        """Keep the running statistics and the affine weights of every BatchNorm as they are, also in training."""
        for module in self.backbone.modules():
            _freeze_if_batch_norm(module)

    def freeze_stages(self, model: str, num_stages: int) -> None:
        """Keep the weights and the BatchNorm statistics of the first stages as they are, also in training.

        Raises:
            UserError: the backbone has fewer stages.
        """
        parameters = dict(self.backbone.named_parameters())
        frozen = [parameters[name] for names in first_stages(self.backbone, model, num_stages) for name in names]
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in self.backbone.modules():
            if any(own is parameter for own in module.parameters(recurse=False) for parameter in frozen):
                _freeze_if_batch_norm(module)


def stages_of(backbone: Any, model: str) -> dict[str, list[str]]:
    """Return the names of the parameters of each stage, from the stem on, by the name of the stage.

    Stages are timm's coarse groups: those of a convolutional network, the single blocks of a plain transformer.

    Raises:
        UserError: timm does not say which stages the model has.
    """
    unknown = UserError(
        f"timm knows no stages of {model}, so none can be frozen. Use freeze_stages=0, or another model"
    )
    if not hasattr(backbone, "group_matcher"):
        raise unknown
    try:
        matcher = backbone.group_matcher(coarse=True)
    except AssertionError:  # as RDNet has it, which groups single blocks alone
        raise unknown from None
    groups = list(group_parameters(backbone, matcher).values())
    names = [name for group in groups for name in group]
    return {
        "stem" if index == 0 else _prefix(group[0], set(names) - set(group)): group
        for index, group in enumerate(groups)
    }


def _prefix(name: str, others: set[str]) -> str:
    """Return the shortest dotted prefix of a name that none of the others has."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(1, len(parts)))
    return next((one for one in prefixes if not any(other.startswith(f"{one}.") for other in others)), name)


def first_stages(backbone: nn.Module, model: str, num_stages: int) -> list[list[str]]:
    """Return the names of the parameters of each of the first stages.

    Raises:
        UserError: the backbone has fewer.
    """
    stages = stages_of(backbone, model)
    if num_stages > len(stages):
        raise UserError(
            f"freeze_stages = {num_stages}, but {model} has {len(stages)} stages ({', '.join(stages)}). Use "
            f"freeze_stages={len(stages)} or less"
        )
    return list(stages.values())[:num_stages]


def _freeze_if_batch_norm(module: nn.Module) -> None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.requires_grad_(False)
        module.eval()
        module.train = partial(_stay, module)  # type: ignore[assignment, method-assign]


@cache
def stage_places(model: str, input_shape: tuple[int, int, int]) -> tuple[Stage, ...]:
    """Return the stages of a timm model behind which a layer can be inserted, without computing any feature.

    They are those of `stages_of`, without such as come after the map of features.

    Raises:
        UserError: timm doesn't say which stages there are, they are not computed one after the other, or they give no
            map (C, h, w) and no tokens.
    """
    backbone = without_values(model, input_shape)
    try:
        names = list(stages_of(backbone, model))[1:]
        modules = {name: backbone.get_submodule(name) for name in names}
    except UserError:
        raise no_stages(model, "timm does not tell its stages apart") from None
    except AttributeError:  # a stage that begins with a weight of no module
        raise no_stages(model, "a stage of timm's is no module") from None
    calls: list[tuple[str, Any, Any]] = []
    for name, module in modules.items():
        module.register_forward_hook(partial(_note_call, calls, name))
    _forward_on_meta(backbone.forward_features, torch.empty(2, *input_shape, device="meta"))
    called = [name for name, *_ in calls]
    if not called or called != names[: len(called)]:
        raise no_stages(model, "they are not computed one after the other")
    given = [("stem", called[0], calls[0][1]), *((name, name, output) for name, _, output in calls)]
    for _, _, value in given:
        if why := why_no_places(value, input_shape[1:]):
            raise no_stages(model, why)
    return tuple(
        Stage(name, f"backbone.{module}", name == "stem", tuple(value.shape[1:])) for name, module, value in given
    )


def _note_call(calls: list[Any], name: str, module: nn.Module, arguments: Any, output: Any) -> None:
    calls.append((name, arguments[0] if arguments else None, output))


@cache
def map_shape(model: str, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the shape of a timm model's map of features, (C, h, w) or (N, C) of tokens, without computing any.

    Raises:
        UserError: the model gives no such map, or pools in another way than from it.
    """
    backbone: Any = without_values(model, input_shape)
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        raise no_map(model, "timm does not part it from the pooling")
    features = _forward_on_meta(backbone.forward_features, torch.empty(2, *input_shape, device="meta"))
    if why := why_no_places(features, input_shape[1:]):
        raise no_map(model, why)
    return tuple(features.shape[1:])


def _forward_on_meta(forward: Any, x: Tensor) -> Any:
    with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return forward(x)


class Dropout(nn.Module):
    """Dropout whose noise belongs to rows of the batch, in however many parts it is computed (`objectives.rows`).

    Args:
        rate: probability that a value is set to 0; the others are divided by 1 - rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, …) for (B, …)."""
        if not self.training:
            return x
        return x * (rows.rand_like(x.float()) >= self.rate) / (1 - self.rate)

    def extra_repr(self) -> str:
        """The rate, for `print`."""
        return f"rate={self.rate:g}"


def _drop_path(module: DropPath, x: Tensor) -> Tensor:
    """Take the place of `DropPath.forward`: the same, with noise that belongs to rows of the batch."""
    if not module.training or not module.drop_prob:
        return x
    kept = rows.rand_like(x.new_zeros(len(x), dtype=torch.float32)) >= module.drop_prob  # (B,)
    kept = kept.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return x * (kept / (1 - module.drop_prob) if module.scale_by_keep else kept)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Take the place of `train` where a module must not change its mode."""
    return module


def create_backbone(model: str, input_shape: tuple[int, int, int], drop_path: float = 0.0) -> nn.Module:
    """Return timm's `model` with random weights and no head.

    Raises:
        UserError: timm has no such model, or it has no stochastic depth and a `drop_path` is given.
    """
    check_model(model)
    channels, *size = input_shape
    fixed = timm.get_pretrained_cfg(model).fixed_input_size  # as transformers with learnt positions have it
    options = {"img_size": tuple(size)} if fixed else {}
    create = partial(timm.create_model, model, pretrained=False, in_chans=channels, num_classes=0, **options)
    if not drop_path:
        return create()
    no_paths = UserError(f"drop_path = {drop_path:g}, but {model} has no stochastic depth in timm. Use drop_path=0")
    try:
        backbone = create(drop_path_rate=drop_path)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise no_paths from None
    paths = [module for module in backbone.modules() if isinstance(module, DropPath) and module.drop_prob]
    if not paths:
        raise no_paths
    for module in paths:
        module.forward = partial(_drop_path, module)
    return backbone


def without_values(model: str, input_shape: tuple[int, int, int], drop_path: float = 0.0) -> nn.Module:
    """Return a backbone on the meta device, in evaluation mode: it has names and shapes, and costs milliseconds."""
    with torch.random.fork_rng([]), torch.device("meta"), _ZeroWeights():
        return create_backbone(model, input_shape, drop_path).eval()


@cache
def feature_width(model: str, input_shape: tuple[int, int, int]) -> int:
    """Return the number of features that a model gives for images (C, H, W), without computing any.

    Raises:
        UserError: timm has no such model, it can't take images of that size, it would not see all of an image, or it
            gives no feature vector.
    """
    check_model(model)
    result = try_size(model, input_shape)
    if isinstance(result, int):
        return result
    _, height, width = input_shape
    sizes = _nearest_sizes(model, input_shape)
    advice = f"Use image_size={' or '.join(sizes)}, or another model" if sizes else "Choose another model"
    raise UserError(f"{model} and images of {height} x {width} px: {result}. {advice}")


@cache
def try_size(model: str, input_shape: tuple[int, int, int], certainly: bool = False) -> int | str:
    """Return the number of features of a model for images of a size, or why it can't be used with them.

    Args:
        certainly: refuse where the borders of an image may be ignored, which takes no computation to know.
    """
    margins = _WatchMargins()
    try:
        # on the meta device shapes are computed and values are not, which takes milliseconds
        with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backbone = without_values(model, input_shape)
            x = torch.empty(2, *input_shape)
            with margins:
                features = backbone(x)
    except ImportError as error:
        return f"the model needs a package that is not installed ({error})"
    except Exception as error:  # each model checks its input in its own way, or not at all and fails in some layer
        return f"the model can't take them ({_first_line(error)})"
    if not isinstance(features, Tensor) or features.shape[:-1] != (2,):
        given = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        return f"the model gives {given} for two images, not a feature vector each"
    if margins.skipped and (certainly or not _sees_border(model, input_shape)):
        return "the model would ignore the last rows or columns of each image"
    return features.shape[1]


def _nearest_sizes(model: str, input_shape: tuple[int, int, int]) -> list[str]:
    """Return a smaller and a larger image_size that a model can take, as far as there are such sizes near."""
    channels, *size = input_shape
    side = max(size)
    config = timm.get_pretrained_cfg(model)
    published = [one[-1] for one in (config.input_size, config.test_input_size, config.min_input_size) if one]
    near = {
        (side // cell + more) * cell + rest
        for cell, rest in ((14, 0), (16, 0), (32, 0), (64, 0), (32, published[0] % 32))
        for more in (-1, 0, 1)
    }
    near |= {*published}
    found = []
    for sides in (
        sorted((one for one in near if 0 < one < side), reverse=True),
        sorted(one for one in near if one > side),
    ):
        fitting = (one for one in sides if isinstance(try_size(model, (channels, one, one), certainly=True), int))
        found += [str(one) for one in [next(fitting, None)] if one]
    return found


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}".rstrip(": ")


class _WatchMargins(TorchDispatchMode):
    """Notice layers whose last window ends before the last row or column, which they then never see.

    A layer alone proves nothing: other windows or a second branch may have carried those pixels along. But where there
    is no such layer, nothing is lost.

    Attributes:
        skipped: whether there was one.
    """

    skipped = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        if name is torch.ops.aten.convolution and args[0].ndim == 4 and not args[6]:
            self._watch(args[0], out, args[1].shape[2:], *args[3:6])
        elif name is torch.ops.aten.max_pool2d_with_indices:
            self._watch(args[0], out[0], *args[1:5])
        elif name is torch.ops.aten.avg_pool2d:
            self._watch(args[0], out, *args[1:4])
        return out

    def _watch(
        self, x: Tensor, out: Tensor, kernel: Sequence[int], stride: Sequence[int] = (),
        padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,),
    ) -> None:  # fmt: skip
        for axis in (-2, -1):
            k, s, p, d = (one[axis % len(one)] for one in (kernel, stride or kernel, padding, dilation))
            end = (out.shape[axis] - 1) * s + d * (k - 1) + 1 - p
            # windows smaller than their distance leave pixels out everywhere: those of shortcuts, by design
            self.skipped |= k >= s and end < x.shape[axis]


class _ZeroWeights(TorchFunctionMode):
    """Initialise with zeros, which is faster than drawing; NaN still spreads, because 0 NaN is NaN."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_):
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def _sees_border(model: str, input_shape: tuple[int, int, int]) -> bool:
    """Return whether the features depend on the last row and the last column: whether NaN spreads from there."""
    with torch.random.fork_rng([]), _ZeroWeights():
        backbone = create_backbone(model, input_shape).eval()
    x = torch.zeros(2, *input_shape)
    x[0, :, -1, :] = x[1, :, :, -1] = math.nan
    with torch.no_grad():
        return bool(backbone(x).isnan().any(1).all())


def check_model(model: str) -> None:
    """Raise `UserError` with the nearest names where timm has no model of that name."""
    name, _, tag = model.partition(".")
    renamed = get_deprecated_models()
    if name in renamed:
        now = renamed[name]
        if now and now not in (known := timm.list_pretrained(now)):  # some point to weights that were renamed again
            now = next((full for full in known if full.startswith(now)), now.partition(".")[0])
        raise UserError(
            f"timm has renamed {name} to {now}. Use model={now}"
            if now
            else f"timm has removed {name}. Choose another model; timm.list_models() lists all"
        )
    if model.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        raise UserError(
            f"model = {model} is an address. Use timm's name of the model, and pass the file of its weights as "
            "pretrained=<file>"
        )
    if not timm.is_model(name):
        near = did_you_mean(name, [*timm.list_models(), *PLAIN]).partition(" known names")[0]
        raise UserError(f"timm has no model named {name!r}{near} timm.list_models() lists all")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise UserError(f"timm has no weights {tag!r} of {name}{did_you_mean(tag, tags)}")


class ConvEncoder(nn.Module):
    """Convolutions of stride 2 down to a small grid, the mirror image of `ConvDecoder`.

    Args:
        input_shape: (C, H, W).

    Attributes:
        num_features: F, the flattened grid.
    """

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        halvings = max(0, math.ceil(math.log2(max(height, width) / MAX_BASE)))
        widths = [min(MAX_CHANNELS, FINAL_CHANNELS * 2**level) for level in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.GroupNorm(8, inputs), nn.LeakyReLU(0.01), nn.Conv2d(inputs, outputs, 3, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.LeakyReLU(0.01), nn.Flatten())
        self.num_features = widths[-1] * math.ceil(height / 2**halvings) * math.ceil(width / 2**halvings)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, F) for images (B, C, H, W) in [0, 1]."""
        return self.layers(x - 0.5)
