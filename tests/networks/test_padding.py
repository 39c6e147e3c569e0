"""Padding to a multiple, on images whose sides say what is asked of them."""

import pytest
import torch
from torch.nn import functional as F

from domainbed.networks.padding import to_multiple


@pytest.mark.parametrize(
    ("size", "factor", "least", "expected"),
    [
        ((32, 64), 8, 1, [0, 0, 0, 0]),
        ((33, 64), 8, 1, [0, 0, 3, 4]),
        ((64, 33), 8, 1, [3, 4, 0, 0]),
        ((5, 7), 1, 1, [0, 0, 0, 0]),
        ((8, 3), 8, 2, [6, 7, 4, 4]),
    ],
)
def test_sides_become_multiples_by_the_least_number_of_pixels_half_on_either_side(size, factor, least, expected):
    assert to_multiple(size, factor, least) == expected


def test_the_same_margins_pad_and_cut_off_again():
    x = torch.rand(1, 1, 19, 26)
    margins = to_multiple(x.shape[-2:], 16)
    padded = F.pad(x, margins)
    assert padded.shape == (1, 1, 32, 32)
    assert torch.equal(F.pad(padded, [-margin for margin in margins]), x)
