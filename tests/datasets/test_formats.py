"""Every layout of pixels that a file may have, written byte by byte or by tifffile, against the array that was written.

`Wanted` is what a reader without special knowledge expects: 0 to 1 from black to white, whatever the depth, 0 where a
pixel is transparent.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.folder import Folder
from domainbed.datasets.images import (
    IMAGE_SUFFIXES,
    UnreadableImage,
    read_header,
    read_image,
    read_mask,
)

HEIGHT, WIDTH = 12, 17
BOTH_ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["II", "MM"])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def bits(values: np.ndarray, depth: int, order: str = ">") -> list[bytes]:
    """Return each row of integers packed into whole bytes, the highest bit first."""
    rows = values.reshape(len(values), -1).astype(np.int64)
    if depth in (16, 32):
        return [row.astype(f"{order}u{depth // 8}").tobytes() for row in rows]
    unpacked = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1  # (H, N, depth)
    return [np.packbits(row.astype(np.uint8).ravel()).tobytes() for row in unpacked]


def png(values: np.ndarray, depth: int, colour: int, before: bytes = b"") -> bytes:
    """Return a PNG of integers (H, W) or (H, W, C); `before` are chunks before its pixels."""
    rows = b"".join(b"\0" + row for row in bits(values, depth))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + pixels + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    data: bytes, tags: dict[int, int | list[int]], order: str = "<", size: tuple[int, int] = (HEIGHT, WIDTH)
) -> bytes:
    """Return an uncompressed TIFF of one strip; every tag has 16-bit values, or 32-bit ones where they need it."""
    height, width = size
    tags = {256: width, 257: height, 259: 1, 273: 8, 277: 1, 278: height, 279: len(data), 262: 1} | tags
    after = 8 + len(data) + len(data) % 2
    entries, extra = b"", b""
    for tag, given in sorted(tags.items()):
        values = given if isinstance(given, list) else [given]
        wide = max(values) > 65535
        packed = struct.pack(f"{order}{len(values)}{'I' if wide else 'H'}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", after + 6 + 12 * len(tags) + len(extra)), extra + packed
        entries += struct.pack(f"{order}HHI", tag, 4 if wide else 3, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", after)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return head + data + b"\0" * (len(data) % 2) + directory + extra


def bmp(
    rows: list[bytes],
    depth: int,
    palette: np.ndarray | None = None,
    masks: tuple[int, ...] = (),
    top_down: bool = False,
) -> bytes:
    """Return a BMP of rows as they are stored, in the order of the file; `masks` of red, green, blue and alpha."""
    data = b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows)
    colours = b"" if palette is None else b"".join(bytes([*map(int, colour[::-1]), 0]) for colour in palette)
    height = -len(rows) if top_down else len(rows)
    head = struct.pack(
        "<IiiHHIIiiII", 108, WIDTH, height, 1, depth, 3 if masks else 0, len(data), 0, 0, len(colours) // 4, 0
    )
    head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(108, b"\0")
    start = 14 + len(head) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + colours + data


def gif(
    indices: np.ndarray, palette: np.ndarray, canvas: tuple[int, int] | None = None, clear: int | None = None
) -> bytes:
    """Return a GIF of one frame, (H, W) indices at the upper left of the canvas (H, W)."""
    height, width = indices.shape
    depth = max(1, (len(palette) - 1).bit_length())
    table = palette.astype(np.uint8).tobytes().ljust(3 << depth, b"\0")
    start = max(2, depth)
    codes: list[int] = []
    for at, index in enumerate(indices.ravel().tolist()):
        if at % ((1 << start) - 2) == 0:  # clearing the table of strings before a code needs one bit more
            codes.append(1 << start)
        codes.append(index)
    codes.append((1 << start) + 1)
    stream = sum(code << (at * (start + 1)) for at, code in enumerate(codes))
    data = stream.to_bytes(-(-len(codes) * (start + 1) // 8), "little")
    blocks = b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255))
    control = b"" if clear is None else b"\x21\xf9\x04" + bytes([1, 0, 0, clear, 0])
    screen = struct.pack("<HHBBB", *((canvas or (height, width))[::-1]), 0x80 | (depth - 1), 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + screen + table + control + frame + bytes([start]) + blocks + b"\0;"


def read(data: bytes) -> np.ndarray:
    return read_image(io.BytesIO(data))


def mask_of(data: bytes, folder: Path) -> np.ndarray:
    (folder / "mask").write_bytes(data)
    return read_mask(folder / "mask")


def refused(data: bytes, folder: Path | None = None) -> str:
    with pytest.raises(UnreadableImage) as caught:
        mask_of(data, folder) if folder else read(data)
    return str(caught.value)


def check(data: bytes, wanted: np.ndarray, tolerance: float = 0.501) -> None:
    """Compare a file with the levels, 0 to 1, that it shows: (H, W) or (H, W, 3)."""
    wanted = wanted if wanted.ndim == 3 else wanted[..., None].repeat(3, axis=2)
    image = read(data)
    assert image.shape == wanted.shape and image.dtype == np.uint8
    np.testing.assert_allclose(image, 255 * wanted, atol=tolerance)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_png(rng: np.random.Generator, tmp_path: Path, depth: int) -> None:
    values = rng.integers(0, 2**depth, (HEIGHT, WIDTH))
    check(png(values, depth, 0), values / (2**depth - 1))
    stored = values % 256
    np.testing.assert_array_equal(mask_of(png(stored, depth, 0), tmp_path), stored)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("clear", ["first", "last"])
def test_transparent_level_of_a_grey_png(rng: np.random.Generator, depth: int, clear: str) -> None:
    values = rng.integers(0, 2**depth, (HEIGHT, WIDTH))
    level = 0 if clear == "first" else 2**depth - 1
    wanted = np.where(values == level, 0, values / (2**depth - 1))
    check(png(values, depth, 0, chunk(b"tRNS", struct.pack(">H", level))), wanted)
    if depth > 1:
        values[0, 0] = 1
        wanted = np.where(values == 1, 0, values / (2**depth - 1))
        check(png(values, depth, 0, chunk(b"tRNS", struct.pack(">H", 1))), wanted)


@pytest.mark.parametrize("colour, channels", [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("depth", [8, 16])
def test_colours_and_alpha_of_a_png(rng: np.random.Generator, depth: int, colour: int, channels: int) -> None:
    values = rng.integers(0, 2**depth, (HEIGHT, WIDTH, channels))
    levels = values / (2**depth - 1)
    wanted = levels if channels == 3 else levels[..., :-1] * levels[..., -1:]
    check(png(values, depth, colour), wanted.repeat(3 // wanted.shape[2], axis=2), tolerance=2 if depth == 16 else 1)


def test_transparent_colour_of_a_png(rng: np.random.Generator) -> None:
    values = rng.integers(0, 3, (HEIGHT, WIDTH, 3)) * 100
    clear = (values == values[3, 3]).all(axis=-1, keepdims=True)
    data = png(values, 8, 2, chunk(b"tRNS", struct.pack(">3H", *values[3, 3].tolist())))
    check(data, np.where(clear, 0, values / 255))


@pytest.mark.parametrize("colour, channels", [(0, 1), (2, 3)])
def test_transparent_value_of_16_bits_is_refused(rng: np.random.Generator, colour: int, channels: int) -> None:
    values = rng.integers(0, 65536, (HEIGHT, WIDTH, channels))
    assert "one value is transparent" in refused(png(values, 16, colour, chunk(b"tRNS", bytes(2 * channels))))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_png(rng: np.random.Generator, tmp_path: Path, depth: int) -> None:
    values, palette = rng.integers(0, 2**depth, (HEIGHT, WIDTH)), rng.integers(0, 256, (2**depth, 3))
    alpha = rng.integers(0, 256, 2**depth)
    table = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    check(png(values, depth, 3, table), palette[values] / 255)
    for given in (2**depth, 1):
        kept = np.append(alpha[:given], [255] * (2**depth - given))
        data = png(values, depth, 3, table + chunk(b"tRNS", alpha[:given].astype(np.uint8).tobytes()))
        check(data, palette[values] * kept[values][..., None] / 255**2, tolerance=1)
        np.testing.assert_array_equal(mask_of(data, tmp_path), values)


@pytest.mark.parametrize("photometric", [0, 1], ids=["WhiteIsZero", "BlackIsZero"])
@BOTH_ORDERS
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 12, 16])
def test_grey_tiff(rng: np.random.Generator, tmp_path: Path, depth: int, order: str, photometric: int) -> None:
    values, white = rng.integers(0, 2**depth, (HEIGHT, WIDTH)), 2**depth - 1
    values[0, :2] = 0, white
    rows, tags = b"".join(bits(values, depth, order)), {258: depth, 262: photometric}
    shown = values if photometric else white - values
    check(tiff(rows, tags, order), shown / white)
    check(tiff(zlib.compress(rows), tags | {259: 8}, order), shown / white)
    check(tiff(rows, tags | {274: 6}, order), np.rot90(shown, -1) / white)
    if depth <= 8:
        mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in rows)
        check(tiff(mirrored, tags | {266: 2}, order), shown / white)
    if photometric == 1 or depth == 1:
        np.testing.assert_array_equal(mask_of(tiff(rows, tags, order), tmp_path) if depth <= 8 else shown, shown)
    else:
        assert "WhiteIsZero" in refused(tiff(rows, tags, order), tmp_path)


def test_tags_about_the_values_that_occur_change_no_pixel(rng: np.random.Generator) -> None:
    values = rng.integers(0, 4096, (HEIGHT, WIDTH))
    data = tiff(b"".join(bits(values, 16, "<")), {258: 16, 280: 0, 281: 4095})  # TIFF 6.0, MaxSampleValue
    check(data, values / 65535)


@BOTH_ORDERS
@pytest.mark.parametrize("depth", [8, 16, 32])
def test_signed_pixels_have_no_known_white_but_are_masks(
    rng: np.random.Generator, tmp_path: Path, depth: int, order: str
) -> None:
    values = rng.integers(0, 100, (HEIGHT, WIDTH))
    tags = {258: depth, 339: 2}
    data = tiff(values.astype(f"{order}i{depth // 8}").tobytes(), tags, order)
    assert "with a sign" in refused(data)
    np.testing.assert_array_equal(mask_of(data, tmp_path), values)
    values[3, 3] = -1
    data = tiff(values.astype(f"{order}i{depth // 8}").tobytes(), tags, order)
    assert "from -1 to" in refused(data, tmp_path)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("most", [65535, 255])
def test_palette_tiff(rng: np.random.Generator, tmp_path: Path, depth: int, most: int) -> None:
    values, palette = rng.integers(0, 2**depth, (HEIGHT, WIDTH)), rng.integers(0, most + 1, (2**depth, 3))
    values[0, 0], palette[0] = 0, most
    data = tiff(b"".join(bits(values, depth)), {258: depth, 262: 3, 320: palette.T.ravel().tolist()})
    check(data, palette[values] / most, tolerance=1)
    np.testing.assert_array_equal(mask_of(data, tmp_path), values)


@BOTH_ORDERS
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize(
    "extra", [[], ["unspecified"], ["unassalpha"], ["assocalpha"]], ids=lambda e: "".join(e) or "no"
)
@pytest.mark.parametrize("colours", ["minisblack", "rgb", "separated"])
def test_channels_of_a_tiff(
    rng: np.random.Generator,
    colours: str,
    extra: list[str],
    kind: str,
    planes: str,
    compression: str | None,
    order: str,
) -> None:
    """They come out as they were written, or are refused: never otherwise."""
    tifffile = pytest.importorskip("tifffile")
    num_colours, white = {"minisblack": 1, "rgb": 3, "separated": 4}[colours], int(np.iinfo(kind).max)
    values = rng.integers(0, white + 1, (HEIGHT, WIDTH, num_colours + len(extra)))
    if extra == ["assocalpha"]:
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=order) as file:
        file.write(
            (values if planes == "contig" else np.moveaxis(values, -1, 0)).astype(kind).squeeze(), photometric=colours,
            extrasamples=extra or None, planarconfig=planes if values.shape[2] > 1 else None, compression=compression,
        )  # fmt: skip
    levels = values / white
    wanted = levels[..., :num_colours]
    if colours == "separated":
        wanted = (1 - wanted[..., :3]) * (1 - wanted[..., 3:])
    if extra == ["unassalpha"]:
        wanted = wanted * levels[..., -1:]
    try:
        read(buffer.getvalue())
    except UnreadableImage:
        if colours == "rgb" and planes == "contig" or not extra and colours != "separated":
            raise  # what is common is read
    else:
        check(buffer.getvalue(), wanted.repeat(3 // wanted.shape[2], axis=2), tolerance=1 if kind == "u1" else 2)


@pytest.mark.parametrize(
    "options", [{"tile": (16, 16)}, {"rowsperstrip": 5}, {"bigtiff": True}, {"compression": "zlib", "predictor": True}]
)
@BOTH_ORDERS
def test_arrangement_of_a_tiff(rng: np.random.Generator, order: str, options: dict[str, object]) -> None:
    tifffile = pytest.importorskip("tifffile")
    options = dict(options)
    big = bool(options.pop("bigtiff", False)) and order == "<"  # Pillow opens no other BigTIFF
    for shape, kind in itertools.product([(40, 50), (40, 50, 3)], ["u1", "u2"]):
        values = rng.integers(0, np.iinfo(kind).max + 1, shape)
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, byteorder=order, bigtiff=big) as file:
            photometric = "rgb" if len(shape) == 3 else "minisblack"
            file.write(values.astype(kind), photometric=photometric, **options)
            file.write(255 - values.astype(np.uint8), photometric=photometric)  # a second page
        check(buffer.getvalue(), values / np.iinfo(kind).max, tolerance=1 if (len(shape), kind) == (3, "u2") else 0.501)


@pytest.mark.parametrize("across, down", [(1, 1), (2, 1), (2, 2)])
def test_uncompressed_ycbcr_tiff(rng: np.random.Generator, across: int, down: int) -> None:
    coarse = rng.integers(60, 200, (3, 4, 3), dtype=np.uint8)
    ycc = cv2.cvtColor(np.kron(coarse, np.ones((4, 4, 1), np.uint8)), cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    units = [
        ycc[y : y + down, x : x + across, 0].tobytes() + ycc[y, x, 1:].tobytes()
        for y, x in itertools.product(range(0, 12, down), range(0, 16, across))
    ]
    tags = {258: [8, 8, 8], 262: 6, 277: 3, 530: [across, down]}
    wanted = np.kron(coarse, np.ones((4, 4, 1), np.uint8)) / 255
    check(tiff(b"".join(units), tags, size=(12, 16)) + bytes(999), wanted, tolerance=4)


def test_a_tiff_whose_pixels_can_not_be_told_is_refused(rng: np.random.Generator) -> None:
    values = rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    assert "thumbnail" in refused(tiff(values.tobytes(), {258: 8, 254: 1}))
    without = tiff(values.tobytes(), {258: 8}).replace(struct.pack("<HH", 262, 3), struct.pack("<HH", 261, 3))
    assert "whether 0 is black or white" in refused(without)
    for tags in ({258: 8, 262: 32803}, {258: 16, 339: 3}):
        assert "a TIFF that is damaged, or whose bits" in refused(tiff(values.tobytes() * 2, tags))


@pytest.mark.parametrize("maxval", [1, 2, 3, 15, 100, 254, 255, 256, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_ppm(rng: np.random.Generator, tmp_path: Path, maxval: int, plain: bool) -> None:
    def written(values: np.ndarray) -> bytes:
        number = (2 if plain else 5) + values.shape[2] // 3
        head = f"P{number} {WIDTH} {HEIGHT} {maxval}\n".encode()
        return head + (
            " ".join(map(str, values.ravel())).encode()
            if plain
            else values.astype(">u2" if maxval > 255 else "u1").tobytes()
        )

    for channels in (1, 3):
        values = rng.integers(0, maxval + 1, (HEIGHT, WIDTH, channels))
        check(written(values), values.repeat(3 // channels, axis=2) / maxval)
        stored = np.minimum(values[..., :1], 255)
        data = written(stored.repeat(channels, axis=2))
        if channels == 3 and maxval > 255:
            assert "16-bit colours" in refused(data, tmp_path)
        else:
            np.testing.assert_array_equal(mask_of(data, tmp_path), stored[..., 0])


@pytest.mark.parametrize("plain", [False, True])
def test_pbm_has_1_for_black(rng: np.random.Generator, tmp_path: Path, plain: bool) -> None:
    values = rng.integers(0, 2, (HEIGHT, WIDTH))
    pixels = " ".join(map(str, values.ravel())).encode() if plain else b"".join(bits(values, 1))
    data = f"P{1 if plain else 4} {WIDTH} {HEIGHT}\n".encode() + pixels
    check(data, 1 - values)
    np.testing.assert_array_equal(mask_of(data, tmp_path), 1 - values)


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_palette_bmp(rng: np.random.Generator, tmp_path: Path, depth: int) -> None:
    values, palette = rng.integers(0, 2**depth, (HEIGHT, WIDTH)), rng.integers(0, 256, (2**depth, 3))
    for top_down in (False, True):
        data = bmp(bits(values if top_down else values[::-1], depth), depth, palette, top_down=top_down)
        check(data, palette[values] / 255)
        np.testing.assert_array_equal(mask_of(data, tmp_path), values)


@pytest.mark.parametrize("depth", [4, 8])
def test_black_and_white_bmp_of_many_bits_is_refused(rng: np.random.Generator, depth: int) -> None:
    palette = np.array([[0, 0, 0], [255, 255, 255]])
    assert f"{depth} bits" in refused(bmp(bits(rng.integers(0, 2, (HEIGHT, WIDTH)), depth), depth, palette))


def test_colour_bmp(rng: np.random.Generator) -> None:
    five = rng.integers(0, 32, (HEIGHT, WIDTH, 3))
    red, green, blue = np.moveaxis(five, -1, 0)
    high = (red << 10 | green << 5 | blue).astype("<u2")[::-1]
    check(bmp([row.tobytes() for row in high], 16), five / 31, tolerance=1)
    high = (red << 11 | (2 * green) << 5 | blue).astype("<u2")[::-1]
    check(bmp([row.tobytes() for row in high], 16, masks=(0xF800, 0x7E0, 0x1F)), five / [31, 31.5, 31], tolerance=1)
    values = rng.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    wanted, stored = values[..., :3] / 255, values[::-1, :, [2, 1, 0, 3]]
    check(bmp([row[:, :3].tobytes() for row in stored], 24), wanted)
    check(bmp([row.tobytes() for row in stored], 32), wanted)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    check(bmp([row.tobytes() for row in stored], 32, masks=masks), wanted * values[..., 3:] / 255, tolerance=1)
    unused = stored * np.array([1, 1, 1, 0], np.uint8)
    check(bmp([row.tobytes() for row in unused], 32, masks=masks), wanted)


@pytest.mark.parametrize("colours", [2, 3, 16, 256])
def test_gif(rng: np.random.Generator, tmp_path: Path, colours: int) -> None:
    values, palette = rng.integers(0, colours, (HEIGHT, WIDTH)), rng.integers(0, 256, (colours, 3))
    check(gif(values, palette), palette[values] / 255)
    check(gif(values, palette, clear=1), palette[values] * (values != 1)[..., None] / 255)
    np.testing.assert_array_equal(mask_of(gif(values, palette), tmp_path), values)
    beyond = gif(values, palette, canvas=(HEIGHT + 1, WIDTH))
    assert "first frame" in refused(beyond) and "first frame" in refused(beyond, tmp_path)


@pytest.mark.parametrize("write", [lambda v, p: png(v, 8, 3, chunk(b"PLTE", p.astype(np.uint8).tobytes())), gif])
def test_a_palette_that_could_be_meant_the_other_way_round_is_no_mask(
    rng: np.random.Generator, tmp_path: Path, write: Callable[[np.ndarray, np.ndarray], bytes]
) -> None:
    values = rng.integers(0, 2, (HEIGHT, WIDTH))
    white, black, red = [255, 255, 255], [0, 0, 0], [255, 0, 0]
    for palette in ([white, black], [white, black, red]):
        assert "white for 0" in refused(write(values, np.array(palette)), tmp_path)
    assert "white for 0" in refused(write(0 * values, np.array([white, black])), tmp_path)
    for palette in ([black, white], [white, red], [white, red, black], [red, white]):
        np.testing.assert_array_equal(mask_of(write(values, np.array(palette)), tmp_path), values)


@pytest.mark.parametrize("colour, channels", [(2, 3), (4, 2), (6, 4)])
def test_a_mask_in_16_bit_colours_is_refused(tmp_path: Path, colour: int, channels: int) -> None:
    assert "16-bit colours" in refused(png(np.ones((HEIGHT, WIDTH, channels)), 16, colour), tmp_path)


@pytest.mark.parametrize("side", [None, 24, 12, 6])
def test_cmyk_jpeg(rng: np.random.Generator, side: int | None) -> None:
    inks = cv2.resize(rng.integers(0, 256, (3, 4, 4), np.uint8), (64, 48), interpolation=cv2.INTER_LINEAR)
    buffer = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(buffer, "JPEG", quality=98)
    image = read_image(io.BytesIO(buffer.getvalue()), side)
    assert min(image.shape[:2]) == (side or 48)
    light = 255 - inks.astype(float)
    wanted = cv2.resize(light[..., :3] * light[..., 3:] / 255, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(image - wanted).mean() < 2
    data, marker = buffer.getvalue(), buffer.getvalue().index(b"\xff\xee")
    silent = data[:marker] + data[marker + 2 + int.from_bytes(data[marker + 2 : marker + 4], "big") :]
    assert "whether its inks are inverted" in refused(silent)


def test_first_picture_of_several(rng: np.random.Generator) -> None:
    values = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    first, second = Image.fromarray(values), Image.fromarray(255 - values)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        buffer = io.BytesIO()
        first.save(buffer, kind, save_all=True, append_images=[second], **options)
        check(buffer.getvalue(), values / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_header_of_a_tiff_is_upright(tmp_path: Path, orientation: int) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(bytes(HEIGHT * WIDTH), {258: 8, 274: orientation}))
    header = read_header(tmp_path / "a.tif")
    assert (header.height, header.width) == read_image(tmp_path / "a.tif").shape[:2]


@pytest.mark.parametrize(
    "data, words",
    [
        (bytes(128) + b"DICM\2\0\0\0", "a DICOM file; export it as PNG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"\xff\x4f\xff\x51\0\x2f", "a JPEG 2000 image"),
        (b"\xff\x0a\xf8\x0f", "a JPEG XL image"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "raw file"),
        (b"P7\nWIDTH 1\n", "a PAM"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"<?xml version='1.0'?>\n<!-- by hand -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<!doctype html><title>404</title>", "an HTML page; download the image itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04", "an archive; unpack it"),
        (b"\xff\xd8\xff\xf7\0\x0b", "a JPEG that is damaged, or whose"),
        (b"hello", "not a JPEG, PNG, TIFF, BMP, WebP, GIF or PPM image"),
    ],
)
def test_other_files_are_called_by_their_names(data: bytes, words: str) -> None:
    assert words in refused(data)


def test_every_suffix_of_a_format_is_an_images(tmp_path: Path) -> None:
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif"} <= {
        *IMAGE_SUFFIXES
    }
    assert {".pbm", ".pgm", ".ppm", ".pnm"} <= {*IMAGE_SUFFIXES}
    assert not {".eps", ".pdf", ".txt", ".jp2", ".avif", ".psd"} & {*IMAGE_SUFFIXES}
    (tmp_path / "a" / "x").mkdir(parents=True)
    for suffix in (".jfif", ".JPE", ".Pnm", ".dib"):
        kind = {".jfif": "JPEG", ".JPE": "JPEG", ".Pnm": "PPM", ".dib": "DIB"}[suffix]
        Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "a" / "x" / f"b{suffix}", kind)
    data = Folder(tmp_path, Folder.HParams(image_size=20))
    assert len(data.samples) == 4
    for index in range(4):
        np.testing.assert_allclose(data.read(index)[10, 10], [255, 0, 0], atol=2)
