"""Several runs side by side, from their records alone: curves, tables, and which differences exceed the seed noise.

    runs = [RecordedRun.read(folder) for folder in folders]
    found = analyse(runs, Path("results/compare/beta_1+beta_4"))

No model and no image is opened, so that unfinished runs take part, in the curves. Which figures of two runs may be
compared at all is decided in `comparable`.

A difference is judged by a paired t test over seeds: both runs are averaged over the targets that both have, seed by
seed, and the n differences are tested against 0 with n - 1 degrees of freedom. A permutation of n signs can't give a p
below 2 / 2^n, which for three seeds is 0.25, and a bootstrap of three values is too narrow; the price of the t test is
that the differences should be about normal. The p values of the pairs of one figure are adjusted by Holm 1979.
"""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed.analysis import comparable, plots
from domainbed.analysis.extras import require
from domainbed.analysis.recorded import RecordedRun
from domainbed.errors import UserError
from domainbed.model_selection import PROTOCOLS, SELECTION_METRICS
from domainbed.summary import BEST, COLUMNS, PARTS, TRIVIAL, build, main_records, spread, unit_of

#: A difference counts where chance alone would give one as large, somewhere among the pairs, less often than this.
LEVEL = 0.05
EXCEEDS, WITHIN = "exceeds the seed noise", "does not exceed the seed noise"
ONE_SEED, NO_SEED = "one seed each: can't be told", "no seed in common: can't be told"
NO_SPREAD, EQUAL = "the same in every seed: can't be told", "no difference"
#: Terms of the training loss that have a curve, where a run has them.
_TERMS = {
    "total_loss": "total loss", "recon_nats": "reconstruction (nats)", "recon_loss": "reconstruction loss",
    "KLD_nats": "KL (nats)", "KLD_weighted": "weighted KL", "y_loss": "label loss", "ce_loss": "cross-entropy of masks",
    "dice_loss": "Dice loss", "commitment_loss": "commitment loss", "perplexity": "perplexity of the codes",
}  # fmt: skip
_HELD_OUT = {**COLUMNS, "KLD_nats": "KL (nats)"}
#: What the curves are called, by what they are of.
NAMES = {"train": _TERMS, "sources": _HELD_OUT, "target": _HELD_OUT}
#: Figures whose differences are judged; more of them would be more chances to find one that means nothing.
JUDGED = ("kappa", "accuracy", "dice_dataset", "psnr", "ssim", "total_loss")
#: Points of a curve of training losses; each is a median.
_POINTS = 100

Curve = dict[str, Any]


def analyse(runs: Sequence[RecordedRun], folder: Path) -> dict[str, Any]:
    """Compare two runs or more, and draw them.

    Args:
        runs: of one data set.
        folder: of the pictures.

    Returns:
        runs: name, label, algorithm, seeds, targets, finished and begun trainings, betas.
        settings: those that differ, name to a value for each run.
        notes: what was left out of the comparison, and why.
        curves: by what they are of (train, sources, target) and figure, one for each run: `curve`.
        tables, averages: rows of figures, see `tables`.
        metrics: figures with a column, in order.
        differences: see `differences`.
        rate_distortion: see `rate_distortion`.
        pictures: file, title and caption of each.

    Raises:
        UserError: fewer than two runs, the same one twice, runs of different data sets, or matplotlib is not there.
    """
    labels = check(runs)
    notes = _unfinished(runs, labels)
    images = [comparable.digests(run) for run in runs]
    metrics, dropped = _columns(runs, labels)
    judged, other_images = differences(runs, labels, images)
    drawn, not_drawn = curves(runs, labels, images)
    found: dict[str, Any] = {
        "runs": [
            {
                "name": run.name, "label": label, "folder": str(run.folder), "algorithm": run.algorithm,
                "dataset": run.dataset, "seeds": seeds_of(run), "targets": targets_of(run),
                "finished": len(_finished(run)), "begun": len(run.trainings), "betas": comparable.betas(run),
            }
            for run, label in zip(runs, labels, strict=True)
        ],
        "settings": comparable.differing(list(runs)),
        "notes": notes + dropped + other_images + not_drawn,
        "curves": drawn,
        "metrics": metrics,
        "tables": tables(runs, labels, metrics),
        "averages": averages(runs, labels, metrics),
        "differences": judged,
        "rate_distortion": rate_distortion(runs, labels, images),
    }  # fmt: skip
    found["pictures"] = _draw(found, folder)
    return found


def check(runs: Sequence[RecordedRun]) -> list[str]:
    """Return a label for each run that tells it from the others: its name, and up to two settings that differ.

    Raises:
        UserError: fewer than two runs, the same one twice, or runs of different data sets.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs two runs or more. Name another results/train_output/<dataset>/<name>")
    folders = [run.folder.resolve() for run in runs]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise UserError(f"{runs[number].folder} stands there twice. Name each run once")
    if len({run.dataset for run in runs}) > 1:
        found = ", ".join(f"{run.name} is of {run.dataset}" for run in runs)
        raise UserError(
            f"figures of different data sets can't be compared: {found}. Compare runs on the same images, or look at "
            "each with report"
        )
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    differ = comparable.differing(list(runs))
    if not 1 <= len(differ) <= 2:
        return names
    return [
        f"{name} ({', '.join(f'{key}={_text(values[number])}' for key, values in differ.items())})"
        for number, name in enumerate(names)
    ]


def short_names(found: Mapping[str, Any]) -> dict[str, str]:
    """Return names for tables, by label, of what `analyse` returned: without the settings, where that is clear."""
    names = {run["label"]: run["name"] for run in found["runs"]}
    return names if len(set(names.values())) == len(names) else {label: label for label in names}


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def seeds_of(run: RecordedRun) -> list[int]:
    """Return the seeds of the trainings that have begun."""
    return sorted({seed for seed, _ in run.trainings})


def targets_of(run: RecordedRun) -> list[str]:
    """Return the targets of the trainings that have begun, "none" for a run without."""
    return list(dict.fromkeys(target for _, target in run.trainings))


def _finished(run: RecordedRun) -> list[tuple[int, str]]:
    return [one for one in run.trainings if run.is_finished(*one)]


def _unfinished(runs: Sequence[RecordedRun], labels: Sequence[str]) -> list[str]:
    notes = []
    for run, label in zip(runs, labels, strict=True):
        done, begun = len(_finished(run)), len(run.trainings)
        if not done:
            notes.append(f"{label} is unfinished: it takes part in the curves alone")
        elif done < begun:
            notes.append(f"{label} is unfinished: its curves and figures are of {done} of {begun} trainings")
    return notes


def curves(
    runs: Sequence[RecordedRun], labels: Sequence[str], images: Sequence[Mapping[tuple[str, str], str]]
) -> tuple[dict[str, dict[str, list[Curve]]], list[str]]:
    """Return the curves of all runs by what they are of ("train", "sources", "target") and by figure; and notes.

    They are of the targets that all runs have. A figure that is not the same quantity in all runs that have it is left
    out, and so are all of held-out images where runs hold out others.
    """
    found: dict[str, dict[str, list[Curve]]] = {"train": {}, "sources": {}, "target": {}}
    targets = [target for target in targets_of(runs[0]) if all(target in targets_of(run) for run in runs)]
    if not targets:
        return found, ["no curves: the runs leave out different environments, so they learn from different images"]
    held_out = [{place: digest for place, digest in one.items() if place[1] == "val"} for one in images]
    notes = []
    if any(one != held_out[0] for one in held_out):
        notes.append("no curves of held-out images: the runs hold out others, or their labels differ")
    for where, names in NAMES.items():
        if notes and where != "train":
            continue
        for metric in names:
            drawn = [(run, label, curve(run, where, metric, targets)) for run, label in zip(runs, labels, strict=True)]
            having = [(run, {"run": label} | one) for run, label, one in drawn if one is not None]
            pairs = itertools.combinations([run for run, _ in having], 2)
            if having and not any(comparable.why_not(metric, *pair) for pair in pairs):
                found[where][metric] = [one for _, one in having]
        if "recon_nats" in found[where]:
            found[where].pop("recon_loss", None)  # the same in another unit
    return found, notes


def curve(run: RecordedRun, where: str, metric: str, targets: Sequence[str]) -> Curve | None:
    """Return a figure along the training: mean over targets, then mean and standard deviation over seeds.

    Of the finished trainings, or where none is, of all, at the steps that all of them have.

    Args:
        run: finished or not.
        where: "train", terms of the training loss, as medians over `window` records; "sources", the held-out part of
            the environments trained on, mean over them; "target", that of the environment that was left out.
        metric: as in the records. targets: of the trainings.

    Returns:
        steps, mean, sd (None with one seed), num_seeds, window, finished; None where the run has no such figure.
    """
    begun = [training for training in run.trainings if training[1] in targets]
    trainings = [training for training in begun if run.is_finished(*training)] or begun
    series: dict[int, list[dict[int, float]]] = defaultdict(list)
    window = 1
    for seed, target in trainings:
        if where == "train":
            pairs = [(one["step"], one.get(metric)) for one in run.of("train", target, seed)]
        else:
            role = {"sources": "source", "target": "target"}[where]
            by_step: dict[int, list[float | None]] = defaultdict(list)
            for record in run.of("eval", target, seed):
                if record["role"] == role and record["part"] == "val":
                    by_step[record["step"]].append(record["metrics"].get(metric))
            pairs = [(step, _mean_of_all(values)) for step, values in by_step.items()]
        values = {step: value for step, value in sorted(pairs) if isinstance(value, (int, float))}
        if values:
            series[seed].append(values)
    shared = sorted(set.intersection(*(set(one) for of_seed in series.values() for one in of_seed))) if series else []
    if not shared:
        return None
    if where == "train":
        window = -(-len(shared) // _POINTS)
    bins = [shared[start : start + window] for start in range(0, len(shared), window)]
    by_seed = [
        [statistics.fmean(statistics.median(one[step] for step in steps) for one in of_seed) for steps in bins]
        for of_seed in series.values()
    ]
    columns = list(zip(*by_seed, strict=True))
    return {
        "steps": [statistics.fmean(steps) for steps in bins],
        "mean": [statistics.fmean(column) for column in columns],
        "sd": [statistics.stdev(column) for column in columns] if len(by_seed) > 1 else None,
        "num_seeds": len(by_seed),
        "window": window,
        "finished": all(run.is_finished(*training) for training in begun),
    }


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _columns(runs: Sequence[RecordedRun], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the figures that all runs which have them can be compared by, and a note for each of the others."""
    having: dict[str, list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        for metric in {name for record in run.of("final") for name in record["metrics"]} & COLUMNS.keys():
            having[metric].append(number)
    dropped: dict[str, list[str]] = defaultdict(list)
    for metric in COLUMNS:
        for one, other in itertools.combinations(having[metric], 2):
            if reason := comparable.why_not(metric, runs[one], runs[other]):
                dropped[f"{labels[one]} and {labels[other]}: {reason}"].append(metric)
                break
    gone = {metric for metrics in dropped.values() for metric in metrics}
    notes = [f"not compared: {', '.join(metrics)} ({reason})" for reason, metrics in dropped.items()]
    return [metric for metric in COLUMNS if having[metric] and metric not in gone], notes


def tables(runs: Sequence[RecordedRun], labels: Sequence[str], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each part, target (or environment), protocol and run, the trivial answers behind the runs.

    Returns:
        part, unit, protocol, run, n (images), step (None where seeds differ), figures: metric to mean, sd, se and n
        over seeds, and of a single one its recorded 95 % interval over groups of images, or None. A trivial answer that
        is the same beside all runs stands there once, its run is None.
    """
    rows = []
    records = [(label, main_records(build(run.records, {}).records)) for run, label in zip(runs, labels, strict=True)]
    everything = [record for _, of_run in records for record in of_run]
    order = [*PROTOCOLS, *TRIVIAL]
    for part, unit in itertools.product(PARTS, dict.fromkeys(map(unit_of, everything))):
        for protocol in order:
            same_place = []
            for label, of_run in records:
                found = [r for r in of_run if (r["part"], unit_of(r), r["protocol"]) == (part, unit, protocol)]
                figures = {
                    metric: spread(values)
                    | {"interval": found[0].get("intervals", {}).get(metric) if len(found) == 1 else None}
                    for metric in metrics
                    if (values := [r["metrics"][metric] for r in found if r["metrics"].get(metric) is not None])
                }
                if figures:
                    steps = {record["step"] for record in found} if protocol not in TRIVIAL else set()
                    row = {"part": part, "unit": unit, "protocol": protocol, "run": label, "n": found[0]["n"]}
                    step = steps.pop() if len(steps) == 1 else None
                    same_place.append(row | {"step": step, "figures": figures})
            if protocol in TRIVIAL and len({repr(_means(row)) for row in same_place}) == 1:
                same_place = [same_place[0] | {"run": None}]
            rows += same_place
    return rows


def _means(row: Mapping[str, Any]) -> dict[str, float]:
    return {metric: one["mean"] for metric, one in row["figures"].items()}


def averages(runs: Sequence[RecordedRun], labels: Sequence[str], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return the averages over targets (`Summary.averages`) of the runs, with their labels, of equal targets alone."""
    rows = [
        {"run": label} | row
        for run, label in zip(runs, labels, strict=True)
        for row in build(run.records, {}).averages()
        if row["metric"] in metrics and len(row["targets"]) > 1
    ]
    targets: dict[Any, set[Any]] = defaultdict(set)
    for row in rows:
        targets[row["part"], row["protocol"], row["metric"]].add(frozenset(row["targets"]))
    return [row for row in rows if len(targets[row["part"], row["protocol"], row["metric"]]) == 1]


def differences(
    runs: Sequence[RecordedRun], labels: Sequence[str], images: Sequence[Mapping[tuple[str, str], str]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Judge the difference of every pair of runs in the `JUDGED` figures, by the main protocol and part.

    Returns:
        One entry for each figure and pair: metric, one, other, part, targets, seeds, difference (one - other, mean over
        seeds), se, n (seeds), p (two-sided), p_holm, verdict, and better: the label, None where the verdict is not
        `EXCEEDS`. Then a note for each pair that has targets with other images.
    """
    finals = [
        {
            (record["part"], unit_of(record), record["seed"]): record
            for record in main_records(build(run.records, {}).records)
            if record["protocol"] == BEST
        }
        for run in runs
    ]
    part = next((part for part in PARTS if any(key[0] == part for final in finals for key in final)), None)
    judged, notes = [], []
    for metric in JUDGED:
        family = []
        for one, other in itertools.combinations(range(len(runs)), 2):
            pair = (runs[one], runs[other])
            having = [
                {
                    key[1:]: record
                    for key, record in finals[number].items()
                    if key[0] == part and record["metrics"].get(metric) is not None
                }
                for number in (one, other)
            ]
            if not all(having) or comparable.why_not(metric, *pair):
                continue
            shared = [
                unit for unit in dict.fromkeys(unit for unit, _ in having[0]) if unit in {u for u, _ in having[1]}
            ]
            places = {unit: _place(having, unit) for unit in shared}
            same = [
                u
                for u in shared
                if images[one].get((places[u], str(part))) == images[other].get((places[u], str(part)))
            ]
            if len(same) < len(shared):
                gone = ", ".join(unit for unit in shared if unit not in same)
                note = (
                    f"not compared: {labels[one]} and {labels[other]} on {gone}, whose images, labels or split differ"
                )
                notes += [note] if note not in notes else []
            if same:
                family.append(
                    {"metric": metric, "part": part} | _difference(metric, same, having, labels[one], labels[other])
                )
        for entry, adjusted in zip(family, holm([entry["p"] for entry in family]), strict=True):
            entry["p_holm"] = adjusted
            if adjusted is not None:
                entry["verdict"] = EXCEEDS if adjusted < LEVEL else WITHIN
            higher = (entry["difference"] or 0) > 0
            winner = entry["one"] if higher == (SELECTION_METRICS[metric] == "higher") else entry["other"]
            entry["better"] = winner if entry["verdict"] == EXCEEDS else None
        judged += family
    return judged, notes


def _place(having: Sequence[Mapping[tuple[str, int], Mapping[str, Any]]], unit: str) -> str:
    """Environment that a row is of."""
    return next(str(record["environment"]) for (name, _), record in having[0].items() if name == unit)


def _difference(
    metric: str, units: list[str], having: Sequence[Mapping[tuple[str, int], Mapping[str, Any]]], one: str, other: str
) -> dict[str, Any]:
    """Difference of two runs over the seeds in which both have a figure for every unit."""
    seeds = sorted({seed for _, seed in having[0]} & {seed for _, seed in having[1]})
    values = {
        seed: [
            [of_run[unit, seed]["metrics"][metric] if (unit, seed) in of_run else None for unit in units]
            for of_run in having
        ]
        for seed in seeds
    }
    whole = {seed: pair for seed, pair in values.items() if all(value is not None for side in pair for value in side)}
    gaps = [statistics.fmean(a - b for a, b in zip(*pair, strict=True)) for pair in whole.values()]
    num_seeds = [len({seed for _, seed in of_run}) for of_run in having]
    entry: dict[str, Any] = {
        "one": one, "other": other, "targets": units, "seeds": list(whole), "n": len(gaps),
        "difference": statistics.fmean(gaps) if gaps else None, "se": None, "p": None,
    }  # fmt: skip
    if len(gaps) < 2:
        entry["verdict"] = (
            NO_SEED if not gaps else ONE_SEED if max(num_seeds) == 1 else "one seed in common: can't be told"
        )
    else:
        entry["se"] = spread(gaps)["se"]
        if entry["se"] == 0:
            entry["verdict"] = NO_SPREAD if entry["difference"] else EQUAL
        else:
            entry["verdict"] = WITHIN
            entry["p"] = two_sided_p(entry["difference"] / entry["se"], len(gaps) - 1)
    return entry


def two_sided_p(t: float, degrees: int) -> float:
    """Return the probability that Student's t of some degrees of freedom is as far from 0 as `t`, or farther."""
    stats = require("scipy.stats", "analysis", "the test of a difference")
    return float(2 * stats.t.sf(abs(t), degrees))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p values adjusted for their number (Holm 1979); None, of no test, stays None and does not count."""
    order = sorted((value, index) for index, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        adjusted[index] = largest
    return adjusted


def rate_distortion(
    runs: Sequence[RecordedRun], labels: Sequence[str], images: Sequence[Mapping[tuple[str, str], str]]
) -> list[dict[str, Any]]:
    """Return what each run pays and gets for its beta, of the main protocol.

    Nothing unless betas differ, and all runs leave out the same environments and hold out the same images.

    The rate is the KL in nats of held-out images of the environments trained on, the distortion their mean squared
    error, which no likelihood defines (Alemi et al. 2018 plot both in nats, which asks for one likelihood).

    Returns:
        run, beta, series (runs of one series differ in beta alone), and for "sources" and, where there is one,
        "target": kl and mse, each with mean and sd over seeds.
    """
    if any({*targets_of(run)} != {*targets_of(runs[0])} for run in runs) or any(one != images[0] for one in images):
        return []
    found = []
    differ = comparable.differing(list(runs))
    weights = ("beta", "loss_multiplier_kl")
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        betas = comparable.betas(run)
        if len(betas) != 1:
            continue
        entry: dict[str, Any] = {"run": label, "beta": betas[0]}
        entry["series"] = repr([values[number] for key, values in differ.items() if key not in weights])
        for where, role, part in (("sources", "source", "val"), ("target", "target", "whole")):
            seeds: dict[int, list[tuple[float, float]]] = defaultdict(list)
            for record in build(run.records, {}).records:
                figures = record["metrics"]
                if (record["role"], record["part"], record["protocol"]) == (role, part, BEST):
                    pair = figures.get("KLD_nats"), figures.get("mse")
                    if None not in pair:
                        seeds[record["seed"]].append(pair)
            if seeds:
                means = [[statistics.fmean(column) for column in zip(*pairs, strict=True)] for pairs in seeds.values()]
                kl, mse = (spread(column) for column in zip(*means, strict=True))
                entry[where] = {"kl": kl, "mse": mse}
        if "sources" in entry:
            found.append(entry)
    blocked = any(comparable.why_not("mse", *pair) for pair in itertools.combinations(runs, 2))
    return sorted(found, key=lambda one: one["beta"]) if len({one["beta"] for one in found}) > 1 and not blocked else []


def _draw(found: Mapping[str, Any], folder: Path) -> list[dict[str, str]]:
    """Write the pictures; return what they are."""
    pictures = []
    labels = [run["label"] for run in found["runs"]]
    texts = {
        "train": ("Training losses", "Terms of the loss on training batches"),
        "sources": (
            "Held out, environments trained on",
            "Held-out images of the environments trained on, mean over them",
        ),
        "target": ("The environment left out, held-out part", "Held-out part of the environment that was left out"),
    }
    for where, (title, what) in texts.items():
        panels = found["curves"][where]
        if not panels:
            continue
        file = f"curves_{where}.png"
        _draw_curves(panels, labels, NAMES[where], folder / file)
        bands = any(one["sd"] for panel in panels.values() for one in panel)
        window = max(one["window"] for panel in panels.values() for one in panel)
        caption = f"{what}, by step{f'; medians of {window} records' if window > 1 else ''}."
        caption += " Lines are means over seeds, bands one standard deviation." if bands else " One seed, no band."
        if any(not one["finished"] for panel in panels.values() for one in panel):
            caption += " Dotted: unfinished."
        pictures.append({"file": file, "title": title, "caption": caption})
    if found["rate_distortion"]:
        _draw_rate(found["rate_distortion"], labels, folder / "rate_distortion.png")
        low, high = found["rate_distortion"][0], found["rate_distortion"][-1]
        pictures.append({
            "file": "rate_distortion.png",
            "title": "What beta buys: rate against distortion",
            "caption": "KL and mean squared error of held-out images, of the checkpoint that each run chose "
            f"({BEST}), a point per run with its beta: from "
            f"{low['sources']['kl']['mean']:.3g} nats and an error of {low['sources']['mse']['mean']:.3g} at beta "
            f"{low['beta']:.3g} to {high['sources']['kl']['mean']:.3g} nats and "
            f"{high['sources']['mse']['mean']:.3g} at beta {high['beta']:.3g}. Lines join runs that "
            "differ in nothing else.",
        })  # fmt: skip
    return pictures


def _draw_curves(panels: Mapping[str, list[Curve]], labels: list[str], names: Mapping[str, str], path: Path) -> None:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    legend_rows = -(-len(labels) // _legend_columns(labels, columns))
    height = 2.5 * rows + 0.2 * legend_rows + 0.15
    figure, axes = plots.new_figure(max(4.6, 3.2 * columns), height, rows, columns)
    flat = [axes] if len(panels) == 1 else list(axes.flat)
    handles: dict[int, Any] = {}
    for ax, (metric, drawn) in zip(flat, panels.items(), strict=False):
        for one in drawn:
            number = labels.index(one["run"])
            style = "-" if one["finished"] else ":"
            width = 2.6 - 1.4 * number / max(1, len(labels) - 1)  # what lies under another line still shows
            (line,) = ax.plot(one["steps"], one["mean"], style, color=plots.colour(number), linewidth=width)
            if len(one["steps"]) < 12:
                line.set_marker(plots.marker(number))
                line.set_markersize(3.5)
            if one["sd"]:
                low = [mean - sd for mean, sd in zip(one["mean"], one["sd"], strict=True)]
                high = [mean + sd for mean, sd in zip(one["mean"], one["sd"], strict=True)]
                ax.fill_between(one["steps"], low, high, color=plots.colour(number), alpha=0.15, linewidth=0)
            handles.setdefault(number, line)
        ax.set(title=names[metric], xlabel="step")
        _limits(ax, drawn)
    for ax in flat[len(panels) :]:
        ax.set_axis_off()
    shown = sorted(handles)
    figure.legend(
        [handles[number] for number in shown], [labels[number] for number in shown],
        loc="outside lower center", ncols=_legend_columns(labels, columns), fontsize=8, frameon=False,
    )  # fmt: skip
    plots.save(figure, path)


def _legend_columns(labels: Sequence[str], columns: int) -> int:
    """Columns of a legend under so many panels."""
    return max(1, min(len(labels), 4, 42 * columns // (max(map(len, labels)) + 6)))


def _limits(ax: Any, drawn: Sequence[Curve]) -> None:
    """A logarithmic axis for what spans decades; else the first of many points do not squash the rest."""
    values = [value for one in drawn for value in one["mean"]]
    if min(values) > 0 and max(values) / min(values) > 100:
        ax.set_yscale("log")
        return
    later = [value for one in drawn for value in one["mean"][len(one["mean"]) // 10 :]]
    low, high = min(later), max(later)
    margin = 0.08 * (high - low)
    if margin and (max(values) > high + 5 * margin or min(values) < low - 5 * margin):
        ax.set_ylim(low - margin, high + margin)


def _draw_rate(points: Sequence[Mapping[str, Any]], labels: list[str], path: Path) -> None:
    figure, ax = plots.new_figure(5.2, 3.8)
    every = [point[where]["kl"]["mean"] for point in points for where in ("sources", "target") if where in point]
    if min(every) > 0 and max(every) / min(every) > 30:
        ax.set_xscale("log")
    for where, style, fill, name in (
        ("sources", "-", None, "held out, trained on"),
        ("target", "--", "white", "left out"),
    ):
        if any(where in point for point in points):
            shape = plots.marker(0 if fill is None else 1)
            ax.plot([], [], shape, color="#555555", markerfacecolor=fill or "#555555", label=name)
        for series in dict.fromkeys(point["series"] for point in points):
            of_series = [point for point in points if point["series"] == series and where in point]
            if not of_series:
                continue
            kl, mse = ([point[where][key]["mean"] for point in of_series] for key in ("kl", "mse"))
            ax.plot(kl, mse, style, color="#999999", linewidth=1, zorder=1)
            for point in of_series:
                number = labels.index(point["run"])
                ax.errorbar(
                    point[where]["kl"]["mean"], point[where]["mse"]["mean"],
                    xerr=point[where]["kl"]["sd"], yerr=point[where]["mse"]["sd"],
                    fmt=plots.marker(0 if fill is None else 1),
                    color=plots.colour(number), markerfacecolor=fill or plots.colour(number), markersize=6,
                )  # fmt: skip
                text = f"{point['beta']:.3g}"
                position = (point[where]["kl"]["mean"], point[where]["mse"]["mean"])
                ax.annotate(text, position, (6, 5) if fill else (-5, -12), textcoords="offset points", fontsize=8)
    ax.set(title="held-out images; a number is beta", xlabel="KL (nats): the rate", ylabel="MSE: the distortion")
    ax.margins(0.15)
    if any("target" in point for point in points):
        ax.legend(fontsize=8, frameon=False)
    plots.save(figure, path)
