"""Each step against a closed form or another library's answer; crop_retina on drawn discs and on real photographs."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from domainbed.datasets.images import read_image
from domainbed.datasets.preprocess import PREPROCESSINGS, Preprocess, find_retina
from domainbed.errors import UserError


def noise(height: int = 90, width: int = 130) -> np.ndarray:
    """Return uint8 (height, width, 3) with detail at every scale."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.uniform(0, 200, (6, 8, 3)).astype(np.float32), (width, height))
    return (coarse + rng.uniform(0, 55, (height, width, 3))).astype(np.uint8)


def fundus(height: int, width: int, centre: tuple[int, int], radius: int, bright: int = 140) -> np.ndarray:
    """Return a disc shaded towards its rim on noisy black, uint8 (height, width, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - centre[0], x - centre[1]) / radius
    grey = np.where(distance <= 1, bright * (1 - 0.6 * distance**2), 0)
    image = grey[..., None] * np.array([1.0, 0.5, 0.2]) + rng.normal(4, 2, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def disc_box(height: int, width: int, centre: tuple[int, int], radius: int) -> tuple[int, int, int, int]:
    (y, x), r = centre, radius
    return max(0, y - r), min(height, y + r + 1), max(0, x - r), min(width, x + r + 1)


@pytest.mark.parametrize(
    "height, width, size", [(90, 130, 32), (90, 130, 224), (31, 17, 16), (64, 64, 64), (7, 68, 32)]
)
def test_resize_is_torchvisions_on_pillow_images(height: int, width: int, size: int) -> None:
    image = noise(height, width)
    expected = v2.Resize((size, size), InterpolationMode.BILINEAR, antialias=True)(Image.fromarray(image))
    np.testing.assert_array_equal(Preprocess(["resize"], size)(image)[0], np.asarray(expected))


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    np.testing.assert_allclose(Preprocess([], 8)(stripes)[0][:, 1:-1], 100, atol=2)


def test_grey_is_ntsc() -> None:
    image = noise()
    grey, _ = Preprocess(["gray_ntsc"], 90)(image[:, :90])
    assert grey.shape == (90, 90, 1)
    np.testing.assert_allclose(grey[..., 0], image[:, :90] @ np.array([0.299, 0.587, 0.114]), atol=0.6)


def test_clahe_raises_local_contrast_and_keeps_hue() -> None:
    image = (noise(128, 128) // 4) + 60
    for names in (["gray_ntsc", "clahe"], ["clahe"]):
        enhanced, _ = Preprocess(names, 128)(image)
        plain, _ = Preprocess(names[:-1], 128)(image)
        assert enhanced.std() > 1.3 * plain.std()
    before, after = (cv2.cvtColor(one, cv2.COLOR_RGB2LAB).astype(int) for one in (image, enhanced))
    assert np.abs(before[..., 1:] - after[..., 1:]).mean() < 2, "a and b of Lab are left alone"
    flat = np.full((64, 64, 3), 90, dtype=np.uint8)
    assert len(np.unique(Preprocess(["gray_ntsc", "clahe"], 64)(flat)[0])) == 1


def test_clahe_depends_on_the_neighbourhood_and_so_on_the_order() -> None:
    image = noise(256, 256)
    one = Preprocess(["clahe", "resize"], 64)(image)[0]
    other = Preprocess(["resize", "clahe"], 64)(image)[0]
    assert np.abs(one.astype(int) - other).mean() > 2


@pytest.mark.parametrize(
    "height, width, centre, radius",
    [
        (340, 512, (170, 250), 150),
        (340, 512, (170, 230), 200),
        (700, 600, (350, 280), 270),
        (1100, 1500, (500, 720), 450),
    ],
)
@pytest.mark.parametrize("bright", [40, 140, 250])
def test_the_box_of_the_disc_is_found(
    height: int, width: int, centre: tuple[int, int], radius: int, bright: int
) -> None:
    found = find_retina(fundus(height, width, centre, radius, bright))
    tolerance = 2 + 2 * max(height, width) / 512
    np.testing.assert_allclose(found, disc_box(height, width, centre, radius), atol=tolerance)


def test_noise_hot_pixels_and_text_beside_the_disc_do_not_count() -> None:
    image = fundus(340, 512, (170, 290), 150)
    rng = np.random.default_rng(1)
    image = np.clip(image + rng.normal(6, 4, image.shape), 0, 255).astype(np.uint8)
    image[rng.integers(0, 340, 150), rng.integers(0, 512, 150)] = 255
    cv2.putText(image, "OD 12:31", (3, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
    cv2.rectangle(image, (2, 300), (60, 337), (255, 255, 255), -1)
    cv2.line(image, (0, 170), (290, 170), (255, 255, 255), 2)
    np.testing.assert_allclose(find_retina(image), disc_box(340, 512, (170, 290), 150), atol=4)


def test_what_shows_no_disc_is_left_alone() -> None:
    black = np.zeros((50, 80, 3), dtype=np.uint8)
    too_dark = np.clip(np.random.default_rng(0).normal(4, 2, (340, 512, 3)), 0, 255).astype(np.uint8)
    dim = black.copy()
    dim[10:40, 20:60] = 10
    only_text = np.zeros((300, 480, 3), dtype=np.uint8)
    for left in range(10, 480, 60):
        only_text[20:80, left : left + 40] = only_text[200:260, left : left + 40] = 255
    no_surround = np.broadcast_to(np.linspace(100, 250, 80)[:, None], (50, 80, 3)).astype(np.uint8)
    for image in (black, dim, too_dark, only_text, no_surround):
        assert find_retina(image) == (0, image.shape[0], 0, image.shape[1])
    assert not Preprocess(["crop_retina"], 16)(black)[0].any()


@pytest.mark.parametrize("height, width", [(1, 1), (1, 40), (7, 5), (13, 600)])
def test_small_images_pass_every_step(height: int, width: int) -> None:
    image, masks = Preprocess(PREPROCESSINGS, 8)(noise(height, width), {"m": np.ones((height, width), bool)})
    assert image.shape == (8, 8, 1) and masks["m"].shape == (8, 8)


def test_the_crop_is_a_square_with_the_disc_in_its_centre() -> None:
    image = fundus(340, 512, (170, 330), 180)  # cut off above, below and at the right edge of the frame
    square, _ = Preprocess(["crop_retina"], 360)(image)
    rows, columns = np.nonzero(square.max(axis=2) > 25)
    np.testing.assert_allclose([rows.min() + rows.max(), columns.min() + columns.max()], 359, atol=8)
    np.testing.assert_allclose([np.ptp(rows), np.ptp(columns)], [340, 360], atol=8)  # the aspect ratio is kept
    assert not square[:4].any() and not square[-4:].any()


def test_masks_go_the_way_of_the_image() -> None:
    image = fundus(340, 512, (170, 290), 150)
    spot = np.zeros((340, 512), dtype=bool)
    spot[100:130, 250:270] = True
    image[spot] = [0, 255, 0]
    classes = np.where(spot, 7, 3).astype(np.uint8)
    done, masks = Preprocess(["crop_retina", "resize"], 150)(image, {"spot": spot, "classes": classes})
    assert masks["spot"].dtype == bool and masks["classes"].dtype == np.uint8
    assert masks["spot"].shape == masks["classes"].shape == (150, 150)
    assert set(np.unique(masks["classes"])) <= {0, 3, 7}, "no value in between"
    np.testing.assert_array_equal(masks["classes"] == 7, masks["spot"])
    seen = (done[..., 1] > 127) & (done[..., 0] < 128)
    assert (seen ^ masks["spot"]).sum() <= 0.1 * masks["spot"].sum()
    whole = v2.Resize((40, 40), InterpolationMode.NEAREST_EXACT)(torch.from_numpy(classes)[None])[0]
    np.testing.assert_array_equal(Preprocess([], 40)(image, {"classes": classes})[1]["classes"], whole)


def test_steps_run_in_the_order_named_and_end_at_the_final_size() -> None:
    image = fundus(340, 512, (170, 290), 100)
    cropped_first = Preprocess(["crop_retina", "resize"], 64)(image)[0]
    np.testing.assert_array_equal(Preprocess(["crop_retina"], 64)(image)[0], cropped_first)
    cropped_last = Preprocess(["resize", "crop_retina"], 64)(image)[0]
    assert cropped_last.shape == (64, 64, 3)
    assert np.abs(cropped_last.astype(int) - cropped_first).mean() > 2, "squashed before the disc was sought"
    for names in ([], ["gray_ntsc"], ["clahe"], list(PREPROCESSINGS), list(PREPROCESSINGS)[::-1]):
        preprocess = Preprocess(names, 20)
        done, masks = preprocess(image)
        assert done.dtype == np.uint8 and done.shape == (20, 20, preprocess.channels) and masks == {}
        assert preprocess.channels == (1 if "gray_ntsc" in names else 3)


def test_it_can_be_sent_to_another_process_and_changes_nothing_it_is_given() -> None:
    image = noise()
    kept, preprocess = image.copy(), Preprocess(PREPROCESSINGS, 24)
    again = pickle.loads(pickle.dumps(preprocess))
    np.testing.assert_array_equal(again(image)[0], preprocess(image)[0])
    np.testing.assert_array_equal(image, kept)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="no 'crop_retnia': did you mean 'crop_retina'"):
        Preprocess(["crop_retnia"], 32)
    with pytest.raises(UserError, match="image_size = 0"):
        Preprocess([], 0)
    with pytest.raises(ValueError, match="float64"):
        Preprocess([], 8)(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="'m' must be bool or uint8 \\(4, 4\\)"):
        Preprocess([], 8)(np.zeros((4, 4, 3), np.uint8), {"m": np.zeros((3, 4), bool)})


def test_real_retinas_are_found(real_data: Path) -> None:
    for environment in ("idrid", "srahim"):
        paths = sorted((real_data / "DR" / environment).rglob("*.jpg"))[::12]
        for path in paths:
            image = read_image(path)
            top, bottom, left, right = find_retina(image)
            height, width = image.shape[:2]
            # Both cameras show the whole width of a disc that is cut above and below.
            assert (top, bottom) == (0, height), path.name
            assert 0.76 * width < right - left < 0.87 * width, path.name
            outside = np.concatenate([image[:, : max(0, left - 3)], image[:, right + 3 :]], axis=1)
            assert np.percentile(outside.max(axis=2), 99) < 40, path.name


def test_the_box_does_not_depend_on_the_resolution(real_data: Path) -> None:
    for path in sorted((real_data / "DR_originals").rglob("*.jpg"))[::7]:
        image = read_image(path)
        small = cv2.resize(image, None, fx=0.15, fy=0.15, interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(np.array(find_retina(small)) / 0.15, find_retina(image), atol=30)


def test_photographs_may_be_decoded_small_where_it_hardly_shows(real_data: Path) -> None:
    files = sorted((real_data / "DR_originals").glob("*/*/*.jpg"))[::7]
    if not files:
        pytest.skip(f"no photographs at full size in {real_data}")
    for names, least_db in ((["resize"], 50), (["crop_retina", "resize"], 38)):
        preprocess = Preprocess(names, 224)
        for path in files:
            small, whole = (read_image(path, side) for side in (preprocess.least_side, None))
            assert min(small.shape[:2]) < min(whole.shape[:2]) / 1.9
            error = np.square(preprocess(small)[0].astype(float) - preprocess(whole)[0]).mean()
            assert 10 * np.log10(255**2 / error) > least_db, path.name


def test_clahe_gets_every_pixel() -> None:
    assert Preprocess(["crop_retina", "clahe", "resize"], 224).least_side is None
    assert Preprocess(["gray_ntsc"], 64).least_side == 128 and Preprocess(["crop_retina"], 64).least_side == 192
