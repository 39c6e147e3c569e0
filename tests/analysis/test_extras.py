"""What an extra brings is asked for by name, before long work and when it is used."""

import sys

import pytest

from domainbed.analysis import extras
from domainbed.errors import UserError


@pytest.mark.parametrize("ask", [extras.require, extras.check])
def test_a_library_that_is_not_there_is_named_with_the_line_that_installs_it(ask) -> None:
    with pytest.raises(UserError, match=r'the map needs no_such_library, .* pip install "domainbed-ae\[analysis\]"'):
        ask("no_such_library", "analysis", "the map")


def test_a_library_that_is_there_is_given_and_not_imported_by_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    extras.check("colorsys", "analysis", "colours")
    assert "colorsys" not in sys.modules
    assert extras.require("colorsys", "analysis", "colours").rgb_to_hsv(1, 1, 1) == (0.0, 0.0, 1)


def test_a_library_that_lacks_another_speaks_for_itself(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        extras.require("half_installed", "analysis", "the map")
