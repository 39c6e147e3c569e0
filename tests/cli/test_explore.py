"""`python -m domainbed explore`: which data set it takes, what it prints, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
