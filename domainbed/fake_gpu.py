"""A GPU that need not be there: where a program would mix devices on one, or wait for it.

    with fake_gpu() as gpu:
        model.to(gpu)
        with WarnOfSynchronisation():
            losses = model(images.to(gpu))

torch computes with tensors that have a device and a shape, and no values (its FakeTensorMode). Devices that don't go
together are an error as they are on a GPU. What asks for a value, such as `.item()`, `if tensor` or a choice by a mask,
ends with an error, because nobody knows it; so does what the driver is asked for, such as a generator on the GPU or the
way back. Not everything that waits is seen: a copy that is `non_blocking` waits where its memory is not pinned.
"""

import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import DynamicOutputShapeException, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

VALUE_NEEDED = (DataDependentOutputException, DynamicOutputShapeException)
_NOT_THE_CALLER = (f"{Path(torch.__file__).parent}{os.sep}", __file__)


@contextmanager
def fake_gpu() -> Iterator[torch.device]:
    """Yield a device to which tensors and modules can be moved inside; they have no values any more.

    Weights that two modules share are two after the move.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda:0")


class WarnOfSynchronisation(TorchDispatchMode):
    """While active, what makes the processor wait for a GPU is a `UserWarning` that names the line.

    Args:
        author: file whose lines are named where it has a part in the call; else the innermost line that is not torch's.

    Attributes:
        warned: whether there was one.
    """

    def __init__(self, author: str = "") -> None:
        super().__init__()
        self.author, self.warned = author, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            result = func(*args, **kwargs)
        except VALUE_NEEDED:
            if any(one.is_cuda for one in args if isinstance(one, Tensor)):
                self._warn()
            raise
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[func is torch.ops.aten.copy_.default]  # copy_(self, source, non_blocking)
            blocking = not (kwargs.get("non_blocking") or True in args[2:])
            if blocking and source.device.type != result.device.type:
                self._warn()
        return result

    def _warn(self) -> None:
        self.warned = True
        warnings.warn(
            f"{place(traceback.extract_stack(), self.author)} makes the processor wait for the GPU: compute with "
            "tensors, such as torch.where, and make new ones with device=",
            stacklevel=2,
        )


def place(frames: traceback.StackSummary, author: str = "") -> str:
    """Return file, number and text of the line that called torch: of the author's file where it is among them."""
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_CALLER)]
    called = ([frame for frame in own if frame.filename == author] or own or list(frames))[-1]
    return f"{Path(called.filename).name}:{called.lineno} ({called.line})"
