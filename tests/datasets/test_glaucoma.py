"""Folders of splits and classes whose file names tell the source; listing looks at names only."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.glaucoma import Glaucoma
from domainbed.datasets.prepare import check_environment_names
from domainbed.errors import UserError
from domainbed.hparams import Layer, resolve
from domainbed.registry import DATASETS

NAMES = (
    "train/0/BEH-261.png", "train/1/BEH-129.png", "train/1/EyePACS-Glaucoma-37.png", "train/0/OIA-ODIR-TRAIN-2809.png",
    "val/0/BEH-264.png", "val/1/EyePACS-DEV-RG-12.jpg", "test/1/PAPILA-330.png", "test/0/OIA-ODIR-TEST-OFFLINE-327.png",
)  # fmt: skip


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def opened(root, **hparams):
    return Glaucoma(root, Glaucoma.HParams(**hparams))


def message(root, **hparams):
    with pytest.raises(UserError) as error:
        opened(root, **hparams)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_source_class_and_split(tmp_path):
    data = opened(write(tmp_path, *NAMES, "train/0/notes.txt", "readme.md"))
    assert data.environments == ["BEH", "EyePACS", "OIA-ODIR", "PAPILA"]
    assert (data.classes, data.ordinal) == (["no_glaucoma", "glaucoma"], False)
    assert DATASETS["Glaucoma"] is Glaucoma
    check_environment_names(data.environments)
    sources = ("BEH", "BEH", "EyePACS", "OIA-ODIR", "BEH", "EyePACS", "PAPILA", "OIA-ODIR")
    listed = {s.name: (data.environments[s.environment], str(s.label), s.split) for s in data.samples}
    assert listed == {
        name: (source, name.split("/")[1], name.split("/")[0]) for name, source in zip(NAMES, sources, strict=True)
    }
    assert [sample.group for sample in data.samples] == [sample.name for sample in data.samples]


def test_the_classes_are_two_where_only_one_occurs(tmp_path):
    data = opened(write(tmp_path, "train/1/BEH-1.png", "train/1/BEH-2.png"))
    assert data.num_classes == 2 and data.labels.tolist() == [1, 1]


def test_other_patterns(tmp_path):
    write(tmp_path, *NAMES)
    whole = opened(tmp_path, environment_pattern=r"^.+(?=-[0-9]+$)")
    assert Counter(whole.environments[s.environment] for s in whole.samples)["EyePACS-DEV-RG"] == 1
    assert len(whole.environments) == 6
    patient = opened(tmp_path, group_pattern=r"-([0-9]+)$")
    assert {s.group for s in patient.samples} >= {"BEH/261", "PAPILA/330"}
    with pytest.raises(UserError, match=r"environment_pattern = '\(' is not a text \(not a regular expression"):
        resolve([Glaucoma.HParams], [Layer("command line", {"environment_pattern": "("})])


def test_some_environments_only(tmp_path):
    data = opened(write(tmp_path, *NAMES), environments=["PAPILA", "BEH"])
    assert data.environments == ["BEH", "PAPILA"] and len(data.samples) == 4
    assert "no environment 'PAPYLA'" in message(tmp_path, environments=["PAPYLA"])


def test_reading(tmp_path):
    write(tmp_path, *NAMES)
    for level, name in enumerate(NAMES):
        Image.fromarray(np.full((20, 30, 3), 10 * level, np.uint8)).save(tmp_path / name)
    data = opened(tmp_path, image_size=8)
    for index, sample in enumerate(data.samples):
        assert abs(int(data.read(index).mean()) - 10 * NAMES.index(sample.name)) <= 1  # one of them is a JPEG


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("train/BEH/1.png",), "has other images: 'train/BEH/1.png'. Move them into such folders, or away"),
        (("train/2/BEH-1.png",), "has other images: 'train/2/BEH-1.png'"),
        (("train/0/more/BEH-1.png",), "has other images"),
        (("train/BEH-1.png",), "has other images"),
        (("train/0/5.png",), "finds no environment in 'train/0/5.png'. Rename these files, or give a pattern"),
    ],
)
def test_files_that_say_too_little(tmp_path, names, reason):
    assert reason in message(write(tmp_path, *NAMES, *names))


def test_the_wrong_folder(tmp_path):
    write(tmp_path / "data", *NAMES)
    text = message(tmp_path)
    assert text.startswith("Glaucoma needs <data_dir>/<train|val|test>/<0|1>/<SOURCE>-<n>.png, but")
    assert "holds no folder of a split. Give the folder that holds train, val and test. It comes from https://" in text
    assert "holds no folder of a split" in message(tmp_path / "data" / "train")
    assert "there is no" in message(tmp_path / "gone") and "no --data_dir" in message(None)
    write(tmp_path / "empty", "train/0/notes.txt")
    assert "holds no image" in message(tmp_path / "empty")
