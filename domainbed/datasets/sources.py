"""Where the images of a data set lie, if not as files of their own paths: rows of arrays, or members of a zip archive.

A source has `pixels(index)`, uint8 (h, w, 3), and `content(index)`, a digest of what these pixels are read from. Both
may be called from several threads. Which image belongs to which environment is the data set's business; one whose
samples are those of a source, in its order, is a `SourceDataset`.
"""

import hashlib
import io
import threading
import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from domainbed.datasets import images
from domainbed.datasets.base import Dataset
from domainbed.datasets.images import UnreadableImage


class Source(Protocol):
    """Numbered images."""

    def pixels(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (h, w, 3)."""
        ...

    def content(self, index: int) -> str:
        """Return a digest that changes when the image does."""
        ...


class Rows:
    """Images that are rows of arrays.

    Args:
        stacks: uint8 (N, h, w) or (N, h, w, 3) each, one behind the other; memory-mapped ones stay on disk.
    """

    def __init__(self, *stacks: np.ndarray) -> None:
        self._stacks = stacks
        self._ends = list(accumulate(map(len, stacks)))

    def pixels(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (h, w, 3); grey becomes three equal channels."""
        row = self.row(index)
        return row if row.ndim == 3 else np.repeat(row[..., None], 3, axis=2)

    def content(self, index: int) -> str:
        """Return the SHA-256 of the image's values."""
        return hashlib.sha256(self.row(index).tobytes()).hexdigest()

    def row(self, index: int) -> np.ndarray:
        """Return image `index` as it is stored, in memory of its own."""
        stack = bisect_right(self._ends, index)
        return np.array(self._stacks[stack][index - self._ends[stack]], order="C")


class Files:
    """Image files below a folder.

    Args:
        root: the folder.
        names: paths relative to it.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._paths = [root / name for name in names]

    def pixels(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (h, w, 3); `UnreadableImage` if it can't be decoded whole."""
        return images.read_image(self._paths[index])

    def content(self, index: int) -> str:
        """Return the SHA-256 of the file; `UnreadableImage` if it can't be opened."""
        return images.digest(self._paths[index])


class ZipMembers:
    """Image files inside a zip archive, read where they are.

    Args:
        archive: open for reading, for as long as the images are read.
        names: of the members.
    """

    def __init__(self, archive: zipfile.ZipFile, names: Sequence[str]) -> None:
        self._archive, self._names = archive, names
        self._lock = threading.Lock()  # a ZipFile counts its readers, and does not lock the count

    def pixels(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (h, w, 3); `UnreadableImage` if it can't be decoded whole."""
        return images.read_image(io.BytesIO(self._bytes(index)))

    def content(self, index: int) -> str:
        """Return the SHA-256 of the unpacked file; `UnreadableImage` if it can't be unpacked."""
        return hashlib.sha256(self._bytes(index)).hexdigest()

    def _bytes(self, index: int) -> bytes:
        try:
            with self._lock:
                return self._archive.read(self._names[index])
        except Exception as error:  # zlib, zipfile and the system each raise their own; a password is a RuntimeError
            raise UnreadableImage(f"can't be unpacked: {error}") from error


class SourceDataset(Dataset):
    """A data set that reads sample i from number i of its source.

    Attributes:
        source: set by a subclass, with `samples`.
    """

    source: Source

    def read(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (H, W, C), preprocessed; `UnreadableImage` if it can't be decoded whole."""
        return self.preprocess(self.source.pixels(index))[0]

    def content(self, index: int) -> str:
        """Return a digest of what the image is read from; `UnreadableImage` if it can't be read."""
        return self.source.content(index)
