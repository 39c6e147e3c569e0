"""Which column of a table holds what: by its name, by another name that says the same, or as a setting tells.

    roles = assign(table, ["label:diagnosis"])   # {"path": "id_code", "label": "diagnosis", "mask_disc": "mask_disc"}

A role is one of `ROLES`, or `mask_<kind>`. Guesses, and columns that are not used, are named in the log: `describe`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping

from domainbed.datasets.tables import Table
from domainbed.errors import UserError, did_you_mean

ROLES = ("path", "environment", "label", "group", "split", "mask")
#: Stands for no column in a setting.
NONE = "none"
_ID = "(id|no|nr|nbr|num|number|code|key|name|uid|hash|index)?"
# Names that say the same as a role, without anything but letters and digits. They are whole names, because patient_age
# and image_quality are something else.
_SYNONYMS = {
    "path": re.compile(f"(fundus)?(image|img|picture|photo|file)s?(file)?(path)?{_ID}|(rel|relative|full|abs)?paths?"
                       "|fundus|idcode"),
    "environment": re.compile("(environment|env|domain|site|hospital|clinic|camera|center|centre|institution|institute"
                              f"|scanner|device|dataset|source)s?{_ID}"),
    "label": re.compile("((adjudicated|final)?(dr|icdr|(diabetic)?retinopathy|disease|severity))?(label|grade|level"
                        f"|class|diagnosis|target|category|stage|severity){_ID}|labels|classes|(dr)?icdr"),
    "group": re.compile(f"(anon[a-z]*)?{_ID}(patient|subject|participant|person|individual|case)s?{_ID}|pid|groups?id"),
    "split": re.compile("(data)?splits?(name)?|subset|partition|set"),
}  # fmt: skip


def kind_of(role: str) -> str:
    """Return the name of the masks that a role stands for, empty where it stands for none."""
    return role if role == "mask" else role.removeprefix("mask_") if role.startswith("mask_") else ""


def assign(table: Table, settings: Iterable[str]) -> dict[str, str]:
    """Return the column of each role that the table has.

    Args:
        table: whose columns.
        settings: "<role>:<column>" each, which win over names; the column "none" stands for no column.

    Raises:
        UserError: a setting names no role or no column, two columns could have one role, or a name looks misspelt.
    """
    told = _told(table, settings)
    roles = {column: column for column in table.columns if (column in ROLES or kind_of(column)) and column not in told}
    roles |= {role: column for role, column in told.items() if column != NONE}
    for role, names in _SYNONYMS.items():
        if role in roles or role in told:
            continue
        fitting = [name for name in table.columns if name not in roles.values() and names.fullmatch(_squeeze(name))]
        if len(fitting) > 1:
            raise UserError(
                f"{table.path} has no column {role!r}, and {' and '.join(map(repr, fitting))} could both be meant. Say "
                f"which with columns={role}:{fitting[0]}, or columns={role}:{NONE} for neither"
            )
        if fitting:
            roles[role] = fitting[0]
    unused = [column for column in table.columns if column not in roles.values()]
    for column in unused:
        near = difflib.get_close_matches(column, [role for role in ROLES if role not in roles | told], n=1, cutoff=0.8)
        if near:  # ignored, it would lose every label in silence
            raise UserError(
                f"{table.path} has a column {column!r}: did you mean {near[0]!r}? Rename it, or say what it is with "
                f"columns={near[0]}:{column} or columns={near[0]}:{NONE}"
            )
    return roles


def describe(table: Table, roles: Mapping[str, str]) -> list[str]:
    """Return lines on the columns whose names are not those of their roles, and on those that are not used."""
    renamed = [f"{column} as {role}" for role, column in roles.items() if role != column]
    unused = [column for column in table.columns if column not in roles.values()]
    lines = [f"{table.path.name}: reads {', '.join(renamed)}; columns=<role>:<column> changes that"] if renamed else []
    return lines + ([f"{table.path.name}: does not use the columns {', '.join(unused)}"] if unused else [])


def lacking(table: Table, role: str) -> str:
    """Return a sentence that says that a table lacks a column, what it has, and how to name one."""
    return (
        f"{table.path} has no column {role!r}. It has {', '.join(table.columns) or 'none'}. Rename the one that is "
        f"meant, or name it with columns={role}:<column>"
    )


def _told(table: Table, settings: Iterable[str]) -> dict[str, str]:
    told: dict[str, str] = {}
    by_letters = {_squeeze(column): column for column in table.columns}
    for setting in settings:
        role, _, name = (part.strip().lower() for part in setting.partition(":"))
        if not name or not (role in ROLES or kind_of(role)):
            raise UserError(
                f"columns = {setting} names no role and column, as in columns=label:diagnosis"
                f"{did_you_mean(role, [*ROLES, 'mask_<kind>'])}"
            )
        column = name if name in table.columns else by_letters.get(_squeeze(name))
        if column is None and name != NONE:
            raise UserError(
                f"columns = {setting}: {table.path} has no column {name!r}{did_you_mean(name, table.columns)}"
            )
        if role in told:
            raise UserError(f"columns names two columns for {role}: {told[role]} and {column or NONE}. Name one")
        told[role] = column or NONE
    return told


def _squeeze(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))
