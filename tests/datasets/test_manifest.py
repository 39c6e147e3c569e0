"""Tables that the tests write, against hand-written samples; and every fault by its row."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.base import UNLABELLED, Sample
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


def message(path: Path | None, **hparams) -> str:
    with pytest.raises(UserError) as error:
        manifest(path, **hparams)
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
        ("path,environment\na.png,n\nb.png,n\n./a.png,s\n", "rows 2 and 4 have the same path 'a.png'"),
        ("path;where\na.png;n\n", "no column 'environment'. It has path, where. Rename the one that is meant"),
        ("path,environment,lable\na.png,n,1\n", "column 'lable': did you mean 'label'?"),
        ("path,path,environment\na.png,b.png,n\n", "two columns named 'path'"),
        ("path,environment\n", "no row below its header"),
        ("", "no column 'path'. It has none"),
        ("path,environment\nx/a.png,n\nx/b.png,n\n", "none of its 2 images is there, such as row 2, 'x/a.png'"),
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
        ('{"path": "a.png"}', "must hold a list of objects, one per image, but holds an object"),
        ('[{"path": "a.png", "environment": "n"}, 3]', "row 2 is 3, not an object"),
        ('[{"path": "a.png", "environment": "n"}, {"path": "b.png"}]', "row 2 has no environment"),
        ('[{"path": "a.png", "environment": ["n"]}]', "row 1: 'environment' holds a list"),
        ("[]", "no column 'path'"),
    ],
)
def test_faults_of_json(root, text, expected):
    assert expected in message(table(root, text, "table.json"))


def test_which_table(root):
    assert "no --data_dir is given" in message(None)
    assert "holds none" in message(root)
    assert "there is no" in message(root / "nowhere.csv")
    assert "a.png' is none" in message(root / "a.png")
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


# --- missing cells ---

#: What pandas reads as missing (its `STR_NA_VALUES`), and what R, Excel, SQL and people write.
MISSING = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null", "NaT", "-", "--", "?", ".", "n.a.", "N. A.", "#VALUE!", "\\N",
    "(blank)", "not available", "unlabelled", "not graded", "  ", "\u00a0", "\u200b", "\u2014", "\u2212",
]  # fmt: skip


@pytest.mark.parametrize("spelled", MISSING)
def test_a_missing_label_is_missing_however_it_is_spelled(root, spelled):
    path = table(root, f"path,environment,label\na.png,n,0.0\nb.png,n,2.0\nc.png,n,{spelled}\nd.png,n,10.0\n")
    data = manifest(path)
    assert data.classes == ["0", "2", "10"] and data.ordinal
    assert data.labels.tolist() == [0, 1, UNLABELLED, 2]


@pytest.mark.parametrize("value", ["NaN", "null", '""', '"nan"', '" "'])
def test_a_missing_label_in_json(root, value):
    rows = ['{"path": "a.png", "environment": 1, "label": 1.0}']
    rows.append(f'{{"path": "b.png", "environment": 1.0, "label": {value}}}')
    data = manifest(table(root, f"[{', '.join(rows)}]", "table.json"))
    assert (data.environments, data.classes, data.labels.tolist()) == (["1"], ["1"], [0, UNLABELLED])


def test_booleans_of_json_are_two_classes(root):
    rows = [
        {"path": f"{name}.png", "environment": "n", "label": value} for name, value in {"a": True, "b": False}.items()
    ]
    data = manifest(table(root, json.dumps(rows), "table.json"))
    assert (data.classes, data.labels.tolist()) == (["false", "true"], [1, 0])


@pytest.mark.parametrize("spelled", [*MISSING, "unknown", "Anonymous"])
def test_a_missing_patient_is_a_patient_of_its_own(root, spelled):
    path = table(root, f"path,environment,group\na.png,n,{spelled}\nb.png,n,{spelled}\nc.png,n,7\nd.png,n,7.0\n")
    data = manifest(path)
    assert [sample.group for sample in data.samples] == ["a.png", "b.png", "7", "7"]
    assert any("2 of 4 rows name no patient" in line for line in data.log)


@pytest.mark.parametrize("spelled", MISSING)
def test_a_missing_split_is_drawn_and_a_missing_mask_is_none(root, spelled):
    path = table(root, f"path,environment,split,mask_disc\na.png,n,{spelled},{spelled}\nb.png,n,test,left.png\n")
    data = manifest(path)
    assert [sample.split for sample in data.samples] == [None, "test"]
    assert [data.has_mask(index, "disc") for index in range(2)] == [False, True]


@pytest.mark.parametrize("column", ["path", "environment"])
@pytest.mark.parametrize("spelled", ["nan", "N/A", "-", "\u00a0"])
def test_a_missing_path_or_environment_is_refused_by_row(root, column, spelled):
    cells = {"path": "b.png", "environment": "n"} | {column: spelled}
    text = message(table(root, f"path,environment\na.png,n\n{cells['path']},{cells['environment']}\n"))
    assert f"row 3 has no {column}" in text
    assert (repr(spelled) in text) == (spelled != "\u00a0")


HALF = "path,environment,label\nc.png,s,nan\na.png,n,0\nb.png,n,None\nd.png,n,1\n"


def test_images_without_a_label_are_named_by_their_rows(root):
    with pytest.raises(UserError) as error:
        manifest(table(root, HALF)).check_labelled()
    assert "2 of 4 images have no label: row 2 (c.png: 'nan'), row 4 (b.png: 'None')" in str(error.value)
    assert "missing_labels=leave_out" in str(error.value)
    manifest(table(root, "path,environment\na.png,n\n")).check_labelled()  # none at all is another matter


def test_images_without_a_label_are_left_out_by_a_setting_and_counted(root):
    data = manifest(table(root, HALF), missing_labels="leave_out")
    assert [sample.name for sample in data.samples] == ["a.png", "d.png"]
    assert data.environments == ["n"]
    (note,) = data.notes
    assert "2 of 4 images have no label and are left out" in note
    assert "1 of n, 1 of s; nothing is left of s" in note
    data.check_labelled()
    bare = table(root, "path,environment,label\na.png,n,nan\n", "bare.csv")
    assert "the column 'label'" in message(bare, missing_labels="leave_out")
    assert "has no column 'label'. It has path, environment." in message(
        table(root, "path,environment\na.png,n\n", "none.csv"), missing_labels="leave_out"
    )


def test_what_takes_the_order_from_grades_is_noted(root):
    data = manifest(
        table(root, "path,environment,label\na.png,n,0\nb.png,n,3\nc.png,n,Ungradable\nd.png,n,ungradable\n")
    )
    assert not data.ordinal
    assert "because of 'Ungradable', 'ungradable'" in data.notes[0]
    assert "differ in case or punctuation alone" in data.notes[1]


# --- columns ---


def test_columns_of_other_names_are_taken_and_named(root):
    path = table(root, "ID_Code,Hospital,Diagnosis,PatientID,age\na.png,n,2,p1,50\nb.png,s,0,p1,51\n")
    data = manifest(path)
    assert data.samples == [Sample(0, "a.png", 1, "p1"), Sample(1, "b.png", 0, "p1")]
    reads, ignored = data.log
    for name in ("id_code as path", "hospital as environment", "diagnosis as label", "patientid as group"):
        assert name in reads
    assert ignored.endswith("does not use the columns age")


def test_settings_name_columns(root):
    path = table(root, "file,where,score,Reader 2,case,subset\na.png,n,1,2,p1,3\nb.png,n,0,5,p1,4\n")
    says = {"columns": ["environment:where", "label:reader_2", "group:none", "split:none"]}
    data = manifest(path, **says)
    assert (data.classes, [sample.group for sample in data.samples]) == (["2", "5"], ["a.png", "b.png"])
    assert "row 2: subset '3' is none of train, val, test" in message(path, columns=["environment:where"])
    for wrong, says in (("grade:score", "names no role"), ("label", "names no role"), ("label:scores", "'score'")):
        assert says in message(path, columns=[wrong])


def test_an_environment_for_a_table_without_that_column(root):
    path = table(root, "path,label\na.png,1\nb.png,0\n")
    assert manifest(path, environment="clinic").environments == ["clinic"]
    assert "name it: environment=table" in message(path)
    both = table(root, "path,site\na.png,1\n", "both.csv")
    assert "has 'site'" in message(both, environment="clinic")


def test_without_labels_the_columns_are_named(root):
    path = table(root, "path,environment,score\na.png,n,1\n")
    said = manifest(path).labels_wanted()
    assert "has no column 'label'. It has path, environment, score" in said and "columns=label:<column>" in said


def test_two_eyes_without_a_patient_are_noted_and_a_pattern_joins_them(root):
    for name in ("1_left", "1_right", "2_left"):
        (root / f"{name}.jpeg").write_bytes((root / "a.png").read_bytes())
    path = table(root, "image,environment\n1_left,n\n1_right,n\n2_left,n\n")
    data = manifest(path)
    assert [sample.name for sample in data.samples] == ["1_left.jpeg", "1_right.jpeg", "2_left.jpeg"]
    assert len({sample.group for sample in data.samples}) == 3
    assert "1_left.jpeg look like two eyes of one" in data.notes[0]
    data = manifest(path, group_pattern="^([0-9]+)_")
    assert [sample.group for sample in data.samples] == ["n/1", "n/1", "n/2"] and not data.notes


# --- paths ---


def test_paths_of_other_spellings_lead_to_the_file(root):
    (root / "Cam1").mkdir()
    (root / "a.png").rename(root / "Cam1/A.PNG")
    rows = "cam1\\a.png,n\nb,n\n" + f"{(root / 'c.png').as_uri()},s\nd.png ,s\n"
    data = manifest(table(root, "path,environment\n" + rows))
    assert [Path(sample.name).name for sample in data.samples] == ["A.PNG", "b.png", "c.png", "d.png"]
    assert [int(data.read(index)[0, 0, 0]) for index in range(4)] == [0, 50, 100, 150]


def test_paths_start_from_another_folder_by_a_setting(root):
    (root / "tables").mkdir()
    path = table(root, "path,environment,mask\na,n,left\n", "tables/t.csv")
    assert "add root_dir=.." in message(path)
    data = manifest(path, root_dir="..")
    assert data.read_masks(0)["mask"][:, :10].all()
    assert "there is no folder" in message(path, root_dir="nowhere")


def test_paths_that_can_not_be_followed_are_refused_by_row(root):
    (root / "b.jpg").write_bytes(b"")
    rows = ["https://x.org/a.png", "C:\\data\\a.png", "b"]
    text = message(table(root, "path,environment\n" + "".join(f"{row},n\n" for row in rows)))
    assert "row 2: 'https://x.org/a.png' is a URL" in text
    assert "row 3: " in text and "Windows" in text
    assert "row 4: 'b' could be 'b.jpg' or 'b.png'" in text


def test_files_that_are_not_there_are_counted_before_they_are_read(root):
    data = manifest(table(root, "path,environment\na.png,n\nb.jpg,n\ngone.png,n\n"))
    (line,) = data.log
    assert "2 files that table.csv names are not there: row 3 'b.jpg', row 4 'gone.png'" in line
    assert "b.png is there" in line


def test_a_folder_below_a_table(root):
    (root / "images").mkdir()
    table(root, "path,environment\na.png,n\n")
    assert str(root / "table.csv") in message(root / "images")
