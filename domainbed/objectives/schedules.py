"""Weights that change with the step, as functions of a tensor that holds the step.

Written without branching in Python on the step, so that the step can live in a buffer, be saved, and be compiled.
"""

import torch
from torch import Tensor


def linear(step: Tensor, start: int, end: int) -> Tensor:
    """0 before `start`, 1 from `end` on, and (step - start) / (end - start) between. () float32 for a () step."""
    return ((step - start).float() / max(end - start, 1)).clamp(0.0, 1.0) if end > start else (step >= end).float()


def cyclical(step: Tensor, start: int, end: int, cycle_length: int) -> Tensor:
    """`linear` on the step within its cycle. Fu et al. 2019 is 4 cycles, each with a ramp over its first half.

    Raises:
        ValueError: a cycle would end before its ramp does.
    """
    if not end <= cycle_length:
        raise ValueError(f"a cycle of {cycle_length} steps ends before its ramp does, at step {end}")
    return linear(torch.remainder(step, cycle_length), start, end)


def mean_over(schedule: Tensor) -> float:
    """Mean of the weights of a whole run, given as a (steps,) tensor; 1.0 for a run without steps."""
    return schedule.double().mean().item() if schedule.numel() else 1.0
