"""Names as people read them: on a line of text, in pictures and in plots."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed import classification_report, reconstructions, summary
from domainbed.analysis import plots
from domainbed.names import printable

ODD = os.fsdecode(b"\xff\n\t$x^$")


@pytest.mark.parametrize("name", ["", "a b.png", "é眼👁️", "a|b<c>$d$`e`\\"])
def test_what_can_be_printed_stays(name: str) -> None:
    assert printable(name) == name


@pytest.mark.parametrize(
    "name, shown",
    [
        (b"\xff.jpg", r"\udcff.jpg"),
        (b"a\nb\tc\x1b[0m\x7f", r"a\nb\tc\x1b[0m\x7f"),
        ("a\u2028b\x85".encode(), r"a\u2028b\x85"),
    ],
)
def test_what_can_not_be_printed_is_escaped(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown
    assert len(shown.splitlines()) == 1 and shown.encode("utf-8")


def test_pictures_show_a_name_as_its_escapes() -> None:
    shown = printable(ODD)
    tiles, red = torch.zeros(1, 3, 40, 40), (255, 0, 0)
    odd, plain = (reconstructions.sheet({name: tiles}, [name], name, {name: red}) for name in (ODD, shown))
    np.testing.assert_array_equal(np.asarray(odd), np.asarray(plain))
    odd, plain = (classification_report.picture([name, "b"], [[1, 2], [3, 4]], name) for name in (ODD, shown))
    np.testing.assert_array_equal(np.asarray(odd), np.asarray(plain))


def test_plots_show_a_name_as_its_escapes_and_keep_lines(tmp_path: Path) -> None:
    name = ODD.replace("\n", "")
    for file, label in (("odd.png", name), ("plain.png", printable(name))):
        figure, axes = plots.new_figure(4, 3)
        axes.bar(range(2), [1, 2], label=label)
        axes.set_xticks(range(2), [label, "b"])
        axes.set_yscale("log")
        axes.set_title(f"{label}\nsecond line 眼")
        axes.legend()
        plots.save(figure, tmp_path / file)
    odd, plain = (np.asarray(Image.open(tmp_path / file)) for file in ("odd.png", "plain.png"))
    np.testing.assert_array_equal(odd, plain)


def test_tables_keep_their_rows_and_columns() -> None:
    lines = summary.table([ODD, "a|b"], [["1", ODD]], words=1)
    assert len(lines) == 3 and all("\n" not in line for line in lines)
    assert {line.replace("\\|", "").count("|") for line in lines} == {3}
    rows = classification_report.report([ODD, "b"], [[1, 2], [3, 4]])
    assert len(classification_report.text(rows).splitlines()) == len(rows) + 2
