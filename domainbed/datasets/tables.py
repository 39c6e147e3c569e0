"""Read a table of texts from CSV or JSON, as spreadsheets, pandas, R and databases write it.

    table = read(Path("train.csv"))
    for number, row in table.rows: ...                  # {"id_code": "0a1b", "diagnosis": "2"}

Cells are stripped texts and keep their spelling; `is_missing` says whether one holds nothing. Which column means what
is in `columns`, what a path in a cell refers to in `paths`.
"""

import codecs
import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed.datasets.images import IMAGE_SUFFIXES
from domainbed.errors import UserError
from domainbed.paths import user_path

#: Files that are read as tables.
SUFFIXES = (".csv", ".tsv", ".json")
_SHOWN = 5
_SEPARATORS = ",;\t"
_BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}  # fmt: skip
# Zero-width characters, which web pages and spreadsheets leave behind and which `str.strip` keeps.
_EDGES = re.compile(r"^[\s\u200b-\u200f\u2060\ufeff\xad]+|[\s\u200b-\u200f\u2060\ufeff\xad]+$")
# What pandas, R, Excel, SQL and people write where there is nothing, in lower case.
_MISSING = re.compile(
    r"|[-+]?nan|[-+]?1\.#(ind|qnan)|nat|n\.? ?/?a\.?|<na>|na_(character|integer|real)_|none|<none>|null|\(null\)|<null>"
    r"|\\n|nil|#n/a( n/a)?|#na|#(null|value|ref|num|div/0)!|#name\?|undefined|\(blanks?\)"
    r"|(not |not-|un)(available|applicable|labell?ed|graded|specified|recorded|assigned)|no (label|data|value)"
    r"|[-_.?*/\u2010-\u2015\u2212\u2026\s]+"
)


@dataclass(frozen=True)
class Table:
    """The rows of a table that are not blank.

    Attributes:
        path: the file.
        columns: names in lower case, in their order; those without a name are left out.
        rows: (number as messages name it, {column: stripped text}); JSON may leave a column out of a row.
    """

    path: Path
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]


def is_missing(cell: str) -> bool:
    """Return whether a cell holds nothing, in one of the spellings of that: "", NaN, NA, #N/A, null, None, -, ?, …"""
    return _MISSING.fullmatch(cell.strip().lower()) is not None


def in_folder(folder: Path) -> list[Path]:
    """Return the tables that lie directly in a folder, sorted; none where it can't be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    except OSError:
        return []


def find(data_dir: Path | None, needs: str) -> Path:
    """Return the table that `--data_dir` names, itself or by the folder that holds it alone.

    Args:
        data_dir: as given.
        needs: the beginning of messages: which data set needs what.

    Raises:
        UserError: there is none, or there are several.
    """
    if data_dir is None:
        raise UserError(f"{needs}, but no --data_dir is given. Give the path of the table")
    path = user_path(data_dir)
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            return path
        save = (
            "Save it as CSV (UTF-8)"
            if path.suffix.lower() in (".xlsx", ".xls", ".ods")
            else "Give the path of the table"
        )
        raise UserError(f"{needs}, but {str(path)!r} is none. {save}")
    if not path.is_dir():
        raise UserError(f"{needs}, but there is no {str(path)!r}. Give the path of the table")
    found = in_folder(path)
    if len(found) != 1:
        holds = ", ".join(p.name for p in found[:_SHOWN]) if found else "none"
        above = in_folder(path.resolve().parent) if not found else []
        such = f", such as {str(above[0])!r}" if above else ""
        raise UserError(f"{needs}, but {str(path)!r} holds {holds}. Give the path of one table{such}")
    return found[0]


def read(path: Path) -> Table:
    """Return the table in a file.

    Raises:
        UserError: it can't be read as a table with a header and a row.
    """
    text = _decode(path)
    table = _from_json(path, text) if path.suffix.lower() == ".json" else _from_csv(path, text)
    if table.columns and not table.rows:
        raise UserError(f"{path} has no row below its header. Give one row per image")
    return table


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Give the path of a .csv or .json table") from None
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        row = data[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
        raise UserError(
            f"{path} is not a text file in UTF-8: line {row} has a byte {data[error.start]:#04x}, as in Latin-1 or "
            "Windows-1252. Save the table as UTF-8 (in a spreadsheet, 'CSV UTF-8')"
        ) from None
    if "\0" in text:
        raise UserError(f"{path} holds zero bytes, so it is no text, or one in UTF-16. Save the table as UTF-8")
    return text


def _clean(cell: str) -> str:
    return _EDGES.sub("", cell)


def _from_csv(path: Path, text: str) -> Table:
    # Excel's own note of the separator is a line above the header.
    first = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    noted = re.fullmatch('"?sep=(.)"?[,;\t]*', first.strip(" "), re.IGNORECASE)
    separator = noted[1] if noted else max(_SEPARATORS, key=first.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is not valid CSV: {error}. Save the table again") from None
    numbered = [(n, [*map(_clean, line)]) for n, line in enumerate(lines, start=1) if any(map(_clean, line))]
    if noted:
        del numbered[0]
    if not numbered:
        return Table(path, [], [])
    header = [name.lower() for name in numbered[0][1]]
    _check_header(path, header)
    rows = []
    for number, line in numbered[1:]:
        spare = line[len(header) :]
        if any(spare):
            raise UserError(
                f"{path}, row {number} has {len(line)} fields, but the header has {len(header)}. Put quotes around a "
                "field that holds the separator, or name every column in the header"
            )
        if len(line) < len(header):
            raise UserError(
                f"{path}, row {number} has {len(line)} fields, but the header has {len(header)}. Complete the row, "
                "with empty fields where there is nothing"
            )
        rows.append((number, {name: cell for name, cell in zip(header, line, strict=False) if name}))
    return Table(path, [name for name in header if name], rows)


def _check_header(path: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError(f"{path} has two columns named {twice[0]!r}. Rename or remove one")
    images = [name for name in header if name.endswith(IMAGE_SUFFIXES)]
    if images:
        raise UserError(
            f"{path} has no header: its first row holds {images[0]!r}. Put a row with the names of the columns above "
            "it, such as path,environment,label"
        )


def _from_json(path: Path, text: str) -> Table:
    try:
        entries = json.loads(text, object_pairs_hook=_Pairs)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply. Write a list of objects, one per image") from None
    except ValueError as error:  # also of a number with thousands of digits
        lines = ". Put its lines into one list" if getattr(error, "msg", "") == "Extra data" else ""
        raise UserError(f"{path} is not valid JSON: {error}{lines}") from None
    if not isinstance(entries, list) or isinstance(entries, _Pairs):
        kind = "an object" if isinstance(entries, _Pairs) else f"a {type(entries).__name__}"
        raise UserError(
            f"{path} must hold a list of objects, one per image, but holds {kind}. pandas writes such a list with "
            'to_json(orient="records")'
        )
    rows = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, _Pairs):
            raise UserError(f"{path}, row {number} is {json.dumps(entry)}, not an object such as {{'path': 'a.jpg'}}")
        row: dict[str, str] = {}
        for name, value in entry:
            key = _clean(name).lower()
            if isinstance(value, list):
                kind = "an object" if isinstance(value, _Pairs) else "a list"
                raise UserError(f"{path}, row {number}: {key!r} holds {kind}, not a text or a number")
            for text in (key, value):
                if isinstance(text, str) and not _is_whole(text):
                    raise UserError(f"{path}, row {number}: {key!r} holds half a character, {ascii(text)}. Correct it")
            if key in row:
                raise UserError(f"{path}, row {number} has {key!r} twice. Rename or remove one")
            row[key] = "" if value is None else _clean(str(value))
        if any(row.values()):
            rows.append((number, row))
    return Table(path, list(dict.fromkeys(name for _, row in rows for name in row if name)), rows)


def _is_whole(text: str) -> bool:
    """Whether text is what UTF-8 can hold, or bytes of a file's name that are no text, as Python writes these."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs: a dict would keep only the last of two equal keys."""
