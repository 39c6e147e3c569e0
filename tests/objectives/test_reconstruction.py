"""Losses of values against formulas written out by hand, with their gradients."""

import math

import pytest
import torch

from domainbed.objectives.likelihoods import bernoulli_nll
from domainbed.objectives.reconstruction import clipped_bce, log_cosh

OUTPUT = torch.tensor([[-2.0, -1e-9, 0.0, 0.25, 0.5, 0.9, 1.0, 3.0]])
TARGET = torch.tensor([[0.3, 0.0, 1.0, 0.25, 1.0, 0.0, 0.5, 1.0]])
INSIDE = torch.tensor([[False, False, False, True, True, True, False, False]])


def test_the_clipped_cross_entropy_is_the_formula_on_clipped_values():
    largest = torch.tensor(1 - 1e-7).item()  # 1 - 1e-7 in float32, where it is 1 - 1.19e-7
    expected = 0.0
    for output, target in zip(OUTPUT[0].tolist(), TARGET[0].tolist(), strict=True):
        p = min(max(output, 1e-7), largest)
        expected -= target * math.log(p) + (1 - target) * math.log(1 - p)
    assert clipped_bce(OUTPUT, TARGET).item() == pytest.approx(expected, rel=1e-6)
    double = clipped_bce(torch.tensor([[-2.0]], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64))
    assert double.item() == pytest.approx(-0.3 * math.log(1e-7) - 0.7 * math.log1p(-1e-7), rel=1e-12)


def test_the_clipped_cross_entropy_sends_no_gradient_outside_of_its_bounds_and_the_right_one_inside():
    output = OUTPUT.clone().requires_grad_()
    clipped_bce(output, TARGET).sum().backward()
    assert torch.equal(output.grad != 0, INSIDE & (OUTPUT != TARGET))
    p, x = OUTPUT[INSIDE], TARGET[INSIDE]
    torch.testing.assert_close(output.grad[INSIDE], (p - x) / (p * (1 - p)))


def test_inside_of_its_bounds_the_clipped_cross_entropy_is_the_one_with_logits():
    torch.manual_seed(0)
    logits, target = 3 * torch.randn(4, 3, 5, 5, dtype=torch.float64), torch.rand(4, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(clipped_bce(torch.sigmoid(logits), target), bernoulli_nll(logits, target))


def test_the_clipped_cross_entropy_refuses_targets_outside_of_0_and_1():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        clipped_bce(torch.rand(1, 4), torch.tensor([[0.0, 0.5, 1.0, 1.5]]))


def test_log_cosh_is_the_formula_and_does_not_overflow():
    output = torch.tensor([[0.0, 0.5, -2.0], [1000.0, 0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.2, 1.0], [0.0, 0.0, 0.0]])
    value = log_cosh(output, target)
    assert value[0].item() == pytest.approx(math.log(math.cosh(0.3)) + math.log(math.cosh(3.0)), rel=1e-6)
    assert value[1].item() == pytest.approx(1000 - math.log(2), rel=1e-6)
    value.sum().backward()
    torch.testing.assert_close(output.grad, torch.tanh(output.detach() - target))


@pytest.mark.parametrize("loss", [clipped_bce, log_cosh])
def test_half_precision_is_computed_in_float32(loss):
    output, target = torch.rand(3, 7), torch.rand(3, 7)
    value = loss(output.bfloat16(), target)
    assert value.dtype == torch.float32 and value.shape == (3,)
    assert torch.equal(value, loss(output.bfloat16().float(), target))
