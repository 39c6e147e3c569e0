"""`python -m domainbed report`: where the page lands, what is said of it, and a run of this program in it."""

import json
from pathlib import Path
from typing import Any

import pytest
from planted_runs import plant
from refusal import refused

from domainbed import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    figures = {(0, "x"): {"accuracy": 0.9}}
    return plant(tmp_path / "run", figures, majority={"accuracy": 0.5}, intervals={"accuracy": (0.8, 0.95)})


def test_the_words_and_the_size_are_printed_and_the_page_lies_in_the_run(folder: Path, capsys) -> None:
    assert cli.main(["report", str(folder), "--quick"]) == 0
    out = capsys.readouterr().out
    page = folder / "analysis" / "report" / "report.html"
    assert page.is_file() and str(page) in out and "MB)" in out
    assert "Yes:" in out and "accuracy 0.900 on x; majority class 0.500" in out


def test_of_several_trainings_the_page_says_which_one_it_shows(tmp_path: Path, capsys) -> None:
    folder = str(plant(tmp_path / "two", {(0, "x"): {"accuracy": 0.9}, (0, "y"): {"accuracy": 0.5}}))
    for arguments, target in (([], "x"), (["--target", "y"], "y")):
        assert cli.main(["report", folder, "--quick", "--out", str(tmp_path / "page.html"), *arguments]) == 0
        assert f"pictures are of target {target}, seed 0, one of 2 trainings" in capsys.readouterr().out
        assert f"of the training with target {target}, seed 0" in (tmp_path / "page.html").read_text()


def test_what_the_disk_has_damaged_is_left_out(folder: Path, capsys) -> None:
    (folder / "summary.json").write_text("")
    (folder / "images.csv").write_text("image,environment,split\nx")
    with (folder / "results.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{"kind"\n[1, 2]\n')
    assert cli.main(["report", str(folder), "--quick"]) == 0
    assert "Yes:" in capsys.readouterr().out
    assert "nobody knows which images were where" in (folder / "analysis" / "report" / "report.html").read_text()


def test_a_quote_that_is_never_closed(folder: Path, capsys) -> None:
    (folder / "images.csv").write_text('image,environment,split,class,content\n"' + "x\n" * 100_000)
    assert cli.main(["report", str(folder), "--quick"]) == 0
    assert "nobody knows which images were where" in (folder / "analysis" / "report" / "report.html").read_text()


def test_out_is_a_file_or_a_folder_and_several_runs_have_one_page(
    folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    other = plant(tmp_path / "other", {(0, "x"): {"accuracy": 0.5}})
    assert cli.main(["report", str(folder), str(other), "--quick", "--out", "all.html"]) == 0
    capsys.readouterr()
    assert "Comparison" in (tmp_path / "all.html").read_text()
    assert cli.main(["report", str(folder), "--quick", "--out", "here", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == (tmp_path / "here" / "report.html").stat().st_size
    assert cli.main(["report", str(folder), str(other), "--quick"]) == 0
    assert (tmp_path / "results" / "compare" / "run+other" / "report.html").is_file()


@pytest.mark.parametrize(
    "arguments, says",
    [(["nowhere"], "not the folder of a run"), (["run", "--quick", "--target", "y"], "no training of target y")],
)
def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch, capfd, arguments: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    status = cli.main(["report", *arguments])
    refused((status, *capfd.readouterr()), says)


def test_a_run_of_this_program_has_its_model_on_the_page(train: Any, photographs: Path, capfd) -> None:
    settings = ["--steps", 2, "--checkpoint_freq", 1, "--recon_freq", 1, "batch_size=4", "--test_envs", 0]
    status, _, err = train("shown", "--algorithm", "AE", "--data_dir", photographs, *settings)
    assert status == 0, err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("domainbed.analysis.report.parts.SECTIONS", {})
        assert cli.main(["report", "results/train_output/DR/shown", "--device", "cpu"]) == 0
    page = Path("results/train_output/DR/shown/analysis/report/report.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [one["step"] for one in data["slider"]["run0"]["camera0_val"]] == [0, 1, 2]
    assert len(data["map"]["run0"]["points"]) == len(data["map"]["run0"]["names"]) > 24  # all of camera0 is held out
    assert set(data["map"]["run0"]["roles"]) == {"left out of training", "held out"}
    assert {panel["title"] for panel in data["curves"]["run0-target"]["panels"]} >= {"MSE", "PSNR (dB)"}
