"""The order of classes, and the many spellings of a grade of diabetic retinopathy.

Folders and manifests name their classes; alphabetical order would put mild before no_dr and 10 before 9. `order` finds
the order that the names mean. A data set without one (cats, dogs) is sorted by name. Which cells of a table hold no
label at all is in `tables`.

Names are compared as people read them, not by their bytes (`plain`): macOS stores an accent apart from its letter, and
copied text brings spaces that nobody sees.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

#: The International Clinical Diabetic Retinopathy scale (Wilkinson et al. 2003); the index is the grade.
GRADES = ("no_dr", "mild", "moderate", "severe", "proliferative")
#: The lowest grade that needs a referral to an ophthalmologist.
REFERABLE = 2
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
# Tables turn whole numbers into floats where a cell is empty; some write a comma for the point. Two digits of exponent:
# more would only be a way to fill the memory.
_NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)(e[+-]?[0-9]{1,2})?", re.IGNORECASE)
#: What healthy eyes are called, beside the spellings of grade 0.
_WITHOUT_DISEASE = ("control", "controls", "negative", "none", "nondiseased", "unaffected")
_NEGATIONS = ("no", "non", "not", "without")
_BOOLEANS = ("false", "true")
_SHOWN = 5


@dataclass(frozen=True)
class Scale:
    """Classes in their order, and the way from a name to its class.

    Attributes:
        classes: display name of every class.
        index: class index of every name that was given.
        ordinal: whether the order of the classes means something.
        notes: a line for each way in which the classes may not be what was meant.
    """

    classes: list[str]
    index: dict[str, int]
    ordinal: bool
    notes: tuple[str, ...] = ()


def number(name: str) -> Fraction | None:
    """Return the number that a text spells, such as 2, 02, 2.0, 2., "2,0" or 2e0; None where it spells none."""
    text = unicodedata.normalize("NFKC", name).replace("\N{MINUS SIGN}", "-").strip()
    return Fraction(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None


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
    if (spelled := number(name)) is not None:
        return int(spelled) if spelled in range(len(GRADES)) else None
    text = _squeeze(name)
    prefix = _NUMBERED.match(text)
    word = text[prefix.end() :] if prefix else text
    by_word = next((grade for grade, pattern in enumerate(_WORDS) if pattern.fullmatch(word)), None)
    if prefix is None:
        return by_word
    by_number = int(prefix[2])
    return by_number if by_word == by_number or not word else None


def positives(classes: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the classes to be found: what sensitivity is the sensitivity for.

    Of two classes it is the second in order, or the first where only the second names the absence of disease
    (glaucoma, healthy). Of the five grades of diabetic retinopathy it is referable disease, grade 2 (moderate) and
    above (Wilkinson et al. 2003). Other classes have none.
    """
    if len(classes) == 2:
        first, second = classes
        return (0,) if _is_absence(second, of=first) and not _is_absence(first, of=second) else (1,)
    if [grade(name) for name in classes] == list(range(len(GRADES))):
        return tuple(range(REFERABLE, len(GRADES)))
    return ()


def _is_absence(name: str, of: str) -> bool:
    """Whether a class is named for lacking a disease: healthy, negative, or the other class with "no" before it."""
    text, disease = _squeeze(name), _squeeze(of)
    negated = any(text == prefix + disease for prefix in _NEGATIONS if disease)
    return grade(name) == 0 or text in _WITHOUT_DISEASE or negated


def order(names: Iterable[str]) -> Scale:
    """Return the classes that `names`, one or several spellings of each, stand for.

    - Numbers are in numerical order, however they are spelled (1, 01, 1.0, 1e0), and only those that occur are classes.
    - Grades of diabetic retinopathy are in the order of their severity, in any mixture of spellings and numbers. Where
      a spelling names the disease the classes are all five, so that a grade nobody has shifts no other; where it is
      severity alone (normal, mild, severe) they are those that occur.
    - true and false are two classes, in any case.
    - Everything else is sorted by name, and not ordinal. A note names the labels that cost grades or numbers their
      order, and classes that differ in case or punctuation alone.

    Names that `plain` makes equal are one class.
    """
    plain_of = {name: plain(name) for name in names}
    scale = _order(sorted(set(plain_of.values())))
    return replace(scale, index={name: scale.index[text] for name, text in plain_of.items()})


def _order(names: list[str]) -> Scale:
    numbers = {name: value for name in names if (value := number(name)) is not None}
    if names and len(numbers) == len(names):
        return _numerical(numbers)
    grades = {name: level for name in names if (level := grade(name)) is not None}
    if names and len(grades) == len(names):
        whole = any(_NAMES_THE_DISEASE.search(_squeeze(name)) for name in names)
        words = GRADES if whole else ("normal", *GRADES[1:])
        present = list(range(len(GRADES))) if whole else sorted(set(grades.values()))
        return Scale([words[g] for g in present], {name: present.index(g) for name, g in grades.items()}, True)
    if names and all(name.lower() in _BOOLEANS for name in names):
        classes = [word for word in _BOOLEANS if word in map(str.lower, names)]
        return Scale(classes, {name: classes.index(name.lower()) for name in names}, False)
    notes = []
    odd = [name for name in names if name not in numbers and name not in grades]
    levels = set(numbers.values()) | {Fraction(value) for value in grades.values()}
    if len(levels) > 1:  # one alone, as normal beside glaucoma, makes no scale
        odd = odd or [name for name in names if name not in grades]  # numbers that are no grades, beside words
        notes.append(
            f"the classes have no order, so there is no kappa, because of {_some(odd)}: all others are numbers or "
            f"grades. Correct {'it' if len(odd) == 1 else 'them'}, or leave {'it' if len(odd) == 1 else 'them'} out"
        )
    notes += [f"the classes {_some(group)} differ in case or punctuation alone" for group in alike(names)]
    return Scale(names, {name: i for i, name in enumerate(names)}, False, tuple(notes))


def _numerical(numbers: dict[str, Fraction]) -> Scale:
    present = sorted(set(numbers.values()))
    classes = [str(value.numerator) if value.denominator == 1 else str(float(value)) for value in present]
    fractions = [name for value, name in zip(present, classes, strict=True) if value.denominator > 1]
    notes = (
        [f"{_some(fractions)} among the labels: each of the {len(classes)} numbers is a class, in numerical order"]
        if fractions
        else []
    )
    return Scale(classes, {name: present.index(value) for name, value in numbers.items()}, True, tuple(notes))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _squeeze(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
