"""Packs of small folders: what is in them, when they are found again, and what is left when things fail."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets import packed
from domainbed.datasets.base import Dataset, Sample
from domainbed.datasets.images import digest, read_image
from domainbed.errors import UserError

SIZE = 6


class Folder(Dataset):
    """The PNG files of one folder; counts how often each is decoded."""

    name = "Folder"
    environments = ["all"]
    classes = ["only"]

    def __init__(self, data_dir: Path, preprocess: tuple[str, ...] = ("resize",), image_size: int = SIZE) -> None:
        hparams = SimpleNamespace(preprocess=list(preprocess), image_size=image_size, augment=[])
        super().__init__(data_dir, hparams)  # type: ignore[arg-type]
        self.paths = sorted(data_dir.glob("*.png"))
        self.samples = [Sample(0, path.name, 0, path.name) for path in self.paths]
        self.decoded: list[int] = []

    def read(self, index: int) -> np.ndarray:
        self.decoded.append(index)
        return self.preprocess(read_image(self.paths[index]))[0]

    def content(self, index: int) -> str:
        return digest(self.paths[index])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of different sizes."""
    path = tmp_path / "images"
    path.mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (8 + i, 9, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return path


def build(dataset: Dataset, cache: Path, indices: list[int] | None = None) -> tuple[packed.Pack, list[str]]:
    reports: list[str] = []
    chosen = range(len(dataset.samples)) if indices is None else indices
    return packed.pack(dataset, chosen, cache, 2, reports.append), reports


def wait_for(reports: list[str]) -> str:
    """Return the first report of another thread."""
    deadline = time.monotonic() + 20
    while not reports and time.monotonic() < deadline:
        time.sleep(0.01)
    return reports[0]


def packs(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


def everything(pack: packed.Pack) -> np.ndarray:
    return pack.rows[np.arange(len(pack.rows))]


def expected(folder: Path, indices: list[int] | None = None) -> np.ndarray:
    dataset = Folder(folder)
    return np.stack([dataset.read(i) for i in (range(len(dataset.paths)) if indices is None else indices)])


def test_rows_are_what_the_data_set_reads_in_the_order_asked_for(folder: Path, tmp_path: Path) -> None:
    dataset, order = Folder(folder), [5, 0, 3, 6]
    pack, _ = build(dataset, tmp_path / "deep" / "cache", order)
    np.testing.assert_array_equal(everything(pack), expected(folder, order))
    assert pack.rows.shape == (4, SIZE, SIZE, 3) and pack.rows[0].dtype == np.uint8
    assert pack.indices.tolist() == order and pack.indices.dtype == np.int64
    assert pack.contents == [digest(folder / f"{i}.png") for i in order] and pack.unreadable == []
    (path,) = packs(tmp_path / "deep" / "cache")
    assert path.name.startswith("Folder-")
    on_disk = np.fromfile(path / "rows.u8", np.uint8).reshape(4, SIZE, SIZE, 3)  # the layout that is documented
    np.testing.assert_array_equal(on_disk, expected(folder, order))


def test_rows_are_indexed_as_an_array_is(folder: Path, tmp_path: Path) -> None:
    rows, array = build(Folder(folder), tmp_path / "cache")[0].rows, expected(folder)
    for wanted in (3, -1, np.int64(2), [4, 4, 0], np.array([], int), slice(2, 5), np.arange(7) % 2 == 0):
        np.testing.assert_array_equal(rows[wanted], array[wanted])
    for beyond in (7, [0, 7], -8):
        with pytest.raises(IndexError):
            rows[beyond]
    rows[3][:] = 0  # the caller's own
    np.testing.assert_array_equal(rows[3], array[3])


def test_decoded_images_are_found_again(folder: Path, tmp_path: Path) -> None:
    first, _ = build(Folder(folder), tmp_path / "cache")
    dataset = Folder(folder)
    again, reports = build(dataset, tmp_path / "cache")
    assert dataset.decoded == []
    np.testing.assert_array_equal(everything(first), everything(again))
    assert first.contents == again.contents and first.indices.tolist() == again.indices.tolist()
    assert len(reports) == 1 and reports[0].startswith("found 7 decoded images")


def test_a_subset_the_whole_and_another_order_share_rows(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build(Folder(folder), cache, [3, 4])
    dataset = Folder(folder)
    pack, reports = build(dataset, cache)
    assert sorted(dataset.decoded) == [0, 1, 2, 5, 6] and len(packs(cache)) == 1
    assert reports[0].startswith("found 2") and reports[1].startswith("decoded 5")
    np.testing.assert_array_equal(everything(pack), expected(folder))
    backwards = [6, 5, 4, 3, 2, 1, 0]
    np.testing.assert_array_equal(everything(build(Folder(folder), cache, backwards)[0]), expected(folder, backwards))


def test_a_decoder_that_gives_other_pixels_has_packs_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(Folder(folder), tmp_path / "cache")
    monkeypatch.setattr("domainbed.datasets.images.VERSION", "another")
    dataset = Folder(folder)
    build(dataset, tmp_path / "cache")
    assert len(dataset.decoded) == 7 and len(packs(tmp_path / "cache")) == 2


def test_settings_have_packs_of_their_own(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build(Folder(folder), cache)
    others: list[Folder] = [
        Folder(folder, ("gray_ntsc",)), Folder(folder, ("clahe",)), Folder(folder, image_size=SIZE + 1)
    ]  # fmt: skip
    others += [type(name, (Folder,), {"version": version})(folder) for name, version in (("Other", 1), ("Other", 2))]
    for count, other in enumerate(others, start=2):
        build(other, cache)
        assert len(packs(cache)) == count and len(other.decoded) == 7


def test_a_file_that_changed_is_decoded_again_and_no_other(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build(Folder(folder), cache)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "4.png")
    dataset = Folder(folder)
    pack, _ = build(dataset, cache)
    assert dataset.decoded == [4] and len(packs(cache)) == 1
    assert (pack.rows[4] == [1, 2, 3]).all()
    np.testing.assert_array_equal(everything(pack), expected(folder))


def test_images_that_are_the_same_are_decoded_once(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "1.png", folder / "9.png")
    dataset = Folder(folder)
    pack, _ = build(dataset, tmp_path / "cache")
    assert len(dataset.decoded) == 7 and len(pack.rows) == 8
    np.testing.assert_array_equal(pack.rows[7], pack.rows[1])


def test_unreadable_images_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "4.png").unlink()
    (folder / "4.png").symlink_to("nowhere")
    shutil.copy(folder / "2.png", folder / "8.png")
    for count in (5, 0):  # what can't be read may be readable by another version of the decoder: it is tried again
        dataset = Folder(folder)
        pack, reports = build(dataset, tmp_path / "cache")
        assert pack.indices.tolist() == [0, 1, 3, 5, 6] and dataset.decoded.count(2) == 1
        np.testing.assert_array_equal(everything(pack), expected(folder, [0, 1, 3, 5, 6]))
        reason = "damaged: image file is truncated"
        assert pack.unreadable == [
            ("2.png", reason), ("4.png", "a link to a file that does not exist"), ("8.png", reason)
        ]  # fmt: skip
        assert f"decoded {count} images" in reports[-1] and "left out 1" in reports[-1]
    (folder / "2.png").write_bytes(whole)
    assert build(Folder(folder), tmp_path / "cache")[0].indices.tolist() == [0, 1, 2, 3, 5, 6]


@pytest.mark.parametrize("text", ["not an image", None])
def test_nothing_readable_gives_no_rows(folder: Path, tmp_path: Path, text: str | None) -> None:
    for path in folder.iterdir():
        path.unlink()
        path.write_text(text) if text else path.symlink_to("nowhere")
    for _ in range(2):
        pack, _ = build(Folder(folder), tmp_path / "cache")
        assert pack.rows.shape == (0, SIZE, SIZE, 3) and len(pack.unreadable) == 7 and pack.indices.shape == (0,)
    assert build(Folder(folder), tmp_path / "cache", [])[0].unreadable == []


ROW, RECORD = SIZE * SIZE * 3, packed._RECORD.itemsize


def _cut(name: str, size: int):
    def spoil(path: Path) -> None:
        with open(path / name, "r+b") as file:
            file.truncate(size)

    return spoil


def _flip(name: str, at: int):
    def spoil(path: Path) -> None:
        with open(path / name, "r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "again"),
    [
        (_cut("rows.u8", 5 * ROW), [5, 6]),
        (_cut("rows.u8", 5 * ROW + 1), [5, 6]),
        (lambda path: (path / "rows.u8").unlink(), [0, 1, 2, 3, 4, 5, 6]),
        (_cut("index", 3 * RECORD), [3, 4, 5, 6]),
        (_cut("index", 3 * RECORD - 1), [2, 3, 4, 5, 6]),
        (lambda path: (path / "index").unlink(), [0, 1, 2, 3, 4, 5, 6]),
        (_flip("index", 4 * RECORD + 2), [4]),
        (_flip("index", 4 * RECORD + 12), [4]),
        (lambda path: (path / "about.json").write_text("{"), []),
        (lambda path: (path / "about.json").unlink(), []),
        (lambda path: _append(path / "rows.u8", b"x" * 500), []),
    ],
)
def test_what_a_damaged_pack_has_lost_is_decoded_again(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], again: list[int]
) -> None:
    cache = tmp_path / "cache"
    build(Folder(folder), cache, None)
    (path,) = packs(cache)
    spoil(path)
    for decoded in (again, []):
        dataset = Folder(folder)
        pack, reports = build(dataset, cache)
        assert sorted(dataset.decoded) == decoded
        np.testing.assert_array_equal(everything(pack), expected(folder))
    assert reports == [f"found 7 decoded images in {path}"]


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def test_a_pack_that_was_cut_short_is_reported(folder: Path, tmp_path: Path) -> None:
    build(Folder(folder), tmp_path / "cache")
    (path,) = packs(tmp_path / "cache")
    _cut("rows.u8", 5 * ROW)(path)
    _, reports = build(Folder(folder), tmp_path / "cache")
    assert reports[0] == f"{path} is damaged: 2 images are not there whole, and are decoded again when they are wanted"


@pytest.mark.parametrize(
    "spoil", [_flip("rows.u8", 4 * ROW + 7), _flip("index", 4 * RECORD + 17)], ids=["pixel", "checksum"]
)
def test_a_flipped_bit_is_noticed_when_the_row_is_read(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    cache = tmp_path / "cache"
    build(Folder(folder), cache)
    (path,) = packs(cache)
    spoil(path)
    dataset = Folder(folder)
    pack, reports = build(dataset, cache)
    assert dataset.decoded == []
    for _ in range(2):
        np.testing.assert_array_equal(everything(pack), expected(folder))
    assert dataset.decoded == [4, 4]
    assert len(reports) == 2 and "decoded copy of 4.png" in reports[1] and "is damaged" in reports[1]
    dataset = Folder(folder)
    np.testing.assert_array_equal(everything(build(dataset, cache)[0]), expected(folder))
    assert dataset.decoded == [4], "the next run decodes it once and for all"


def test_a_pack_that_is_cut_short_or_deleted_under_a_run_does_no_harm(folder: Path, tmp_path: Path) -> None:
    pack, reports = build(Folder(folder), tmp_path / "cache")
    (path,) = packs(tmp_path / "cache")
    _cut("rows.u8", 2 * ROW)(path)
    np.testing.assert_array_equal(everything(pack), expected(folder))
    assert len(reports) == 1 + 5
    pack, reports = build(Folder(folder), tmp_path / "cache")
    packed.Store.all(tmp_path / "cache")[0].clear()
    assert packs(tmp_path / "cache") == []
    np.testing.assert_array_equal(everything(pack), expected(folder))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_keeps_what_it_has(folder: Path, tmp_path: Path, error: type[BaseException]) -> None:
    dataset, cache = Folder(folder), tmp_path / "cache"
    dataset.read = lambda index: _raise(error) if index == 5 else Folder.read(dataset, index)  # type: ignore
    with pytest.raises(error):
        build(dataset, cache)
    dataset = Folder(folder)
    pack, reports = build(dataset, cache)
    assert sorted(dataset.decoded) == [5, 6] and reports[0].startswith("found 5")
    np.testing.assert_array_equal(everything(pack), expected(folder))


def _raise(error: type[BaseException]) -> np.ndarray:
    raise error("stop")


@pytest.mark.parametrize("stage", ["read", "append", "commit"])
def test_a_killed_build_loses_little_and_does_not_block_the_next(folder: Path, tmp_path: Path, stage: str) -> None:
    cache = tmp_path / "cache"
    code = f"""
import os, sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_packed as t
from domainbed.datasets import packed
packed._COMMIT_BYTES = 2 * (t.ROW + t.RECORD)
dataset = t.Folder(Path({str(folder)!r}))
done = [0]
def stop(*args):
    os.write(1, b"in\\n")  # whole, also where two threads are here
    time.sleep(60)
def counted(function, count):
    def call(*args):
        done[0] += 1
        return stop() if done[0] > count else function(*args)
    return call
if {stage!r} == "read":
    def read(index):
        if index < 5:
            return t.Folder.read(dataset, index)
        while sum(path.stat().st_size for path in Path({str(cache)!r}).glob("*/index")) < 4 * t.RECORD:
            time.sleep(0.01)  # reading is ahead of writing
        stop()
    dataset.read = read
elif {stage!r} == "append":
    packed._Writer.append = counted(packed._Writer.append, 5)
else:  # the bytes of rows 4 and 5 are on the disk, their records are not
    packed._flush = counted(packed._flush, 5)
t.build(dataset, Path({str(cache)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        dataset, reports = Folder(folder), []
        waiting = threading.Thread(target=lambda: packed.pack(dataset, range(7), cache, 1, reports.append))
        waiting.start()
        try:
            assert wait_for(reports).startswith("waiting for another process")
        finally:
            process.send_signal(signal.SIGKILL)
        waiting.join(10)
    assert sorted(dataset.decoded) == [4, 5, 6]
    assert reports[1].startswith("found 4") and reports[2].startswith("decoded 3")
    again = Folder(folder)
    np.testing.assert_array_equal(everything(build(again, cache)[0]), expected(folder))
    assert again.decoded == []


def test_who_waited_takes_what_the_other_decoded(folder: Path, tmp_path: Path) -> None:
    cache, dataset, reports = tmp_path / "cache", Folder(folder), []
    build(dataset, cache)
    (path,) = packs(cache)
    shutil.move(path, tmp_path / "aside")
    dataset.decoded.clear()
    with open(cache / f"{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: packed.pack(dataset, range(7), cache, 1, reports.append))
        waiting.start()
        wait_for(reports)
        shutil.move(tmp_path / "aside", path)
    waiting.join(10)
    assert dataset.decoded == [] and reports[1].startswith("found 7")


def test_without_room_images_are_decoded_when_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    build(Folder(folder), cache, [2])
    (folder / "4.png").write_bytes(b"not an image")
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    dataset = Folder(folder)
    pack, reports = build(dataset, cache)
    assert reports[0].startswith("found 1") and len(reports) == 2
    assert re.match(
        r"WARNING: 6 decoded images need 1 kB, and 67 MB are to stay free, but .* has 3 MB free: ", reports[1]
    )
    assert "cache_dir=<folder>" in reports[1]
    assert [name for name, _ in pack.unreadable] == ["4.png"], "known before training begins"
    dataset.decoded.clear()
    kept = [0, 1, 2, 3, 5, 6]
    np.testing.assert_array_equal(everything(pack), expected(folder, kept))
    assert sorted(dataset.decoded) == [0, 1, 3, 5, 6], "what was there is read"
    assert len(packed.Store.all(cache)[0].records()) == 1

    Image.new("RGB", (8, 8)).save(folder / "0.png")
    with pytest.raises(
        UserError, match=r"0.png was readable .* it has changed since it was looked at. Put it back .*--resume"
    ):
        pack.rows[0]
    (folder / "1.png").unlink()
    with pytest.raises(UserError, match=r"1.png was readable when the run began.*no such file.*--resume"):
        pack.rows[[2, 1]]


def test_a_file_that_goes_or_changes_during_a_run_does_no_harm(folder: Path, tmp_path: Path) -> None:
    before = expected(folder)
    pack, _ = build(Folder(folder), tmp_path / "cache")
    (folder / "1.png").unlink()
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    np.testing.assert_array_equal(everything(pack), before)


def test_a_disk_that_is_full_keeps_what_was_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, append = tmp_path / "cache", packed._Writer.append
    written: list[int] = []

    def until_full(self: packed._Writer, key: np.ndarray, arrays: list[np.ndarray]) -> None:
        if len(written) == 3:
            self.files[0].write(b"half of a row")
            raise OSError(28, "No space left on device")
        written.append(0)
        append(self, key, arrays)

    monkeypatch.setattr(packed._Writer, "append", until_full)
    with pytest.raises(UserError, match="No space left on device.*so far is kept.*cache_dir=<folder>"):
        build(Folder(folder), cache)
    monkeypatch.undo()
    dataset = Folder(folder)
    np.testing.assert_array_equal(everything(build(dataset, cache)[0]), expected(folder))
    assert len(dataset.decoded) == 4


def test_an_unwritable_cache_is_a_user_error(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(UserError, match="can't write decoded images to .*cache_dir=<folder>"):
            build(Folder(folder), cache)


def test_a_readonly_cache_serves_what_it_has_and_the_rest_is_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    build(Folder(folder), cache, [0, 1, 2])
    (folder / "4.png").write_bytes(b"not an image")
    monkeypatch.setattr(packed.Store, "locked", lambda self, report: pytest.fail("wanted to write"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    dataset = Folder(folder)
    pack, reports = build(dataset, cache)
    assert [name for name, _ in pack.unreadable] == ["4.png"]
    assert "can't be written: they are decoded each time" in reports[-1]
    np.testing.assert_array_equal(everything(pack), expected(folder, [0, 1, 2, 3, 5, 6]))


def test_a_disk_that_fails_to_read_costs_time_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, reports = build(Folder(folder), tmp_path / "cache")
    failing = OSError(5, "Input/output error")
    monkeypatch.setattr(os, "preadv", lambda *arguments: (_ for _ in ()).throw(failing))
    np.testing.assert_array_equal(everything(pack), expected(folder))
    assert len(reports) == 8 and "is damaged" in reports[-1]


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(folder: Path, tmp_path: Path) -> None:
    dataset = Folder(folder)

    def read(index: int) -> np.ndarray:
        if index == 3:
            Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "3.png")
        return Folder.read(dataset, index)

    dataset.read = read  # type: ignore[method-assign]
    pack, _ = build(dataset, tmp_path / "cache")
    assert pack.unreadable == [("3.png", "it has changed since it was looked at")]
    assert (build(Folder(folder), tmp_path / "cache")[0].rows[3] == 9).all()


def test_how_an_image_is_decoded_is_part_of_the_key(folder: Path, tmp_path: Path) -> None:
    reduced = type("Folder", (Folder,), {"least_side": 12})
    stores = {packed.Store.of(cls(folder), None, tmp_path).folder for cls in (Folder, reduced)}
    assert len(stores) == 2


def test_a_readonly_cache_still_serves_its_packs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(Folder(folder), tmp_path / "cache")
    monkeypatch.setattr(packed.Store, "locked", lambda self, report: pytest.fail("wanted to write"))
    assert len(build(Folder(folder), tmp_path / "cache")[0].rows) == 7


def test_check_finds_what_is_damaged(folder: Path, tmp_path: Path) -> None:
    build(Folder(folder), tmp_path / "cache")
    (store,) = packed.Store.all(tmp_path / "cache")
    assert store.check(2) == (7, 0)
    _flip("rows.u8", 4 * ROW + 7)(store.folder)
    _flip("rows.u8", 6 * ROW)(store.folder)
    assert store.check(2) == (5, 2)
    assert store.check(2) == (5, 0), "they are marked, and made again by the next run"
    _cut("rows.u8", 6 * ROW)(store.folder)
    assert store.check(2) == (5, 1), "what was cut off is damaged, too"
    dataset = Folder(folder)
    build(dataset, tmp_path / "cache")
    assert sorted(dataset.decoded) == [4, 6] and store.check(1) == (7, 0) and store.num_rows == 7


def test_what_is_being_added_to_is_not_cleared(folder: Path, tmp_path: Path) -> None:
    build(Folder(folder), tmp_path / "cache")
    (store,) = packed.Store.all(tmp_path / "cache")
    with store.locked(pytest.fail), pytest.raises(UserError, match="another process is decoding"):
        store.clear()
    assert len(store.records()) == 7


def test_a_wrong_shape_is_a_bug_of_the_data_set(folder: Path, tmp_path: Path) -> None:
    dataset = Folder(folder)
    dataset.read = lambda index: np.zeros((SIZE, SIZE), np.uint8)  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"Folder.read gave uint8 \(6, 6\) for 0.png, not uint8 \(6, 6, 3\)"):
        build(dataset, tmp_path / "cache")


def test_real_photographs_are_packed(real_data: Path, tmp_path: Path) -> None:
    class Photographs(Folder):
        def __init__(self, data_dir: Path) -> None:
            super().__init__(data_dir, ("crop_retina", "clahe"), 64)
            self.paths = sorted(data_dir.rglob("*.jpg"))[::60]
            self.samples = [Sample(0, path.name, 0, path.name) for path in self.paths]

    pack, _ = build(Photographs(real_data / "DR"), tmp_path / "cache")
    assert pack.rows.shape == (15, 64, 64, 3) and pack.unreadable == []
    assert (everything(pack)[:, 32, 32].max(axis=1) > 30).all(), "a retina is in the middle of each"
