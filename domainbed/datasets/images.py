"""Image files to pixels: every file becomes RGB uint8 whole, or `UnreadableImage` says in plain words why it can't.

Nothing here repairs a file: a truncated photograph is refused, not filled with grey. (Wrong bytes in the middle of a
JPEG can't be told from right ones: the format has no checksum, and its decoder goes on.) Which files can be opened is
in `formats`; the size, colour and crop that a model sees are in `preprocess`.
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
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import COLORMAP, TiffImageFile

from domainbed.datasets import formats
from domainbed.datasets.formats import Samples, UnreadableImage
from domainbed.files import write_atomically

#: Raise it when a file begins to give other pixels, so that packed rows are made anew.
VERSION = 2

#: Suffixes, in lower case, of files that are taken for images (DRIVE ships GIF masks, STARE ships PPM photographs).
IMAGE_SUFFIXES = formats.SUFFIXES

#: Largest number of pixels that is decoded: Pillow's own limit (256 MiB of RGB), so 9459 x 9459 and no more.
MAX_PIXELS = 89_478_485

_EXIF_ORIENTATION = 0x0112
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


def read_image(file: str | os.PathLike[str] | BinaryIO, least_side: int | None = None) -> np.ndarray:
    """Return an image file as RGB uint8 (H, W, 3), upright (its EXIF orientation applied), first frame only.

    Transparent pixels are composited on black, like what surrounds a retina. Samples of other than 8 bits are scaled
    by their range whatever values occur, so that two files of one camera stay comparable: 16-bit grey by 255 / 65535,
    12-bit by 255 / 4095. 16-bit colours lose their low byte. Floating-point, signed and 32-bit samples are refused:
    their file does not say which value is white.

    Args:
        file: its path, or the open file itself, such as an `io.BytesIO` of a member of an archive.
        least_side: that the shorter side has to keep. A JPEG is then decoded at a half, a quarter or an eighth of its
            size where that is enough, from the low frequencies of its blocks: several times as fast.

    Raises:
        UnreadableImage: the file is missing, is not an image, is damaged, has more than `MAX_PIXELS` pixels, or
            doesn't say what its values mean.
    """
    with _opened(file, least_side) as (image, samples):
        if image.mode == "F":
            raise UnreadableImage("floating-point pixels, whose white is unknown; save it with 8 or 16 bits")
        if samples.signed or samples.white > 65535:
            raise UnreadableImage(
                "pixels with a sign or more than 16 bits, whose white is unknown; save it with 8 or 16 bits"
            )
        if "transparency" in image.info and samples.white > 255:  # Pillow compares it with what it made of the pixels
            raise UnreadableImage("16-bit pixels of which one value is transparent; save it with an alpha channel")
        if image.mode.startswith("I"):
            image = Image.fromarray(_sixteen_to_eight(image, samples))
        if image.has_transparency_data:
            image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
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
        UnreadableImage: the file is missing, is not an image, or can't be told the pixels of.
    """
    _silence_pillow()
    with _plain_reasons():
        _refuse_what_is_no_file(path)
        with open(path, "rb") as file:
            image, _ = formats.open_image(file)
            width, height = formats.size(image)
            if _orientation(image) in _ON_THE_SIDE:
                width, height = height, width
            return Header(width, height, str(image.format))


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Return a mask file as uint8 (H, W), upright, with the values that the file stores.

    1-bit files give 1 for white and 0 for black, palette files their indices (not their colours), grey files their
    values, and colour files that are grey in fact their red channel. Transparency is ignored.

    Raises:
        UnreadableImage: as `read_image`; or the file holds colours, values above 255, or values that could be meant
            the other way round: its grey has 0 for white, or its palette has white as 0 and black as all else.
    """
    with _opened(path) as (image, samples):
        values = np.asarray(image)
    if values.dtype.kind == "f":
        raise UnreadableImage("floating-point values; a mask holds whole numbers from 0 to 255")
    if samples.inverted and samples.white > 1:
        raise UnreadableImage("a mask with 0 for white (WhiteIsZero); save it with 0 for black, or with 1 bit")
    if image.mode == "P" and _has_white_first(image, values):
        raise UnreadableImage(
            "a mask whose palette has white for 0 and black for the rest; save it as grey or with 1 bit"
        )
    if values.ndim == 3:
        colours = values[..., : -1 if image.mode in ("LA", "PA", "RGBA") else None]
        if image.mode == "CMYK" or (colours != colours[..., :1]).any():
            raise UnreadableImage("a mask in colours; save class indices, or one black and white file per class")
        if samples.white > samples.decoded_white:
            raise UnreadableImage("a mask in 16-bit colours; save it as grey")
        values = colours[..., 0]
    if samples.signed:
        values = values.astype(f"int{samples.white.bit_length()}")
    elif samples.white != samples.decoded_white:
        values = (values.astype(np.uint32) * samples.white + samples.decoded_white // 2) // samples.decoded_white
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
        before = [record.tobytes() for record in self._load()]  # another process may have added to it
        kept = [record for record in before if record[:16] not in self.new and self._is_whole(record)]
        with contextlib.suppress(OSError), write_atomically(self.path) as draft:
            draft.write_bytes(b"".join([*kept, *self.new.values()]))

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
def _opened(
    file: str | os.PathLike[str] | BinaryIO, least_side: int | None = None
) -> Iterator[tuple[Image.Image, Samples]]:
    """Yield the decoded, upright Pillow image and how its file stores it.

    Every failure in here or in the body is an `UnreadableImage`.
    """
    _silence_pillow()
    # Another library may have asked Pillow to fill truncated files with grey. Not put back afterwards: several threads
    # read at once, and one's putting back would reach into another's reading.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with _plain_reasons(), contextlib.ExitStack() as stack:
        if isinstance(file, str | os.PathLike):
            _refuse_what_is_no_file(file)
            file = stack.enter_context(open(file, "rb"))
        image, samples = formats.open_image(file)
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(f"{image.width} x {image.height} pixels; the limit is {MAX_PIXELS} in all")
        if least_side is not None:
            share = least_side / min(image.size)
            image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))
        image.load()
        yield _upright(_as_meant(image, samples)), samples


def _as_meant(image: Image.Image, samples: Samples) -> Image.Image:
    """Return a decoded image, with what Pillow takes otherwise than its file means it put right."""
    if isinstance(image, TiffImageFile) and image.mode in ("P", "PA"):
        colours = image.tag_v2[COLORMAP]
        if max(colours) < 256:  # 8 bits where the format has 16, as some writers do it: Pillow takes the high byte
            image.putpalette(bytes(colours), "RGB;L")
    level = image.info.get("transparency")
    if image.format == "PNG" and image.mode in ("1", "L") and level is not None and level <= samples.white < 255:
        image.info["transparency"] = level * 255 // samples.white  # Pillow scales the pixels only
    if image.format in ("BMP", "DIB") and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        return image.convert("RGB")  # a program that left the fourth byte alone; others than BMP may mean it
    return image


def _upright(image: Image.Image) -> Image.Image:
    # Pillow's exif_transpose also writes EXIF anew, and so fails on a damaged block whose orientation is legible.
    orientation = _orientation(image)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _orientation(image: Image.Image) -> int | None:
    with contextlib.suppress(Exception):  # an EXIF block that can't be parsed does not say how the image lies
        return image.getexif().get(_EXIF_ORIENTATION)
    return None


def _sixteen_to_eight(image: Image.Image, samples: Samples) -> np.ndarray:
    """Return the grey levels of modes "I;16*" and "I" as uint8 (H, W)."""
    white = samples.decoded_white
    levels = (np.asarray(image).astype(np.uint32) * 255 + white // 2) // white
    return (255 - levels if samples.inverted else levels).astype(np.uint8)


def _has_white_first(image: Image.Image, indices: np.ndarray) -> bool:
    """Whether a palette file shows 0 in white and all else that occurs, or could occur, in black."""
    palette = np.reshape(image.getpalette() or [], (-1, 3))
    others = [at for at in np.unique(indices) if 0 < at < len(palette)] or range(1, len(palette))
    return len(others) > 0 and (palette[0] == 255).all() and not palette[others].any()


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
