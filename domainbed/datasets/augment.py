"""What varies from step to step: random changes of training images, the same again for the same seed, step and row.

torchvision's v2 transforms do the work, on uint8, one image at a time because v2 draws one set of parameters per call.
What every split gets alike is in `preprocess`. Importing the names costs no torch.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from domainbed.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

AUGMENTATIONS = ("crop_scale", "horizontal_flip", "vertical_flip", "shift", "rotation", "color_jitter")

#: Area of the random crop as a share of the image, and its aspect ratio, as in DomainBed's transforms.
CROP_SCALE = (0.7, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
#: Probability of either flip.
FLIP_PROBABILITY = 0.5
#: Largest shift along either axis, as a share of the side.
SHIFT = 0.1
#: Largest rotation to either side, in degrees.
ROTATION_DEGREES = 15
#: Strengths of torchvision's `ColorJitter`. DomainBed's, but for the hue: 0.3 turns a red retina green.
COLOR_JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05}


class Augment:
    """Apply the named random changes, in order, to each image with parameters of its own.

    crop_scale: a random crop, resized to (S, S). Its mask lies up to half a pixel beside it: torchvision's "nearest"
        looks at pixel corners.
    horizontal_flip, vertical_flip: or not, with equal probability.
    shift, rotation: what comes in from outside is black, and 0 in a mask. Where both are named they are one resampling,
        at the place of the first.
    color_jitter: brightness, contrast, saturation and hue, in random order. Saturation and hue do nothing to grey.

    Args:
        names: out of `AUGMENTATIONS`; none of them makes the call return its arguments.
        image_size: side S of the images, in pixels.

    Raises:
        UserError: an unknown name.
    """

    def __init__(self, names: Iterable[str], image_size: int) -> None:
        self.names, self.image_size = tuple(names), image_size
        for name in self.names:
            if name not in AUGMENTATIONS:
                raise UserError(f"augment: no {name!r}{did_you_mean(name, AUGMENTATIONS)}")
        self._transforms = [_transform(part, image_size) for part in _merged(self.names)]

    def __call__(
        self,
        images: "torch.Tensor",
        rows: Sequence[int],
        seed: int,
        step: int,
        masks: "torch.Tensor | None" = None,
    ) -> "tuple[torch.Tensor, torch.Tensor | None]":
        """Return changed images, and masks changed by the same geometry with nearest neighbour.

        The change of an image depends on `seed`, `step` and its own row alone: not on the batch that it came in, nor on
        torch's global generator, which is left as it was.

        Args:
            images: uint8 (B, C, H, W), C of 1 or 3, on any device.
            rows: B numbers that name the images, the same in every run (rows of the pack).
            seed, step: of the run, and the optimiser step that the batch is for.
            masks: uint8 (B, H, W).

        Raises:
            ValueError: another shape or type.
        """
        if not self._transforms:
            return images, masks
        import torch
        from torchvision import tv_tensors

        if images.dtype != torch.uint8 or images.ndim != 4 or len(rows) != len(images):
            raise ValueError(f"images must be uint8 ({len(rows)}, C, H, W), not {images.dtype} {tuple(images.shape)}")
        if masks is not None and (masks.dtype != torch.uint8 or masks.shape != images[:, 0].shape):
            shape = tuple(images[:, 0].shape)
            raise ValueError(f"masks must be uint8 {shape}, not {masks.dtype} {tuple(masks.shape)}")
        changed = []
        # v2 draws on the CPU's default generator and takes no other, so that one is set and put back. (Not by
        # torch.manual_seed, which would also reset the accelerators' generators.)
        with torch.random.fork_rng(devices=[]):
            for i, row in enumerate(rows):
                torch.default_generator.manual_seed(_hash(seed, step, int(row)))
                sample = [tv_tensors.Image(images[i])]
                if masks is not None:
                    sample.append(tv_tensors.Mask(masks[i : i + 1]))
                for transform in self._transforms:
                    sample = transform(sample)
                changed.append([part.as_subclass(torch.Tensor) for part in sample])
        if not changed:
            return images, masks
        new_images, *new_masks = (torch.stack(parts) for parts in zip(*changed, strict=True))
        return new_images, new_masks[0][:, 0] if new_masks else None


def _hash(seed: int, step: int, row: int) -> int:
    """Return 32 bits (all that torch's CPU generator takes of a seed) that are the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step} {row}".encode(), digest_size=4).digest(), "little")


def _merged(names: tuple[str, ...]) -> list[frozenset[str]]:
    """Return the names in order, with `shift` and `rotation` as one where the first of them stands."""
    affine = frozenset(names) & {"shift", "rotation"}
    return list(dict.fromkeys(affine if name in affine else frozenset([name]) for name in names))


def _transform(names: frozenset[str], image_size: int) -> "torch.nn.Module":
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    if names & {"shift", "rotation"}:
        degrees = ROTATION_DEGREES if "rotation" in names else 0
        return v2.RandomAffine(degrees, (SHIFT, SHIFT) if "shift" in names else None, interpolation=bilinear)
    (name,) = names
    if name == "crop_scale":
        return v2.RandomResizedCrop(image_size, CROP_SCALE, CROP_RATIO, bilinear, antialias=True)
    if name == "color_jitter":
        return v2.ColorJitter(**COLOR_JITTER)
    flip = {"horizontal_flip": v2.RandomHorizontalFlip, "vertical_flip": v2.RandomVerticalFlip}[name]
    return flip(FLIP_PROBABILITY)
