"""The engine: precision, gradients, the step, and that evaluation leaves training's noise alone."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm.layers
import torch
from torch import nn

from domainbed import device as device_module
from domainbed.algorithms.autoencoder import AE
from domainbed.algorithms.vae import VAE
from domainbed.engine import Engine
from domainbed.errors import UserError
from domainbed.fake_gpu import WarnOfSynchronisation, fake_gpu
from domainbed.kernels import avoid_slow_kernels, keep_tiny_convolutions_in_float32
from domainbed.objectives import rows, schedules
from domainbed.registry import ALGORITHMS
from domainbed.stepping import NonFiniteLoss
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


# timm's layers are subclasses of torch's that compute something else: padding as TensorFlow's, weights standardised, an
# activation behind the norm.
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.GroupNorm(2, 6),
        lambda: nn.GroupNorm(6, 6),
        lambda: timm.layers.GroupNormAct(6, 2),
        lambda: timm.layers.Conv2dSame(6, 8, 3, stride=2),
        lambda: timm.layers.StdConv2d(6, 8, 3, stride=2, padding=1),
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 8, 1), nn.ReLU(inplace=True)),
    ],
    ids=["GroupNorm", "instance norm", "GroupNormAct", "Conv2dSame", "StdConv2d", "ReLU"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [2, 9])
def test_layers_that_go_another_way_compute_the_same(
    make: Callable[[], nn.Module], dtype: torch.dtype, side: int
) -> None:
    torch.manual_seed(0)
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    reference = copy.deepcopy(module).double()
    for _ in range(2):  # an algorithm may be prepared again
        keep_tiny_convolutions_in_float32(module)
        avoid_slow_kernels(module)
    x = torch.randn(4, 6, side, side + 1).to(memory_format=torch.channels_last)
    given, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = module((1 * given).to(dtype))
    wanted = reference(1 * exact)
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(wanted)
    (found.double() * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert given.grad is not None and exact.grad is not None
    for ours, theirs in ((found, wanted), (given.grad, exact.grad)):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize(
    ("groups", "dtype", "is_nchw"),
    [(2, torch.bfloat16, False), (4, torch.bfloat16, True), (16, torch.bfloat16, True), (16, torch.float32, False)],
)
def test_narrow_groups_are_normalised_in_nchw_order_in_bf16(
    groups: int, dtype: torch.dtype, is_nchw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, seen, group_norm = nn.GroupNorm(groups, 16), [], nn.functional.group_norm
    monkeypatch.setattr(nn.functional, "group_norm", lambda x, *args: (seen.append(x), group_norm(x, *args))[1])
    avoid_slow_kernels(norm)
    x = torch.randn(2, 16, 5, 5, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert norm(x).is_contiguous(memory_format=torch.channels_last)
    assert [one.is_contiguous() for one in seen] == [is_nchw]


def test_relu_is_not_in_place_in_bf16_on_a_cpu_and_others_stay() -> None:
    relu, leaky = nn.ReLU(inplace=True), nn.LeakyReLU(inplace=True)
    avoid_slow_kernels(nn.Sequential(relu, leaky))
    assert not relu.inplace and leaky.inplace


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
            assert not torch.backends.cudnn.benchmark, "figures must not depend on which kernel was quicker"
            draws.append(torch.randn(3))
    assert algorithm.training
    assert torch.backends.cudnn.benchmark, "a training step may try kernels"
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
        (lambda: throw(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate")), "CUBLAS"),
        (lambda: throw(MemoryError("std::bad_alloc")), "std::bad_alloc"),
    ],
)
def test_memory_that_runs_out_says_what_to_lower(monkeypatch: pytest.MonkeyPatch, run_out, says: str) -> None:
    algorithm = build(AE, latent_dim=8)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    before = copy.deepcopy(algorithm.state_dict())
    monkeypatch.setattr(AE, "losses", lambda self, minibatches: run_out())
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
    monkeypatch.setattr(AE, "losses", lambda self, minibatches: throw(bug))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        algorithm.update(minibatches())
    with pytest.raises(RuntimeError, match="mat1 and mat2"), engine.evaluation(algorithm, seed=0):
        raise bug


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            "NCCL error: unhandled cuda error, Failed to CUDA malloc: out of memory",
            "several processes ran out of memory",
        ),
        ("ncclInvalidUsage\nDuplicate GPU detected : rank 1 and rank 0", "two of 2 processes have one GPU"),
        ("[Rank 1] NCCL communicator was aborted", "another process of this run has ended"),
    ],
)
def test_what_nccl_says_is_told_apart(monkeypatch: pytest.MonkeyPatch, error: str, says: str) -> None:
    engine = Engine("cpu", "float32")
    engine.num_processes = 2
    monkeypatch.setattr(engine.accelerator, "reduce", lambda *arguments: throw(RuntimeError(error)))
    with pytest.raises(UserError, match=says):
        engine.any(True)


@pytest.mark.parametrize("error", ["ncclInternalError: not of memory", "mat1 and mat2 shapes"])
def test_an_error_in_several_processes_that_is_none_of_these_stays_what_it_is(error: str) -> None:
    engine = Engine("cpu", "float32")
    engine.num_processes = 2
    with pytest.raises(RuntimeError, match=error), engine.partners_explained():
        raise RuntimeError(error)


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
    monkeypatch.setattr(device_module, "cpu_has_bf16", lambda: False)
    assert Engine("auto", "auto").precision == "float32"
    monkeypatch.setattr(device_module, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(device_module, "bf16_pays", lambda device: True)
    assert Engine("auto", "auto").precision == "bf16"


@pytest.mark.parametrize(
    ("device", "what"), [("cpu", r"C\+\+ compiler.*'g\+\+'"), ("auto", "C compiler.*'gcc' or 'clang'")]
)
def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, device: str, what: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=f"compile = true needs a {what}"):
        Engine(device, compile=True)


@pytest.fixture
def cudnn_precision():
    """Give back torch's choice for convolutions."""
    before = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def test_the_log_says_where_a_gpu_computes_float32_in_tf32(monkeypatch: pytest.MonkeyPatch, cudnn_precision) -> None:
    engine = Engine("cpu", "float32")
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert "TF32" not in engine.describe(), "a processor does not"
    engine.device = torch.device("cuda")
    assert engine.describe().startswith("cuda (a GPU), float32 (convolutions in TF32), ")
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert "TF32" not in engine.describe()
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    assert "TF32" in engine.describe()
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    assert "TF32" not in engine.describe(), "nor does an older GPU"


def test_images_go_to_a_gpu_pinned_and_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, pinned = Engine("cpu", "float32"), []
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (pinned.append(self), self)[1])
    with fake_gpu() as gpu, WarnOfSynchronisation():
        engine.device = gpu
        x = engine.to_device(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert x.is_cuda and len(pinned) == 1


def gradient_steps(**hparams) -> tuple[list[torch.Tensor], AE]:
    """Return how far plain SGD with lr 1 moves the weights in each of four steps, and the algorithm."""
    algorithm = build(AE, latent_dim=8, optimizer="sgd", lr=1e-3, **hparams)
    Engine("cpu", "float32").prepare(algorithm, steps=4)
    moved = []
    for step in range(4):
        before = [parameter.clone() for parameter in algorithm.parameters()]
        algorithm.update(minibatches(seed=step))
        moved.append(
            torch.cat([(a - b).flatten() for a, b in zip(algorithm.parameters(), before, strict=True)]).detach()
        )
    return moved, algorithm


def test_the_learning_rate_is_that_of_torchs_schedulers() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    warmup, steps = 3, 20
    scheduler = torch.optim.lr_scheduler
    oracles = {
        "constant": scheduler.ConstantLR(optimizer, factor=1.0),
        "step": scheduler.StepLR(torch.optim.SGD([parameter], lr=1.0), step_size=6, gamma=0.3),
        "cosine": scheduler.SequentialLR(
            cosine := torch.optim.SGD([parameter], lr=1.0),
            [
                scheduler.LinearLR(cosine, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup - 1),
                scheduler.CosineAnnealingLR(cosine, T_max=steps - warmup),
            ],
            milestones=[warmup],
        ),
    }
    for name, oracle in oracles.items():
        for step in range(steps):
            factor = schedules.learning_rate(
                name, step, steps, warmup=warmup if name == "cosine" else 0, step_size=6, gamma=0.3
            )
            assert factor == pytest.approx(oracle.get_last_lr()[0], abs=1e-6), (name, step)
            oracle.optimizer.step()
            oracle.step()


def test_the_engine_follows_the_schedule_and_a_resumed_run_goes_on_with_it() -> None:
    algorithm = build(AE, latent_dim=8, lr=0.5, lr_schedule="cosine", lr_warmup=2)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm, steps=8)
    rates = []
    for step in range(5):
        algorithm.update(minibatches(seed=step))
        rates.append(engine.stepper.optimizers["main"].param_groups[0]["lr"])
    expected = [0.5 * schedules.learning_rate("cosine", step, 8, warmup=2) for step in range(5)]
    assert rates == pytest.approx(expected) and rates[0] == 0.25

    again, other = copy.deepcopy(algorithm.state_dict()), build(AE, latent_dim=8, lr=0.5, lr_schedule="cosine")
    state = engine.state()
    other.load_state_dict(again)
    engine = Engine("cpu", "float32")
    engine.prepare(other, steps=8)
    engine.load_state(state)
    other.update(minibatches())
    assert engine.stepper.optimizers["main"].param_groups[0]["lr"] == pytest.approx(
        0.5 * schedules.learning_rate("cosine", 5, 8), rel=1e-9
    )
    unaware = build(AE, lr_schedule="cosine")
    Engine("cpu", "float32").prepare(unaware)  # is enough to evaluate
    with pytest.raises(ValueError, match="number of steps"):
        unaware.update(minibatches())


def test_clipping_bounds_the_gradient_and_keeps_its_direction() -> None:
    free, _ = gradient_steps()
    clipped, _ = gradient_steps(clip_norm=0.05)
    loose, _ = gradient_steps(clip_norm=1e6)
    assert free[0].norm() > 0.05e-3 * 2, "otherwise there is nothing to clip"
    assert clipped[0].norm().item() == pytest.approx(0.05e-3, rel=1e-2)
    assert torch.cosine_similarity(free[0], clipped[0], dim=0).item() == pytest.approx(1, abs=1e-3)
    assert torch.allclose(free[0], loose[0])


def test_a_running_mean_of_the_weights_is_what_is_judged() -> None:
    algorithm = build(AE, latent_dim=8, weight_ema=0.5, lr=0.01)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    x = minibatches()[0][0]
    mean = {name: value.clone() for name, value in algorithm.named_parameters()}
    for step in range(6):
        algorithm.update(minibatches(seed=step))
        decay = min(0.5, (1 + step + 1) / (10 + step + 1))
        mean = {name: decay * mean[name] + (1 - decay) * value.detach() for name, value in algorithm.named_parameters()}
    trained = {name: value.clone() for name, value in algorithm.state_dict().items()}
    with engine.evaluation(algorithm, seed=0):
        judged = algorithm.reconstruct(x)
        for name, value in algorithm.named_parameters():
            assert torch.allclose(value, mean[name], atol=1e-6), name
    assert all(torch.equal(value, trained[name]) for name, value in algorithm.state_dict().items())
    reference = build(AE, latent_dim=8)
    reference.load_state_dict(mean, strict=False)
    reference.eval()
    assert torch.allclose(judged, reference.reconstruct(x), atol=1e-5)


def test_a_run_with_a_running_mean_goes_on_bit_for_bit() -> None:
    def start(weights=None, state=None):
        torch.manual_seed(0)
        algorithm = build(AE, latent_dim=8, weight_ema=0.9, optimizer="adam")
        if weights:
            algorithm.load_state_dict(weights)
        engine = Engine("cpu", "float32")
        engine.prepare(algorithm)
        if state:
            engine.load_state(state)
        return algorithm, engine

    def judged(algorithm, engine):
        with engine.average.in_place():
            return copy.deepcopy(algorithm.state_dict())

    straight, engine = start()
    for step in range(6):
        straight.update(minibatches(seed=step))
        if step == 2:
            saved, state = judged(straight, engine), copy.deepcopy(engine.state())
    resumed, other = start(saved, state)
    for step in range(3, 6):
        resumed.update(minibatches(seed=step))
    for found, expected in (
        (resumed.state_dict(), straight.state_dict()),
        (judged(resumed, other), judged(straight, engine)),
    ):
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert not torch.equal(saved["bottleneck.weight"], straight.state_dict()["bottleneck.weight"])


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_pieces_is_the_same_batch(noise: float, accumulate: int) -> None:
    found = []
    for pieces in (1, accumulate):
        algorithm = build(AE, latent_dim=8, noise=noise, optimizer="sgd", lr=1e-3)
        Engine("cpu", "float32", accumulate=pieces).prepare(algorithm)
        torch.manual_seed(3)
        for step in range(2):
            losses = algorithm.update(minibatches(seed=step))
        found.append((losses["loss"].item(), torch.cat([one.flatten() for one in algorithm.parameters()]).detach()))
    (loss, weights), (loss_of_pieces, weights_of_pieces) = found
    assert loss == pytest.approx(loss_of_pieces, rel=1e-5)
    assert torch.allclose(weights, weights_of_pieces, atol=1e-5)


def test_noise_of_a_part_is_that_of_its_rows_of_the_batch() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.zeros(6, 3, 4, 4).to(memory_format=layout)
        torch.manual_seed(1)
        whole = rows.randn_like(x)
        torch.manual_seed(1)
        with rows.part(rows.Part(torch.tensor([1, 4]), 6, lambda tensor: tensor)):
            part = rows.randn_like(x[:2])
        assert torch.equal(part, whole[[1, 4]])
    assert torch.randn(1).shape == rows.randn_like(torch.zeros(1)).shape, "without parts they are torch's"


def test_what_can_not_be_computed_in_pieces_is_refused() -> None:
    with pytest.raises(UserError, match="VAE can't compute a step in 2 parts .* depends on the whole batch"):
        Engine("cpu", "float32", accumulate=2).prepare(build(VAE, free_bits=0.1))
    algorithm = build(AE, latent_dim=8)
    Engine("cpu", "float32", accumulate=3).prepare(algorithm)
    with pytest.raises(UserError, match="accumulate = 3 pieces of 4 images are not equal"):
        algorithm.update(minibatches())


def test_whether_bf16_pays_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOMAINBED_CACHE", str(tmp_path))
    monkeypatch.setattr(device_module, "cpu_has_bf16", lambda: True)
    asked: list[bool] = []

    def seconds(device: torch.device, in_bf16: bool) -> float:
        asked.append(in_bf16)
        return 3.0 if in_bf16 else 2.0

    monkeypatch.setattr(device_module, "_seconds_of_convolutions", seconds)
    for _ in range(2):
        assert Engine("cpu", "auto").precision == "float32"
    assert Engine("cpu", "bf16").precision == "bf16", "asked for is asked for"
    assert asked == [False, True]
    (tmp_path / "precision.json").write_text("[")
    monkeypatch.setattr(device_module, "_seconds_of_convolutions", lambda device, in_bf16: 1.0 - 0.5 * in_bf16)
    assert Engine("cpu", "auto").precision == "bf16"


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the processor needs g++")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_a_compiled_loss_is_the_same_loss() -> None:
    found = []
    for compiled in (False, True):
        algorithm = build(AE, latent_dim=8, optimizer="sgd", lr=1e-3)
        Engine("cpu", "float32", compile=compiled).prepare(algorithm)
        torch.manual_seed(3)
        found.append([algorithm.update(minibatches(seed=step))["loss"].item() for step in range(3)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("name", ["AE", "ERM", "UNet", "VAE_DG", "VQVAE"])
def test_a_run_in_bf16_goes_on_bit_for_bit(name: str) -> None:
    def start():
        algorithm = build(ALGORITHMS[name])
        engine = Engine("cpu", "bf16", deterministic=True)
        engine.prepare(algorithm)
        return algorithm, engine

    def train(algorithm, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            algorithm.update(minibatches(seed=step, algorithm=algorithm))

    (straight, _), (stopped, engine), (resumed, other) = start(), start(), start()
    train(straight, 0, 4)
    train(stopped, 0, 2)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    other.load_state(copy.deepcopy(engine.state()))
    train(resumed, 2, 4)
    Engine("cpu", "float32")  # kernels of any kind again
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in straight.state_dict().items())
