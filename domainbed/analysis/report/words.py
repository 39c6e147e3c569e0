"""Does a model beat its trivial answers, and does what it learnt survive what was left out? In words, from records.

    for verdict in verdicts(run):
        print(verdict["question"], verdict["answer"], verdict["because"])

A figure of one training stands with the 95 % interval of its own record (`metrics`), which is over images. The trivial
answer beats chance by nothing, so an interval wholly above it is taken for better, one wholly below for worse.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from domainbed.analysis.recorded import RecordedRun
from domainbed.summary import BEST, COLUMNS, MAJORITY, MAJORITY_MASK, MEAN_IMAGE, PARTS, build, main_records, number

YES, NO, PARTLY, UNTOLD = "Yes", "No", "In part", "Can't be told"
#: What an algorithm may have learnt to do, the figures that say so, best first, and the trivial answer to each.
#: Higher is better in all of them.
ABILITIES = {
    "predict labels": (("kappa", "accuracy"), MAJORITY),
    "mark regions in images": (("dice_dataset",), MAJORITY_MASK),
    "reconstruct images": (("psnr",), MEAN_IMAGE),
}
#: Share of its advantage that a model keeps on the left-out environment and is said to survive.
KEPT = 0.9
#: Mean KL of held-out images, in nats, below which the code says nothing about the image.
COLLAPSED_NATS = 0.1


def verdicts(run: RecordedRun) -> list[dict[str, str]]:
    """Return question, answer (`YES`, …) and the figures behind it (because); none where no training is finished."""
    records = build(run.records, {}).records
    shown = main_records(records)
    part = next((part for part in PARTS if any(record["part"] == part for record in shown)), None)
    shown = [record for record in shown if record["part"] == part]
    has_target = any(record["role"] == "target" for record in shown)
    found = []
    for ability, (metrics, trivial) in ABILITIES.items():
        of_best = [record for record in shown if record["protocol"] == BEST]
        metric = next((name for name in metrics if any(_value(record, name) is not None for record in of_best)), None)
        if metric is None:
            continue
        where = "the left-out environment" if has_target else "the environments trained on"
        trivials = {_place(record): record for record in shown if record["protocol"] == trivial}
        cells = [
            (record, _value(trivials.get(_place(record)), metric))
            for record in of_best
            if _value(record, metric) is not None
        ]
        beaten = _beats(ability, metric, trivial, where, cells)
        found.append(beaten)
        if has_target:
            home = _advantage_at_home(records, metric, trivial)
            found.append(_survives(ability, metric, trivial, cells, home, beaten["answer"]))
    if not has_target and found:
        found.append({
            "question": "Does it survive a left-out environment?", "answer": UNTOLD,
            "because": "Every environment was trained on: this run says nothing about another one. Leave one out "
            "with --test_envs, or evaluate the model on images of one.",
        })  # fmt: skip
    return found + _collapse(records)


def _beats(
    ability: str, metric: str, trivial: str, where: str, cells: Sequence[tuple[Mapping[str, Any], float | None]]
) -> dict[str, str]:
    """Whether the figures of all trainings are above the trivial answer's."""
    question = f"Does it {ability} of {where} better than the trivial answer ({trivial})?"
    known = [(record, value) for record, value in cells if value is not None]
    mean = statistics.fmean(record["metrics"][metric] for record, _ in cells)
    figure = f"{COLUMNS[metric]} {_shown(metric, mean)}{_over(cells)}"
    if not known:
        return {"question": question, "answer": UNTOLD, "because": f"{figure}; the {trivial} was not recorded."}
    beside = f"{figure}; {trivial} {_shown(metric, statistics.fmean(value for _, value in known))}."
    standings = [_standing(record, metric, value) for record, value in known]
    better, worse = standings.count(1), standings.count(-1)
    if better == len(standings):
        answer, why = (
            YES,
            "Its 95 % interval lies above." if better == 1 else f"In all {better} trainings clearly above.",
        )
    elif not better and worse:
        answer, why = NO, "Its 95 % interval lies below." if len(standings) == 1 else (
            f"In {worse} of {len(standings)} trainings clearly below, in none above."
        )  # fmt: skip
    elif not better:
        answer, why = UNTOLD, "The 95 % interval holds the trivial answer." if len(standings) == 1 else (
            "In no training clearly above or below."
        )  # fmt: skip
    else:
        answer, why = PARTLY, f"In {better} of {len(standings)} trainings clearly above."
    return {"question": question, "answer": answer, "because": f"{beside} {why}"}


def _survives(
    ability: str, metric: str, trivial: str, cells: Sequence[tuple[Mapping[str, Any], float | None]],
    home: Sequence[tuple[float, float]], beats_away: str,
) -> dict[str, str]:  # fmt: skip
    """Whether the advantage over the trivial answer is as large on the left-out environment as on those trained on."""
    question = f"Does its ability to {ability} survive the left-out environment?"
    away = [(record["metrics"][metric], value) for record, value in cells if value is not None]
    if not away or not home:
        because = (
            f"The {trivial}, or what the model scores on held-out images of its own environments, was not recorded."
        )
        return {"question": question, "answer": UNTOLD, "because": because}
    at_home, abroad = (statistics.fmean(value - base for value, base in pairs) for pairs in (home, away))
    figures = (
        f"Its advantage over the {trivial} in {COLUMNS[metric]} is {_signed(metric, at_home)} on held-out images of "
        f"the environments trained on, {_signed(metric, abroad)} on the left-out one"
    )
    if at_home <= 0:
        return {"question": question, "answer": NO, "because": f"{figures}: there is nothing that could survive."}
    if beats_away == UNTOLD:
        because = f"{figures}, where the 95 % interval holds the trivial answer."
        return {"question": question, "answer": UNTOLD, "because": because}
    if beats_away == NO or abroad <= 0:
        return {"question": question, "answer": NO, "because": f"{figures}: there it is no better than that answer."}
    share = abroad / at_home
    answer = YES if share >= KEPT and beats_away == YES else PARTLY
    because = f"{figures}: it keeps {share:.0%}. (The first figure flatters: its images also chose the checkpoint.)"
    return {"question": question, "answer": answer, "because": because}


def _collapse(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A code that says nothing about its image, named."""
    kls = [
        record["metrics"]["KLD_nats"]
        for record in records
        if record["protocol"] == BEST and record["part"] == "val" and record["metrics"].get("KLD_nats") is not None
    ]
    if not kls or statistics.fmean(kls) >= COLLAPSED_NATS:
        return []
    return [{
        "question": "Does the latent code say anything about the image?", "answer": NO,
        "because": f"The posterior has collapsed: its mean KL on held-out images is {statistics.fmean(kls):.3g} nats, "
        "so every image gets the same reconstruction. Lower the weight of the KL, or anneal it.",
    }]  # fmt: skip


def _advantage_at_home(records: Sequence[Mapping[str, Any]], metric: str, trivial: str) -> list[tuple[float, float]]:
    """Return (figure, trivial figure) of every held-out part of the environments trained on."""
    held_out = [record for record in records if (record["role"], record["part"]) == ("source", "val")]
    bases = {_place(record): _value(record, metric) for record in held_out if record["protocol"] == trivial}
    pairs = [(_value(record, metric), bases.get(_place(record))) for record in held_out if record["protocol"] == BEST]
    return [(value, base) for value, base in pairs if value is not None and base is not None]


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["target"], record["seed"], record["environment"]


def _value(record: Mapping[str, Any] | None, metric: str) -> float | None:
    return None if record is None else record["metrics"].get(metric)


def _standing(record: Mapping[str, Any], metric: str, trivial: float) -> int:
    """1 where the interval of a figure lies above the trivial answer, -1 below, 0 where it holds it."""
    value = record["metrics"][metric]
    low, high = record.get("intervals", {}).get(metric) or (value, value)
    return 1 if low > trivial else -1 if high < trivial else 0


def _over(cells: Sequence[tuple[Mapping[str, Any], float | None]]) -> str:
    records = [record for record, _ in cells]
    seeds = len({record["seed"] for record in records})
    places = list(dict.fromkeys(record["environment"] for record in records))
    of = f" on {', '.join(places)}" if len(places) <= 4 else f" on {len(places)} environments"
    return of + (f", mean of {len(cells)} trainings" if seeds > 1 or len(places) > 1 else "")


def _shown(metric: str, value: float) -> str:
    return number(metric, value)


def _signed(metric: str, value: float) -> str:
    return ("+" if value >= 0 else "−") + number(metric, abs(value))
