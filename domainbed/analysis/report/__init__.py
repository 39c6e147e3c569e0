"""One or more runs as a single HTML page: everything embedded, to be read without a server, a network or this program.

    write([RecordedRun.read(folder)], Path("report.html"), opener=None)

`words` says what the figures mean, `parts` gathers what is shown of a model, `html` writes it down, and
page.css and page.js are how it looks and moves. Curves and tables are those of `compare`, the other sections those of
their own commands.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from domainbed.analysis import comparable, compare
from domainbed.analysis.opened import OpenedRun
from domainbed.analysis.recorded import RecordedRun
from domainbed.analysis.report import html, parts
from domainbed.analysis.report.words import verdicts
from domainbed.errors import UserError, explain_os_errors

#: What the curves are of, as the page says it.
_CURVES = {
    "train": "Training losses",
    "sources": "Held-out images of the environments trained on, mean over them",
    "target": "The environment left out, held-out part",
}


def write(
    runs: Sequence[RecordedRun],
    path: Path,
    opener: Callable[[RecordedRun, str, int], OpenedRun] | None,
    target: str | None = None,
    seed: int | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the page.

    Args:
        runs: one or more, finished or not.
        path: of the page.
        opener: given a run, a target and a seed, opens that model, for its map and the sections of the other commands;
            None leaves them out.
        target, seed: the training whose model is shown; by default the first that is finished, or has begun.
        report: takes each line worth saying while it goes.

    Returns:
        page, bytes, and for each run its name, verdicts, the target and seed shown, how many trainings there are, and
        what is left_out (section to reason).

    Raises:
        UserError: a run stands there twice or has no such training, or the page can't be written.
    """
    names = _names(runs)
    data: dict[str, Any] = {"curves": {}, "slider": {}, "map": {}, "figures": {}}
    answers = [verdicts(run) for run in runs]
    content = _comparison(runs, names, data)
    left_out: list[dict[str, str]] = [{} for _ in runs]
    findings: list[list[str]] = [[] for _ in runs]
    shown = [_chosen(run, target, seed) for run in runs]
    for number, (run, name, training) in enumerate(zip(runs, names, shown, strict=True)):
        opened = _opened(run, opener, training, left_out[number])
        of_model = _model(run, name, training, opened, data, f"run{number}", left_out[number], findings[number], report)
        for key, title, body in of_model:
            content.append((f"run{number}-{key}", f"{name}: {title}" if len(runs) > 1 else title, body))
        data["figures"].setdefault(name, {})
        data["figures"][name] |= {"config": run.config, "verdicts": answers[number], "final": run.of("final")}
    summary = "".join(map(_summary, runs, names, shown, answers, findings))
    content.insert(0, ("summary", "Summary", summary))
    title = f"Report: {', '.join(names)}" if len(names) < 4 else f"Report of {len(names)} runs"
    text = html.page(title, content, data).encode(errors="backslashreplace")
    with explain_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return {
        "page": str(path),
        "bytes": len(text),
        "runs": [
            {
                "name": name,
                "verdicts": found,
                "target": target,
                "seed": seed,
                "trainings": len(run.trainings),
                "left_out": gone,
            }
            for run, name, found, (seed, target), gone in zip(runs, names, answers, shown, left_out, strict=True)
        ],
    }


def _names(runs: Sequence[RecordedRun]) -> list[str]:
    folders = [str(run.folder.resolve()) for run in runs]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise UserError(f"{runs[number].folder} stands there twice. Name each run once")
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _summary(
    run: RecordedRun, name: str, shown: tuple[int, str], answers: list[dict[str, str]], findings: list[str]
) -> str:
    """What was run, with the warnings first, and what came of it in words."""
    ended = sum(run.is_finished(*training) for training in run.trainings)
    notes = [record["text"] for record in run.of("note")]
    if ended < len(run.trainings):
        notes.insert(0, f"Unfinished: {ended} of {len(run.trainings)} trainings have ended.")
    recorded = run.folder / "summary.json"
    about: dict[str, Any] = {}
    with suppress(OSError, ValueError, KeyError):  # the command alone is lost
        about = json.loads(recorded.read_text(encoding="utf-8"))["run"]
    targets = [target for target in compare.targets_of(run) if target != "none"]
    config = run.config
    text = f"<h3>{html.escape(name)}</h3>\n" + html.paragraphs(list(dict.fromkeys(notes)), "note")
    text += html.answers(answers) or html.paragraphs(["No training is finished, so nothing can be said yet."])
    text += html.bullets(findings)
    text += html.facts({
        "Algorithm": f"{run.algorithm} on {run.dataset}",
        "Left out": ", ".join(targets) or "nothing",
        "Seeds": ", ".join(map(str, compare.seeds_of(run))),
        "Pictures": f"of the training with target {shown[1]}, seed {shown[0]}",
        "Length": f"{config.get('steps', '?')} steps; the best checkpoint by {config.get('select_by', '?')}",
        "Beta": ", ".join(f"{beta:.4g}" for beta in comparable.betas(run)) or "no KL term",
    })  # fmt: skip
    if about.get("command"):
        text += f"<pre>{html.escape(about['command'])}</pre>\n"
    return text + _data(run)


def _data(run: RecordedRun) -> str:
    """How many images of which environment were in which split."""
    try:
        counts = Counter((line["environment"], line["split"]) for line in run.images())
    except UserError as error:
        return html.paragraphs([str(error)], "note")
    splits = [split for split in ("train", "val", "test") if any(key[1] == split for key in counts)]
    targets = {target for _, target in run.trainings}
    left_out = targets.pop().split("+") if len(targets) == 1 else []
    rows: list[list[html.Cell]] = []
    for environment in dict.fromkeys(environment for environment, _ in counts):
        name = f"{environment} (left out)" if environment in left_out else environment
        rows.append([name, *((str(counts[environment, one]), float(counts[environment, one])) for one in splits)])
    return html.table("Images by environment and split", ["environment", *splits], rows)


def _comparison(runs: Sequence[RecordedRun], names: list[str], data: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Figures and curves: of all runs together where they can be compared, else of each by itself."""
    if len(runs) > 1:
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = compare.analyse(runs, Path(folder))
                drawn = [
                    one | parts.picture(Path(folder) / one["file"])
                    for one in found["pictures"]
                    if not one["file"].startswith("curves_")
                ]
        except UserError as error:
            apart = html.paragraphs([f"The runs are not compared: {error}"], "note")
        else:
            data["figures"]["comparison"] = found
            text = html.paragraphs(found["notes"], "note")
            if found["settings"]:
                rows = [
                    [run["name"], *(str(values[k]) for values in found["settings"].values())]
                    for k, run in enumerate(found["runs"])
                ]
                head = ["run", *found["settings"]]
                text += html.table("Settings that differ", head, rows, words=len(head))
            text += html.differences(found) + html.pictures(drawn)
            rows_of_figures = html.figures(found["tables"], found["metrics"], compare.short_names(found))
            labels = [run["label"] for run in found["runs"]]
            return [
                ("comparison", "Comparison", text),
                ("figures", "Figures", rows_of_figures),
                ("curves", "Curves", _curves(found["curves"], runs, labels, data, "all")),
            ]
    else:
        apart = ""
    figures, curves = "", ""
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        heading = f"<h3>{html.escape(name)}</h3>\n" if len(runs) > 1 else ""
        metrics = [metric for metric in compare.COLUMNS if any(metric in one["metrics"] for one in run.of("final"))]
        of_run = compare.tables([run], [name], metrics)
        figures += heading + (
            html.figures(of_run, metrics, {name: name}) or html.paragraphs(["No training is finished."])
        )
        of_training, _ = compare.curves([run], [name], [{}])
        curves += heading + _curves(of_training, [run], [name], data, f"run{number}")
    return [("figures", "Figures", apart + figures), ("curves", "Curves", curves)]


def _curves(
    found: dict[str, Any], runs: Sequence[RecordedRun], labels: list[str], data: dict[str, Any], key: str
) -> str:
    """Curves of some runs; what the script draws goes into `data`."""
    text = ""
    legend = [
        {"label": label, "finished": all(run.is_finished(*training) for training in run.trainings)}
        for run, label in zip(runs, labels, strict=True)
    ]
    for where, title in _CURVES.items():
        if not found[where]:
            continue
        data["curves"][f"{key}-{where}"] = {
            "runs": legend,
            "panels": [
                {
                    "title": compare.NAMES[where][metric],
                    "curves": [one | {"number": labels.index(one["run"])} for one in drawn],
                }
                for metric, drawn in found[where].items()
            ],
        }
        text += f"<h3>{html.escape(title)}</h3>\n" + html.curves(f"{key}-{where}")
    return text or html.paragraphs(["Nothing was recorded that has a curve."])


def _chosen(run: RecordedRun, target: str | None, seed: int | None) -> tuple[int, str]:
    """Return seed and target of the training that is shown: the first finished one that fits, or the first begun."""
    fitting = [one for one in run.trainings if target in (None, one[1]) and seed in (None, one[0])]
    if not fitting:
        found = ", ".join(f"{target} (seed {seed})" for seed, target in run.trainings)
        asked = " and ".join(
            f"{key} {value}" for key, value in (("target", target), ("seed", seed)) if value is not None
        )
        raise UserError(f"{run.folder} has no training of {asked}. It has {found}")
    return next((one for one in fitting if run.is_finished(*one)), fitting[0])


def _opened(
    run: RecordedRun, opener: Callable[[RecordedRun, str, int], OpenedRun] | None, training: tuple[int, str],
    left_out: dict[str, str],
) -> OpenedRun | None:  # fmt: skip
    """Return the model of a training; None where it is not asked for, or can't be had, which `left_out` then says."""
    if opener is None:
        return None
    seed, target = training
    try:
        return opener(run, target, seed)
    except UserError as error:
        left_out["model"] = str(error)
        return None


def _model(
    run: RecordedRun,
    name: str,
    training: tuple[int, str],
    opened: OpenedRun | None,
    data: dict[str, Any],
    key: str,
    left_out: dict[str, str],
    findings: list[str],
    report: Callable[[str], None],
) -> list[tuple[str, str, str]]:
    """Return the sections of one training of a run.

    What the script reads goes into `data` under `key`, why a section is missing into `left_out`, and what the other
    commands found, in words, into `findings`.
    """
    seed, target = training
    content = []
    if pictures := parts.reconstructions(run, target, seed):
        which = html.paragraphs([f"Of the training with target {target}, seed {seed}."])
        data["slider"][key] = pictures
        content.append(("reconstructions", "Reconstructions", which + html.slider(key, pictures)))
    else:
        left_out["reconstructions"] = "the run left no pictures"
    if opened is None:
        gone = [f"The model is not shown: {left_out['model']}"] if "model" in left_out else []
        return [*content, ("model", "Model", html.paragraphs(gone, "note"))] if gone else content
    which = html.paragraphs([opened.title])
    with tempfile.TemporaryDirectory() as folder:
        sections = parts.sections(opened, Path(folder), report)
    try:
        drawn = next((one["figures"].get("map") for one in sections if one["name"] == "latents"), None)
        data["map"][key] = parts.latent_map(opened, drawn)
        content.append(("map", "Map of the codes", which + html.latent_map(key, data["map"][key])))
    except UserError as error:
        left_out["map"] = str(error)
    for one in sections:
        if one["why_not"] is not None:
            left_out[one["name"]] = one["why_not"]
        findings += [f"{one['title']}: {finding}" for finding in one["findings"]]
        content.append((one["name"], one["title"], which + html.section(one)))
        data["figures"].setdefault(name, {})[one["name"]] = one["figures"]
    return content
