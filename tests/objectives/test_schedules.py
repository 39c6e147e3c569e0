"""Annealing weights against values worked out by hand."""

import pytest
import torch

from domainbed.objectives import schedules


@pytest.mark.parametrize(
    ("step", "weight"),
    [(0, 0.0), (99, 0.0), (100, 0.0), (150, 0.25), (200, 0.5), (299, 0.995), (300, 1.0), (9999, 1.0)],
)
def test_linear_is_0_before_the_start_1_after_the_end_and_a_line_between(step, weight):
    assert schedules.linear(torch.tensor(step), 100, 300).item() == pytest.approx(weight)


@pytest.mark.parametrize("at", [0, 50])
def test_where_start_is_end_the_weight_jumps_there(at):
    got = schedules.linear(torch.tensor([0, 49, 50, 51]), at, at)
    assert got.tolist() == ([1, 1, 1, 1] if at == 0 else [0, 0, 1, 1])
    assert got.dtype == torch.float32


@pytest.mark.parametrize(
    ("step", "weight"),
    [
        (0, 0.0),
        (10, 0.0),
        (20, 0.25),
        (50, 1.0),
        (99, 1.0),
        (100, 0.0),
        (110, 0.0),
        (130, 0.5),
        (350, 1.0),
        (1020, 0.25),
    ],
)
def test_cyclical_begins_anew_with_every_cycle(step, weight):
    assert schedules.cyclical(torch.tensor(step), 10, 50, 100).item() == pytest.approx(weight)


def test_fu_et_al_2019_is_four_cycles_each_with_a_ramp_over_its_first_half():
    steps, cycles, ramp = 1000, 4, 0.5  # M = 4, R = 0.5
    got = schedules.cyclical(torch.arange(steps), 0, int(ramp * steps / cycles), steps // cycles)
    tau = [(step % (steps // cycles)) / (steps // cycles) for step in range(steps)]  # their eq. 5
    assert got.tolist() == pytest.approx([min(1.0, one / ramp) for one in tau], abs=1e-6)
    assert (got == 0).sum() == cycles
    assert schedules.mean_over(got) == pytest.approx(0.75, abs=2 / (steps / cycles))


def test_a_ramp_may_fill_its_whole_cycle_but_not_outlast_it():
    assert schedules.cyclical(torch.tensor(99), 0, 100, 100).item() == pytest.approx(0.99)
    with pytest.raises(ValueError, match="a cycle of 100 steps ends before its ramp does, at step 101"):
        schedules.cyclical(torch.tensor(0), 0, 101, 100)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda step: schedules.linear(step, 3, 9),
        lambda step: schedules.linear(step, 4, 4),
        lambda step: schedules.cyclical(step, 1, 4, 7),
    ],
)
def test_many_steps_at_once_have_the_weights_of_each_alone(schedule):
    steps = torch.arange(20)
    together = schedule(steps)
    alone = [schedule(step) for step in steps]
    assert together.shape == (20,) and all(one.shape == () for one in alone)
    assert together.dtype == alone[0].dtype == torch.float32
    assert together.tolist() == [one.item() for one in alone]


def test_large_step_counts_keep_their_resolution():
    step = torch.tensor(2**25 + 1)  # float32 knows no such whole number
    assert schedules.linear(step, 2**25, 2**25 + 2).item() == 0.5


def test_the_mean_of_a_schedule_is_that_of_its_steps_and_1_for_a_run_without_steps():
    assert schedules.mean_over(schedules.linear(torch.arange(100), 0, 100)) == pytest.approx(0.495)
    assert schedules.mean_over(torch.ones(0)) == 1.0
