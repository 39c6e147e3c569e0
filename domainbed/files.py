"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give the path of a draft to write; it replaces `path` when the block ends, and is removed if the block fails.

        with write_atomically(path) as draft:
            draft.write_text(text)

    A reader, and whoever looks after a kill or a power cut, finds the old file or the new one, whole.

    Raises:
        OSError: the draft can't be synced or moved, for example on a full disk; `path` is as it was.
    """
    draft = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix stays: some writers go by it
    try:
        yield draft
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
