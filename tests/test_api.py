"""`domainbed.train`: the same run as the command line's."""

import csv
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import domainbed
from domainbed.errors import UserError

SETTINGS = {
    "model": "test_resnet", "pretrained": False, "image_size": 16, "batch_size": 4, "num_workers": 1,
    "device": "cpu", "precision": "float32", "steps": 3, "checkpoint_freq": 2, "recon_freq": 0,
}  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notebook"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "config.yaml").write_text("")
    return folder


def test_it_is_the_run_of_the_command_line_bit_for_bit(elsewhere: Path, photographs: Path, capfd) -> None:
    from domainbed.cli.train import main

    given = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in SETTINGS.items()]
    given += ["augment=[horizontal_flip, vertical_flip]", "--test_envs", "camera1"]
    status = main("train_all", ["typed", "--algorithm", "CORAL", "--data_dir", str(photographs), *given])
    assert status == 0, capfd.readouterr()
    run = domainbed.train(
        "CORAL", data_dir=photographs, augment=["horizontal_flip", "vertical_flip"], test_envs=["camera1"], **SETTINGS
    )
    assert run.folder.name == "CORAL_1" and run.folder.parent.name == "DR"
    typed = run.folder.with_name("typed")
    weights = "te_camera1/checkpoints/last/model.safetensors"
    ours, theirs = load_file(run.folder / weights), load_file(typed / weights)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (run.folder / "summary.csv").read_text() == (typed / "summary.csv").read_text()
    recorded = (run.folder / "config.yaml").read_text()
    assert "--augment horizontal_flip vertical_flip --test_envs camera1 model=test_resnet pretrained=false" in recorded


def test_the_run_gives_its_summary_a_table_and_the_model(elsewhere: Path, photographs: Path) -> None:
    pytest.importorskip("pandas")
    run = domainbed.train("ERM", "DR", name="named", data_dir=photographs, test_envs=[0, "camera1"], **SETTINGS)
    rows = list(csv.DictReader((run.folder / "summary.csv").read_text().splitlines()))
    table = run.table()
    assert len(table) == len(rows) and list(table.columns) == list(rows[0])
    assert table["target"].tolist() == [row["target"] for row in rows]
    assert run.summary["conclusion"]
    model = run.load("camera1")
    assert model.predict(torch.rand(2, 3, 16, 16)).shape == (2, 5) and not model.training
    with pytest.raises(UserError, match="camera0"):
        run.load()  # of two targets


def test_a_mistake_is_an_error_with_the_command_lines_words_and_leaves_nothing(elsewhere: Path, photographs) -> None:
    with pytest.raises(UserError, match="no setting named 'stepz'"):
        domainbed.train("ERM", data_dir=photographs, stepz=3)
    with pytest.raises(UserError, match="steps = 'many' is not"):
        domainbed.train("ERM", data_dir=photographs, steps="many")
    with pytest.raises(UserError, match="CORAL compares training environments"):
        domainbed.train("CORAL", data_dir=photographs, test_envs=["0,camera1"], **SETTINGS)
    assert not list(elsewhere.rglob("te_*"))


def test_it_works_in_a_thread(elsewhere: Path, photographs: Path) -> None:
    found: list = []

    def work() -> None:
        found.append(domainbed.train("ERM", data_dir=photographs, test_envs=[0], **SETTINGS))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found and (found[0].folder / "te_camera0" / "done").exists()
