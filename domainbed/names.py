"""Names of files, folders and classes where people read them: on a terminal, in a picture."""

import re

# control characters, line and paragraph separators, and what Python makes of bytes that are not UTF-8
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return text on one line that can be drawn and encoded: "a\tb" with a backslash and a t in place of a tab."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
