"""Parts of a VQ-VAE: a codebook that is moved by averages, and the convolutions on either side of its grid.

    image --GridEncoder--> vectors (B, D, h, w) --VectorQuantizer--> nearest codebook vectors --GridDecoder--> output

`VectorQuantizer.forward` changes nothing; `update` moves the codebook and is called once per optimiser step. The loss
is in `algorithms.vqvae`, a prior over the codes in `autoregressive`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainbed.networks import padding

#: Laplace smoothing of the counts, and of the frequencies (the authors' code, Sonnet).
EPSILON = 1e-5


class VectorQuantizer(nn.Module):
    """K vectors; each input becomes the nearest of them (van den Oord et al. 2017, eq. 1-2 and appendix A.1).

    The vectors are moving averages of the inputs that chose them. With n_i inputs nearest to vector i and s_i their
    sum, `update` computes

        N_i <- decay N_i + (1 - decay) n_i        m_i <- decay m_i + (1 - decay) s_i        e_i = m_i / N'_i

    where N' is a smoothed copy of N: N'_i = (N_i + eps) / (N + K eps) N, N without index being their sum. A vector with
    N_i below `restart_below` times the mean use (inputs / K) is dead: e_i becomes an input of this batch, drawn at
    random, and N_i that limit, so that it is dead again after the next update unless it was chosen (the random restart
    of Dhariwal et al. 2020, section 3.1). All N_i begin at 0, so the first update takes the codebook from the first
    batch; until then it is N(0, I).

    Args:
        num_codes: K. code_dim: D.
        decay: of the averages; 0.99 remembers about 100 updates.
        restart_below: share of the mean use below which a vector is dead.

    Attributes:
        embedding: (K, D), e. counts: (K,), N. sums: (K, D), m.
        usage: (K,), frequencies of the codes, averaged as N is but untouched by restarts; 0 before the first update.
    """

    embedding: Tensor
    counts: Tensor
    sums: Tensor
    usage: Tensor

    def __init__(self, num_codes: int, code_dim: int, decay: float = 0.99, restart_below: float = 0.03) -> None:
        super().__init__()
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("embedding", torch.randn(num_codes, code_dim))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))
        self.register_buffer("usage", torch.zeros(num_codes))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest vectors (B, D, h, w), float32, and their codes (B, h, w) for inputs (B, D, h, w).

        The gradient with respect to the output is passed on to z as it is (straight-through).
        """
        z = z.float()
        codes = self.nearest(z)
        return z + (self.lookup(codes) - z).detach(), codes

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Return the codes (B, h, w), long, of the nearest vectors, by distances in float32; of two the lower code."""
        with torch.autocast(z.device.type, enabled=False):
            squares = self.embedding.square().sum(1)  # (K,)
            distances = torch.addmm(squares, _rows(z), self.embedding.T, alpha=-2)  # (BHW, K), less |z|^2
        return distances.argmin(1).view(z.shape[0], *z.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors (B, D, h, w) of codes (B, h, w)."""
        return F.embedding(codes, self.embedding).movedim(-1, 1)

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor) -> None:
        """Move the codebook towards inputs (B, D, h, w), given their codes (B, h, w), and restart dead vectors."""
        rows, num_codes = _rows(z), len(self.counts)
        # a product with one-hot rows, because sums by index differ from run to run on a GPU
        chosen = rows.new_zeros(len(rows), num_codes).scatter_(1, codes.reshape(-1, 1), 1.0)  # (BHW, K)
        self.usage.lerp_(chosen.mean(0), 1 - self.decay)
        self.counts.lerp_(chosen.sum(0), 1 - self.decay)
        self.sums.lerp_(chosen.T @ rows, 1 - self.decay)
        limit = self.restart_below * len(rows) / num_codes
        dead = self.counts < limit  # (K,)
        order = torch.randperm(len(rows), device=rows.device).repeat(math.ceil(num_codes / len(rows)))[:num_codes]
        self.counts.masked_fill_(dead, limit)
        self.sums.copy_(torch.where(dead.unsqueeze(1), rows[order] * limit, self.sums))
        total = self.counts.sum()
        smoothed = (self.counts + EPSILON) / (total + num_codes * EPSILON) * total
        self.embedding.copy_(self.sums / smoothed.unsqueeze(1))

    def perplexity(self) -> Tensor:
        """Return exp of the entropy of `usage`, (): K where all codes are used alike, 1 where one is, or none was."""
        frequencies = self.usage / self.usage.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return torch.special.entr(frequencies).sum().exp()

    def nll(self, codes: Tensor) -> Tensor:
        """Return -log of the frequencies of codes (B, h, w) in `usage`, smoothed: (B,) nats, summed over the grid."""
        frequencies = (self.usage + EPSILON) / (self.usage.sum() + len(self.usage) * EPSILON)
        return -frequencies.log()[codes].flatten(1).sum(1)


def _rows(z: Tensor) -> Tensor:
    """(B, D, h, w) as float32 vectors (BHW, D)."""
    return z.float().movedim(1, -1).reshape(-1, z.shape[1])


class ResidualBlock(nn.Module):
    """x + conv1x1(ReLU(conv3x3(ReLU(x)))) (van den Oord et al. 2017, section 4.1).

    Args:
        channels: of input, output and what lies between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) for (B, C, h, w)."""
        return x + self.layers(x)


class GridEncoder(nn.Module):
    """Convolutions of stride 2, residual blocks, and a linear map to D channels (van den Oord et al. 2017, 4.1).

    An image whose side is no multiple of 2^num_halvings is padded with grey, half on either side.

    Args:
        input_shape: (C, H, W).
        code_dim: D.
        hidden_dim: channels of the residual blocks; the strided convolutions before the last have half as many.
        num_halvings: of the side. num_blocks: residual blocks.

    Attributes:
        grid: (h, w), the sides divided by 2^num_halvings, rounded up.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], code_dim: int, hidden_dim: int, num_halvings: int, num_blocks: int
    ) -> None:
        super().__init__()
        channels, *size = input_shape
        factor = 2**num_halvings
        self.margins = padding.to_multiple(size, factor)
        self.grid = (math.ceil(size[0] / factor), math.ceil(size[1] / factor))
        widths = [channels, *_widths(hidden_dim, num_halvings)]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        layers += [nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1), *_blocks(hidden_dim, num_blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden_dim, code_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D, h, w) for images (B, C, H, W) in [0, 1]."""
        return self.layers(F.pad(x - 0.5, self.margins))


class GridDecoder(nn.Module):
    """The mirror image of `GridEncoder`, with transposed convolutions.

    Args:
        output_shape: (C, H, W).
        code_dim, hidden_dim, num_halvings, num_blocks: as for the encoder.
    """

    def __init__(
        self, output_shape: tuple[int, int, int], code_dim: int, hidden_dim: int, num_halvings: int, num_blocks: int
    ) -> None:
        super().__init__()
        channels, *size = output_shape
        # what the encoder pads is cut off
        self.margins = [-margin for margin in padding.to_multiple(size, 2**num_halvings)]
        widths = [*reversed(_widths(hidden_dim, num_halvings)), channels]
        layers: list[nn.Module] = [nn.Conv2d(code_dim, hidden_dim, 3, padding=1), *_blocks(hidden_dim, num_blocks)]
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        """Return the raw output (B, C, H, W), such as logits, for vectors (B, D, h, w)."""
        return F.pad(self.layers(z), self.margins)


def _widths(hidden_dim: int, num_halvings: int) -> list[int]:
    return [max(1, hidden_dim // 2)] * (num_halvings - 1) + [hidden_dim]


def _blocks(channels: int, number: int) -> list[nn.Module]:
    return [*(ResidualBlock(channels) for _ in range(number)), nn.ReLU()]
