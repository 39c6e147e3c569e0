"""A missing tool leaves a test out on a user's machine, and fails it under CI."""

import pytest
import tools


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def test_without_a_browser_a_test_is_skipped_and_says_why(no_browser: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no chromium, chromium-browser or google-chrome is installed"):
        tools.browser()


def test_without_a_browser_a_test_fails_under_ci(no_browser: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="a CI run must not leave this test out"):
        tools.browser()
