"""The one exception for a user's mistake. A bug is any other exception and keeps its traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a path, a key, a value or an image: what is wrong, what was found, what to do.

    The command line prints the message alone and exits with status 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence that names the nearest of `known`, then all of it."""
    known = sorted(map(str, known))
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), list(by_lower), n=2, cutoff=0.6)
    hint = f": did you mean {' or '.join(repr(by_lower[name]) for name in near)}?" if near else "."
    return f"{hint} known names: {', '.join(known) or 'none'}"
