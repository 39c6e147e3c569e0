"""Which precision a machine computes in, and what compiling takes."""

import json
import os
import platform
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from domainbed.errors import UserError
from domainbed.files import write_atomically
from domainbed.machine import default_cache_dir


def resolve_precision(precision: str, on_cpu: bool) -> str:
    """Return "float32" or "bf16".

    Raises:
        UserError: bf16 is asked for on a GPU that can't compute in it.
    """
    supported = cpu_has_bf16() if on_cpu else torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not on_cpu and not supported:
        raise UserError("precision = bf16, but this GPU does not compute in bf16. Use --precision float32")
    if precision == "auto":
        return "bf16" if supported and bf16_pays(torch.device("cpu" if on_cpu else "cuda")) else "float32"
    return precision


def check_compiler(on_cpu: bool) -> None:
    """Raise `UserError` where torch.compile lacks the compiler of what it writes: C++ for a CPU, C for a GPU."""
    variable, usual = ("CXX", ["g++"]) if on_cpu else ("CC", ["gcc", "clang"])
    names = [os.environ[variable]] if variable in os.environ else usual
    if not any(map(shutil.which, names)):
        what = "a C++ compiler for the processor" if on_cpu else "a C compiler for the GPU"
        raise UserError(
            f"compile = true needs {what}, and there is no {' or '.join(map(repr, names))}. Install one, such as "
            f"{usual[0]}, name it in ${variable}, or leave compile out"
        )


def convolves_in_tf32() -> bool:
    """Whether the GPU computes convolutions of float32 with 10 bits of mantissa, torch's default."""
    try:
        return torch.cuda.is_tf32_supported() and torch.backends.cudnn.allow_tf32
    except RuntimeError:  # where the newer switch was used, torch refuses to read the older one
        return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AVX512-BF16, AMX, or Arm's BF16)."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_cpuinfo().split())


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: unknown
        return ""


def bf16_pays(device: torch.device) -> bool:
    """Whether convolutions are faster in bf16 than in float32; measured once per machine, and remembered.

    `precision.json` in the folder for decoded images has the answer by processor, number of threads and version of
    torch. Delete it to have it measured again.
    """
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {_NUM_IMAGES['cuda']} images"
    else:
        model = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
        name = f"{model[1] if model else platform.machine()}, {torch.get_num_threads()} threads"
    key, path = f"{name}, torch {torch.__version__}", default_cache_dir() / "precision.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(known, dict) or key not in known:
        seconds = {kind: _seconds_of_convolutions(device, kind == "bf16") for kind in ("float32", "bf16")}
        known = (known if isinstance(known, dict) else {}) | {key: seconds}
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(path) as draft:
                draft.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return bool(known[key]["bf16"] < known[key]["float32"])


#: Of so many images: few don't keep a GPU busy, and starting kernels would be what is timed.
_NUM_IMAGES = {"cpu": 4, "cuda": 64}


def _seconds_of_convolutions(device: torch.device, in_bf16: bool) -> float:
    """Return the least time of some repetitions of convolutions as a ResNet has them, forward and backward."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        layers = [nn.Conv2d(64, 128, 1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 64, 1)]
        network = nn.Sequential(*layers).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(_NUM_IMAGES[device.type], 64, 56, 56, device=device).to(memory_format=torch.channels_last)
    times = []
    for _ in range(5):
        _synchronize(device)
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            loss = network(x).float().square().mean()
        loss.backward()
        _synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
