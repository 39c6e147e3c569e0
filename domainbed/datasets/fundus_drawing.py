"""Synthetic colour fundus photographs with known factors and masks: the drawing behind `SyntheticFundus`.

    photograph = draw(seed=0, camera=2, index=17, size=224, masks=True)
    photograph.image, photograph.masks["vessels"], photograph.factors.grade

A photograph is a pure function of (seed, camera, index, size). Three random streams feed it, for what can be told
without pixels (`draw_factors`), for the eye, and for the lesions; a fourth is the camera's. None of the first three
knows the size, so the same index at 64 and at 224 px is the same eye with the same lesions at the same places.

An eye is laid out in degrees of visual angle around the fovea, as a right eye: x points to the nose, y points down.
A camera maps degrees to fractions of the image side; only there a left eye is mirrored. Lines and blobs are drawn on
an oversampled canvas and averaged down, so a vessel thinner than a pixel fades rather than breaks.

Sources for the numbers:
- disc to fovea 15.5 degrees, the disc about 7 degrees above the horizontal through the fovea, 5.5 by 6.5 degrees
  across: Rohrschneider 2004, Jonas et al. 1988 (1 degree is 0.29 mm on the retina); IDRiD's outlines agree.
- branching: r0^3 = r1^3 + r2^3, Murray 1926. Veins are a quarter to a third wider than arteries.
- grades: International Clinical Diabetic Retinopathy scale, Wilkinson et al. 2003.
- sizes, numbers and contrasts of lesions: percentiles over IDRiD's outlines (Porwal et al. 2018).

Not here: the environments, tensors and splits (`synthetic_fundus.py`), and augmentation (`augment.py`).
"""

from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np

GRADES = ("no_dr", "mild", "moderate", "severe", "proliferative")
LESIONS = ("microaneurysms", "haemorrhages", "hard_exudates", "soft_exudates", "new_vessels")
MASKS = ("vessels", "disc", "cup", *LESIONS)

MIN_SIZE_PX = 8


@dataclass(frozen=True)
class Camera:
    """What a fundus camera, and the clinic it stands in, does to the same eyes. Fractions are of the image side."""

    name: str
    grade_probabilities: tuple[float, float, float, float, float]  # of grades 0-4 among its patients
    field_of_view: float  # degrees across the circle
    radius: float  # of the circle; above 0.5 the frame cuts it on all sides
    half_height: float  # of the film gate: what lies farther above or below the middle is black
    gaze: tuple[float, float]  # degrees to the nasal side of the fovea at which it points: lowest, highest
    balance: tuple[float, float, float]  # gain of red, green, blue
    exposure: float  # gain of all three
    vignette: float  # loss of light at the rim, 0 to 1
    veil: tuple[float, float, float]  # 8-bit colour of the stray light that adds haze
    haze: float  # share of stray light at the rim, 0 to 1
    blur: float  # standard deviation of the sharpest photographs' blur
    noise: float  # standard deviation of the sensor noise, 8-bit levels
    jpeg_quality: int  # 1 to 100
    mark: Literal["none", "notch", "digits"]  # printed at the rim, or in the corner

    @property
    def scale(self) -> float:
        """Fractions of the image side per degree of visual angle."""
        return 2 * self.radius / self.field_of_view


CAMERAS: tuple[Camera, ...] = (
    Camera(
        name="wide50",
        grade_probabilities=(0.32, 0.08, 0.32, 0.16, 0.12),
        field_of_view=50,
        radius=0.495,
        half_height=0.415,
        gaze=(2.5, 7.5),
        balance=(1.05, 1.00, 0.66),
        exposure=1.15,
        vignette=0.40,
        veil=(120, 112, 40),
        haze=0.16,
        blur=0.0013,
        noise=2.0,
        jpeg_quality=92,
        mark="notch",
    ),
    Camera(
        name="round45",
        grade_probabilities=(0.45, 0.17, 0.27, 0.07, 0.04),
        field_of_view=45,
        radius=0.47,
        half_height=0.5,
        gaze=(3.0, 7.0),
        balance=(0.94, 0.82, 0.80),
        exposure=1.00,
        vignette=0.38,
        veil=(110, 66, 50),
        haze=0.10,
        blur=0.0022,
        noise=3.0,
        jpeg_quality=85,
        mark="none",
    ),
    Camera(
        name="narrow35",
        grade_probabilities=(0.62, 0.14, 0.16, 0.05, 0.03),
        field_of_view=35,
        radius=0.56,
        half_height=0.5,
        gaze=(6.5, 8.5),
        balance=(0.96, 1.08, 1.40),
        exposure=1.06,
        vignette=0.20,
        veil=(160, 140, 120),
        haze=0.20,
        blur=0.0028,
        noise=3.5,
        jpeg_quality=75,
        mark="digits",
    ),
    Camera(
        name="handheld40",
        grade_probabilities=(0.25, 0.25, 0.25, 0.15, 0.10),
        field_of_view=40,
        radius=0.45,
        half_height=0.40,
        gaze=(5.0, 9.0),
        balance=(0.76, 0.95, 1.10),
        exposure=0.90,
        vignette=0.50,
        veil=(95, 105, 95),
        haze=0.28,
        blur=0.0036,
        noise=5.0,
        jpeg_quality=60,
        mark="none",
    ),
)


@dataclass(frozen=True)
class Factors:
    """What is true of one photograph. Lesion counts are the lesions drawn within the field of view."""

    camera: str
    grade: int  # 0 to 4, an index into GRADES
    eye: Literal["left", "right"]
    disc_x: float  # centre of the disc, fractions of the image side from the left
    disc_y: float  # and from the top
    cup_to_disc: float  # ratio of the diameters
    pigmentation: float  # of the fundus: 0 blond to 1 dark
    illumination: float  # gain of the exposure, 1 as the camera is set
    blur: float  # standard deviation, fraction of the image side
    microaneurysms: int
    haemorrhages: int
    hard_exudates: int
    soft_exudates: int
    new_vessels: int

    def as_dict(self) -> dict:
        """The factors by name, in the order of the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Photograph:
    """One drawn photograph: `image` (S, S, 3) uint8 RGB, `masks` name -> (S, S) bool, empty unless asked for."""

    image: np.ndarray
    factors: Factors
    masks: dict[str, np.ndarray] = field(default_factory=dict)


def draw_factors(seed: int, camera: int, index: int) -> Factors:
    """The factors of a photograph without drawing it. Raises ValueError as `draw` does."""
    return _lay_out(seed, camera, index).factors


def draw(seed: int, camera: int, index: int, size: int, masks: bool = False) -> Photograph:
    """Draw photograph `index` of CAMERAS[camera], `size` px a side; `masks=True` adds every mask of MASKS.

    Raises ValueError for a negative seed or index, a camera that is not in CAMERAS, or a size below MIN_SIZE_PX.
    """
    if size < MIN_SIZE_PX:
        raise ValueError(f"size is {size} px; the smallest photograph is {MIN_SIZE_PX} px a side")
    eye = _lay_out(seed, camera, index)
    geometry = _rng(seed, camera, index, _EYE_STREAM)
    tree = _grow_tree(geometry, eye)
    vessels = _Canvas(size).vessels(eye, tree)
    lesions = _draw_lesions(_rng(seed, camera, index, _LESION_STREAM), eye, tree, size)
    scene = _paint(geometry, eye, vessels.coverage(), lesions, size)
    image = _expose(_rng(seed, camera, index, _CAMERA_STREAM), eye, scene, size)
    return Photograph(image, eye.factors, _masks(eye, vessels, lesions, size) if masks else {})


_FACTOR_STREAM, _EYE_STREAM, _LESION_STREAM, _CAMERA_STREAM = range(4)

# Lowest and highest count of each of LESIONS, by grade. The square of a uniform number picks between them.
_COUNTS = (
    ((0, 0), (0, 0), (0, 0), (0, 0), (0, 0)),
    ((1, 8), (0, 0), (0, 0), (0, 0), (0, 0)),
    ((4, 30), (1, 16), (0, 90), (0, 2), (0, 0)),
    ((15, 60), (28, 60), (0, 150), (1, 8), (0, 0)),
    ((8, 50), (6, 45), (0, 110), (0, 6), (1, 3)),
)


def _rng(seed, camera, index, stream):
    return np.random.default_rng(np.random.SeedSequence((seed, camera, index, stream)))


@dataclass(frozen=True)
class _Eye:
    """One eye before one camera: positions in degrees around the fovea, and the way from degrees to the image."""

    camera: Camera
    factors: Factors
    gaze: np.ndarray  # (2,) the point at the middle of the circle
    disc: np.ndarray  # (2,) its centre
    disc_radii: np.ndarray  # (2,)

    @property
    def mirror(self):
        return np.array([1.0 if self.factors.eye == "right" else -1.0, 1.0])

    def to_image(self, points):
        """Degrees (..., 2) to fractions of the image side (..., 2)."""
        return 0.5 + (points - self.gaze) * self.mirror * self.camera.scale

    def to_retina(self, fractions):
        return (fractions - 0.5) / (self.mirror * self.camera.scale) + self.gaze

    def sees(self, points, margin=1.0):
        """Whether points (..., 2) lie in the field of view, `margin` degrees away from its edge."""
        offset, inset = self.to_image(points) - 0.5, margin * self.camera.scale
        return (
            (np.hypot(*np.moveaxis(offset, -1, 0)) < self.camera.radius - inset)
            & (np.abs(offset[..., 0]) < 0.5 - inset)
            & (np.abs(offset[..., 1]) < self.camera.half_height - inset)
        )

    def off_disc(self, points, margin=1.3):
        return np.linalg.norm((points - self.disc) / self.disc_radii, axis=-1) > margin


def _lay_out(seed, camera, index):
    if min(seed, index) < 0:
        raise ValueError(f"seed and index count from 0; got seed {seed}, index {index}")
    if not 0 <= camera < len(CAMERAS):
        raise ValueError(f"camera {camera} is not one of 0 to {len(CAMERAS) - 1}")
    rng, camera_ = _rng(seed, camera, index, _FACTOR_STREAM), CAMERAS[camera]
    grade = int(np.searchsorted(np.cumsum(camera_.grade_probabilities)[:-1], rng.random(), side="right"))
    counts = [int(low + (high + 1 - low) * rng.random() ** 2) for low, high in _COUNTS[grade]]
    gaze = np.array([rng.uniform(*camera_.gaze), 0.8 * _bounded_normal(rng)])
    distance, angle = 15.5 + 0.6 * _bounded_normal(rng), np.radians(7 + 2.5 * _bounded_normal(rng))
    disc = distance * np.array([np.cos(angle), -np.sin(angle)])
    disc_radii = (1 + 0.06 * _bounded_normal(rng)) * np.array([2.75, 3.2])
    eye: Literal["left", "right"] = "right" if rng.random() < 0.5 else "left"
    mirror = 1 if eye == "right" else -1
    disc_x, disc_y = 0.5 + (disc - gaze) * (mirror, 1) * camera_.scale
    factors = Factors(
        camera_.name,
        grade,
        eye,
        float(disc_x),
        float(disc_y),
        cup_to_disc=float(0.42 + 0.12 * _bounded_normal(rng)),
        pigmentation=float(rng.random()),
        illumination=float(1 + 0.13 * _bounded_normal(rng)),
        blur=float(camera_.blur * (1 + rng.exponential(0.3))),
        **dict(zip(LESIONS, counts, strict=True)),
    )
    return _Eye(camera_, factors, gaze, disc, disc_radii)


def _bounded_normal(rng):
    """A standard normal number, cut off at two standard deviations: no eye is beyond belief."""
    return float(np.clip(rng.standard_normal(), -2, 2))


@dataclass(frozen=True)
class _Vessels:
    """K courses of T points: `points` (K, T, 2) degrees, `radii` (K, T) degrees, 0 where a course has ended."""

    points: np.ndarray
    radii: np.ndarray
    vein: np.ndarray  # (K,) bool


def _spline_basis(num_knots, num_points):
    """Weights (num_points, num_knots) of a Catmull-Rom spline through its knots."""
    t = (num_knots - 1 - 1e-9) * np.linspace(0, 1, num_points) ** 0.75  # the knots near the disc are closer
    left, u = t.astype(int), t % 1
    weights = 0.5 * np.stack(
        [-u + 2 * u**2 - u**3, 2 - 5 * u**2 + 3 * u**3, u + 4 * u**2 - 3 * u**3, -(u**2) + u**3], axis=1
    )
    basis = np.zeros((num_points, num_knots))
    for k in range(4):
        np.add.at(basis, (np.arange(num_points), np.clip(left + k - 1, 0, num_knots - 1)), weights[:, k])
    return basis


_SPLINE = _spline_basis(6, 56)


# Knots of the nasal vessels: degrees from the disc's centre, to the nose and up or down.
_NASAL = ((0.8, 0.2), (1.5, 2.8), (4, 6), (8, 10), (12, 14), (18, 18))


def _grow_tree(rng, eye):
    """The retinal vessels in three generations, a list of _Vessels: trunks, branches, twigs."""
    trunks = _trunks(rng, eye)
    beading = rng.uniform(0.15, 0.3) if eye.factors.grade >= 3 else 0.0
    trunks, branches = _branch(rng, trunks, 7, (5, 14), eye)
    branches, twigs = _branch(rng, branches, 3, (2, 6), eye)
    if beading:
        wave = 1 + beading * np.sin(np.arange(trunks.radii.shape[1]) * 1.9)
        trunks = _Vessels(trunks.points, np.where(trunks.vein[:, None], trunks.radii * wave, trunks.radii), trunks.vein)
    return [trunks, branches, twigs]


def _trunks(rng, eye):
    """An artery and a vein for each quadrant, and small ones straight to the macula and to the nose."""
    x, y = eye.disc
    knots, radii, vein = [], [], []
    for side in (-1, 1):  # superior, inferior
        height = rng.uniform(10, 15)
        crossing = rng.choice((-1, 1))
        for is_vein in (False, True):
            apart = height + (-1 if is_vein else 1) * crossing * rng.uniform(0.4, 2.2)
            far = rng.uniform(0.5, 1.3)
            x_temporal = (x + 0.8, x + 0.5, x - 4.5, 3, -8, -21)
            y_temporal = (
                y + 0.2 * side,
                y + 3.2 * side,
                *(side * apart * np.array([0.72, 1, 0.95, far]) + (y, 0, 0, 0)),
            )
            temporal = list(zip(x_temporal, y_temporal, strict=True))
            nasal = [(x + east, y + south * side) for east, south in _NASAL]
            knots += [temporal, nasal]
            radii += [0.30, 0.21] if is_vein else [0.22, 0.16]
            vein += [is_vein] * 2
    for direction in (-1, -1, 1, 1):
        bend = rng.uniform(-3, 3)
        reach = 10 if direction < 0 else 18
        knots.append([(x + 0.7 + direction * reach * t, y + bend * np.sin(2.2 * t)) for t in np.linspace(0, 1, 6)])
        radii.append(0.09)
        vein.append(bool(rng.random() < 0.5))
    courses = np.array(knots)  # (K, 6, 2)
    courses[:, 1:] += rng.normal(0, 1, courses[:, 1:].shape) * np.array([0.25, 0.6, 1.0, 1.3, 1.6])[:, None]
    points = _SPLINE @ courses  # (K, T, 2)
    along = np.linspace(0, 1, points.shape[1])[:, None]
    waves = 2 * np.pi * (rng.uniform(3, 7, (len(knots), 1, 2)) * along + rng.random((len(knots), 1, 2)))
    points += rng.uniform(0.12, 0.45, (len(knots), 1, 1)) * np.sqrt(along) * np.sin(waves)  # slight tortuosity
    widths = np.array(radii)[:, None] * rng.uniform(0.85, 1.15, (len(radii), 1)) * (1 - 0.35 * along[:, 0])
    return _Vessels(points, widths, np.array(vein))


def _branch(rng, parents, num_children, length_range, eye):
    """Let `num_children` vessels leave each parent; returns the parents, thinner behind each branch, and the children.

    A child takes a share q of the parent's cubed radius and leaves 1 - q to the parent: Murray's law.
    """
    num_parents, num_points = parents.radii.shape
    row = np.repeat(np.arange(num_parents), num_children)
    slot = (np.arange(num_children) + rng.random((num_parents, num_children))) / num_children  # one in each stretch
    at = (num_points * (0.15 + 0.8 * slot)).astype(int).ravel()
    forks = rng.random(at.shape) < 0.12
    share = np.where(forks, rng.uniform(0.3, 0.5, at.shape), rng.uniform(0.02, 0.16, at.shape))
    thinning = np.ones((num_parents, num_points))
    np.multiply.at(thinning, (row, at), np.cbrt(1 - share))
    radii = parents.radii * np.cumprod(thinning, axis=1)

    start = parents.points[row, at]
    tangent = start - parents.points[row, at - 2]
    side = np.where(np.arange(len(row)) % 2, 1, -1) * rng.choice((-1, 1), num_parents)[row]
    heading = np.arctan2(tangent[:, 1], tangent[:, 0]) + side * rng.uniform(0.45, 1.1, len(row)) * (1 - share)
    # A vessel that sets out towards the fovea converges on it; every other one runs away from the disc.
    inward = (start * np.stack([np.cos(heading), np.sin(heading)], axis=1)).sum(axis=1) < 0
    inward &= share < 0.3
    target = np.where(inward[:, None], 0.0, 2 * start - eye.disc)
    points = _walk(rng, start, heading, rng.uniform(*length_range, len(row)), target, pull=0.08, wander=0.11, steps=20)
    alive = np.cumprod(np.linalg.norm(points, axis=-1) > 1.8, axis=1)  # the fovea is avascular
    taper = np.linspace(1, 0.75, points.shape[1])
    child_radii = (radii[row, at - 1] * np.cbrt(share))[:, None] * taper * alive
    return _Vessels(parents.points, radii, parents.vein), _Vessels(points, child_radii, parents.vein[row])


def _walk(rng, start, heading, length, target, pull, wander, steps):
    """K random walks (K, steps + 1, 2) whose headings bend smoothly and are pulled towards their targets."""
    points = np.empty((steps + 1, *start.shape))
    points[0] = start
    turns, bend, stride = rng.normal(0, wander, (steps, len(start))), 0.0, (length / steps)[:, None]
    for t in range(steps):
        away = target - points[t]
        bend = 0.6 * bend + turns[t]
        heading = heading + bend + pull * np.sin(np.arctan2(away[:, 1], away[:, 0]) - heading)
        points[t + 1] = points[t] + stride * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    return points.swapaxes(0, 1)


_CANVAS_PX = 896  # the least side of a canvas: 0.05 degrees a pixel, half of the thinnest vessel
_SUBPIXEL_BITS = 4


class _Canvas:
    """A grey layer, oversampled, on which vessels and lesions are drawn; `coverage` averages it down."""

    def __init__(self, size):
        self.size = size
        self.side = size * max(2, -(-_CANVAS_PX // size))
        self.pixels = np.zeros((self.side, self.side), np.uint8)

    def coverage(self):
        """(S, S) float32 in [0, 1]."""
        return cv2.resize(self.pixels, (self.size, self.size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255

    def share_drawn(self):
        """(S, S) float32: share of each pixel that anything was drawn on, however faint."""
        drawn = np.where(self.pixels > 0, np.uint8(255), np.uint8(0))
        return cv2.resize(drawn, (self.size, self.size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255

    def fixed_point(self, fractions):
        """Fractions of the side to OpenCV's fixed-point pixel coordinates (a pixel's centre is a whole number)."""
        return np.round((fractions * self.side - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32, order="C")

    def line(self, course, grey, thickness):
        cv2.polylines(self.pixels, [course], False, grey, thickness, cv2.LINE_8, _SUBPIXEL_BITS)

    def blobs(self, eye, outlines, greys):
        for outline, grey in zip(self.fixed_point(eye.to_image(outlines)), greys, strict=True):
            cv2.fillPoly(self.pixels, [outline], int(grey), cv2.LINE_8, _SUBPIXEL_BITS)

    def vessels(self, eye, generations):
        """Draw thin vessels first, veins over arteries; a wide vessel gets the light reflex along its middle."""
        pixels_per_degree = eye.camera.scale * self.side
        for vessels in reversed(generations):
            courses = self.fixed_point(eye.to_image(vessels.points)).reshape(-1, 2)
            drawn = (vessels.radii > 0) & eye.sees(vessels.points, -1.0)
            widths = np.where(drawn, np.maximum(1, np.round(2 * vessels.radii * pixels_per_degree)), 0).astype(int)
            density = (0.45 + 0.55 * np.minimum(1, vessels.radii / 0.2)) * np.where(vessels.vein, 1.0, 0.72)[:, None]
            greys = (250 * density).astype(int).ravel()
            for start, stop, width in _runs(widths):
                self.line(courses[start:stop], int(greys[start]), width)
                if width >= 5:
                    self.line(courses[start:stop], int(0.75 * greys[start]), width // 3)
        return self


def _runs(widths):
    """Stretches of equal width > 0 along K courses of T points, as (start, stop, width) in the flattened points."""
    num_points = widths.shape[1]
    begins = np.ones(widths.shape, bool)
    begins[:, 1:] = widths[:, 1:] != widths[:, :-1]
    starts = np.flatnonzero(begins)
    last = starts // num_points * num_points + num_points  # of its own course
    stops = np.minimum(np.append(starts[1:], widths.size) + 1, last)  # one point farther, to meet the next stretch
    width = widths.ravel()[starts]
    kept = (width > 0) & (stops - starts > 1)
    return zip(starts[kept].tolist(), stops[kept].tolist(), width[kept].tolist(), strict=True)


def _draw_lesions(rng, eye, tree, size):
    """Lesion name -> (canvas, centres (N, 2) in degrees), for the kinds that this eye has."""
    drawers = (_microaneurysms, _haemorrhages, _hard_exudates, _soft_exudates, _new_vessels)
    lesions = {}
    for name, drawer in zip(LESIONS, drawers, strict=True):
        count = getattr(eye.factors, name)
        if count:
            canvas = _Canvas(size)
            lesions[name] = canvas, drawer(rng, eye, tree, canvas, count)
    return lesions


def _place(eye, propose, count, margin=1.0):
    """`count` points off the disc and in the field of view; `propose(which)` gives a candidate for each of `which`."""
    points = propose(np.arange(count))
    while len(rejected := np.flatnonzero(~(eye.sees(points, margin) & eye.off_disc(points)))):
        points[rejected] = propose(rejected)
    return points


def _anywhere(rng, eye):
    """Proposals all over the field, turn by turn in its four quadrants."""

    def propose(which):
        angle, radius = np.pi / 2 * (which % 4 + rng.random(len(which))), np.sqrt(rng.random(len(which)))
        reach = eye.camera.radius * radius
        return eye.to_retina(0.5 + np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1))

    return propose


def _outlines(rng, centres, radii, stretch=1.0, direction=0.0, roughness=0.15, num_points=24):
    """Irregular closed outlines (N, num_points, 2), stretched `stretch`-fold along `direction` (radians)."""
    n, theta = len(centres), np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    stretch, direction = np.broadcast_to(stretch, n), np.broadcast_to(direction, n)
    waves = np.array([2, 3, 5, 7])
    amplitude = roughness * rng.standard_normal((n, 4)) / np.sqrt(waves)
    phase = 2 * np.pi * rng.random((n, 4))
    wobble = (amplitude[..., None] * np.cos(waves[:, None] * theta + phase[..., None])).sum(1)  # (N, P)
    r = radii[:, None] * np.clip(1 + wobble, 0.4, 1.8)
    along, across = r * np.cos(theta) * stretch[:, None], r * np.sin(theta)
    c, s = np.cos(direction)[:, None], np.sin(direction)[:, None]
    return centres[:, None] + np.stack([along * c - across * s, along * s + across * c], axis=-1)


def _lognormal(rng, median, spread, low, high, count):
    return np.clip(median * np.exp(spread * rng.standard_normal(count)), low, high)


def _microaneurysms(rng, eye, tree, canvas, count):
    centres = _place(eye, _anywhere(rng, eye), count)
    radii = _lognormal(rng, 0.15, 0.25, 0.10, 0.22, count)
    canvas.blobs(eye, _outlines(rng, centres, radii, roughness=0.07), rng.integers(130, 240, count))
    return centres


def _haemorrhages(rng, eye, tree, canvas, count):
    """Dots, blots and flames; in a proliferative eye perhaps a pre-retinal one, level at its top."""
    centres = _place(eye, _anywhere(rng, eye), count)
    radii = _lognormal(rng, 0.32, 0.55, 0.18, 1.3, count)
    flame = rng.random(count) < 0.35
    away = centres - eye.disc  # the nerve fibres, and the flames between them, leave the disc
    outlines = _outlines(
        rng,
        centres,
        radii * np.where(flame, 0.7, 1.0),
        np.where(flame, rng.uniform(1.8, 3.2, count), 1.15),
        np.arctan2(away[:, 1], away[:, 0]),
        np.where(flame, 0.30, 0.20)[:, None],
    )
    canvas.blobs(eye, outlines, rng.integers(100, 235, count))
    if eye.factors.grade == 4 and rng.random() < 0.4:
        theta = np.linspace(0, np.pi, 20)
        boat = centres[0] + rng.uniform(1.2, 2.6) * np.stack([1.4 * np.cos(theta), np.sin(theta)], axis=1)
        canvas.blobs(eye, boat[None], [250])
    return centres


def _hard_exudates(rng, eye, tree, canvas, count):
    """Clusters and rings (circinate) around the macula, heavy-tailed in size."""
    num_clusters = int(rng.integers(1, 2 + min(3, count // 20)))
    angle, distance = 2 * np.pi * rng.random(num_clusters), rng.uniform(1.5, 7.0, num_clusters)
    middle = distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ring = np.where(rng.random(num_clusters) < 0.5, rng.uniform(1.2, 2.6, num_clusters), 0.0)
    spread = rng.uniform(0.6, 1.8, num_clusters)

    def propose(which):
        cluster, turn = which % num_clusters, 2 * np.pi * rng.random(len(which))
        on_ring = ring[cluster, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        return middle[cluster] + on_ring + spread[cluster, None] * rng.standard_normal((len(which), 2))

    centres = _place(eye, propose, count, margin=0.5)
    radii = _lognormal(rng, 0.12, 0.55, 0.07, 0.75, count)
    outlines = _outlines(rng, centres, radii, rng.uniform(1, 1.7, count), np.pi * rng.random(count), 0.22)
    canvas.blobs(eye, outlines, rng.integers(150, 255, count))
    return centres


def _soft_exudates(rng, eye, tree, canvas, count):
    centres = _place(eye, _anywhere(rng, eye), count)
    radii = _lognormal(rng, 0.75, 0.3, 0.4, 1.3, count)
    outlines = _outlines(rng, centres, radii, rng.uniform(1.0, 1.8, count), np.pi * rng.random(count), 0.3)
    canvas.blobs(eye, outlines, rng.integers(90, 200, count))
    return centres


def _new_vessels(rng, eye, tree, canvas, count):
    """Fine tortuous fronds on the disc or from a vein of an arcade."""
    trunks = tree[0]
    course = trunks.points[trunks.vein].reshape(-1, 2)
    course = course[eye.sees(course, 2.0) & eye.off_disc(course, 2.0)]
    origins = course[rng.integers(0, len(course), count)]
    on_disc = rng.random(count) < 0.4
    origins = np.where(on_disc[:, None], eye.disc + rng.normal(0, 0.5, (count, 2)) * eye.disc_radii, origins)
    for origin in origins:
        num = int(rng.integers(10, 18))
        fan = rng.uniform(0, 2 * np.pi) + rng.uniform(-1.6, 1.6, num)
        stems = _walk(
            rng, np.tile(origin, (num, 1)), fan, rng.uniform(2.0, 5.5, num), origin, pull=-0.05, wander=0.30, steps=24
        )
        at = rng.integers(4, 24, 2 * num)
        starts = stems[np.arange(2 * num) % num, at]
        directions, lengths = 2 * np.pi * rng.random(2 * num), rng.uniform(0.8, 2.5, 2 * num)
        tips = _walk(rng, starts, directions, lengths, origin, pull=0.05, wander=0.45, steps=24)
        for course in canvas.fixed_point(eye.to_image(np.concatenate([stems, tips]))):
            canvas.line(course, 190, max(1, round(0.10 * eye.camera.scale * canvas.side)))
    return origins


def _rgb(*channels):
    """One value for each of red, green, blue, to go with a scene (3, S, S)."""
    return np.array(channels, np.float32).reshape(3, 1, 1)


_BLOND, _DARK = _rgb(208, 110, 56), _rgb(146, 64, 28)  # fundus colour at pigmentation 0 and 1, 8-bit
_DISC_COLOUR, _CUP_COLOUR = _rgb(262, 160, 74), _rgb(290, 228, 138)
_BLOOD_LOSS = _rgb(0.21, 0.55, 0.45)  # share of the light that a wide vein takes
_HAEMORRHAGE_LOSS = _rgb(0.27, 0.60, 0.50)
_MICROANEURYSM_LOSS = _rgb(0.24, 0.55, 0.50)
_HARD_EXUDATE_COLOUR, _SOFT_EXUDATE_COLOUR = _rgb(250, 216, 98), _rgb(228, 188, 112)

_LEAST_SENSOR_PX = 192
_SOFTNESS = dict(zip(LESIONS, (0.03, 0.09, 0.02, 0.30, 0.02), strict=True))  # of a lesion's edge, degrees


@lru_cache(maxsize=8)
def _pixel_centres(size):
    """Pixel centres along one side as fractions of it, (S,) float32."""
    return (np.arange(size, dtype=np.float32) + 0.5) / size


def _distance2(eye, size, centre, radii=(1, 1)):
    """Squared distance (S, S) float32 of each pixel from `centre` (degrees), in units of `radii` (degrees)."""
    x, y = eye.to_retina(np.repeat(_pixel_centres(size)[:, None], 2, axis=1)).T
    x, y = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    return np.float32(x**2)[None, :] + np.float32(y**2)[:, None]


def _texture(rng, cells, size):
    """Smooth noise (S, S) float32 of about unit variance, `cells` grains across, the same at every size."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    if size < 2 * cells:  # averaged, not sampled, when the grains are finer than the pixels
        side = size * -(-2 * cells // size)
        fine = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def _paint(rng, eye, vessels, lesions, size):
    """The retina in even white light, (3, S, S) float32 of 8-bit scale."""
    scene = _fundus(rng, eye, size)
    disc, cup = _disc_and_cup(eye, size)
    paleness = 1.05 - 0.2 * eye.factors.pigmentation
    _cover(scene, disc, _DISC_COLOUR * np.float32(paleness))
    _cover(scene, 0.9 * cup * disc, _CUP_COLOUR * np.float32(paleness))
    coverage = {name: _soften(eye, canvas.coverage(), _SOFTNESS[name]) for name, (canvas, _) in lesions.items()}
    for name, colour in (("soft_exudates", _SOFT_EXUDATE_COLOUR), ("hard_exudates", _HARD_EXUDATE_COLOUR)):
        if name in coverage:
            _cover(scene, coverage[name], colour)
    _absorb(scene, vessels, _BLOOD_LOSS)
    for name, loss in (
        ("haemorrhages", _HAEMORRHAGE_LOSS),
        ("microaneurysms", _MICROANEURYSM_LOSS),
        ("new_vessels", _BLOOD_LOSS),
    ):
        if name in coverage:
            _absorb(scene, coverage[name], loss)
    return scene


def _soften(eye, coverage, degrees):
    sigma = degrees * eye.camera.scale * len(coverage)
    return cv2.GaussianBlur(coverage, (0, 0), sigma) if sigma > 0.2 else coverage


def _cover(scene, alpha, colour):
    scene += alpha * (colour - scene)


def _absorb(scene, density, loss):
    scene *= 1 - density * loss


def _fundus(rng, eye, size):
    """Pigment epithelium and choroid with the macula and the sheen of the nerve fibres at the disc, (3, S, S)."""
    pigmentation = np.float32(eye.factors.pigmentation)
    tint = 1 + _rgb(0.05, 0.09, 0.32) * np.float32(_bounded_normal(rng))
    colour = (_BLOND + pigmentation * (_DARK - _BLOND)) * tint
    clouds, choroid, grain = _texture(rng, 6, size), _texture(rng, 34, size), _texture(rng, 150, size)
    # The level lines of the noise stand for the choroidal vessels, which show through a blond fundus.
    light = 1 + 0.07 * clouds + 0.015 * grain + 0.05 * (1 - pigmentation) * np.maximum(0, 1 - 1.5 * np.abs(choroid))
    fovea2 = _distance2(eye, size, (0, 0))
    light *= 1 - 0.20 * np.exp(-fovea2 / 18) - 0.15 * np.exp(-fovea2 / 2.2)
    sheen = np.exp(-_distance2(eye, size, eye.disc) / 40)
    return np.stack([light, light * np.sqrt(light), light]) * colour + _rgb(30, 22, 10) * sheen


def _disc_and_cup(eye, size):
    """Coverage of the disc and of the cup, (S, S) float32 each, with edges as soft as real ones."""
    ratio = eye.factors.cup_to_disc
    pixel = 1 / (eye.camera.scale * size * eye.disc_radii.mean())  # in disc radii
    return (
        _soft_edge(_distance2(eye, size, eye.disc, eye.disc_radii), max(0.2, pixel)),
        _soft_edge(_distance2(eye, size, _cup_centre(eye), ratio * eye.disc_radii), max(0.5, pixel / ratio)),
    )


def _cup_centre(eye):
    return eye.disc - np.array([0.12 * eye.disc_radii[0], 0])  # a little to the temporal side


def _soft_edge(distance2, softness):
    return np.clip(0.5 + (1 - np.sqrt(distance2)) / softness, 0, 1)


@lru_cache(maxsize=32)
def _field(camera, size):
    """Share of each pixel that lies in the field of view, (S, S) float32."""
    at = _pixel_centres(size) - 0.5
    inside = np.minimum(camera.radius - np.hypot(at[None, :], at[:, None]), camera.half_height - np.abs(at[:, None]))
    return np.clip(inside * size + 0.5, 0, 1)


@lru_cache(maxsize=32)
def _window(camera, size):
    """The field of view and the notch, if the camera has one, that lets light through beyond it; (S, S) float32."""
    if camera.mark != "notch":
        return _field(camera, size)
    canvas, angle = _Canvas(size), np.radians(-32)
    rim = 0.5 + (camera.radius + 0.004) * np.array([np.cos(angle), np.sin(angle)])
    flag = rim + 0.022 * np.array([[0.1, -1], [0.9, 0.2], [-0.9, 0.9]])
    cv2.fillPoly(canvas.pixels, [canvas.fixed_point(flag)], 255, cv2.LINE_8, _SUBPIXEL_BITS)
    return np.maximum(_field(camera, size), canvas.coverage())


def _expose(rng, eye, scene, size):
    """Photograph a scene: light, stray light, blur, field of view, noise, print, compression; (S, S, 3) uint8."""
    camera, factors = eye.camera, eye.factors
    lamp = 0.5 + 0.15 * rng.uniform(-1, 1, 2)  # where the light is strongest
    digits = f"{rng.integers(10000):04d}"
    at = _pixel_centres(size)[:, None] - lamp.astype(np.float32)  # (S, 2)
    rho2 = (at[None, :, 0] ** 2 + at[:, None, 1] ** 2) / np.float32(camera.radius**2)
    scene *= _rgb(*camera.balance) * np.float32(camera.exposure * factors.illumination)
    scene *= 1 - camera.vignette * rho2
    _cover(scene, camera.haze * np.minimum(0.3 + 0.7 * rho2, 1), _rgb(*camera.veil) * np.float32(factors.illumination))
    image = cv2.GaussianBlur(cv2.merge(scene), (0, 0), max(factors.blur * size, 0.05))  # (S, S, 3)
    # Noise and compression act on the sensor's pixels; a small photograph is a larger one averaged down.
    sensor = size * -(-_LEAST_SENSOR_PX // size)
    image = cv2.resize(image, (sensor, sensor), interpolation=cv2.INTER_LINEAR)
    image *= cv2.merge([_window(camera, sensor)] * 3)
    # Demosaicing and chroma subsampling leave little but the noise of the luminance.
    image += cv2.merge([camera.noise * rng.standard_normal((sensor, sensor), dtype=np.float32)] * 3)
    if camera.mark == "digits":
        canvas = _Canvas(sensor)
        corner = (int(0.02 * canvas.side), int(0.98 * canvas.side))
        cv2.putText(canvas.pixels, digits, corner, cv2.FONT_HERSHEY_SIMPLEX, canvas.side / 1100, 235)
        image = np.maximum(image, canvas.coverage()[..., None] * 255)
    image = _compress(cv2.convertScaleAbs(np.maximum(image, 0)), camera.jpeg_quality)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _compress(image, quality):
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


_LEAST_SHARE = 0.25  # of a pixel, to belong to a mask


def _masks(eye, vessels, lesions, size):
    """Every mask of MASKS, (S, S) bool each, within the field of view."""
    disc, cup = (coverage >= 0.5 for coverage in _disc_and_cup(eye, size))
    masks = {"vessels": vessels.share_drawn() >= _LEAST_SHARE, "disc": disc, "cup": cup}
    _mark(cup, eye, _cup_centre(eye))
    disc |= cup
    for name in LESIONS:
        masks[name] = np.zeros((size, size), bool)
        if name in lesions:
            canvas, centres = lesions[name]
            masks[name] |= canvas.share_drawn() >= _LEAST_SHARE
            _mark(masks[name], eye, centres)
    seen = _field(eye.camera, size) > 0
    return {name: mask & seen for name, mask in masks.items()}


def _mark(mask, eye, centres):
    """Set the pixels of `centres`, so that what is smaller than a pixel still leaves a trace."""
    column, row = np.clip(eye.to_image(centres) * len(mask), 0, len(mask) - 1).astype(int).T
    mask[row, column] = True
