"""Packs of small folders: what is in them, when they are found again, and what is left when things fail."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
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


def test_rows_are_what_the_data_set_reads_in_the_order_asked_for(folder: Path, tmp_path: Path) -> None:
    dataset, order = Folder(folder), [5, 0, 3, 6]
    pack, _ = build(dataset, tmp_path / "deep" / "cache", order)
    np.testing.assert_array_equal(pack.rows, np.stack([dataset.read(i) for i in order]))
    assert pack.rows.dtype == np.uint8 and pack.rows.shape == (4, SIZE, SIZE, 3)
    assert pack.indices.tolist() == order and pack.indices.dtype == np.int64
    assert pack.contents == [digest(folder / f"{i}.png") for i in order] and pack.unreadable == []
    with pytest.raises(ValueError, match="read-only"):
        pack.rows[0] = 0
    (path,) = packs(tmp_path / "deep" / "cache")
    assert path.name.startswith("Folder-") and sorted(os.listdir(path)) == ["index.json", "rows.npy"]
    np.testing.assert_array_equal(np.load(path / "rows.npy", mmap_mode="r"), pack.rows)


def test_a_pack_is_found_again_without_decoding(folder: Path, tmp_path: Path) -> None:
    first, _ = build(Folder(folder), tmp_path / "cache")
    dataset = Folder(folder)
    again, reports = build(dataset, tmp_path / "cache")
    assert dataset.decoded == []
    np.testing.assert_array_equal(first.rows, again.rows)
    assert first.contents == again.contents and first.indices.tolist() == again.indices.tolist()
    assert len(reports) == 1 and reports[0].startswith("found 7 decoded images")


def test_the_key_follows_files_and_settings(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build(Folder(folder), cache)
    assert len(packs(cache)) == 1
    for count, other in enumerate(
        [Folder(folder, ("gray_ntsc",)), Folder(folder, ("clahe",)), Folder(folder, image_size=SIZE + 1)], start=2
    ):
        build(other, cache)
        assert len(packs(cache)) == count
    build(Folder(folder), cache, [1, 0])
    build(Folder(folder), cache, [0, 1])
    assert len(packs(cache)) == 6

    for name, version in (("Other", 1), ("Other", 2)):
        build(type(name, (Folder,), {"version": version})(folder), cache)
    assert len(packs(cache)) == 8
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "4.png")
    pack, _ = build(Folder(folder), cache)
    assert len(packs(cache)) == 9
    assert (pack.rows[4] == [1, 2, 3]).all()


def test_a_pack_is_found_under_other_indices(folder: Path, tmp_path: Path) -> None:
    build(Folder(folder), tmp_path / "cache", [3, 4])
    (folder / "0.png").unlink()
    dataset = Folder(folder)
    pack, _ = build(dataset, tmp_path / "cache", [2, 3])
    assert dataset.decoded == [] and pack.indices.tolist() == [2, 3]


def test_unreadable_images_are_left_out_named_and_not_tried_again(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "4.png").unlink()
    (folder / "4.png").symlink_to("nowhere")
    dataset = Folder(folder)
    pack, reports = build(dataset, tmp_path / "cache")
    assert pack.indices.tolist() == [0, 1, 3, 5, 6]
    np.testing.assert_array_equal(pack.rows, np.stack([dataset.read(i) for i in pack.indices]))
    expected = [("2.png", "damaged: image file is truncated"), ("4.png", "a link to a file that does not exist")]
    assert pack.unreadable == expected
    assert "left out 2" in reports[0]
    again = Folder(folder)
    assert build(again, tmp_path / "cache")[0].unreadable == expected and again.decoded == []
    (folder / "2.png").write_bytes(whole)
    mended = Folder(folder)
    assert build(mended, tmp_path / "cache")[0].indices.tolist() == [0, 1, 2, 3, 5, 6]


@pytest.mark.parametrize("text", ["not an image", None])
def test_nothing_readable_gives_no_rows(folder: Path, tmp_path: Path, text: str | None) -> None:
    for path in folder.iterdir():
        path.unlink()
        path.write_text(text) if text else path.symlink_to("nowhere")
    for _ in range(2):
        pack, _ = build(Folder(folder), tmp_path / "cache")
        assert pack.rows.shape == (0, SIZE, SIZE, 3) and len(pack.unreadable) == 7 and pack.indices.shape == (0,)
    assert build(Folder(folder), tmp_path / "cache", [])[0].unreadable == []


def _shorten(path: Path) -> None:
    with open(path / "rows.npy", "r+b") as file:
        file.truncate(packed._HEADER_BYTES + 10)


def _lengthen(path: Path) -> None:
    with open(path / "rows.npy", "ab") as file:
        file.write(b"x")


def _other_header(path: Path) -> None:
    rows = np.load(path / "rows.npy")
    np.save(path / "rows.npy", rows.reshape(7, SIZE * SIZE, 3, 1))


def _edit(**changes: object):
    def edit(path: Path) -> None:
        index = json.loads((path / "index.json").read_text())
        (path / "index.json").write_text(json.dumps(index | changes))

    return edit


@pytest.mark.parametrize(
    "spoil",
    [
        _shorten,
        _lengthen,
        _other_header,
        _edit(key="0"),
        _edit(positions=[0, 1, 2, 3, 4, 5, 5]),
        _edit(positions=None),
        lambda path: (path / "index.json").write_text("{"),
        lambda path: (path / "index.json").write_text("[]"),
        lambda path: (path / "index.json").unlink(),
        lambda path: (path / "rows.npy").unlink(),
        lambda path: (path / "rows.npy").write_bytes(b"\0" * (path / "rows.npy").stat().st_size),
    ],
)
def test_a_damaged_pack_is_reported_and_built_again(folder: Path, tmp_path: Path, spoil) -> None:
    cache = tmp_path / "cache"
    expected = np.array(build(Folder(folder), cache)[0].rows)
    (path,) = packs(cache)
    spoil(path)
    pack, reports = build(Folder(folder), cache)
    np.testing.assert_array_equal(pack.rows, expected)
    assert f"{path} is damaged" in reports[0] and "building it again" in reports[0]
    assert packs(cache) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_no_pack(folder: Path, tmp_path: Path, error: type[BaseException]) -> None:
    dataset, cache = Folder(folder), tmp_path / "cache"
    dataset.read = lambda index: _raise(error) if index == 5 else Folder.read(dataset, index)  # type: ignore
    with pytest.raises(error):
        build(dataset, cache)
    assert packs(cache) == []
    assert len(build(Folder(folder), cache)[0].rows) == 7


def _raise(error: type[BaseException]) -> np.ndarray:
    raise error("stop")


def test_a_killed_build_leaves_no_pack_and_does_not_block_the_next(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_packed as t
dataset = t.Folder(Path({str(folder)!r}))
dataset.read = lambda index: print("in", flush=True) or time.sleep(60) if index == 5 else t.Folder.read(dataset, index)
t.build(dataset, Path({str(cache)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        reports: list[str] = []
        waiting = threading.Thread(target=lambda: packed.pack(Folder(folder), range(7), cache, 1, reports.append))
        waiting.start()
        try:
            assert wait_for(reports).startswith("waiting for another process")
            assert all(path.name.endswith(".part") for path in packs(cache))
        finally:
            process.send_signal(signal.SIGKILL)
        waiting.join(10)
    assert len(reports) == 2 and reports[1].startswith("decoded 7")
    (path,) = packs(cache)
    assert not path.name.endswith(".part")


def test_who_waited_takes_what_the_other_built(folder: Path, tmp_path: Path) -> None:
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


def test_too_little_room_is_said_before_decoding(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    dataset = Folder(folder)
    with pytest.raises(UserError, match=r"7 decoded images of 6 x 6 x 3 need 67 MB, .* 3 MB free.*cache_dir=<folder>"):
        build(dataset, tmp_path / "cache")
    assert dataset.decoded == []


def test_an_unwritable_cache_is_a_user_error(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(UserError, match="can't write decoded images to .*cache_dir=<folder>"):
            build(Folder(folder), cache)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match="No space left on device.*cache_dir=<folder>"):
        build(Folder(folder), tmp_path / "cache")
    assert packs(tmp_path / "cache") == []


def test_a_readonly_cache_still_serves_its_packs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(Folder(folder), tmp_path / "cache")
    monkeypatch.setattr(packed._Store, "locked", lambda self, report: pytest.fail("wanted to write"))
    assert len(build(Folder(folder), tmp_path / "cache")[0].rows) == 7


def test_a_wrong_shape_is_a_bug_of_the_data_set(folder: Path, tmp_path: Path) -> None:
    dataset = Folder(folder)
    dataset.read = lambda index: np.zeros((SIZE, SIZE), np.uint8)  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"Folder.read gave uint8 \(6, 6\) for 0.png, not uint8 \(6, 6, 3\)"):
        build(dataset, tmp_path / "cache")


def test_only_a_few_images_are_decoded_ahead() -> None:
    started: list[int] = []
    results = packed._in_order(lambda i: started.append(i) or i, range(100), 2, "")
    assert next(results) == 0
    time.sleep(0.1)
    assert len(started) <= 10
    assert list(results) == list(range(1, 100))


def test_real_photographs_are_packed(real_data: Path, tmp_path: Path) -> None:
    class Photographs(Folder):
        def __init__(self, data_dir: Path) -> None:
            super().__init__(data_dir, ("crop_retina", "clahe"), 64)
            self.paths = sorted(data_dir.rglob("*.jpg"))[::60]
            self.samples = [Sample(0, path.name, 0, path.name) for path in self.paths]

    pack, _ = build(Photographs(real_data / "DR"), tmp_path / "cache")
    assert pack.rows.shape == (15, 64, 64, 3) and pack.unreadable == []
    assert (pack.rows[:, 32, 32].max(axis=1) > 30).all(), "a retina is in the middle of each"
