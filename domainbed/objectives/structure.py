"""Terms for fine structure: a thin vessel is a few pixels with a small error each, so a likelihood hardly counts it.

Each is a distance between two images, a number per image without a unit, 0 where they are equal. None is a logarithm
of a density, so a loss that has one is no bound of a likelihood, and is not in nats.

    gradient    mean of |dx(a) - dx(b)| and |dy(a) - dy(b)|, differences of neighbouring pixels (Mathieu et al. 2016,
                arXiv 1511.05440, eq. 6, with alpha = 1); images in [0, 1], so from 0 to 2
    ms_ssim     1 - MS-SSIM (Wang et al. 2003), torchmetrics', of as many of its five scales as the image has room for;
                each scale's index in [-1, 1] is mapped to [0, 1] first, because a fractional power of a negative number
                has no gradient; from 0 to 1
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from domainbed.errors import UserError
from domainbed.objectives.precision import at_least_float32

#: Exponents of the five scales of MS-SSIM, the finest first (Wang et al. 2003, section 3.2).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Side of MS-SSIM's Gaussian window, in pixels.
WINDOW = 11


class GradientDifference(nn.Module):
    """Mean absolute difference of the gradients of two images."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return (B,) for images (B, C, H, W) in [0, 1]."""
        error = at_least_float32(output) - at_least_float32(target)  # the difference of gradients is that of the error
        rows, columns = (error.diff(dim=axis).abs().flatten(1).mean(1) for axis in (2, 3))
        return (rows + columns) / 2


class MultiScaleDissimilarity(nn.Module):
    """1 - MS-SSIM.

    Args:
        size: (H, W) of the images.

    Attributes:
        exponents: of the scales that fit, with sum 1.

    Raises:
        UserError: the images are smaller than the window.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        fitting = [  # by what torchmetrics checks, and by what its mirrored border needs at the coarsest scale
            n
            for n in range(1, len(SCALES) + 1)
            if min(size) // max(1, n - 1) ** 2 >= WINDOW and min(size) // 2 ** (n - 1) > WINDOW // 2
        ]
        if not fitting:
            raise UserError(
                f"structure=ms_ssim has a window of {WINDOW} px, but the images are {size[0]} x {size[1]} px. Use "
                "structure=gradient or a larger image_size"
            )
        kept = SCALES[: fitting[-1]]
        self.exponents = tuple(exponent / sum(kept) for exponent in kept)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return (B,) for images (B, C, H, W) in [0, 1]."""
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure  # costs 2 s

        with torch.autocast(output.device.type, enabled=False):
            similarity = multiscale_structural_similarity_index_measure(
                at_least_float32(output), at_least_float32(target),
                reduction="none", data_range=1.0, betas=self.exponents, normalize="simple",
            )  # fmt: skip
        return 1 - similarity


class StructureTerm(nn.Module):
    """weight * distance, for a loss that is a mean over images.

    Args:
        name: "gradient" or "ms_ssim"; "none" adds nothing.
        weight: of the distance, beside the other terms as the loss reduces them.
        size: (H, W) of the images.

    Raises:
        UserError: the images are too small for it.
    """

    def __init__(self, name: str, weight: float, size: tuple[int, int]) -> None:
        super().__init__()
        self.weight = weight
        self.distance: nn.Module | None = None
        if name != "none":
            self.distance = GradientDifference() if name == "gradient" else MultiScaleDissimilarity(size)

    def add_to(self, terms: dict[str, Tensor], image: Callable[[], Tensor], target: Tensor) -> dict[str, Tensor]:
        """Return the terms of a loss with "structure_loss" among them, and its share in "loss".

        Args:
            terms: () each.
            image: gives the reconstruction (B, C, H, W) in [0, 1].
            target: (B, C, H, W) in [0, 1].
        """
        if self.distance is None:
            return terms
        distance = self.distance(image(), target).mean()
        return terms | {"loss": terms["loss"] + self.weight * distance, "structure_loss": distance}
