"""`python -m domainbed list`: every algorithm and data set with one line each."""

import json

from domainbed.cli import Parser
from domainbed.registry import ALGORITHMS, DATASETS, add_plugin


def main(argv: list[str]) -> int:
    """Print the names; return the exit status."""
    parser = Parser(str(__doc__), command="list")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--plugin", nargs="+", default=[], help="Python files that register more")
    arguments = parser.parse_args(argv)
    for path in arguments.plugin:
        add_plugin(path)
    found = {"algorithms": ALGORITHMS.lines(), "datasets": DATASETS.lines()}
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    width = max(len(name) for names in found.values() for name in names)
    for kind, names in found.items():
        print(f"{kind}:")
        for name, line in names.items():
            print(f"  {name:<{width}}  {line}")
    return 0
