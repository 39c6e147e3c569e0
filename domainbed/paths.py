"""Paths that a user writes, and names that become files and folders.

    user_path("~/runs")           # the one way in which text becomes a path, wherever it was written
    folder_name("Canon: CR2")     # a name of an environment as part of a file's name

A name survives in the records; a file's name is only where things are, and is never read back into a name where it was
changed.
"""

import argparse
import hashlib
import os
import re
from pathlib import Path

from domainbed.errors import UserError

#: Bytes of a name that a file's name keeps: file systems allow 255, and `te_`, `_best` or `_train.png` are added.
MAX_NAME_BYTES = 200
#: What Windows, and so a share of its file systems, refuses in a name.
_RESERVED = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|[. ]$|^\.|^$')
_DIGEST = re.compile("~[0-9a-f]{12}$")


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a user means: a leading `~` or `~user` is expanded, `$HOME` is left to the shell.

    Raises:
        UserError: it is empty, holds a control character, or names a user who has no home here.
    """
    path = os.fspath(text)
    if not path.strip():
        raise UserError("the path is empty. Give the path of a file or a folder")
    if control := re.search(r"[\x00-\x1f\x7f]", path):
        raise UserError(
            f"the path {path!r} holds the control character {control[0]!r}. Give it without, or rename what it names"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(
            f"the path {path!r} begins with {home}, and no home folder is known for that. Write the path in full, or "
            f"./{path} for what is called so"
        ) from None


def as_path(text: str) -> Path:
    """`user_path` as the `type` of an argument of argparse, whose message then names the argument."""
    try:
        return user_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def folder_name(name: str) -> str:
    """Return a name as (part of) the name of a file or folder: itself where every file system takes it.

    Otherwise what can't be there is replaced, what is too long is cut, and a digest of the name is added, so that
    different names never share a folder.
    """
    if not _RESERVED.search(name) and not _DIGEST.search(name) and len(_encoded(name)) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(_encoded(name)).hexdigest()[:12]
    kept = name.encode("utf-8", "replace")[: MAX_NAME_BYTES - 13].decode("utf-8", "ignore")
    return f"{_RESERVED.sub('_', kept)}~{digest}"


def is_shortened(folder: str) -> bool:
    """Whether `folder_name` changed the name that a folder's name came from, which then has to be read elsewhere."""
    return _DIGEST.search(folder) is not None


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
