"""Where the weights of an encoder come from: a local file, the local cache, the hub, or nowhere, said aloud.

pretrained: auto     the weights if they are cached or the hub answers within seconds, else random, with a warning
pretrained: true     the same, but stop where they can't be had
pretrained: false    random weights
pretrained: <file>   a .safetensors or .pth checkpoint
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from torch import Tensor, nn

from domainbed.errors import UserError
from domainbed.networks.encoders import check_model

#: How long the hub may take to answer before a run starts without it.
HUB_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Weights:
    """Which weights an encoder starts from.

    Attributes:
        source: the path of a file, or "false" for random weights: the value of `pretrained` that repeats this.
        message: a sentence for the log.
        warning: whether the user asked for more than they got.
    """

    source: str
    message: str
    warning: bool = False


def locate(model: str, pretrained: str) -> Weights:
    """Turn `pretrained` into a file or "false".

    Raises:
        UserError: weights were demanded with `true` and can't be had.
    """
    check_model(model)
    if pretrained == "false":
        return Weights("false", f"{model} starts from random weights, as pretrained=false asks")
    if pretrained not in ("auto", "true"):
        return Weights(pretrained, f"{model} starts from {pretrained}")
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    hub_id = getattr(config, "hf_hub_id", None) or ""
    path, reason = (_in_cache(hub_id), "") if hub_id else (None, "timm knows no address of its weights")
    if path is None and hub_id:
        path, reason = _from_hub(hub_id)
    if path is not None:
        return Weights(str(path), f"{model} starts from pretrained weights ({path})")
    advice = f"Fetch model.safetensors of https://huggingface.co/{hub_id or model} and pass it as pretrained=<file>"
    if pretrained == "true":
        raise UserError(f"pretrained=true, but there are no weights of {model}: {reason}. {advice}")
    message = f"{model} starts from RANDOM weights: {reason}. {advice}, or pretrained=false to say that it is meant"
    return Weights("false", message, warning=True)


def load_weights(backbone: nn.Module, model: str, path: Path) -> None:
    """Load a checkpoint into a backbone without a head.

    Keys of a classifier head are ignored; any other key that is missing, unexpected or of another shape is an error,
    because an encoder that is silently half random is worse than none.

    Raises:
        UserError: the file can't be read, holds more than tensors, or does not fit.
    """
    state = read_state_dict(path)
    config: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    classifier = config.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    own = backbone.state_dict()
    state = {key: value for key, value in state.items() if not (key.startswith(heads or "\0") and key not in own)}
    first = next((key for key in own if key == f"{config.get('first_conv')}.weight"), None)
    if first in state and state[first].ndim == 4 and state[first].shape[1] == 3 and own[first].shape[1] == 1:
        state[first] = state[first].sum(1, keepdim=True)  # as timm does for grey images
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if faults:
        raise UserError(
            f"{path} does not fit {model}: of its keys, {'; '.join(faults)}. Pass the checkpoint of this very "
            "model, or name the model that it belongs to with model=<timm name>"
        )
    backbone.load_state_dict(state, strict=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or torch file, without executing code from it.

    Raises:
        UserError: the file is missing, broken, or holds something else than tensors.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}. Pass pretrained=<a .safetensors or .pth file>, or pretrained=false")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds; each means that this file is of no use
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{path} can't be read as weights ({type(error).__name__}: {reason})") from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not tensors or not state:
        raise UserError(f"{path} holds no state dict of tensors. Save one with torch.save(model.state_dict(), path)")
    return {key.removeprefix("module."): value for key, value in state.items()}


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
