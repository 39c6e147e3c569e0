"""The order of classes, and the many spellings of a grade of diabetic retinopathy.

Folders and manifests name their classes; alphabetical order would put mild before no_dr and 10 before 9. `order` finds
the order that the names mean. A data set without one (cats, dogs) is sorted by name.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


def positives(classes: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the classes to be found: what sensitivity is the sensitivity for.

    Of two classes it is the second in order. Of the five grades of diabetic retinopathy it is referable disease, grade
    2 (moderate) and above (Wilkinson et al. 2003). Other classes have none.
    """
    if len(classes) == 2:
        return (1,)
    if [grade(name) for name in classes] == list(range(len(GRADES))):
        return tuple(range(REFERABLE, len(GRADES)))
    return ()


def order(names: Iterable[str]) -> Scale:
    """Return the classes that `names`, one or several spellings of each, stand for.

    - Whole numbers are in numerical order, and only those that occur are classes.
    - Grades of diabetic retinopathy are in the order of their severity, in any mixture of spellings and numbers. Where
      a spelling names the disease the classes are all five, so that a grade nobody has shifts no other; where it is
      severity alone (normal, mild, severe) they are those that occur.
    - Everything else is sorted by name, and not ordinal.
    """
    names = sorted(set(names))
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
