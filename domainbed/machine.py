"""What a run asks of the machine that it runs on: cores, a folder for caches, and how the C library keeps memory."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path


def default_num_workers() -> int:
    """One thread per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_cache_dir() -> Path:
    """$DOMAINBED_CACHE, or `domainbed` in the user's folder for caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("DOMAINBED_CACHE") or f"{caches}/domainbed").expanduser()


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
