"""Planes against masks worked out by hand, and one geometry for image and mask all the way to a minibatch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed.datasets.augment import AUGMENTATIONS, Augment
from domainbed.datasets.images import UnreadableImage
from domainbed.datasets.loaders import TrainLoader, in_order
from domainbed.datasets.manifest import Manifest
from domainbed.datasets.masks import (
    IGNORE,
    MaskClasses,
    labelled_values,
    looks_like_field_of_view,
    read_files,
    to_plane,
    to_target,
)
from domainbed.datasets.prepare import Images, prepare
from domainbed.errors import UserError
from domainbed.objectives.segmentation import IGNORE_INDEX

KINDS = MaskClasses(("disc", "cup", "vessels"), exclusive=False)
CLASSES = MaskClasses(("background", "pet", "border"), exclusive=True)


def array(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint8)


def test_kinds_are_bits_and_come_back_as_planes_of_their_own() -> None:
    masks = {"disc": array([0, 255, 255, 0]), "cup": array([0, 0, 1, 0]), "vessels": array([0, 0, 7, 7]) > 0}
    plane = to_plane(masks | {"other": array([9, 8, 7, 6]), "ignore": array([0, 0, 0, 0])}, KINDS)
    assert plane.dtype == np.uint8 and plane.tolist() == [[0, 1, 7, 4]]
    target = to_target(torch.from_numpy(plane)[None], KINDS)
    assert target.dtype == torch.float32 and target.shape == (1, 3, 1, 4)
    assert target[0, :, 0].tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_what_is_ignored_is_nan_for_every_kind_and_torch_s_index_for_classes() -> None:
    masks = {"disc": array([0, 1]), "cup": array([0, 1]), "vessels": array([1, 1]), "ignore": array([255, 0])}
    target = to_target(torch.from_numpy(to_plane(masks, KINDS))[None], KINDS)
    assert target[..., 0].isnan().all() and (target[..., 1] == 1).all()
    plane = to_plane({"mask": array([0, 1, 2, 255]), "ignore": array([0, 0, 1, 0])}, CLASSES)
    assert plane.tolist() == [[0, 1, IGNORE, IGNORE]]
    target = to_target(torch.from_numpy(plane)[None], CLASSES)
    assert target.dtype == torch.int64 and target.tolist() == [[[0, 1, IGNORE_INDEX, IGNORE_INDEX]]]
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE_INDEX


def test_seven_kinds_are_never_mistaken_for_what_is_ignored() -> None:
    classes = MaskClasses(tuple("abcdefg"), exclusive=False)
    plane = to_plane({name: array([1]) for name in classes.names}, classes)
    assert (to_target(torch.from_numpy(plane)[None], classes) == 1).all()


@pytest.mark.parametrize(
    ("masks", "classes", "says"),
    [
        (
            {"disc": array([0, 128, 255])},
            MaskClasses(("disc",), False),
            "its mask of disc holds the values 0, 128, 255",
        ),
        ({"disc": array([1, 255])}, MaskClasses(("disc",), False), "a mask of one kind is 0 and one other value"),
        ({"mask": array([0, 3, 9])}, CLASSES, "the values 3, 9, but the classes background, pet, border are 0 to 2"),
    ],
)
def test_values_that_a_mask_can_not_have(masks: dict, classes: MaskClasses, says: str) -> None:
    with pytest.raises(UnreadableImage, match=says):
        to_plane(masks, classes)


def test_only_classes_that_exclude_each_other_name_their_background() -> None:
    assert KINDS.background is None and CLASSES.background == "background"


def test_values_of_labelled_pixels() -> None:
    masks = {"disc": array([0, 255, 0]), "cup": array([0, 1, 0]), "vessels": array([0, 0, 0])}
    marked, ignored = to_plane(masks, KINDS), to_plane(masks | {"ignore": array([0, 1, 1])}, KINDS)
    assert labelled_values([marked, ignored]) == {0, 3}
    assert labelled_values(np.stack([ignored, ignored])) == {0}
    assert labelled_values([array([IGNORE, IGNORE])]) == labelled_values([]) == set()


# --- from files to minibatches ---


def batches(loader: TrainLoader, step: int) -> list:
    """Return the minibatches of a step on the CPU."""
    return loader.finish(loader.read(step), lambda pixels: pixels.float() / 255)


SIDE = 24


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twelve images in two environments whose red channel is 255 where the mask is, and a class mask of thirds."""
    rng = np.random.default_rng(0)
    rows = ["path,environment,mask_bright,mask_top"]
    for i in range(12):
        bright = np.zeros((SIDE, SIDE), bool)
        top, left = rng.integers(2, 12, 2)
        bright[top : top + 9, left : left + 9] = True
        pixels = np.repeat(np.where(bright, 255, 0)[..., None], 3, 2).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        Image.fromarray(bright).save(tmp_path / f"{i}_b.png")
        Image.fromarray((np.indices((SIDE, SIDE))[0] < 8).astype(np.uint8) * 255).save(tmp_path / f"{i}_t.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},{i}_b.png,{i}_t.png")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "table.csv"


def images(path: Path, cache: Path, reports: list[str] | None = None, **hparams) -> Images:
    dataset = Manifest(path, Manifest.HParams(**{"image_size": SIDE, **hparams}))
    return prepare(
        dataset, trial_seed=0, holdout_fraction=0.2, subset_size=None, cache_dir=cache, num_workers=1,
        skip_unreadable=False, strict=False, report=(reports if reports is not None else []).append, with_masks=True,
    )  # fmt: skip


def test_a_run_finds_the_masks_of_each_image(table: Path, tmp_path: Path) -> None:
    found = images(table, tmp_path / "cache")
    assert found.mask_classes == MaskClasses(("bright", "top"), exclusive=False)
    assert found.target_classes == ["bright", "top"] and found.classes == []
    for row in range(12):
        bright, top = (found.masks[row] & 1) > 0, (found.masks[row] & 2) > 0
        assert np.array_equal(bright, found.rows[row][..., 0] > 127)
        assert np.array_equal(top, np.indices((SIDE, SIDE))[0] < 8)
    (_, y), *_ = in_order(found, np.array([3, 5]), 2)
    assert y.shape == (2, 2, SIDE, SIDE)
    assert found.csv().splitlines()[0] == "image,environment,split,class,group,content,masks"
    x, y = batches(TrainLoader(found, [0, 1], 3, 0, Augment([])), 0)[1]
    assert torch.equal(x[:, 0] > 0.5, y[:, 0].bool())


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_mask_is_changed_with_its_image(table: Path, tmp_path: Path, name: str) -> None:
    """The mask is where the image is bright; what comes in from outside is black, and of no kind."""
    found = images(table, tmp_path / "cache")
    loader = TrainLoader(found, [0, 1], 4, 0, Augment([name]))
    plain = TrainLoader(found, [0, 1], 4, 0, Augment([]))
    moved = 0
    for step in range(4):
        for (x, y), (_, before) in zip(batches(loader, step), batches(plain, step), strict=True):
            agree = ((x[:, 0] > 0.5) == y[:, 0].bool()).float().mean()
            assert agree > 0.95  # interpolation decides along an edge; a mask that stayed behind agrees to 0.8
            moved += not torch.equal(y, before)
    assert (moved > 0) == (name != "color_jitter")


def test_the_pack_depends_on_the_kinds_and_on_what_the_masks_hold(table: Path, tmp_path: Path) -> None:
    cache, reports = tmp_path / "cache", []
    images(table, cache, reports)
    images(table, cache, reports)
    assert [line.split()[0] for line in reports] == ["decoded", "found"]
    top = images(table, cache, reports, mask_kinds=["top"])
    assert reports[-1].startswith("decoded") and (top.masks[0] > 0).sum() == 8 * SIDE
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(table.parent / "0_t.png")
    changed = images(table, cache, reports, mask_kinds=["top"])
    assert reports[-1].startswith("decoded") and not changed.masks[list(changed.names).index("0.png")].any()
    assert changed.csv() != top.csv()


def test_kinds_come_in_the_order_that_is_asked_for(table: Path, tmp_path: Path) -> None:
    images(table, tmp_path / "cache", mask_kinds=["bright", "top"])  # the same files, another pack
    found = images(table, tmp_path / "cache", mask_kinds=["top", "bright"])
    assert found.target_classes == ["top", "bright"] and ((found.masks[0] & 1) > 0).sum() == 8 * SIDE


def test_most_pixels_of_the_masks(table: Path, tmp_path: Path) -> None:
    found = images(table, tmp_path / "cache")
    assert found.majority_mask(np.arange(12)) == 0
    found.masks = np.array([[[1, 1, 3, 255, 255, 255, 255]]], np.uint8)
    assert found.majority_mask(np.array([0])) == 1  # "bright" in three of three labelled pixels, "top" in one
    found.mask_classes = CLASSES
    assert found.majority_mask(np.array([0])) == 1


# --- what a user may get wrong ---


def fault(path: Path, cache: Path, **hparams) -> str:
    with pytest.raises(UserError) as error:
        images(path, cache, **hparams)
    return str(error.value)


def test_masks_that_do_not_fit(table: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(table.parent / "0_b.png")
    Image.fromarray(np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8)).save(table.parent / "1_t.png")
    (table.parent / "2_b.png").unlink()
    (table.parent / "3_b.png").write_bytes(b"no image")
    text = fault(table, tmp_path / "cache")
    assert "4 of 12 images can't be read" in text and "--skip_unreadable" in text
    assert "0.png: its mask of bright has 6 x 4 pixels, the image has 24 x 24; save both at one size" in text
    assert "1.png: its mask of top holds the values 0, 1, 2, 3, …" in text
    assert "2.png: its mask of bright: no such file" in text
    assert "3.png: its mask of bright: not a JPEG" in text
    assert "1.png" not in fault(table, tmp_path / "cache", mask_kinds=["bright"])  # whose mask of top is not asked for


def test_kinds_that_are_not_there(table: Path, tmp_path: Path) -> None:
    text = fault(table, tmp_path / "cache", mask_kinds=["brigt"])
    assert "mask_kinds: there are no masks of 'brigt': did you mean 'bright'" in text
    assert "chooses 0 kinds" in fault(table, tmp_path / "cache", mask_kinds=[])


def test_images_without_a_mask(table: Path, tmp_path: Path) -> None:
    lines = table.read_text().splitlines()
    lines[4] = lines[4].replace("3_t.png", "")
    table.write_text("\n".join(lines))
    text = fault(table, tmp_path / "cache")
    assert "of 12 images, 1 have none of top, such as 3.png" in text and "mask_kinds" in text
    assert images(table, tmp_path / "cache", mask_kinds=["bright"]).target_classes == ["bright"]


def test_no_masks_at_all(table: Path, tmp_path: Path) -> None:
    table.write_text("path,environment\n0.png,a\n1.png,b\n")
    text = fault(table, tmp_path / "cache")
    assert "has no masks there" in text and "mask_<kind>" in text and "--algorithm AE" in text


def test_too_many_kinds(tmp_path: Path) -> None:
    from domainbed.datasets.synthetic_fundus import SyntheticFundus

    dataset = SyntheticFundus(None, SyntheticFundus.HParams(image_size=16, num_images=1, mask_kinds=None))
    with pytest.raises(UserError, match="chooses 8 kinds, but a mask holds 1 to 7 of them. Name some of vessels, disc"):
        dataset.chosen_masks()


DOWN, ACROSS = np.indices((60, 80)) - np.array([29.5, 39.5])[:, None, None]
RADIUS = np.hypot(DOWN, ACROSS)


@pytest.mark.parametrize(
    ("mask", "is_field"),
    [
        (RADIUS < 29, True),
        (RADIUS < 38, True),  # cut off above and below
        ((RADIUS < 38) & (abs(DOWN) < 25), True),
        ((RADIUS < 29) & ~((DOWN < -26) & (abs(ACROSS) < 3)), True),  # a notch
        (RADIUS < 5, False),  # an optic disc
        (np.hypot(DOWN, ACROSS + 20) < 8, False),
        ((RADIUS < 29) & (RADIUS > 12), False),
        (np.sin(ACROSS) > 0, False),  # vessels, too many of them
        (abs(DOWN) < 20, False),
        (np.ones((60, 80), bool), False),
        (np.zeros((60, 80), bool), False),
    ],
)
def test_a_field_of_view_is_a_large_disc(mask: np.ndarray, is_field: bool) -> None:
    assert looks_like_field_of_view(mask.astype(np.uint8) * 255) == is_field


def test_the_field_of_view_of_a_manifest_is_not_learnt(tmp_path: Path) -> None:
    for name, mask in (("image", RADIUS < 38), ("vessels", abs(DOWN) < 3), ("field", RADIUS < 29), ("soft", RADIUS)):
        Image.fromarray(mask.astype(np.uint8) * (1 if name == "soft" else 255)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(
        "path,environment,mask_vessels,mask_field_of_view\nimage.png,a,vessels.png,field.png\n"
    )
    data = Manifest(tmp_path / "t.csv", Manifest.HParams(image_size=32, preprocess=["resize"]))
    assert data.chosen_masks().names == ("vessels",)
    image = np.zeros((60, 80, 3), np.uint8)
    found = read_files({"vessels": tmp_path / "vessels.png", "field_of_view": tmp_path / "field.png"}, image)
    expected = np.where(RADIUS < 29, abs(DOWN) < 3, IGNORE)
    assert np.array_equal(to_plane(found, data.chosen_masks()), expected)
    assert {0, 1, IGNORE} == set(np.unique(data.read_mask(0, data.chosen_masks())))
    with pytest.raises(UnreadableImage, match="its mask of field_of_view holds the values 0, 1, 2, 3, …"):
        read_files({"field_of_view": tmp_path / "soft.png"}, image)
