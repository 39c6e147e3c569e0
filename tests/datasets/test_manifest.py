"""Tables that the tests write, against hand-written samples; and every fault by its row."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.base import Sample
from domainbed.datasets.images import digest
from domainbed.datasets.manifest import Manifest
from domainbed.datasets.masks import MaskClasses
from domainbed.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images a.png to e.png of grey levels 0, 50, … and a mask of a.png, its left half."""
    for i, name in enumerate("abcde"):
        Image.fromarray(np.full((20, 20, 3), 50 * i, np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((20, 20), np.uint8)
    mask[:, :10] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    return tmp_path


def table(root: Path, text: str, name: str = "table.csv", encoding: str = "utf-8") -> Path:
    (root / name).write_bytes(text.encode(encoding))
    return root / name


def manifest(path: Path | None, **hparams) -> Manifest:
    return Manifest(path, Manifest.HParams(image_size=20, **hparams))


def message(path: Path | None) -> str:
    with pytest.raises(UserError) as error:
        manifest(path)
    return str(error.value)


FULL = """path,environment,label,group,split,age
a.png,north,1,p1,Training,50
./b.png,north,10,p1,,51
c.png,south,9,,test,52
"""
FULL_SAMPLES = [
    Sample(0, "a.png", 0, "p1", "train"),
    Sample(0, "b.png", 2, "p1", None),
    Sample(1, "c.png", 1, "c.png", "test"),
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(root, separator, encoding, newline):
    path = table(root, FULL.replace(",", separator).replace("\n", newline), encoding=encoding)
    for data in (manifest(path), manifest(root)):
        assert data.samples == FULL_SAMPLES
        assert data.environments == ["north", "south"]
        assert data.classes == ["1", "9", "10"] and data.ordinal


def test_json(root):
    rows = [
        {"path": "a.png", "environment": "north", "label": 1, "group": "p1", "split": "Training"},
        {"path": "./b.png", "environment": "north", "label": 10, "group": "p1"},
        {"path": "c.png", "environment": "south", "label": 9, "group": None, "split": "test", "age": 4.5},
    ]
    assert manifest(table(root, json.dumps(rows), "table.json")).samples == FULL_SAMPLES


def test_quoted_fields_blank_lines_and_headers_in_capitals(root):
    (root / "x, y.png").write_bytes((root / "a.png").read_bytes())
    path = table(root, 'Path, Environment ,LABEL\n\n"x, y.png",north,"cat;;;;;;;;;;"\n\nb.png,south,dog\n')
    data = manifest(path)
    assert [(s.name, data.environments[s.environment], data.classes[s.label]) for s in data.samples][1:] == [
        ("b.png", "south", "dog")
    ]
    assert data.samples[0].name == "x, y.png"


def test_grades_in_any_spelling(root):
    path = table(root, "path,environment,label\na.png,n,No DR\nb.png,n,4\nc.png,s,pdr\nd.png,s,2.0\n")
    assert manifest(path).labels.tolist() == [0, 4, 4, 2]


def test_without_labels(root):
    data = manifest(table(root, "path,environment\na.png,n\nb.png,s\n"))
    assert data.labels.tolist() == [-1, -1] and data.classes == [] and not data.ordinal
    data = manifest(table(root, "path,environment,label\na.png,n,cat\nb.png,s,\n"))
    assert data.labels.tolist() == [0, -1] and data.classes == ["cat"]


def test_reading(root):
    path = table(root, f"path,environment,mask_disc,mask_cup\na.png,n,left.png,\n{root / 'b.png'},s,,\n")
    data = manifest(path)
    assert (data.read(0) == 0).all() and (data.read(1) == 50).all() and data.read(1).shape == (20, 20, 3)
    assert data.content(1) == digest(root / "b.png")
    masks = data.read_masks(0)
    assert list(masks) == ["disc"]
    assert masks["disc"].shape == (20, 20) and masks["disc"][:, :10].all() and not masks["disc"][:, 10:].any()
    assert data.read_masks(1) == {}


def test_one_unnamed_mask(root):
    data = manifest(table(root, "path,environment,mask\na.png,n,left.png\nb.png,s,\n"))
    assert list(data.read_masks(0)) == ["mask"]


def test_masks_are_preprocessed_with_their_image(root):
    path = table(root, "path,environment,mask\na.png,n,left.png\nb.png,s,\n")
    data = Manifest(path, Manifest.HParams(image_size=10))
    assert data.read_masks(0)["mask"].shape == (10, 10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,environment\na.png,\n", "row 2 has no environment"),
        ("path,environment\na.png,n\n,n\n", "row 3 has no path"),
        ("path,environment\na.png,n\n\nb.png,n,x\n", "row 4 has 3 fields, but the header has 2"),
        ("path,environment,split\na.png,n,dev\n", "row 2: split 'dev' is none of train, val, test"),
        ("path,environment,label\na.png,n,-1\n", "row 2: label '-1' is negative"),
        ("path,environment\na.png,n\nb.png,n\n./a.png,s\n", "rows 2 and 4 have the same path './a.png'"),
        ("path;env\na.png;n\n", "no column 'environment'. It has path, env;"),
        ("path,environment,lable\na.png,n,1\n", "column 'lable': did you mean 'label'?"),
        ("path,path,environment\na.png,b.png,n\n", "two columns named 'path'"),
        ("path,environment\n", "no row below its header"),
        ("", "no column 'path'. It has none"),
        ("path,environment\nx/a.png,n\nx/b.png,n\n", "none of its first 2 paths exists"),
        ('path,environment\n"a.png,n\n', "not valid CSV"),
    ],
)
def test_faults_of_csv(root, text, expected):
    assert expected in message(table(root, text))


def test_faults_come_at_once_the_first_few(root):
    text = message(table(root, "path,environment\n" + "a.png,\n" * 4))
    for row in (2, 3, 4):
        assert f"row {row} has no environment" in text
    assert "… and 2 more" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ('{"path": "a.png"}', "must hold a list of objects, one per image, but holds dict"),
        ('[{"path": "a.png", "environment": "n"}, 3]', "row 2 is 3, not an object"),
        ('[{"path": "a.png", "environment": "n"}, {"path": "b.png"}]', "row 2 has no environment"),
        ('[{"path": "a.png", "environment": ["n"]}]', "row 1: 'environment' holds list"),
        ("[]", "no column 'path'"),
    ],
)
def test_faults_of_json(root, text, expected):
    assert expected in message(table(root, text, "table.json"))


def test_which_table(root):
    assert "no --data_dir is given" in message(None)
    assert "holds none" in message(root)
    assert "there is no" in message(root / "nowhere.csv")
    assert "is neither" in message(root / "a.png")
    table(root, FULL, "one.csv")
    table(root, FULL, "two.CSV")
    assert "holds one.csv, two.CSV" in message(root)


def test_not_utf8(root):
    assert "Save the table as UTF-8" in message(table(root, FULL.replace("north", "nörd"), encoding="latin-1"))


def test_a_missing_image_is_listed(root):
    data = manifest(table(root, "path,environment\na.png,n\ngone.png,s\n"))
    assert [s.name for s in data.samples] == ["a.png", "gone.png"]


def test_masks_of_classes(root):
    Image.fromarray(np.repeat(np.array([0, 1, 2, 255], np.uint8), 100).reshape(20, 20)).save(root / "classes.png")
    path = table(root, "path,environment,mask\na.png,n,classes.png\nb.png,s,classes.png\n")
    data = manifest(path, mask_classes=["ground", "cat", "dog"])
    classes = data.chosen_masks()
    assert classes == MaskClasses(("ground", "cat", "dog"), exclusive=True)
    assert data.read_mask(0, classes)[:, 0].tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [255] * 5
    assert data.mask_content(0, classes.names) == f"mask {digest(root / 'classes.png')}"
    assert manifest(path).chosen_masks() == MaskClasses(("mask",), exclusive=False)


def test_a_mask_column_named_ignore_is_no_kind(root):
    path = table(root, "path,environment,mask_disc,mask_ignore\na.png,n,left.png,left.png\nb.png,s,left.png,\n")
    data = manifest(path)
    classes = data.chosen_masks()
    assert classes.names == ("disc",)
    assert (data.read_mask(0, classes)[:, :10] == 255).all() and (data.read_mask(1, classes)[:, :10] == 1).all()
    assert data.mask_content(0, ["disc"]) != data.mask_content(1, ["disc"])


@pytest.mark.parametrize(
    ("header", "hparams", "says"),
    [
        ("mask_disc", {"mask_classes": ["a", "b"]}, "names the values of a column mask, but .* has mask_disc"),
        ("mask", {"mask_classes": ["a"]}, "must name two classes or more, each once"),
        ("mask", {"mask_classes": ["a", "a"]}, "must name two classes or more, each once"),
        ("mask", {"mask_classes": ["a", "b"], "mask_kinds": ["a"]}, "mask_kinds = a chooses among kinds"),
    ],
)
def test_mask_classes_that_do_not_fit(root, header, hparams, says):
    path = table(root, f"path,environment,{header}\na.png,n,left.png\nb.png,s,left.png\n")
    with pytest.raises(UserError, match=says):
        manifest(path, **hparams).chosen_masks()


def test_names_in_cells_are_compared_as_people_read_them(tmp_path):
    composed, apart = "Modéré", unicodedata.normalize("NFD", "Modéré")
    rows = [
        (f"{apart}.jpg", composed, composed, composed, "train"),
        ("2.jpg", apart, f"{apart}\u200b", apart, "te\u200bst"),
    ]
    table = tmp_path / "t.csv"
    table.write_text("path,environment,label,group,split\n" + "\n".join(map(",".join, rows)) + "\n", encoding="utf-8")
    (tmp_path / f"{apart}.jpg").touch()
    data = Manifest(table, Manifest.HParams())
    assert data.environments == data.classes == [composed]
    assert {s.group for s in data.samples} == {composed}
    assert {s.name: s.split for s in data.samples} == {f"{apart}.jpg": "train", "2.jpg": "test"}
