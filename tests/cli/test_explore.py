"""`python -m domainbed explore`: which data set it takes, what it prints, and what it refuses."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed import cli


def explored(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.main(["explore", *map(str, arguments)])
    return status, *capfd.readouterr()


def test_a_folder_is_described_in_tables(photographs: Path, tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (photographs / "camera1" / "0" / "00.png").write_bytes(b"")
    (photographs / "camera2" / "$RECYCLE.BIN").mkdir()
    for index in range(30):
        (photographs / "camera2" / f"{index}.dcm").touch()
    status, out, _ = explored(capfd, photographs)
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "DR: 71 images of 3 environments" in lines
    assert "camera1 23 23 11 0 12 0 0 20 x 20 PNG 23" in lines
    assert "camera1/0/00.png: an empty file" in lines
    assert any(line.startswith("NOTE: environment 'camera2': not read: 30 .dcm, such as 'camera2/") for line in lines)
    assert any(line.endswith("programs leave it behind: 1 $RECYCLE.BIN") for line in lines)
    assert any(line.startswith("NOTE: these are no photographs of retinas") for line in lines)
    assert any(line.startswith("colour and light 1.000 [1.000, 1.000]") for line in lines)  # they differ in brightness
    assert any(line.startswith("chance is 0.333") for line in lines)
    folder = tmp_path / "results" / "explore" / "photographs"
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["environments"]["camera1"]["images"] == 23
    assert all((folder / picture["file"]).is_file() for picture in figures["pictures"])


def test_json_is_one_object_and_settings_are_the_data_sets(tmp_path: Path, capfd) -> None:
    words = ["--dataset", "SyntheticFundus", "num_images=3", "--out", tmp_path / "out", "image_size=64", "--json"]
    status, out, _ = explored(capfd, *words)
    assert status == 0 and json.loads(out)["images"] == 12
    assert json.loads(out) == json.loads((tmp_path / "out" / "figures.json").read_text())


def test_classes_that_are_no_grades_are_read_as_a_folder(photographs: Path, tmp_path: Path, capfd) -> None:
    for camera in photographs.iterdir():
        (camera / "0").rename(camera / "cat")
        (camera / "2").rename(camera / "dog")
    status, out, _ = explored(capfd, photographs, "--max_images", 3, "--out", tmp_path / "out")
    assert status == 0 and out.startswith("Folder: 9 images of 3 environments")
    status, out, _ = explored(capfd, photographs / "camera2", "--max_images", 3, "--out", tmp_path / "out")
    assert status == 0 and out.startswith("Folder: 3 images of 1 environment\n")
    assert "there are no two" in out


@pytest.mark.parametrize("words, said", [
    ([], "explore needs images. Give the folder"),
    (["nowhere"], "there is no 'nowhere'"),
    (["--dataset", "DRR"], "did you mean 'DR'?"),
    (["nowhere", "image_sice=3"], "image_sice"),
    (["a", "b"], "explore reads one folder"),
    (["--max_images", "0"], "not a whole number of at least 1"),
])  # fmt: skip
def test_a_mistake_is_one_message(words: list[str], said: str, tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = explored(capfd, *words)
    assert status == 2 and out == "" and said in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch() -> None:
    code = "import sys; from domainbed import cli; cli.main(['explore', '--help'])"
    forbid = "import sys; sys.modules['torch'] = sys.modules['cv2'] = sys.modules['sklearn'] = None; "
    done = subprocess.run([sys.executable, "-c", forbid + code], capture_output=True, text=True, timeout=60)
    assert "key=value" in done.stdout, done.stderr


def png(height: int, width: int, level: int | None = None) -> bytes:
    """Return a picture of noise, or of one grey level."""
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels if level is None else np.full_like(pixels, level)).save(buffer, "PNG")
    return buffer.getvalue()


def images(root: Path, names: list[bytes], *contents: bytes) -> Path:
    """Write a file for each name, which are bytes as the file system has them; the contents take turns."""
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(contents[number % len(contents)])
    return root


FOUR = [b"a/0/1.png", b"a/1/2.png", b"b/0/3.png", b"b/1/4.png"]
NO_UTF8 = [b"a\xfe/c\xfd/\xff1.png", b"a\xfe/d\xfd/\xff2.png", b"b\xfe/c\xfd/\xff3.png", b"b\xfe/d\xfd/\xff4.png"]
NO_TEXT = [name.replace(b"/", b"\n|\t<b>$x^$ $\\frac$`/") for name in FOUR]


@pytest.mark.parametrize(
    "names, contents",
    [
        (FOUR[:1], [png(40, 50)]),
        (FOUR[:2], [png(40, 50), png(50, 40)]),
        (FOUR[::2], [png(40, 50), png(50, 40)]),  # one class
        (FOUR, [png(40, 50)]),  # all are the same
        (FOUR, [png(40, 50, level=0)]),
        (FOUR, [png(1, 1), png(1, 1, level=0)]),
        (FOUR, [png(1, 3000), png(3000, 2)]),
        (FOUR, [png(40, 50), png(40, 50), b"", b""]),  # nothing of one environment can be read
        (FOUR, [png(40, 50), b"", b"", b""]),
        (NO_UTF8, [png(40, 50), png(50, 40)]),
        (NO_TEXT, [png(40, 50), png(50, 40), png(45, 45), b""]),
        (["眼/一/é.png".encode()] * 2, [png(40, 50)]),
        (
            [b"%c/%c/%b%d.png" % (e, c, 200 * b"x", i) for e in b"ab" for c in b"01" for i in range(3)],
            [png(40, 50), png(50, 40)],
        ),
        (
            [
                200 * bytes([e]) + b"/" + 200 * bytes([c]) + b"/%d.png" % i
                for e in b"ab"
                for c in b"01"
                for i in range(3)
            ],
            [png(40, 50), png(50, 40)],
        ),
    ],
)
def test_few_and_odd_images(tmp_path: Path, capfd, names: list[bytes], contents: list[bytes]) -> None:
    images(tmp_path / "data", names, *contents)
    status, out, error = explored(capfd, tmp_path / "data", "--out", tmp_path / "out", "--num_workers", 1)
    assert (status, error) == (0, "")
    readable = sum(contents[number % len(contents)] != b"" for number in range(len(set(names))))
    assert out.split(":")[1].startswith(f" {readable} images of")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))
    for picture in figures["pictures"]:
        Image.open(tmp_path / "out" / picture["file"]).verify()
    status, again, error = explored(capfd, tmp_path / "data", "--out", tmp_path / "out", "--json")
    assert (status, error) == (0, "") and json.loads(again) == figures


def test_a_name_takes_one_line(tmp_path: Path, capfd) -> None:
    images(tmp_path / "data", NO_TEXT, png(40, 50), b"")
    _, out, _ = explored(capfd, tmp_path / "data", "--out", tmp_path / "out")
    lines = out.splitlines()
    assert sum(line.startswith("  a\\n|\\t<b>") and line.endswith(": an empty file") for line in lines) == 1
    assert not any("\t" in line for line in lines)


def test_a_folder_of_empty_files_is_refused_with_one_message(tmp_path: Path, capfd) -> None:
    images(tmp_path / "data", FOUR, b"")
    status, out, error = explored(capfd, tmp_path / "data", "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert error == "error: none of 4 images can be read, such as a/0/1.png: an empty file. Give another folder\n"
