"""Checkpoints on a disk on which a kill may have left any stage of `save`."""

import errno
import os
import unicodedata
from pathlib import Path

import pytest
import torch

from domainbed import checkpoint
from domainbed.errors import UserError
from domainbed.registry import ALGORITHMS
from domainbed.testing import build


def algorithm(value: float):
    """An algorithm all of whose weights are one number."""
    made = build(ALGORITHMS["AE"], latent_dim=8)
    with torch.no_grad():
        for weights in made.parameters():
            weights.fill_(value)
    return made


def save(folder: Path, step: int) -> None:
    checkpoint.save(folder, algorithm(step), {"step": step}, {"step": step})


def found(folder: Path) -> tuple[int, float, int]:
    """Return the step, a weight, and the step of the state that a reader finds."""
    into = algorithm(-1)
    meta = checkpoint.load_weights(folder, into)
    return meta["step"], next(into.parameters()).flatten()[0].item(), checkpoint.load_state(folder)["step"]


def left(folder: Path, *, old: bool, current: bool, new: bool) -> None:
    """Leave what a kill leaves: `.last.old` of step 1, `last` of 1 or, beside the old one, 2, half of `.last.new`."""
    save(folder, 1)
    if old:
        folder.rename(folder.with_name(".last.old"))
        if current:
            save(folder.with_name("other"), 2)
            folder.with_name("other").rename(folder)
    if new:
        folder.with_name(".last.new").mkdir()
        (folder.with_name(".last.new") / "model.safetensors").write_bytes(b"half")


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ({"old": False, "current": True, "new": True}, 1),  # while the new one is written
        ({"old": True, "current": False, "new": True}, 1),  # between the two renames
        ({"old": True, "current": True, "new": False}, 2),  # before the old one is deleted
    ],
    ids=["writing", "between", "after"],
)
def test_a_kill_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path, stage: dict[str, bool], step: int) -> None:
    folder = tmp_path / "checkpoints" / "last"
    left(folder, **stage)
    before = sorted(path.name for path in folder.parent.iterdir())
    assert checkpoint.exists(folder) and found(folder) == (step, step, step)
    assert sorted(path.name for path in folder.parent.iterdir()) == before, "reading changes nothing"
    save(folder, 3)
    assert found(folder) == (3, 3, 3) and [path.name for path in folder.parent.iterdir()] == ["last"]


@pytest.mark.parametrize(
    "stage", [{"old": False, "current": True, "new": False}, {"old": True, "current": False, "new": True}]
)
@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: dict[str, bool], failing: int
) -> None:
    folder = tmp_path / "checkpoints" / "last"
    left(folder, **stage)
    rename, calls = os.rename, []

    def rename_or_fail(source, target):
        calls.append(target)
        if len(calls) == failing + stage["old"]:  # one more brings the old one back first
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename_or_fail)
        with pytest.raises(UserError, match="The disk is full"):
            save(folder, 2)
    assert found(folder) == (1, 1, 1)
    save(folder, 3)
    assert found(folder) == (3, 3, 3)


def test_names_that_an_earlier_run_recorded_by_their_bytes_are_those_of_the_data_set(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Modéré") for form in ("NFC", "NFD"))
    folder = tmp_path / f"te_{apart}" / "checkpoints" / "last"
    meta = {"step": 1, "classes": [apart, "0"], "sources": [f"{apart}\u200b"], "target": apart}
    checkpoint.save(folder, algorithm(1), meta, {"step": 1})
    read = checkpoint.read_meta(checkpoint.find_checkpoint(tmp_path, composed, None, "last"))
    assert (read["classes"], read["sources"]) == ([composed, "0"], [composed])
