"""The order of classes, and the many spellings of a grade of diabetic retinopathy.

Folders and manifests name their classes; alphabetical order would put mild before no_dr and 10 before 9. `order` finds
the order that the names mean. A data set without one (cats, dogs) is sorted by name.

Names are compared as people read them, not by their bytes (`plain`): macOS stores an accent apart from its letter, and
copied text brings spaces that nobody sees.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

#: The International Clinical Diabetic Retinopathy scale (Wilkinson et al. 2003); the index is the grade.
GRADES = ("no_dr", "mild", "moderate", "severe", "proliferative")
GRADE_SPELLINGS = "0-4, no_dr, normal, mild, moderate, severe, proliferative, pdr, mild_npdr, grade_2, 'Severe NPDR' …"

_RETINOPATHY = "(dr|(diabetic)?retinopathy)"
_NONPROLIFERATIVE = f"(npdr|nonproliferative{_RETINOPATHY}?|{_RETINOPATHY})?"
# Matched against lower-case names without anything but letters and digits.
_WORDS = tuple(
    re.compile(pattern)
    for pattern in (
        f"normal|healthy|(no|without)(apparent|signsof)?{_RETINOPATHY}",
        f"mild{_NONPROLIFERATIVE}",
        f"moderate{_NONPROLIFERATIVE}",
        f"severe{_NONPROLIFERATIVE}",
        f"pdr|proliferat(iv)?e{_RETINOPATHY}?",
    )
)
_NUMBERED = re.compile(r"(grade|level|class|stage|dr)?0*([0-4])(?![0-9])")
_NAMES_THE_DISEASE = re.compile("dr|retinopathy|proliferat")
_INTEGER = re.compile(r"(-?[0-9]+)(\.0*)?")  # "2.0": what a table makes of whole numbers where one is missing


@dataclass(frozen=True)
class Scale:
    """Classes in their order, and the way from a name to its class.

    Attributes:
        classes: display name of every class.
        index: class index of every name that was given.
        ordinal: whether the order of the classes means something.
    """

    classes: list[str]
    index: dict[str, int]
    ordinal: bool


def plain(name: str) -> str:
    """Return the name that people read: composed Unicode (NFC), single spaces between words, nothing invisible.

    Zero-width characters are removed; no-break and other wide or narrow spaces become plain ones. A name of which
    nothing would remain is returned as it is.
    """
    if name.isascii() and "  " not in name:
        return name.strip(" ") or name
    visible = (" " if unicodedata.category(c) == "Zs" else c for c in name if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", re.sub(" +", " ", "".join(visible)).strip(" ")) or name


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ in case, spaces or punctuation alone, sorted."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        letters = "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))
        groups[letters or name].append(name)
    return [group for group in groups.values() if len(group) > 1]


def same(what: str, spellings: Iterable[str]) -> list[str]:
    """Return a line for every name that is spelled in several ways that look the same (see `plain`).

    Args:
        what: the names stand for, such as "class".
        spellings: as they are on disk.
    """
    ways = defaultdict(set)
    for spelling in spellings:
        ways[plain(spelling)].add(spelling)
    return [
        f"{what} {name!r} is read from {len(group)} spellings that look alike: {', '.join(map(ascii, sorted(group)))}"
        for name, group in sorted(ways.items())
        if len(group) > 1
    ]


def grade(name: str) -> int | None:
    """Return the grade of diabetic retinopathy, 0 to 4, that a class name spells; None where it spells none."""
    if integer := _INTEGER.fullmatch(name):
        return int(integer[1]) if 0 <= int(integer[1]) < len(GRADES) else None
    text = _squeeze(name)
    number = _NUMBERED.match(text)
    word = text[number.end() :] if number else text
    by_word = next((grade for grade, pattern in enumerate(_WORDS) if pattern.fullmatch(word)), None)
    if number is None:
        return by_word
    by_number = int(number[2])
    return by_number if by_word == by_number or not word else None


def order(names: Iterable[str]) -> Scale:
    """Return the classes that `names`, one or several spellings of each, stand for.

    - Whole numbers are in numerical order, and only those that occur are classes.
    - Grades of diabetic retinopathy are in the order of their severity, in any mixture of spellings and numbers. Where
      a spelling names the disease the classes are all five, so that a grade nobody has shifts no other; where it is
      severity alone (normal, mild, severe) they are those that occur.
    - Everything else is sorted by name, and not ordinal.

    Names that `plain` makes equal are one class.
    """
    plain_of = {name: plain(name) for name in names}
    scale = _order(sorted(set(plain_of.values())))
    return Scale(scale.classes, {name: scale.index[text] for name, text in plain_of.items()}, scale.ordinal)


def _order(names: list[str]) -> Scale:
    numbers = [_INTEGER.fullmatch(name) for name in names]
    if names and all(numbers):
        values = [int(number[1]) for number in numbers if number]
        present = sorted(set(values))
        return Scale([*map(str, present)], {n: present.index(v) for n, v in zip(names, values, strict=True)}, True)
    grades = [grade(name) for name in names]
    if names and None not in grades:
        whole = any(_NAMES_THE_DISEASE.search(_squeeze(name)) for name in names)
        words = GRADES if whole else ("normal", *GRADES[1:])
        present = list(range(len(GRADES))) if whole else sorted({g for g in grades if g is not None})
        index = {name: present.index(g) for name, g in zip(names, grades, strict=True) if g is not None}
        return Scale([words[g] for g in present], index, True)
    return Scale(names, {name: i for i, name in enumerate(names)}, False)


def _squeeze(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
