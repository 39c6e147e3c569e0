"""PACS in the layouts in which it is passed on, with and without the published lists."""

from pathlib import Path

import pytest

from domainbed.datasets import splits
from domainbed.datasets.pacs import PACS
from domainbed.errors import UserError
from domainbed.registry import DATASETS

ENVIRONMENTS = ["art_painting", "cartoon", "photo", "sketch"]
CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
NAMES = [f"{e}/{c}/pic_{number:03}.{'png' if e == 'sketch' else 'jpg'}" for e in ENVIRONMENTS for c in CLASSES
         for number in range(3)]  # fmt: skip


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_lists(folder, extra=()):
    """Of the three images of each class, one in crossval, two in train; test names all of them."""
    folder.mkdir(exist_ok=True, parents=True)
    for environment in ENVIRONMENTS:
        own = [name for name in [*NAMES, *extra] if name.startswith(environment)]
        lists = {
            "test": own,
            "crossval": [name for name in own if "_000" in name],
            "train": [name for name in own if "_001" in name or "_002" in name],
        }
        for kind, listed in lists.items():
            lines = [f"{name} {CLASSES.index(name.split('/')[1]) + 1}\n" for name in listed]
            (folder / f"{environment}_{kind}_kfold.txt").write_text("".join(lines))


def opened(root, **hparams):
    return PACS(root, PACS.HParams(**hparams))


def message(root, **hparams):
    with pytest.raises(UserError) as error:
        opened(root, **hparams)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("place", ["PACS", ".", "PACS/pacs_data", "pacs_data"])
def test_four_environments_and_seven_classes(tmp_path, place):
    write(tmp_path, *(f"{place}/{name}" for name in NAMES))
    write(tmp_path, "DR/cam/0/1.jpg", "notes.txt")
    data = opened(tmp_path)
    assert (data.environments, data.classes, data.ordinal) == (ENVIRONMENTS, CLASSES, False)
    assert sorted(sample.name for sample in data.samples) == sorted(NAMES)
    for sample in data.samples:
        environment, folder, _ = sample.name.split("/")
        assert (data.environments[sample.environment], data.classes[sample.label]) == (environment, folder)
    assert {sample.split for sample in data.samples} == {None}
    assert DATASETS["PACS"] is PACS


@pytest.mark.parametrize("place", ["pacs_data", "pacs_data/pacs_label", "pacs_label"])
def test_the_published_split_is_kept(tmp_path, place):
    write(tmp_path / "pacs_data", *NAMES)
    # A list names an image that is known to be missing; one image is in the list of the target alone, one in none.
    write_lists(tmp_path / place, extra=["sketch/dog/n02103406_4068-1.png"])
    with open(tmp_path / place / "photo_test_kfold.txt", "a") as lines:
        lines.write("photo/dog/late.jpg 1\n\n")
    write(tmp_path / "pacs_data", "photo/dog/late.jpg", "photo/dog/unlisted.jpg")
    data = opened(tmp_path)
    found = {sample.name: sample.split for sample in data.samples}
    expected = {name: "val" if "_000" in name else "train" for name in NAMES}
    assert found == expected | {"photo/dog/late.jpg": "test", "photo/dog/unlisted.jpg": None}
    assigned = splits.assign(data.samples, 0, 0.2)
    assert {s.name: str(split) for s, split in zip(data.samples, assigned, strict=True) if s.split} == {
        name: split for name, split in found.items() if split
    }


def test_lists_that_name_images_that_are_not_there(tmp_path):
    write(tmp_path, *NAMES)
    write_lists(tmp_path)
    for name in NAMES[:5]:
        (tmp_path / name).unlink()
    text = message(tmp_path)
    assert f"of '{tmp_path}' name 5 images that are not there: 'art_painting/dog/pic_000.jpg'" in text
    assert text.endswith("and 2 more. Put the images back, or move the lists away to have the split drawn")


def test_an_environment_is_missing(tmp_path):
    write(tmp_path / "PACS", *(name for name in NAMES if not name.startswith("photo")))
    assert "no environment 'photo' in" in message(tmp_path)
    assert opened(tmp_path, environments=["sketch", "cartoon"]).environments == ["cartoon", "sketch"]


def test_the_wrong_folder(tmp_path):
    write(tmp_path, "PACS/readme.txt", "DR/cam/0/1.jpg")
    text = message(tmp_path)
    assert text.startswith("PACS needs <data_dir>/PACS/<art_painting|cartoon|photo|sketch>/<class>/*.jpg, but")
    assert "holds none of these folders. Give the folder that holds PACS. It comes from the Google Drive of" in text
    assert "no --data_dir" in message(None)
