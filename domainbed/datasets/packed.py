"""Decode once: the readable images of a data set, preprocessed, as one uint8 array on disk.

    pack = packed.pack(dataset, indices, cache_dir, num_workers, report)
    pack.rows[3]                    # uint8 (H, W, C), image pack.indices[3] of the data set

For a run on masks, `pack.masks` has the plane of every image beside it (see `masks`).

A pack is found again by what is in it: the data set's class, its preprocessing, and a digest of every image; with
masks, also of what they hold. An image that can't be read, or whose mask can't, is left out and reported, never
replaced; whether that stops the run is the caller's business, and so is which rows make a batch (`loaders`).
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from tqdm import tqdm

from domainbed.datasets import preprocess
from domainbed.datasets.base import Dataset
from domainbed.datasets.images import UnreadableImage, digests_remembered_in
from domainbed.datasets.masks import MaskClasses
from domainbed.errors import UserError

FORMAT = 1
_UNREADABLE = "unreadable"
_HEADER_BYTES = 128
_SPARE_BYTES = 64 << 20  # beside the rows: index, digests, and what else is written while a pack is built

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pack:
    """The readable images among those asked for.

    Attributes:
        rows: uint8 (N, H, W, C), read-only, on disk; N may be 0.
        indices: int64 (N,) index into the data set of every row, in the order asked for.
        contents: `dataset.content` of every row.
        unreadable: (name, reason) of the images left out, in the order asked for.
        masks: uint8 (N, H, W) plane of every row, read-only, on disk; None unless asked for.
        mask_contents: `dataset.mask_content` of every row; empty strings unless asked for.
    """

    rows: np.ndarray
    indices: np.ndarray
    contents: list[str]
    unreadable: list[tuple[str, str]]
    masks: np.ndarray | None
    mask_contents: list[str]


def pack(
    dataset: Dataset,
    indices: Sequence[int],
    cache_dir: Path,
    num_workers: int,
    report: Callable[[str], None],
    mask_classes: MaskClasses | None = None,
) -> Pack:
    """Return the images `indices` of `dataset` from `cache_dir`, decoding them first where they aren't there yet.

    A pack is the folder `<cache_dir>/<data set>-<key>/` with `rows.npy`, `masks.npy` where there are masks, and
    `index.json`; any of them may be deleted. It appears whole or not at all, and two processes that want the same one
    build it once.

    Args:
        dataset: its `content`, `read`, `mask_content` and `read_mask` are called from several threads.
        indices: of the images; every one becomes a row or an entry of `unreadable`.
        cache_dir: made if it does not exist.
        num_workers: threads; 0 counts as 1.
        report: is given a line on what was found, built, or is waited for.
        mask_classes: what the masks hold, as `dataset.chosen_masks` returned it; None for no masks.

    Raises:
        UserError: the folder can't be written, or the disk has too little room.
    """
    indices, cache_dir = [int(index) for index in indices], Path(cache_dir)
    with _writing_to(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    with digests_remembered_in(cache_dir / "digests.json"):
        found = list(
            _in_order(lambda index: _content(dataset, index, mask_classes), indices, num_workers, "looking at images")
        )
    contents, mask_contents = [content for content, _, _ in found], [content for _, content, _ in found]
    store = _Store(dataset, indices, contents, cache_dir, mask_classes, mask_contents)
    opened = store.open(report)
    if opened is None:
        with store.locked(report):
            opened = store.open(report) or store.build(num_workers, report)
    (rows, *masks), positions, reasons = opened
    reasons |= {str(position): reason for position, (_, _, reason) in enumerate(found) if reason}
    return Pack(
        rows=rows,
        indices=np.array([indices[position] for position in positions], dtype=np.int64),
        contents=[contents[position] for position in positions],
        unreadable=[(dataset.samples[indices[int(at)]].name, reasons[at]) for at in sorted(reasons, key=int)],
        masks=masks[0] if masks else None,
        mask_contents=[mask_contents[position] for position in positions],
    )


# rows (N, H, W, C), and masks (N, H, W) where there are any; the positions of the rows in the list of indices; the
# reason for every position that has no row.
_Opened = tuple[list[np.ndarray], list[int], dict[str, str]]


class _Store:
    """One pack's folder: its key, and how it is opened and built."""

    def __init__(
        self,
        dataset: Dataset,
        indices: list[int],
        contents: list[str],
        cache_dir: Path,
        mask_classes: MaskClasses | None,
        mask_contents: list[str],
    ) -> None:
        self.dataset, self.indices, self.contents, self.cache_dir = dataset, indices, contents, cache_dir
        self.mask_classes = mask_classes
        channels, height, width = dataset.input_shape
        #: Shape of one row in each of the pack's files.
        self.row_shapes: dict[str, tuple[int, ...]] = {"rows.npy": (height, width, channels)}
        if mask_classes is not None:
            self.row_shapes["masks.npy"] = (height, width)
        cls = type(dataset)
        made_by = [
            [FORMAT, preprocess.VERSION, cls.__qualname__, dataset.version],
            [list(dataset.preprocess.names), dataset.preprocess.image_size],
            contents,
            *([["masks", mask_classes.names, mask_classes.exclusive], mask_contents] if mask_classes else []),
        ]
        self.key = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()
        self.folder = cache_dir / f"{dataset.name or cls.__name__}-{self.key[:16]}"

    def open(self, report: Callable[[str], None]) -> _Opened | None:
        """Return the pack if it is there and whole; report a damaged one."""
        if not self.folder.exists():
            return None
        try:
            index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            positions, reasons = index["positions"], index["unreadable"]
            if index["key"] != self.key:
                raise ValueError("index.json belongs to another pack")
            if sorted([*positions, *map(int, reasons)]) != list(range(len(self.indices))):
                raise ValueError("index.json does not name every image once")
            arrays = [self._load(name, (len(positions), *shape)) for name, shape in self.row_shapes.items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            report(f"{self.folder} is damaged ({error}): building it again")
            return None
        report(f"found {len(positions)} decoded images in {self.folder}")
        return arrays, positions, reasons

    def _load(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return one file of the pack, memory-mapped; raise ValueError where it is not of that shape."""
        found = (self.folder / name).stat().st_size
        if found != _HEADER_BYTES + int(np.prod(shape)):
            raise ValueError(f"{name} has {found} bytes, not {_HEADER_BYTES + int(np.prod(shape))}")
        array = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError(f"{name} holds {array.dtype} {array.shape}, not uint8 {shape}")
        return array

    @contextlib.contextmanager
    def locked(self, report: Callable[[str], None]) -> Iterator[None]:
        """Hold this pack's lock; it goes with the process that holds it, however that ends."""
        with contextlib.ExitStack() as stack:
            with _writing_to(self.cache_dir):
                lock = stack.enter_context(open(self.folder.with_name(self.folder.name + ".lock"), "w"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    report(f"waiting for another process that is building {self.folder}")
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def build(self, num_workers: int, report: Callable[[str], None]) -> _Opened:
        """Decode every image into a folder beside the final one, which then takes its name."""
        draft = self.folder.with_name(self.folder.name + ".part")
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        self._check_room()
        started = time.monotonic()
        try:
            with _writing_to(self.cache_dir):
                draft.mkdir()
            positions, reasons = self._write_rows(draft, num_workers)
            with _writing_to(self.cache_dir):
                with open(draft / "index.json", "w", encoding="utf-8") as index:
                    json.dump({"key": self.key, "positions": positions, "unreadable": reasons}, index)
                    _flush(index)
                _flush_folder(draft)
                shutil.rmtree(self.folder, ignore_errors=True)
                os.rename(draft, self.folder)
                _flush_folder(self.cache_dir)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        left_out = f", left out {len(reasons)} that can't be read" if reasons else ""
        report(f"decoded {len(positions)} images in {time.monotonic() - started:.0f} s{left_out}")
        opened = self.open(lambda line: None)  # what was built is said already
        if opened is None:
            raise OSError(errno.EIO, "a pack that was just written can't be read", str(self.folder))
        return opened

    def _write_rows(self, folder: Path, num_workers: int) -> tuple[list[int], dict[str, str]]:
        """Write every readable image; return the rows' positions, and the reasons by position of the others."""
        positions: list[int] = []
        reasons: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            images = _in_order(self._read, range(len(self.indices)), num_workers, "decoding images")
            stack.enter_context(contextlib.closing(images))  # ends its threads if writing fails
            with _writing_to(self.cache_dir):
                files = [stack.enter_context(open(folder / name, "wb")) for name in self.row_shapes]
                for file, shape in zip(files, self.row_shapes.values(), strict=True):
                    file.write(_header((len(self.indices), *shape)))
            for position, arrays in enumerate(images):
                if isinstance(arrays, str):
                    reasons[str(position)] = arrays
                    continue
                with _writing_to(self.cache_dir):
                    for file, array in zip(files, arrays, strict=True):
                        file.write(array.data)
                positions.append(position)
            with _writing_to(self.cache_dir):
                for file, shape in zip(files, self.row_shapes.values(), strict=True):
                    file.seek(0)
                    file.write(_header((len(positions), *shape)))
                    _flush(file)
        return positions, reasons

    def _read(self, position: int) -> list[np.ndarray] | str:
        """Return a row of each of the pack's files, or the reason why there is none."""
        if self.contents[position] == _UNREADABLE:
            return _UNREADABLE
        index = self.indices[position]
        try:
            arrays = {"read": self.dataset.read(index)}
            if self.mask_classes is not None:
                arrays["read_mask"] = self.dataset.read_mask(index, self.mask_classes)
        except UnreadableImage as error:
            return str(error)
        for (method, array), shape in zip(arrays.items(), self.row_shapes.values(), strict=True):
            if array.shape != shape or array.dtype != np.uint8:
                name, cls = self.dataset.samples[index].name, type(self.dataset).__name__
                raise TypeError(f"{cls}.{method} gave {array.dtype} {array.shape} for {name}, not uint8 {shape}")
        return [np.ascontiguousarray(array) for array in arrays.values()]

    def _check_room(self) -> None:
        needed = len(self.indices) * sum(int(np.prod(shape)) for shape in self.row_shapes.values()) + _SPARE_BYTES
        free = shutil.disk_usage(self.cache_dir).free
        if needed > free:
            raise UserError(
                f"{len(self.indices)} decoded images of {' x '.join(map(str, self.row_shapes['rows.npy']))} need "
                f"{_size(needed)}, but {self.cache_dir} has {_size(free)} free. Make room, or name a folder on another "
                "disk with cache_dir=<folder>"
            )


@contextlib.contextmanager
def _writing_to(cache_dir: Path) -> Iterator[None]:
    """Turn any error of the disk into a `UserError`: unlike a run's folder, the cache can simply be another one."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"can't write decoded images to {cache_dir}: {reason}. Name another folder with cache_dir=<folder>"
        ) from None


def _content(dataset: Dataset, index: int, mask_classes: MaskClasses | None) -> tuple[str, str, str]:
    """Return an image's content, that of its masks, and why it has none."""
    try:
        masks = dataset.mask_content(index, mask_classes.names) if mask_classes else ""
        return dataset.content(index), masks, ""
    except UnreadableImage as error:
        return _UNREADABLE, "", str(error)


def _in_order(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int, doing: str
) -> Generator[Result, None, None]:
    """Yield `function(item)` in order, computed in threads, a few items ahead; show progress after two seconds."""
    num_workers = max(1, num_workers)
    executor = ThreadPoolExecutor(num_workers)
    ahead: deque[Future[Result]] = deque()
    terminal = os.isatty(2)
    try:
        with tqdm(total=len(items), desc=doing, unit="image", delay=2, mininterval=0.2 if terminal else 10) as bar:
            for item in items:
                ahead.append(executor.submit(function, item))
                if len(ahead) > 4 * num_workers:
                    yield ahead.popleft().result()
                    bar.update()
            while ahead:
                yield ahead.popleft().result()
                bar.update()
    finally:
        executor.shutdown(cancel_futures=True)


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the head of an .npy file (version 1.0) of uint8, as long for any shape, so that it can be written over."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    head = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return head + text.ljust(_HEADER_BYTES - 11).encode("ascii") + b"\n"


def _flush(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
