"""`python -m domainbed predict`: what it prints, and its exit status. What is in the table is in `tests/analysis`."""

import json
from pathlib import Path

import pytest
from tiny_models import saved

from domainbed import cli
from domainbed.analysis import predict as analysis


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(saved("VAE_DG", tmp_path / "model")[1])


def test_a_folder(model: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photographs / "camera0" / "0" / "empty.jpg").touch()
    out = tmp_path / "tables" / "new.csv"
    command = ["predict", model, str(photographs), "--out", str(out), "--reconstructions", "--device", "cpu"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[1] == "72 images, preprocessed as in training: resize; 16 x 16 px"
    assert "could not be read, so without a row: 1" in lines
    assert f"  {photographs}/camera0/0/empty.jpg: an empty file" in lines
    assert any(line.split()[:1] == ["prediction"] for line in lines) and "PSNR" in printed.out
    assert "72/73" in printed.err or "73/73" in printed.err  # the bar
    assert len(out.read_text().splitlines()) == 73
    assert len([*(tmp_path / "tables" / "new" / "reconstructions").rglob("*.png")]) == 72
    assert cli.main(command) == 2
    assert "exists already. Go on with it by --resume" in capsys.readouterr().err
    assert cli.main([*command, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 72


def test_a_table_without_a_suffix_is_refused_before_anything_is_written(
    model: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", model, str(photographs), "--out", str(tmp_path / "new"), "--reconstructions"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path / 'new'} has no suffix")
    assert not [*tmp_path.glob("new*")]


def test_nothing_that_can_be_read(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_text("text")
    assert cli.main(["predict", model, str(tmp_path / "a.png"), "--out", str(tmp_path / "out.csv")]) == 2
    assert "error: none of the images (1) can be read" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    model: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(analysis, "make_rows", interrupted)
    out = tmp_path / "out.csv"
    assert cli.main(["predict", model, str(photographs), "--out", str(out), "--device", "cpu"]) == 130
    assert f"{out} holds what was done. Go on with the same command and --resume" in capsys.readouterr().err


def test_what_is_passed_over_is_said(
    model: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("scan.dcm", "$RECYCLE.BIN/x.png", "._00.png"):
        path = photographs / "camera0" / "0" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((photographs / "camera0" / "0" / "00.png").read_bytes())
    assert cli.main(["predict", model, str(photographs), "--out", str(tmp_path / "new.csv"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(f"NOTE: {photographs}: not read: 1 .dcm, such as 'camera0/0/scan.dcm'" in line for line in lines)
    assert (
        f"NOTE: {photographs}: passed over, as systems and programs leave it behind: 1 $RECYCLE.BIN, 1 ._*.png" in lines
    )
    assert any(line.startswith("72 images,") for line in lines)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "1.dcm").touch()
    assert cli.main(["predict", model, str(tmp_path / "scans"), "--out", str(tmp_path / "other.csv")]) == 2
    assert "only files that are not read: 1 .dcm, such as '1.dcm'" in capsys.readouterr().err
