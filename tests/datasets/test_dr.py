"""Graded folders of fundus photographs: grades, patients, defaults; and the real ones where they are at hand."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from domainbed.datasets.dr import DR, EYES
from domainbed.datasets.splits import assign, subset
from domainbed.errors import UserError
from domainbed.registry import DATASETS


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_five_grades_whoever_is_there(tmp_path):
    data = DR(write(tmp_path, "a/0/1.jpg", "a/3/2.jpg", "b/Mild/3.jpg", "b/proliferative_dr/4.jpg"), DR.HParams())
    assert data.classes == ["no_dr", "mild", "moderate", "severe", "proliferative"]
    assert data.labels.tolist() == [0, 3, 1, 4]
    assert data.ordinal and data.name == "DR" and DATASETS["DR"] is DR


def test_numbers_alone_are_grades_not_ranks(tmp_path):
    data = DR(write(tmp_path, "a/2/1.jpg", "b/4/2.jpg"), DR.HParams())
    assert data.labels.tolist() == [2, 4] and data.num_classes == 5


def test_defaults():
    values = DR.HParams()
    assert values.preprocess == ["crop_retina", "resize"]
    assert values.augment == ["crop_scale", "horizontal_flip", "rotation", "color_jitter"]
    assert values.image_size == 224
    assert all(field.description for field in DR.HParams.model_fields.values())


def test_unknown_grade(tmp_path):
    write(tmp_path, "a/0/1.jpg", "a/masks/1.jpg", "b/0/1.jpg")
    with pytest.raises(UserError, match="'masks' of environment 'a' is no grade.*0-4, no_dr, .*proliferative"):
        DR(tmp_path, DR.HParams())


def test_only_images(tmp_path):
    root = write(tmp_path / "DR2", "1.jpg")
    with pytest.raises(UserError) as error:
        DR(root, DR.HParams())
    assert str(error.value) == (
        f"DR needs <data_dir>/<environment>/<grade>/*.jpg, but '{root}' holds only images. "
        "Point --data_dir at the folder that holds the environments"
    )


def test_a_folder_above_that_has_one_environment(tmp_path):
    write(tmp_path, "DR/hospital/0/1.jpg", "DR/hospital/1/2.jpg")
    with pytest.raises(UserError, match=f"one level too high. Point --data_dir at '{re.escape(str(tmp_path / 'DR'))}'"):
        DR(tmp_path, DR.HParams())


@pytest.mark.parametrize(
    ("left", "right", "patient"),
    [
        ("10_left", "10_right", "10"),
        ("Patient001_L", "Patient001-R", "Patient001"),
        ("patient001_l", "patient001_r", "patient001"),
        ("7_OS", "7_od", "7"),
        ("P 7 Left", "P 7 RIGHT", "P 7"),
        ("Image_01L", "Image_01R", "Image_01"),
        ("x.left", "x.right", "x"),
    ],
)
def test_two_eyes_of_a_patient(tmp_path, left, right, patient):
    data = DR(write(tmp_path, f"a/0/{left}.jpg", f"a/2/{right}.png", f"b/0/{left}.jpg"), DR.HParams())
    assert [s.group for s in data.samples] == [f"a/{patient}", f"a/{patient}", f"b/{patient}"]


@pytest.mark.parametrize(
    "stem", ["IDRiD_118", "normal", "right", "_L", "pupil", "bright", "20051020_43808_0100_PP", "r2"]
)
def test_what_tells_no_eye(stem):
    assert re.search(EYES, stem) is None


def test_the_pattern_can_be_switched_off(tmp_path):
    data = DR(write(tmp_path, "a/0/1_L.jpg", "a/0/1_R.jpg", "b/0/x.jpg"), DR.HParams(group_pattern=None))
    assert len({s.group for s in data.samples}) == 3


def test_real_photographs(real_data):
    data = DR(real_data / "DR", DR.HParams())
    assert data.environments == ["idrid", "srahim"] and len(data.samples) == 852
    per_grade = Counter((s.environment, s.label) for s in data.samples)
    assert [per_grade[0, g] for g in range(5)] == [134, 20, 136, 74, 49]
    assert [per_grade[1, g] for g in range(5)] == [193, 71, 134, 29, 12]

    splits = assign(data.samples, 0, 0.2)
    eyes = defaultdict(set)  # by the digits in the names, not by the pattern
    for sample, split in zip(data.samples, splits, strict=True):
        eyes[sample.environment, re.findall(r"\d+", Path(sample.name).stem)[0]].add(str(split))
    patients_of_srahim = [sides for (environment, _), sides in eyes.items() if environment == 1]
    assert len(patients_of_srahim) < 439 and len({s.group for s in data.samples if s.environment == 1}) == len(
        patients_of_srahim
    )
    assert all(len(sides) == 1 for sides in eyes.values())
    for environment, count in enumerate((413, 439)):
        val = sum(
            s.environment == environment and split == "val" for s, split in zip(data.samples, splits, strict=True)
        )
        assert abs(val / count - 0.2) < 0.02
    small, large = (set(subset(data.samples, splits, n, 0, data.environments).tolist()) for n in (200, 400))
    assert small < large and len(small) == 400 and len(large) == 800

    image = data.read(0)
    assert image.shape == (224, 224, 3) and image.std() > 10
