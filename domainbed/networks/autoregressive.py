"""Autoregressive networks over grids of codes: a distribution of each code given those before it in reading order.

`GatedPixelCNN` is p(codes) = prod over i p(code_i | code_0, …, code_i-1), rows from the top, each from the left. Where
the codes come from is `quantizer`; the loss is in `algorithms.code_prior`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Sides of the kernels as they would be without causality, of the first layer and of the others: those of the paper's
#: authors for PixelCNN (van den Oord et al. 2016a, table 1).
FIRST_KERNEL, KERNEL = 7, 3


class GatedPixelCNN(nn.Module):
    """Gated PixelCNN (van den Oord et al. 2016b, arXiv 1606.05328, section 2) over a grid of any size.

    A vertical stack sees all rows above, a horizontal one what is to the left in the same row and, through 1 x 1
    convolutions, the vertical stack: so nothing before a code is hidden from it within reach (2.3). Kernels are halved
    and their inputs shifted, instead of masked. The last layer begins at zero, that is with a uniform distribution.

    Args:
        num_codes: K.
        hidden_dim: channels of both stacks.
        num_layers: gated layers.

    Attributes:
        reach: number of rows above its own that a code's distribution depends on, and of columns to either side.
    """

    def __init__(self, num_codes: int, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, hidden_dim)
        self.layers = nn.ModuleList(_GatedLayer(hidden_dim, first=index == 0) for index in range(num_layers))
        to_logits = nn.Conv2d(hidden_dim, num_codes, 1)
        nn.init.zeros_(to_logits.weight)
        nn.init.zeros_(to_logits.bias)  # type: ignore[arg-type]
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(hidden_dim, hidden_dim, 1), nn.ReLU(), to_logits)
        self.reach = FIRST_KERNEL // 2 + 1 + (num_layers - 1) * (KERNEL // 2)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits (B, K, h, w) for codes (B, h, w); those at a place depend only on the codes before it."""
        vertical = horizontal = self.embedding(codes).movedim(-1, 1)  # (B, C, h, w)
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal)
        return self.head(horizontal)

    def nll(self, codes: Tensor) -> Tensor:
        """Return -log p(codes), (B,) nats, summed over the grid, for codes (B, h, w)."""
        return F.cross_entropy(self(codes).float(), codes, reduction="none").flatten(1).sum(1)

    @torch.no_grad()
    def sample(self, n: int, grid: tuple[int, int]) -> Tensor:
        """Draw codes (n, h, w) one by one, with torch's generator, each for all n together.

        A grid costs h w passes, each over no more rows than the place and its reach.
        """
        codes = torch.zeros(n, *grid, dtype=torch.int64, device=self.embedding.weight.device)
        for row in range(grid[0]):
            seen = codes[:, max(0, row - self.reach) : row + 1]  # a view: what is drawn is seen by the next
            for column in range(grid[1]):
                logits = self(seen)[:, :, -1, column].float()  # (n, K)
                seen[:, -1, column] = torch.multinomial(logits.softmax(1), 1).squeeze(1)
        return codes


class _GatedLayer(nn.Module):
    """One layer of both stacks (figure 2 of the paper): tanh(a) sigmoid(b), the horizontal one residual but the first.

    The first layer leaves out the place itself; a residual connection there would show it.
    """

    def __init__(self, channels: int, first: bool) -> None:
        super().__init__()
        self.first = first
        kernel = FIRST_KERNEL if first else KERNEL
        self.margin = kernel // 2
        self.vertical = nn.Conv2d(channels, 2 * channels, (self.margin + 1, kernel))
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, self.margin + 1))
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        """Return both stacks (B, C, h, w) for both (B, C, h, w)."""
        shift = int(self.first)  # by one row up and one column to the left
        v = self.vertical(F.pad(vertical, (self.margin, self.margin, self.margin + shift, -shift)))
        h = self.horizontal(F.pad(horizontal, (self.margin + shift, -shift, 0, 0)))
        gated = self.out(_gate(h + self.across(v)))
        return _gate(v), gated if self.first else horizontal + gated


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)
