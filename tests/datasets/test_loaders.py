"""Which image is in which step, and reading ahead of it."""

import threading
import time

import numpy as np
import pytest
import torch

from domainbed.datasets.augment import AUGMENTATIONS, Augment
from domainbed.datasets.loaders import AHEAD, ReadAhead, TrainLoader
from domainbed.datasets.masks import MaskClasses
from domainbed.datasets.prepare import Images
from domainbed.errors import UserError
from domainbed.fake_gpu import WarnOfSynchronisation, fake_gpu

SIDE = 8


def images(*counts: int) -> Images:
    """Return environments of so many training images, and one held out each; a pixel of image i is i everywhere."""
    environment = np.concatenate([np.full(count + 1, e) for e, count in enumerate(counts)])
    total = len(environment)
    split = np.concatenate([["train"] * count + ["val"] for count in counts])
    rows = np.broadcast_to(np.arange(total, dtype=np.uint8)[:, None, None, None], (total, SIDE, SIDE, 3))
    names = np.array([f"image{i}" for i in range(total)])
    return Images(
        environments=[f"e{i}" for i in range(len(counts))], classes=["a", "b", "c"], ordinal=False, rows=rows,
        environment=environment, labels=np.arange(total) % 3, split=split, groups=names, names=names, unreadable=[],
        leaks=[], contents=[""] * total, mask_classes=None, masks=None, mask_contents=[],
    )  # fmt: skip


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 255


def test_an_epoch_has_every_training_image_once_and_each_environment_its_own() -> None:
    loader = TrainLoader(images(12, 20), [0, 1], 4, seed=3, augment=Augment([]))
    seen = np.concatenate([loader.row_indices(step, 0) for step in range(6)])
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert list(seen[:12]) != list(seen[12:]) != list(range(12))
    assert sorted(np.concatenate([loader.row_indices(step, 1) for step in range(5)])) == list(range(13, 33))


def test_a_batch_is_what_is_stored_of_its_rows() -> None:
    loader = TrainLoader(images(12, 20), [0, 1], 5, seed=0, augment=Augment([]))
    for environment, (x, y) in enumerate(loader.finish(loader.read(7), to_float)):
        rows = loader.row_indices(7, environment)
        assert (x * 255).round()[:, 0, 0, 0].tolist() == rows.tolist()
        assert x.shape == (5, 3, SIDE, SIDE) and y.tolist() == (rows % 3).tolist()


def test_a_step_is_the_same_whenever_and_by_whomever_it_is_read() -> None:
    loaders = [TrainLoader(images(12), [0], 4, seed=1, augment=Augment(AUGMENTATIONS)) for _ in range(2)]
    with ReadAhead(loaders[0].read, 0, 9) as ahead:
        walked = [loaders[0].finish(next(ahead), to_float) for step in range(9)]
    resumed = loaders[1].finish(loaders[1].read(8), to_float)
    assert torch.equal(walked[8][0][0], resumed[0][0]) and torch.equal(walked[8][0][1], resumed[0][1])


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_gpu_is_not_waited_for(with_masks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, pinned = images(12, 20), []
    if with_masks:
        data.mask_classes, data.masks = MaskClasses(("vessel", "lesion"), exclusive=False), data.rows[..., 0]
    loader = TrainLoader(data, [0, 1], 4, seed=1, augment=Augment(AUGMENTATIONS), pin=True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (pinned.append(self.clone()), pinned[-1])[1])
    with fake_gpu() as gpu, WarnOfSynchronisation():
        raw = loader.read(3)
        found = loader.finish(raw, lambda pixels: pixels.to(gpu, non_blocking=True).float())
    for x, y in found:
        assert (x.device.type, y.device.type, tuple(x.shape)) == ("cuda", "cuda", (4, 3, SIDE, SIDE))
    tensors = [
        tensor
        for one in raw
        for tensor in (one.labels, one.pixels, one.planes, one.params.maps, one.params.strengths)
        if tensor is not None
    ]
    assert len(tensors) == 8 + 2 * with_masks and {*map(id, tensors)} == {*map(id, pinned)}


def test_a_second_view_is_another_draw_and_leaves_the_first_as_it_is() -> None:
    data = images(12, 12)
    data.rows = np.random.default_rng(0).integers(0, 256, data.rows.shape, dtype=np.uint8)
    one, both = (
        TrainLoader(data, [0, 1], 4, seed=1, augment=Augment(["crop_scale", "color_jitter"]), second_view=second)
        for second in (False, True)
    )
    plain, viewed = (loader.finish(loader.read(7), to_float) for loader in (one, both))
    again = both.finish(both.read(7), to_float)
    for number, (first, with_second, repeated) in enumerate(zip(plain, viewed, again, strict=True)):
        assert first.second_view is None and first.environment == with_second.environment == number
        assert torch.equal(first.x, with_second.x) and torch.equal(first.y, with_second.y)
        assert torch.equal(with_second.second_view, repeated.second_view), "a function of seed, step and row"
        assert (with_second.x - with_second.second_view).abs().mean() > 0.01


def test_two_views_need_an_augmentation() -> None:
    with pytest.raises(UserError, match="two views .* augment=horizontal_flip"):
        TrainLoader(images(12), [0], 4, 0, Augment([]), second_view=True)


def test_an_image_twice_in_one_batch_is_changed_in_two_ways() -> None:
    loader = TrainLoader(images(4), [0], 3, seed=0, augment=Augment([]))
    assert loader.keys(np.array([2, 0, 2, 2])) == [2, 0, 7, 12]


def test_balanced_classes_are_drawn_alike() -> None:
    data = images(60)
    data.labels = np.where(np.arange(61) < 54, 0, 1)
    loader = TrainLoader(data, [0], 50, 0, Augment([]), class_balanced=True)
    drawn = np.concatenate([data.labels[loader.row_indices(step, 0)] for step in range(40)])
    assert abs(drawn.mean() - 0.5) < 0.06  # 5 standard deviations


def test_environments_that_are_too_small_are_named() -> None:
    with pytest.raises(UserError, match="e1 has 3. Use batch_size=3 or less"):
        TrainLoader(images(12, 3), [0, 1], 4, 0, Augment([]))
    with pytest.raises(UserError, match="e1 has no training images"):
        TrainLoader(images(12, 0), [0, 1], 4, 0, Augment([]))


def test_reading_ahead_keeps_the_order_and_ends() -> None:
    with ReadAhead(lambda step: step * step, 3, 9) as ahead:
        assert [next(ahead) for _ in range(6)] == [9, 16, 25, 36, 49, 64]
        with pytest.raises(StopIteration):
            next(ahead)


def test_reading_is_in_another_thread_and_no_further_ahead_than_it_says() -> None:
    read: list[tuple[int, int]] = []
    with ReadAhead(lambda step: read.append((step, threading.get_ident())), 0, 100) as ahead:
        for _ in range(2):
            next(ahead)
        deadline = time.monotonic() + 10
        while len(read) < 2 + AHEAD and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert [step for step, _ in read] == list(range(2 + AHEAD))
    assert threading.get_ident() not in {thread for _, thread in read}
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_an_error_of_reading_comes_where_its_step_is_asked_for() -> None:
    def read(step: int) -> int:
        if step == 2:
            raise UserError("the disk is gone")
        return step

    with ReadAhead(read, 0, 9) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
        with pytest.raises(UserError, match="the disk is gone"):
            next(ahead)


def test_waiting_is_counted_and_work_in_between_is_not() -> None:
    def slow(step: int) -> None:
        time.sleep(0.05)

    with ReadAhead(slow, 0, 4) as ahead:
        next(ahead)
        first = ahead.waited
        time.sleep(0.5)  # the others are read meanwhile
        for _ in range(3):
            next(ahead)
        assert first > 0.02 and ahead.waited - first < 0.05
