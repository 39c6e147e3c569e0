"""Decode once: the readable images of a data set, preprocessed, as uint8 rows on disk.

    pack = packed.pack(dataset, indices, cache_dir, num_workers, report)
    pack.rows[[3, 5]]               # uint8 (2, H, W, C), images pack.indices[[3, 5]] of the data set

For a run on masks, `pack.masks` has the plane of every image beside it (see `masks`).

    <cache_dir>/<data set>-<key>/rows.u8     one image after the other, each H x W x C bytes; only ever appended to
                                 masks.u8    likewise one plane of H x W bytes, where there are masks
                                 index       what is in each row, and its checksum (`_RECORD`)
                                 about.json  what the rows were made by, for people

The key is what the rows are made by: the data set's class, its preprocessing, and the kinds of masks. A row is found
by what it is made of, a digest of the image and of its masks. So a subset and the whole set, two folders and two runs
share rows; a file that changes is decoded again, and no other; and packing that was stopped, killed or out of room goes
on where it was. A row that is missing, whether it did not fit on the disk or its bytes are damaged, is decoded from its
file whenever it is asked for. An image that can't be read is left out and reported, never replaced; whether that stops
the run is the caller's business, and so is which rows make a batch (`loaders`).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from domainbed.datasets import images, preprocess
from domainbed.datasets.base import Dataset
from domainbed.datasets.images import UnreadableImage, digests_remembered_in
from domainbed.datasets.masks import MaskClasses
from domainbed.datasets.threads import in_threads
from domainbed.errors import UserError
from domainbed.files import write_atomically

if TYPE_CHECKING:
    from domainbed.datasets.vectors import Vectors

FORMAT = 2
ROWS, MASKS, INDEX, ABOUT = "rows.u8", "masks.u8", "index", "about.json"
#: Where a row's record is kept whole: 128 bits of the SHA-256 of what it is made of, and a CRC-32 of its bytes in each
#: file. All zeros: the row was found damaged, and is not to be used.
_RECORD = np.dtype([("head", "<u8"), ("tail", "<u8"), (ROWS, "<u4"), (MASKS, "<u4")])
_SPARE_BYTES = 64 << 20  # beside the rows: index, digests, and what others write meanwhile
_COMMIT_BYTES, _COMMIT_SECONDS = 256 << 20, 5.0  # at most so much is lost when packing is killed


@dataclass(frozen=True)
class Pack:
    """The readable images among those asked for.

    Attributes:
        rows: of N images, (H, W, C) each, or vectors, (F,) each; N may be 0.
        indices: int64 (N,) index into the data set of every row, in the order asked for.
        contents: `dataset.content` of every row.
        unreadable: (name, reason) of the images left out, in the order asked for.
        masks: of the planes (H, W) of every row; None unless asked for.
        mask_contents: `dataset.mask_content` of every row; empty strings unless asked for.
    """

    rows: "Rows | Vectors"
    indices: np.ndarray
    contents: list[str]
    unreadable: list[tuple[str, str]]
    masks: "Rows | None"
    mask_contents: list[str]


class Rows:
    """Arrays of one shape, read from disk when they are asked for: `rows[7]`, `rows[[7, 8]]`, `rows[2:9]`.

    A row's checksum is compared whenever it is read. One that is damaged, or that the disk fails to give, is decoded
    from its file from then on, as one is that isn't on the disk. Any thread may read.

    Args:
        file: of the pack, where anything is in it. row_shape: of one row.
        positions: (N,) int64 place of each row in the file; -1 for one that is not there.
        checksums: (N,) CRC-32 of each.
        decode: returns a row by its number, from its file.
        damaged: is told the number of a row whose bytes are not those that were written.
        num_workers: threads that decode.

    Attributes:
        shape: (N, *row_shape).
    """

    def __init__(
        self,
        file: Path,
        row_shape: tuple[int, ...],
        positions: np.ndarray,
        checksums: np.ndarray,
        decode: Callable[[int], np.ndarray],
        damaged: Callable[[int], None],
        num_workers: int,
    ) -> None:
        self.shape, self._row_shape = (len(positions), *row_shape), row_shape
        self._positions, self._checksums = positions.copy(), checksums
        self._row_bytes = int(np.prod(row_shape))
        self._decode, self._damaged, self._num_workers = decode, damaged, num_workers
        self._file: int | None = None
        # read, not memory-mapped: where a mapped file is cut short, the process is killed
        with contextlib.suppress(OSError):
            self._file = os.open(file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> np.ndarray:
        """Return uint8 (H, W, …) of one row, or (B, H, W, …) of several, as an array of the caller's own.

        Raises:
            IndexError: there is no such row.
            UserError: a row that has to be decoded can't be, or its image has changed.
        """
        if isinstance(wanted, (int, np.integer)):
            return self[[wanted]][0]
        chosen = np.arange(len(self))[wanted] if isinstance(wanted, slice) else np.asarray(wanted)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        if len(chosen) and not -len(self) <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows {chosen.min()} to {chosen.max()} of {len(self)}")
        chosen = np.where(chosen < 0, chosen + len(self), chosen)
        found = np.empty((len(chosen), *self._row_shape), dtype=np.uint8)
        absent = [at for at, row in enumerate(chosen.tolist()) if not self._read(row, found[at])]
        if absent:
            with ThreadPoolExecutor(self._num_workers) as threads:
                for at, row in zip(absent, threads.map(self._decode, chosen[absent].tolist()), strict=True):
                    found[at] = row
        return found

    def _read(self, row: int, into: np.ndarray) -> bool:
        """Fill an array from the disk; return whether its bytes were there, and those that were written."""
        position = int(self._positions[row])
        if position < 0 or self._file is None:
            return False
        with contextlib.suppress(OSError):
            count = os.preadv(self._file, [into.data], position * self._row_bytes)
            if count == self._row_bytes and zlib.crc32(into.data) == self._checksums[row]:
                return True
        self._positions[row] = -1
        self._damaged(row)
        return False


def pack(
    dataset: Dataset,
    indices: Sequence[int],
    cache_dir: Path,
    num_workers: int,
    report: Callable[[str], None],
    mask_classes: MaskClasses | None = None,
) -> Pack:
    """Return the images `indices` of `dataset` from `cache_dir`, decoding those first that aren't there yet.

    Two processes that want the same images decode them once. Where the disk has too little room for what is missing,
    that is said, nothing is written, and it is decoded whenever it is asked for.

    Args:
        dataset: its `content`, `read`, `mask_content` and `read_mask` are called from several threads.
        indices: of the images; every one becomes a row or an entry of `unreadable`.
        cache_dir: made if it does not exist.
        num_workers: threads; 0 counts as 1.
        report: is given a line on what was found, built, is waited for, or is damaged; by any thread.
        mask_classes: what the masks hold, as `dataset.chosen_masks` returned it; None for no masks.

    Raises:
        UserError: the folder can't be written, or the disk is full.
    """
    cache_dir, num_workers = Path(cache_dir), max(1, num_workers)
    with _writing_to(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    source = _Source(dataset, np.asarray(indices, dtype=np.int64), mask_classes)
    store = Store.of(dataset, mask_classes, cache_dir)
    with digests_remembered_in(cache_dir / "digests"):
        source.look(num_workers)
        for fault in (faults := store.faults()):
            report(f"{store.folder} is damaged: {fault}")
        missing = source.missing(store.find(source.keys))
        if faults and not missing:  # whoever adds to a store mends it
            store.mend()
        with store.locked(report) if store.may_write and missing else contextlib.nullcontext():
            places = store.find(source.keys)  # another process may have decoded what was missing
            if found := int((places >= 0).sum()):
                report(f"found {found} decoded images in {store.folder}")
            if missing := source.missing(places):
                store.add(source, missing, num_workers, report)
                places = store.find(source.keys)
    source.keys = source.keys[:0]  # looked up, and not needed any more
    return source.pack(store, places, num_workers, report)


class _Source:
    """The images that are asked for, as the data set has them. A position is a place in the list of indices.

    Attributes:
        contents, mask_contents: of every position.
        keys: (M, 2) uint64, what is looked up in the store.
        reasons: why there is no row, by position.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray, mask_classes: MaskClasses | None) -> None:
        self.dataset, self.indices, self.mask_classes = dataset, indices, mask_classes
        self.contents: list[str] = []
        self.mask_contents: list[str] = []
        self.keys = np.zeros((0, 2), dtype=np.uint64)
        self.reasons: dict[int, str] = {}

    def look(self, num_workers: int) -> None:
        """Find out what every image and mask holds, without decoding it."""
        digests = bytearray()
        looked = in_threads(self._content, range(len(self.indices)), num_workers, "looking at images", at_once=16)
        for position, (content, mask_content, reason) in enumerate(looked):
            self.contents.append(content)
            self.mask_contents.append(mask_content)
            digests += hashlib.sha256(f"{content}\n{mask_content}".encode()).digest()[:16]
            if reason:
                self.reasons[position] = reason
        self.keys = np.frombuffer(bytes(digests), dtype="<u8").reshape(-1, 2)

    def _content(self, position: int) -> tuple[str, str, str]:
        """Return an image's content, that of its masks, and why it has none."""
        index, classes = int(self.indices[position]), self.mask_classes
        try:
            return self.dataset.content(index), self.dataset.mask_content(index, classes.names) if classes else "", ""
        except UnreadableImage as error:
            return "", "", str(error)

    def missing(self, places: np.ndarray) -> list[int]:
        """Return the positions that have to be decoded: of images that are the same, the first."""
        first: dict[bytes, int] = {}
        for position in np.flatnonzero(places < 0).tolist():
            if position not in self.reasons:
                first.setdefault(self.keys[position].tobytes(), position)
        return list(first.values())

    def read(self, position: int) -> list[np.ndarray] | str:
        """Return the image, and its plane where there are masks; or the reason why there is none."""
        index, (channels, height, width) = int(self.indices[position]), self.dataset.input_shape
        try:
            arrays = {"read": self.dataset.read(index)}
            if self.mask_classes is not None:
                arrays["read_mask"] = self.dataset.read_mask(index, self.mask_classes)
        except UnreadableImage as error:
            return str(error)
        if self._content(position)[:2] != (self.contents[position], self.mask_contents[position]):
            return "it has changed since it was looked at"
        for (method, array), shape in zip(arrays.items(), [(height, width, channels), (height, width)], strict=False):
            if array.shape != shape or array.dtype != np.uint8:
                name, cls = self.dataset.samples[index].name, type(self.dataset).__name__
                raise TypeError(f"{cls}.{method} gave {array.dtype} {array.shape} for {name}, not uint8 {shape}")
        return [np.ascontiguousarray(array) for array in arrays.values()]

    def pack(self, store: "Store", places: np.ndarray, num_workers: int, report: Callable[[str], None]) -> Pack:
        """Return what can be read, with the rows of a store for what is in it."""
        kept = np.setdiff1d(np.arange(len(self.indices)), list(self.reasons))
        places = places[kept]
        records = store.records()

        def of_kept(values: list[str]) -> list[str]:
            return [values[position] for position in kept] if self.reasons else values  # not a copy of a long list

        def name(row: int) -> str:
            return self.dataset.samples[self.indices[kept[row]]].name

        def decode(row: int, part: int) -> np.ndarray:
            """Return part 0, the image, or 1, its plane, of a row that is not in the store."""
            arrays = self.read(int(kept[row]))
            if isinstance(arrays, str):
                raise UserError(
                    f"{name(row)} was readable when the run began, and is not as it was: {arrays}. Put it back and go "
                    "on with --resume, or start another run"
                )
            return arrays[part]

        def damaged(row: int) -> None:
            report(
                f"WARNING: the decoded copy of {name(row)} in {store.folder} is damaged: decoding its file instead, "
                "and again for the next run. Several of these mean that the disk is failing"
            )
            store.void(int(places[row]))

        def rows(part: int, file: str) -> Rows:
            checksums = records[file][np.maximum(places, 0)] if len(records) else np.zeros(len(places), np.uint32)
            return Rows(
                store.folder / file, store.row_shapes[file], places, checksums,
                lambda row: decode(row, part), damaged, num_workers,
            )  # fmt: skip

        return Pack(
            rows=rows(0, ROWS),
            indices=self.indices[kept],
            contents=of_kept(self.contents),
            unreadable=[(self.dataset.samples[self.indices[at]].name, self.reasons[at]) for at in sorted(self.reasons)],
            masks=rows(1, MASKS) if self.mask_classes else None,
            mask_contents=of_kept(self.mask_contents),
        )


class Store:
    """One folder of rows that were made alike.

    Args:
        folder: of the store, there or not.
        about: what the rows are made by, in words, as about.json has it.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about
        #: Shape of one row in each of the store's files.
        self.row_shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in about["rows"].items()}
        #: Bytes of one row in each of them.
        self.sizes = {name: int(np.prod(shape)) for name, shape in self.row_shapes.items()}

    @classmethod
    def of(cls, dataset: Dataset, mask_classes: MaskClasses | None, cache_dir: Path) -> "Store":
        """Return the store of a data set's rows, which may not be there yet."""
        channels, height, width = dataset.input_shape
        name = dataset.name or type(dataset).__name__
        about = {
            "format": FORMAT,
            "data set": [name, type(dataset).__qualname__, dataset.version],
            "decoder": images.VERSION,
            "preprocess": [*dataset.preprocess.names, preprocess.VERSION],
            "image_size": dataset.preprocess.image_size,
            "least_side": dataset.least_side,
            "masks": [mask_classes.names, mask_classes.exclusive] if mask_classes else None,
            "rows": {ROWS: (height, width, channels), **({MASKS: (height, width)} if mask_classes else {})},
        }
        return cls(cache_dir / f"{name}-{_digest(about)}", about)

    @classmethod
    def all(cls, cache_dir: Path) -> "list[Store]":
        """Return the stores in a folder, also those of which nobody can tell any more what they hold.

        A folder is a store by its name and by holding a store's files and nothing else: others are none of ours.
        """
        ours, found = {ABOUT, f".{ABOUT}", INDEX, ROWS, MASKS}, []
        for folder in sorted(cache_dir.glob("*")):
            with contextlib.suppress(OSError):  # no folder, or not for us to look into
                named = re.fullmatch(r"[^.].*-[0-9a-f]{16}", folder.name)
                names = {path.name for path in folder.iterdir()}
                if named and names & {ABOUT, ROWS} and names <= ours:
                    found.append(cls(folder, _about(folder) or {"rows": {}}))
        return found

    @property
    def is_known(self) -> bool:
        """Whether about.json says what the rows are; where it does not, the store can be cleared and no more."""
        return bool(self.row_shapes)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in all files."""
        return sum(self.sizes.values()) + _RECORD.itemsize

    @property
    def may_write(self) -> bool:
        """Whether images can be added."""
        return os.access(self.folder.parent, os.W_OK)

    def records(self) -> np.ndarray:
        """Return the records, (N,) of `_RECORD`, of all rows that are on the disk whole."""
        try:
            found = np.fromfile(self.folder / INDEX, dtype=_RECORD)  # leaves out one that is half written
        except OSError:
            return np.zeros(0, _RECORD)
        return found[: min(self._size(name) // row_bytes for name, row_bytes in self.sizes.items())]

    def lost(self, records: np.ndarray) -> int:
        """Return how many rows the index names beyond `records()`, because a file was cut short."""
        return max(0, self._size(INDEX) // _RECORD.itemsize - len(records))

    def faults(self) -> list[str]:
        """Return what is wrong with a store that is there, but for single rows, in words."""
        if not self.folder.is_dir():
            return []
        found, records = [], self.records()
        if lost := self.lost(records):
            found.append(f"{lost} images are not there whole, and are decoded again when they are wanted")
        if len(records) and _about(self.folder) is None:
            found.append(f"{ABOUT} is not what it was, and is written again")
        return found

    def mend(self) -> None:
        """Take out what is not there whole, and write about.json; where that can't be, every run finds out anew."""
        with contextlib.suppress(OSError), self._lock_file() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.make_whole()

    def make_whole(self) -> None:
        """Make the files that are missing, and cut off what is not there whole. Whoever calls holds the lock."""
        count = len(self.records())
        self.folder.mkdir(exist_ok=True)
        if _about(self.folder) is None:
            with write_atomically(self.folder / ABOUT) as draft:
                draft.write_text(json.dumps(self.about, indent=1), encoding="utf-8")
        for name, row_bytes in (self.sizes | {INDEX: _RECORD.itemsize}).items():
            with open(self.folder / name, "ab") as file:
                file.truncate(count * row_bytes)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return (M,) int64 row of each key (M, 2), -1 where there is none."""
        records = self.records()
        if not len(records):
            return np.full(len(keys), -1, dtype=np.int64)
        order = np.argsort(records["head"], kind="stable")
        # of rows with one key, the last: an earlier one may have been lost and made again
        at = np.searchsorted(records["head"], keys[:, 0], side="right", sorter=order) - 1
        rows = order[np.maximum(at, 0)]
        there = (records["head"][rows] == keys[:, 0]) & (records["tail"][rows] == keys[:, 1])
        return np.where(there, rows, -1)

    def add(self, source: _Source, missing: list[int], num_workers: int, report: Callable[[str], None]) -> None:
        """Decode images and append them; those that can't be read are added to `source.reasons`.

        What is written stays, however this ends. Whoever calls holds the lock.
        """
        needed = len(missing) * self.row_bytes + _SPARE_BYTES
        free = shutil.disk_usage(self.folder.parent).free
        to_disk = self.may_write and needed <= free
        if not to_disk:
            why = f"has {size_text(free)} free" if self.may_write else "can't be written"
            report(
                f"WARNING: {len(missing)} decoded images need {size_text(len(missing) * self.row_bytes)}, and "
                f"{size_text(_SPARE_BYTES)} are to stay free, but {self.folder.parent} {why}: "
                "they are decoded each time they are asked for, which is slow. Make room, or name another folder with "
                "cache_dir=<folder>"
            )
        started, count, doing = time.monotonic(), 0, "decoding images" if to_disk else "checking images"
        with contextlib.ExitStack() as stack:
            images = in_threads(source.read, missing, num_workers, doing)
            stack.enter_context(contextlib.closing(images))  # ends its threads if writing fails
            writer = None
            if to_disk:
                with _writing_to(self.folder.parent):
                    writer = stack.enter_context(_Writer(self))
            for position, arrays in zip(missing, images, strict=True):
                if isinstance(arrays, str):
                    same = (source.keys == source.keys[position]).all(axis=1)
                    source.reasons |= dict.fromkeys(np.flatnonzero(same).tolist(), arrays)
                elif writer is not None:
                    with _writing_to(self.folder.parent):
                        writer.append(source.keys[position], arrays)
                    count += 1
            if writer is not None:
                with _writing_to(self.folder.parent):
                    writer.commit()
        left_out = len(missing) - count
        if writer is not None:
            unread = f", left out {left_out} that can't be read" if left_out else ""
            report(f"decoded {count} images in {time.monotonic() - started:.0f} s{unread}")

    def void(self, position: int) -> None:
        """Mark a row as not to be used; where that can't be written, every run finds out anew."""
        with contextlib.suppress(OSError), open(self.folder / INDEX, "r+b", buffering=0) as index:
            os.pwrite(index.fileno(), bytes(_RECORD.itemsize), position * _RECORD.itemsize)

    def check(self, num_workers: int) -> tuple[int, int]:
        """Read everything; mark damaged rows as not to be used. Return the number of good rows, and of damaged ones.

        Rows that are not there whole count as damaged, too.
        """
        records = self.records()
        used = _in_use(records)
        bad: set[int] = set()

        def no_file(row: int) -> np.ndarray:
            return np.zeros((), np.uint8)

        for name, shape in self.row_shapes.items():
            rows = Rows(self.folder / name, shape, used, records[name][used], no_file, bad.add, 1)
            for _ in in_threads(rows.__getitem__, range(len(used)), num_workers, f"checking {self.folder.name}"):
                pass
        for row in bad:
            self.void(int(used[row]))
        return len(used) - len(bad), len(bad) + self.lost(records)

    def clear(self) -> None:
        """Delete the store.

        Raises:
            UserError: another process is adding to it; or it can't be deleted.
        """
        with contextlib.suppress(FileNotFoundError), _writing_to(self.folder.parent), self._lock_file() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is decoding images into {self.folder}. Wait until it ends, or stop it"
                ) from None
            shutil.rmtree(self.folder)

    @property
    def num_rows(self) -> int:
        """Rows that are on the disk whole, and in use."""
        return len(_in_use(self.records()))

    @property
    def num_bytes(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*"))

    @contextlib.contextmanager
    def locked(self, report: Callable[[str], None]) -> Iterator[None]:
        """Hold this store's lock; it goes with the process that holds it, however that ends."""
        with contextlib.ExitStack() as stack:
            with _writing_to(self.folder.parent):
                lock = stack.enter_context(self._lock_file())
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    report(f"waiting for another process that is decoding images into {self.folder}")
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _lock_file(self) -> IO[str]:
        return open(self.folder.with_name(f"{self.folder.name}.lock"), "w")

    def _size(self, name: str) -> int:
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return 0


def _about(folder: Path) -> Any:
    """Return what about.json of a store says; None where it is missing, damaged, or of another version."""
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    made_here = folder.name.endswith(f"-{_digest(found)}") and found["format"] == FORMAT
    return found if made_here else None


def _digest(about: dict[str, Any]) -> str:
    """Return what the name of a store's folder ends in."""
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _in_use(records: np.ndarray) -> np.ndarray:
    """Return the places of records that were not marked as damaged."""
    return np.flatnonzero(records != np.zeros((), _RECORD))


class _Writer:
    """Appends to a store. A row counts once it is committed: first its bytes are on the disk, then its record.

    However the `with` ends, whole rows are committed, if the disk still takes them.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.pending: list[tuple[int, ...]] = []
        self.committed_at = time.monotonic()
        self.stack = contextlib.ExitStack()
        self.files: list[IO[bytes]] = []

    def __enter__(self) -> "_Writer":
        self.store.make_whole()
        for name in (*self.store.sizes, INDEX):
            self.files.append(self.stack.enter_context(open(self.store.folder / name, "ab")))
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # a full disk is full now, too; the error that is on its way says so
            self.commit()
        with contextlib.suppress(OSError):
            self.stack.close()

    def append(self, key: np.ndarray, arrays: list[np.ndarray]) -> None:
        """Write a row."""
        for file, array in zip(self.files[:-1], arrays, strict=True):
            file.write(array.data)
        checksums = [zlib.crc32(array.data) for array in arrays]
        self.pending.append((int(key[0]), int(key[1]), checksums[0], checksums[-1]))
        enough = len(self.pending) * self.store.row_bytes >= _COMMIT_BYTES
        if enough or time.monotonic() - self.committed_at > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make what was appended last."""
        *files, index = self.files
        for file in files:
            _flush(file)
        index.write(np.array(self.pending, dtype=_RECORD).tobytes())
        _flush(index)
        self.pending, self.committed_at = [], time.monotonic()


@contextlib.contextmanager
def _writing_to(cache_dir: Path) -> Iterator[None]:
    """Turn any error of the disk into a `UserError`: unlike a run's folder, the cache can simply be another one."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"can't write decoded images to {cache_dir}: {reason}. What is decoded so far is kept. Make room, or name "
            "another folder with cache_dir=<folder>"
        ) from None


def _flush(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())


def size_text(num_bytes: float) -> str:
    """Return a number of bytes for people: "9 kB", "512 MB", "1.5 GB"."""
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:.0f} kB"
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
