"""Images that show the same, found by what is to be seen and not by their files.

    groups, correlations = similar(details, digests)       # [[3, 17], [5, 8, 20], …], {3: 0.99, …}

A perceptual hash is the usual way: 64 bits of whether a tiny copy gets brighter or darker. It fails on photographs that
are all alike, as those of retinas are: of 852 with five pairs of duplicates, 13,796 pairs are within 4 bits by the
difference hash and 216 by the DCT's, so what is compared here is the detail alone, as numbers and not as bits. Of the
same 852, the five pairs correlate by 1.000, a JPEG of quality 40 or a copy of 200 px with its original by 0.98 or more,
and any two others by 0.931 or less.
"""

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

from domainbed.datasets.preprocess import find_retina

#: From this correlation on, two images show the same: half-way between copies and others, see above.
THRESHOLD = 0.96
_SIDE_PX, _EDGE_PX, _COARSE_PX = 32, 3, 3.0
_BLOCK = 2048


def detail(image: np.ndarray) -> np.ndarray:
    """Return what distinguishes an image from others of its kind: float16 (676,), of mean 0 and length 1.

    The grey levels of the retina, or of the whole image where none is found, at 32 x 32 px, without what is coarser
    than 3 px, and without 3 px at each edge. All 0 where nothing is to be seen: such an image resembles none.

    Args:
        image: uint8 (h, w, 3).
    """
    top, bottom, left, right = find_retina(image)
    grey = cv2.cvtColor(np.ascontiguousarray(image[top:bottom, left:right]), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    fine = (small - cv2.GaussianBlur(small, (0, 0), _COARSE_PX))[_EDGE_PX:-_EDGE_PX, _EDGE_PX:-_EDGE_PX].ravel()
    fine -= fine.mean()
    length = float(np.linalg.norm(fine))
    return (fine / length if length > 1 else np.zeros_like(fine)).astype(np.float16)


def similar(details: np.ndarray, digests: Sequence[str]) -> tuple[list[list[int]], dict[int, float]]:
    """Return groups of images that show the same, and for each image of one its highest correlation with another.

    An image is in a group with every other that it resembles, and with those that these resemble. Compared are all
    pairs, in blocks: 100,000 images take two minutes of one core.

    Args:
        details: (N, D), of `detail`.
        digests: N, equal where images are: their correlation is 1, also of two in which nothing is to be seen.

    Returns:
        Lists of rows, in the order of their first, and correlations by row.
    """
    group = np.arange(len(details))  # row of an image further up in its group, or its own: a forest

    def top(row: int) -> int:
        while group[row] != row:
            group[row] = group[group[row]]
            row = int(group[row])
        return row

    closest = np.zeros(len(details), np.float32)

    def join(rows: np.ndarray, others: np.ndarray, correlations: np.ndarray) -> None:
        np.maximum.at(closest, rows, correlations)
        np.maximum.at(closest, others, correlations)
        for row, other in zip(rows.tolist(), others.tolist(), strict=True):
            low, high = sorted((top(row), top(other)))
            group[high] = low

    first: dict[str, int] = {}
    for row, digest in enumerate(digests):
        if first.setdefault(digest, row) != row:
            join(np.array([first[digest]]), np.array([row]), np.ones(1, np.float32))
    for start in range(0, len(details), _BLOCK):
        block = details[start : start + _BLOCK].astype(np.float32)
        for other in range(start, len(details), _BLOCK):
            correlations = block @ details[other : other + _BLOCK].astype(np.float32).T
            rows, others = np.nonzero(correlations >= THRESHOLD)
            apart = start + rows < other + others
            rows, others = rows[apart], others[apart]
            join(start + rows, other + others, np.minimum(correlations[rows, others], 1))
    groups = defaultdict(list)
    for row in np.flatnonzero(closest).tolist():
        groups[top(row)].append(row)
    return list(groups.values()), {row: float(closest[row]) for row in np.flatnonzero(closest).tolist()}
