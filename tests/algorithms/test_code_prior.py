"""A prior over the codes of a finished run, which it never changes."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from domainbed.algorithms import finished
from domainbed.algorithms.autoencoder import AE
from domainbed.algorithms.base import concatenate
from domainbed.algorithms.code_prior import CodePrior
from domainbed.algorithms.vqvae import VQVAE
from domainbed.errors import UserError
from domainbed.testing import build, check_algorithm, minibatches, untrained_run

SMALL = {"hidden_dim": 16, "num_layers": 3}
SHAPE = (1, 17, 23)  # a grid of 5 x 6 codes


def small(**hparams: Any) -> CodePrior:
    algorithm = build(CodePrior, SHAPE, **(SMALL | hparams))
    assert isinstance(algorithm, CodePrior)
    return algorithm


def test_the_contract() -> None:
    check_algorithm(CodePrior, **SMALL)


def test_at_first_every_code_costs_log_k() -> None:
    losses = small().losses(minibatches(SHAPE))
    assert losses["loss"].item() == pytest.approx(5 * 6 * math.log(512))
    assert losses["bits_per_code"].item() == pytest.approx(9.0)


def test_the_cost_by_frequency_is_that_of_counted_codes() -> None:
    algorithm = small()
    assert algorithm.losses(minibatches(SHAPE))["bits_by_frequency"].item() == pytest.approx(9.0)
    x = concatenate(minibatches(SHAPE))[0]
    algorithm.see_training_images(lambda: x.split(3))
    counts = np.bincount(algorithm.codes(x).numpy().ravel(), minlength=512) + 1
    seen = algorithm.codes(x[:2]).numpy().ravel()
    expected = -np.log2(counts[seen] / counts.sum()).mean()
    assert algorithm.losses([(x[:2], torch.zeros(2))])["bits_by_frequency"].item() == pytest.approx(expected, rel=1e-5)


def test_it_learns_the_codes_of_one_batch_by_heart() -> None:
    algorithm = small(lr=1e-2, hidden_dim=32)
    x = concatenate(minibatches(SHAPE))[0][:2]
    quantizer, z = algorithm.coder.quantizer, algorithm.coder.encoder(x)
    quantizer.update(z, quantizer.nearest(z))  # a codebook of what an untrained encoder makes of these images
    codes = algorithm.codes(x)
    assert len(codes.unique()) > 20
    for _ in range(60):
        losses = algorithm.update([(x, torch.zeros(2))])
    assert losses["bits_per_code"] < 0.3  # two grids are 1 bit in all; independent codes of these frequencies cost more
    torch.manual_seed(0)
    drawn = algorithm.prior.sample(20, (5, 6))
    agreement = (drawn.unsqueeze(1) == codes).double().mean((2, 3)).amax(1)  # with the nearer of the two
    assert agreement.mean() > 0.8


def test_the_finished_run_stays_as_it_is() -> None:
    algorithm = small()
    before = {key: value.clone() for key, value in algorithm.frozen.state_dict().items()}
    for step in range(2):
        algorithm.train()
        algorithm.update(minibatches(SHAPE, seed=step))
    assert not algorithm.coder.training
    assert all(torch.equal(value, before[key]) for key, value in algorithm.frozen.state_dict().items())
    assert {name.partition(".")[0] for name, p in algorithm.named_parameters() if p.requires_grad} == {"prior"}


def test_a_sample_is_the_image_of_drawn_codes() -> None:
    algorithm = small().eval()
    for parameter in algorithm.prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        torch.manual_seed(1)
        images = algorithm.sample(3)
        torch.manual_seed(1)
        codes = algorithm.prior.sample(3, (5, 6))
        assert torch.equal(images, algorithm.coder.decode_codes(codes))
        torch.manual_seed(2)
        assert not torch.equal(images, algorithm.sample(3))
    assert images.shape == (3, *SHAPE)
    assert images.min() >= 0 and images.max() <= 1


def test_its_checkpoint_holds_the_finished_run() -> None:
    algorithm = small()
    algorithm.update(minibatches(SHAPE))
    other = finished.construct(CodePrior, SHAPE, 3, 2, algorithm.hparams)  # without the run's file
    x = concatenate(minibatches(SHAPE))[0]
    other.load_state_dict(algorithm.state_dict())
    assert torch.equal(algorithm.codes(x), other.codes(x))


def test_it_asks_for_a_run() -> None:
    with pytest.raises(UserError, match="codes_run is not given.* --algorithm VQVAE"):
        CodePrior(SHAPE, 3, 2, {})


def test_a_run_without_codes_is_refused() -> None:
    with pytest.raises(UserError, match=r"codes_run: .* is a run of AE, which gives no grid of discrete codes"):
        small(codes_run=untrained_run(AE, SHAPE))


def test_a_run_on_images_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"codes_run: .* takes images of 3 x 32 x 32 .* those of this run are 1 x 17"):
        small(codes_run=untrained_run(VQVAE, (3, 32, 32)))
