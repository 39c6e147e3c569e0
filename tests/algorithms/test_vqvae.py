"""The loss is the paper's, and the codebook moves after the step and nowhere else."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from domainbed.algorithms.base import Coder, Sampler, concatenate
from domainbed.algorithms.vqvae import VQVAE
from domainbed.engine import Engine
from domainbed.testing import build, check_algorithm, minibatches

SHAPE = (3, 16, 16)
SMALL = {"num_codes": 32, "code_dim": 8, "hidden_dim": 16, "num_blocks": 1}


def small(**hparams: object) -> VQVAE:
    algorithm = build(VQVAE, SHAPE, **(SMALL | hparams))
    assert isinstance(algorithm, VQVAE)
    return algorithm


def images(seed: int = 0) -> Tensor:
    return concatenate(minibatches(SHAPE, seed))[0]  # (8, 3, 16, 16)


@pytest.mark.parametrize(
    "hparams",
    [
        {"recon_reduction": "sum"},
        {"likelihood": "bernoulli"},
        {"likelihood": "sigma_vae"},
        {"num_halvings": 3, "num_blocks": 3},
    ],
    ids=["sum", "bernoulli", "sigma_vae", "coarse"],
)
def test_the_contract_holds_in_each_of_its_forms(hparams: dict) -> None:
    check_algorithm(VQVAE, **(SMALL | hparams))


def test_the_loss_is_that_of_another_library_and_a_normal_distribution() -> None:
    algorithm, x = small(commitment_weight=0.25, sigma=0.2), images()
    oracle = VectorQuantize(8, 32, commitment_weight=0.25, rotation_trick=False, accept_image_fmap=True).train()
    oracle._codebook.embed.copy_(algorithm.quantizer.embedding)
    quantized, _, commitment = oracle(algorithm.encoder(x), freeze_codebook=True)
    mean = torch.sigmoid(algorithm.decoder(quantized))
    expected = -torch.distributions.Normal(mean, 0.2).log_prob(x).mean() + commitment.squeeze()
    terms = algorithm.losses([(x, torch.zeros(len(x)))])
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["commitment_weighted"], commitment.squeeze())
    torch.testing.assert_close(terms["recon_nats"], terms["recon_loss"] * x[0].numel())
    mine = torch.autograd.grad(terms["loss"], list(algorithm.encoder.parameters()))
    theirs = torch.autograd.grad(expected, list(algorithm.encoder.parameters()))
    torch.testing.assert_close(mine, theirs)


def test_sums_are_the_means_times_what_they_are_over() -> None:
    batch = [(images(), torch.zeros(8))]
    mean, total = small().losses(batch), small(recon_reduction="sum").losses(batch)
    torch.testing.assert_close(total["recon_loss"], mean["recon_loss"] * 3 * 16 * 16)
    torch.testing.assert_close(total["commitment_loss"], mean["commitment_loss"] * 8 * 4 * 4)
    torch.testing.assert_close(total["loss"], total["recon_loss"] + 0.25 * total["commitment_loss"])


@pytest.mark.parametrize("engine", [False, True])
def test_the_codebook_moves_once_after_the_step_by_the_batch_before_it(engine: bool) -> None:
    algorithm, reference = small(), small()
    if engine:
        Engine("cpu", "float32").prepare(algorithm)
    batch = minibatches(SHAPE)
    with torch.no_grad():
        z = reference.encoder(concatenate(batch)[0])  # of the weights before the step
        codes = reference.quantizer.nearest(z)
    algorithm.losses(batch)
    before = reference.quantizer.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in algorithm.quantizer.state_dict().items())
    torch.manual_seed(5)
    algorithm.update(batch)
    torch.manual_seed(5)
    reference.quantizer.update(z, codes)
    for key, value in algorithm.quantizer.state_dict().items():
        torch.testing.assert_close(value, reference.quantizer.state_dict()[key])
    assert not any(name.startswith("quantizer") for name, _ in algorithm.named_parameters())


def test_under_bf16_the_codebook_and_its_distances_stay_in_float32() -> None:
    algorithm = small()
    engine = Engine("cpu", "bf16")
    engine.prepare(algorithm)
    for step in range(3):
        losses = algorithm.update(minibatches(SHAPE, seed=step))
    assert all(value.dtype == torch.float32 for value in algorithm.quantizer.state_dict().values())
    assert losses["loss"].dtype == torch.float32 and losses["loss"].isfinite()
    with engine.evaluation(algorithm, seed=0):
        z, codes = algorithm.encoder(images()), algorithm.codes(images())
    distances = (z.float().unsqueeze(-1) - algorithm.quantizer.embedding.T.view(1, 8, 1, 1, 32)).norm(dim=1)
    assert torch.equal(codes, distances.argmin(-1))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 17, 23)])
def test_codes_and_vectors_are_two_forms_of_one_reconstruction(shape: tuple[int, int, int]) -> None:
    algorithm = build(VQVAE, shape, **SMALL).eval()
    assert isinstance(algorithm, Coder)
    assert not isinstance(algorithm, Sampler)
    x = concatenate(minibatches(shape))[0]
    with torch.no_grad():
        codes, vectors = algorithm.codes(x), algorithm.encode(x)
        assert codes.shape == (8, *algorithm.grid) and codes.dtype == torch.int64
        assert codes.min() >= 0 and codes.max() < algorithm.num_codes == 32
        assert algorithm.grid == (math.ceil(shape[1] / 4), math.ceil(shape[2] / 4))
        assert vectors.shape == (8, 8 * math.prod(algorithm.grid))
        torch.testing.assert_close(algorithm.decode_codes(codes), algorithm.reconstruct(x))
        torch.testing.assert_close(algorithm.decode(vectors), algorithm.reconstruct(x))


def test_codes_cost_log2_k_bits_at_first_and_their_entropy_later() -> None:
    algorithm = small(ema_decay=0.9)
    batch = minibatches(SHAPE)
    first = algorithm.update(batch)
    assert first["bits_per_code"].item() == pytest.approx(5.0)
    assert first["perplexity"] == 1.0
    for parameter in algorithm.parameters():
        parameter.requires_grad_(False)  # the encoder stands still, so that the codes of the batch do
    for _ in range(60):
        algorithm.losses(batch)
        algorithm.finish_step()
    algorithm.eval()
    terms = algorithm.losses(batch)
    frequencies = F.one_hot(algorithm.codes(concatenate(batch)[0]).flatten(), 32).double().mean(0)
    entropy = torch.distributions.Categorical(probs=frequencies).entropy().item()
    assert terms["bits_per_code"].item() == pytest.approx(entropy / math.log(2), abs=0.2)
    assert terms["perplexity"].item() == pytest.approx(math.exp(entropy), rel=0.1)


def test_it_learns_the_images_of_one_batch_and_uses_its_codebook() -> None:
    algorithm, x = small(lr=1e-2), images()
    for step in range(100):
        torch.manual_seed(step)
        terms = algorithm.update([(x, torch.zeros(len(x)))])
    with torch.no_grad():
        error = (algorithm.eval().reconstruct(x) - x).square().mean()
    assert error < 0.5 * (x - x.mean(0)).square().mean()  # of the error of answering the mean image
    assert terms["perplexity"] > 10


def test_a_sigma_without_a_use_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma = 0.5 is the scale of likelihood = gaussian, log_cosh"):
        VQVAE.HParams(likelihood="bernoulli", sigma=0.5)
