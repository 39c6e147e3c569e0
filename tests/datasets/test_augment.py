"""Augmentations as functions of (seed, step, row), with their geometry measured on images that show it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from domainbed.datasets import augment
from domainbed.datasets.augment import AUGMENTATIONS, Augment
from domainbed.errors import UserError

SIZE = 48


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is slower on several threads, and much slower where other processes have the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(count: int = 6, channels: int = 3) -> torch.Tensor:
    """Return smooth random images, uint8 (count, channels, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear").to(torch.uint8)


def ramps(count: int) -> torch.Tensor:
    """Return images whose red is 40 + 4 x and green 40 + 4 y, so that a pixel tells where it came from."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return torch.stack([40 + 4 * x, 40 + 4 * y, 255 + 0 * x]).to(torch.uint8).expand(count, 3, SIZE, SIZE).clone()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [*[[name] for name in AUGMENTATIONS], list(AUGMENTATIONS)])
def test_shape_type_and_some_change(names: list[str], channels: int) -> None:
    images = pictures(16, channels)
    kept = images.clone()
    changed, masks = Augment(names, SIZE)(images, range(16), seed=0, step=0)
    assert changed.shape == images.shape and changed.dtype == torch.uint8 and type(changed) is torch.Tensor
    assert masks is None
    assert not torch.equal(changed, images)
    assert torch.equal(images, kept)


def test_no_names_give_back_the_very_arguments() -> None:
    images, masks = pictures(2), torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    same, same_masks = Augment([], SIZE)(images, [0, 1], 0, 0, masks)
    assert same is images and same_masks is masks


def test_the_change_is_a_function_of_seed_step_and_row_alone() -> None:
    augment_all, images, rows = Augment(AUGMENTATIONS, SIZE), pictures(6), [5, 900, 3, 77, 12, 40]
    changed, _ = augment_all(images, rows, seed=1, step=2)
    torch.manual_seed(123)
    order = [4, 0, 2]
    part, _ = Augment(AUGMENTATIONS, SIZE)(images[order], [rows[i] for i in order], seed=1, step=2)
    assert torch.equal(part, changed[order])
    alone, _ = augment_all(images[3:4], np.array([77]), seed=1, step=2)
    assert torch.equal(alone[0], changed[3])
    one_picture = images[:1].expand(5, -1, -1, -1)
    others = [augment_all(one_picture[:1], [row], seed, step)[0] for row, seed, step in
              [(5, 1, 2), (6, 1, 2), (5, 2, 2), (5, 1, 3), (1, 5, 2)]]  # fmt: skip
    assert all(not torch.equal(others[0], other) for other in others[1:])


def test_a_mask_beside_the_image_does_not_change_the_draw() -> None:
    images, masks = pictures(4), torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
    without, _ = Augment(AUGMENTATIONS, SIZE)(images, range(4), 0, 0)
    beside, _ = Augment(AUGMENTATIONS, SIZE)(images, range(4), 0, 0, masks)
    assert torch.equal(without, beside)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    Augment(AUGMENTATIONS, SIZE)(pictures(), range(6), 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(IndexError):  # also where a transform fails: rows name more images than the masks have
        Augment(AUGMENTATIONS, SIZE)(pictures(1), _Rows(), 0, 0)
    assert torch.equal(torch.get_rng_state(), state)


class _Rows(list):
    """One row by its length, two when walked."""

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        return iter([0, 1])


def test_the_hash_is_the_same_in_every_process_and_spreads() -> None:
    code = "from domainbed.datasets.augment import _hash; print(_hash(1, 22, 333))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) == augment._hash(1, 22, 333)
    hashes = {augment._hash(*key) for key in [(1, 11, 1), (11, 1, 1), (1, 1, 11), (111, 0, 0), (0, 111, 0)]}
    assert len(hashes) == 5
    draws = np.array([augment._hash(0, step, row) for step in range(40) for row in range(50)]) / 2**32
    np.testing.assert_allclose(np.histogram(draws, 10, (0, 1))[0], 200, atol=60)  # 4.5 standard deviations


@pytest.mark.parametrize("name, axis", [("horizontal_flip", -1), ("vertical_flip", -2)])
def test_a_flip_mirrors_half_of_the_images(name: str, axis: int) -> None:
    images = pictures(1).expand(400, -1, -1, -1)
    changed, _ = Augment([name], SIZE)(images, range(400), 0, 0)
    flipped = (changed == images.flip(axis)).flatten(1).all(dim=1)
    kept = (changed == images).flatten(1).all(dim=1)
    assert (flipped ^ kept).all()
    assert 150 < flipped.sum() < 250  # 5 standard deviations


def test_shifts_reach_a_tenth_and_no_further() -> None:
    changed, _ = Augment(["shift"], SIZE)(ramps(100), range(100), 0, 0)
    middle = changed[:, :2, SIZE // 2, SIZE // 2].float()  # where the centre came from
    shift = (middle - 40) / 4 - SIZE // 2
    assert shift.abs().max() <= 0.1 * SIZE + 0.6
    assert (shift.amax(dim=0) > 0.07 * SIZE).all() and (shift.amin(dim=0) < -0.07 * SIZE).all()
    assert (changed[:, 2] == 0).any(), "black comes in"


@pytest.mark.parametrize(
    "names, degrees", [(["rotation"], 15), (["shift", "rotation"], 15), (["rotation", "shift"], 15)]
)
def test_rotations_reach_fifteen_degrees_and_no_further(names: list[str], degrees: float) -> None:
    changed, _ = Augment(names, SIZE)(ramps(100), range(100), 0, 0)
    across = changed[:, :2, SIZE // 2, SIZE // 2 + 10].float() - changed[:, :2, SIZE // 2, SIZE // 2 - 10].float()
    angles = torch.rad2deg(torch.atan2(across[:, 1], across[:, 0]))
    assert angles.abs().max() < degrees + 1
    assert angles.max() > 0.8 * degrees and angles.min() < -0.8 * degrees


def test_shift_and_rotation_together_are_one_resampling() -> None:
    together = Augment(["shift", "horizontal_flip", "rotation"], SIZE)
    assert [type(transform).__name__ for transform in together._transforms] == ["RandomAffine", "RandomHorizontalFlip"]


def test_crops_keep_seven_tenths_of_the_area_or_more() -> None:
    changed, _ = Augment(["crop_scale"], SIZE)(ramps(100), range(100), 0, 0)
    seen = changed[:, :2, -1, -1].float() - changed[:, :2, 0, 0].float()  # how much of the ramps is left
    area = (seen / (4 * (SIZE - 1))).prod(dim=1)
    assert area.min() > 0.7 - 0.08 and area.min() < 0.8 and area.max() > 0.9


def test_color_jitter_stays_in_its_limits_and_keeps_geometry() -> None:
    grey = torch.full((300, 1, SIZE, SIZE), 100, dtype=torch.uint8)
    changed, _ = Augment(["color_jitter"], SIZE)(grey, range(300), 0, 0)
    level = changed.float().mean(dim=(1, 2, 3))  # contrast does nothing to a flat image
    assert 69 <= level.min() < 75 and 125 < level.max() <= 130
    assert (changed.flatten(1) == changed[:, 0, :1, 0]).all()


def test_hue_and_saturation_do_nothing_to_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "COLOR_JITTER", {"saturation": 0.3, "hue": 0.05})
    images = pictures(4, channels=1)
    assert torch.equal(Augment(["color_jitter"], SIZE)(images, range(4), 0, 0)[0], images)
    assert not torch.equal(Augment(["color_jitter"], SIZE)(pictures(4), range(4), 0, 0)[0], pictures(4))


@pytest.mark.parametrize("names", [[name] for name in AUGMENTATIONS] + [list(AUGMENTATIONS)])
def test_masks_go_the_way_of_the_image(names: list[str]) -> None:
    squares = torch.zeros(30, SIZE, SIZE, dtype=torch.uint8)
    squares[:, 8:22, 20:40] = 7
    images = torch.where(squares > 0, 255, 0).to(torch.uint8)[:, None]
    changed, masks = Augment(names, SIZE)(images, range(30), 3, 4, squares)
    assert masks is not None and masks.shape == squares.shape and masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 7}, "no value in between"
    half = changed.amax(dim=(1, 2, 3), keepdim=True) / 2
    apart = ((changed > half)[:, 0] != (masks > 0)).flatten(1).sum(dim=1)
    assert apart.max() <= 80, "they differ by little more than the outline (68 pixels)"
    if names == ["color_jitter"]:
        assert torch.equal(masks, squares)


def test_parameters_agree_with_torchvision_called_by_hand() -> None:
    images = pictures(3)
    changed, _ = Augment(["horizontal_flip", "crop_scale"], SIZE)(images, [7, 8, 9], 5, 6)
    candidates = [F.horizontal_flip(images[0]), images[0]]
    generator = torch.random.get_rng_state()
    torch.manual_seed(augment._hash(5, 6, 7))
    flip = torch.rand(1) < 0.5
    expected = v2.RandomResizedCrop(SIZE, (0.7, 1.0), antialias=True)(candidates[0 if flip else 1])
    torch.random.set_rng_state(generator)
    assert torch.equal(changed[0], expected)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="no 'flip_horizontal'"):
        Augment(["flip_horizontal"], SIZE)
    flip = Augment(["horizontal_flip"], SIZE)
    with pytest.raises(ValueError, match="float32"):
        flip(pictures(2).float(), [0, 1], 0, 0)
    with pytest.raises(ValueError, match=r"uint8 \(3, C, H, W\)"):
        flip(pictures(2), [0, 1, 2], 0, 0)
    with pytest.raises(ValueError, match="masks must be"):
        flip(pictures(2), [0, 1], 0, 0, torch.zeros(2, 1, SIZE, SIZE, dtype=torch.uint8))


def test_names_cost_no_torch() -> None:
    code = "import sys; import domainbed.datasets.augment, domainbed.datasets.preprocess; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
