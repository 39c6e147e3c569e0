"""`python -m domainbed report <run> [<run> …]`: all that is known of runs, as one HTML page."""

import argparse
import json
from typing import Any

from domainbed.cli import Parser
from domainbed.cli.analysis import add_output_options, add_run_options, opened, teller
from domainbed.names import printable
from domainbed.paths import as_path

DESCRIPTION = """\
Write one HTML page that needs no server and no network: what was run, whether it beats its trivial answers and
survives the left-out camera, tables, curves, reconstructions by step, a map of the codes, and the pictures of
latents, traverse, layers and errors. Several runs are compared, too.
"""


def main(argv: list[str]) -> int:
    """Write the page; return the exit status."""
    parser = Parser(DESCRIPTION, command="report")
    parser.add_argument("runs", type=as_path, nargs="+", metavar="run", help="results/train_output/<dataset>/<name>")
    add_run_options(parser)
    parser.add_argument("--quick", action="store_true", help="what was recorded alone: no model, no images, seconds")
    add_output_options(
        parser, "the page, or its folder (default: analysis/report/ in the run; of several: results/compare/<names>/)"
    )
    arguments = parser.parse_args(argv)

    from domainbed.analysis.recorded import RecordedRun
    from domainbed.analysis.report import write
    from domainbed.cli.compare import default_folder

    runs = [RecordedRun.read(folder) for folder in arguments.runs]

    def opener(run: RecordedRun, target: str, seed: int) -> Any:
        return opened(argparse.Namespace(**vars(arguments) | {"run": run.folder, "target": target, "seed": seed}))

    default = runs[0].folder / "analysis" / "report" if len(runs) == 1 else default_folder([run.name for run in runs])
    path = arguments.out or default
    path = path if path.suffix == ".html" else path / "report.html"
    tell = teller(arguments)
    found = write(runs, path, None if arguments.quick else opener, arguments.target, arguments.seed, tell)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    print("\n".join(map(printable, lines(found))))
    return 0


def lines(found: dict[str, Any]) -> list[str]:
    """What the page says first, and where it is."""
    text = []
    for run in found["runs"]:
        text += [f"{run['name']}:"] if len(found["runs"]) > 1 else []
        text += [f"  {one['answer'] + ':':<16} {one['question']} {one['because']}" for one in run["verdicts"]]
        if run["trainings"] > 1:
            text.append(
                f"  pictures are of target {run['target']}, seed {run['seed']}, one of {run['trainings']} trainings; "
                "--target and --seed choose another"
            )
        text += [f"  left out: {name}: {why}" for name, why in run["left_out"].items()]
    return [*text, f"{found['page']} ({found['bytes'] / 1e6:.1f} MB)"]
