"""What can be measured on one photograph before anything is trained on it: light, colour, sharpness, frame, retina.

    figures = measure(shrink(image))        # name -> number, nan where a figure makes no sense, see `FIGURES`
    [check.name for check in CHECKS if check.found(figures[check.figure])]

Every figure is of the pixels inside the retina where one is found, and of all pixels where none is. A `Check` says from
which value on a figure means something worth looking at. Thresholds were set on IDRiD's and SRahimDR's photographs and
on drawn ones to which the fault was done, see docs/analysis/explore.md: of another kind of photograph, look at the
sheets. A whole data set is `explore`'s business.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from domainbed.datasets.preprocess import retina_region

#: Longest side of what is measured; smaller images are taken as they are.
SIDE_PX = 512
#: Diameter to which a retina is brought before its sharpness is measured, so that the resolution of the file, and how
#: much of the frame the retina fills, do not count.
SHARPNESS_PX = 256
#: Least diameter of a retina, in pixels: what is dark around something light in a smaller image is chance.
LEAST_PX = 48
#: Figures by name, with what they are.
FIGURES = {
    "red": "mean of the red channel, 0 to 1",
    "green": "mean of the green channel, 0 to 1",
    "blue": "mean of the blue channel, 0 to 1",
    "brightness": "mean of the grey levels (0.299 R + 0.587 G + 0.114 B), 0 to 1",
    "contrast": "standard deviation of the grey levels",
    "saturation": "mean of largest minus smallest channel, 0 to 1",
    "chroma_p99": "largest minus smallest channel, its 99th percentile, 0 to 1",
    "clipped": "share of pixels whose grey level is 250 or more of 255",
    "sharpness": "standard deviation of the Laplacian by the mean grey level, the retina 256 px across",
    "border": "share of the image that is outside the retina",
    "bars": "share of the image's height in rows above and below the retina",
    "cut": "share of the height or width of the retina's circle, the larger, that is not in the image",
    "aspect": "width by height of the ellipse that the retina's rim lies on",
    "stretch": "by how much the longer axis of that ellipse exceeds the shorter",
    "offset": "distance of its centre from the image's, by the image's longer side",
    "symmetry": "correlation of the left half of the image with the right, mirrored or repeated, the larger",
    "text": "number of characters printed in a row beside the retina",
    "rim_colour": "share of the rim whose hue is not the retina's",
    "rim_light": "share of the rim that is much lighter than the retina",
}
#: Figures that make sense of retinas alone.
OF_RETINAS = (
    "border", "bars", "cut", "aspect", "stretch", "offset", "symmetry", "text", "rim_colour", "rim_light",
)  # fmt: skip
#: Of the ellipse's semi-axes: where the rim is that stray light colours.
_RIM = (0.86, 0.97)


@dataclass(frozen=True)
class Check:
    """One thing worth looking at, told by a figure on one side of a threshold.

    Attributes:
        name: for programs. title: for people, said of photographs. figure: of `FIGURES`.
        threshold: from where on. above: whether larger values are meant.
        says: one sentence, what is to be seen. of_retinas: whether it means something only where a retina is found.
    """

    name: str
    title: str
    figure: str
    threshold: float
    above: bool
    says: str
    of_retinas: bool = True

    def excess(self, value: np.ndarray) -> np.ndarray:
        """Return by how much values pass the threshold; nan where the figure makes no sense."""
        return value - self.threshold if self.above else self.threshold - value

    def found(self, value: np.ndarray) -> np.ndarray:
        """Return whether values are of the kind; a figure that makes no sense is not."""
        return self.excess(np.asarray(value)) >= 0  # nan compares false


CHECKS = (
    Check("grey", "grey", "chroma_p99", 0.04, False, "Red, green and blue differ by less than 10 of 255.", False),
    Check("dark", "under-exposed", "brightness", 0.16, False, "The retina is dark."),
    Check("bright", "over-exposed", "brightness", 0.65, True, "The retina is so bright that detail is lost."),
    Check("blurred", "blurred", "sharpness", 0.03, False, "Vessels have soft edges: out of focus, moved or hazy."),
    Check("cut", "cut circle", "cut", 0.03, True, "The frame, or a mask of the camera, cuts the retina's circle."),
    Check("bars", "black bars", "bars", 0.08, True, "Rows above and below the retina are black."),
    Check("squashed", "squashed", "stretch", 0.05, True, "The retina is no circle: the aspect ratio was not kept."),
    Check("doubled", "duplicated half", "symmetry", 0.7, True, "One half mirrors or repeats the other."),
    Check("text", "printed text", "text", 3, True, "Characters are printed beside the retina."),
    Check("rim_colour", "coloured light at the rim", "rim_colour", 0.03, True, "The rim has another hue."),
    Check("rim_light", "bright light at the rim", "rim_light", 0.08, True, "A part of the rim is much lighter."),
)


def shrink(image: np.ndarray) -> np.ndarray:
    """Return an image (h, w, 3) with at most `SIDE_PX` px on its longer side, its aspect ratio kept."""
    height, width = image.shape[:2]
    scale = SIDE_PX / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def measure(image: np.ndarray) -> dict[str, float]:
    """Return the figures of a photograph; nan where one makes no sense, as that of a retina where none is found.

    Args:
        image: uint8 (h, w, 3), at most `SIDE_PX` px a side.
    """
    region = retina_region(image)
    retina = None if region is None else hull(region[0])
    ellipse = None if retina is None else fit_ellipse(retina)
    if ellipse is None or 2 * min(ellipse.a, ellipse.b) < LEAST_PX:
        retina = ellipse = None  # a dark corner beside something that is not round, or too small to tell
    field = np.ones(image.shape[:2], bool) if retina is None else retina
    figures = dict.fromkeys(FIGURES, math.nan) | light(image, field) | {"sharpness": sharpness(image, retina)}
    if retina is not None and ellipse is not None:
        figures |= frame(retina, ellipse) | rim(image, retina, ellipse)
        figures |= {"symmetry": symmetry(image), "text": float(text(image, retina))}
    return figures


def hull(region: np.ndarray) -> np.ndarray:
    """Return the smallest convex region (h, w) around a bool region: without the holes of what is dark in a retina."""
    outline = cv2.findContours(region.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    corners = cv2.convexHull(np.concatenate(outline))
    return cv2.fillConvexPoly(np.zeros(region.shape, np.uint8), corners, 1).astype(bool)


@dataclass(frozen=True)
class Ellipse:
    """Upright ellipse, in pixels: its centre, and its semi-axes."""

    x: float
    y: float
    a: float
    b: float

    def radius(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the distance (h, w) of every pixel from the centre, 1 on the ellipse."""
        down, across = np.indices(shape[:2], np.float32)
        return np.hypot((across - self.x) / self.a, (down - self.y) / self.b)


def fit_ellipse(retina: np.ndarray) -> Ellipse | None:
    """Return the upright ellipse that a convex region's outline lies on; None where it lies on none.

    Least squares on A x^2 + B y^2 + D x + E y = 1, without the points where the frame cuts the region (they lie on the
    sides of its bounding box), repeated without what is far off, such as a notch. Of 934 photographs of three cameras,
    most of them cut, the axes' ratio is between 0.989 and 1.019.

    Args:
        retina: bool (h, w).
    """
    outline = cv2.findContours(retina.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    points = np.concatenate(outline)[:, 0].astype(float)  # (N, 2): x, y
    low, high = points.min(0), points.max(0)
    margin = 0.01 * (high - low).max()
    points = points[((points > low + margin) & (points < high - margin)).all(1)]
    total = len(points)
    if total < 20:
        return None
    centre, scale = points.mean(0), np.ptp(points, axis=0).max() / 2
    points = (points - centre) / scale
    for _ in range(4):
        solution, *_ = np.linalg.lstsq(np.hstack([points**2, points]), np.ones(len(points)), rcond=None)
        if (solution[:2] <= 0).any():
            return None
        middle = -solution[2:] / (2 * solution[:2])
        axes = np.sqrt((1 + (solution[:2] * middle**2).sum()) / solution[:2])
        off = np.abs(np.linalg.norm((points - middle) / axes, axis=1) - 1)
        near = off <= max(0.01, 2.5 * float(np.median(off)))
        points = points[near]
    if len(points) < 0.5 * total or np.sqrt((off[near] ** 2).mean()) > 0.015:
        return None
    x, y = centre + scale * middle
    return Ellipse(float(x), float(y), float(scale * axes[0]), float(scale * axes[1]))


def light(image: np.ndarray, field: np.ndarray) -> dict[str, float]:
    """Return the figures of brightness and colour of the pixels in a bool field (h, w)."""
    channels = [channel[field] for channel in cv2.split(image)]  # (N,) each
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[field]
    chroma = np.maximum.reduce(channels) - np.minimum.reduce(channels)
    red, green, blue = (float(channel.mean()) / 255 for channel in channels)
    return {
        "red": red,
        "green": green,
        "blue": blue,
        "brightness": float(grey.mean()) / 255,
        "contrast": float(grey.std()) / 255,
        "saturation": float(chroma.mean()) / 255,
        "chroma_p99": float(np.percentile(chroma, 99)) / 255,
        "clipped": float((grey >= 250).mean()),
    }


def sharpness(image: np.ndarray, retina: np.ndarray | None) -> float:
    """Return the standard deviation of the Laplacian, divided by the mean: a darker photograph is not a softer one.

    The variance of the Laplacian is a usual measure of focus (Pech-Pacheco et al. 2000). The retina's own edge does not
    count.

    Args:
        image: uint8 (h, w, 3).
        retina: bool (h, w), or None.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    field = np.ones(grey.shape, np.uint8)
    if retina is not None:
        left, top, wide, high = cv2.boundingRect(retina.view(np.uint8))
        box = slice(top, top + high), slice(left, left + wide)
        grey, field = grey[box], retina.view(np.uint8)[box]
    scale = SHARPNESS_PX / max(grey.shape)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in grey.shape[::-1]]
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        field = cv2.resize(field, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
    edge = 1 + 2 * (max(grey.shape) // 40) if retina is not None else 1
    inside = cv2.erode(field, np.ones((edge, edge), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    mean = float(grey[inside].mean()) if inside.any() else 0.0
    return float(cv2.Laplacian(grey, cv2.CV_32F)[inside].std()) / mean if mean else math.nan


def frame(retina: np.ndarray, ellipse: Ellipse) -> dict[str, float]:
    """Return how the retina lies in its frame."""
    height, width = retina.shape
    left, top, wide, high = cv2.boundingRect(retina.view(np.uint8))
    aspect = ellipse.a / ellipse.b
    return {
        "border": 1 - float(retina.mean()),
        "bars": 1 - high / height,
        "cut": max(0.0, 1 - high / (2 * ellipse.b), 1 - wide / (2 * ellipse.a)),
        "aspect": aspect,
        "stretch": max(aspect, 1 / aspect) - 1,
        "offset": math.hypot(ellipse.x - width / 2, ellipse.y - height / 2) / max(height, width),
    }


def symmetry(image: np.ndarray) -> float:
    """Return the correlation of the left half of the image with the right, mirrored or repeated, the larger.

    Of detail, a fortieth of the longer side and finer, where both halves are lit, so that round, evenly lit retinas do
    not resemble themselves. Upper and lower half are not compared: the vessels' arcs resemble each other.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    detail = cv2.GaussianBlur(grey, (0, 0), 1) - cv2.GaussianBlur(grey, (0, 0), max(grey.shape) / 40)
    lit = (grey > 0.15 * np.percentile(grey, 95)).astype(np.uint8)
    lit = cv2.morphologyEx(lit, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    edge = 1 + 2 * (max(grey.shape) // 25)
    inside = cv2.erode(lit, np.ones((edge, edge), np.uint8)) > 0
    half = grey.shape[1] // 2
    best = 0.0
    for step in (-1, 1):
        both = inside[:, :half] & inside[:, -half:][:, ::step]
        if both.mean() > 0.1:
            best = max(best, _correlation(detail[:, :half][both], detail[:, -half:][:, ::step][both]))
    return best


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size else 0.0


def text(image: np.ndarray, retina: np.ndarray) -> int:
    """Return about how many characters stand in the longest row of print outside the retina.

    Characters are connected bright regions of 0.8 to 8 % of the image's longer side in height; one wider than high is
    several that touch. In a row are those on one line, of similar height, and no farther apart than three of it. A mark
    or a notch is no row. Print on the retina itself is not found.

    Args:
        image: uint8 (h, w, 3).
        retina: bool (h, w).
    """
    side = max(retina.shape)
    near = 1 + 2 * (side // 60)
    outside = cv2.dilate(retina.view(np.uint8), np.ones((near, near), np.uint8)) == 0
    if not outside.any():
        return 0
    brightest = np.maximum.reduce(cv2.split(image))
    bright = outside & (brightest > np.median(brightest[outside]) + 40)
    _, _, regions, _ = cv2.connectedComponentsWithStats(bright.view(np.uint8), connectivity=8)
    characters = sorted(
        (left, top, wide, high)
        for left, top, wide, high, _ in regions[1:].tolist()
        if 0.008 * side <= high <= 0.08 * side and wide <= 12 * high
    )
    longest = 0
    for _, top, _, high in characters:
        count, end = 0, -math.inf
        for left, other_top, wide, other in characters:
            on_line = abs(other_top + other / 2 - top - high / 2) < high / 2 and high / 2 <= other <= 2 * high
            if on_line:
                count = max(1, round(wide / high)) + (count if left - end <= 3 * high else 0)
                end, longest = left + wide, max(longest, count)
    return longest


def rim(image: np.ndarray, retina: np.ndarray, ellipse: Ellipse) -> dict[str, float]:
    """Return what share of the rim's pixels has another hue than the retina, and what share is much lighter.

    In CIELAB, without what is finer than a two-hundredth of the longer side. Another hue is one 30 degrees or more from
    that of the retina's median, at a chroma of 6 or more; much lighter is 15 units of lightness or more above it.

    Args:
        image: uint8 (h, w, 3). retina: bool (h, w). ellipse: of its rim.
    """
    smooth = cv2.GaussianBlur(image, (0, 0), max(1.0, max(image.shape) / 200))
    lab = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB)  # in 8 bits: 255 / 100 times the lightness, and a and b plus 128
    radius = ellipse.radius(retina.shape)
    inside = radius < _RIM[0]
    outer = lab[retina & ~inside & (radius < _RIM[1])].astype(np.float32) - (0, 128, 128)
    inner = lab[retina & inside]
    if not len(outer) or not len(inner):
        return {}
    lightness, *usual = np.median(inner, axis=0) - (0, 128, 128)
    turn = np.degrees(np.arctan2(outer[:, 2], outer[:, 1]) - np.arctan2(usual[1], usual[0]))
    other_hue = np.abs((turn + 180) % 360 - 180) >= 30
    coloured = np.hypot(outer[:, 1], outer[:, 2]) >= 6
    return {
        "rim_colour": float((other_hue & coloured).mean()),
        "rim_light": float((outer[:, 0] >= lightness + 15 * 255 / 100).mean()),
    }
