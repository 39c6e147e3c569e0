"""What a mask is on its way from a file to a loss: one uint8 plane (H, W) beside each image.

    exclusive classes    the plane holds a class index per pixel; class 0 is the background
    overlapping kinds    the plane holds a bit per kind, up to `MAX_KINDS`; no bit is the background
    in either            IGNORE where nobody labelled the pixel

So the pack, the loader and the augmentation move a single plane, and what padding and rotation bring in from outside,
0, is background. `to_target` turns planes into what a loss is given. Data sets read files; which masks a run learns
from is `Dataset.chosen_masks`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from domainbed.datasets.images import UnreadableImage, digest, read_mask

if TYPE_CHECKING:
    import torch

#: Value of a plane where a pixel is not labelled.
IGNORE = 255
MAX_KINDS = 7
#: Name of the masks, among those of an image, that mark what nobody labelled.
IGNORED_KIND = "ignore"
#: Name of the masks that mark what the camera shows of the eye: nobody labelled what is outside.
FIELD_KIND = "field_of_view"
#: Kinds that say which pixels are labelled, and are never learnt.
NOT_LEARNT = frozenset({IGNORED_KIND, FIELD_KIND})
#: Share of the picture that a mask of the field of view covers at least; an optic disc covers a few percent.
_LEAST_FIELD = 0.4


@dataclass(frozen=True)
class MaskClasses:
    """What the pixels of a mask are told apart into.

    Attributes:
        names: of K exclusive classes, the background first; or of K kinds that may overlap.
        exclusive: which of the two.
    """

    names: tuple[str, ...]
    exclusive: bool

    @property
    def background(self) -> str | None:
        """Name of the class that is the background; None where the background is what no kind marks."""
        return self.names[0] if self.exclusive else None

    def describe(self) -> str:
        """Return a line for the log."""
        if self.exclusive:
            return f"masks of the classes {', '.join(self.names)}; {self.names[0]} is the background"
        return f"masks of {', '.join(self.names)}" + ("; they may overlap" if len(self.names) > 1 else "")


def to_plane(masks: Mapping[str, np.ndarray], classes: MaskClasses) -> np.ndarray:
    """Return the masks of one image as a plane, uint8 (H, W).

    Args:
        masks: bool or uint8 (H, W) by name. Of overlapping kinds, one each, whatever is not 0 being of the kind; of
            exclusive classes a single one of class indices and `IGNORE`. `IGNORED_KIND` marks what nobody labelled.
        classes: those to be kept.

    Raises:
        UnreadableImage: values that a mask of that form can't have.
    """
    found = {name: mask for name, mask in masks.items() if name != IGNORED_KIND}
    if classes.exclusive:
        (plane,) = found.values()
        plane = plane.astype(np.uint8)
        unknown = sorted({*np.unique(plane).tolist()} - {*range(len(classes.names)), IGNORE})
        if unknown:
            raise UnreadableImage(
                f"its mask holds the value{'s' if len(unknown) > 1 else ''} {_some(unknown)}, but the classes "
                f"{', '.join(classes.names)} are 0 to {len(classes.names) - 1}, and {IGNORE} is a pixel without label"
            )
    else:
        plane = np.zeros(next(iter(found.values())).shape, np.uint8)
        for bit, name in enumerate(classes.names):
            plane |= _marked(name, found[name]).astype(np.uint8) << bit
    if IGNORED_KIND in masks:
        plane = np.where(masks[IGNORED_KIND] != 0, np.uint8(IGNORE), plane)
    return plane


def _marked(kind: str, mask: np.ndarray) -> np.ndarray:
    """Return bool (H, W): what a mask of one kind, uint8 (H, W), marks.

    Raises:
        UnreadableImage: it holds more than 0 and one other value.
    """
    values = np.unique(mask).tolist()
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        raise UnreadableImage(
            f"its mask of {kind} holds the values {_some(values)}; a mask of one kind is 0 and one other value"
        )
    return mask != 0


def looks_like_field_of_view(mask: np.ndarray) -> bool:
    """Whether a mask, uint8 (H, W), covers a large disc, whole or cut off at the frame, and leaves the corners free."""
    marked = mask != 0
    corners = marked[[0, 0, -1, -1], [0, -1, 0, -1]]
    if corners.any() or marked.mean() < _LEAST_FIELD:
        return False
    down, across = marked.any(axis=1), marked.any(axis=0)
    if marked[down][:, across].mean() > 0.98:  # a rectangle
        return False
    for lines in (marked[down], marked.T[across]):  # a disc has no holes: what crosses it is marked in one piece
        first, last = lines.argmax(axis=1), lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
        if lines.sum() < 0.98 * (last - first + 1).sum():
            return False
    return True


def labelled_values(planes: Iterable[np.ndarray]) -> set[int]:
    """Return the values of all labelled pixels of planes, uint8 (H, W) each; in either form 0 is the background."""
    return {value for plane in planes for value in np.unique(plane).tolist()} - {IGNORE}


def to_target(planes: "torch.Tensor", classes: MaskClasses) -> "torch.Tensor":
    """Return planes, uint8 (B, H, W), as the masks that `objectives.segmentation` describes.

    Returns:
        Of exclusive classes long (B, H, W), of kinds float32 (B, K, H, W).
    """
    import torch

    from domainbed.objectives.segmentation import IGNORE_INDEX

    ignored = planes == IGNORE
    if classes.exclusive:
        return planes.long().masked_fill_(ignored, IGNORE_INDEX)
    bits = [(planes & (1 << bit)).bool() for bit in range(len(classes.names))]
    return torch.stack(bits, dim=1).float().masked_fill_(ignored[:, None], torch.nan)


def read_files(paths: Mapping[str, Path], image: np.ndarray) -> dict[str, np.ndarray]:
    """Return mask files by name, uint8 (h, w), with the values that they store.

    Args:
        paths: of the files. One of the field of view comes back as the mask `IGNORED_KIND` of what is outside of it,
            together with a mask of that name where there is one.
        image: uint8 (h, w, C), as it was read.

    Raises:
        UnreadableImage: a file can't be decoded whole, is of another size than the image, or is an empty field of view.
    """
    masks = {}
    for name, path in paths.items():
        try:
            masks[name] = read_mask(path)
        except UnreadableImage as error:
            raise UnreadableImage(f"its mask of {name}: {error}") from None
        if masks[name].shape != image.shape[:2]:
            theirs, ours = (f"{shape[1]} x {shape[0]}" for shape in (masks[name].shape, image.shape))
            raise UnreadableImage(
                f"its mask of {name} has {theirs} pixels, the image has {ours}; save both at one size"
            )
    if FIELD_KIND in masks:
        field = _marked(FIELD_KIND, masks.pop(FIELD_KIND))
        if not field.any():
            raise UnreadableImage(f"its mask of {FIELD_KIND} is empty, so nothing in the image would be labelled")
        masks[IGNORED_KIND] = (~field | (masks.get(IGNORED_KIND, np.uint8(0)) != 0)).astype(np.uint8)
    return masks


def digest_files(paths: Mapping[str, Path]) -> str:
    """Return a string that changes when one of these files does.

    Raises:
        UnreadableImage: one can't be opened.
    """
    digests = []
    for name, path in sorted(paths.items()):
        try:
            digests.append(f"{name} {digest(path)}")
        except UnreadableImage as error:
            raise UnreadableImage(f"its mask of {name}: {error}") from None
    return ", ".join(digests)


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:4])) + (", …" if len(values) > 4 else "")
