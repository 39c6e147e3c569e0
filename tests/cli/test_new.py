"""`python -m domainbed new`: what it writes keeps the contract and trains as it stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed.cli import main

CHECKOUT = Path(__file__).parents[2]


def test_the_file_keeps_the_contract_and_trains(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "MyMethod"]) == 0
    assert "wrote my_method.py" in capfd.readouterr().out
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    checked = subprocess.run(
        [sys.executable, "my_method.py"], env=environment, text=True, capture_output=True, timeout=300
    )
    assert checked.stdout.strip().endswith("MyMethod keeps the contract"), checked.stderr[-2000:]
    line = (
        f"train_all mine --plugin my_method.py --algorithm MyMethod --data_dir {photographs} --test_envs 0 --steps 2 "
        "--checkpoint_freq 2 image_size=16 batch_size=4 model=test_resnet pretrained=false"
    )
    assert main(line.split()) == 0, capfd.readouterr().err
    assert (tmp_path / "results/train_output/DR/mine/te_camera0/done").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [("ERM", "'ERM' exists already"), ("my-method", "can't be the name of a class"), ("class", "can't be the name")],
)
def test_names_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, name: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", name]) == 2
    assert says in capfd.readouterr().err and not [*tmp_path.iterdir()]


def test_a_file_that_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_method.py").write_text("mine")
    assert main(["new", "MyMethod"]) == 2
    assert "exists already" in capfd.readouterr().err and (tmp_path / "my_method.py").read_text() == "mine"
