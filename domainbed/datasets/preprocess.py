"""What belongs to the image, for every split alike: crop, grey, contrast, size. Deterministic, on uint8 arrays.

    image (h, w, 3) --crop_retina--> square --gray_ntsc--> (s, s, 1) --clahe--> (s, s, 1) --resize--> (S, S, 1)

It runs once per image, before the pack is written. What differs from step to step is in `augment`, ImageNet statistics
are in the encoder that wants them.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import cv2
import numpy as np
from PIL import Image

from domainbed.errors import UserError, did_you_mean

PREPROCESSINGS = ("crop_retina", "gray_ntsc", "clahe", "resize")

#: Raised when the same names give other pixels than before, so that packs made by older code are not found.
VERSION = 2

#: Contrast limit and tiles per side of CLAHE, after Zuiderveld, Graphics Gems IV (1994), and as OpenCV's tutorial sets
#: them: no bin of a tile's histogram holds more than 2 times the count of a flat histogram.
CLAHE_CLIP_LIMIT = 2.0
CLAHE_TILES = 8

# crop_retina looks for the disc on a copy with at most this many pixels a side.
_SEARCH_SIDE = 512
# How far from the surround's grey level to that of the bright retina the edge of the disc lies. The retina's rim is
# often shaded to a quarter of its centre, the surround's noise rarely reaches a twentieth.
_EDGE = 0.12
# A surround brighter than this share of the retina is no surround: the photograph fills its frame.
_DARK = 0.3
# 95th percentile of grey levels below which an image counts as black.
_BLACK = 16
# A disc narrower than this share of the image is not the retina but the largest thing beside one too dark to see.
_SMALLEST_DISC = 0.25


class Preprocess:
    """Apply the named steps in order, then bring the image to `image_size`; picklable.

    crop_retina: crop to the bounding box of the bright disc and pad with black to a square, the disc centred.
    gray_ntsc: 0.299 R + 0.587 G + 0.114 B, one channel.
    clahe: contrast-limited adaptive histogram equalisation of the lightness (L of CIELAB), or of the grey levels. Not
        pointwise: a pixel's value depends on its neighbourhood, an eighth of the image a side, and so on the resolution
        and the crop at which it is applied: before `resize` it also lifts the detail that resizing averages away.
    resize: to (S, S), as torchvision's `Resize((S, S))` on a Pillow image: bilinear, antialiased, the aspect ratio not
        kept. Appended where no `resize` follows the last `crop_retina`.

    Args:
        names: out of `PREPROCESSINGS`.
        image_size: side S of the result, in pixels.

    Raises:
        UserError: an unknown name, or a size below 1.
    """

    def __init__(self, names: Iterable[str], image_size: int) -> None:
        self.names, self.image_size = tuple(names), image_size
        for name in self.names:
            if name not in PREPROCESSINGS:
                raise UserError(f"preprocess: no {name!r}{did_you_mean(name, PREPROCESSINGS)}")
        if image_size < 1:
            raise UserError(f"image_size = {image_size} is not a number of pixels. Give a whole number of 1 or more")
        geometry = [name for name in self.names if name in ("crop_retina", "resize")]
        self._steps = self.names if geometry[-1:] == ["resize"] else (*self.names, "resize")

    @property
    def least_side(self) -> int | None:
        """Pixels that the shorter side of a photograph needs for the result that its full size gives; None for all.

        Twice the result's side, and three times where a retina is cropped, which may be smaller than its photograph.
        Results of IDRiD's and SRahimDR's photographs at 224 px then differ by 57 dB; cropped ones, whose edge may fall
        otherwise by a pixel, by 48 dB in the median and 41 at worst. `clahe` raises the difference, and gets all.
        """
        if "clahe" in self._steps:
            return None
        return (3 if "crop_retina" in self._steps else 2) * self.image_size

    @property
    def channels(self) -> int:
        """Channels C of the result: 1 if `gray_ntsc` is named, else 3."""
        return 1 if "gray_ntsc" in self.names else 3

    def __call__(
        self, image: np.ndarray, masks: Mapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the image as uint8 (S, S, C), and the masks, cropped and resized with it.

        Args:
            image: uint8 (h, w, 3).
            masks: bool or uint8 (h, w), by name. Their type is kept; nearest neighbour makes no values that they have
                not; what is padded is 0.

        Raises:
            ValueError: another shape or type.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"image must be uint8 (h, w, 3), not {image.dtype} {image.shape}")
        masks = dict(masks or {})
        for name, mask in masks.items():
            if mask.dtype not in (np.uint8, np.bool_) or mask.shape != image.shape[:2]:
                wanted = f"bool or uint8 {image.shape[:2]}"
                raise ValueError(f"mask {name!r} must be {wanted}, not {mask.dtype} {mask.shape}")
        for step in self._steps:
            image, masks = self._apply(step, image, masks)
        return np.ascontiguousarray(image), masks

    def restore(self, mask: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Return a mask of the result in the geometry of the image that the result was made from.

        Args:
            mask: uint8 (S, S).
            image: uint8 (h, w, 3), as it was given.

        Returns:
            uint8 (h, w), by nearest neighbour; 0 where the image was cropped away.
        """
        undo: list[Callable[[np.ndarray], np.ndarray]] = []
        for step in self._steps:
            if step == "crop_retina":
                undo.append(_uncropped(image))
            elif step == "resize":
                undo.append(partial(_nearest, size=image.shape[:2]))
            image, _ = self._apply(step, image, {})
        for change in reversed(undo):
            mask = change(mask)
        return mask

    def _apply(
        self, step: str, image: np.ndarray, masks: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if step == "crop_retina":
            return _everywhere(_square_crop(image), image, masks)
        if step == "resize":
            return _everywhere(_resized(self.image_size), image, masks)
        return (_gray(image) if step == "gray_ntsc" else _clahe(image)), masks


def find_retina(image: np.ndarray) -> tuple[int, int, int, int]:
    """Return the bounding box (top, bottom, left, right) of the bright disc in pixels, ends excluded.

    The whole image where there is no `retina_region`.

    Args:
        image: uint8 (h, w, C).
    """
    height, width = image.shape[:2]
    found = retina_region(image)
    if found is None:
        return 0, height, 0, width
    region, factor = found
    left, top, wide, high = cv2.boundingRect(region.view(np.uint8))
    return top * factor, min((top + high) * factor, height), left * factor, min((left + wide) * factor, width)


def retina_region(image: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Return where the bright disc is, bool (h / factor, w / factor) rounded up, and the factor; 1 up to 512 px a side.

    The disc is the largest connected region that stands out from the darkest corner, so noise, hot pixels and text
    printed beside it do not count. None where the image is black, has no dark corner, or shows no large region.

    Args:
        image: uint8 (h, w, C).
    """
    factor = max(1, -(-max(image.shape[:2]) // _SEARCH_SIDE))
    channels = np.asarray(_pillow(image).reduce(factor))
    # The brightest channel: a dark retina is red and nothing else.
    brightest = np.maximum.reduce(cv2.split(channels)) if channels.ndim == 3 else channels
    high, wide = (max(1, side // 20) for side in brightest.shape)
    left_and_right = (brightest[:, :wide], brightest[:, -wide:])
    surround = min(float(np.median(corner)) for side in left_and_right for corner in (side[:high], side[-high:]))
    retina = float(np.percentile(brightest, 95))
    if retina < _BLACK or surround > _DARK * retina:
        return None
    bright = (brightest > surround + _EDGE * (retina - surround)).astype(np.uint8)
    # Noise, hot pixels and strokes of text are thinner than the kernel.
    opened = cv2.morphologyEx(bright, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    _, numbers, regions, _ = cv2.connectedComponentsWithStats(opened)
    if len(regions) < 2:  # region 0 is what is dark
        return None
    largest = 1 + int(regions[1:, cv2.CC_STAT_AREA].argmax())
    if regions[largest, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].min() < _SMALLEST_DISC * min(brightest.shape):
        return None
    return numbers == largest, factor


def _everywhere(
    change: Callable[[np.ndarray, bool], np.ndarray], image: np.ndarray, masks: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    changed = {name: change(mask.view(np.uint8), True).view(mask.dtype) for name, mask in masks.items()}
    return change(image, False), changed


def _square(box: tuple[int, int, int, int]) -> tuple[int, int, int]:
    """Return the side of the square around a box, and how many rows and columns lie before the box in it."""
    top, bottom, left, right = box
    side = max(bottom - top, right - left)
    return side, (side - (bottom - top)) // 2, (side - (right - left)) // 2


def _square_crop(image: np.ndarray) -> Callable[[np.ndarray, bool], np.ndarray]:
    top, bottom, left, right = box = find_retina(image)
    side, above, before = _square(box)

    def crop(pixels: np.ndarray, is_mask: bool) -> np.ndarray:
        square = np.zeros((side, side, *pixels.shape[2:]), np.uint8)
        square[above : above + bottom - top, before : before + right - left] = pixels[top:bottom, left:right]
        return square

    return crop


def _uncropped(image: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return what puts a square that `_square_crop` cut out of an image back to its place in it."""
    top, bottom, left, right = box = find_retina(image)
    _, above, before = _square(box)

    def put_back(square: np.ndarray) -> np.ndarray:
        whole = np.zeros(image.shape[:2], np.uint8)
        whole[top:bottom, left:right] = square[above : above + bottom - top, before : before + right - left]
        return whole

    return put_back


def _resized(size: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    def resize(pixels: np.ndarray, is_mask: bool) -> np.ndarray:
        if is_mask:
            return _nearest(pixels, (size, size))
        resized = np.array(_pillow(pixels).resize((size, size), Image.Resampling.BILINEAR))
        return resized.reshape(size, size, *pixels.shape[2:])

    return resize


def _nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Pillow's nearest neighbour looks at pixel centres, as its bilinear does; OpenCV's is half a pixel off.
    return np.array(_pillow(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _gray(image: np.ndarray) -> np.ndarray:
    return image if image.shape[2] == 1 else np.asarray(_pillow(image).convert("L"))[..., None]  # Pillow's L is NTSC's


def _clahe(image: np.ndarray) -> np.ndarray:
    clahe = cv2.createCLAHE(CLAHE_CLIP_LIMIT, (CLAHE_TILES, CLAHE_TILES))
    if image.shape[2] == 1:
        return clahe.apply(image[..., 0])[..., None]
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = clahe.apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def _pillow(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
