"""Class order against hand-written expectations."""

import random

import pytest

from domainbed.datasets import fundus_drawing
from domainbed.datasets.labels import GRADES, grade, order, plain, positives


def test_integers_sort_numerically():
    names = [str(number) for number in range(12)]
    random.Random(0).shuffle(names)
    scale = order(names)
    assert scale.classes == [str(number) for number in range(12)]
    assert all(scale.index[str(number)] == number for number in range(12))
    assert scale.ordinal


def test_integers_that_do_not_occur_are_no_classes():
    scale = order(["7", "3", "10"])
    assert (scale.classes, scale.index) == (["3", "7", "10"], {"3": 0, "7": 1, "10": 2})


def test_spellings_of_one_integer_are_one_class():
    scale = order(["01", "1", "1.0", "2"])
    assert scale.classes == ["1", "2"]
    assert scale.index == {"01": 0, "1": 0, "1.0": 0, "2": 1}


@pytest.mark.parametrize("spelled", ["1", "01", "1.", "1.0", "1.000", "1,0", "+1", "1e0", "1E+00", "10e-1", "\uff11"])
def test_spellings_of_a_whole_number(spelled):
    assert order([spelled, "0.0", "10"]).classes == ["0", "1", "10"]
    assert grade(spelled) == 1


def test_fractions_are_in_numerical_order_and_noted():
    scale = order(["0", "10", "0.5", "2"])
    assert (scale.classes, scale.ordinal) == (["0", "0.5", "2", "10"], True)
    assert "'0.5'" in scale.notes[0] and "4 numbers" in scale.notes[0]


def test_true_and_false_in_any_case():
    scale = order(["TRUE", "False", "true"])
    assert (scale.classes, scale.index) == (["false", "true"], {"TRUE": 1, "False": 0, "true": 1})


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        (["0", "1", "4", "ungradable"], "'ungradable'"),
        (["mild", "severe", "Ungradable", "0.5"], "'Ungradable'"),
        (["7", "mild"], "'7'"),
        (["mild", "severe", "0.5"], "'0.5'"),
    ],
)
def test_what_takes_the_order_away_is_named(names, odd):
    scale = order(names)
    assert not scale.ordinal and f"because of {odd}:" in scale.notes[0]


@pytest.mark.parametrize(
    "names", [["dog", "cat"], ["normal", "glaucoma"], ["0", "cat"], ["0", "1"], ["mild", "severe"]]
)
def test_no_note_where_no_order_was_meant_or_none_is_lost(names):
    assert order(names).notes == ()


SPELLINGS = {
    0: ["no_dr", "nodr", "No DR", "NO-DR", "normal", "Healthy", "No_Diabetic_Retinopathy", "no apparent retinopathy",
        "0", "00", "0_no_dr", "0 - No DR", "grade_0", "Level0"],
    1: ["mild", "Mild", "mild_npdr", "Mild NPDR", "mild-dr", "Mild_nonproliferative_diabetic_retinopathy", "1",
        "1_mild", "1.0", "Grade 1", "1. Mild"],
    2: ["moderate", "MODERATE", "moderate_NPDR", "Moderate DR", "2", "2-moderate", "stage_2"],
    3: ["severe", "Severe_NPDR", "severe npdr", "severe dr", "3", "class3"],
    4: ["proliferative", "Proliferative_DR", "proliferate_dr", "Proliferate_DR", "PDR", "pdr",
        "Proliferative Diabetic Retinopathy", "4", "4_pdr", "DR4"],
}  # fmt: skip


@pytest.mark.parametrize(("expected", "name"), [(g, name) for g, names in SPELLINGS.items() for name in names])
def test_grade_spellings(expected, name):
    assert grade(name) == expected


@pytest.mark.parametrize(
    "name",
    ["5", "5.0", "-1", "1.5", "10", "44", "glaucoma", "cat", "", "dr", "npdr", "nonproliferative", "nonpdr", "0_mild",
     "mild_2x", "very severe", "severely", "no", "grade", "images", "train"],
)  # fmt: skip
def test_what_is_no_grade(name):
    assert grade(name) is None


def test_words_and_numbers_of_several_environments_are_the_same_classes():
    scale = order(["0", "1", "2", "3", "4", "no_dr", "Mild", "moderate_npdr", "severe", "PDR"])
    assert scale.classes == list(GRADES)
    assert [scale.index[n] for n in ("0", "1", "2", "3", "4")] == [0, 1, 2, 3, 4]
    assert [scale.index[n] for n in ("no_dr", "Mild", "moderate_npdr", "severe", "PDR")] == [0, 1, 2, 3, 4]
    assert scale.ordinal


def test_a_grade_of_the_disease_that_nobody_has_shifts_no_other():
    scale = order(["no_dr", "severe"])
    assert scale.classes == list(GRADES)
    assert scale.index == {"no_dr": 0, "severe": 3}


def test_severity_alone_keeps_its_order_and_the_classes_that_occur():
    scale = order(["severe", "normal", "mild"])
    assert scale.classes == ["normal", "mild", "severe"]
    assert scale.index == {"normal": 0, "mild": 1, "severe": 2}
    assert scale.ordinal


@pytest.mark.parametrize("names", [["dog", "cat"], ["normal", "glaucoma"], ["0", "cat"], ["7", "mild"], ["Cat", "cat"]])
def test_everything_else_is_sorted_by_name(names):
    scale = order(names)
    assert scale.classes == sorted(names)
    assert scale.index == {name: i for i, name in enumerate(sorted(names))}
    assert not scale.ordinal


def test_no_names():
    assert (order([]).classes, order([]).index, order([]).ordinal) == ([], {}, False)


def test_the_drawing_has_the_same_grades():
    assert fundus_drawing.GRADES == GRADES


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Mode\u0301re\u0301", "Mod\u00e9r\u00e9"), ("\u1112\u1161\u11ab", "\ud55c"), ("\u00c4rzte", "\u00c4rzte"),
        ("mild\u200b", "mild"), ("\ufeffmild", "mild"), ("mi\u00adld", "mild"), ("a\u200b\u0301", "\u00e1"),
        (" mild\u00a0 npdr\u2003", "mild npdr"), ("x\u00b2", "x\u00b2"), ("cat", "cat"), ("\u200b", "\u200b"), ("", ""),
        ("a\udcff", "a\udcff"),
    ],
)  # fmt: skip
def test_a_name_is_what_people_read(written, read):
    assert plain(written) == read
    assert plain(read) == read


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (list(GRADES), (2, 3, 4)),
        (list("01234"), (2, 3, 4)),
        (["normal", "mild_npdr", "moderate_npdr", "severe_npdr", "pdr"], (2, 3, 4)),
        (["0", "1"], (1,)),
        (["glaucoma", "normal"], (0,)),
        (["glaucoma", "no glaucoma"], (0,)),
        (["DR", "no_dr"], (0,)),
        (["drusen", "Healthy"], (0,)),
        (["control", "patient"], (1,)),
        (["negative", "positive"], (1,)),
        (["healthy", "normal"], (1,)),
        (["macula", "nodule"], (1,)),
        (["normal", "severe"], (1,)),
        (list("012"), ()),
        (list("12345"), ()),
        (["normal", "mild", "severe"], ()),
        (["cat", "dog", "horse"], ()),
        (["one"], ()),
        ([], ()),
    ],
)
def test_the_classes_to_be_found_are_the_disease_of_two_or_referable_disease(classes, expected):
    assert positives(classes) == expected
