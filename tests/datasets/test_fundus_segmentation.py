"""Small files in the publishers' layouts, and the publishers' own where they are to be had."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.fundus_segmentation import FundusSegmentation
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
    return {sample.name: int(data.read_masks(i)[kind][:, 0].sum()) for i, sample in enumerate(data.samples)}


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
