"""Images whose side is no multiple of what a network divides by: how much is padded, and cut off again.

margins = to_multiple((height, width), 8)
logits = F.pad(network(F.pad(x, margins)), [-margin for margin in margins])
"""

from collections.abc import Sequence


def to_multiple(size: Sequence[int], factor: int, least: int = 1) -> list[int]:
    """Return the pixels [left, right, top, bottom] that make a size divisible, half on either side.

    Args:
        size: (H, W). factor: what each side is to be a multiple of.
        least: how many times the factor a side has at least.
    """
    below, beside = (max(least, -(-side // factor)) * factor - side for side in size)
    return [beside // 2, beside - beside // 2, below // 2, below - below // 2]
