"""Augmentations as functions of (seed, step, row): geometry measured on images that show it, colour by torchvision."""

import subprocess
import sys

import numpy as np
import pytest
import torch
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
    """Return smooth random images, (count, channels, SIZE, SIZE) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def ramps(count: int) -> torch.Tensor:
    """Return images whose red is (40 + 4 x) / 255 and green (40 + 4 y) / 255: a pixel tells where it came from."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (torch.stack([40 + 4 * x, 40 + 4 * y, 255 + 0 * x]) / 255).expand(count, 3, SIZE, SIZE).clone()


def places(images: torch.Tensor) -> torch.Tensor:
    """Return the (x, y) that each pixel of changed ramps came from, (count, 2, SIZE, SIZE)."""
    return (images[:, :2] * 255 - 40) / 4


def changed_by(names, images, rows, seed: int, step: int, masks: torch.Tensor | None = None):
    """Return images and masks changed as the names say."""
    augment = Augment(names)
    return augment(images, augment.draw(rows, seed, step), masks)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [*[[name] for name in AUGMENTATIONS], list(AUGMENTATIONS)])
def test_shape_type_and_some_change(names: list[str], channels: int) -> None:
    images = pictures(16, channels)
    kept = images.clone()
    changed, masks = changed_by(names, images, range(16), seed=0, step=0)
    assert changed.shape == images.shape and changed.dtype == torch.float32 and type(changed) is torch.Tensor
    assert masks is None
    assert not torch.allclose(changed, images, atol=0.01)
    assert changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(images, kept)


def test_no_names_give_back_the_very_arguments() -> None:
    images, masks = pictures(2), torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    same, same_masks = changed_by([], images, [0, 1], 0, 0, masks)
    assert same is images and same_masks is masks


def test_the_change_is_a_function_of_seed_step_and_row_alone() -> None:
    images, rows = pictures(6), [5, 900, 3, 77, 12, 40]
    changed, _ = changed_by(AUGMENTATIONS, images, rows, seed=1, step=2)
    torch.manual_seed(123)
    order = [4, 0, 2]
    part, _ = changed_by(AUGMENTATIONS, images[order], [rows[i] for i in order], seed=1, step=2)
    torch.testing.assert_close(part, changed[order], rtol=0, atol=1e-6)
    alone, _ = changed_by(AUGMENTATIONS, images[3:4], np.array([77]), seed=1, step=2)
    torch.testing.assert_close(alone[0], changed[3], rtol=0, atol=1e-6)
    one_picture = images[:1].expand(5, -1, -1, -1)
    others = [changed_by(AUGMENTATIONS, one_picture[:1], [row], seed, step)[0] for row, seed, step in
              [(5, 1, 2), (6, 1, 2), (5, 2, 2), (5, 1, 3), (1, 5, 2)]]  # fmt: skip
    assert all(not torch.allclose(others[0], other, atol=0.01) for other in others[1:])


def test_a_mask_beside_the_image_does_not_change_the_draw() -> None:
    images, masks = pictures(4), torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
    without, _ = changed_by(AUGMENTATIONS, images, range(4), 0, 0)
    beside, _ = changed_by(AUGMENTATIONS, images, range(4), 0, 0, masks)
    assert torch.equal(without, beside)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    changed_by(AUGMENTATIONS, pictures(), range(6), 0, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_draw_is_the_same_in_every_process() -> None:
    code = """
import torch
from domainbed.datasets.augment import AUGMENTATIONS, Augment
x = torch.linspace(0, 1, 3 * 64).reshape(1, 3, 8, 8)
augment = Augment(AUGMENTATIONS)
print(augment(x, augment.draw([333], 1, 22))[0].double().sum().item())
"""
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    x = torch.linspace(0, 1, 3 * 64).reshape(1, 3, 8, 8)
    (text,) = found
    assert float(text) == pytest.approx(changed_by(AUGMENTATIONS, x, [333], 1, 22)[0].double().sum().item(), rel=1e-6)


@pytest.mark.parametrize("name, axis", [("horizontal_flip", -1), ("vertical_flip", -2)])
def test_a_flip_mirrors_half_of_the_images(name: str, axis: int) -> None:
    images = pictures(1).expand(400, -1, -1, -1)
    changed, _ = changed_by([name], images, range(400), 0, 0)
    flipped = ((changed - images.flip(axis)).abs() < 1e-5).flatten(1).all(dim=1)
    kept = ((changed - images).abs() < 1e-5).flatten(1).all(dim=1)
    assert (flipped ^ kept).all()
    assert 150 < flipped.sum() < 250  # 5 standard deviations


def test_shifts_reach_a_tenth_and_no_further() -> None:
    changed, _ = changed_by(["shift"], ramps(100), range(100), 0, 0)
    shift = places(changed)[:, :, SIZE // 2, SIZE // 2] - SIZE // 2
    assert shift.abs().max() <= 0.1 * SIZE + 0.01
    assert (shift.amax(dim=0) > 0.07 * SIZE).all() and (shift.amin(dim=0) < -0.07 * SIZE).all()
    assert (changed[:, 2] == 0).any(), "black comes in"


@pytest.mark.parametrize(
    "names, degrees", [(["rotation"], 15), (["shift", "rotation"], 15), (["rotation", "shift"], 15)]
)
def test_rotations_reach_fifteen_degrees_and_no_further(names: list[str], degrees: float) -> None:
    changed, _ = changed_by(names, ramps(100), range(100), 0, 0)
    across = places(changed)[:, :, SIZE // 2, SIZE // 2 + 10] - places(changed)[:, :, SIZE // 2, SIZE // 2 - 10]
    angles = torch.rad2deg(torch.atan2(across[:, 1], across[:, 0]))
    assert angles.abs().max() < degrees + 0.01
    assert angles.max() > 0.8 * degrees and angles.min() < -0.8 * degrees


def test_crops_keep_seven_tenths_of_the_area_or_more_and_show_nothing_else() -> None:
    changed, _ = changed_by(["crop_scale"], ramps(200), range(200), 0, 0)
    seen = places(changed)[:, :, -2, -2] - places(changed)[:, :, 1, 1]  # without the edge, which is clamped
    width, height = (seen * SIZE / (SIZE - 3) / SIZE).unbind(1)
    assert (width * height).min() > 0.7 - 0.005 and (width * height).max() > 0.95
    assert (width / height).min() > 0.75 - 0.005 and (width / height).max() < 4 / 3 + 0.005
    assert changed[:, 2].min() > 1 - 1e-5, "no black comes in"


def test_changes_follow_each_other_in_the_order_of_their_names() -> None:
    """A corner is followed through single changes of known size, and through one map of all of them."""
    shrink = np.array([[[0.5, 0, 0.2], [0, 0.5, -0.1]]])
    turn = np.array([[[0.0, -1, 0], [1, 0, 0]]])
    shift = np.array([[[1, 0, 0.25], [0, 1, 0]]])
    place = np.array([1.0, -1, 1])
    by_hand = place
    for one in (shift, turn, shrink):  # from the last image back to the first
        by_hand = np.append(one[0] @ by_hand, 1)
    np.testing.assert_allclose(augment._composed([shrink, turn, shift])[0] @ place, by_hand[:2])
    np.testing.assert_allclose(by_hand[:2], [0.5 * 1 + 0.2, 0.5 * 1.25 - 0.1])


def test_resampling_agrees_with_torchvision() -> None:
    """A quarter turn, a crop of known place, and a shift by whole pixels."""
    x, rows = pictures(1), SIZE // 8

    def resample(maps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        return augment._resample(x, None, torch.from_numpy(maps).float(), from_outside=True)

    quarter = np.array([[[0.0, -1, 0], [1, 0, 0]]])
    torch.testing.assert_close(resample(quarter)[0], F.rotate(x, 90), rtol=0, atol=1e-5)
    crop = np.array([[[0.5, 0, 0.25], [0, 0.5, -0.5]]])  # x from 3/8 to 7/8, y from 0 to 1/2
    expected = F.resized_crop(x, 0, 3 * rows, 4 * rows, 4 * rows, [SIZE, SIZE], antialias=False)
    inner = resample(crop)[0][..., 1:-1, 1:-1]  # at its edge a crop sees what lies beside it
    torch.testing.assert_close(inner, expected[..., 1:-1, 1:-1], rtol=0, atol=1e-5)
    shift = np.array([[[1, 0, 2 * 5 / SIZE], [0, 1, 0]]])
    expected = F.affine(x, 0, [-5, 0], 1, [0])
    torch.testing.assert_close(resample(shift)[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", augment.COLOR_JITTER)
def test_colours_change_as_torchvision_changes_them(kind: str) -> None:
    images = torch.cat([pictures(20), torch.zeros(1, 3, SIZE, SIZE), torch.ones(1, 3, SIZE, SIZE)])
    strength = torch.linspace(-1, 1, len(images))
    amount = augment.COLOR_JITTER[kind] * strength
    adjust = getattr(F, f"adjust_{kind}")
    expected = [adjust(x, a.item() if kind == "hue" else 1 + a.item()) for x, a in zip(images, amount, strict=True)]
    torch.testing.assert_close(augment._recolour(images, kind, strength), torch.stack(expected), rtol=0, atol=2e-5)


def test_color_jitter_stays_in_its_limits_and_keeps_geometry() -> None:
    grey = torch.full((300, 1, SIZE, SIZE), 100 / 255)
    changed, _ = changed_by(["color_jitter"], grey, range(300), 0, 0)
    level = 255 * changed.mean(dim=(1, 2, 3))  # contrast does nothing to a flat image
    assert level.min() + 1e-3 >= 70 and level.min() < 73 and level.max() > 127 and level.max() <= 130 + 1e-3
    torch.testing.assert_close(changed, changed[:, :, :1, :1].expand_as(changed))


def test_colours_are_changed_in_another_order_in_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(augment, "_recolour", lambda images, kind, strength: (seen.append(kind), images)[1])
    for step in range(40):
        changed_by(["color_jitter"], pictures(1), [0], 0, step)
    orders = {tuple(seen[at : at + 4]) for at in range(0, len(seen), 4)}
    assert len(orders) > 10 and all(set(order) == set(augment.COLOR_JITTER) for order in orders)


def test_hue_and_saturation_do_nothing_to_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "COLOR_JITTER", {"saturation": 0.3, "hue": 0.05})
    images = pictures(4, channels=1)
    assert torch.equal(changed_by(["color_jitter"], images, range(4), 0, 0)[0], images)
    assert not torch.equal(changed_by(["color_jitter"], pictures(4), range(4), 0, 0)[0], pictures(4))


@pytest.mark.parametrize("names", [[name] for name in AUGMENTATIONS] + [list(AUGMENTATIONS)])
def test_masks_go_the_way_of_the_image(names: list[str]) -> None:
    squares = torch.zeros(30, SIZE, SIZE, dtype=torch.uint8)
    squares[:, 8:22, 20:40] = 7
    images = (squares > 0).float()[:, None]
    changed, masks = changed_by(names, images, range(30), 3, 4, squares)
    assert masks is not None and masks.shape == squares.shape and masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 7}, "no value in between"
    half = changed.amax(dim=(1, 2, 3), keepdim=True) / 2
    apart = ((changed > half)[:, 0] != (masks > 0)).flatten(1).sum(dim=1)
    assert apart.max() <= 30, "they differ by less than the outline, which has 68 pixels"
    if names == ["color_jitter"]:
        assert torch.equal(masks, squares)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="no 'flip_horizontal'"):
        Augment(["flip_horizontal"])
    flip = Augment(["horizontal_flip"])
    with pytest.raises(ValueError, match="uint8"):
        flip(pictures(2).to(torch.uint8), flip.draw([0, 1], 0, 0))
    with pytest.raises(ValueError, match=r"float32 \(3, C, S, S\)"):
        flip(pictures(2), flip.draw([0, 1, 2], 0, 0))
    with pytest.raises(ValueError, match="masks must be"):
        flip(pictures(2), flip.draw([0, 1], 0, 0), torch.zeros(2, 1, SIZE, SIZE, dtype=torch.uint8))


def test_names_cost_no_torch() -> None:
    code = "import sys; import domainbed.datasets.augment, domainbed.datasets.preprocess; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
