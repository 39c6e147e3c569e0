"""Small files in the publishers' layouts, and the publishers' own where they are to be had."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.fundus_segmentation import FundusSegmentation
from domainbed.datasets.images import UnreadableImage
from domainbed.errors import UserError

SIDE = 16


def photograph(path: Path, grey: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIDE, SIDE, 3), grey, np.uint8)).save(path)


def mask(path: Path, rows: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.indices((SIDE, SIDE))[0] < rows).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """IDRiD's layout with three photographs, of which one has no soft exudates, and CHASE_DB1's with four."""
    for i in (1, 2, 3):
        photograph(tmp_path / f"IDRiD/images/IDRiD_0{i}.jpg")
        mask(tmp_path / f"IDRiD/masks/optic_disc/IDRiD_0{i}_OD.png", 4)
        if i < 3:
            mask(tmp_path / f"IDRiD/masks/soft_exudates/IDRiD_0{i}_SE.png", i)
    for split, number in (("training", "01"), ("test", "11")):
        for eye in "LR":
            photograph(tmp_path / f"CHASE/{split}/images/Image_{number}{eye}.jpg")
            mask(tmp_path / f"CHASE/{split}/mask/Image_{number}{eye}_1stHO.png", 7)
    (tmp_path / "DR/idrid/0").mkdir(parents=True)  # no data set of this kind
    return tmp_path


def open_(root: Path | None, **hparams) -> FundusSegmentation:
    return FundusSegmentation(root, FundusSegmentation.HParams(image_size=SIDE, **hparams))


def test_several_publishers_are_environments(root: Path) -> None:
    data = open_(root)
    assert data.environments == ["CHASE", "IDRiD"] and data.classes == [] and data.labels.tolist() == [-1] * 7
    assert data.masks is not None and data.masks.names == ("optic_disc", "soft_exudates", "vessels")
    assert [sample.split for sample in data.samples] == ["test", "test", "train", "train", None, None, None]
    assert [sample.group for sample in data.samples[:4]] == ["CHASE/Image_11"] * 2 + ["CHASE/Image_01"] * 2
    assert len({sample.group for sample in data.samples[4:]}) == 3


def test_one_publisher_is_one_environment_with_the_same_samples(root: Path) -> None:
    alone, beside = open_(root / "IDRiD"), open_(root, environments=["IDRiD"])
    assert alone.environments == beside.environments == ["IDRiD"]
    assert alone.samples == beside.samples
    assert alone.content(0) == beside.content(0)


def test_masks_lie_beside_their_photographs(root: Path) -> None:
    data = open_(root / "IDRiD")
    found = data.read_masks(1)
    assert {kind: int(plane.sum()) for kind, plane in found.items()} == {
        "optic_disc": 4 * SIDE,
        "soft_exudates": 2 * SIDE,
    }
    classes = open_(root / "IDRiD", mask_kinds=["soft_exudates", "optic_disc"]).chosen_masks()
    assert data.read_mask(1, classes)[:, 0].tolist() == [3, 3, 2, 2] + [0] * 12
    chase = open_(root / "CHASE")
    assert chase.chosen_masks().names == ("vessels",)
    assert chase.read_mask(0, chase.chosen_masks())[:, 0].tolist() == [1] * 7 + [0] * 9


def test_a_missing_lesion_is_none_and_a_missing_disc_is_a_fault(root: Path) -> None:
    data = open_(root / "IDRiD")
    assert data.has_mask(2, "soft_exudates") and not data.read_masks(2)["soft_exudates"].any()
    (root / "IDRiD/masks/optic_disc/IDRiD_02_OD.png").unlink()
    with pytest.raises(UserError, match=r"of 3 images, 1 have none of optic_disc, such as IDRiD/images/IDRiD_02.jpg"):
        open_(root / "IDRiD").chosen_masks()
    with pytest.raises(UserError, match="1 have none of soft_exudates"):
        open_(root / "IDRiD", mask_kinds=["soft_exudates"], empty_if_missing=[]).chosen_masks()


def test_a_lesion_that_nobody_marked_in_an_environment_is_not_absent_there(root: Path) -> None:
    with pytest.raises(UserError, match="of 7 images, 4 have none of soft_exudates, such as CHASE/test"):
        open_(root, mask_kinds=["soft_exudates"]).chosen_masks()


def test_the_content_changes_with_the_masks_that_are_read(root: Path) -> None:
    data = open_(root / "IDRiD")
    disc, both = data.mask_content(0, ["optic_disc"]), data.mask_content(0, ["optic_disc", "soft_exudates"])
    mask(root / "IDRiD/masks/soft_exudates/IDRiD_01_SE.png", 9)
    assert data.mask_content(0, ["optic_disc"]) == disc
    assert data.mask_content(0, ["optic_disc", "soft_exudates"]) != both


def test_a_name_that_begins_another_does_not_take_its_masks(root: Path) -> None:
    photograph(root / "IDRiD/images/IDRiD_01_b.jpg")
    mask(root / "IDRiD/masks/optic_disc/IDRiD_01_b_OD.png", 9)
    data = open_(root / "IDRiD")
    found = {sample.name: int(data.read_masks(i)["optic_disc"].sum()) for i, sample in enumerate(data.samples)}
    assert found["IDRiD/images/IDRiD_01.jpg"] == 4 * SIDE and found["IDRiD/images/IDRiD_01_b.jpg"] == 9 * SIDE


def heights(data: FundusSegmentation, kind: str) -> dict[str, int]:
    """Rows that the mask of each photograph marks."""
    return {sample.name: int(np.count_nonzero(data.read_masks(i)[kind][:, 0])) for i, sample in enumerate(data.samples)}


@pytest.mark.parametrize(
    ("place", "suffix", "kind"),
    [("masks/vessels", "", "vessels"), ("masks/optic_disc", "_OD", "optic_disc"), ("mask", "_1stHO", "vessels")],
)
def test_folders_of_photographs_are_repeated_by_those_of_masks(
    tmp_path: Path, place: str, suffix: str, kind: str
) -> None:
    rows = {"p1/left": 1, "p1/right": 2, "p2/left": 3, "p2/right": 4, "p2/deep/left": 5, "left": 6}
    for grey, (name, height) in enumerate(rows.items()):
        photograph(tmp_path / f"clinic/images/{name}.png", 40 * grey)
        mask(tmp_path / f"clinic/{place}/{name}{suffix}.png", height)
    data = open_(tmp_path / "clinic")
    assert data.chosen_masks().names == (kind,)
    assert heights(data, kind) == {f"clinic/images/{name}.png": height for name, height in rows.items()}
    pixels = {sample.name: int(data.read(i)[0, 0, 0]) for i, sample in enumerate(data.samples)}
    assert pixels == {f"clinic/images/{name}.png": 40 * grey for grey, name in enumerate(rows)}
    assert len({sample.group for sample in data.samples}) == 6


def test_masks_without_folders_are_matched_by_a_name_of_one_photograph_alone(tmp_path: Path) -> None:
    for name in ("p1/left", "p1/right", "p2/central"):
        photograph(tmp_path / f"images/{name}.jpg")
    for rows, name in enumerate(("left", "right_x", "central"), start=1):
        mask(tmp_path / f"masks/vessels/{name}.png", rows)
    assert list(heights(open_(tmp_path), "vessels").values()) == [1, 2, 3]
    photograph(tmp_path / "images/p2/right.jpg")
    with pytest.raises(
        UserError,
        match=r"masks/vessels/right_x.png may be the mask of several photographs: 'images/p1/right.jpg', "
        r"'images/p2/right.jpg'. Give each mask, in masks/<kind> or in mask, the folders and the name of its photo",
    ):
        open_(tmp_path)
    (tmp_path / "masks/vessels/right_x.png").unlink()
    mask(tmp_path / "masks/vessels/p1/right.png", 5)
    mask(tmp_path / "masks/vessels/p2/right.png", 6)
    assert list(heights(open_(tmp_path), "vessels").values()) == [1, 5, 3, 6]
    mask(tmp_path / "masks/vessels/p1/left_again.png", 7)
    with pytest.raises(
        UserError, match=r"two masks of vessels for p1/left: .*/left.png and .*/p1/left_again.png\. Keep"
    ):
        open_(tmp_path)


@pytest.mark.parametrize("place", ["masks/vessels/p2", "mask/p2"])
def test_a_mask_in_another_folder_is_not_taken(tmp_path: Path, place: str) -> None:
    photograph(tmp_path / "images/p1/left.jpg")
    mask(tmp_path / place / "left.png", 3)
    with pytest.raises(UserError, match=rf"masks of no photograph in images: '{place}/left.png'\. Give each mask"):
        open_(tmp_path)


@pytest.mark.parametrize("folder", ["", "p1/"])
def test_two_photographs_of_one_name_are_refused(tmp_path: Path, folder: str) -> None:
    photograph(tmp_path / f"images/{folder}a.png")
    photograph(tmp_path / f"images/{folder}a.jpg")
    mask(tmp_path / f"masks/vessels/{folder}a.png", 3)
    with pytest.raises(
        UserError, match=rf"images has two photographs {folder}a: a.jpg and a.png\. .* keep one, or ren"
    ):
        open_(tmp_path)


@pytest.mark.parametrize("name", ["empty", "data"])
def test_an_environment_without_a_photograph_is_named(tmp_path: Path, name: str) -> None:
    """Nothing is broken there, so that nothing can be mended: it is empty, or its files are not read."""
    photograph(tmp_path / "good/images/a.png")
    mask(tmp_path / "good/masks/vessels/a.png", 3)
    folder = tmp_path / name
    for inside in ("images", "masks"):
        (folder / inside).mkdir(parents=True)
    (folder / "images/a.dcm").touch()
    with pytest.raises(UserError, match=rf"'{name}' in .* holds no photograph.*1 \.dcm.*environments=good"):
        open_(tmp_path)
    assert open_(tmp_path, environments=["good"]).environments == ["good"]
    with pytest.raises(
        UserError, match=rf"'{name}' in .* holds no photograph.* Put photographs into its folder images"
    ):
        open_(folder)


def test_what_is_not_laid_out_so(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no --data_dir is given"):
        open_(None)
    with pytest.raises(UserError, match="there is no"):
        open_(root / "nowhere")
    with pytest.raises(UserError, match="needs a folder with images.*neither .* nor a folder in it is one"):
        open_(root / "DR")
    with pytest.raises(UserError, match="no environment 'IDRID' in .*did you mean 'IDRiD'"):
        open_(root, environments=["IDRID"])
    mask(root / "IDRiD/masks/optic_disc/IDRiD_09_OD.png", 1)
    with pytest.raises(UserError, match="masks of no photograph in images: 'masks/optic_disc/IDRiD_09_OD.png'"):
        open_(root)
    mask(root / "CHASE/test/mask/Image_11L_2ndHO_1stHO.png", 1)
    with pytest.raises(UserError, match="two masks of vessels for Image_11L"):
        open_(root, environments=["CHASE"])


def disc(path: Path) -> None:
    """Write a mask of a field of view: a disc of 14 px in the middle, as a colour file where the format has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    image = Image.fromarray(np.uint8(255 * (x**2 + y**2 < 49)))
    (image.convert("RGB") if path.suffix in (".tif", ".ppm") else image).save(path)


def rows_marked(path: Path, rows: int) -> None:
    """Write a mask of some rows at the top, 0 and 255, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(255 * (np.indices((SIDE, SIDE))[0] < rows))).save(path)


def drive(root: Path, test_is_marked: bool = True) -> Path:
    for split, numbers in (("training", (21, 22)), ("test", (1, 2))):
        for rows, number in enumerate(numbers, start=3):
            photograph(root / f"{split}/images/{number:02}_{split}.tif", 10 * number)
            disc(root / f"{split}/mask/{number:02}_{split}_mask.gif")
            if split == "training" or test_is_marked:
                rows_marked(root / f"{split}/1st_manual/{number:02}_manual1.gif", rows)
            if split == "test" and test_is_marked:
                rows_marked(root / f"{split}/2nd_manual/{number:02}_manual2.gif", 9)
    return root


def stare(root: Path, apart: bool = False) -> Path:
    images, first, second = ("stare-images/", "labels-ah/", "labels-vk/") if apart else ("", "", "")
    for rows, number in enumerate((1, 77), start=3):
        photograph(root / f"{images}im{number:04}.ppm", number)
        rows_marked(root / f"{first}im{number:04}.ah.ppm", rows)
        rows_marked(root / f"{second}im{number:04}.vk.ppm", 9)
    return root


def hrf(root: Path) -> Path:
    for rows, (name, suffix) in enumerate((("01_dr", "JPG"), ("01_g", "jpg"), ("01_h", "jpg")), start=3):
        photograph(root / f"images/{name}.{suffix}", 10 * rows)
        rows_marked(root / f"manual1/{name}.tif", rows)
        disc(root / f"mask/{name}_mask.tif")
    return root


def chase(root: Path) -> Path:
    for rows, name in enumerate(("Image_01L", "Image_01R", "Image_02L"), start=3):
        photograph(root / f"{name}.jpg", 10 * rows)
        mask(root / f"{name}_1stHO.png", rows)
        mask(root / f"{name}_2ndHO.png", 9)
    return root


def idrid(root: Path) -> Path:
    folders = {"1. Microaneurysms": "MA", "2. Haemorrhages": "HE", "3. Hard Exudates": "EX", "4. Soft Exudates": "SE",
               "5. Optic Disc": "OD"}  # fmt: skip
    for folder, number in (("a. Training Set", 1), ("a. Training Set", 2), ("b. Testing Set", 55)):
        photograph(root / f"1. Original Images/{folder}/IDRiD_{number:02}.jpg", number)
        for rows, (kind, code) in enumerate(folders.items(), start=1):
            if code != "SE" or number != 2:
                path = root / f"2. All Segmentation Groundtruths/{folder}/{kind}/IDRiD_{number:02}_{code}.tif"
                rows_marked(path, rows)
    return root


def ddr(root: Path) -> Path:
    for split, labels in (("train", "label"), ("valid", "segmentation label"), ("test", "label")):
        photograph(root / f"{split}/image/007-{split}-100.jpg")
        for rows, code in enumerate(("MA", "HE", "EX", "SE"), start=1):
            rows_marked(root / f"{split}/{labels}/{code}/007-{split}-100.tif", rows)
    return root


INSIDE = np.hypot(*(np.indices((SIDE, SIDE)) - (SIDE - 1) / 2)) < 7
LESIONS = ["microaneurysms", "haemorrhages", "hard_exudates", "soft_exudates"]
#: What writes it, its kinds, the splits in the order of names, marked rows of the first kind, whether it has fields.
PUBLISHERS = {
    "DRIVE": (drive, ["vessels"], ["test", "test", "train", "train"], [3, 4, 3, 4], True),
    "STARE": (stare, ["vessels"], [None, None], [3, 4], False),
    "HRF": (hrf, ["vessels"], [None] * 3, [3, 4, 5], True),
    "CHASE_DB1": (chase, ["vessels"], [None] * 3, [3, 4, 5], False),
    "IDRiD": (idrid, [*LESIONS, "optic_disc"], ["train", "train", "test"], [1, 1, 1], False),
    "DDR": (ddr, LESIONS, ["test", "train", "val"], [1, 1, 1], False),
}


@pytest.mark.parametrize("outer", ["", "archive/", "archive/A. Segmentation/"])
@pytest.mark.parametrize("publisher", PUBLISHERS)
def test_a_publisher_is_read_as_it_comes(tmp_path: Path, publisher: str, outer: str) -> None:
    write, kinds, splits, rows, has_field = PUBLISHERS[publisher]
    root = write(tmp_path / "downloads" / f"{outer}{publisher}")
    place = root if not outer else tmp_path / "downloads"
    data = open_(place, mask_kinds=kinds)
    assert data.environments == [publisher if not outer else "archive"]
    assert [sample.split for sample in data.samples] == splits
    assert data.masks is not None and set(data.masks.names) == set(kinds)
    classes = data.chosen_masks()
    for index, marked in enumerate(rows):
        expected = np.zeros((SIDE, SIDE), np.uint8)
        for bit in range(len(kinds)):
            if f"{kinds[bit]} {data.samples[index].name.split('/')[-1]}" != "soft_exudates IDRiD_02.jpg":
                expected[: marked + bit] |= 1 << bit
        if has_field:
            expected[~INSIDE] = 255
        assert np.array_equal(data.read_mask(index, classes), expected)
        assert data.read(index).shape == (SIDE, SIDE, 3)
    assert any(f"is laid out as {publisher}" in note for note in data.log)
    assert not any("other images" in note for note in data.log)


def test_publishers_side_by_side_are_environments(tmp_path: Path) -> None:
    for name in ("DRIVE", "STARE", "HRF", "CHASE_DB1"):
        PUBLISHERS[name][0](tmp_path / name)
    mask(tmp_path / "own/masks/vessels/a.png", 3)
    photograph(tmp_path / "own/images/a.jpg")
    data = open_(tmp_path)
    assert data.environments == ["CHASE_DB1", "DRIVE", "HRF", "STARE", "own"]
    assert data.chosen_masks().names == ("vessels",)
    assert {sample.group for sample in data.samples if sample.environment == 0} == {
        "CHASE_DB1/Image_01", "CHASE_DB1/Image_02"
    }  # fmt: skip
    assert {sample.split for sample in data.samples if sample.environment != 1} == {None}
    assert open_(tmp_path, environments=["STARE"]).environments == ["STARE"]


def test_a_second_observer_is_not_learnt_and_is_named(tmp_path: Path) -> None:
    for write in (drive, stare, chase):
        data = open_(write(tmp_path / write.__name__))
        assert all(np.unique(np.nonzero(data.read_masks(i)["vessels"])[0]).size < 9 for i in range(len(data.samples)))
        assert any("masks of a second observer are passed over: '" in note for note in data.log)
    photograph(tmp_path / "own/images/Image_01L.jpg")
    mask(tmp_path / "own/mask/Image_01L_1stHO.png", 3)
    mask(tmp_path / "own/mask/Image_01L_2ndHO.png", 9)
    data = open_(tmp_path / "own")
    assert data.chosen_masks().names == ("vessels",) and list(heights(data, "vessels").values()) == [3]
    assert "1 masks of a second observer are passed over: 'Image_01L_2ndHO.png'" in data.log[0]


def test_stare_unpacked_into_three_folders(tmp_path: Path) -> None:
    data = open_(stare(tmp_path / "STARE", apart=True))
    assert heights(data, "vessels") == {"STARE/stare-images/im0001.ppm": 3, "STARE/stare-images/im0077.ppm": 4}


def test_drive_with_a_test_part_that_nobody_marked(tmp_path: Path) -> None:
    data = open_(drive(tmp_path / "DRIVE", test_is_marked=False))
    assert [sample.split for sample in data.samples] == ["train", "train"]
    data.chosen_masks()
    assert any("2 photographs are left out, as their split has no masks: 'test/images/01" in n for n in data.notes)


def test_half_of_drive_alone(tmp_path: Path) -> None:
    data = open_(drive(tmp_path / "DRIVE") / "training")
    assert list(heights(data, "vessels").values()) == [3, 4] and {s.split for s in data.samples} == {None}


def test_faults_in_a_publishers_folder(tmp_path: Path) -> None:
    root = drive(tmp_path / "DRIVE")
    rows_marked(root / "training/1st_manual/30_manual1.gif", 2)
    with pytest.raises(UserError, match="laid out as DRIVE, but has masks of no photograph: 'training/1st_man"):
        open_(root)
    photograph(root / "training/images/30_training.tif")
    photograph(root / "training/images/30_training.png")
    with pytest.raises(UserError, match=r"two files for the same: 'training/images/30_training.png', '.*tif'"):
        open_(root)
    drive(tmp_path / "all/x/DRIVE")
    stare(tmp_path / "all/x/STARE")
    with pytest.raises(UserError, match=r"x' holds several data sets: DRIVE in .*DRIVE' and STARE in .*/STARE'\."):
        open_(tmp_path / "all")
    assert open_(tmp_path / "all/x").environments == ["DRIVE", "STARE"]


@pytest.mark.parametrize(
    ("photograph_at", "mask_at", "says"),
    [
        ("REFUGE-Training400/g0001.jpg", "Disc_Cup_Masks/Glaucoma/g0001.bmp", "files of REFUGE, whose masks hold disc"),
        ("Images/image_0.jpg", "Masks/image_0.png", "files of G1020, whose masks hold disc and cup as grey levels"),
        ("Images/drishtiGS_001.png", "GT/drishtiGS_001/SoftMap/drishtiGS_001_ODsegSoftmap.png", "are soft maps of"),
        ("Original_Images/0000_1.png", "Hemohedge_Masks/0000_1.png", "files of FGADR, whose masks have soft edges"),
    ],
)  # fmt: skip
def test_publishers_whose_masks_are_not_black_and_white(
    tmp_path: Path, photograph_at: str, mask_at: str, says: str
) -> None:
    photograph(tmp_path / "data/x" / photograph_at)
    photograph(tmp_path / "data/x" / mask_at)
    for place in ("data", "data/x"):
        with pytest.raises(UserError, match=says + ".*black and white files into masks/<kind>/"):
            open_(tmp_path / place)
    hrf(tmp_path / "data/HRF")
    assert any(says in note for note in open_(tmp_path / "data").notes)


def own(root: Path, place: str, draw, names: tuple[str, ...] = ("a", "b")) -> Path:
    for name in names:
        photograph(root / f"images/{name}.jpg")
        draw(root / f"{place}/{name}_mask.png")
    return root


def test_masks_of_the_field_of_view_are_not_learnt_as_masks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 masks such as a_mask.png seem to be of the field .*: they cover a disc"):
        open_(own(tmp_path / "discs", "mask", disc))
    root = own(tmp_path / "names", "mask", lambda path: mask(path, 5))
    assert open_(root).chosen_masks().names == ("mask",)
    mask(root / "manual/a.png", 4)
    with pytest.raises(UserError, match=r"names end in _mask, and others may hold the segmentations: 'manual/a.png'"):
        open_(root)
    named = open_(own(tmp_path / "named", "masks/retina", disc))
    assert named.chosen_masks().names == ("retina",)  # whoever names them has looked


@pytest.mark.parametrize("folder", ["field_of_view", "FOV", "Field of view"])
def test_what_is_outside_of_the_field_of_view_is_unlabelled(tmp_path: Path, folder: str) -> None:
    own(tmp_path, f"masks/{folder}", disc)
    own(tmp_path, "masks/vessels", lambda path: mask(path, 3))
    data = open_(tmp_path)
    assert data.chosen_masks().names == ("vessels",)
    expected = np.where(INSIDE, np.uint8(np.indices((SIDE, SIDE))[0] < 3), 255)
    assert np.array_equal(data.read_mask(0, data.chosen_masks()), expected)
    assert "pixels outside of 2 masks of the field of view count as unlabelled" in data.log[0]
    before = data.mask_content(0, ["vessels"])
    mask(tmp_path / f"masks/{folder}/a_mask.png", 8)
    assert data.mask_content(0, ["vessels"]) != before
    mask(tmp_path / "masks/ignore/a.png", 2)
    data = open_(tmp_path)
    assert data.read_mask(0, data.chosen_masks())[:, 0].tolist() == [255] * 2 + [1] + [0] * 5 + [255] * 8
    mask(tmp_path / f"masks/{folder}/a_mask.png", 0)
    with pytest.raises(UnreadableImage, match="mask of field_of_view is empty"):
        data.read_mask(0, data.chosen_masks())


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    own(tmp_path / "clinic", "masks/vessels", lambda path: mask(path, 3))
    photograph(tmp_path / "clinic/figures/1.png")
    (tmp_path / "clinic/images/c.dcm").touch()
    photograph(tmp_path / "DR/0/1.jpg")
    photograph(tmp_path / "$RECYCLE.BIN/clinic/images/1.jpg")
    data = open_(tmp_path)
    notes = data.log + data.notes
    assert f"{str(tmp_path)!r}: passed over, because they hold no photographs with masks: 'DR'" in notes
    assert "environment 'clinic': 1 other images are passed over: 'figures/1.png'" in notes
    assert any(note.startswith("environment 'clinic': not read: 1 .dcm, such as 'images/c.dcm'") for note in notes)
    assert any(note.endswith("leave it behind: 1 $RECYCLE.BIN") for note in notes)


def test_stare_that_is_still_packed_says_so(tmp_path: Path) -> None:
    (tmp_path / "stare-images").mkdir()
    (tmp_path / "stare-images/im0001.ppm.gz").touch()
    with pytest.raises(UserError, match=r"nor a folder in it is one \(1 .gz, such as 'stare-images/im0001.ppm.gz'"):
        open_(tmp_path)


def test_names_are_compared_as_people_read_them(tmp_path: Path) -> None:
    apart, composed = "Clinique e\u0301", "Clinique \u00e9"
    own(tmp_path / apart, "masks/hard\u00a0exudates", lambda path: mask(path, 3))
    data = open_(tmp_path, environments=[apart], mask_kinds=["hard exudates"])
    assert data.environments == [composed] and data.chosen_masks().names == ("hard exudates",)
    own(tmp_path / composed, "masks/vessels", lambda path: mask(path, 3))
    with pytest.raises(UserError, match=r"has two folders 'Clinique \u00e9': .*Rename one"):
        open_(tmp_path)


def test_the_publishers_files(real_data: Path) -> None:
    if not (real_data / "IDRiD_segmentation").is_dir() or not (real_data / "CHASE_DB1").is_dir():
        pytest.skip(f"{real_data} holds no photographs with masks")
    data = open_(real_data, environments=["IDRiD_segmentation", "CHASE_DB1"])
    assert Counter(sample.split for sample in data.samples) == {None: 54, "train": 20, "test": 8}
    assert len({sample.group for sample in data.samples}) == 54 + 14
    idrid = open_(real_data / "IDRiD_segmentation")
    assert idrid.chosen_masks().names == (
        "haemorrhages",
        "hard_exudates",
        "microaneurysms",
        "optic_disc",
        "soft_exudates",
    )
    disc = open_(real_data / "IDRiD_segmentation", mask_kinds=["optic_disc"])
    assert 0.005 < (disc.read_mask(0, disc.chosen_masks()) > 0).mean() < 0.05
