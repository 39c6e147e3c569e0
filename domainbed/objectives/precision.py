"""The precision of a loss: float32 at least, whatever autocast made of the network's output."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half precision as float32, and float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
