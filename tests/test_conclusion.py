"""The paragraph at a run's end: every number against the records it was given, every claim against its opposite."""

import re

import numpy as np
import pytest
from scipy import stats

from domainbed.conclusion import conclude, loss_fell
from domainbed.datasets.labels import GRADES
from domainbed.summary import BEST, MAJORITY, MAJORITY_MASK, MEAN_IMAGE, build

RUN = {"name": "first", "targets": ["a"], "seeds": [0], "class_names": list(GRADES), "steps": 100}


def record(target="a", seed=0, protocol=BEST, role="target", part="whole", environment=None, point=(), **metrics):
    """Every interval reaches 0.1 to either side, so that what is 0.2 better is marked so."""
    figures = {name: value for name, value in metrics.items() if isinstance(value, float)}
    return {
        "kind": "final", "target": target, "seed": seed, "protocol": protocol, "step": 100, "n": 40, "part": part,
        "environment": environment or target, "role": role, "metrics": metrics,
        "intervals": {name: [value - 0.1, value + 0.1] for name, value in figures.items()},
        **({"operating_point": {"positives": list(point), "chosen_on": ["b"], "sensitivity": 0.9}} if point else {}),
    }  # fmt: skip


def grader(sensitivity=0.75, specificity=0.9, kappa=0.4, counts=(80, 0, 60, 40, 0), target="a", answer=2, **options):
    """A grader of 100 photographs to refer and 80 others, and the majority class beside it."""
    confusion = [[count if k == answer else 0 for k in range(5)] for count in counts]
    several = [list(row) for row in confusion]
    if counts[0]:  # one image gets another answer
        several[0][answer] -= 1
        several[0][int(answer == 0)] += 1
    youden = None if None in (sensitivity, specificity) else sensitivity + specificity - 1
    figures = {"kappa": kappa, "sensitivity": sensitivity, "specificity": specificity, "youden": youden}
    always = {"kappa": 0.0, "sensitivity": float(answer >= 2), "specificity": float(answer < 2)}
    return [
        record(target, point=(2, 3, 4), confusion=several, **figures, **options),
        record(target, protocol=MAJORITY, confusion=confusion, **always, **options),
    ]


def said(records, run=RUN, train=()):
    text = conclude(build(records, run), [*records, *train])
    assert "\n" not in text and "  " not in text and not re.search(r"None|nan|kappa", text)
    return text.removesuffix(" To try next: other seeds, to see how far a repeat moves (--seeds 0 1 2).")


def test_a_grader_is_described_by_whom_it_finds_and_flags():
    assert said(grader()) == (
        "a (never seen): it finds 75 of 100 photographs to refer (moderate or worse) and flags 8 of 80 others. "
        "Always answering 'moderate' would find all and flag all."
    )
    healthy = said(grader(answer=0))
    assert healthy.endswith("Always answering 'no_dr' would find none and flag none.")
    many = said(grader(counts=(500, 0, 600, 400, 0)))
    assert "finds 75 of 100 photographs" in many and "flags 10 of 100 others" in many


def test_what_is_no_better_says_so_first():
    assert said(grader(0.5, 0.5, kappa=0.0)).startswith(
        "a (never seen): no better than always answering 'moderate'. It finds 50 of 100"
    )
    assert said(grader(0.55, 0.5, kappa=0.05)).startswith("a (never seen): not clearly better than always answering")
    assert said(grader(kappa=-0.1)).startswith(
        "a (never seen): in naming the class, no better than always answering 'moderate'. It finds 75"
    )
    assert said(grader(0.4, 0.5)).startswith("a (never seen): in what it flags, no better than flagging at random. It")


def test_a_failure_stands_before_a_success():
    beside = [record(protocol=MEAN_IMAGE, psnr=20.0)]
    figures = grader()
    figures[0]["metrics"]["psnr"], figures[0]["intervals"]["psnr"] = 18.25, [18.0, 18.5]
    text = said(figures + beside)
    assert text.startswith(
        "a (never seen): its reconstructions are no better than the mean training image (1.8 dB worse). It finds 75 of"
    )
    figures[0]["metrics"]["psnr"], figures[0]["intervals"]["psnr"] = 22.1, [21.0, 23.0]
    assert "Its reconstructions are better than the mean training image (by 2.1 dB)." in said(figures + beside)
    figures[0]["intervals"]["psnr"] = [19.0, 23.0]
    assert "its reconstructions are not clearly better than the mean training image (by 2.1 dB)." in said(
        figures + beside
    )


def test_without_positives_or_negatives_in_the_target():
    text = said(grader(None, 0.9, counts=(80, 0, 0, 0, 0)))
    assert "there are no photographs to refer (moderate or worse); it flags 8 of 80 others." in text
    text = said(grader(0.75, None, counts=(0, 0, 40, 0, 0), answer=3))
    assert "it finds 30 of 40 photographs to refer (moderate or worse); there are no others." in text


def test_two_classes_name_the_second():
    figures = {"balanced_accuracy": 0.8, "sensitivity": 0.7, "specificity": 0.9, "youden": 0.6}
    model = record(point=(1,), confusion=[[180, 20], [30, 70]], **figures)
    text = said([model], RUN | {"class_names": ["normal", "glaucoma"]})
    assert text == "a (never seen): it finds 70 of 100 images of 'glaucoma' and flags 10 of 100 others."


def test_several_classes_are_counted_alike():
    model = record(balanced_accuracy=0.6, accuracy=0.9, confusion=[[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    beside = record(protocol=MAJORITY, balanced_accuracy=1 / 3, confusion=[[0, 1, 0]] * 3)
    text = said([model, beside], RUN | {"class_names": ["cat", "dog", "horse"]})
    assert text == (
        "a (never seen): it is right on 60 of 100 images, each class counted alike. Always answering 'dog' would be "
        "right on 33 of 100."
    )


def test_one_answer_for_every_image_is_named_and_a_balanced_batch_proposed():
    figures = grader(0.5, 0.5, kappa=0.0)
    figures[0]["metrics"]["confusion"] = figures[1]["metrics"]["confusion"]
    text = said(figures, RUN | {"class_balanced": False})
    assert "The class that it finds most probable is 'moderate' for every image." in text
    assert "To try next: training batches with equally many images of each class (class_balanced=true)" in text
    assert "class_balanced" not in said(figures, RUN | {"class_balanced": True})
    assert "class_balanced" not in said(grader(), RUN | {"class_balanced": False})


def test_masks_and_codes():
    masks = [record(dice_dataset=0.62), record(protocol=MAJORITY_MASK, dice_dataset=0.0)]
    assert said(masks) == (
        "a (never seen): its masks are better than answering every pixel alike (they overlap the true ones by 62%, "
        "that answer by 0%)."
    )
    assert "no better than answering every pixel alike" in said([record(dice_dataset=0.0), masks[1]])
    codes = said([record(bits_per_code=2.0, bits_by_frequency=3.0)])
    assert "better than their frequencies (2.00 bits for each code, 3.00 by frequency)." in codes
    assert "no better than their frequencies" in said([record(bits_per_code=4.0, bits_by_frequency=3.0)])


def test_seeds_are_averaged_and_counted_per_hundred():
    records = grader(0.7) + grader(0.8, seed=1)
    assert "it finds 75 of 100 photographs to refer (moderate or worse) and flags 10 of 100 others." in said(
        records, RUN | {"seeds": [0, 1]}
    )


def test_of_many_targets_the_mean_and_the_worst():
    records = [
        *grader(0.9, 0.9, target="a"), *grader(0.8, 0.8, target="b"), *grader(0.4, 0.4, kappa=0.0, target="c"),
    ]  # fmt: skip
    text = said(records, RUN | {"targets": ["a", "b", "c"]})
    assert text == (
        "On 1 of 3 targets it is, in some way, not better than an answer that needs no model: c. Mean over 3 targets, "
        "each never seen: it finds 70 of 100 photographs to refer (moderate or worse) and flags 30 of 100 others. "
        "Always answering the most frequent class would find all and flag all. The worst is c: no better than always "
        "answering 'moderate'. It finds 40 of 100 photographs to refer (moderate or worse) and flags 48 of 80 others. "
        "Always answering 'moderate' would find all and flag all."
    )
    assert said(records[:4], RUN | {"targets": ["a", "b"]}).count("(never seen)") == 2


def test_what_was_not_left_out_is_not_called_unseen():
    held_out = record("none", role="source", part="val", environment="b", kappa=0.4)
    text = said([held_out], RUN | {"targets": ["none"]})
    assert text.startswith("b (held-out images of an environment that it was trained on): ")
    (model, always) = grader(target="none", role="source", part="val", environment="b")
    assert "at a threshold that was chosen on these same images." in said([model, always], RUN | {"targets": ["none"]})
    built = said(grader(), RUN | {"may_have_seen": True})
    assert built.startswith("a (left out of this training): ")


def test_records_of_an_older_version_and_a_run_without_a_result():
    old = [record(kappa=0.3, balanced_accuracy=0.5), record(protocol=MAJORITY, kappa=0.0, balanced_accuracy=0.2)]
    assert said(old, {"targets": ["a"]}) == (
        "a (never seen): it is right on 50 of 100 images, each class counted alike. Always answering the most frequent "
        "class would be right on 20 of 100."
    )
    assert said([record(total_loss=1.0)]).startswith("a (never seen): no figure of it has an answer without a model")
    assert said([]) == "No target is finished, so there is nothing to conclude."
    assert said(grader(), RUN | {"targets": ["a", "b"]}).endswith("Not finished: b (seed 0).")


def losses(values, seed=0):
    return [{"kind": "train", "target": "a", "seed": seed, "step": step, "total_loss": value}
            for step, value in enumerate(values, start=1)]  # fmt: skip


def test_a_falling_loss_and_random_weights_are_facts_with_a_next_step():
    run = RUN | {"pretrained": "false"}
    text = said(grader(), run, losses(np.linspace(2, 1, 100)))
    assert text.endswith(
        "The training loss was still falling over the last quarter of the steps; the encoder began with random "
        "weights. To try next: more steps (--steps 200); pretrained weights (pretrained=true)."
    )
    advised = said(grader(), run | {"weights_to_try": "model=other pretrained=true"}, losses(np.ones(100)))
    assert "To try next: pretrained weights (model=other pretrained=true)" in advised
    flat = said(grader(), RUN | {"pretrained": "hub", "subset_size": 20}, losses(np.ones(100)))
    assert "falling" not in flat and "random" not in flat
    assert "It was given 20 images of each environment only. To try next: all images (train_all.py);" in flat
    few = said(grader(), RUN, losses([2, 1]))
    assert "100 steps are too few to tell whether the training loss was still falling" in few and "--steps 200" in few
    two = losses(np.linspace(2, 1, 100)) + losses(np.ones(100), seed=1)
    assert "in 1 of 2 trainings" in said(grader(), RUN, two)


def test_a_fall_is_told_from_noise():
    """Against scipy's test of the same difference; of losses without trend one in 40 may pass for falling."""
    generator = np.random.default_rng(0)
    fell = 0
    for _ in range(400):
        values = generator.normal(1, 0.1, 200)
        last = values[150:]
        statistic = stats.ttest_ind(last[:25], last[25:], equal_var=False).statistic
        answer = loss_fell(list(enumerate(values, start=1)), 200)
        assert answer == (statistic > 2)
        fell += answer
    assert 1 <= fell <= 25
    falling = 1 - np.linspace(0, 1, 200) + generator.normal(0, 0.05, 200)
    assert loss_fell(list(enumerate(falling, start=1)), 200) is True
    assert loss_fell(list(enumerate(falling[::-1], start=1)), 200) is False
    early = np.concatenate([np.linspace(2, 1, 150), np.ones(50)])
    assert loss_fell(list(enumerate(early, start=1)), 200) is False


@pytest.mark.parametrize("values", [[], [1.0], [3.0, 2.0, 1.0], [1.0] * 99 + [float("nan")]])
def test_what_can_not_be_told(values):
    assert loss_fell(list(enumerate(values, start=1)), max(1, len(values))) is None
