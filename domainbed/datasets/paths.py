"""What a path in a table refers to: the file that it names, or the one file that it can only mean.

    paths = Paths(table.parent)
    paths.find("cam1\\a.JPG")       # ("cam1/a.jpg", True): the file that is there
    paths.find("10_left")           # ("10_left.jpeg", True)
    paths.find("gone.png")          # ("gone.png", False)
    paths.explain("gone.png")       # a sentence on what to do about it

A path may have backslashes, be in another case or Unicode form, lack the suffix of an image, or be a file:// URL. If
one file fits, that is it. Each folder is listed once.
"""

import os
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from domainbed.datasets.images import IMAGE_SUFFIXES

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_WINDOWS = re.compile(r"[a-z]:[\\/]|\\\\", re.IGNORECASE)
#: A search for the folder that was meant looks no deeper, and at no more folders.
_DEPTH, _FOLDERS = 2, 300


class UnclearPath(Exception):
    """A path that can't be followed, or that several files fit; the message completes "row 3: …"."""


class _Listing:
    """The names in a folder: all, by their letters, and by the letters of what stands before an image's suffix."""

    def __init__(self, folder: Path) -> None:
        try:
            self.names = set(os.listdir(folder))
        except OSError:
            self.names = set()
        self.by_key: dict[str, list[str]] = defaultdict(list)
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.names):
            self.by_key[_key(name)].append(name)
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                self.by_stem[_key(stem)].append(name)


class Paths:
    """Finds the files that texts refer to.

    Args:
        root: the folder that relative paths start from.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[str, _Listing] = {}

    def find(self, text: str) -> tuple[str, bool]:
        """Return the path that a text refers to, relative to the root where the text is, and whether it is there.

        Raises:
            UnclearPath: it is a URL, a path on another system, or could be any of several files.
        """
        candidates = self._readings(text)
        for path in candidates:
            if self._is_there(path):
                return path, True
        for path in candidates:
            fitting = self._fitting(path)
            if len(fitting) > 1:
                raise UnclearPath(
                    f"{text!r} could be {' or '.join(map(repr, fitting[:3]))}. Write the one that is meant"
                )
            if fitting:
                return fitting[0], True
        return candidates[-1], False

    def explain(self, text: str) -> str:
        """Return a sentence on why a path leads nowhere, and what to do."""
        name = self._readings(text)[-1]
        folder, _, last = name.rpartition("/")
        stem, suffix = os.path.splitext(last)
        if suffix and (others := self._listing(folder).by_stem[_key(stem)]):
            return f"{folder}{'/' * bool(folder)}{others[0]} is there: write the suffixes that the files have"
        if os.path.isabs(name):
            return f"Absolute paths hold on one machine only: write them relative to {self.root}"
        near = list(islice(dict.fromkeys(self._other_roots(name)), 3))
        if near:
            return f"It is there below another folder: add {' or '.join(_as_option(one, self.root) for one in near)}"
        return f"Paths start from {self.root}; root_dir=<folder> names another folder"

    def _other_roots(self, name: str) -> Iterator[Path]:
        here = Path.cwd()
        for place in (here, *_folders_near(self.root)):
            if place != self.root and _fits(place, name):
                yield place

    def _readings(self, text: str) -> list[str]:
        """Return the paths that a text may spell, the literal one first."""
        if text.lower().startswith("file:"):
            text = unquote(urlsplit(text).path)
            text = text[1:] if _WINDOWS.match(text[1:]) else text
        elif _URL.match(text):
            raise UnclearPath(f"{text!r} is a URL. Download the images and give the paths of the files")
        if os.name != "nt" and _WINDOWS.match(text):
            raise UnclearPath(f"{text!r} is a path on a Windows machine. Write it relative to {self.root}")
        texts = (text, os.path.expanduser(text).replace("\\", "/"))
        return [os.path.normpath(one).replace(os.sep, "/") for one in dict.fromkeys(texts)]

    def _is_there(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in self._listing(folder or "/" * path.startswith("/")).names or os.path.lexists(
            os.path.join(self.root, path)
        )

    def _fitting(self, path: str) -> list[str]:
        """Return the paths that differ from this one in case, in Unicode form, or by the suffix of an image."""
        *folders, last = path.split("/")
        starts = [""]
        for folder in folders:
            starts = [
                f"{start}{name}/"
                for start in starts
                for name in ([folder] if folder in ("", "..") else self._listing(start).by_key[_key(folder)])
            ]
        for names in ("by_key", "by_stem"):
            if found := [
                f"{start}{name}" for start in starts for name in getattr(self._listing(start), names)[_key(last)]
            ]:
                return found
        return []

    def _listing(self, folder: str) -> _Listing:
        folder = folder if folder == "/" else folder.rstrip("/")
        if folder not in self._listings:
            self._listings[folder] = _Listing(self.root / folder)
        return self._listings[folder]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _fits(root: Path, name: str) -> bool:
    try:
        return Paths(root).find(name)[1]
    except UnclearPath:
        return True


def _folders_near(root: Path) -> Iterator[Path]:
    """Yield the folders below a folder, then those around it, the nearest first, none too deep."""
    return islice(chain(_below(root), [root.parent], _below(root.parent)), _FOLDERS)


def _below(start: Path) -> Iterator[Path]:
    level = [start]
    for _ in range(_DEPTH):
        found: list[Path] = []
        for folder in level:
            with suppress(OSError), os.scandir(folder) as entries:
                found += sorted(Path(one.path) for one in entries if one.name[0] != "." and one.is_dir())
        yield from found
        level = found[:_FOLDERS]


def _as_option(folder: Path, root: Path) -> str:
    """Return the setting that lets paths start from a folder, as a shell takes it."""
    relative = os.path.relpath(folder, root)
    return shlex.quote(f"root_dir={folder if relative.startswith('../..') else relative}")
