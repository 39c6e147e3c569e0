"""`python -m domainbed compare <run> <run> …`: curves and tables of several runs, and which differences count."""

from pathlib import Path
from typing import Any

from domainbed.cli import Parser
from domainbed.cli.analysis import add_output_options, finish
from domainbed.paths import as_path, folder_name

DESCRIPTION = """\
Compare runs on the same data set, from their records alone: curves in one plot, figures beside those of trivial
answers, and which differences exceed what a seed moves. Unfinished runs take part in the curves.
"""

#: Of a figure, beyond which only those that say something are printed.
MANY_PAIRS = 6


def main(argv: list[str]) -> int:
    """Print the comparison; return the exit status."""
    parser = Parser(DESCRIPTION, command="compare")
    parser.add_argument("runs", type=as_path, nargs="+", metavar="run", help="results/train_output/<dataset>/<name>")
    add_output_options(parser, "folder of pictures and figures.json (default: results/compare/<names joined by +>)")
    arguments = parser.parse_args(argv)

    from domainbed.analysis.compare import analyse
    from domainbed.analysis.recorded import RecordedRun

    runs = [RecordedRun.read(folder) for folder in arguments.runs]
    folder = arguments.out or default_folder([run.name for run in runs])
    return finish(arguments, folder, analyse(runs, folder), table)


def default_folder(names: list[str]) -> Path:
    """Return where a comparison of runs of these names belongs."""
    joined = "+".join(names)
    name = joined if len(joined) <= 120 else f"{joined[:100]}+{len(names)}_runs"
    return Path("results") / "compare" / folder_name(name)


def table(found: dict[str, Any]) -> list[str]:
    """Lines for the terminal: what differs, the figures of the main part, and the verdicts."""
    from domainbed.analysis.compare import EXCEEDS, short_names
    from domainbed.summary import BEST, CHOSEN_ON_TARGET, COLUMNS, ORACLE, PARTS, label, number, table

    lines = [f"NOTE: {note}" for note in found["notes"]]
    names = short_names(found)
    if found["settings"]:
        lines += ["", "settings that differ (of those that all runs have)", ""]
        rows = [
            [run["name"], *(str(values[number]) for values in found["settings"].values())]
            for number, run in enumerate(found["runs"])
        ]
        lines += table(["run", *found["settings"]], rows, words=1)
    metrics = found["metrics"]
    for part in [part for part in PARTS if any(row["part"] == part for row in found["tables"])][:1]:
        lines += ["", f"{PARTS[part]}. Mean ± standard deviation (n - 1) over seeds, where there are several.", ""]
        rows = [
            [
                row["unit"], label(row["protocol"]), names.get(row["run"], "(any run)"), str(row["n"]),
                *(_cell(number, metric, row["figures"].get(metric)) for metric in metrics),
            ]
            for row in found["tables"]
            if row["part"] == part
        ]  # fmt: skip
        lines += table(["target", "protocol", "run", "n", *(COLUMNS[metric] for metric in metrics)], rows, words=3)
        if any(row["protocol"] == ORACLE for row in found["tables"]):
            lines += ["", CHOSEN_ON_TARGET]
    averaged = [row for row in found["averages"] if row["protocol"] == BEST]
    if averaged:
        lines += ["", f"Averages over targets, {BEST}: mean, standard deviation (sd), standard error (se)", ""]
        rows = [
            [
                names[row["run"]], row["part"], COLUMNS[row["metric"]],
                *(number(row["metric"], row[key]) for key in ("mean", "sd", "se")), str(row["n"]), row["over"],
            ]
            for row in averaged
        ]  # fmt: skip
        lines += table(["run", "part", "figure", "mean", "sd", "se", "n", "over"], rows, words=3)
    judged = found["differences"]
    if any(one["p"] is not None for one in judged):
        lines += ["", f"Differences, {BEST}, paired over seeds; p of a t test, adjusted by Holm over the pairs", ""]
        rows = [
            [
                COLUMNS[one["metric"]], f"{names[one['one']]} - {names[one['other']]}", _signed(one["difference"]),
                _signed(one["se"]).lstrip("+"), str(one["n"]), "–" if one["p_holm"] is None else f"{one['p_holm']:.3f}",
                one["verdict"] + (f": {names[one['better']]} is better" if one["better"] else ""),
            ]
            for one in judged
            if one["verdict"] == EXCEEDS or sum(other["metric"] == one["metric"] for other in judged) <= MANY_PAIRS
        ]  # fmt: skip
        head = ["figure", "pair", "difference", "standard error", "seeds", "p (Holm)", "verdict"]
        lines += table(head, rows, words=2)
        if len(rows) < len(judged):
            lines += [
                "",
                f"{len(judged) - len(rows)} differences that do not exceed the seed noise are in figures.json",
            ]
        lines += ["", "Each figure is a family of its own: decide on one before you look, or count them all."]
    elif judged:
        reasons = ", ".join(dict.fromkeys(one["verdict"] for one in judged))
        lines += ["", f"Which differences exceed the seed noise? {reasons}. Repeat the runs with --seeds 0 1 2 or more"]
    else:
        lines += ["", "no two runs have a figure of the same images: there is no difference to judge"]
    return [*lines, ""]


def _cell(number: Any, metric: str, one: dict[str, Any] | None) -> str:
    if one is None:
        return "–"
    return number(metric, one["mean"]) + (f" ± {number(metric, one['sd'])}" if one["sd"] else "")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4g}"
