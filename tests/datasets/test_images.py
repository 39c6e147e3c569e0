"""Files written by Pillow, OpenCV and as raw bytes, read back against what was put into them."""

import hashlib
import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from domainbed.datasets import images
from domainbed.datasets.images import MAX_PIXELS, UnreadableImage, digest, digests_remembered_in, read_image, read_mask


def rgb(height: int = 12, width: int = 17) -> np.ndarray:
    """Return colours that differ in every pixel, channel and direction, uint8 (height, width, 3)."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG made by hand; `rows` has a filter byte before each row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(path: Path) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert str(path) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".ppm", ".webp"])
def test_lossless_colours_survive(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(rgb()).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    read = read_image(path)
    assert read.dtype == np.uint8 and read.flags.writeable
    np.testing.assert_array_equal(read, rgb())


def test_jpeg_is_read_as_opencv_reads_it(tmp_path: Path) -> None:
    smooth = cv2.resize(rgb(4, 5), (60, 48), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), smooth[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    difference = read_image(path).astype(int) - cv2.imread(str(path))[..., ::-1]
    assert np.abs(difference).max() <= 4  # two builds of libjpeg
    assert np.abs(read_image(path).astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("kind", ["L", "1"])
def test_grey_and_one_bit_become_three_equal_channels(tmp_path: Path, kind: str) -> None:
    grey = rgb()[..., 0] if kind == "L" else np.where(rgb()[..., 0] > 127, 255, 0).astype(np.uint8)
    Image.fromarray(grey).convert(kind, dither=Image.Dither.NONE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_black(tmp_path: Path, mode: str) -> None:
    alpha = np.tile(np.linspace(0, 255, 17).astype(np.uint8), (12, 1))
    colours = rgb() if mode == "RGBA" else rgb()[..., :1].repeat(3, axis=2)
    stored = np.dstack([colours if mode == "RGBA" else colours[..., 0], alpha])
    Image.fromarray(stored).save(tmp_path / "a.png")
    expected = colours * (alpha[..., None] / 255.0)
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), expected, atol=1)


def test_palette_gives_its_colours_and_its_transparent_entry_black(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 255, 255, 255])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=2)
    colours = [[[10, 20, 30], [200, 100, 50]], [[255, 255, 255], [200, 100, 50]]]
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png"), colours)
    colours[1][0] = [0, 0, 0]
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png"), colours)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    np.testing.assert_allclose(read_image(tmp_path / "red.jpg")[8, 8], [255, 0, 0], atol=3)


def test_sixteen_bits_scale_by_their_range_not_by_their_values(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 1000], [4095, 32768, 65535]], dtype=np.uint16)
    expected = np.rint(deep / 257).astype(np.uint8)[..., None].repeat(3, axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    (tmp_path / "a.png").write_bytes(png(3, 2, 16, 0, rows))
    cv2.imwrite(str(tmp_path / "a.tif"), deep)
    (tmp_path / "a.pgm").write_bytes(b"P5 3 2 65535\n" + deep.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "a.pgm"):
        np.testing.assert_array_equal(read_image(tmp_path / name), expected, err_msg=name)


def test_pixels_without_a_known_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(tmp_path / "int.tif")
    assert "floating-point" in refused(tmp_path / "float.tif")
    assert "more than 16 bits" in refused(tmp_path / "int.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    blocks = np.kron(rgb(2, 3), np.ones((16, 16, 1))).astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(blocks).save(path, exif=exif, **({"quality": 100} if suffix in (".jpg", ".webp") else {}))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == ((32, 48) if orientation < 5 else (48, 32))
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_allclose(read_image(path)[4, 4], _corner(blocks, orientation), atol=40)


def _corner(blocks: np.ndarray, orientation: int) -> np.ndarray:
    """Return what EXIF 2.3 puts at the upper left of the upright image."""
    row, column = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}[
        orientation
    ]
    return blocks[row, column]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_broken_exif_block_does_not_cost_the_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(rgb()).save(path, exif=b"II*\0" if suffix == ".jpg" else b"no TIFF header")
    assert read_image(path).shape == rgb().shape


def test_a_jpeg_is_decoded_no_larger_than_it_has_to_be(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    photograph = Image.fromarray(coarse).resize((800, 480), Image.Resampling.BICUBIC)
    photograph.save(tmp_path / "a.jpg", quality=95)
    photograph.save(tmp_path / "a.png")
    shapes = {side: read_image(tmp_path / "a.jpg", side).shape[:2] for side in (60, 61, 100, 200, 241, 9999)}
    assert shapes == {
        60: (60, 100),
        61: (120, 200),
        100: (120, 200),
        200: (240, 400),
        241: (480, 800),
        9999: (480, 800),
    }
    assert read_image(tmp_path / "a.png", 60).shape[:2] == (480, 800)
    for side in (60, 120):
        reduced = Image.fromarray(read_image(tmp_path / "a.jpg", side)).resize((50, 30), Image.Resampling.BOX)
        whole = photograph.resize((50, 30), Image.Resampling.BOX)
        error = np.square(np.asarray(reduced, float) - np.asarray(whole, float)).mean()
        assert 10 * np.log10(255**2 / error) > 38


def test_a_truncated_jpeg_is_refused_at_any_size(tmp_path: Path) -> None:
    Image.effect_noise((400, 400), 60).convert("RGB").save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2000])
    with pytest.raises(UnreadableImage, match="damaged"):
        read_image(tmp_path / "a.jpg", 50)


@pytest.mark.parametrize("kind, cut", [(k, c) for k in ("JPEG", "PNG", "TIFF", "BMP", "WEBP") for c in (0.1, 0.5, 0.9)])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, cut: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other libraries leave it
    whole = encoded(Image.fromarray(rgb(80, 90)), kind)
    (tmp_path / "a.jpg").write_bytes(whole)
    read_image(tmp_path / "a.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    (tmp_path / "a.jpg").write_bytes(whole[: int(cut * len(whole))])
    assert "damaged" in refused(tmp_path / "a.jpg")


def test_a_jpeg_without_its_last_byte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(rgb(80, 90)), "JPEG")[:-1])
    assert "truncated" in refused(tmp_path / "a.jpg")


def test_what_is_no_image_file_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(tmp_path / "empty.png") == "an empty file"
    assert refused(tmp_path / "page.jpg").startswith("an HTML page")
    assert refused(tmp_path / "x.png") == "a folder, not a file"
    assert refused(tmp_path / "gone.png") == "a link to a file that does not exist"
    assert refused(tmp_path / "missing.png") == "no such file or directory"
    assert refused(tmp_path / "pipe.png") == "not a regular file"


def test_a_forbidden_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(rgb()).save(path)
    path.chmod(0)
    if os.geteuid() == 0:  # whom the system forbids nothing

        def forbid(*args: object, **options: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", forbid)
    assert refused(path) == "permission denied"


def test_postscript_is_not_handed_to_ghostscript(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert refused(tmp_path / "a.jpg").startswith("a PostScript file")


@pytest.mark.parametrize("side", [9_460, 60_000])  # at the one Pillow warns, at the other it raises
def test_images_above_the_limit_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side, 1, 0, b""))
    assert str(MAX_PIXELS) in refused(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(9_459, 9_459, 1, 0, b""))
    assert "damaged" in refused(tmp_path / "a.png"), "below the limit it is decoded, and holds no pixels"


def test_pillow_warnings_reach_nobody(tmp_path: Path) -> None:
    paths = [tmp_path / "bomb.png", tmp_path / "exif.tif", tmp_path / "palette.png"]
    paths[0].write_bytes(png(13_400, 13_400, 1, 0, b""))
    # Two directory entries of a TIFF point behind its end: Pillow warns and goes on.
    tiff = bytearray(encoded(Image.fromarray(rgb()), "TIFF", description="x" * 50))
    tiff[tiff.index(struct.pack("<HH", 270, 2)) + 8 :][:4] = b"\xff\xff\xff\x7f"
    paths[1].write_bytes(bytes(tiff))
    palette = Image.fromarray(rgb()[..., 0]).convert("P")
    palette.save(paths[2], transparency=bytes(range(256)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(_read_or_none, paths * 20))
    assert not caught
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(paths[2]).shape == rgb().shape


def _read_or_none(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except UnreadableImage:
        return None


def test_masks_keep_their_stored_values(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    palette = Image.fromarray(values).convert("P")
    palette.putpalette(list(rgb(16, 16).ravel()))
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values[..., None].repeat(3, axis=2)).save(tmp_path / "rgb.png")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    for name in ("grey.png", "palette.png", "rgb.png", "deep.png"):
        mask = read_mask(tmp_path / name)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, values, err_msg=name)
    Image.fromarray(values > 0).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bit.png"), (values > 0).astype(np.uint8))


def test_masks_that_hold_no_classes_are_refused(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "colour.png")
    Image.fromarray(np.array([[0, 256]], dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.array([[0.5]], dtype=np.float32)).save(tmp_path / "float.tif")
    for name, reason in (("colour.png", "in colours"), ("deep.png", "0 to 256"), ("float.tif", "floating-point")):
        with pytest.raises(UnreadableImage, match=reason):
            read_mask(tmp_path / name)


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert digest(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    with pytest.raises(UnreadableImage, match="^no such file or directory$"):
        digest(tmp_path / "b")
    with pytest.raises(UnreadableImage, match="^a folder, not a file$"):
        digest(tmp_path)


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = images._sha256
    monkeypatch.setattr(images, "_sha256", lambda path: read.append(str(path)) or real(path))
    monkeypatch.setattr(images._DigestMemory, "SETTLED_NS", -1)  # the files of this test are too young to be trusted
    path, memory = tmp_path / "a", tmp_path / "digests"
    path.write_bytes(b"one")
    for _ in range(3):
        with digests_remembered_in(memory):
            assert digest(path) == hashlib.sha256(b"one").hexdigest()
    assert len(read) == 1
    path.write_bytes(b"two")
    with digests_remembered_in(memory):
        assert digest(path) == hashlib.sha256(b"two").hexdigest()
    memory.write_text("broken")
    with digests_remembered_in(memory):
        assert digest(path) == hashlib.sha256(b"two").hexdigest()
    assert len(read) == 3
    digest(path)
    assert len(read) == 4, "outside of the context nothing is remembered"


def test_digests_of_many_files_are_remembered_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images._DigestMemory, "SETTLED_NS", -1)
    paths = [tmp_path / f"{number}.png" for number in range(50)]
    digests = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(50)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % number)
    memory = tmp_path / "digests"
    with digests_remembered_in(memory):
        assert [digest(path) for path in paths[:20]] == digests[:20]
        with digests_remembered_in(memory):  # another run, which ends first
            assert [digest(path) for path in paths[20:]] == digests[20:]
    monkeypatch.setattr(images, "_sha256", lambda path: pytest.fail(f"{path} is read again"))
    with digests_remembered_in(memory):
        assert [digest(path) for path in reversed(paths)] == digests[::-1]
    paths[7].unlink()
    paths[7].mkdir()
    with digests_remembered_in(memory), pytest.raises(UnreadableImage, match="^a folder, not a file$"):
        digest(paths[7])


def test_damaged_memory_of_digests_gives_no_wrong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images._DigestMemory, "SETTLED_NS", -1)
    paths, memory = [tmp_path / "a", tmp_path / "b"], tmp_path / "digests"
    for path in paths:
        path.write_text(path.name)
    right = [hashlib.sha256(path.name.encode()).hexdigest() for path in paths]
    with digests_remembered_in(memory):
        assert [digest(path) for path in paths] == right
    whole = memory.read_bytes()
    for at in range(len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]):
            memory.write_bytes(damaged)
            with digests_remembered_in(memory):
                assert [digest(path) for path in paths] == right
            assert memory.stat().st_size == len(whole), "what is damaged is not kept"


def test_digests_that_cannot_be_kept_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images._DigestMemory, "SETTLED_NS", -1)
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "cache" / "digests").mkdir(parents=True)  # in the place of the file
    with digests_remembered_in(tmp_path / "cache" / "digests"):
        assert digest(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["digests"]


def test_young_files_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    with digests_remembered_in(tmp_path / "digests"):
        digest(tmp_path / "a")
    assert not (tmp_path / "digests").exists()


def test_real_photographs_are_read(real_data: Path) -> None:
    for path in sorted((real_data / "DR" / "idrid").rglob("*.jpg"))[::100]:
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(path), np.asarray(image))
    for path in sorted((real_data / "IDRiD_segmentation" / "masks").rglob("*.png"))[::60]:
        assert set(np.unique(read_mask(path))) == {0, 1}


@pytest.mark.parametrize("orientation, size", [(1, (30, 20)), (3, (30, 20)), (6, (20, 30))])
def test_a_header_tells_the_size_as_it_is_read(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    header = images.read_header(tmp_path / "a.jpg")
    assert (header.width, header.height, header.format) == (*size, "JPEG")
    assert images.read_image(tmp_path / "a.jpg").shape[:2] == (header.height, header.width)


def test_a_header_of_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(images.UnreadableImage, match="not a JPEG"):
        images.read_header(tmp_path / "a.jpg")
