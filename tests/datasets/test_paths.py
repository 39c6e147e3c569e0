"""Paths as tables spell them, against files that are there."""

import unicodedata
from pathlib import Path

import pytest

from domainbed.datasets.paths import Paths, UnclearPath


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("cam1/A.JPG", "cam1/10_left.jpeg", "cam2/b.png", "cam2/b.jpg", "caf\u00e9/c.png", "d e.tif", "f.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("cam1/A.JPG", "cam1/A.JPG"),
        ("./cam2/../cam1/A.JPG", "cam1/A.JPG"),
        ("cam1\\A.JPG", "cam1/A.JPG"),
        (".\\Cam1\\a.jpg", "cam1/A.JPG"),
        ("CAM1/a.jpg", "cam1/A.JPG"),
        ("cam1/10_left", "cam1/10_left.jpeg"),
        ("cam1/10_LEFT", "cam1/10_left.jpeg"),
        ("cam2/b.png", "cam2/b.png"),
        (unicodedata.normalize("NFD", "caf\u00e9/c.png"), "caf\u00e9/c.png"),
        ("d e", "d e.tif"),
        ("f.txt", "f.txt"),
    ],
)
def test_a_path_leads_to_its_file(root, text, file):
    assert Paths(root).find(text) == (file, True)


def test_a_literal_name_wins(root):
    (root / "cam1\\A.JPG").write_bytes(b"")
    (root / "cam1" / "10_left").write_bytes(b"")
    assert Paths(root).find("cam1\\A.JPG") == ("cam1\\A.JPG", True)
    assert Paths(root).find("cam1/10_left") == ("cam1/10_left", True)


def test_absolute_paths_and_urls_of_files(root):
    file = root / "d e.tif"
    assert Paths(root / "cam1").find(str(file)) == (str(file), True)
    assert "%20" in file.as_uri()
    assert Paths(root / "cam1").find(file.as_uri()) == (str(file), True)
    assert Paths(root / "cam1").find("../d e.tif") == ("../d e.tif", True)


def test_the_home_folder(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    assert Paths(root / "cam1").find("~/cam2/b.png") == (str(root / "cam2/b.png"), True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cam2/b", "could be 'cam2/b.jpg' or 'cam2/b.png'"),
        ("https://x.org/a.png", "is a URL"),
        ("s3://bucket/a.png", "is a URL"),
        ("C:\\data\\a.png", "on a Windows machine"),
        ("c:/data/a.png", "on a Windows machine"),
        ("\\\\server\\share\\a.png", "on a Windows machine"),
        ("file:///C:/data/a.png", "on a Windows machine"),
    ],
)
def test_a_path_that_can_not_be_followed(root, text, says):
    with pytest.raises(UnclearPath, match="^'"):
        Paths(root).find(text)
    try:
        Paths(root).find(text)
    except UnclearPath as error:
        assert says in str(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gone.png", "root_dir=<folder>"),
        ("cam1/10_left.jpg", "cam1/10_left.jpeg is there"),
        ("/elsewhere/a.png", "Absolute paths hold on one machine only"),
        ("10_left", "add root_dir=cam1"),
        ("data/d e.tif", "add root_dir=.."),
    ],
)
def test_why_a_file_is_not_there(root, text, says):
    assert not Paths(root).find(text)[1]
    assert says in Paths(root).explain(text)


def test_paths_that_start_where_the_command_runs(root, monkeypatch, tmp_path):
    (tmp_path / "deep/er/tables").mkdir(parents=True)
    monkeypatch.chdir(root)
    assert f"add root_dir={root}" in Paths(tmp_path / "deep/er/tables").explain("cam1/A.JPG")


def test_folders_of_the_same_letters(root):
    (root / "CAM1").mkdir()
    (root / "CAM1/A.JPG").write_bytes(b"")
    assert Paths(root).find("CAM1/A.JPG") == ("CAM1/A.JPG", True)
    with pytest.raises(UnclearPath, match="could be 'CAM1/A.JPG' or 'cam1/A.JPG'"):
        Paths(root).find("Cam1/a.jpg")
