"""The engine: precision, gradients, the step, and that evaluation leaves training's noise alone."""

import copy

import pytest
import torch
from torch import nn

from domainbed import engine as engine_module
from domainbed.algorithms.autoencoder import AE
from domainbed.engine import Engine, NonFiniteLoss, keep_tiny_convolutions_in_float32
from domainbed.errors import UserError
from domainbed.testing import build, minibatches


@pytest.mark.parametrize("side", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (3, 3), (3, 4), (5, 2), (7, 2)])
def test_bf16_gradients_of_strided_convolutions_agree_with_float32(side: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(64, 64, kernel, stride, kernel // 2)
    reference = copy.deepcopy(module)
    keep_tiny_convolutions_in_float32(module)
    x = torch.randn(4, 64, side, side)
    reference(x).square().mean().backward()
    waste = [torch.full((1 << 18,), float("nan")) for _ in range(10)]  # what uninitialised memory would then hold
    del waste
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(x).float().square().mean()
    loss.backward()
    scale = reference.weight.grad.abs().max()
    assert (module.weight.grad - reference.weight.grad).abs().max() < 0.03 * scale


def test_bf16_runs_the_network_in_bf16_and_the_weights_stay_float32() -> None:
    algorithm = build(AE, latent_dim=8)
    engine = Engine("cpu", "bf16")
    engine.prepare(algorithm)
    seen = []
    algorithm.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    algorithm.update(minibatches())
    with engine.evaluation(algorithm, seed=0):
        algorithm.encode(minibatches()[0][0])
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert {parameter.dtype for parameter in algorithm.parameters()} == {torch.float32}


def test_float32_after_bf16_in_one_process_is_float32() -> None:
    Engine("cpu", "bf16")
    algorithm = build(AE, latent_dim=8)
    Engine("cpu", "float32").prepare(algorithm)
    seen = []
    algorithm.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    algorithm.update(minibatches())
    assert seen == [torch.float32]


def test_an_engine_takes_the_step_that_the_algorithm_would_take_alone() -> None:
    alone, prepared = (build(AE, latent_dim=8, optimizer="sgd", lr=0.1) for _ in range(2))
    Engine("cpu", "float32").prepare(prepared)
    for step in range(3):
        alone.update(minibatches(seed=step))
        prepared.update(minibatches(seed=step))
    for key, value in alone.state_dict().items():
        assert torch.allclose(value, prepared.state_dict()[key], atol=1e-5), key


def test_a_loss_that_is_not_finite_moves_nothing_and_names_its_terms() -> None:
    algorithm = build(AE, latent_dim=8)
    Engine("cpu", "float32").prepare(algorithm)
    before = copy.deepcopy(algorithm.state_dict())
    original = algorithm.losses
    algorithm.losses = lambda *args: original(*args) | {"recon_loss": torch.tensor(float("inf"))}  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLoss) as caught:
        algorithm.update(minibatches())
    assert caught.value.terms == ["recon_loss"]
    assert all(torch.equal(value, before[key]) for key, value in algorithm.state_dict().items())


def test_evaluation_has_noise_of_its_own_and_gives_the_mode_back() -> None:
    algorithm = build(AE, latent_dim=8)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    draws = []
    for _ in range(2):
        with engine.evaluation(algorithm, seed=1):
            assert not algorithm.training and not torch.is_grad_enabled()
            draws.append(torch.randn(3))
    assert algorithm.training
    assert torch.equal(*draws)
    assert torch.equal(torch.randn(3), expected)


CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB is free"
)


@pytest.mark.parametrize(
    ("run_out", "says"),
    [
        (lambda: torch.empty(1 << 60), "can't allocate memory: you tried to allocate 4611686018427387904 bytes"),
        (lambda: throw(torch.OutOfMemoryError(CUDA)), "Tried to allocate 2.00 GiB"),
        (lambda: throw(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")), "CUDA error: out of"),
        (lambda: throw(MemoryError("std::bad_alloc")), "std::bad_alloc"),
    ],
)
def test_memory_that_runs_out_says_what_to_lower(monkeypatch: pytest.MonkeyPatch, run_out, says: str) -> None:
    algorithm = build(AE, latent_dim=8)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    before = copy.deepcopy(algorithm.state_dict())
    monkeypatch.setattr(AE, "losses", lambda self, minibatches, unlabeled=None: run_out())
    with pytest.raises(UserError, match="a training step ran out of memory.*batch_size.*image_size.*model") as caught:
        algorithm.update(minibatches())
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in algorithm.state_dict().items())
    says_what = pytest.raises(UserError, match="an evaluation ran out of memory.*eval_batch_size")
    with says_what, engine.evaluation(algorithm, seed=0):
        run_out()
    assert algorithm.training
    monkeypatch.setattr(AE, "optimizers", lambda self: run_out())
    with pytest.raises(UserError, match="preparing the model ran out of memory"):
        engine.prepare(build(AE, latent_dim=8))


def test_an_error_that_is_not_about_memory_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = build(AE, latent_dim=8)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    bug = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    monkeypatch.setattr(AE, "losses", lambda self, minibatches, unlabeled=None: throw(bug))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        algorithm.update(minibatches())
    with pytest.raises(RuntimeError, match="mat1 and mat2"), engine.evaluation(algorithm, seed=0):
        raise bug


def throw(error: Exception) -> torch.Tensor:
    raise error


def test_images_arrive_in_the_unit_range_and_channels_last() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    x = Engine("cpu", "float32").to_device(images)
    assert x[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_what_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        Engine("cuda")
    monkeypatch.setattr(engine_module, "cpu_has_bf16", lambda: False)
    assert Engine("auto", "auto").precision == "float32"
    monkeypatch.setattr(engine_module, "cpu_has_bf16", lambda: True)
    assert Engine("auto", "auto").precision == "bf16"
