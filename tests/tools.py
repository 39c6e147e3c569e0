"""Tools that some tests drive and pip does not install: a browser, a network of its own."""

import os
from collections.abc import Iterable
from shutil import which
from typing import NoReturn

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str:
    """Return the path of a browser, or leave the test out."""
    return next(filter(None, map(which, BROWSERS)), None) or leave_out(f"no {_either(BROWSERS)} is installed")


def leave_out(reason: str) -> NoReturn:
    """Skip a test whose tool is missing; under CI, which installs every tool, fail instead."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}: a CI run must not leave this test out", pytrace=False)
    pytest.skip(reason)


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"
