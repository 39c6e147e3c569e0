"""The drawn fundus photographs: pure, the same eye at every size, and true to the factors and masks they report."""

from functools import cache

import cv2
import numpy as np
import pytest

from domainbed.datasets.fundus_drawing import CAMERAS, GRADES, LESIONS, MASKS, Factors, draw, draw_factors

SIZE = 224
EVERY_CAMERA = range(len(CAMERAS))


@cache
def photograph(camera, index, size=SIZE):
    return draw(0, camera, index, size, masks=True)


def first_of_grade(camera, grade):
    return next(index for index in range(10_000) if draw_factors(0, camera, index).grade == grade)


@cache
def one_of_each():
    """A photograph of every grade from every camera."""
    return [photograph(c, first_of_grade(c, grade)) for c in EVERY_CAMERA for grade in range(len(GRADES))]


def centroid(mask):
    """(x, y) as fractions of the side."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / len(mask)


def in_view(camera, size):
    """Pixels that touch the field of view, from the camera's numbers alone."""
    nearest = np.maximum(np.abs(np.arange(size) + 0.5 - size / 2) / size - 0.5 / size, 0)
    view = np.hypot(nearest[None], nearest[:, None]) < camera.radius + 1 / size
    return view & (nearest[:, None] < camera.half_height + 1 / size)


def test_the_same_arguments_give_the_same_photograph():
    first, second = (draw(7, 1, 11, 96, masks=True) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert all(np.array_equal(first.masks[name], second.masks[name]) for name in MASKS)


def test_seed_camera_and_index_each_change_the_eye():
    eyes = [draw_factors(*arguments) for arguments in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({eye.pigmentation for eye in eyes}) == 4


@pytest.mark.parametrize("camera", EVERY_CAMERA)
def test_factors_are_known_without_drawing(camera):
    factors = draw_factors(3, camera, 5)
    assert draw(3, camera, 5, 32).factors == factors == Factors(**factors.as_dict())
    assert factors.camera == CAMERAS[camera].name


@pytest.mark.parametrize("size", [8, 9, 33, 101, 300])
def test_any_size_is_drawn(size):
    for camera in EVERY_CAMERA:
        drawn = draw(0, camera, 1, size, masks=True)
        assert drawn.image.shape == (size, size, 3) and drawn.image.dtype == np.uint8
        assert tuple(drawn.masks) == MASKS
        assert all(mask.shape == (size, size) and mask.dtype == bool for mask in drawn.masks.values())
        assert drawn.masks["disc"].any() and drawn.masks["cup"].any() and drawn.masks["vessels"].any()


def test_masks_are_drawn_on_request_and_leave_the_image_alone():
    without = draw(0, 2, 3, 64)
    assert without.masks == {}
    assert np.array_equal(without.image, photograph(2, 3, 64).image)


@pytest.mark.parametrize("camera", EVERY_CAMERA)
@pytest.mark.parametrize("small", [64, 75])
def test_the_same_eye_at_another_size(camera, small):
    for index in range(3):
        large, little = photograph(camera, index), photograph(camera, index, small)
        shrunk = cv2.resize(large.image, (small, small), interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(shrunk - little.image).mean() < 3
        details = [image - cv2.GaussianBlur(image, (0, 0), 4) for image in (shrunk[..., 1], little.image[..., 1] * 1.0)]
        inner = np.s_[small // 4 : -small // 4, small // 4 : -small // 4]  # vessels and lesions, without the rim
        assert np.corrcoef(details[0][inner].ravel(), details[1][inner].ravel())[0, 1] > 0.85
        assert np.allclose(centroid(large.masks["disc"]), centroid(little.masks["disc"]), atol=0.004)
        covered = cv2.resize(large.masks["vessels"].astype(np.float32), (small, small), interpolation=cv2.INTER_AREA)
        assert (
            little.masks["vessels"][covered > 0.6].mean() > 0.95
            and little.masks["vessels"][covered < 0.1].mean() < 0.05
        )


@pytest.mark.parametrize("camera", EVERY_CAMERA)
def test_grades_follow_the_clinical_scale(camera):
    for index in range(300):
        factors = draw_factors(1, camera, index)
        microaneurysms, haemorrhages, hard, soft, new_vessels = (getattr(factors, name) for name in LESIONS)
        assert (microaneurysms > 0) == (factors.grade > 0)
        assert (haemorrhages > 0) == (factors.grade > 1)
        assert factors.grade > 1 or hard == soft == 0
        assert (new_vessels > 0) == (factors.grade == 4)
        assert factors.grade != 3 or (haemorrhages > 20 and soft > 0)


def test_a_mask_shows_a_lesion_where_the_factors_count_one():
    for size in (SIZE, 32):
        for drawn in one_of_each():
            camera = [c.name for c in CAMERAS].index(drawn.factors.camera)
            drawn = photograph(camera, first_of_grade(camera, drawn.factors.grade), size)
            for name in LESIONS:
                assert drawn.masks[name].any() == (getattr(drawn.factors, name) > 0), (name, drawn.factors)


def test_lesions_are_drawn_at_their_centres():
    """The mask holds each lesion and its centre's pixel: were they apart, there would be more pieces than lesions."""
    for camera in EVERY_CAMERA:
        drawn = photograph(camera, first_of_grade(camera, 1), 640)
        pieces = cv2.connectedComponents(drawn.masks["microaneurysms"].astype(np.uint8), connectivity=8)[0] - 1
        assert 0 < pieces <= drawn.factors.microaneurysms


def test_severe_eyes_bleed_in_all_quadrants():
    for camera in EVERY_CAMERA:
        bled = photograph(camera, first_of_grade(camera, 3)).masks["haemorrhages"]
        upper, lower = np.split(bled, 2)
        assert all(quadrant.any() for half in (upper, lower) for quadrant in np.split(half, 2, axis=1))


def test_lesions_look_as_they_are_named():
    """Red lesions are darker in green than what lies around them, and the exudates brighter."""
    for name, darker in zip(LESIONS, (True, True, False, False, True), strict=True):
        ratios = []
        for drawn in one_of_each():
            mask = drawn.masks[name] & ~drawn.masks["disc"] & ~drawn.masks["vessels"]
            if mask.sum() >= 8 and drawn.factors.camera != "handheld40":
                others = np.any([drawn.masks[other] for other in MASKS], axis=0)
                around = (cv2.dilate(mask.astype(np.uint8), np.ones((13, 13))) > 0) & ~others
                ratios.append(drawn.image[mask, 1].mean() / drawn.image[around, 1].mean())
        assert ratios and (np.median(ratios) < 0.97 if darker else np.median(ratios) > 1.03), (name, ratios)


def test_disc_lies_where_the_factors_say_and_on_the_nasal_side():
    eyes = set()
    for drawn in one_of_each():
        factors, disc = drawn.factors, drawn.masks["disc"]
        assert np.allclose(centroid(disc), (factors.disc_x, factors.disc_y), atol=1 / SIZE)
        assert (factors.disc_x > 0.5) == (factors.eye == "right")
        eyes.add(factors.eye)
    assert eyes == {"left", "right"}


def test_the_macula_is_darker_than_its_mirror_image_about_the_middle():
    """In a healthy eye the fovea, 15.5 degrees to the temporal side of the disc, is darker than the retina around."""
    for camera in EVERY_CAMERA:
        drawn = photograph(camera, first_of_grade(camera, 0))
        factors, degree = drawn.factors, 2 * CAMERAS[camera].radius / CAMERAS[camera].field_of_view * SIZE
        x = factors.disc_x * SIZE + (-15.5 if factors.eye == "right" else 15.5) * degree
        y = factors.disc_y * SIZE + 1.9 * degree
        rows, columns = np.mgrid[:SIZE, :SIZE]
        distance = np.hypot(columns - x, rows - y) / degree
        green = drawn.image[..., 1]
        assert green[distance < 2].mean() < 0.93 * green[(distance > 5) & (distance < 7)].mean()


def test_the_cup_lies_in_the_disc_and_its_size_follows_the_ratio():
    ratios = []
    for drawn in one_of_each():
        disc, cup = drawn.masks["disc"], drawn.masks["cup"]
        assert cup.any() and not (cup & ~disc).any()
        ratios.append((np.sqrt(cup.sum() / disc.sum()), drawn.factors.cup_to_disc))
    assert np.abs(np.diff(ratios)).max() < 0.06


def test_masks_and_light_stay_in_the_field_of_view():
    for drawn in one_of_each():
        camera = next(c for c in CAMERAS if c.name == drawn.factors.camera)
        outside = ~in_view(camera, SIZE)
        assert not any((mask & outside).any() for mask in drawn.masks.values())
        if outside.any() and camera.mark == "none":
            assert drawn.image[outside].mean() < 8 < 40 < drawn.image[~outside].mean()


@pytest.mark.parametrize("camera", EVERY_CAMERA)
def test_vessels_are_darker_than_what_lies_around_them(camera):
    drawn = photograph(camera, first_of_grade(camera, 0))
    vessels, disc = drawn.masks["vessels"], drawn.masks["disc"]
    wide = cv2.erode(vessels.astype(np.uint8), np.ones((3, 3))) > 0
    inner = (cv2.erode(in_view(CAMERAS[camera], SIZE).astype(np.uint8), np.ones((25, 25))) > 0) & ~disc
    around = (cv2.dilate(wide.astype(np.uint8), np.ones((13, 13))) > 0) & ~vessels
    green = drawn.image[..., 1]
    assert green[wide & inner].mean() < 0.93 * green[around & inner].mean()


def test_the_vessel_tree_hangs_together_and_springs_from_the_disc():
    for drawn in one_of_each():
        vessels = drawn.masks["vessels"]
        _, labels = cv2.connectedComponents(vessels.astype(np.uint8), connectivity=8)
        at_disc = np.unique(labels[vessels & drawn.masks["disc"]])
        assert np.isin(labels, at_disc[at_disc > 0]).sum() > 0.9 * vessels.sum()


def test_vessels_thin_out_away_from_the_disc():
    """Distance to the edge of the mask is half of a vessel's width: its upper tail falls with distance to the disc."""
    near_widths, far_widths = [], []
    for camera in EVERY_CAMERA:
        drawn = photograph(camera, first_of_grade(camera, 0), 640)
        half_width = cv2.distanceTransform(drawn.masks["vessels"].astype(np.uint8), cv2.DIST_L2, 5)
        rows, columns = np.nonzero(half_width)
        disc = np.array([drawn.factors.disc_x, drawn.factors.disc_y]) * 640
        degrees = np.hypot(columns - disc[0], rows - disc[1]) / 640 / (2 * CAMERAS[camera].radius)
        degrees *= CAMERAS[camera].field_of_view
        near_widths.append(np.quantile(half_width[rows, columns][(degrees > 4) & (degrees < 8)], 0.95))
        far_widths.append(np.quantile(half_width[rows, columns][degrees > 16], 0.95))
    assert np.mean(far_widths) < 0.85 * np.mean(near_widths)


def test_cameras_are_told_apart_by_their_colours():
    """Nearest mean of (red, green, blue) over the lit pixels, each in its standard deviation within a camera."""

    def colour(camera, index):
        image = draw(0, camera, index, 32).image
        red, green, blue = image[image[..., 0] > 30].mean(axis=0)
        return red, green / red, blue / red

    colours = np.array([[colour(c, index) for index in range(40)] for c in EVERY_CAMERA])
    seen, unseen = colours[:, :20], colours[:, 20:]
    spread = seen.std(axis=1).mean(axis=0)
    distance = np.linalg.norm((unseen[:, :, None] - seen.mean(axis=1)) / spread, axis=-1)
    assert (distance.argmin(axis=-1) == np.arange(len(CAMERAS))[:, None]).mean() > 0.8


@pytest.mark.parametrize("camera", EVERY_CAMERA)
def test_grades_are_as_frequent_as_the_camera_says(camera):
    """Pearson's statistic below 18.5: the 0.999 quantile of chi-square with 4 degrees of freedom."""
    expected = 600 * np.array(CAMERAS[camera].grade_probabilities)
    assert expected.sum() == pytest.approx(600)
    observed = np.bincount([draw_factors(2, camera, index).grade for index in range(600)], minlength=5)
    assert ((observed - expected) ** 2 / expected).sum() < 18.5


def test_cameras_differ_in_their_grades_and_names():
    assert len({camera.grade_probabilities for camera in CAMERAS}) == len({c.name for c in CAMERAS}) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 0, 64), "camera 4"),
        ((0, -1, 0, 64), "camera -1"),
        ((0, 0, -1, 64), "index -1"),
        ((-1, 0, 0, 64), "seed -1"),
        ((0, 0, 0, 7), "7 px"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)
