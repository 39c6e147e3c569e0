"""The classification report against scikit-learn's, and the files that a run leaves."""

import csv
import io
import math

import numpy as np
import pytest
from sklearn.metrics import classification_report as oracle
from sklearn.metrics import confusion_matrix

from domainbed.classification_report import choose, dump, picture, report, table, text

NAMES = ["cat", "dog", "an emu", "fox"]


def answers(absent: int | None = None, silent: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels that lack a class, and answers that never name one."""
    generator = np.random.default_rng(0)
    true, answered = generator.integers(0, 4, 60), generator.integers(0, 4, 60)
    answered = np.where(generator.random(60) < 0.5, true, answered)
    if absent is not None:
        true[true == absent] = (absent + 1) % 4
    if silent is not None:
        answered[answered == silent] = (silent + 1) % 4
    return true, answered


@pytest.mark.parametrize(("absent", "silent"), [(None, None), (2, None), (None, 1), (2, 2)])
def test_every_figure_is_that_of_scikit_learn(absent, silent) -> None:
    true, answered = answers(absent, silent)
    counts = confusion_matrix(true, answered, labels=range(4)).tolist()
    expected = oracle(
        true, answered, labels=range(4), target_names=NAMES, output_dict=True, zero_division=math.nan
    )  # what is undefined stays out of the means
    rows = report(NAMES, counts)
    assert [name for name, _, _ in rows] == [*NAMES, "accuracy", "macro avg", "weighted avg"]
    for name, values, support in rows:
        assert support == (60 if name == "accuracy" else expected[name]["support"])
        if name == "accuracy":
            assert values == [None, None, pytest.approx((true == answered).mean())]
            continue
        wanted = [expected[name][figure] for figure in ("precision", "recall", "f1-score")]
        assert [math.nan if value is None else value for value in values] == pytest.approx(wanted, nan_ok=True)
    undefined = sum(value is None for name, values, _ in rows[:4] for value in values)
    assert undefined == {(None, None): 0, (2, None): 1, (None, 1): 1, (2, 2): 3}[absent, silent]


def test_the_text_has_the_layout_of_scikit_learn_and_the_csv_the_full_figures() -> None:
    true, answered = answers()
    rows = report(NAMES, confusion_matrix(true, answered).tolist())
    expected = oracle(true, answered, target_names=NAMES, digits=3)
    assert text(rows).split() == expected.split()
    found = list(csv.reader(io.StringIO(table(rows))))
    assert found[0] == ["class", "precision", "recall", "f1-score", "support"]
    assert float(found[1][1]) == rows[0][1][0] and found[5][:3] == ["accuracy", "", ""]


def figures(environment, role, part, confusion=((3, 1), (0, 2))):
    return {"environment": environment, "role": role, "part": part, "metrics": {"confusion": confusion}}


def test_it_is_about_the_whole_target_and_else_about_the_part_that_nothing_was_chosen_on() -> None:
    sources = [figures("a", "source", part) for part in ("val", "test", "train")] + [figures("b", "source", "val")]
    target = [figures("t", "target", part) for part in ("whole", "val", "test")]
    assert [(one["environment"], one["part"]) for one in choose(sources)] == [("a", "test"), ("b", "val")]
    assert [(one["environment"], one["part"]) for one in choose(sources + target)] == [("t", "whole")]
    assert choose([figures("a", "source", "val", None)]) == []


def test_what_is_written(tmp_path) -> None:
    pictures = dump(tmp_path / "classification", [figures("a", "target", "whole")], ["no", "yes"], "ERM")
    names = sorted(path.name for path in (tmp_path / "classification").iterdir())
    assert names == ["a_whole.csv", "a_whole.png", "a_whole.txt"]
    assert pictures == {"a_whole": tmp_path / "classification/a_whole.png"}
    assert "0.750" in (tmp_path / "classification/a_whole.txt").read_text()  # 3 of 4
    assert dump(tmp_path / "nothing", [], [], "AE") == {} and not (tmp_path / "nothing").exists()


def test_a_cell_is_as_dark_as_its_share_of_the_row() -> None:
    drawn = np.asarray(picture(["no", "yes"], [[8, 0], [1, 1]], ""), dtype=int)
    whole, half = ((drawn == colour).all(2).nonzero() for colour in ((8, 48, 107), (132, 152, 181)))
    assert 2000 < len(whole[0]) < 52 * 52  # one cell, less its count
    assert len(half[0]) > 1.8 * len(whole[0])  # two cells: of the row of two images, one each
    assert whole[0].max() < half[0].min() and whole[1].max() < half[1].max()


@pytest.mark.parametrize("count", [2, 20, 100])
def test_any_number_of_classes_can_be_drawn(count) -> None:
    drawn = picture([f"class {index}" for index in range(count)], np.eye(count).tolist(), "a title " * 10)
    assert max(drawn.size) < 2000
