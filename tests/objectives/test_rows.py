"""Noise that belongs to a row: the same whatever rows are beside it, and of the distribution that is asked for."""

import pytest
import torch

from domainbed.objectives import rows

DRAWS = {
    "normal": rows.randn_like, "uniform": rows.rand_like, "numbers": lambda x: rows.randint_like(x, 3, 9).float(),
}  # fmt: skip


@pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))
def test_the_noise_of_a_row_is_a_function_of_its_key(draw) -> None:
    keys = [5, 2**64 - 1, 0, 7]
    with rows.keyed(keys):
        first, second = draw(torch.zeros(4, 30)), draw(torch.zeros(4, 30))
    assert not torch.equal(first, second) and not torch.equal(first[0], first[3])
    with rows.keyed(keys[:0:-1]):
        assert torch.equal(draw(torch.zeros(3, 30)), first.flip(0)[:3])
        assert torch.equal(draw(torch.zeros(3, 30)), second.flip(0)[:3])


@pytest.mark.parametrize(
    ("name", "mean", "deviation"), [("normal", 0, 1), ("uniform", 0.5, 1 / 12**0.5), ("numbers", 5.5, (35 / 12) ** 0.5)]
)
def test_the_noise_of_many_rows_has_its_distribution(name: str, mean: float, deviation: float) -> None:
    with rows.keyed(range(2000)):
        drawn = DRAWS[name](torch.zeros(2000, 3, 4))
    assert drawn.mean().item() == pytest.approx(mean, abs=5 * deviation / drawn.numel() ** 0.5)
    assert drawn.std().item() == pytest.approx(deviation, rel=0.02)
    flat = drawn.flatten(1)
    assert torch.corrcoef(flat.T).fill_diagonal_(0).abs().max() < 0.12, "the values of a row depend on one another"


def test_outside_and_for_other_sizes_noise_is_torchs() -> None:
    def drawn(size: int, keys: range | None) -> torch.Tensor:
        torch.manual_seed(1)
        if keys is None:
            return rows.randn_like(torch.zeros(size, 3))
        with rows.keyed(keys):
            return rows.randn_like(torch.zeros(size, 3))

    torch.manual_seed(1)
    expected = torch.randn(6, 3)
    assert torch.equal(drawn(6, None), expected) and torch.equal(drawn(6, range(4)), expected)
    assert not torch.equal(drawn(6, range(6)), expected)
    with rows.keyed(range(2)):
        noise = rows.randn_like(torch.zeros(2, 5, dtype=torch.bfloat16))
    assert noise.dtype == torch.bfloat16 and noise.shape == (2, 5)
