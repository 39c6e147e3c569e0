"""The data set against the drawing that is behind it."""

import numpy as np
import pytest

from domainbed.datasets import fundus_drawing, synthetic_fundus
from domainbed.datasets.synthetic_fundus import SyntheticFundus
from domainbed.errors import UserError


def synthetic(**hparams) -> SyntheticFundus:
    return SyntheticFundus(None, SyntheticFundus.HParams(**{"num_images": 6, "image_size": 32, **hparams}))


def test_environments_are_cameras_and_labels_are_grades():
    data = synthetic()
    assert data.environments == [camera.name for camera in fundus_drawing.CAMERAS]
    assert tuple(data.classes) == fundus_drawing.GRADES and data.ordinal
    assert len(data.samples) == 6 * len(data.environments) == len({s.group for s in data.samples})
    for i, sample in enumerate(data.samples):
        camera, number = divmod(i, 6)
        assert (sample.environment, sample.name) == (camera, f"{data.environments[camera]}/{number}")
        assert sample.label == fundus_drawing.draw_factors(0, camera, number).grade
        assert data.factors(i)["grade"] == sample.label and data.factors(i)["camera"] == data.environments[camera]


def test_the_eye_can_be_the_label():
    data = synthetic(label="eye", num_images=20)
    assert data.classes == ["left", "right"] and not data.ordinal
    for i, sample in enumerate(data.samples):
        factors = data.factors(i)
        assert data.classes[sample.label] == factors["eye"]
        nasal = {"left": factors["disc_x"] < 0.5, "right": factors["disc_x"] > 0.5}  # seen from the front
        assert nasal[factors["eye"]]
    assert data.content(3) == synthetic(num_images=20).content(3)


def test_mirrored_eyes_have_no_side():
    with pytest.raises(ValueError, match=r"makes a right eye of a left one. Leave it out: augment=\[rotation\]"):
        synthetic(label="eye", augment=["horizontal_flip", "rotation"])
    synthetic(label="eye", augment=["vertical_flip"])


def test_images_and_masks_are_the_drawing():
    data = synthetic(data_seed=5)
    for i, camera, number in ((0, 0, 0), (8, 1, 2), (23, 3, 5)):
        photograph = fundus_drawing.draw(5, camera, number, 32, masks=True)
        np.testing.assert_array_equal(data.read(i), photograph.image)
        masks = data.read_masks(i)
        assert tuple(masks) == fundus_drawing.MASKS
        for name in masks:
            np.testing.assert_array_equal(masks[name], photograph.masks[name])


def test_preprocessing_is_applied():
    data = synthetic(preprocess=["gray_ntsc", "resize"])
    assert data.read(0).shape == (32, 32, 1) and data.input_shape == (1, 32, 32)
    cropped = synthetic(preprocess=["crop_retina"], image_size=64)
    assert cropped.read(0).shape == (64, 64, 3)
    assert not np.array_equal(cropped.read(0), synthetic(image_size=64).read(0))
    assert all(mask.shape == (64, 64) for mask in cropped.read_masks(0).values())


def test_content_changes_with_everything_that_changes_the_image(monkeypatch):
    variants = [synthetic(), synthetic(data_seed=1), synthetic(image_size=40)]
    contents = [data.content(i) for data in variants for i in range(len(data.samples))]
    monkeypatch.setattr(synthetic_fundus, "_drawing", lambda: "another drawing")
    contents += [synthetic().content(i) for i in range(24)]
    assert len(set(contents)) == len(contents) == 4 * 24


def test_more_images_leave_the_others_as_they_are():
    few, more = synthetic(), synthetic(num_images=9)
    names = {s.name: i for i, s in enumerate(more.samples)}
    assert all(few.content(i) == more.content(names[s.name]) for i, s in enumerate(few.samples))


def test_it_needs_no_files():
    with pytest.raises(UserError, match="SyntheticFundus draws its images and reads no files.*Leave --data_dir out"):
        SyntheticFundus("somewhere", SyntheticFundus.HParams())


def test_too_small():
    with pytest.raises(UserError, match="image_size = 4 is too small.*Give 8 or more"):
        synthetic(image_size=4)
