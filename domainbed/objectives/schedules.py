"""What changes with the step: weights of a loss, as functions of a tensor that holds the step, and the learning rate.

Weights are written without branching in Python on the step, so that the step can live in a buffer, be saved, and be
compiled.
"""

import math

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


def learning_rate(
    schedule: str, step: int, steps: int, *, warmup: int = 0, step_size: int = 1, gamma: float = 1.0, start: int = 0
) -> float:
    """Return the factor of the learning rate for the step that follows `step` others.

    constant: 1. step: gamma^floor(step / step_size). cosine: (1 + cos(pi (step - warmup) / (steps - warmup))) / 2, from
    1 after the warm-up to 0 at the end (Loshchilov & Hutter 2017, eq. 5, without restarts). Each of them is multiplied
    by (step + 1) / warmup during the warm-up (Goyal et al. 2017, section 2.2). torch's schedulers give the same, and
    have a state to save; this is a function of the step.

    Args:
        schedule: "constant", "cosine" or "step".
        step: steps taken so far. steps: of the whole run.
        warmup: steps of the warm-up. step_size, gamma: of "step".
        start: the factor is 0 for so many steps, and the whole schedule is counted from there.
    """
    if step < start:
        return 0.0
    step, steps = step - start, steps - start
    factor = 1.0
    if schedule == "cosine":
        share = max(step - warmup, 0) / max(steps - warmup, 1)
        factor = (1 + math.cos(math.pi * min(share, 1.0))) / 2
    elif schedule == "step":
        factor = gamma ** (step // step_size)
    return factor * min(1.0, (step + 1) / warmup) if warmup else factor
