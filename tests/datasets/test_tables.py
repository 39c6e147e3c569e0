"""Tables as other tools write them, against the cells that were written."""

import json

import pytest

from domainbed.datasets import columns, tables
from domainbed.errors import UserError

ROWS = [(2, {"path": "a.png", "environment": "nörd"}), (3, {"path": "b.png", "environment": "süd"})]
TEXT = "path,environment\na.png,nörd\nb.png,süd\n"


def read(tmp_path, data, name="t.csv"):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return tables.read(tmp_path / name)


def message(tmp_path, data, name="t.csv"):
    with pytest.raises(UserError) as error:
        read(tmp_path, data, name)
    return str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, newline):
    assert read(tmp_path, TEXT.replace("\n", newline).encode(encoding)).rows == ROWS


def test_json_in_utf16(tmp_path):
    rows = [row for _, row in ROWS]
    assert [row for _, row in read(tmp_path, json.dumps(rows).encode("utf-16"), "t.json").rows] == rows


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_another_encoding_is_named_with_its_line(tmp_path, encoding):
    text = message(tmp_path, TEXT.encode(encoding))
    assert "line 2 has a byte 0xf6" in text and "Save the table as UTF-8" in text


def test_utf16_without_a_byte_order_mark(tmp_path):
    assert "UTF-16" in message(tmp_path, "path,environment\na,n\n".encode("utf-16-le"))


@pytest.mark.parametrize(
    "text",
    [
        "path,environment,,,\na.png,nörd,,,\nb.png,süd,,,,,,\n",  # a spreadsheet whose used range was larger
        ",path,environment\n0,a.png,nörd\n1,b.png,süd\n",  # the index of pandas
        '"path","environment"\n"a.png","nörd"\n"b.png","süd"\n',  # R
        "sep=;\npath;environment\na.png;nörd\nb.png;süd\n",  # Excel's note of the separator
        "\n\n PATH ,Environment\t\na.png , nörd\n,\nb.png,\u200bsüd\u00a0\n",
    ],
)
def test_what_other_tools_write(tmp_path, text):
    table = read(tmp_path, text)
    assert table.columns == ["path", "environment"]
    assert [row for _, row in table.rows] == [row for _, row in ROWS]


def test_idrid_as_it_is_shipped(tmp_path):
    text = "Image name,Retinopathy grade,Risk of macular edema ,,,,\r\nIDRiD_001,3,2,,,,\r\nIDRiD_002,0,0,,,,\r\n"
    table = read(tmp_path, text)
    assert table.columns == ["image name", "retinopathy grade", "risk of macular edema"]
    assert columns.assign(table, []) == {"path": "image name", "label": "retinopathy grade"}


def test_rows_keep_the_numbers_that_a_spreadsheet_shows(tmp_path):
    assert [number for number, _ in read(tmp_path, "path\n\na.png\n\nb.png\n").rows] == [3, 5]
    assert [number for number, _ in read(tmp_path, "sep=,\npath\na.png\n").rows] == [3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,environment\na.png,n,1,5\n", "row 2 has 4 fields, but the header has 2. Put quotes around"),
        ("path,environment\na.png\n", "row 2 has 1 fields, but the header has 2. Complete the row"),
        ("a.png,n\nb.png,n\n", "has no header: its first row holds 'a.png'"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, text, says):
    assert says in message(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"path": {"0": "a.png"}}', 'to_json(orient="records")'),
        ('{"path": "a.png"}\n{"path": "b.png"}\n', "Put its lines into one list"),
        ('[{"Label": 0, "label": 1}]', "row 1 has 'label' twice"),
        ('[{"label": 0, "label": 1}]', "row 1 has 'label' twice"),
        ('[{"label": {"grade": 1}}]', "holds an object"),
        ("[" * 100_000, "nested too deeply. Write a list of objects, one per image"),
        ('[{"label": ' + "9" * 5000 + "}]", "is not valid JSON: Exceeds the limit"),
        ('[{"path": "a"}, {"path": "b\\ud800"}]', "row 2: 'path' holds half a character, 'b\\ud800'"),
        ('[{"b\\udfff": "a"}]', "row 1: 'b\\udfff' holds half a character"),
    ],
)
def test_faults_of_json(tmp_path, text, says):
    assert says in message(tmp_path, text, "t.json")


@pytest.mark.parametrize(
    "cell", ["0", "no", "none of these", "Nan Province", "nancy", "unknown", "a", "0.0", "-1", "n"]
)
def test_what_is_not_missing(cell):
    assert not tables.is_missing(cell)


# --- columns ---

NAMES = {
    "path": ["image", "Image name", "image_id", "filename", "File Name", "file", "id_code", "image_path", "ImagePath",
             "filepath", "img", "img_name", "paths"],
    "environment": ["site", "Hospital", "camera", "domain", "center", "Centre_ID", "env", "clinic", "dataset"],
    "label": ["grade", "diagnosis", "level", "class", "target", "DR_grade", "Retinopathy grade", "labels",
              "adjudicated_dr_grade", "DR_ICDR", "category"],
    "group": ["patient_id", "patient", "Subject", "subject_id", "PatientID", "id_patient", "case", "patient no",
              "Participant-ID", "anonymised_patient_id", "pid", "group_id"],
    "split": ["set", "subset", "partition", "Data split"],
}  # fmt: skip


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in NAMES.items() for name in names])
def test_other_names_of_a_column(tmp_path, role, name):
    assert columns.assign(read(tmp_path, f"x,{name}\n1,2\n"), []) == {role: name.lower()}


@pytest.mark.parametrize(
    "name", ["age", "patient_age", "patient_sex", "image_quality", "image_width", "grader", "class_weight", "id", "eye",
             "casework", "site_visited_on", "fold", "name", "quality_grade"]
)  # fmt: skip
def test_a_column_that_is_something_else_is_not_taken_but_named(tmp_path, name):
    table = read(tmp_path, f"path,environment,label,{name}\na,n,0,1\n")
    roles = columns.assign(table, [])
    assert name not in roles.values()
    assert columns.describe(table, roles) == [f"t.csv: does not use the columns {name}"]


def test_a_column_of_the_very_name_wins(tmp_path):
    table = read(tmp_path, "path,image,label,grade,group,patient_id\na,b,0,1,p,q\n")
    assert columns.assign(table, []) == {"path": "path", "label": "label", "group": "group"}
    assert columns.assign(table, ["label:grade", "group:patient_id"]) == {
        "path": "path", "label": "grade", "group": "patient_id"
    }  # fmt: skip


def test_two_columns_that_could_be_meant_are_refused(tmp_path):
    table = read(tmp_path, "path,site,hospital\na,1,2\n")
    with pytest.raises(UserError, match="'site' and 'hospital' could both be meant.*columns=environment:site"):
        columns.assign(table, [])
    assert columns.assign(table, ["environment:Hospital"])["environment"] == "hospital"


def test_a_misspelt_column_can_be_settled_by_a_setting(tmp_path):
    table = read(tmp_path, "path,lable\na,1\n")
    with pytest.raises(UserError, match="did you mean 'label'"):
        columns.assign(table, [])
    assert columns.assign(table, ["label:lable"]) == {"path": "path", "label": "lable"}
    assert columns.assign(table, ["label:none"]) == {"path": "path"}


def test_a_role_is_named_once(tmp_path):
    table = read(tmp_path, "path,environment,grade,level\na,n,0,1\n")
    with pytest.raises(UserError, match="columns names two columns for label: grade and level. Name one"):
        columns.assign(table, ["label:grade", "label:level"])


def test_a_column_of_masks_by_a_setting(tmp_path):
    table = read(tmp_path, "path,vessels\na,b\n")
    assert columns.assign(table, ["mask_vessels:vessels"]) == {"path": "path", "mask_vessels": "vessels"}
