"""The codebook does what the paper's equations say, and what another library makes of them."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from domainbed.networks.quantizer import GridDecoder, GridEncoder, ResidualBlock, VectorQuantizer

K, D = 16, 5
NEVER = 1e-30  # no count of these tests falls so low


def grids(seed: int, batch: int = 4, scale: float = 1.0) -> Tensor:
    """Random vectors (B, D, 3, 4)."""
    return scale * torch.randn(batch, D, 3, 4, generator=torch.Generator().manual_seed(seed))


def pair(decay: float = 0.99) -> tuple[VectorQuantizer, VectorQuantize]:
    """This codebook and the oracle's in one state: every code used once per batch so far."""
    oracle = VectorQuantize(
        D, K, decay=decay, eps=1e-5, commitment_weight=1.0, rotation_trick=False, accept_image_fmap=True
    ).train()
    quantizer = VectorQuantizer(K, D, decay, restart_below=NEVER)
    quantizer.embedding.copy_(torch.randn(K, D, generator=torch.Generator().manual_seed(9)))
    quantizer.counts.fill_(1.0)
    quantizer.sums.copy_(quantizer.embedding)
    oracle._codebook.embed.copy_(quantizer.embedding)
    oracle._codebook.embed_avg.copy_(quantizer.embedding)
    return quantizer, oracle


@pytest.mark.parametrize("decay", [0.99, 0.5])
def test_vectors_codes_commitment_gradient_and_six_updates_agree_with_another_library(decay: float) -> None:
    quantizer, oracle = pair(decay)
    for step in range(6):
        mine, theirs = grids(step).requires_grad_(), grids(step).requires_grad_()
        quantized, codes = quantizer(mine)
        expected, expected_codes, commitment = oracle(theirs)
        assert torch.equal(codes, expected_codes)
        torch.testing.assert_close(quantized, expected)
        torch.testing.assert_close((mine - quantized.detach()).square().mean(), commitment.squeeze())
        weights = grids(100 + step)  # an arbitrary gradient from behind
        (quantized * weights).sum().backward()
        (expected * weights).sum().backward()
        assert torch.equal(mine.grad, weights) and torch.equal(theirs.grad, weights)  # straight through
        quantizer.update(mine, codes)
        torch.testing.assert_close(quantizer.embedding, oracle._codebook.embed[0])
        torch.testing.assert_close(quantizer.counts, oracle._codebook.cluster_size[0])
        torch.testing.assert_close(quantizer.sums, oracle._codebook.embed_avg[0])
    assert not torch.allclose(quantizer.embedding, pair()[0].embedding, atol=0.01)


def test_two_updates_of_two_codes_by_hand() -> None:
    quantizer = VectorQuantizer(2, 1, decay=0.5, restart_below=NEVER)
    quantizer.embedding.copy_(torch.tensor([[0.0], [10.0]]))
    quantizer.counts.fill_(1.0)
    quantizer.sums.copy_(quantizer.embedding)
    z = torch.tensor([1.0, 2.0, 9.0]).view(1, 1, 1, 3)
    assert quantizer.nearest(z).flatten().tolist() == [0, 0, 1]
    quantizer.update(z, quantizer.nearest(z))
    # N = (1 + 2) / 2, (1 + 1) / 2; m = (0 + 3) / 2, (10 + 9) / 2
    torch.testing.assert_close(quantizer.counts, torch.tensor([1.5, 1.0]))
    torch.testing.assert_close(quantizer.sums, torch.tensor([[1.5], [9.5]]))
    torch.testing.assert_close(quantizer.embedding, torch.tensor([[1.0], [9.5]]), rtol=0, atol=1e-4)  # smoothing
    quantizer.update(z, quantizer.nearest(z))
    torch.testing.assert_close(quantizer.counts, torch.tensor([1.75, 1.0]))
    torch.testing.assert_close(quantizer.embedding, torch.tensor([[2.25 / 1.75], [9.25]]), rtol=0, atol=1e-4)


def test_smoothing_does_not_enter_the_counts() -> None:
    quantizer = pair()[0]
    for step in range(50):
        quantizer.update(grids(step), torch.zeros(4, 3, 4, dtype=torch.int64))
    expected = [1 + (48 - 1) * (1 - 0.99**50)] + [0.99**50] * (K - 1)
    torch.testing.assert_close(quantizer.counts, torch.tensor(expected))


def test_the_nearest_vector_is_that_of_the_full_distances() -> None:
    quantizer = VectorQuantizer(64, D)
    z = grids(0, batch=50)
    vectors = z.movedim(1, -1).reshape(-1, D).double()
    distances = (vectors.unsqueeze(1) - quantizer.embedding.double()).square().sum(2)
    assert torch.equal(quantizer.nearest(z).flatten(), distances.argmin(1))


def test_distances_are_of_float32_under_autocast() -> None:
    quantizer = VectorQuantizer(2, 1)
    quantizer.embedding.copy_(torch.tensor([[1.0], [1.001]]))  # the same number in bfloat16
    z = torch.tensor([1.0009]).view(1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        quantized, codes = quantizer(z)
    assert codes.item() == 1
    assert quantized.dtype == torch.float32
    assert quantized.item() == pytest.approx(1.001, abs=1e-6)


def test_the_forward_pass_moves_nothing() -> None:
    quantizer = VectorQuantizer(K, D).train()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(grids(0))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


def test_lookup_is_the_inverse_of_the_codes() -> None:
    quantizer = VectorQuantizer(K, D)
    quantized, codes = quantizer(grids(0))
    assert codes.shape == (4, 3, 4) and codes.dtype == torch.int64
    torch.testing.assert_close(quantizer.lookup(codes), quantized)
    assert torch.equal(quantizer.nearest(quantizer.lookup(codes)), codes)


def test_the_first_update_takes_the_codebook_from_the_batch() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(K, D)
    z = grids(0) + 50.0  # far from where the codebook begins: all choose one code
    codes = quantizer.nearest(z)
    (chosen,) = codes.unique().tolist()
    quantizer.update(z, codes)
    vectors = z.movedim(1, -1).reshape(-1, D)
    fresh = torch.arange(K) != chosen
    distances = (quantizer.embedding[fresh].unsqueeze(1) - vectors).norm(dim=2)  # (K - 1, BHW)
    assert distances.amin(1).max() < 1e-2
    assert len(distances.argmin(1).unique()) == K - 1  # no vector twice
    torch.testing.assert_close(quantizer.embedding[chosen], vectors.mean(0), rtol=0, atol=1e-2)
    assert len(quantizer.nearest(z).unique()) > K / 2


def test_a_restart_resets_vector_sum_and_count_of_dead_codes_alone() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(K, D, decay=0.9, restart_below=0.1)
    quantizer.counts.fill_(3.0)  # 48 vectors for 16 codes
    quantizer.sums.copy_(3.0 * quantizer.embedding)
    quantizer.counts[5] = 0.3  # becomes 0.27, below 0.1 * 3
    quantizer.sums[5] = 0.3 * quantizer.embedding[5]
    reference = VectorQuantizer(K, D, decay=0.9, restart_below=NEVER)
    reference.load_state_dict(quantizer.state_dict())
    z = grids(1)
    codes = torch.where(quantizer.nearest(z) == 5, 6, quantizer.nearest(z))  # none chooses 5
    quantizer.update(z, codes)
    reference.update(z, codes)
    others = torch.arange(K) != 5
    torch.testing.assert_close(quantizer.counts[5], torch.tensor(0.3))  # the limit
    torch.testing.assert_close(quantizer.sums[5], 0.3 * quantizer.embedding[5], rtol=1e-3, atol=1e-4)
    vectors = z.movedim(1, -1).reshape(-1, D)
    assert (vectors - quantizer.embedding[5]).norm(dim=1).min() < 1e-3
    assert torch.equal(quantizer.counts[others], reference.counts[others])
    assert torch.equal(quantizer.sums[others], reference.sums[others])
    assert (reference.counts[5], quantizer.usage[5]) == (pytest.approx(0.27), 0.0)


def test_a_restarted_code_stays_only_if_it_is_chosen() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 1, decay=0.9, restart_below=0.1)
    quantizer.counts.copy_(torch.tensor([10.0, 0.0]))
    z = torch.linspace(0.0, 1.0, 10).view(1, 1, 1, 10)
    quantizer.update(z, torch.zeros(1, 1, 10, dtype=torch.int64))
    first = quantizer.embedding[1].clone()
    quantizer.update(z, torch.zeros(1, 1, 10, dtype=torch.int64))  # again none chooses it
    second = quantizer.embedding[1].clone()
    assert first != second
    codes = torch.zeros(1, 1, 10, dtype=torch.int64)
    codes[..., -1] = 1
    quantizer.update(z, codes)  # one does: 0.9 * 0.5 + 0.1 * 1 is above the limit of 0.5
    assert quantizer.counts[1] == pytest.approx(0.55)
    torch.testing.assert_close(quantizer.embedding[1], (0.45 * second + 0.1) / 0.55, rtol=0, atol=1e-3)


def test_a_batch_smaller_than_the_codebook_fills_it_all_the_same() -> None:
    quantizer = VectorQuantizer(40, D)
    z = grids(0, batch=1)  # 12 vectors
    quantizer.update(z, quantizer.nearest(z))
    assert quantizer.embedding.isfinite().all()
    assert (quantizer.counts > 0).all()


def test_restarts_are_drawn_with_torchs_generator() -> None:
    def updated(seed: int) -> Tensor:
        torch.manual_seed(0)
        quantizer = VectorQuantizer(K, D)
        torch.manual_seed(seed)
        quantizer.update(grids(0), quantizer.nearest(grids(0)))
        return quantizer.embedding

    assert torch.equal(updated(1), updated(1))
    assert not torch.equal(updated(1), updated(2))


def test_restarts_bring_a_collapsed_codebook_to_use() -> None:
    torch.manual_seed(0)
    alive, collapsed = VectorQuantizer(K, D, 0.9, 0.03), VectorQuantizer(K, D, 0.9, NEVER)
    for quantizer in (alive, collapsed):
        quantizer.counts.fill_(1e-3)
        quantizer.embedding[0] = 20.0  # all inputs lie near it, none near the others
        quantizer.sums.copy_(1e-3 * quantizer.embedding)
        for step in range(100):
            z = grids(step) + 20.0
            quantizer.update(z, quantizer.nearest(z))
    assert alive.perplexity() > 0.7 * K
    assert collapsed.perplexity() == pytest.approx(1.0)


def test_usage_is_an_average_of_frequencies_and_its_perplexity_that_of_the_mixture() -> None:
    quantizer = VectorQuantizer(4, D, decay=0.5, restart_below=NEVER)
    assert quantizer.perplexity() == 1.0
    z = torch.zeros(1, D, 1, 4)
    quantizer.update(z, torch.tensor([[[0, 0, 1, 2]]]))
    quantizer.update(z, torch.tensor([[[0, 1, 1, 1]]]))
    frequencies = torch.tensor([0.25 * 0.5 + 0.5 * 0.25, 0.25 * 0.25 + 0.5 * 0.75, 0.25 * 0.25, 0.0])
    torch.testing.assert_close(quantizer.usage, frequencies)
    distribution = torch.distributions.Categorical(probs=frequencies)
    torch.testing.assert_close(quantizer.perplexity(), distribution.entropy().exp())
    codes = torch.tensor([[[0, 1]], [[2, 2]]])
    expected = -distribution.log_prob(codes.flatten(1)).sum(1)
    torch.testing.assert_close(quantizer.nll(codes), expected, rtol=1e-3, atol=1e-3)


def test_before_the_first_update_every_code_costs_log_k() -> None:
    quantizer = VectorQuantizer(K, D)
    torch.testing.assert_close(
        quantizer.nll(torch.zeros(2, 3, 4, dtype=torch.int64)), torch.full((2,), 12 * math.log(K))
    )


@pytest.mark.parametrize(
    ("size", "num_halvings"), [((32, 32), 2), ((33, 31), 2), ((17, 23), 3), ((3, 5), 1), ((1, 9), 4)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_encoder_and_decoder_meet_at_the_grid_for_any_size(
    size: tuple[int, int], num_halvings: int, channels: int
) -> None:
    shape = (channels, *size)
    encoder, decoder = GridEncoder(shape, D, 8, num_halvings, 1), GridDecoder(shape, D, 8, num_halvings, 1)
    z = encoder(torch.rand(2, *shape))
    assert encoder.grid == tuple(math.ceil(side / 2**num_halvings) for side in size)
    assert z.shape == (2, D, *encoder.grid)
    assert decoder(z).shape == (2, *shape)


def test_the_decoder_cuts_off_what_the_encoder_pads() -> None:
    encoder, decoder = GridEncoder((1, 7, 5), D, 8, 2, 0), GridDecoder((1, 7, 5), D, 8, 2, 0)
    x = torch.rand(1, 1, 7, 5)
    assert torch.equal(F.pad(F.pad(x, encoder.margins), decoder.margins), x)


def test_a_residual_block_adds_to_its_input() -> None:
    block = ResidualBlock(4)
    torch.nn.init.zeros_(block.layers[-1].weight)
    torch.nn.init.zeros_(block.layers[-1].bias)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(block(x), x)
