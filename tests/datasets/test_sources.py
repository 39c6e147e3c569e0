"""Rows of arrays and members of a zip archive, against the arrays and files that they were made of."""

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.images import UnreadableImage
from domainbed.datasets.sources import Files, Rows, ZipMembers


def pictures(number=40):
    return np.random.default_rng(0).integers(0, 256, (number, 9, 7, 3), dtype=np.uint8)


def png(pixels):
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_rows_of_several_arrays_in_one_numbering():
    colours = pictures(6)
    grey = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    source = Rows(colours[:2], grey, colours[2:2], colours[2:])
    expected = [*colours[:2], *(np.stack([one] * 3, axis=2) for one in grey), *colours[2:]]
    for index, image in enumerate(expected):
        found = source.pixels(index)
        assert found.dtype == np.uint8 and (found == image).all()
    assert source.content(0) == hashlib.sha256(colours[0].tobytes()).hexdigest()
    assert len({source.content(index) for index in range(9)}) == 9
    with pytest.raises(IndexError):
        source.pixels(9)


def test_rows_are_copies():
    grey = np.zeros((1, 2, 2), np.uint8)
    Rows(grey).row(0)[...] = 1
    assert not grey.any()


def test_members_of_a_zip_from_many_threads(tmp_path):
    images = pictures()
    names = [f"x/{index}.png" for index in range(len(images))]
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", compression) as archive:
            for name, image in zip(names, images, strict=True):
                archive.writestr(name, png(image))
        with zipfile.ZipFile(tmp_path / "x.zip") as archive, ThreadPoolExecutor(8) as threads:
            source = ZipMembers(archive, names)
            order = np.random.default_rng(1).integers(0, len(images), 400).tolist()
            for index, found in zip(order, threads.map(source.pixels, order), strict=True):
                assert (found == images[index]).all()
            assert source.content(3) == hashlib.sha256(png(images[3])).hexdigest()


def test_a_member_that_can_not_be_read_says_why(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("whole.png", png(pictures(1)[0]))
        archive.writestr("empty.png", b"")
        archive.writestr("text.png", b"no image")
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[60] ^= 255  # inside whole.png
    (tmp_path / "broken.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        source = ZipMembers(archive, ["whole.png", "empty.png", "text.png", "gone.png"])
        assert source.pixels(0).shape == (9, 7, 3)
        for index, reason in ((1, "an empty file"), (2, "not a JPEG"), (3, "can't be unpacked: .*gone.png")):
            with pytest.raises(UnreadableImage, match=reason):
                source.pixels(index)
    with zipfile.ZipFile(tmp_path / "broken.zip") as archive:
        for read in (ZipMembers(archive, ["whole.png"]).pixels, ZipMembers(archive, ["whole.png"]).content):
            with pytest.raises(UnreadableImage, match="can't be unpacked: Bad CRC-32"):
                read(0)


def test_files(tmp_path):
    (tmp_path / "a.png").write_bytes(png(pictures(1)[0]))
    source = Files(tmp_path, ["a.png", "gone.png"])
    assert (source.pixels(0) == pictures(1)[0]).all()
    assert source.content(0) == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    for read in (source.pixels, source.content):
        with pytest.raises(UnreadableImage, match="no such file"):
            read(1)
