"""What a run found, in one paragraph that needs no statistics, and what to try next.

    result.conclusion = conclude(result, records)     # opens summary.md, and ends what the terminal shows

Every number is one of the run's records, or a mean of them; nothing is measured and nothing promised. Where a model is
not better than the answer that needs no model, the paragraph says so first. The tables are in `summary`.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from domainbed.summary import (
    BY_FREQUENCY,
    COMPARED,
    MAJORITY,
    MAJORITY_MASK,
    MEAN_IMAGE,
    Comparison,
    Headline,
    Record,
    Summary,
)

#: With more targets than this, the mean and the worst of them stand for all.
MAX_TARGETS = 2
#: Counts below this are given as they are, others as "of 100".
MIN_PER_HUNDRED = 100
#: Recorded losses that the last quarter of the steps must have, to tell a fall from noise.
MIN_LOSSES = 8
#: Standard errors that a difference of mean losses must exceed; chance alone exceeds 2 in 1 of 40 runs.
STANDARD_ERRORS = 2.0
MAX_SUGGESTIONS = 2


def conclude(summary: Summary, records: Iterable[Record]) -> str:
    """Return the paragraph, on one line.

    Args:
        summary: of the run; its `run` may say `pretrained` ("false" where an encoder began with random weights),
            `weights_to_try` (the settings that would have begun with others, "pretrained=true" where it says nothing),
            `class_balanced`, and `may_have_seen` (whether an image that is left out may have been trained on, in
            another environment or by a finished run).
        records: all of results.jsonl, for the losses of training.
    """
    headlines = summary.headlines()
    missing = [f"Not finished: {', '.join(summary.missing)}."] if summary.missing else []
    if not headlines:
        return "No target is finished, so there is nothing to conclude."
    names = list(summary.run.get("class_names") or [])
    left_out = "left out of this training" if summary.run.get("may_have_seen") else "never seen"
    if len(headlines) <= MAX_TARGETS:
        sentences = [f"{_place(h, left_out)}: {_sentences([h], names)}" for h in headlines]
    else:
        sentences = _of_many(headlines, names, left_out)
    return " ".join([*sentences, *_about_training(summary, headlines, list(records)), *missing])


def loss_fell(losses: Sequence[tuple[int, float]], steps: int) -> bool | None:
    """Return whether a training loss still fell over the last quarter of the steps; None where that can't be told.

    It fell if the mean of the quarter's second half is below that of its first half by more than `STANDARD_ERRORS`
    standard errors of the difference (Welch).

    Args:
        losses: (step, loss) of the recorded steps, in order.
        steps: of the whole training.
    """
    last = [loss for step, loss in losses if step > 0.75 * steps]
    if len(last) < MIN_LOSSES or not all(map(math.isfinite, last)):
        return None
    halves = last[: len(last) // 2], last[len(last) // 2 :]
    error = math.sqrt(sum(statistics.variance(half) / len(half) for half in halves))
    return statistics.fmean(halves[0]) - statistics.fmean(halves[1]) > STANDARD_ERRORS * error


def _place(headline: Headline, left_out: str) -> str:
    if headline.unseen:
        return f"{headline.place} ({left_out})"
    part = "test" if headline.records[0]["part"] == "test" else "held-out"
    return f"{headline.place} ({part} images of an environment that it was trained on)"


def _of_many(headlines: Sequence[Headline], names: Sequence[str], left_out: str) -> list[str]:
    """Sentences about many targets: where the model fails, the mean, and the worst."""
    what, each = ("targets", f", each {left_out}") if headlines[0].unseen else ("environments", "")
    failed = [h.place for h in headlines if any(failed for failed, _ in _blocks([h], names))]
    lead = (
        f"On {len(failed)} of {len(headlines)} {what} it is, in some way, not better than an answer that needs no model"
    )
    worst = min(headlines, key=_advantage)
    return [
        *([f"{lead}: {', '.join(failed)}."] if failed else []),
        f"Mean over {len(headlines)} {what}{each}: {_sentences(headlines, names)}",
        f"The worst is {worst.place}: {_sentences([worst], names)}",
    ]


def _sentences(headlines: Sequence[Headline], names: Sequence[str]) -> str:
    """What is to be said of one target or the mean of several, failures first; it follows a colon."""
    blocks = sorted(_blocks(headlines, names), key=lambda block: not block[0])
    sentences = [sentence for _, block in blocks for sentence in block]
    if not sentences:
        return "no figure of it has an answer without a model to be compared with."
    return " ".join([sentences[0], *map(_capital, sentences[1:])])


def _blocks(headlines: Sequence[Headline], names: Sequence[str]) -> list[tuple[bool, list[str]]]:
    """Return sentences about each thing that the model does, as means over the headlines.

    Each comes with whether it is, for a single headline, not better than the answer that needs no model.
    """
    return [block for block in (_of_labels(headlines, names), *map(_one_figure(headlines), _PHRASES)) if block[1]]


#: Of what has one figure: trivial answer, what is compared with it, and the numbers in words.
_PHRASES: list[tuple[str, str, Callable[[float, float], str]]] = [
    (
        MAJORITY_MASK,
        "its masks are {} answering every pixel alike",
        lambda dice, mask: f"they overlap the true ones by {dice:.0%}, that answer by {mask:.0%}",
    ),
    (
        MEAN_IMAGE,
        "its reconstructions are {} the mean training image",
        lambda psnr, mean: f"by {psnr - mean:.1f} dB" if psnr > mean else f"{mean - psnr:.1f} dB worse",
    ),
    (
        BY_FREQUENCY,
        "its prediction of the codes is {} their frequencies",
        lambda bits, frequency: f"{bits:.2f} bits for each code, {frequency:.2f} by frequency",
    ),
]


def _one_figure(headlines: Sequence[Headline]) -> Callable[[Any], tuple[bool, list[str]]]:
    def block(phrase: tuple[str, str, Callable[[float, float], str]]) -> tuple[bool, list[str]]:
        trivial, text, numbers = phrase
        (metric,) = _metrics(trivial)
        value, other = _means(headlines, metric, trivial)
        if value is None or other is None:
            return False, []
        verdict = _verdict([headline.compare(metric, trivial) for headline in headlines], value, other)
        return verdict != BETTER_THAN, [f"{text.format(verdict)} ({numbers(value, other)})."]

    return block


def _of_labels(headlines: Sequence[Headline], names: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether the model's labels are no better than one fixed answer, and what it finds."""
    one = headlines[0] if len(headlines) == 1 else None
    majority = _majority(one, names) if one else "the most frequent class"
    found = _label_failure(one, majority) if one else []
    failed = bool(found)
    sensitivity, all_flagged = _means(headlines, "sensitivity", MAJORITY)
    specificity, all_spared = _means(headlines, "specificity", MAJORITY)
    balanced, by_majority = _means(headlines, "balanced_accuracy", MAJORITY)
    if sensitivity is not None or specificity is not None:
        found.append(_screened(headlines, names, sensitivity, specificity))
        clauses = [f"find {_some(all_flagged)}"] if all_flagged is not None else []
        clauses += [f"flag {_some(1 - all_spared)}"] if all_spared is not None else []
        if clauses:
            found.append(f"always answering {majority} would {' and '.join(clauses)}.")
    elif balanced is not None:
        found.append(f"it is right on {_share(balanced)} images, each class counted alike.")
        if by_majority is not None:
            found.append(f"always answering {majority} would be right on {_share(by_majority)}.")
    if one and (answer := _only_answer(one, names)):
        found.append(f"the class that it finds most probable is {answer} for every image.")
    return failed, found


def _label_failure(headline: Headline, majority: str) -> list[str]:
    """Say plainly what the model is not better at than an answer that ignores the image."""
    labels = next((c for metric in _metrics(MAJORITY) if (c := headline.compare(metric, MAJORITY))), None)
    if labels and labels.trivial_mean is None:  # a run that did not record it
        labels = None
    screening = headline.screening
    bad_labels, bad_flags = (comparison and not comparison.is_better for comparison in (labels, screening))
    if labels and bad_labels and (bad_flags or not screening):
        return [f"{_not_better(labels)} always answering {majority}."]
    if labels and bad_labels:
        return [f"in naming the class, {_not_better(labels)} always answering {majority}."]
    if screening and bad_flags:
        return [f"in what it flags, {_not_better(screening)} flagging at random."]
    return []


BETTER_THAN = "better than"


def _verdict(compared: Sequence[Comparison | None], value: float, other: float) -> str:
    """How a figure stands to the trivial answer's: of several targets by their mean alone."""
    known = [comparison for comparison in compared if comparison is not None]
    if len(known) > 1:
        return BETTER_THAN if known[0].sign * (value - other) > 0 else "no better than"
    return BETTER_THAN if known[0].is_better else _not_better(known[0])


def _not_better(comparison: Comparison) -> str:
    """Say "not clearly" where the figure is above the trivial one, but not all of its interval."""
    mean, trivial = comparison.mean, comparison.trivial_mean
    above = mean is not None and trivial is not None and comparison.sign * (mean - trivial) > 0
    return "not clearly better than" if above else "no better than"


def _means(headlines: Sequence[Headline], metric: str, trivial: str) -> tuple[float | None, float | None]:
    """Return a figure and the trivial answer's, each the mean over the headlines that have it."""
    compared = [comparison for headline in headlines if (comparison := headline.compare(metric, trivial))]
    values = [comparison.mean for comparison in compared if comparison.mean is not None]
    others = [comparison.trivial_mean for comparison in compared if comparison.trivial_mean is not None]
    return statistics.fmean(values) if values else None, statistics.fmean(others) if others else None


def _screened(
    headlines: Sequence[Headline], names: Sequence[str], sensitivity: float | None, specificity: float | None
) -> str:
    """What the model finds and flags at its threshold."""
    record = headlines[0].records[0]
    positives = record.get("operating_point", {}).get("positives", ())
    if len(positives) > 1:
        what = f"photographs to refer ({names[positives[0]] if names else positives[0]} or worse)"
    else:
        what = f"images of {_quoted(names, positives[0] if positives else 1)}"
    counts: tuple[int | None, int | None] = (None, None)
    confusion = record["metrics"].get("confusion")
    if len(headlines) == len(headlines[0].records) == 1 and confusion:
        of_class = [sum(row) for row in confusion]
        counts = sum(of_class[k] for k in positives), sum(n for k, n in enumerate(of_class) if k not in positives)
    finds = f"it finds {_share(sensitivity, counts[0])} {what}" if sensitivity is not None else f"there are no {what}"
    who = "" if sensitivity is not None else "it "
    flags = (
        f"{who}flags {_share(1 - specificity, counts[1])} others" if specificity is not None else "there are no others"
    )
    both = sensitivity is not None and specificity is not None
    text = f"{finds} and {flags}" if both else f"{finds}; {flags}"
    own = len(headlines) == 1 and headlines[0].chose_threshold
    return text + (", at a threshold that was chosen on these same images." if own else ".")


def _about_training(summary: Summary, headlines: Sequence[Headline], records: Sequence[Record]) -> list[str]:
    """Sentences about how it was trained, and what to try next."""
    run, steps = summary.run, int(summary.run.get("steps") or 0)
    falling = _still_falling(records, steps)
    facts: list[str] = []
    tries: list[str] = []
    if True in falling:
        some = f" in {falling.count(True)} of {len(falling)} trainings" if len(falling) > 1 else ""
        facts.append(f"the training loss was still falling over the last quarter of the steps{some}")
    elif falling and set(falling) == {None}:
        facts.append(f"{steps} steps are too few to tell whether the training loss was still falling")
    if facts:
        tries.append(f"more steps (--steps {2 * steps})")
    if run.get("pretrained") == "false":
        facts.append("the encoder began with random weights")
        tries.append(f"pretrained weights ({run.get('weights_to_try') or 'pretrained=true'})")
    constant = [h.place for h in headlines if _only_answer(h, [])]
    if constant and run.get("class_balanced") is False:
        tries.append("training batches with equally many images of each class (class_balanced=true)")
    if run.get("subset_size"):
        facts.append(f"it was given {run['subset_size']} images of each environment only")
        tries.append("all images (train_all.py)")
    if len({record["seed"] for headline in headlines for record in headline.records}) == 1:
        tries.append("other seeds, to see how far a repeat moves (--seeds 0 1 2)")
    sentences = [f"{_capital('; '.join(facts))}."] if facts else []
    return sentences + ([f"To try next: {'; '.join(tries[:MAX_SUGGESTIONS])}."] if tries else [])


def _still_falling(records: Sequence[Record], steps: int) -> list[bool | None]:
    """Whether the loss of each training was still falling, see `loss_fell`."""
    by_training: dict[tuple[Any, Any], list[tuple[int, float]]] = {}
    for record in records:
        if record["kind"] == "train":
            loss = record.get("total_loss")
            loss = math.nan if loss is None else float(loss)
            by_training.setdefault((record["target"], record["seed"]), []).append((record["step"], loss))
    return [loss_fell(losses, steps) for losses in by_training.values()]


def _metrics(trivial: str) -> tuple[str, ...]:
    """The figures of a row that are compared with a trivial answer, best first."""
    return next(names for names, name in COMPARED.items() if name == trivial)


def _advantage(headline: Headline) -> float:
    """How far the first of a target's figures is above the trivial answer; for screening, above flagging at random."""
    compared = [headline.screening, *(headline.compare(m, trivial) for ms, trivial in COMPARED.items() for m in ms)]
    for comparison in compared:
        if comparison and comparison.mean is not None and comparison.trivial_mean is not None:
            return comparison.sign * (comparison.mean - comparison.trivial_mean)
    return math.inf


def _majority(headline: Headline, names: Sequence[str]) -> str:
    """The most frequent class of the training images, where all seeds have the same."""
    answers = {_answers(record) for record in headline.trivial.get(MAJORITY, ())}
    (answer,) = answers if len(answers) == 1 else ((),)
    return _quoted(names, answer[0]) if len(answer) == 1 else "the most frequent class"


def _only_answer(headline: Headline, names: Sequence[str]) -> str | None:
    """The class that the model answers to every image, in every seed; None where it answers several."""
    answers = {_answers(record) for record in headline.records}
    (answer,) = answers if len(answers) == 1 else ((),)
    return _quoted(names, answer[0]) if len(answer) == 1 else None


def _answers(record: Mapping[str, Any]) -> tuple[int, ...]:
    """The classes that were answered at all."""
    columns = zip(*(record["metrics"].get("confusion") or ()), strict=True)
    return tuple(k for k, column in enumerate(columns) if sum(column))


def _quoted(names: Sequence[str], k: int) -> str:
    return f"'{names[k] if k < len(names) else k}'"


def _share(value: float, count: int | None = None) -> str:
    """Return a share as a count of a count: of all where they are few, else of 100."""
    of = count if count is not None and count < MIN_PER_HUNDRED else 100
    return f"{round(value * of)} of {of}"


def _some(share: float) -> str:
    return {0.0: "none", 1.0: "all"}.get(share, _share(share))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
