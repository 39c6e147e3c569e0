"""Vectors in the place of images: rows of an array file, read where they lie whenever a batch asks for them.

    vectors = take(dataset, indices)     # of a data set with `gives_vectors`
    vectors.rows[[3, 5]]                 # float32 (2, F), vectors vectors.indices[[3, 5]] of the data set

It takes the place of `packed`: there is nothing to decode, so nothing is copied, kept or left out. From here on vectors
take the way of images. Loaders draw the same rows for the same seed, and neither augment them nor divide them by 255.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domainbed.datasets.base import Dataset
from domainbed.datasets.packed import Pack
from domainbed.errors import UserError

#: Floating-point types of an array file.
TYPES = ("float16", "float32")
_CHUNK_BYTES = 64 << 20
_SHOWN = 5


class Vectors:
    """Some rows of an array, read when they are asked for: `vectors[7]`, `vectors[[7, 8]]`, `vectors[2:9]`.

    Args:
        array: (M, F) float16 or float32, memory-mapped or not.
        indices: (N,) of its rows.

    Attributes:
        shape: (N, F).
    """

    def __init__(self, array: np.ndarray, indices: np.ndarray) -> None:
        self.shape = (len(indices), array.shape[1])
        self._array, self._indices = array, indices

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> np.ndarray:
        """Return float32 (F,) of one row, or (B, F) of several, as an array of the caller's own."""
        return np.array(self._array[self._indices[wanted]], dtype=np.float32)


def open_array(path: Path) -> np.ndarray:
    """Return a .npy file (M, F) as a memory map; none of its numbers are read.

    Raises:
        UserError: there is no such file, or it holds no vectors of a type in `TYPES`.
    """
    give = f"Give a .npy file of vectors, (N, F), {' or '.join(TYPES)}"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}. {give}") from None
    except (ValueError, EOFError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"{path} can't be read as an array ({reason}). {give}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} holds several arrays. {give}")
    if array.ndim != 2 or not array.size:
        raise UserError(f"{path} holds an array of shape {array.shape}, not one vector in each row. {give}")
    if array.dtype.newbyteorder("=") not in map(np.dtype, TYPES):
        raise UserError(
            f"{path} holds {array.dtype}, not {' or '.join(TYPES)}. Save it again: np.save(path, "
            f"array.astype({TYPES[-1]!r}))"
        )
    return array


def take(dataset: Dataset, indices: Sequence[int]) -> Pack:
    """Return the vectors `indices` of a data set, each read once to see that it is finite.

    Raises:
        UserError: some hold NaN or infinite values.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    contents: list[str] = []
    broken: list[int] = []
    for vectors in _chunks(Vectors(dataset.array, chosen)):
        finite = np.isfinite(vectors).all(1)  # (B,)
        broken += (chosen[len(contents) :][: len(vectors)][~finite]).tolist()
        contents += [content_of(vector) for vector in vectors]
    if broken:
        shown = ", ".join(dataset.samples[index].name for index in broken[:_SHOWN])
        raise UserError(
            f"{len(broken)} of {len(chosen)} vectors of {dataset.name} hold NaN or infinite values: {shown}"
            f"{', …' if len(broken) > _SHOWN else ''}. Compute them again, or leave them out of table and array"
            + (". float16 holds no number beyond 65504; float32 does" if dataset.array.dtype.itemsize == 2 else "")
        )
    return Pack(
        rows=Vectors(dataset.array, chosen),
        indices=chosen,
        contents=contents,
        unreadable=[],
        masks=None,
        mask_contents=[""] * len(chosen),
    )


def content_of(vector: np.ndarray) -> str:
    """Return the SHA-256 of a vector (F,) as little-endian float32, so that float16 and float32 of it are the same."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").tobytes()).hexdigest()


def _chunks(vectors: Vectors) -> Iterator[np.ndarray]:
    size = max(1, _CHUNK_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), size):
        yield vectors[start : start + size]
