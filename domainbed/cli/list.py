"""`python -m domainbed list [NAME]`: every algorithm and data set with one line each, or all settings of one."""

import json
from typing import Any

from domainbed.cli import Parser
from domainbed.errors import UserError, did_you_mean
from domainbed.registry import ALGORITHMS, DATASETS, add_plugin, first_line


def main(argv: list[str]) -> int:
    """Print the names, or the settings of one; return the exit status."""
    parser = Parser(str(__doc__), command="list")
    parser.add_argument("name", nargs="?", help="an algorithm or a data set, whose settings are explained")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--plugin", nargs="+", default=[], help="Python files that register more")
    arguments = parser.parse_args(argv)
    for path in arguments.plugin:
        add_plugin(path)
    if arguments.name is not None:
        found = settings_of(arguments.name)
    else:
        found = {"algorithms": ALGORITHMS.lines(), "datasets": DATASETS.lines()}
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    width = min(36, max(len(name) for names in found.values() for name in names))
    for kind, names in found.items():
        print(f"{kind}:")
        for name, line in names.items():
            print(f"  {name:<{width}}  {line}")
    return 0


def settings_of(name: str) -> dict[str, dict[str, str]]:
    """Return a name with its line, and its settings as key=default, with what each does and what values it takes.

    Raises:
        UserError: nothing is called so.
    """
    for registry in (ALGORITHMS, DATASETS):
        if name in registry:
            from domainbed.hparams import documented  # not for the names: they are there at once

            cls: Any = registry[name]
            settings = {}
            for key, info in cls.HParams.model_fields.items():
                default, description, values = documented(info)
                settings[f"{key}={default}"] = f"{description}; {values}"
            return {registry.kind: {name: first_line(cls.__doc__)}, "settings": settings}
    raise UserError(f"no algorithm and no data set named {name!r}{did_you_mean(name, [*ALGORITHMS, *DATASETS])}")
