"""A file that is written is there whole or not at all."""

import errno
from pathlib import Path

import pytest

from domainbed.errors import UserError, explain_os_errors
from domainbed.files import write_atomically


def test_the_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with write_atomically(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old" and draft.suffix == ".json" and draft.parent == tmp_path
    assert path.read_text() == "new" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException] | OSError) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(type(failure) if isinstance(failure, OSError) else failure), write_atomically(path) as draft:
        draft.write_text("ne")
        raise failure
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_a_disk_that_is_full_when_the_file_is_synced_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    monkeypatch.setattr("domainbed.files.os.fsync", full)
    with (
        pytest.raises(UserError, match="writing a.json failed"),
        explain_os_errors("writing a.json"),
        write_atomically(path) as draft,
    ):
        draft.write_text("new")
    assert not [*tmp_path.iterdir()]
