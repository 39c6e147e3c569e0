"""What is measured on a photograph: drawn eyes to which each fault is done, and the same eyes without it."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from domainbed.analysis import photograph
from domainbed.analysis.photograph import CHECKS, measure
from domainbed.datasets import fundus_drawing

Image = np.ndarray
CAMERAS = [camera.name for camera in fundus_drawing.CAMERAS]
SIDE = 256


@pytest.fixture(scope="module")
def eyes() -> dict[str, Image]:
    """One eye before each camera: two of them cut by a gate, one by the frame, which prints digits, and one whole."""
    return {name: fundus_drawing.draw(0, number, 1, SIDE).image for number, name in enumerate(CAMERAS)}


def circle(image: Image) -> tuple[Image, Image]:
    """Radius, 1 on the retina's rim, and angle of every pixel, from the camera's own numbers."""
    down, across = np.indices(image.shape[:2]) + 0.5 - SIDE / 2
    return np.hypot(across, down) / (0.47 * SIDE), np.arctan2(down, across)


def lit_at_the_rim(light: tuple[int, int, int]) -> Callable[[Image], Image]:
    def add(image: Image) -> Image:
        radius, angle = circle(image)
        where = np.exp(-(((radius - 0.95) / 0.06) ** 2)) * (np.abs(angle) < 0.7) * (radius < 1)
        return np.clip(image + where[..., None] * light, 0, 255).astype(np.uint8)

    return add


def printed(image: Image) -> Image:
    return cv2.putText(image.copy(), "OD 2041", (3, SIDE - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (255, 255, 255))


FAULTS: dict[str, Callable[[Image], Image]] = {
    "grey": lambda image: np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2),
    "dark": lambda image: (image * 0.3).astype(np.uint8),
    "bright": lambda image: np.where(image.max(2, keepdims=True) > 40, np.clip(image * 2.0 + 110, 0, 255), 0).astype(
        np.uint8
    ),
    "blurred": lambda image: cv2.GaussianBlur(image, (0, 0), 2.5),
    "cut": lambda image: image[40:-40],
    "bars": lambda image: cv2.copyMakeBorder(image, 30, 30, 0, 0, cv2.BORDER_CONSTANT),
    "squashed": lambda image: cv2.resize(image, (SIDE, SIDE * 3 // 4), interpolation=cv2.INTER_AREA),
    "doubled": lambda image: np.hstack([image[:, : SIDE // 2], image[:, : SIDE // 2][:, ::-1]]),
    "text": printed,
    "rim_colour": lit_at_the_rim((0, 70, 170)),
    "rim_light": lit_at_the_rim((140, 120, 60)),
}


def names(image: Image) -> set[str]:
    figures = measure(image)
    return {check.name for check in CHECKS if check.found(np.array(figures[check.figure]))}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_was_made(fault: str, eyes: dict[str, Image]) -> None:
    whole = eyes["round45"]
    assert fault not in names(whole)
    assert fault in names(FAULTS[fault](whole))


def test_every_check_has_a_fault_here_and_a_figure_that_is_explained() -> None:
    assert {check.name for check in CHECKS} == FAULTS.keys()
    assert {check.figure for check in CHECKS} <= photograph.FIGURES.keys()


def test_what_a_camera_does_by_itself_is_found(eyes: dict[str, Image]) -> None:
    found = {
        name: names(image) - {"dark", "bright", "blurred", "rim_light", "rim_colour"} for name, image in eyes.items()
    }
    assert found == {
        "wide50": {"cut", "bars"},
        "round45": set(),
        "narrow35": {"cut", "text"},
        "handheld40": {"cut", "bars"},
    }


@pytest.mark.parametrize("number", range(len(CAMERAS)))
def test_the_circle_is_the_one_that_was_drawn_also_where_it_is_cut(number: int, eyes: dict[str, Image]) -> None:
    camera = fundus_drawing.CAMERAS[number]
    figures = measure(eyes[camera.name])
    assert figures["aspect"] == pytest.approx(1, abs=0.01)
    seen = min(2 * camera.half_height, 2 * camera.radius, 1)
    assert figures["cut"] == pytest.approx(max(0, 1 - seen / (2 * camera.radius)), abs=0.012)
    assert figures["bars"] == pytest.approx(1 - seen, abs=0.012)
    assert figures["offset"] < 0.01


@pytest.mark.parametrize("width", [150, 200, 300])
def test_the_aspect_is_the_one_that_the_image_was_squeezed_to(width: int, eyes: dict[str, Image]) -> None:
    squeezed = cv2.resize(eyes["wide50"], (width, SIDE), interpolation=cv2.INTER_AREA)
    assert measure(squeezed)["aspect"] == pytest.approx(width / SIDE, rel=0.015)


def test_light_is_that_of_the_retina_and_not_of_the_surround(eyes: dict[str, Image]) -> None:
    wide = cv2.copyMakeBorder(eyes["round45"], 0, 0, 100, 100, cv2.BORDER_CONSTANT)
    before, after = measure(eyes["round45"]), measure(wide)
    for figure in ("red", "brightness", "contrast", "saturation", "sharpness"):
        assert after[figure] == pytest.approx(before[figure], rel=0.02), figure
    assert after["border"] > before["border"] + 0.2


def test_colour_of_known_pixels_is_told_exactly() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:20] = (255, 51, 0)
    image[20:] = (51, 51, 51)
    figures = measure(image)
    assert figures["red"] == pytest.approx((255 + 51) / 2 / 255)
    assert figures["saturation"] == pytest.approx(0.5) and figures["chroma_p99"] == 1
    grey = np.array([round(0.299 * 255 + 0.587 * 51), 51]) / 255
    assert figures["brightness"] == pytest.approx(grey.mean()) and figures["contrast"] == pytest.approx(grey.std())


@pytest.mark.parametrize("image", [
    np.zeros((64, 64, 3), np.uint8),
    np.full((1, 1, 3), 200, np.uint8),
    np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8),
    cv2.rectangle(np.zeros((128, 128, 3), np.uint8), (20, 20), (110, 100), (200, 90, 40), -1),
], ids=["black", "one pixel", "noise", "a box"])  # fmt: skip
def test_what_is_no_retina_has_no_figures_of_one(image: Image) -> None:
    figures = measure(image)
    assert np.isnan([figures[name] for name in photograph.OF_RETINAS]).all()
    assert figures.keys() == photograph.FIGURES.keys()


def test_large_images_are_shrunk_with_their_aspect_and_small_ones_left() -> None:
    assert photograph.shrink(np.zeros((1000, 2000, 3), np.uint8)).shape == (256, 512, 3)
    small = np.zeros((30, 40, 3), np.uint8)
    assert photograph.shrink(small) is small
