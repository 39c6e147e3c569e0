"""Image files to pixels: every file becomes RGB uint8 whole, or `UnreadableImage` says in plain words why it can't.

Nothing here repairs a file: a truncated photograph is refused, not filled with grey. (Wrong bytes in the middle of a
JPEG can't be told from right ones: the format has no checksum, and its decoder goes on.) The size, colour and crop that
a model sees are in `preprocess`.
"""

import contextlib
import hashlib
import math
import os
import re
import stat
import struct
import threading
import time
import warnings
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

#: Suffixes, in lower case, of files that are taken for images (DRIVE ships GIF masks, STARE ships PPM photographs).
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm")

#: Largest number of pixels that is decoded: Pillow's own limit (256 MiB of RGB), so 9459 x 9459 and no more.
MAX_PIXELS = 89_478_485

# Pillow tries only these decoders; its others include one that starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THE_SIDE = (5, 6, 7, 8)
_PILLOW_MODULES = r"PIL\."
_filters_lock = threading.Lock()


class UnreadableImage(Exception):
    """An image file that can't be decoded whole. The message is the reason, without the file's name."""


def read_image(file: str | os.PathLike[str] | BinaryIO, least_side: int | None = None) -> np.ndarray:
    """Return an image file as RGB uint8 (H, W, 3), upright (its EXIF orientation applied), first frame only.

    Transparent pixels are composited on black, like what surrounds a retina. 16-bit grey is scaled by 255 / 65535
    (12-bit TIFF by 255 / 4095) whatever values occur, so that two files of one camera stay comparable. Floating-point
    pixels and 32-bit integers are refused: their file does not say which value is white.

    Args:
        file: its path, or the open file itself, such as an `io.BytesIO` of a member of an archive.
        least_side: that the shorter side has to keep. A JPEG is then decoded at a half, a quarter or an eighth of its
            size where that is enough, from the low frequencies of its blocks: several times as fast.

    Raises:
        UnreadableImage: the file is missing, is not an image, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    with _opened(file, least_side) as image:
        if image.mode.startswith("I"):
            image = Image.fromarray(_sixteen_to_eight(image))
        elif image.mode == "F":
            raise UnreadableImage("floating-point pixels, whose white is unknown; save it with 8 or 16 bits")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        return np.array(image.convert("RGB"))


@dataclass(frozen=True)
class Header:
    """What a file says of its image: its size upright, in pixels, and its format as Pillow names it ("JPEG")."""

    width: int
    height: int
    format: str


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return what a file says of its image, without decoding it.

    Raises:
        UnreadableImage: the file is missing or is not an image.
    """
    _silence_pillow()
    with _plain_reasons():
        _refuse_what_is_no_file(path)
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size if _orientation(image) not in _ON_THE_SIDE else image.size[::-1]
            return Header(width, height, str(image.format))


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Return a mask file as uint8 (H, W), upright, with the values that the file stores.

    1-bit files give 0 and 1, palette files their indices (not their colours), grey files their values, and colour
    files that are grey in fact their red channel.

    Raises:
        UnreadableImage: as `read_image`; or the file holds colours, or values above 255.
    """
    with _opened(path) as image:
        values = np.asarray(image)
    if values.dtype.kind == "f":
        raise UnreadableImage("floating-point values; a mask holds whole numbers from 0 to 255")
    if values.ndim == 3:
        colours = values[..., : -1 if image.mode in ("LA", "PA", "RGBA") else None]
        if image.mode == "CMYK" or (colours != colours[..., :1]).any():
            raise UnreadableImage("a mask in colours; save class indices, or one black and white file per class")
        values = colours[..., 0]
    if values.dtype != bool and values.size and (values.min() < 0 or values.max() > 255):
        raise UnreadableImage(f"mask values from {values.min()} to {values.max()}; a mask holds 0 to 255")
    return values.astype(np.uint8)


def digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits; see `digests_remembered_in`.

    Raises:
        UnreadableImage: the file can't be read.
    """
    memory = _memory
    if memory and (known := memory.recall(path)):
        return known
    with _plain_reasons():
        _refuse_what_is_no_file(path)
        return memory.digest(path) if memory else _sha256(path)


@contextlib.contextmanager
def digests_remembered_in(path: Path) -> Iterator[None]:
    """While active, `digest` in any thread reads a file again only if its size or a time stamp changed.

    So that finding the packed copy of 70 GB of photographs does not read 70 GB. `path` is a file of 76 bytes for each
    of them; one that is missing, damaged or can't be written costs time and nothing else.
    """
    global _memory
    memory, outer = _DigestMemory(path), _memory
    _memory = memory
    try:
        yield
    finally:
        _memory = outer
        memory.save()


class _DigestMemory:
    """What is known of files when a run starts, and what is found out about others.

    A record is asked for by 64 bits of a digest of the absolute path, and counts if the other 64, the file's size and
    its time stamps are what they were, and its own checksum is right. Records lie in an array, not in a dictionary:
    they are as many as images, wanted for a moment, and Python's objects would leave holes in memory that stay.
    """

    SETTLED_NS = 2_000_000_000  # a younger file may change again within one tick of its time stamp (FAT: 2 s)
    RECORD = struct.Struct("<16sQqq32sI")  # path, size, modified, changed, digest, checksum
    TYPE = np.dtype([("path", "<u8"), ("rest", f"V{RECORD.size - 8}")])

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = self._load()
        self.paths = np.ascontiguousarray(self.known["path"]).data
        self.new: dict[bytes, bytes] = {}  # records by path

    def _load(self) -> np.ndarray:
        """Return the records of the file, ordered by path."""
        try:
            known = np.fromfile(self.path, self.TYPE)
        except OSError:
            return np.zeros(0, self.TYPE)
        return known[np.argsort(known["path"])]

    def recall(self, path: str | os.PathLike[str]) -> str | None:
        """Return the digest of a file that is as it was; asked for every image at every start, so one look at it."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # a second look says why
            return None
        key = self._key(path)
        record = self.new.get(key)
        if record is None:
            at = bisect_left(self.paths, int.from_bytes(key[:8], "little"))
            if at == len(self.paths):
                return None
            record = self.known[at].tobytes()
        *stamp, found, _ = self.RECORD.unpack(record)
        as_it_was = stamp == [key, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        return found.hex() if as_it_was and self._is_whole(record) else None

    def digest(self, path: str | os.PathLike[str]) -> str:
        """Return the digest of a file, which is read, and remember it."""
        status, found = os.stat(path), _sha256(path)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > self.SETTLED_NS:
            key = self._key(path)
            stamp = key, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            record = self.RECORD.pack(*stamp, bytes.fromhex(found), 0)[:-4]
            self.new[key] = record + zlib.crc32(record).to_bytes(4, "little")
        return found

    def save(self) -> None:
        if not self.new:
            return
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        before = [record.tobytes() for record in self._load()]  # another process may have added to it
        kept = [record for record in before if record[:16] not in self.new and self._is_whole(record)]
        with contextlib.suppress(OSError):
            try:
                draft.write_bytes(b"".join([*kept, *self.new.values()]))
                os.replace(draft, self.path)
            finally:
                draft.unlink(missing_ok=True)

    @staticmethod
    def _is_whole(record: bytes) -> bool:
        return zlib.crc32(record[:-4]).to_bytes(4, "little") == record[-4:]

    @staticmethod
    def _key(path: str | os.PathLike[str]) -> bytes:
        return hashlib.sha256(os.fsencode(os.path.abspath(path))).digest()[:16]


_memory: _DigestMemory | None = None


def _sha256(path: str | os.PathLike[str]) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


@contextlib.contextmanager
def _opened(file: str | os.PathLike[str] | BinaryIO, least_side: int | None = None) -> Iterator[Image.Image]:
    """Yield the decoded, upright Pillow image; every failure in here or in the body is an `UnreadableImage`."""
    _silence_pillow()
    # Another library may have asked Pillow to fill truncated files with grey. Not put back afterwards: several threads
    # read at once, and one's putting back would reach into another's reading.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with _plain_reasons(), contextlib.ExitStack() as stack:
        if isinstance(file, str | os.PathLike):
            _refuse_what_is_no_file(file)
            file = stack.enter_context(open(file, "rb"))
        if not file.read(1):
            raise UnreadableImage("an empty file")
        file.seek(0)
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"{image.width} x {image.height} pixels; the limit is {MAX_PIXELS} in all")
            if least_side is not None:
                share = least_side / min(image.size)
                image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))
            image.load()
            yield _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    # Pillow's exif_transpose also writes EXIF anew, and so fails on a damaged block whose orientation is legible.
    orientation = _orientation(image)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _orientation(image: Image.Image) -> int | None:
    with contextlib.suppress(Exception):  # an EXIF block that can't be parsed does not say how the image lies
        return image.getexif().get(_EXIF_ORIENTATION)
    return None


def _sixteen_to_eight(image: Image.Image) -> np.ndarray:
    """Return the 16-bit grey levels of modes "I;16*" and "I" as uint8 (H, W)."""
    bits = 16
    if image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (16,))[0]  # type: ignore[attr-defined]
    values, white = np.asarray(image), 2**bits - 1
    if bits > 16 or (values.size and (values.min() < 0 or values.max() > white)):
        raise UnreadableImage("integer pixels of more than 16 bits or below 0; save it with 8 or 16 bits")
    return ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _refuse_what_is_no_file(path: str | os.PathLike[str]) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        raise UnreadableImage("a link to a file that does not exist")
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableImage("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise UnreadableImage("not a regular file")


@contextlib.contextmanager
def _plain_reasons() -> Iterator[None]:
    """Turn whatever reading raises into an `UnreadableImage` with a reason that needs no knowledge of Pillow."""
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("not a JPEG, PNG, TIFF, BMP, WebP, GIF or PPM image, or a damaged one") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"more pixels than the limit of {MAX_PIXELS}") from error
    except OSError as error:
        if error.strerror:  # from the system: "No such file or directory", "Permission denied"
            raise UnreadableImage(error.strerror[:1].lower() + error.strerror[1:]) from error
        raise UnreadableImage(f"damaged: {error}") from error
    except Exception as error:  # Pillow's parsers raise whatever they trip over: SyntaxError, struct.error, KeyError
        raise UnreadableImage(f"damaged: {type(error).__name__}: {error}") from error


def _silence_pillow() -> None:
    """Keep Pillow from warning: what its warnings are about is either refused here or does not touch the pixels.

    `warnings.catch_warnings` would be the local way, but it is not safe where several threads read images.
    """
    with _filters_lock:
        if warnings.filters[:1] and warnings.filters[0][3] == re.compile(_PILLOW_MODULES):
            return
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)
