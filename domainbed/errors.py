"""The one exception for a user's mistake, and for a disk that fails. A bug is any other and keeps its traceback."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_NO_FOLDER = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG,
    errno.EEXIST, errno.EISDIR,  # a file where a folder should be, and the reverse
)  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake in a path, a key, a value or an image: what is wrong, what was found, what to do.

    The command line prints the message alone and exits with status 2.

    Attributes:
        said: whether another process of the same run says it already.
    """

    said = False


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence that names the nearest of `known`, other than `word`, then all of it."""
    known = sorted({str(name) for name in known} - {str(word)})
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=0.6)
    hint = f": did you mean {by_lower[near[0]]!r}?" if near else "."
    return f"{hint} known names: {', '.join(known) or 'none'}"


@contextmanager
def full_disk_explained(what: str) -> Iterator[None]:
    """Turn a full disk into a `UserError` that says what it means for the run, wherever something is written.

    So is a file that grew larger than a file may be there (`ulimit -f`, FAT).
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        place = f" ({error.filename})" if error.filename else ""
        full = "Files may not grow so large there" if error.errno == errno.EFBIG else "The disk is full"
        raise UserError(
            f"{what} failed: {error.strerror}{place}. {full}. Free some space, or write elsewhere, and run it again; a "
            "training that was saved goes on with --resume; what was saved before is untouched"
        ) from None


@contextmanager
def explain_os_errors(what: str) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into a `UserError` that says what it means for the run."""
    try:
        with full_disk_explained(what):
            yield
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        place = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"{what} failed: {error.strerror}{place}. The folder can't be made or written. Change its permissions, "
            "--results_dir or --out; what was saved before is untouched"
        ) from None
