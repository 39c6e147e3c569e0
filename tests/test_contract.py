"""Every registered algorithm keeps every promise of `domainbed.testing`, and each check can fail."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from domainbed import checkpoint
from domainbed.algorithms.autoencoder import AE
from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.vae_dg import VAE_DG
from domainbed.engine import Engine
from domainbed.hparams import Field, NonNegativeFloat
from domainbed.registry import ALGORITHMS
from domainbed.testing import (
    CHECKS,
    build,
    check_algorithm,
    check_alive,
    check_anchored,
    check_batch_size_does_not_matter,
    check_evaluation_is_deterministic,
    check_every_parameter_learns,
    check_overfits_one_batch,
    check_parts_make_the_same_step,
    check_resume_is_exact,
    check_runs_on_a_gpu,
    check_save_and_load,
    check_shapes,
    minibatches,
)  # fmt: skip

SMALL = {
    "VAE_DG": {"latent_dim": 16},
    "AE": {"latent_dim": 16},
    "VAE": {"latent_dim": 16},
    "UNet": {"width": 4},
    "HVAE": {"encoder_hidden_dims": [8, 16, 16], "latent_dims": [6, 4], "lr": 3e-3},
    "VQVAE": {"num_codes": 32, "code_dim": 8, "hidden_dim": 16, "num_blocks": 1},
    "CodePrior": {"hidden_dim": 16, "num_layers": 3},
}


#: Options under which no term depends on the whole batch, and noise is drawn.
IN_PARTS = {
    "AE": {"noise": 0.3},
    "CVAE": {"likelihood": "gaussian", "perturbed_share": 0.5},
    "HVAE": {"likelihood": "gaussian"},
    "UNet": {"loss": "ce"},
    "VAE": {"likelihood": "gaussian"},
    "VQVAE": {"likelihood": "gaussian"},
}


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_step_in_parts(name: str) -> None:
    options = SMALL.get(name, {}) | IN_PARTS[name]
    assert not build(ALGORITHMS[name], **options).batch_coupled, "otherwise nothing is checked"
    check_parts_make_the_same_step(ALGORITHMS[name], **options)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_contract(name: str, check: Callable[..., None]) -> None:
    check(ALGORITHMS[name], **SMALL.get(name, {}))


@pytest.mark.parametrize(
    "hparams",
    [
        {"recon_reduction": "sum", "lr": 1e-3},
        {"decoder": "published"},
        {"kl_anneal_cyclical": True, "kl_anneal_end": 2, "kl_anneal_cycle_length": 4},
        {"paper_compat": True, "recon_reduction": "sum", "decoder": "published", "loss_multiplier_kl": 50_000.0},
    ],
    ids=["sum", "published decoder", "cyclical", "paper_compat"],
)
def test_vae_dg_keeps_the_contract_in_each_of_its_forms(hparams: dict) -> None:
    check_algorithm(VAE_DG, latent_dim=16, **hparams)


class Bad(AE):
    """The plain autoencoder, to be broken in one way by each subclass."""


class Forgetful(Bad):
    """Keeps something that changes outside of parameters and buffers."""

    count = 0

    def losses(self, minibatches):
        self.count += 1
        terms = super().losses(minibatches)
        return {**terms, "loss": terms["loss"] * (1 + 1 / self.count)}


class Idle(Bad):
    """Has a layer that nothing uses."""

    def __init__(self, *args):
        super().__init__(*args)
        self.unused = nn.Linear(2, 2)


class Stuck(Bad):
    """Learns nothing."""

    def losses(self, minibatches):
        return {key: value * 0 + 1 for key, value in super().losses(minibatches).items()}


class Summing(Bad):
    """Sums over the batch without saying so."""

    def losses(self, minibatches):
        x, _ = concatenate(minibatches)
        return {"loss": (self.reconstruct(x) - x).square().sum()}


class Noisy(Bad):
    """Answers differently every time."""

    def encode(self, x):
        code = super().encode(x)
        return code + torch.randn_like(code)


class Partial(Bad):
    """Keeps a mean of the images that it was given last, which are a piece of the batch."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("mean", torch.zeros(()))

    def losses(self, minibatches):
        self.seen = concatenate(minibatches)[0].mean()
        return super().losses(minibatches)

    def after_step(self):
        self.mean.copy_(self.seen)


class Unbounded(Bad):
    """Returns logits as an image."""

    def decode(self, z):
        return self.decoder(z) * 100


class Unsaved(Bad):
    """Keeps a weight that is not saved."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("offset", torch.rand(1), persistent=False)

    def encode(self, x):
        return super().encode(x) + self.offset


class Attached(Bad):
    """Keeps a tensor that `to` does not move."""

    def __init__(self, *args):
        super().__init__(*args)
        self.offset = torch.ones(8)

    def encode(self, x):
        return super().encode(x) + self.offset


class Elsewhere(Bad):
    """Makes a tensor on the processor, wherever the images are."""

    def losses(self, minibatches):
        x, _ = concatenate(minibatches)
        return {"loss": ((self.reconstruct(x) - x).square().mean((1, 2, 3)) * torch.ones(len(x))).mean()}


class OffTheGPU(Bad):
    """Returns a term that it has computed on the processor."""

    def losses(self, minibatches):
        return super().losses(minibatches) | {"extra": torch.zeros(())}


class Curious(Bad):
    """Asks for a value in every step."""

    def losses(self, minibatches):
        terms = super().losses(minibatches)
        return terms if terms["loss"] > 0 else terms


class Picky(Bad):
    """Chooses images by their values."""

    def losses(self, minibatches):
        x, y = concatenate(minibatches)
        bright = x[x.mean((1, 2, 3)) >= 0]
        return super().losses([(bright, y)])


class Sending(Bad):
    """Sends a constant to the device in every step."""

    def after_step(self):
        self.step.new_tensor([1, 2])


class Overwriting(Bad):
    """Likewise, into a buffer."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("pair", torch.zeros(2))

    def after_step(self):
        self.pair.copy_(torch.ones(2))


class SendingElsewhere(Elsewhere):
    """Waits, and mixes devices after it."""

    def losses(self, minibatches):
        torch.tensor([1.0], device=self.step.device)
        return super().losses(minibatches)


@pytest.mark.parametrize("cls", [Curious, Picky, Sending, Overwriting])
def test_what_makes_every_step_wait_for_a_gpu_is_a_warning(cls: type[Algorithm]) -> None:
    says = r"test_contract.py:\d+ \(.+\) makes the processor wait for the GPU"
    with pytest.warns(UserWarning, match=says) as warned:
        check_runs_on_a_gpu(cls, latent_dim=8)
    assert len(warned) == 1


def test_waiting_for_a_gpu_does_not_hide_a_fault_behind_it() -> None:
    fails = pytest.raises(AssertionError, match="on a GPU test_contract.py")
    with pytest.warns(UserWarning, match="wait for the GPU"), fails:
        check_runs_on_a_gpu(SendingElsewhere, latent_dim=8)


class Penalised(Bad):
    """Has the gradient's norm in its loss, as domain generalisation likes to."""

    def losses(self, minibatches):
        terms = super().losses(minibatches)
        (gradient,) = torch.autograd.grad(terms["loss"], [self.decoder.layers[0].weight], create_graph=True)
        return terms | {"loss": terms["loss"] + gradient.square().sum()}


class Drawing(Bad):
    """Takes a number that is drawn on the processor, as mixup does."""

    def losses(self, minibatches):
        terms = super().losses(minibatches)
        return {name: value * (1 + torch.rand(()).item()) for name, value in terms.items()}


class Constant(Bad):
    """Keeps a number as a tensor of no dimension, which goes with those of any device."""

    def __init__(self, *args):
        super().__init__(*args)
        self.half = torch.tensor(0.5)

    def losses(self, minibatches):
        return {name: value * self.half for name, value in super().losses(minibatches).items()}


class ReadingGradients(Bad):
    """Looks at the gradients after a step."""

    def after_step(self):
        self.size = sum(parameter.grad.square().sum() for parameter in self.parameters())


@pytest.mark.parametrize("cls", [Penalised, Drawing])
def test_what_can_not_be_followed_without_a_gpu_is_a_warning(cls: type[Algorithm]) -> None:
    with pytest.warns(UserWarning, match=r"test_contract.py:\d+ \(.+\) can't be followed without a GPU") as warned:
        check_runs_on_a_gpu(cls, latent_dim=8)
    assert len(warned) == 1


@pytest.mark.parametrize("cls", [Constant, ReadingGradients])
def test_what_runs_on_a_gpu_passes(cls: type[Algorithm]) -> None:
    check_runs_on_a_gpu(cls, latent_dim=8)


class Adaptive(AE):
    """Weighs its loss by how often it was asked, which no parameter, buffer or optimiser holds."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.history = {"weights": torch.ones(2), "count": 0}

    def losses(self, minibatches):
        terms = super().losses(minibatches)
        if self.training:
            self.history = {"weights": self.history["weights"] * 1.5, "count": self.history["count"] + 1}
        return {name: value * self.history["weights"].sum() for name, value in terms.items()}

    def training_state(self):
        return self.history

    def load_training_state(self, state):
        self.history = state


def test_a_state_of_its_own_is_saved_without_pickle_and_put_back(tmp_path: Path) -> None:
    check_resume_is_exact(Adaptive, latent_dim=8)
    algorithm = build(Adaptive, latent_dim=8)
    engine = Engine("cpu", "float32")
    engine.prepare(algorithm)
    algorithm.update(minibatches())
    checkpoint.save(tmp_path / "last", algorithm, {"step": 1}, engine.state())
    kept = checkpoint.load_state(tmp_path / "last")["algorithm"]  # with weights_only=True
    assert kept["count"] == 1 and kept["weights"].tolist() == [1.5, 1.5]


def test_without_it_a_resume_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adaptive, "training_state", lambda self: {})
    with pytest.raises(AssertionError, match="after a resume these differ"):
        check_resume_is_exact(Adaptive, latent_dim=8)


class Adrift(ERM):
    """Says that it is ERM, and draws a random number that ERM does not draw."""

    anchor = {"lr": 1e-4}

    def losses(self, minibatches):
        return {name: value * (1 + 0.1 * torch.rand(())) for name, value in super().losses(minibatches).items()}


class Dead(ERM):
    """Has a setting that does nothing."""

    class HParams(ERM.HParams):
        """Options."""

        penalty_weight: NonNegativeFloat = Field(1.0, description="weight of nothing")


def test_a_method_that_is_not_the_erm_it_says_it_is() -> None:
    with pytest.raises(AssertionError, match="from ERM's after three steps"):
        check_anchored(Adrift)


def test_a_setting_that_does_nothing() -> None:
    with pytest.raises(AssertionError, match=r"these change nothing in ten steps: \['penalty_weight'\]"):
        check_alive(Dead)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if ALGORITHMS[name].min_domains > 1])
def test_every_setting_of_a_method_that_compares_environments_is_alive(name: str) -> None:
    check_alive(ALGORITHMS[name])


@pytest.mark.parametrize(
    ("cls", "check", "says"),
    [
        (Forgetful, check_resume_is_exact, "after a resume these differ"),
        (Idle, check_every_parameter_learns, "unused.weight"),
        (Stuck, check_overfits_one_batch, "took the loss from"),
        (Summing, check_batch_size_does_not_matter, "batch_coupled"),
        (Noisy, check_parts_make_the_same_step, "in two pieces. Draw noise"),
        (Partial, check_parts_make_the_same_step, "mean differs after a step in two pieces"),
        (Noisy, check_evaluation_is_deterministic, "second time"),
        (Unbounded, check_shapes, r"not in \[0, 1\]"),
        (Unsaved, check_save_and_load, "after saving and loading"),
        (Attached, check_runs_on_a_gpu, r"on a GPU test_contract.py:\d+ \(return super\(\).encode\(x\) \+ self.offset"),
        (Elsewhere, check_runs_on_a_gpu, "two devices, cuda:0 and cpu|different devices cuda:0, cpu"),
        (OffTheGPU, check_runs_on_a_gpu, "extra is on cpu, while the images are on cuda:0"),
    ],
)
def test_each_check_finds_the_fault_it_is_there_for(cls: type[Algorithm], check: Callable, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check(cls, latent_dim=8)


def test_every_algorithm_has_a_distinct_set_of_keys_beside_the_run_and_every_data_set() -> None:
    from domainbed.registry import DATASETS
    from domainbed.settings import RunSettings

    for name in ALGORITHMS:
        keys = set(ALGORITHMS[name].HParams.model_fields)
        assert not keys & set(RunSettings.model_fields), name
        for dataset in DATASETS:
            assert not keys & set(DATASETS[dataset].HParams.model_fields), (name, dataset)


def test_an_optimiser_moves_its_own_parameters_alone() -> None:
    class Two(AE):
        def optimizers(self):
            return {
                "encoder": self.make_optimizer([*self.encoder.parameters(), *self.bottleneck.parameters()]),
                "decoder": self.make_optimizer(self.decoder.parameters()),
            }

        def train_step(self, minibatches, stepper):
            loss = self.losses(minibatches)["loss"]
            stepper.gradients(loss, self.parameters(), retain_graph=True)  # looking moves nothing
            stepper.minimise(loss, "decoder")
            return {"loss": loss}

    algorithm = Two((3, 16, 16), 0, 2, {"latent_dim": 4})
    before = {key: value.clone() for key, value in algorithm.named_parameters()}
    from domainbed.testing import minibatches

    algorithm.update(minibatches((3, 16, 16)))
    moved = {key.split(".")[0] for key, value in algorithm.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {"decoder"}  # whose loss has a gradient in the encoder, too


def overfitted(name: str, **hparams: object) -> dict[str, float]:
    """The terms of the loss after 100 steps on one batch."""
    from domainbed.testing import build, minibatches

    algorithm = build(ALGORITHMS[name], lr=3e-3, **hparams)
    for step in range(100):
        torch.manual_seed(step)
        losses = algorithm.update(minibatches())
    return {key: value.item() for key, value in losses.items()}


def test_erm_learns_the_labels_of_one_batch_by_heart() -> None:
    assert overfitted("ERM")["loss"] < 0.05  # where guessing costs log 3 = 1.10


def test_ae_learns_the_images_of_one_batch_by_heart() -> None:
    from domainbed.testing import minibatches

    x, _ = concatenate(minibatches())
    variance = (x - x.mean(0)).square().mean().item()  # the error of answering the mean image
    assert overfitted("AE", latent_dim=16)["recon_loss"] < 0.2 * variance


def test_vae_dg_learns_labels_and_images_of_one_batch_by_heart() -> None:
    from domainbed.testing import minibatches

    x, _ = concatenate(minibatches())
    terms = overfitted("VAE_DG", latent_dim=16)

    def entropy(p):  # the least that a cross-entropy with grey values can be
        return -(p * p.clamp(min=1e-7).log() + (1 - p) * (1 - p).clamp(min=1e-7).log())

    least = entropy(x).mean().item()
    of_mean_image = -(x * x.mean(0).log() + (1 - x) * (1 - x.mean(0)).log()).mean().item()
    assert terms["y_loss"] < 0.1
    assert least < terms["recon_loss"] < least + 0.5 * (of_mean_image - least)
