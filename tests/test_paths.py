"""Text becomes a path, and a name becomes part of a file's name."""

import os

import pytest

from domainbed.errors import UserError
from domainbed.paths import MAX_NAME_BYTES, folder_name, is_shortened, user_path

PLAIN = ["idrid", "a+b", "none", "Canon CR2", "眼底", "-x", "0", "x" * MAX_NAME_BYTES, "a~b", "x.y"]
OTHERS = [
    "x" * 300, "x" * 301, "眼" * 100, "a:b", "a|b", "a/b", "a\\b", "..", ".", ".a", "a.", "a ", "a\nb", "a\0b", 'a"b',
    "a?b", "a*b", "<a>", "a_b~0123456789ab", folder_name("x" * 300), folder_name("a:b"), "\udcff" * 300,
]  # fmt: skip


def test_a_plain_name_stays_as_it_is():
    assert [folder_name(name) for name in PLAIN] == PLAIN
    assert not any(map(is_shortened, PLAIN))


def test_other_names_become_folders_that_every_file_system_takes_and_no_two_the_same(tmp_path):
    folders = [folder_name(name) for name in OTHERS]
    assert len({folder.casefold() for folder in folders + PLAIN}) == len(OTHERS) + len(PLAIN)
    for folder in folders:
        assert is_shortened(folder)
        assert len(os.fsencode(folder)) <= MAX_NAME_BYTES and not set(folder) & set('/\\:*?"<>|\n\0')
        (tmp_path / f"te_{folder}_train.png").touch()


def test_home_is_expanded_and_variables_are_not(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a/") == tmp_path / "a" and str(user_path("$HOME/a")) == "$HOME/a"
    assert user_path(user_path("~")) == tmp_path
    with pytest.raises(UserError, match="~nobody9"):
        user_path("~nobody9/a")
