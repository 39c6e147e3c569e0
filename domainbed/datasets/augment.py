"""What varies from step to step: random changes of training images, the same again for the same seed, step and row.

    augment = Augment(["crop_scale", "color_jitter"])
    params = augment.draw(rows, seed, step)             # on the CPU, by whoever reads ahead
    images, masks = augment(images, params, masks)      # on the device

A whole batch is changed at once, on the device where it lies, each image by parameters of its own. Everything that
moves pixels becomes one affine map and one bilinear resampling per image, however many changes are named.
What every split gets alike is in `preprocess`. Importing the names costs no torch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from domainbed.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

AUGMENTATIONS = ("crop_scale", "horizontal_flip", "vertical_flip", "shift", "rotation", "color_jitter")

#: Area of the random crop as a share of the image, and its aspect ratio, as in DomainBed's transforms.
CROP_SCALE = (0.7, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
#: A crop of an area and a ratio that do not fit the image is drawn anew, this often; then it is the whole image.
CROP_TRIALS = 10
#: Probability of either flip.
FLIP_PROBABILITY = 0.5
#: Largest shift along either axis, as a share of the side.
SHIFT = 0.1
#: Largest rotation to either side, in degrees.
ROTATION_DEGREES = 15
#: Strengths of the colour changes, as of torchvision's `ColorJitter`: factors 1 ± strength, and a share of the hue's
#: circle. DomainBed's, but for the hue: 0.3 turns a red retina green.
COLOR_JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05}
#: Weights of red, green and blue in grey (ITU-R BT.601), as torchvision has them.
GREY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class AugmentParams:
    """What was drawn for some images: how each is changed.

    Attributes:
        count: B, the number of images.
        maps: float32 (B, 2, 3) from a place in the new image to one in the old; None where no pixel moves.
        from_outside: whether some map looks beyond the image.
        strengths: float32 (4, B) of the colour changes, between -1 and 1; None where colours stay.
        order: in which colours are changed.
    """

    count: int
    maps: "Tensor | None" = None
    from_outside: bool = False
    strengths: "Tensor | None" = None
    order: tuple[str, ...] = ()

    def pinned(self) -> "AugmentParams":
        """Return the same in memory that a GPU copies from while other work goes on."""
        maps, strengths = self.maps, self.strengths
        return replace(
            self,
            maps=None if maps is None else maps.pin_memory(),
            strengths=None if strengths is None else strengths.pin_memory(),
        )


class Augment:
    """Apply the named random changes to each image with parameters of its own: geometry as named, then colours.

    crop_scale: a random crop, enlarged to the image.
    horizontal_flip, vertical_flip: or not, with equal probability.
    shift, rotation: about the image's centre; what comes in from outside of the image is black, and 0 in a mask.
    color_jitter: brightness, contrast, saturation and hue, in an order that is drawn for each step. Saturation and hue
        do nothing to grey.

    Args:
        names: out of `AUGMENTATIONS`; none of them makes the call return its arguments.

    Raises:
        UserError: an unknown name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        for name in self.names:
            if name not in AUGMENTATIONS:
                raise UserError(f"augment: no {name!r}{did_you_mean(name, AUGMENTATIONS)}")

    def draw(self, rows: Sequence[int], seed: int, step: int, view: int = 0) -> AugmentParams:
        """Return how each image of a batch is changed.

        The change of an image depends on `seed`, `step` and its own row alone, not on the batch that it came in. No
        generator of torch's is asked. Any thread may call it.

        Args:
            rows: B numbers that name the images, the same in every run (rows of the pack).
            seed, step: of the run, and the optimiser step that the batch is for.
            view: 0, or 1 for a second view of the same images.
        """
        params = AugmentParams(len(rows))
        if not self.names:
            return params
        import torch

        of_view = (view,) if view else ()
        draws = [np.random.default_rng((seed, step, int(row), *of_view)) for row in rows]
        maps = [np.stack([_MAPS[name](draw) for draw in draws]) for name in self.names if name in _MAPS]
        if maps:
            composed = _composed(maps)
            from_outside = bool((np.abs(composed).sum(2) > 1 + 1e-6).any())  # a corner lies there
            params = replace(params, maps=torch.from_numpy(composed.astype(np.float32)), from_outside=from_outside)
        if "color_jitter" in self.names:
            kinds = [*COLOR_JITTER]
            order = tuple(kinds[k] for k in np.random.default_rng((seed, step, *of_view)).permutation(len(kinds)))
            strengths = np.array([[draw.uniform(-1, 1) for _ in kinds] for draw in draws], np.float32)
            params = replace(params, strengths=torch.from_numpy(strengths.T.copy()), order=order)
        return params

    def __call__(
        self, images: "Tensor", params: AugmentParams, masks: "Tensor | None" = None
    ) -> "tuple[Tensor, Tensor | None]":
        """Return changed images, and masks moved with them by nearest neighbour. A GPU is not waited for.

        Args:
            images: float32 (B, C, S, S) in [0, 1], C of 1 or 3, on any device.
            params: of B images, from `draw`.
            masks: uint8 (B, S, S).

        Raises:
            ValueError: another shape or type.
        """
        if not self.names:
            return images, masks
        import torch

        side, found = images.shape[-1], f"{images.dtype} {tuple(images.shape)}"
        if images.dtype != torch.float32 or images.shape != (params.count, *images.shape[1:2], side, side):
            raise ValueError(f"images must be float32 ({params.count}, C, S, S), not {found}")
        if masks is not None and (masks.dtype != torch.uint8 or masks.shape != images[:, 0].shape):
            shape = tuple(images[:, 0].shape)
            raise ValueError(f"masks must be uint8 {shape}, not {masks.dtype} {tuple(masks.shape)}")
        if params.maps is not None:
            maps = params.maps.to(images.device, non_blocking=True)
            images, masks = _resample(images, masks, maps, params.from_outside)
        if params.strengths is not None:
            strengths = params.strengths.to(images.device, non_blocking=True)
            images = images.contiguous()  # planes of one colour are several times as fast to compute with
            for kind in params.order:
                images = _recolour(images, kind, strengths[[*COLOR_JITTER].index(kind)])
        return images.contiguous(memory_format=torch.channels_last), masks


# --- geometry: 2 x 3 matrices from a place in the new image to one in the old, both from -1 to 1 ---


def _crop(draw: np.random.Generator) -> np.ndarray:
    areas = draw.uniform(*CROP_SCALE, CROP_TRIALS)
    ratios = np.exp(draw.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]), CROP_TRIALS))
    sizes = np.sqrt([areas * ratios, areas / ratios])  # (2, trials): width and height as shares of the side
    fitting = np.flatnonzero((sizes <= 1).all(0))
    width, height = sizes[:, fitting[0]] if len(fitting) else (1.0, 1.0)
    x, y = draw.uniform(-1, 1, 2)
    return np.array([[width, 0, x * (1 - width)], [0, height, y * (1 - height)]])


def _horizontal_flip(draw: np.random.Generator) -> np.ndarray:
    return np.array([[-1.0 if draw.random() < FLIP_PROBABILITY else 1.0, 0, 0], [0, 1, 0]])


def _vertical_flip(draw: np.random.Generator) -> np.ndarray:
    return np.array([[1, 0, 0], [0, -1.0 if draw.random() < FLIP_PROBABILITY else 1.0, 0]])


def _shift(draw: np.random.Generator) -> np.ndarray:
    x, y = draw.uniform(-2 * SHIFT, 2 * SHIFT, 2)  # the side is 2 long
    return np.array([[1, 0, x], [0, 1, y]])


def _rotation(draw: np.random.Generator) -> np.ndarray:
    angle = np.deg2rad(draw.uniform(-ROTATION_DEGREES, ROTATION_DEGREES))
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])


_MAPS = {
    "crop_scale": _crop,
    "horizontal_flip": _horizontal_flip,
    "vertical_flip": _vertical_flip,
    "shift": _shift,
    "rotation": _rotation,
}


def _composed(maps: list[np.ndarray]) -> np.ndarray:
    """Return (B, 2, 3): the maps of successive changes, (B, 2, 3) each, as that of all together."""
    total = maps[0]
    for following in maps[1:]:  # the place that the following change looks at is where this one looks from
        linear = total[:, :, :2] @ following[:, :, :2]
        total = np.concatenate([linear, total[:, :, :2] @ following[:, :, 2:] + total[:, :, 2:]], axis=2)
    return total


def _resample(
    images: "Tensor", masks: "Tensor | None", maps: "Tensor", from_outside: bool
) -> "tuple[Tensor, Tensor | None]":
    """Return images, bilinearly, and masks, by nearest neighbour, each as its map says; black outside."""
    from torch.nn import functional as F

    grid = F.affine_grid(maps, list(images.shape), align_corners=False)  # (B, S, S, 2)
    changed = F.grid_sample(images, grid, "bilinear", "border", align_corners=False)
    if masks is not None:
        masks = F.grid_sample(masks[:, None].float(), grid, "nearest", "border", align_corners=False)[:, 0].byte()
    if from_outside:
        inside = (grid.abs() <= 1).all(-1)  # (B, S, S); up to the very edge a pixel has its full brightness
        changed, masks = changed.mul_(inside[:, None]), None if masks is None else masks.mul_(inside)
    return changed.clamp_(0, 1), masks


# --- colour ---


def _recolour(images: "Tensor", kind: str, strength: "Tensor") -> "Tensor":
    """Return images changed in one way, as torchvision does it, by strengths (B,) between -1 and 1."""
    amount = (COLOR_JITTER[kind] * strength)[:, None, None, None]
    if kind == "brightness":
        return (images * (1 + amount)).clamp(0, 1)
    if kind == "contrast":
        return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), 1 + amount)
    if images.shape[1] == 1:
        return images
    return _blend(images, _grey(images), 1 + amount) if kind == "saturation" else _turn_hue(images, amount)


def _grey(images: "Tensor") -> "Tensor":
    """Return (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (GREY[0] * red).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _blend(images: "Tensor", other: "Tensor", share: "Tensor") -> "Tensor":
    return (other + share * (images - other)).clamp(0, 1)


def _turn_hue(images: "Tensor", turn: "Tensor") -> "Tensor":
    """Return images (B, 3, H, W) whose hue is turned by a share (B, 1, 1, 1) of the circle; HSV, hexagonal."""
    import torch

    red, green, blue = images.split(1, dim=1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    distance = torch.where(value == red, green - blue, torch.where(value == green, blue - red, red - green))
    first = torch.where(value == red, 0.0, torch.where(value == green, 2.0, 4.0))  # sector where the hue is the largest
    sector = (distance / chroma.clamp(min=torch.finfo(images.dtype).tiny)).add_(first).add_(6 * turn)  # (B, 1, H, W)
    offsets = torch.arange(5, 0, -2, device=images.device, dtype=images.dtype).reshape(1, 3, 1, 1)
    k = (sector + offsets).remainder_(6)  # (B, 3, H, W)
    return value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma)
