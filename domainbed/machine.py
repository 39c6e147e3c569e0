"""What a run asks of the machine: cores, a folder for caches, signals, other processes, standard streams, and how the C
library keeps memory.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from domainbed.errors import UserError
from domainbed.paths import user_path

#: What a terminal, a scheduler or a limit sends to a program that is to end: Ctrl-C, `kill` and a job's end, a lost
#: terminal, Slurm's `--signal=USR1@90`, `ulimit -S -t`.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
#: What torchrun tells a process of itself and the others.
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
#: What MPI launchers tell a process, which accelerate would follow.
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def default_num_workers() -> int:
    """One thread per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_cache_dir() -> Path:
    """$DOMAINBED_CACHE, or `domainbed` in the user's folder for caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(os.environ.get("DOMAINBED_CACHE") or f"{caches}/domainbed")


def stop_signals() -> list[signal.Signals]:
    """Return those of `STOP_SIGNALS` that this process was not started to ignore, as `nohup` and `&` in a script do."""
    return [one for one in STOP_SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]


def process_number(variable: str = "RANK") -> int:
    """Number of this process among several that torchrun started; the first writes and speaks.

    Args:
        variable: "RANK", or "LOCAL_RANK" for its number among those of this machine.
    """
    text = os.environ.get(variable, "")
    launched = all(os.environ.get(name) for name in LAUNCHER)  # else what is set was left over, see `check_launcher`
    return int(text) if launched and text.isdecimal() else 0


def check_launcher() -> None:
    """Raise `UserError` where the environment tells of other processes, but not enough to meet them."""
    values = {name: os.environ[name] for name in LAUNCHER if os.environ.get(name)}
    sizes = {name: os.environ[name] for name in MPI_SIZES if os.environ.get(name)}
    alone = values.get("RANK", "0") == "0" and "LOCAL_RANK" not in values and values.get("WORLD_SIZE", "1") == "1"
    several = {name: value for name, value in sizes.items() if value not in ("0", "1")}
    if alone and not several:
        return
    missing = [name for name in LAUNCHER if name not in values]
    faults = [f"{', '.join(missing)} {'are' if missing[1:] else 'is'} not set"] if missing else []
    numbers = {name: value for name, value in values.items() if name != "MASTER_ADDR"} | several
    faults += [f"{name} = {value!r} is no whole number" for name, value in numbers.items() if not value.isdecimal()]
    if not faults:
        rank, size, local, port = (int(values[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
        if rank >= size:
            faults.append(f"RANK = {rank} is not below WORLD_SIZE = {size}")
        if local > rank:
            faults.append(f"LOCAL_RANK = {local} is above RANK = {rank}")
        if not 0 < port < 2**16:
            faults.append(f"MASTER_PORT = {port} is no port")
    if faults:
        told = ", ".join(f"{name}={value}" for name, value in (values | several).items())
        raise UserError(
            f"the environment has {told}, as if a launcher had started several processes, but {'; '.join(faults)}. "
            f"Start them with torchrun, or for one process: unset {' '.join(values | several)}"
        )


def open_standard_streams() -> None:
    """Open what a shell closed (`<&-`, `>&-`) on nothing: else the next file would take its number, and its output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def lose_terminal() -> None:
    """Send the standard streams to nowhere where they are a terminal, which has gone: writing there would fail."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            if stream.isatty():
                silence(stream)


def silence(stream: object) -> None:
    """Send what a stream of this process still holds, and all that will be written to it, to nowhere."""
    with suppress(AttributeError, OSError, ValueError):  # where something else stands in for the terminal
        number = stream.fileno()  # type: ignore[attr-defined]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def keep_freed_memory() -> None:
    """Let the C library keep memory that is freed, instead of giving it back to the system at once. glibc alone.

    A training step allocates and frees gigabytes. What is given back is cleared and mapped anew by the next step, a
    sixth of the time of a ResNet-50's on a CPU (docs/performance.md); kept, it costs a tenth more memory.
    """
    max_mappings, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(max_mappings, 0)
        libc.mallopt(trim_threshold, -1)


def give_back_freed_memory() -> None:
    """Let the C library give back what is free now, such as what finding many images has left. glibc alone."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
