"""CORAL, DANN and Fish: against closed forms, and against the steps written out the plain way with torch alone."""

import copy

import pytest
import torch
from torch.nn import functional as F

from domainbed.engine import Engine
from domainbed.errors import UserError
from domainbed.objectives.alignment import coral, mean_over_pairs
from domainbed.registry import ALGORITHMS
from domainbed.testing import SHAPES, build, check_resume_is_exact, minibatches


def test_coral_is_zero_for_equal_moments_and_measures_shift_and_scale() -> None:
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    assert coral(x, x.flip(0)) == 0
    # a shift by 3 in one of two features: mean of (3^2, 0)
    assert coral(x, x + torch.tensor([3.0, 0.0])).item() == pytest.approx(4.5)
    # covariance diag(4/3, 16/3); twice as wide it is four times as large, and the means move by (1, 2)
    assert coral(x, 2 * x).item() == pytest.approx((1 + 4) / 2 + (4.0**2 + 16.0**2) / 4)
    assert coral(x, 2 * x).item() == pytest.approx(
        (x.mean(0)).square().mean().item() + (3 * torch.cov(x.T)).square().mean().item()
    )


def test_the_mean_over_pairs_counts_each_pair_once() -> None:
    features = [torch.full((2, 1), value) for value in (0.0, 1.0, 3.0)]
    assert mean_over_pairs(coral, features).item() == pytest.approx((1 + 9 + 4) / 3)


def test_coral_is_computed_in_float32_where_the_network_is_in_bf16() -> None:
    first, second = torch.randn(64, 8), torch.randn(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(coral(first, second), coral(first.clone(), second.clone()))
        in_bf16 = coral(first, second)
    assert torch.equal(in_bf16, coral(first, second))


def plain_adam(parameters, lr, betas=(0.9, 0.999)):
    return torch.optim.Adam(list(parameters), lr=lr, betas=betas, fused=True)


def test_fish_is_the_inner_loop_on_a_copy_of_the_network() -> None:
    algorithm = build(ALGORITHMS["Fish"], lr=1e-2, meta_lr=0.3, optimizer="sgd")
    outer = copy.deepcopy(algorithm)
    inner = copy.deepcopy(algorithm)
    optimizer = torch.optim.SGD(inner.parameters(), lr=1e-2, momentum=0.9)
    for step in range(3):
        batches = minibatches(seed=step)
        algorithm.update(batches)
        inner.load_state_dict(outer.state_dict())
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(inner.head(inner.encoder(x)), y).backward()
            optimizer.step()
        merged = {
            name: value + 0.3 * (inner.state_dict()[name] - value) if value.is_floating_point() else value
            for name, value in outer.state_dict().items()
        }
        outer.load_state_dict(merged)
    for (name, found), expected in zip(algorithm.named_parameters(), outer.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)
    for (name, found), expected in zip(algorithm.named_buffers(), outer.buffers(), strict=True):
        if found.is_floating_point():
            torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_dann_takes_the_turns_that_domainbed_takes(penalty: float) -> None:
    hparams = {"lr": 1e-2, "lr_d": 3e-2, "d_steps_per_g_step": 2, "lambda": 0.4, "grad_penalty": penalty}
    algorithm = build(ALGORITHMS["DANN"], **hparams)
    plain = copy.deepcopy(algorithm)
    rest = [*plain.encoder.parameters(), *plain.head.parameters()]
    of_rest = plain_adam(rest, 1e-2, (0.5, 0.9))
    of_discriminator = plain_adam(plain.discriminator.parameters(), 3e-2, (0.5, 0.9))
    for step in range(4):
        batches = minibatches(seed=step)
        algorithm.update(batches)
        features = plain.encoder(torch.cat([x for x, _ in batches]))
        guesses = plain.discriminator(features)
        places = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        d = F.cross_entropy(guesses, places)
        summed = F.cross_entropy(guesses, places, reduction="sum")
        (gradient,) = torch.autograd.grad(summed, features, create_graph=True)
        d = d + penalty * (gradient**2).sum(1).mean(0)
        y_loss = F.cross_entropy(plain.head(features), torch.cat([y for _, y in batches]))
        for optimizer in (of_rest, of_discriminator):
            optimizer.zero_grad()
        if (step + 1) % 3 < 2:
            d.backward()
            of_discriminator.step()
        else:
            (y_loss - 0.4 * d).backward()
            of_rest.step()
    for (name, found), expected in zip(algorithm.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("name", "hparams"),
    [("CORAL", {}), ("Fish", {}), ("DANN", {"d_steps_per_g_step": 2, "grad_penalty": 0.5})],
)
def test_a_resumed_run_is_bit_for_bit_the_one_that_was_not(name: str, hparams: dict, precision: str) -> None:
    check_resume_is_exact(ALGORITHMS[name], precision=precision, **hparams)


@pytest.mark.parametrize("name", ["CORAL", "Fish", "DANN"])
def test_one_source_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} compares training environments and needs 2 .* --algorithm ERM"):
        ALGORITHMS[name](SHAPES[0], 3, 1, {"model": "test_resnet", "pretrained": "false"})


def test_a_step_in_bf16_sees_the_weights_that_the_last_one_moved() -> None:
    """Autocast keeps weights that it has cast: a second step within one training step must not be on the old ones."""
    algorithm = build(ALGORITHMS["Fish"], lr=0.1, meta_lr=1.0, optimizer="sgd")
    one_by_one = copy.deepcopy(algorithm)
    (first, second), engine, alone = minibatches(), Engine("cpu", "bf16"), Engine("cpu", "bf16")
    engine.prepare(algorithm)
    algorithm.update([first, second])
    alone.prepare(one_by_one)
    one_by_one.update([first])
    one_by_one.update([second])
    for found, expected in zip(algorithm.parameters(), one_by_one.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_what_cannot_be_honoured_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Fish can't compute a step in 2 parts .* takes its optimiser steps itself"):
        Engine("cpu", "float32", accumulate=2).prepare(build(ALGORITHMS["Fish"]))
    with pytest.raises(UserError, match="CORAL can't compute a step in 2 parts .* whole batch"):
        Engine("cpu", "float32", accumulate=2).prepare(build(ALGORITHMS["CORAL"]))
    monkeypatch.setattr("domainbed.engine.check_compiler", lambda on_cpu: None)
    with pytest.raises(UserError, match="DANN differentiates gradients, which torch.compile does not support"):
        Engine("cpu", "float32", compile=True).prepare(build(ALGORITHMS["DANN"], grad_penalty=1.0))


def test_restart_makes_the_next_step_a_first_one() -> None:
    from domainbed.algorithms.stepper import Stepper

    algorithm = build(ALGORITHMS["ERM"], lr=1e-2)
    stepper = Stepper(algorithm)
    algorithm.train_step(minibatches(), stepper)
    stepper.restart()
    fresh = copy.deepcopy(algorithm)
    algorithm.train_step(minibatches(seed=1), stepper)
    fresh.train_step(minibatches(seed=1), Stepper(fresh))
    for found, expected in zip(algorithm.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["CORAL", "DANN"])
def test_a_penalty_on_features_needs_an_encoder(name: str) -> None:
    with pytest.raises(ValueError, match="model = none has no encoder, .* Use model=mlp"):
        ALGORITHMS[name]((12,), 3, 2, {"model": "none"})
    ALGORITHMS[name]((12,), 3, 2, {"model": "mlp"})
