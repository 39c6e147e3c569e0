"""Folder layouts that the tests write, against hand-written samples; and every way to point at the wrong folder."""

import hashlib
import os
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.folder import Folder
from domainbed.datasets.images import IMAGE_SUFFIXES, UnreadableImage
from domainbed.errors import UserError
from domainbed.hparams import Layer, resolve


def write(root: Path, *names: str) -> Path:
    """Make empty files, and the folders above them; listing looks at names only."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def folder(root: Path | None, **hparams) -> Folder:
    return Folder(root, Folder.HParams(**hparams))


def listed(data: Folder) -> list[tuple[str, str, str, str | None]]:
    """(environment, name, class, split) of every sample."""
    return [(data.environments[s.environment], s.name, data.classes[s.label], s.split) for s in data.samples]


def message(root: Path | None, **hparams) -> str:
    with pytest.raises(UserError) as error:
        folder(root, **hparams)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_environments_classes_and_samples(tmp_path):
    write(tmp_path, "b/dog/1.jpg", "a/cat/2.JPG", "a/dog/x.PNG", "a/dog/notes.txt", "a/.DS_Store", "a/cat/.hidden.jpg",
          "a/.cache/x.jpg", ".git/a/x.jpg", "__MACOSX/a/dog/1.jpg", "readme.png", "a/labels.csv")  # fmt: skip
    data = folder(tmp_path)
    assert data.environments == ["a", "b"]
    assert data.classes == ["cat", "dog"]
    assert not data.ordinal
    assert listed(data) == [
        ("a", "a/cat/2.JPG", "cat", None),
        ("a", "a/dog/x.PNG", "dog", None),
        ("b", "b/dog/1.jpg", "dog", None),
    ]
    assert [s.group for s in data.samples] == [s.name for s in data.samples]


def test_class_folders_are_searched_whole(tmp_path):
    write(tmp_path, "a/cat/1.jpg", "a/cat/left/2.jpg", "a/cat/left/deep/3.jpg", "a/dog/4.jpg")
    assert [(name, label) for _, name, label, _ in listed(folder(tmp_path))] == [
        ("a/cat/1.jpg", "cat"),
        ("a/cat/left/2.jpg", "cat"),
        ("a/cat/left/deep/3.jpg", "cat"),
        ("a/dog/4.jpg", "dog"),
    ]


def test_integers_are_in_numerical_order_whoever_lacks_one(tmp_path):
    write(tmp_path, *(f"a/{i}/x.jpg" for i in range(11) if i != 2), "b/2/x.jpg")
    data = folder(tmp_path)
    assert data.classes == [str(i) for i in range(11)]
    assert data.ordinal
    assert {name: label for _, name, label, _ in listed(data)} == {
        **{f"a/{i}/x.jpg": str(i) for i in range(11) if i != 2},
        "b/2/x.jpg": "2",
    }


def test_grades_mean_the_same_in_every_spelling(tmp_path):
    write(tmp_path, *(f"a/{i}/x.jpg" for i in range(5)))
    write(tmp_path, *(f"b/{name}/x.jpg" for name in ("No_DR", "mild", "Moderate NPDR", "severe", "PDR")))
    data = folder(tmp_path)
    by_name = {s.name: s.label for s in data.samples}
    assert [by_name[f"a/{i}/x.jpg"] for i in range(5)] == [0, 1, 2, 3, 4]
    names = ("No_DR", "mild", "Moderate NPDR", "severe", "PDR")
    assert [by_name[f"b/{name}/x.jpg"] for name in names] == [0, 1, 2, 3, 4]
    assert data.num_classes == 5 and data.ordinal


def test_one_class_is_no_fault_of_the_listing(tmp_path):
    assert folder(write(tmp_path, "a/all/1.jpg", "b/all/1.jpg")).classes == ["all"]


GIVEN = [
    ("train/0/1.jpg", "train"), ("Training/1/2.jpg", "train"), ("valid/0/3.jpg", "val"), ("validation/1/4.jpg", "val"),
    ("val/1/deep/5.jpg", "val"), ("testing/0/6.jpg", "test"), ("TEST/1/7.jpg", "test"),
]  # fmt: skip


def test_splits_below_environments(tmp_path):
    write(tmp_path, *(f"a/{name}" for name, _ in GIVEN), "b/0/x.jpg", "b/1/x.jpg")
    data = folder(tmp_path)
    assert data.environments == ["a", "b"] and data.classes == ["0", "1"]
    splits = {s.name: s.split for s in data.samples}
    assert splits == {**{f"a/{name}": split for name, split in GIVEN}, "b/0/x.jpg": None, "b/1/x.jpg": None}
    assert all(data.classes[s.label] == s.name.split("/")[2] for s in data.samples if s.environment == 0)


def test_splits_above_environments(tmp_path):
    write(tmp_path, *("/".join((n.split("/")[0], e, *n.split("/")[1:])) for n, _ in GIVEN for e in "ab"))
    data = folder(tmp_path)
    assert data.environments == ["a", "b"] and data.classes == ["0", "1"]
    assert len(data.samples) == 2 * len(GIVEN)
    for name, environment, split in ((n, e, s) for n, s in GIVEN for e in "ab"):
        top, *rest = name.split("/")
        sample = next(s for s in data.samples if s.name == "/".join((top, environment, *rest)))
        assert (data.environments[sample.environment], sample.split) == (environment, split)
        assert data.classes[sample.label] == rest[0]


def test_splits_inside_classes(tmp_path):
    write(tmp_path, "a/cat/train/1.jpg", "a/cat/test/2.jpg", "a/dog/train/3.jpg", "b/cat/4.jpg", "b/dog/5.jpg")
    assert [split for *_, split in listed(folder(tmp_path))] == ["test", "train", "train", None, None]


def test_splits_of_some_images_only(tmp_path):
    write(tmp_path, "a/0/1.jpg", "a/1/2.jpg", "a/test/0/3.jpg", "a/test/1/4.jpg", "b/0/5.jpg", "b/1/6.jpg")
    data = folder(tmp_path)
    assert data.classes == ["0", "1"]
    assert [split for environment, *_, split in listed(data) if environment == "a"] == [None, None, "test", "test"]


def test_a_class_may_be_called_test(tmp_path):
    write(tmp_path, *(f"{e}/{c}/{i}.jpg" for e in "ab" for c in ("control", "test") for i in range(2)))
    data = folder(tmp_path)
    assert data.classes == ["control", "test"]
    assert {s.split for s in data.samples} == {None}


def test_an_environment_may_be_called_test(tmp_path):
    data = folder(write(tmp_path, "hospital/cat/1.jpg", "hospital/dog/1.jpg", "test/cat/1.jpg", "test/dog/1.jpg"))
    assert data.environments == ["hospital", "test"]
    assert {s.split for s in data.samples} == {None}


def test_what_only_looks_like_an_image_is_listed_and_fails_by_name_when_read(tmp_path):
    write(tmp_path, "a/cat/1.jpg", "b/cat/1.jpg")
    (tmp_path / "a/cat/folder.png").mkdir()
    (tmp_path / "a/cat/folder.png/inside.png").touch()
    (tmp_path / "a/cat/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    data = folder(tmp_path)
    names = [s.name for s in data.samples]
    assert names == ["a/cat/1.jpg", "a/cat/folder.png", "a/cat/gone.jpg", "b/cat/1.jpg"]
    for i in (1, 2):
        with pytest.raises(UnreadableImage):
            data.read(i)
        with pytest.raises(UnreadableImage):
            data.content(i)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path, "data/a/cat/1.jpg", "elsewhere/dog/2.jpg", "more/3.jpg")
    (tmp_path / "data/a/cat/more").symlink_to(tmp_path / "more")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/cat/again").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/a/cat/self").symlink_to("self")
    assert [s.name for s in folder(tmp_path / "data").samples] == ["a/cat/1.jpg", "a/cat/more/3.jpg", "b/dog/2.jpg"]


def test_only_the_environments_that_are_named(tmp_path):
    write(tmp_path, *(f"{e}/{c}/1.jpg" for e in "abc" for c in ("cat", "dog")), "c/owl/1.jpg", "empty/notes.txt")
    data = folder(tmp_path, environments=["b", "a"])
    assert data.environments == ["a", "b"] and data.classes == ["cat", "dog"]
    assert "no environment 'cc'" in message(tmp_path, environments=["cc"])
    write(tmp_path, "hospital/cat/1.jpg")
    assert "did you mean 'hospital'?" in message(tmp_path, environments=["hopsital"])


def test_patients_are_told_by_the_pattern_within_their_environment(tmp_path):
    write(tmp_path, "a/0/p1-x.jpg", "a/1/p1-y.jpg", "a/1/p2-x.jpg", "a/1/other.jpg", "b/0/p1-x.jpg")
    groups = [s.group for s in folder(tmp_path, group_pattern=r"^(p\d)-").samples]
    assert groups == ["a/p1", "a/1/other.jpg", "a/p1", "a/p2", "b/p1"]
    assert [s.group for s in folder(tmp_path, group_pattern=r"^p\d").samples] == groups
    # The suffix and the folders are not searched, and an empty match tells nobody.
    assert len({s.group for s in folder(tmp_path, group_pattern="jpg|/").samples}) == 5
    assert len({s.group for s in folder(tmp_path, group_pattern="z*").samples}) == 5


def test_settings_from_a_command_line(tmp_path):
    def parsed(**values):
        return resolve([Folder.HParams], [Layer("command line", values)]).models[Folder.HParams]

    assert parsed(environments="a, b").environments == ["a", "b"]
    assert parsed(environments="null").environments is None
    assert parsed(group_pattern="(x)_").group_pattern == "(x)_"
    with pytest.raises(UserError, match=r"group_pattern = '\(' is not .*\(not a regular expression: .*\)"):
        parsed(group_pattern="(")


def test_reading(tmp_path):
    for environment in "ab":
        (tmp_path / environment / "cat").mkdir(parents=True)
        level = 10 if environment == "a" else 200
        Image.fromarray(np.full((30, 40, 3), level, np.uint8)).save(tmp_path / environment / "cat" / "1.png")
    data = folder(tmp_path, image_size=16)
    assert data.input_shape == (3, 16, 16)
    for i, level in ((0, 10), (1, 200)):
        image = data.read(i)
        assert image.dtype == np.uint8 and image.shape == (16, 16, 3)
        assert (image == level).all()
        assert data.content(i) == hashlib.sha256((tmp_path / data.samples[i].name).read_bytes()).hexdigest()
    assert data.labels.tolist() == [0, 0] and data.labels.dtype == np.int64


def test_no_data_dir():
    assert message(None).startswith("Folder needs <data_dir>/<environment>/<class>/*.jpg, but no --data_dir is given.")


def test_missing_folder(tmp_path):
    write(tmp_path, "images/a/0/1.jpg")
    assert f"there is no '{tmp_path / 'imagse'}'. Did you mean '{tmp_path / 'images'}'?" in message(tmp_path / "imagse")
    assert "there is no" in message(tmp_path / "no" / "where")


def test_file_instead_of_folder(tmp_path):
    write(tmp_path, "data.csv", "data.zip")
    assert message(tmp_path / "data.csv").endswith("is a file. Use --dataset Manifest for it")
    assert message(tmp_path / "data.zip").endswith("is a file. Give the folder that holds the environments")


def test_empty_folder(tmp_path):
    assert "holds no folder and no image" in message(tmp_path)
    (tmp_path / "a").mkdir()
    assert "holds an image in a class folder" in message(tmp_path)


def test_a_class_folder_instead_of_the_data(tmp_path):
    root = write(tmp_path, "1.jpg", "2.jpg", "notes.txt")
    assert message(root) == (
        f"Folder needs <data_dir>/<environment>/<class>/*.jpg, but '{root}' holds only images. "
        "Point --data_dir at the folder that holds the environments"
    )


@pytest.mark.parametrize("split", ["", "train/", "test/"])
def test_an_environment_instead_of_the_data(tmp_path, split):
    write(tmp_path, *(f"data/hospital/{split}{c}/1.jpg" for c in ("0", "1")), "data/hospital/notes.txt")
    text = message(tmp_path / "data/hospital")
    assert "looks like one environment: its folders ('0', '1') hold images directly" in text
    assert f"Point --data_dir at its parent '{tmp_path / 'data'}'; environments=" in text


@pytest.mark.parametrize("split", ["", "train/"])
def test_the_folder_above_the_data(tmp_path, split):
    write(tmp_path, *(f"DR/{split}{e}/{c}/1.jpg" for e in ("cam1", "cam2") for c in "012"), "notes/todo.txt")
    text = message(tmp_path)
    assert "looks one level too high" in text and f"Point --data_dir at '{tmp_path / 'DR'}'" in text


def test_the_folder_above_several_data_sets(tmp_path):
    write(tmp_path, *(f"pets/{e}/{c}/1.jpg" for e in ("cam1", "cam2") for c in ("cat", "dog")))
    write(tmp_path, *(f"retinas/{e}/{c}/1.jpg" for e in ("x", "y", "z") for c in ("no_dr", "mild")))
    text = message(tmp_path)
    assert f"'{tmp_path / 'pets'}' or '{tmp_path / 'retinas'}'" in text
    # A user who knows better can say so.
    assert folder(tmp_path, environments=["pets", "retinas"]).classes == ["cam1", "cam2", "x", "y", "z"]


def test_classes_that_environments_share_are_believed_whatever_is_below(tmp_path):
    write(tmp_path, *(f"{e}/{c}/{side}/1.jpg" for e in "ab" for c in ("cat", "dog") for side in ("left", "right")))
    assert folder(tmp_path).classes == ["cat", "dog"]


def test_classes_that_are_grades_are_believed_whatever_is_below(tmp_path):
    write(tmp_path, *(f"hospital/{c}/{side}/1.jpg" for c in ("mild", "severe") for side in ("left", "right")))
    assert folder(tmp_path).classes == ["mild", "severe"]


def test_images_outside_class_folders(tmp_path):
    write(tmp_path, "a/0/1.jpg", "a/stray.jpg", "b/0/1.jpg")
    text = message(tmp_path)
    assert "environment 'a' has images outside its class folders: 'a/stray.jpg'" in text


def test_splits_without_classes(tmp_path):
    write(tmp_path, "a/train/1.jpg", "a/test/2.jpg", "b/0/1.jpg")
    assert "'a' has images outside its class folders: 'a/test/2.jpg', 'a/train/1.jpg'" in message(tmp_path)


def test_an_environment_without_images(tmp_path):
    write(tmp_path, "a/0/1.jpg", "b/0/1.jpg", "notes/todo.txt")
    text = message(tmp_path)
    assert "'notes' in" in text and "holds no image" in text and text.endswith("environments=a,b")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    write(tmp_path, "a/0/1.jpg", "b/0/1.jpg")
    (tmp_path / "b/0").chmod(0)
    try:
        assert "can't read the folder" in message(tmp_path)
    finally:
        (tmp_path / "b/0").chmod(0o755)


def test_every_image_is_listed_once(tmp_path):
    rng = random.Random(0)
    names = set()
    for _ in range(300):
        parts = [rng.choice("ab"), rng.choice(["", "train", "val"]), rng.choice(["x", "y"]), rng.choice(["", "s", "t"])]
        names.add("/".join([*filter(None, parts), f"{rng.randrange(50)}{rng.choice(['.jpg', '.Tif', '.jpeg'])}"]))
    assert [s.name for s in folder(write(tmp_path, *names)).samples] == sorted(names)


def test_a_large_jpeg_is_decoded_no_larger_than_needed_and_a_new_one_likewise(tmp_path):
    path = tmp_path / "camera" / "0" / "large.jpg"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)).save(path, quality=95)
    data = folder(tmp_path, image_size=32, preprocess=["resize"])
    assert data.least_side == 64
    with Image.open(path) as image:  # the decoder's own way to an eighth, 75 x 100 pixels
        image.draft("RGB", (100, 75))
        eighth = data.preprocess(np.asarray(image))[0]
    with Image.open(path) as image:
        whole = data.preprocess(np.asarray(image))[0]
    assert np.array_equal(data.read(0), eighth) and not np.array_equal(data.read(0), whole)
    assert np.array_equal(data.read_new(path, data.hparams), eighth)


CLUTTER = [
    "$RECYCLE.BIN/S-1-5/x.jpg", "$Recycle.Bin/S-1-5/x.jpg", "RECYCLER/S-1-5/x.jpg", "System Volume Information/x.png",
    "found.000/x.jpg", "__MACOSX/a/cat/1.jpg", "Network Trash Folder/x/1.jpg", "Temporary Items/x/1.jpg",
    "@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg", "#recycle/cat/1.jpg", "#snapshot/cat/1.jpg", "@Recycle/cat/1.jpg",
    ".Trash-1000/files/x.jpg", "lost+found/x/1.jpg", ".ipynb_checkpoints/cat/1-checkpoint.jpg", "__pycache__/x/1.png",
    ".git/x/1.jpg",
]  # fmt: skip


@pytest.mark.parametrize("left_behind", CLUTTER)
@pytest.mark.parametrize("place", ["", "a/", "a/cat/"])
def test_what_systems_leave_behind_is_no_environment_no_class_and_no_image(tmp_path, left_behind, place):
    write(tmp_path, "a/cat/1.jpg", "b/cat/1.jpg", place + left_behind)
    data = folder(tmp_path)
    assert data.environments == ["a", "b"] and data.classes == ["cat"]
    assert [s.name for s in data.samples] == ["a/cat/1.jpg", "b/cat/1.jpg"]
    (note,) = data.log
    assert note.endswith(f"passed over, as systems and programs leave it behind: 1 {left_behind.split('/')[0]}")


def test_clutter_is_counted_and_files_that_hold_no_image_are_not_mentioned(tmp_path):
    write(tmp_path, "a/cat/1.jpg", "a/cat/._1.jpg", "a/dog/1.jpg", "a/dog/._1.jpg", "a/cat/@eaDir/1.jpg/x.jpg")
    write(
        tmp_path, "a/@eaDir/x.jpg", "a/cat/.hidden.PNG", "a/Thumbs.db", "desktop.ini", "a/.DS_Store", "a/cat/.DS_Store"
    )
    (note,) = folder(tmp_path).log
    assert note.endswith(": 2 ._*.jpg, 2 @eaDir, 1 .*.png")


def test_a_second_version_by_a_sync_client_is_passed_over_where_the_first_is_there(tmp_path):
    copies = ["1 (Ann's conflicted copy 2024-03-01).jpg", "1.sync-conflict-20240301-101500-ABCDEFG.jpg"]
    write(tmp_path, "a/cat/1.jpg", *(f"a/cat/{copy}" for copy in copies), "b/cat/2 (conflicted copy 2024-03-01).jpg")
    data = folder(tmp_path)
    assert [s.name for s in data.samples] == ["a/cat/1.jpg", "b/cat/2 (conflicted copy 2024-03-01).jpg"]
    assert data.log[0].endswith("2 conflicted copies")


def test_files_that_are_not_read_are_counted_by_suffix_for_each_environment(tmp_path):
    write(tmp_path, "a/0/1.jpg", "b/0/1.jpg", *(f"b/1/{i}.dcm" for i in range(30)), "b/1/x.HEIC", "b/notes")
    (note,) = folder(tmp_path).notes
    assert note.startswith("environment 'b': not read: 30 .dcm, 1 .heic, 1 without a suffix, such as 'b/")
    assert note.endswith(f"files that are read end in {' '.join(IMAGE_SUFFIXES)}")
    few = folder(write(tmp_path / "few", *(f"a/0/{i}.jpg" for i in range(20)), "a/labels.csv"))
    assert few.notes == [] and few.log[0].startswith("environment 'a': not read: 1 .csv")  # for the log, no warning


def test_an_environment_of_other_files_alone_says_which_they_are(tmp_path):
    write(tmp_path, "a/0/1.jpg", *(f"b/1/{i}.dcm" for i in range(30)))
    text = message(tmp_path)
    assert (
        "'b' in" in text
        and "holds no image ('b': not read: 30 .dcm, such as 'b/1/" in text
        and " .jpg " in text
        and " .jfif " in text
    )
    assert "('b': not read: 30 .dcm" in message(tmp_path, environments=["b"])
    (tmp_path / "flat").mkdir()
    assert "no image, only files that are not read: 1 .dcm" in message(write(tmp_path / "flat", "1.dcm"))


def test_images_and_broken_links_beside_the_environments_are_named(tmp_path):
    write(tmp_path, "train/a/cat/1.jpg", "test/a/cat/2.jpg", "train/stray.jpg", "readme.png", "readme.txt")
    (tmp_path / "train" / "hospital").symlink_to(tmp_path / "unplugged")
    data = folder(tmp_path)
    assert len(data.samples) == 2
    assert data.log[0].endswith("in no environment, so not read: 'readme.png', 'train/stray.jpg'")
    assert "not read: 1 links that lead nowhere, such as 'hospital'" in data.notes[0]


COMPOSED, APART = (unicodedata.normalize(form, "Modéré") for form in ("NFC", "NFD"))


def test_one_class_whatever_its_bytes(tmp_path):
    assert COMPOSED != APART
    write(tmp_path, f"a/{COMPOSED}/1.jpg", f"b/{APART}/2.jpg", f"a/{APART}\u200b/3.jpg", f"b/{COMPOSED}\u00a0/4.jpg")
    write(tmp_path, "a/un peu/5.jpg", "b/un\u00a0peu /6.jpg")
    data = folder(tmp_path)
    assert data.classes == [COMPOSED, "un peu"]
    assert {(tmp_path / s.name).name: data.classes[s.label] for s in data.samples} == {
        **{f"{i}.jpg": COMPOSED for i in (1, 2, 3, 4)}, "5.jpg": "un peu", "6.jpg": "un peu",
    }  # fmt: skip
    assert all((tmp_path / s.name).exists() for s in data.samples)  # names keep the bytes that are on disk
    assert any(note.startswith(f"class {COMPOSED!r} is read from 4 ") and ascii(APART) in note for note in data.log)


def test_one_environment_whatever_its_bytes(tmp_path):
    write(tmp_path, f"{COMPOSED}/cat/p1_a.jpg", f"{APART}/cat/p1_b.jpg", "cam/cat/1.jpg", "cam\u200d/cat/2.jpg")
    data = folder(tmp_path, group_pattern="^(p1)_")
    assert data.environments == [COMPOSED, "cam"]
    assert [s.environment for s in data.samples] == [0, 0, 1, 1]
    assert len({s.group for s in data.samples if s.environment == 0}) == 1
    assert all((tmp_path / s.name).exists() for s in data.samples)
    assert sum("is read from 2 spellings" in note for note in data.log) == 2
    for typed in (COMPOSED, APART, f" {APART}"):
        assert folder(tmp_path, environments=[typed]).environments == [COMPOSED]


def test_one_patient_whatever_the_bytes_of_a_file_name(tmp_path):
    write(tmp_path, f"a/cat/{COMPOSED}_left.jpg", f"a/cat/{APART}_right.jpg", "b/cat/1.jpg")
    assert len({s.group for s in folder(tmp_path, group_pattern="^(.+)_").samples}) == 2


def test_names_that_differ_in_case_alone_are_told_apart_and_said(tmp_path):
    write(tmp_path, "a/Cat/1.jpg", "b/cat/1.jpg", "b/dog/1.jpg", "Clinic A/dog/1.jpg", "clinic_a/dog/1.jpg")
    data = folder(tmp_path)
    assert data.classes == ["Cat", "cat", "dog"] and len(data.environments) == 4
    assert data.notes == [
        "the classes 'Cat', 'cat' differ in case or punctuation alone",
        "the environments 'Clinic A' and 'clinic_a' differ in case or punctuation alone",
    ]
    assert folder(write(tmp_path / "grades", "a/Mild/1.jpg", "b/mild/1.jpg")).notes == []  # grades are one class


def test_a_split_folder_is_known_whatever_is_invisible_in_its_name(tmp_path):
    write(tmp_path, "a/train\u200b/0/1.jpg", "a/ test\u00a0/0/2.jpg")
    assert sorted(split for *_, split in listed(folder(tmp_path))) == ["test", "train"]
