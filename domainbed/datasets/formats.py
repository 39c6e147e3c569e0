"""Opening image files: what a file says of its pixels where Pillow keeps silent, gets it wrong, or can't open it.

    image, samples = formats.open_image(file)      a Pillow image that is not decoded yet, and how it is stored

Every rule stands for a layout whose pixels Pillow alone gives otherwise than an independent decoder does; the tests
compare them. What becomes of the pixels is in `images`.
"""

import re
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import II, MM, OPEN_INFO, TiffImageFile

#: Pillow tries only these decoders; its others include one that starts Ghostscript. DIB is a BMP without file header.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM")

#: Suffixes, in lower case, of files in these formats. MPO is a JPEG with further pictures behind the first.
SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")))

# Without libtiff, Pillow misreads uncompressed TIFFs with subsampled YCbCr, and most with separate planes.
TiffImagePlugin.READ_LIBTIFF = True

# Grey TIFFs by (byte order, photometric interpretation, sample format, fill order, bits, extra samples). Pillow inverts
# WhiteIsZero, 0, up to 8 bits only. With more it returns the stored values, or can't open the file, such as a
# big-endian one of ImageJ: with these entries every version returns the stored values, and `images` inverts them.
# Signed samples arrive from libtiff in the machine's byte order, where Pillow expects the file's.
_UNSIGNED, _SIGNED = 1, 2
for _order, _mode in ((II, "I;16"), (MM, "I;16B")):
    for _photometric in (0, 1):
        OPEN_INFO[_order, _photometric, (_UNSIGNED,), 1, (12,), ()] = ("I;16", "I;12")
        OPEN_INFO[_order, _photometric, (_UNSIGNED,), 1, (16,), ()] = (_mode, _mode)
    OPEN_INFO[_order, 1, (_SIGNED,), 1, (16,), ()] = ("I", "I;16NS")
    OPEN_INFO[_order, 1, (_SIGNED,), 1, (32,), ()] = ("I", "I;32NS")

_NEW_SUBFILE_TYPE = 254
_REDUCED = 1

_HEAD_BYTES = 512
_EXPORT = "export it as PNG or JPEG"
#: What other files begin with: pattern, name, what to do.
_OTHERS = [
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), name, advice)
    for pattern, name, advice in (
        (rb".{128}DICM", "a DICOM file", "export it as PNG, with 8 or 16 bits"),
        (rb".{4}ftyp(avif|avis)", "an AVIF image", _EXPORT),
        (rb".{4}ftyp(hei|hev|mif1|msf1)", "a HEIC image", _EXPORT),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image", "export it as PNG"),
        (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image", _EXPORT),
        (rb"II\xbc", "a JPEG XR image", _EXPORT),
        (rb".{4}ftypcrx|IIRO|IIRS|MMOR|IIU\0|FUJIFILM", "a camera's raw file", _EXPORT),
        (rb"P7\s|PF\s", "a PAM or PFM image", "export it as PNG"),
        (rb"8BPS", "a Photoshop document", _EXPORT),
        (rb"\x76\x2f\x31\x01", "an OpenEXR image", "export it as PNG"),
        (rb"%PDF", "a PDF document", _EXPORT),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file", _EXPORT),
        (rb"\s*(\xef\xbb\xbf)?\s*(<\?xml[^>]*>)?\s*(<!--.*?-->\s*)*(<!DOCTYPE svg|<svg)", "an SVG drawing", _EXPORT),
        (rb"\s*(<!DOCTYPE html|<html)", "an HTML page", "download the image itself"),
        (rb"version https://git-lfs", "a Git LFS pointer", "fetch the image with git lfs pull"),
        (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive", "unpack it"),
    )
]
_OURS = [
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"\xff\xd8\xff", "JPEG"),
        (rb"\x89PNG", "PNG"),
        (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
        (rb"BM", "BMP"),
        (rb"RIFF.{4}WEBP", "WebP"),
        (rb"GIF8", "GIF"),
        (rb"P[1-6]\s", "PPM"),
    )
]


class UnreadableImage(Exception):
    """An image file that can't be decoded whole. The message is the reason, without the file's name."""


@dataclass(frozen=True)
class Samples:
    """How a file stores its samples.

    Attributes:
        white: the highest value that a sample can have.
        decoded_white: what Pillow makes of that value.
        signed: whether they are signed integers.
        inverted: whether 0 is white. Pillow inverts these up to 8 bits, and not beyond.
    """

    white: int = 255
    decoded_white: int = 255
    signed: bool = False
    inverted: bool = False


def open_image(file: BinaryIO) -> tuple[ImageFile, Samples]:
    """Return the image in an open file, not yet decoded, and how its samples are stored.

    Raises:
        UnreadableImage: the file is empty, in none of `FORMATS`, or in a layout that would be misread.
    """
    head = file.read(_HEAD_BYTES)
    if not head:
        raise UnreadableImage("an empty file")
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnreadableImage(_identified(head)) from error
    if reason := _misread(image, head):
        raise UnreadableImage(reason)
    return image, _samples(image, head)


def size(image: ImageFile) -> tuple[int, int]:
    """Return width and height of an image that is not decoded yet, as its file has them: not turned upright."""
    if isinstance(image, TiffImageFile):  # its `size` is upright already in some versions of Pillow
        return image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return image.size


def _identified(head: bytes) -> str:
    """Return what a file that Pillow can't open is, by its first bytes, and what to do."""
    for pattern, name, advice in _OTHERS:
        if pattern.match(head):
            return f"{name}; {advice}"
    for pattern, name in _OURS:
        if pattern.match(head):
            return (
                f"a {name} that is damaged, or whose bits, colours or compression can't be decoded; save it as grey or "
                "RGB with 8 bits"
            )
    return "not a JPEG, PNG, TIFF, BMP, WebP, GIF or PPM image"


def _misread(image: ImageFile, head: bytes) -> str | None:
    """Return why the pixels would not come out as the file means them; None where they would."""
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        if tags.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED:
            return f"a TIFF that begins with a thumbnail, as many a camera's raw file does; {_EXPORT}"
        if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and image.mode in ("LA", "La", "PA"):
            return "a TIFF with grey and transparency in separate planes; save it as PNG"
        if TiffImagePlugin.PHOTOMETRIC_INTERPRETATION not in tags and image.mode[0] in "1LI":  # decoders differ
            return "a grey TIFF that doesn't say whether 0 is black or white; save it as PNG"
    elif image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        return "a CMYK JPEG that doesn't say whether its inks are inverted; save it as RGB"
    elif image.mode in "1L" and image.format in ("BMP", "DIB"):  # Pillow goes by the palette alone
        if (bits := _bmp_bits(image, head)) != (1 if image.mode == "1" else 8):
            return f"a grey BMP whose palette doesn't have the colours of {bits} bits; save it as PNG"
    elif image.format == "GIF" and image.tile[0][1] != (0, 0, *image.size):
        return "a GIF whose first frame doesn't cover all of it; save it as PNG"
    return None


def _samples(image: ImageFile, head: bytes) -> Samples:
    white, signed, inverted = 255, False, False
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        white = 2 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0] - 1
        signed = _SIGNED in tags.get(TiffImagePlugin.SAMPLEFORMAT, (_UNSIGNED,))
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    elif image.format == "PNG":
        white = 2 ** head[head.index(b"IHDR") + 12] - 1
    elif image.format == "PPM" and image.mode == "I":
        white = _maxval(image, 65535)
        return Samples(white, decoded_white=65535)
    elif image.format == "PPM" and image.mode != "1":
        white = _maxval(image, 255)
    return Samples(white, white if image.mode[0] in "1PI" else 255, signed, inverted)


def _maxval(image: ImageFile, default: int) -> int:
    """Return the maxval of a PPM, which Pillow gives to those of its decoders that scale by it."""
    decoder, _, _, arguments = image.tile[0]
    return int(arguments[-1]) if decoder in ("ppm", "ppm_plain") and arguments else default


def _bmp_bits(image: ImageFile, head: bytes) -> int:
    header = head[14:] if image.format == "BMP" else head
    return header[10] if header[0] == 12 else header[14]  # BITMAPCOREHEADER is shorter
