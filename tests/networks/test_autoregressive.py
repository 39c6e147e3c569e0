"""No code sees itself or what comes after it, and everything before it is in sight."""

import math

import pytest
import torch
from torch import Tensor

from domainbed.networks.autoregressive import GatedPixelCNN

K, GRID = 7, (5, 6)


def network(num_layers: int = 4, seed: int = 0) -> GatedPixelCNN:
    """A network whose head is random too, so that it answers differently for different codes."""
    torch.manual_seed(seed)
    prior = GatedPixelCNN(K, 8, num_layers).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return prior


def grid(seed: int = 1, batch: int = 1, size: tuple[int, int] = GRID) -> Tensor:
    return torch.randint(K, (batch, *size), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def seen(prior: GatedPixelCNN, size: tuple[int, int]) -> Tensor:
    """(h w, h w) bool: whether the logits at a place (row) change with the code of another (column)."""
    codes = grid(size=size)
    before = prior(codes)[0].flatten(1)  # (K, h w)
    columns = []
    for place in range(codes.numel()):
        changed = codes.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 1) % K
        columns.append((prior(changed)[0].flatten(1) != before).any(0))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_logits_depend_on_no_code_at_or_after_their_place(num_layers: int) -> None:
    assert not seen(network(num_layers), GRID).triu().any()


def test_logits_depend_on_every_code_before_their_place() -> None:
    places = GRID[0] * GRID[1]
    assert torch.equal(seen(network(4), GRID), torch.ones(places, places).tril(-1).bool())  # no blind spot


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_reach_is_that_of_the_layers(num_layers: int) -> None:
    prior = network(num_layers)
    size = (prior.reach + 2, 2)
    last_row = seen(prior, size)[-2:].view(2, *size).any(0).any(1)
    assert last_row.tolist() == [False] + [True] * (prior.reach + 1)


def test_a_new_network_is_uniform() -> None:
    prior = GatedPixelCNN(K, 8, 3)
    expected = torch.full((2,), math.prod(GRID) * math.log(K))
    torch.testing.assert_close(prior.nll(grid(batch=2)), expected)


@torch.no_grad()
def test_the_probabilities_of_all_grids_sum_to_one() -> None:
    torch.manual_seed(0)
    prior = GatedPixelCNN(3, 8, 2).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    everything = torch.cartesian_prod(*[torch.arange(3)] * 6).view(-1, 2, 3)  # 3^6 grids
    log_p = -prior.nll(everything)
    assert log_p.exp().sum() == pytest.approx(1.0)
    assert log_p.std() > 0.1


def test_samples_have_the_frequencies_of_the_model() -> None:
    torch.manual_seed(0)
    prior = GatedPixelCNN(2, 8, 2)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    everything = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 2, 2)  # 16 grids
    expected = (-prior.nll(everything)).exp().detach()
    n = 5000
    found = torch.bincount(prior.sample(n, (2, 2)).flatten(1) @ torch.tensor([8, 4, 2, 1]), minlength=16) / n
    error = (expected * (1 - expected) / n).sqrt()
    assert ((found - expected).abs() < 4.5 * error + 1e-4).all()
    assert expected.max() > 3 / 16


@torch.no_grad()
def test_sampling_from_the_rows_in_reach_is_sampling_from_the_whole_grid() -> None:
    prior = network(1)
    size = (prior.reach + 4, 3)
    torch.manual_seed(3)
    short = prior.sample(2, size)
    torch.manual_seed(3)
    whole = torch.zeros(2, *size, dtype=torch.int64)
    for row in range(size[0]):
        for column in range(size[1]):
            logits = prior(whole)[:, :, row, column].float()
            whole[:, row, column] = torch.multinomial(logits.softmax(1), 1).squeeze(1)
    assert torch.equal(short, whole)


def test_samples_are_drawn_with_torchs_generator() -> None:
    prior = network(2)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return prior.sample(3, GRID)

    assert drawn(0).shape == (3, *GRID)
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_it_learns_a_grid_that_follows_a_rule() -> None:
    """Columns repeat the first row's code plus one, and so on: only the first row is random."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(4, 16, 2)
    optimizer = torch.optim.Adam(prior.parameters(), lr=2e-2)

    def ruled(batch: int) -> Tensor:
        return (torch.randint(4, (batch, 1, 4)) + torch.arange(4).view(1, 4, 1)) % 4

    for _ in range(60):
        optimizer.zero_grad()
        prior.nll(ruled(16)).mean().backward()
        optimizer.step()
    nll = prior.nll(ruled(200)).mean().item()
    entropy = 4 * math.log(4)
    assert entropy - 0.2 < nll < entropy + 0.5  # of 16 log 4 = 22.2 for independent codes
    codes = prior.sample(100, (4, 4))
    right = (codes[:, 1:] == (codes[:, :-1] + 1) % 4).double().mean()
    assert right > 0.95
