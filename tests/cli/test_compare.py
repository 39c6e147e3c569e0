"""`python -m domainbed compare`: what it prints, writes and refuses."""

import json
from pathlib import Path

import pytest
from planted_runs import plant
from refusal import refused

from domainbed import cli


@pytest.fixture
def two_runs(tmp_path: Path) -> list[str]:
    values = {"one": (0.71, 0.74, 0.69), "other": (0.60, 0.64, 0.57)}
    return [
        str(
            plant(
                tmp_path / name,
                {(seed, "x"): {"accuracy": value} for seed, value in enumerate(accuracies)},
                majority={"accuracy": 0.5},
                curves={(seed, "x"): {10: {"accuracy": 0.5}} for seed in range(3)},
            )
        )
        for name, accuracies in values.items()
    ]


def test_the_table_says_which_difference_counts(two_runs, tmp_path: Path, capsys) -> None:
    assert cli.main(["compare", *two_runs, "--out", str(tmp_path / "out")]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("| x | training-domain validation | one | 2 | 0.713 ± 0.025 |") for line in lines)
    assert "| x | majority class | (any run) | 2 | 0.500 |" in lines
    assert any("one - other" in line and "exceeds the seed noise: one is better" in line for line in lines)
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert all((tmp_path / "out" / picture["file"]).is_file() for picture in found["pictures"])


def test_json_is_one_object(two_runs, tmp_path: Path, capsys) -> None:
    assert cli.main(["compare", *two_runs, "--json", "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["differences"][0]["n"] == 3


def test_by_default_it_lands_beside_the_runs_under_their_names(two_runs, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *two_runs]) == 0
    assert (tmp_path / "results" / "compare" / "one+other" / "figures.json").is_file()


@pytest.mark.parametrize(
    "arguments, says", [(["one"], "two runs or more"), (["one", "nowhere"], "not the folder of a run")]
)
def test_what_is_refused(two_runs, tmp_path: Path, monkeypatch, capfd, arguments, says) -> None:
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    status = cli.main(["compare", *arguments])
    refused((status, *capfd.readouterr()), says)
    assert not (tmp_path / "results" / "compare").exists(), "nothing is made for what is refused"
