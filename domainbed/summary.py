"""The tables of a run: what every protocol's checkpoint scores, beside what needs no model.

    summary = build(records, run)
    print(summary.text())        # what a run prints at its end: one row per target
    summary.write(folder)        # summary.md, the same with intervals; summary_full.md, .csv and .json with everything

A pure function of the "final" records of results.jsonl: nothing is measured here, and what the figures mean in plain
words is in `conclusion`. One target with one seed shows each figure with its bootstrap interval. More of them add an
average: targets within each seed first, then mean, standard deviation and standard error over seeds, or over targets
where there is one seed; each is labelled, because a standard error printed as a deviation makes results look several
times more certain than they are.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainbed.files import write_atomically
from domainbed.model_selection import PROTOCOLS
from domainbed.names import printable

MAJORITY = "majority class"
MAJORITY_MASK = "majority mask"
MEAN_IMAGE = "mean training image"
ORACLE = "oracle (test-domain validation)"
BEST = "training-domain validation"
COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "kappa": "kappa",
    "macro_f1": "macro F1",
    "auc": "AUC",
    "auc_referable": "AUC (referable)",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "dice_dataset": "Dice (all pixels)",
    "dice_image": "Dice (per image)",
    "iou_dataset": "IoU (all pixels)",
    "iou_image": "IoU (per image)",
    "pixel_accuracy": "pixel accuracy",
    "bits_per_code": "bits per code",
    "bits_by_frequency": "by frequency",
    "perplexity": "perplexity",
    "judged_clean": "judged clean",
    "judged_perturbed": "judged perturbed",
    "mse": "MSE",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "total_loss": "total_loss",
}
"""Figures that have a column, by metric; the CSV holds all of them."""
CHOSEN_ON_TARGET = "† selected on the target itself: not comparable with the other rows"
PARTS = {
    "whole": "Whole target environment",
    "test": "Test part",
    "val": "Held-out part",
}
"""Parts that have a table, in order. The train part is shown among the source environments."""
UNDEFINED = "–"
BETTER = "✓"
MINUS = "accuracy_minus_"  # of `metrics.beside`
TRIVIAL = (MAJORITY, MAJORITY_MASK, MEAN_IMAGE)
BY_FREQUENCY = "by frequency"  # of the codes, which the record of the model itself has
HEADLINE = (BEST, "last")
"""Protocols of which a target's row is the first that it has."""
COMPARED = {
    ("kappa", "balanced_accuracy"): MAJORITY,
    ("dice_dataset",): MAJORITY_MASK,
    ("psnr",): MEAN_IMAGE,
    ("bits_per_code",): BY_FREQUENCY,
}
"""Figures of a target's row, the first of each that a run has, with the answer that needs no model."""
_ORDER = [*PROTOCOLS, *TRIVIAL]
_PART_WORDS = {"whole": "all", "test": "test part", "val": "held-out part"}
_FOOTNOTES = {
    BEST: "checkpoint with the best {select_by} on the held-out part of the source environments, mean over "
    "environments; the target is not looked at (Gulrajani & Lopez-Paz 2021).",
    "last": "the weights after the last step.",
    ORACLE: "chosen by {select_by} on the held-out part of the target itself. Nobody can choose so for an unseen "
    "target: not comparable with the other rows, and optimistic wherever those images are counted.",
    MAJORITY: "always answers the most frequent class of the training images; AUC 0.5 and kappa 0 by definition.",
    MAJORITY_MASK: "answers for every pixel what most pixels of the training masks are: the background, as a rule.",
    MEAN_IMAGE: "answers every image with the mean of the training images; of those of its class, beside a model that "
    "is told the label.",
}

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A figure of a model that has an answer without a model to beat.

    Attributes:
        metric: name of the figure. trivial: name of the answer that needs no model.
        values: one for each seed. bounds: their intervals. trivial_values: the same figure of the trivial answer.
        sign: 1 where a higher figure is better, else -1.
    """

    metric: str
    trivial: str
    values: Sequence[float | None]
    bounds: Sequence[Sequence[float] | None]
    trivial_values: Sequence[float | None]
    sign: int = 1

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that have the figure."""
        return _mean(self.values)

    @property
    def trivial_mean(self) -> float | None:
        """Mean of the trivial answer's figure."""
        return _mean(self.trivial_values)

    @property
    def is_better(self) -> bool:
        """Whether the figure of every seed is better: its whole interval, or where there is none the value."""
        pairs = list(zip(self.values, self.bounds, self.trivial_values, strict=True))
        return bool(pairs) and all(
            value is not None
            and trivial is not None
            and min(self.sign * bound for bound in bounds or (value,)) > self.sign * trivial
            for value, bounds, trivial in pairs
        )

    def cell(self, intervals: bool) -> str:
        """The figure as a table shows it, marked where it is better."""
        known = [value for value in self.values if value is not None]
        if len(self.values) > 1 or not known:
            text = _mean_and_deviation(self.metric, self.values, len(self.values))
        else:
            text = number(self.metric, known[0])
            if intervals and (bounds := self.bounds[0]):
                text += f" [{number(self.metric, bounds[0])}, {number(self.metric, bounds[1])}]"
        return f"{text} {BETTER}" if self.is_better else text


@dataclass(frozen=True)
class Headline:
    """What a reader needs to know of one target: one row of summary.md.

    Attributes:
        place: name of the environment. records: of the model, one for each seed.
        trivial: records of the answers that need no model, by protocol, in the order of the seeds.
    """

    place: str
    records: list[Record]
    trivial: Mapping[str, list[Record]]

    @property
    def unseen(self) -> bool:
        """Whether the environment was left out of the training."""
        return bool(self.records[0]["role"] == "target")

    @property
    def chose_threshold(self) -> bool:
        """Whether the threshold was chosen on these very images."""
        point = self.records[0].get("operating_point", {})
        return self.records[0]["part"] == "val" and self.records[0]["environment"] in point.get("chosen_on", ())

    def compare(self, metric: str, trivial: str) -> Comparison | None:
        """Compare a figure with the trivial answer's; None where the model has no such figure in any seed."""
        values = [record["metrics"].get(metric) for record in self.records]
        if all(value is None for value in values):
            return None
        bounds = [record.get("intervals", {}).get(metric) for record in self.records]
        if trivial == BY_FREQUENCY:
            others, sign = [record["metrics"].get("bits_by_frequency") for record in self.records], -1
        else:
            by_seed = {record["seed"]: record["metrics"].get(metric) for record in self.trivial.get(trivial, ())}
            others, sign = [by_seed.get(record["seed"]) for record in self.records], 1
        return Comparison(metric, trivial, values, bounds, others, sign)

    @property
    def screening(self) -> Comparison | None:
        """Sensitivity + specificity - 1, which is 0 for an answer that ignores the image."""
        found = self.compare("youden", MAJORITY)
        return found and replace(found, trivial_values=[0.0] * len(found.values))


@dataclass
class Summary:
    """The final records of a run, in order, and what is said about them.

    Attributes:
        run: see `build`. records: final ones.
        conclusion: a paragraph in plain words, see `conclusion`.
    """

    run: Mapping[str, Any]
    records: list[Record]
    conclusion: str = ""

    @property
    def notes(self) -> list[str]:
        """The run's notes, and a line for what was expected and is not there."""
        notes = list(self.run.get("notes", ()))
        if self.missing:
            notes.append(f"unfinished, so not in these tables: {', '.join(self.missing)}")
        return notes

    @property
    def missing(self) -> list[str]:
        """What the run was asked for and has not finished."""
        finished = {(record["target"], record["seed"]) for record in self.records}
        return [
            f"{target} (seed {seed})"
            for seed in self.run.get("seeds", ())
            for target in self.run.get("targets", ())
            if (target, seed) not in finished
        ]

    def headlines(self) -> list[Headline]:
        """Return what a reader needs to know of each target, or without one of each source environment.

        The checkpoint is the one that training-domain validation selects; `last` where a seed has none. Of the parts
        of an environment it is the first in `PARTS`.
        """
        found = []
        for unit in _distinct(map(unit_of, main_records(self.records))):
            records = [record for record in main_records(self.records) if unit_of(record) == unit]
            records = [record for record in records if record["part"] == _parts(records)[0]]
            seeds = {record["seed"] for record in records}
            by_protocol = {name: [r for r in records if r["protocol"] == name] for name in _protocols(records)}
            complete = [name for name in HEADLINE if len(by_protocol.get(name, ())) == len(seeds)]
            shown = next((by_protocol[name] for name in [*complete, *HEADLINE] if by_protocol.get(name)), None)
            if shown:
                found.append(Headline(unit, shown, {name: by_protocol.get(name, []) for name in TRIVIAL}))
        return found

    def averages(self) -> list[dict[str, Any]]:
        """One row per part, protocol and metric: mean, sd (sample, n - 1), se = sd / sqrt(n), n, and over what.

        Only seeds that have every target enter, so that no seed is averaged over other targets than the next.
        """
        rows: list[dict[str, Any]] = []
        for part in _parts(self.records):
            records = [record for record in main_records(self.records) if record["part"] == part]
            units = _distinct(map(unit_of, records))
            seeds = _distinct(record["seed"] for record in records)
            if len(units) * len(seeds) < 2:
                continue
            for protocol in _protocols(records):
                of_protocol = [record for record in records if record["protocol"] == protocol]
                by_place = {(unit_of(record), record["seed"]): record["metrics"] for record in of_protocol}
                whole = [seed for seed in seeds if all((unit, seed) in by_place for unit in units)]
                for metric in _metrics(of_protocol):
                    everywhere = [
                        unit
                        for unit in units
                        if whole and all(by_place[unit, seed].get(metric) is not None for seed in whole)
                    ]
                    values = [[by_place[unit, seed][metric] for unit in everywhere] for seed in whole]
                    if not everywhere:
                        continue
                    over_seeds = len(whole) > 1
                    row = spread([statistics.fmean(one) for one in values] if over_seeds else values[0])
                    over = {"over": "seeds" if over_seeds else "targets", "seeds": whole, "targets": everywhere}
                    rows.append({"part": part, "protocol": protocol, "metric": metric} | row | over)
        return rows

    def text(self) -> str:
        """The main table, narrow enough for a terminal: one row per target, without intervals."""
        lines = [self._title(), *(f"! {note}" for note in self.notes), "", *self._headline_table(intervals=False)]
        return "\n".join(lines) + "\n"

    def brief(self) -> str:
        """What a reader needs to know: the conclusion, then one table with one row per target."""
        lines = [f"# {self._title()}", ""]
        lines += [self.conclusion, ""] if self.conclusion else []
        lines += self._headline_table(intervals=True)
        notes = f"; so are the run's notes ({len(self.notes)})" if self.notes else ""
        lines += ["", f"Other checkpoints, parts, averages and classes are in `summary_full.md`{notes}."]
        return "\n".join(lines) + "\n"

    def _headline_table(self, intervals: bool) -> list[str]:
        """One row per target, each figure beside the answer that needs no model, and what the marks mean."""
        headlines = self.headlines()
        if not headlines:
            return ["no finished target"]
        columns: dict[str, list[str]] = {
            _place(headlines[0].records): [headline.place for headline in headlines],
            "selected by": [headline.records[0]["protocol"] for headline in headlines],
            "images": [f"{h.records[0]['n']} ({_PART_WORDS[h.records[0]['part']]})" for h in headlines],
        }
        words, screened = len(columns), False
        for metrics, trivial in COMPARED.items():
            for metric in metrics:
                if found := {h.place: comparison for h in headlines if (comparison := h.compare(metric, trivial))}:
                    cells = {place: (c.cell(intervals), number(metric, c.trivial_mean)) for place, c in found.items()}
                    pairs = [cells.get(h.place, (UNDEFINED, UNDEFINED)) for h in headlines]
                    columns[COLUMNS[metric]] = [figure for figure, _ in pairs]
                    columns[trivial] = [beside for _, beside in pairs]
                    break
            if trivial == MAJORITY and (flagged := _screening_columns(headlines, intervals)):
                columns, screened = columns | flagged, True
        compared = len(columns) > words
        if not compared and _metrics((h.records[0] for h in headlines), ["total_loss"]):
            values = [[record["metrics"].get("total_loss") for record in h.records] for h in headlines]
            columns["total_loss"] = [_mean_and_deviation("total_loss", of_one, len(of_one)) for of_one in values]
        rows = list(zip(*columns.values(), strict=True))
        return [
            *table(list(columns), rows, words),
            "",
            *self._headline_caption(headlines, compared, screened, intervals),
        ]

    def _headline_caption(
        self, headlines: Sequence[Headline], compared: bool, screened: bool, intervals: bool
    ) -> list[str]:
        """What the marks of the headline table mean."""
        lines = []
        seeds = _distinct(record["seed"] for headline in headlines for record in headline.records)
        if compared:
            which = "95 % interval of every seed" if len(seeds) > 1 else "whole 95 % interval"
            lines.append(
                f"{BETTER} the {which} is better than the answer that needs no model, which is in the next column. "
                "No mark: not shown to be better."
            )
        if screened:
            own = [headline.place for headline in headlines if headline.chose_threshold]
            lines.append(
                f"{self._threshold_caption()} {BETTER} their sum is above 1, which is that of flagging at "
                "random." + (f" For {', '.join(own)} these are the same images, which flatters." if own else "")
            )
        if len(seeds) > 1:
            lines.append(f"Mean ± standard deviation (n - 1) over the seeds {', '.join(map(str, seeds))}.")
        elif intervals and any(record.get("intervals") for headline in headlines for record in headline.records):
            lines.append(f"Seed {seeds[0]}. [low, high]: 95 % bootstrap interval over groups, such as patients.")
        return lines if not intervals else [line for text in lines for line in (text, "")][:-1]

    def _threshold_caption(self) -> str:
        """What sensitivity and specificity are of; empty for a run that has none."""
        point = next((record["operating_point"] for record in self.records if "operating_point" in record), None)
        if point is None:
            return ""
        names = self.run.get("class_names") or []
        to_find = either(names[k] if k < len(names) else str(k) for k in point["positives"])
        return (
            f"Sensitivity and specificity for {to_find}, at the threshold that finds {point['sensitivity']:.0%} "
            "of them or more, and flags the fewest, among the held-out images of the environments trained on."
        )

    def full(self) -> str:
        """Everything for a reader; the tables are aligned and can be read as plain text."""
        run = self.run
        lines = [f"# {self._title()}", ""]
        if self.notes:
            lines += ["\n>\n".join(f"> **Note:** {note}" for note in self.notes), ""]
        if run.get("command"):
            lines += ["```", str(run["command"]), "```", ""]
        select_by = run.get("select_by", "the selection metric")
        if run.get("steps") is not None:
            lines += [f"{run['steps']} steps, selected by {select_by}. Figures by protocol:", ""]
        lines += [
            f"- **{label(protocol)}**: {_FOOTNOTES[protocol].format(select_by=select_by)}"
            for protocol in _protocols(self.records)
            if protocol in _FOOTNOTES
        ]
        if caption := self._threshold_caption():
            oracle = any(record["protocol"] == ORACLE for record in self.records)
            lines += ["", caption + (" In rows with † the held-out images of the target choose it." if oracle else "")]
        for part in _parts(self.records):
            records = [record for record in main_records(self.records) if record["part"] == part]
            lines += ["", f"## {_heading(part, records)}", "", self._caption(records), ""]
            lines += self._per_target(records)
            average = self._average(part)
            lines += ["", "### Average", "", *average] if average else []
            lines += self._baselines(records)
        lines += self._sources()
        lines += self._classes()
        lines += self._mask_classes()
        if not self.records:
            lines += ["", "No target is finished."]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Long format, one figure a line, in full precision; recall per class as recall_0, recall_1, …"""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        keys = ["target", "seed", "protocol", "checkpoint", "step", "environment", "role", "part", "n"]
        writer.writerow([*keys, "metric", "value", "low", "high"])
        for record in self.records:
            place = [record.get(key) for key in keys]
            for metric, value in record["metrics"].items():
                if metric == "confusion":
                    continue
                low, high = record.get("intervals", {}).get(metric) or (None, None)
                if isinstance(value, list):
                    writer.writerows([*place, f"{metric}_{k}", one, None, None] for k, one in enumerate(value))
                else:
                    writer.writerow([*place, metric, value, low, high])
        return buffer.getvalue()

    def json(self) -> str:
        """Run, conclusion, notes, averages and records, in full precision."""
        everything = {
            "run": dict(self.run),
            "conclusion": self.conclusion,
            "notes": self.notes,
            "averages": self.averages(),
            "records": [dict(record) for record in self.records],
        }
        return json.dumps(everything, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write summary.md, .csv and .json and summary_full.md; a reader sees an old file or a new one, never half."""
        files = {
            "summary.md": self.brief(),
            "summary_full.md": self.full(),
            "summary.csv": self.csv(),
            "summary.json": self.json(),
        }
        for name, content in files.items():
            with write_atomically(folder / name) as draft:
                draft.write_text(content, encoding="utf-8", errors="backslashreplace")  # of names that are no text

    def _title(self) -> str:
        of = f", {size} images of each environment" if (size := self.run.get("subset_size")) else ""
        return f"{self.run.get('name', 'run')}: {self.run.get('algorithm', '?')} on {self.run.get('dataset', '?')}{of}"

    def _caption(self, records: Sequence[Record]) -> str:
        seeds = _distinct(record["seed"] for record in records)
        if len(seeds) > 1:
            return f"Mean ± standard deviation (n - 1) over the seeds {', '.join(map(str, seeds))}."
        if any(record.get("intervals") for record in records):
            return (
                f"Seed {seeds[0]}. [low, high] is a 95 % percentile bootstrap interval, from drawing groups of "
                "images that belong together, such as a patient's. It holds for these weights: another seed moves more."
            )
        return f"Seed {seeds[0]}."

    def _baselines(self, records: Sequence[Record]) -> list[str]:
        """Accuracy beside that of the baselines which an algorithm brings along, and the paired differences."""
        columns = baseline_columns(_metrics(records))
        if not columns:
            return []
        found = [record for record in records if columns.keys() & record["metrics"].keys()]
        columns = {"accuracy": COLUMNS["accuracy"]} | columns
        return ["", "### Baselines", "", *self._per_target(found, columns)]

    def _per_target(self, records: Sequence[Record], columns: Mapping[str, str] = COLUMNS) -> list[str]:
        """One row per target environment and protocol: one seed as it is, several as mean ± deviation."""
        metrics = _metrics(records, columns)
        num_seeds = len(_distinct(record["seed"] for record in records))
        head = [_place(records), "protocol"]
        head += ["step", "n", *(columns[metric] for metric in metrics)]
        rows = []
        for unit in _distinct(map(unit_of, records)):
            for protocol in _protocols(records):
                found = [record for record in records if (unit_of(record), record["protocol"]) == (unit, protocol)]
                if not found:
                    continue
                trained = protocol not in TRIVIAL
                steps = {record.get("step") for record in found} if trained else {None}
                step = steps.pop() if len(steps) == 1 else None
                cells = [unit, label(protocol), UNDEFINED if step is None else str(step), str(found[0]["n"])]
                for metric in metrics:
                    values = [record["metrics"].get(metric) for record in found]
                    if num_seeds > 1:
                        cells.append(_mean_and_deviation(metric, values, num_seeds))
                    else:
                        bounds = found[0].get("intervals", {}).get(metric)
                        between = f" [{number(metric, bounds[0])}, {number(metric, bounds[1])}]" if bounds else ""
                        cells.append(number(metric, values[0]) + between)
                rows.append(cells)
        return table(head, rows, words=2)

    def _average(self, part: str) -> list[str]:
        """Mean, standard deviation and standard error of every protocol, each in a row that says so."""
        averages = [row for row in self.averages() if row["part"] == part and row["metric"] in COLUMNS]
        if not averages:
            return []
        metrics = [metric for metric in COLUMNS if any(row["metric"] == metric for row in averages)]
        largest = max(averages, key=lambda row: (row["n"], len(row["targets"])))
        seeds, targets = largest["seeds"], largest["targets"]
        places = "target" if self.records[0]["target"] != "none" else "environment"
        caption = (
            f"Over n = {largest['n']} seeds ({', '.join(map(str, seeds))})"
            + (f", {len(targets)} {places}s averaged within each seed first." if len(targets) > 1 else ".")
            if largest["over"] == "seeds"
            else f"Over n = {largest['n']} {places}s ({', '.join(targets)}), with one seed ({seeds[0]})."
        )
        all_seeds = _distinct(record["seed"] for record in main_records(self.records) if record["part"] == part)
        if len(seeds) < len(all_seeds):
            caption += f" Seeds that lack a {places} are left out."
        caption += " Standard deviation of the sample (n - 1); standard error = standard deviation / √n."
        rows = []
        for protocol in _distinct(row["protocol"] for row in averages):
            of = {row["metric"]: row for row in averages if row["protocol"] == protocol}
            for name, key in (("mean", "mean"), ("standard deviation", "sd"), ("standard error", "se")):
                cells = [number(metric, of[metric][key]) if metric in of else UNDEFINED for metric in metrics]
                if key == "mean":
                    fewer = [len(of[metric]["targets"]) if metric in of else len(targets) for metric in metrics]
                    cells = [
                        f"{cell} (of {count})" if count < len(targets) else cell
                        for cell, count in zip(cells, fewer, strict=True)
                    ]
                rows.append([label(protocol), name, *cells])
        if any(len(row["targets"]) < len(targets) for row in averages):
            caption += f" (of k): the figure is defined for k {places}s only."
        return [caption, "", *table(["protocol", "", *(COLUMNS[metric] for metric in metrics)], rows, words=2)]

    def _sources(self) -> list[str]:
        """Train and held-out parts of the source environments, for the best checkpoint."""
        records = [
            record
            for record in self.records
            if record["role"] == "source" and record["protocol"] == BEST and record["part"] in ("train", "val")
        ]
        if not records:
            return []
        metrics = _metrics(records, COLUMNS)
        num_seeds = len(_distinct(record["seed"] for record in records))
        rows = []
        for place in _distinct((record["target"], record["environment"], record["part"]) for record in records):
            found = [r for r in records if (r["target"], r["environment"], r["part"]) == place]
            cells = [place[0], place[1], "held-out" if place[2] == "val" else place[2], str(found[0]["n"])]
            for metric in metrics:
                values = [record["metrics"].get(metric) for record in found]
                several = num_seeds > 1
                cells.append(_mean_and_deviation(metric, values, num_seeds) if several else number(metric, values[0]))
            rows.append(cells)
        head = ["target", "source environment", "part", "n", *(COLUMNS[metric] for metric in metrics)]
        spread = " Mean ± standard deviation (n - 1) over seeds." if num_seeds > 1 else ""
        return [
            "",
            "## Source environments",
            "",
            f"The checkpoint of {BEST}. A train part far better than the held-out part is overfitting.{spread}",
            "",
            *table(head, rows, words=3),
        ]

    def _classes(self) -> list[str]:
        """Recall per class and confusion of the best checkpoint; counts of several seeds are summed."""
        lines: list[str] = []
        part = next(iter(_parts(self.records)), None)
        records = [r for r in main_records(self.records) if r["protocol"] == BEST and r["part"] == part]
        records = [r for r in records if r["metrics"].get("confusion")]
        for unit in _distinct(map(unit_of, records)):
            found = [record for record in records if unit_of(record) == unit]
            counts = [
                [sum(cells) for cells in zip(*rows, strict=True)]
                for rows in zip(*(record["metrics"]["confusion"] for record in found), strict=True)
            ]
            seeds = ", ".join(str(record["seed"]) for record in found)
            names = self.run.get("class_names") or [str(k) for k in range(len(counts))]
            what = "summed over the seeds" if len(found) > 1 else "of seed"
            lines += ["", f"### {unit}", "", f"Counts {what} {seeds}.", "", *confusion(names, counts)]
        return ["", "## Recall per class and confusion", "", f"The checkpoint of {BEST}.", *lines] if lines else []

    def _mask_classes(self) -> list[str]:
        """Dice and IoU of every class of the masks, of the best checkpoint, and which of them the means are over."""
        part = next(iter(_parts(self.records)), None)
        records = [r for r in main_records(self.records) if r["protocol"] == BEST and r["part"] == part]
        records = [r for r in records if r["metrics"].get("dice_per_class")]
        if not records:
            return []
        names, background = list(self.run.get("class_names") or []), self.run.get("background")
        rows = []
        for unit in _distinct(map(unit_of, records)):
            found = [record for record in records if unit_of(record) == unit]
            for k in range(len(found[0]["metrics"]["dice_per_class"])):
                name = names[k] if k < len(names) else str(k)
                cells = [unit, f"{name} (background)" if name == background else name]
                for metric in ("dice", "iou"):
                    values = [record["metrics"][f"{metric}_per_class"][k] for record in found]
                    cells.append(_mean_and_deviation(metric, values, len(found)))
                rows.append(cells)
        scored = ", ".join(name for name in names if name != background)
        spread = (
            " Mean ± standard deviation (n - 1) over seeds." if any("±" in cell for row in rows for cell in row) else ""
        )
        return [
            "",
            "## Dice and IoU per class",
            "",
            f"The checkpoint of {BEST}, from the pixels of all images together.{spread} The tables above have means "
            f"over {scored or 'the classes'}, without the background. A figure per image is the mean of those of "
            "single images, without those in which nothing is marked or answered.",
            "",
            *table([_place(records), "class", "Dice", "IoU"], rows, words=2),
        ]


def build(records: Iterable[Record], run: Mapping[str, Any]) -> Summary:
    """Gather the final records of a run.

    Args:
        records: of results.jsonl. Those of kind "final" count; of two about the same thing the later one wins.
        run: name, algorithm, dataset, subset_size (images of each environment, where they are not all), command, steps,
            select_by, notes (facts nobody should miss), targets and seeds (what the run was asked for, to say what is
            missing), class_names and background (of masks). All go into summary.json.
    """
    keys = ("target", "seed", "protocol", "environment", "role", "part")
    final = {tuple(record[key] for key in keys): record for record in records if record.get("kind") == "final"}
    targets = [*run.get("targets", ())]
    targets += _distinct(record["target"] for record in final.values() if record["target"] not in targets)
    ordered = sorted(final.values(), key=lambda record: (targets.index(record["target"]), record["seed"]))
    return Summary(run, ordered)


def either(names: Iterable[str]) -> str:
    """Return "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def baseline_columns(metrics: Iterable[str]) -> dict[str, str]:
    """Return the columns of the baselines that an algorithm brings along: accuracy and paired difference of each."""
    names = [metric[len(MINUS) :] for metric in metrics if metric.startswith(MINUS)]
    return {
        key: text for name in names for key, text in ((f"accuracy_{name}", name), (MINUS + name, f"accuracy - {name}"))
    }


def confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[str]:
    """Lines of a table: a row per true class with its recall and number of images, a column per predicted class.

    Args:
        names: of K classes.
        counts: K x K, rows are true classes.
    """
    rows = [
        [name, number("recall", row[k] / sum(row) if sum(row) else None), str(sum(row)), *map(str, row)]
        for k, (name, row) in enumerate(zip(names, counts, strict=True))
    ]
    return table(["true class", "recall", "images", *(f"predicted {name}" for name in names)], rows, words=1)


def main_records(records: Iterable[Record]) -> list[Record]:
    """What a run is about: its targets, or without a target its source environments."""
    return [record for record in records if record["role"] == "target" or record["target"] == "none"]


def _parts(records: Iterable[Record]) -> list[str]:
    found = {record["part"] for record in main_records(records)}
    return [part for part in PARTS if part in found]


def _heading(part: str, records: Sequence[Record]) -> str:
    if part == "whole":
        return PARTS[part]
    owner = "the target environment" if records[0]["role"] == "target" else "each source environment (no target)"
    return f"{PARTS[part]} of {owner}"


def _place(records: Sequence[Record]) -> str:
    """What the rows of a table are."""
    return "target" if records[0]["role"] == "target" else "environment"


def unit_of(record: Record) -> str:
    """Name of a row: the environment, and what it was held out together with."""
    target, environment = str(record["target"]), str(record["environment"])
    return environment if target in (environment, "none") else f"{environment} (of {target})"


def label(protocol: str) -> str:
    """Return how a table calls a protocol: one that looks at the target has a mark, see `CHOSEN_ON_TARGET`."""
    return f"{protocol} †" if protocol == ORACLE else protocol


def _protocols(records: Iterable[Record]) -> list[str]:
    found = _distinct(record["protocol"] for record in records)
    return sorted(found, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


def _metrics(records: Iterable[Record], among: Iterable[str] | None = None) -> list[str]:
    """Metrics with a number in one record or more, in the order of `among`, or as found."""
    found = _distinct(
        name for record in records for name, value in record["metrics"].items() if isinstance(value, int | float)
    )
    return found if among is None else [name for name in among if name in found]


def _screening_columns(headlines: Sequence[Headline], intervals: bool) -> dict[str, list[str]]:
    """Sensitivity and specificity of each headline, marked together; empty where none has them."""
    columns = {}
    for name in ("sensitivity", "specificity"):
        cells = []
        for headline in headlines:
            found = headline.compare(name, "")  # neither has a trivial answer: flagging all has the one, none the other
            marked = headline.screening and headline.screening.is_better and not headline.chose_threshold
            cells.append((found.cell(intervals) + f" {BETTER}" * bool(marked)) if found else UNDEFINED)
        columns[name] = cells
    return columns if any(cell != UNDEFINED for cells in columns.values() for cell in cells) else {}


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation of the sample, standard error, and of how many values."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    se = None if sd is None else sd / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "sd": sd, "se": se, "n": len(values)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _mean_and_deviation(metric: str, values: Sequence[float | None], num_seeds: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return UNDEFINED
    over = spread(known)
    some = f" (n={len(known)})" if len(known) < num_seeds else ""
    deviation = f" ± {number(metric, over['sd'])}" if len(known) > 1 else ""
    return f"{number(metric, over['mean'])}{deviation}{some}"


def number(metric: str, value: float | None) -> str:
    """Return a figure as a reader wants it: shares with 3 decimals, dB with 2, errors with 3 digits or more."""
    if value is None:
        return UNDEFINED
    if metric == "psnr":
        return f"{value:.2f}"
    if metric in ("mse", "total_loss"):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.3f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Return the lines of a Markdown table, padded to read as plain text; the first `words` columns are flush left."""
    cells = [[printable(str(cell)).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    pad = [str.ljust if i < words else str.rjust for i in range(len(head))]
    lines = ["| " + " | ".join(pad[i](row[i], widths[i]) for i in range(len(head))) + " |" for row in cells]
    rule = ["-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return [lines[0], "| " + " | ".join(rule) + " |", *lines[1:]]
