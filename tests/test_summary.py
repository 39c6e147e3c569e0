"""Tables against numbers worked out by hand."""

import csv
import io
import json
import re

import pytest

from domainbed.summary import build, confusion

BEST, ORACLE, MAJORITY = "training-domain validation", "oracle (test-domain validation)", "majority class"
RUN = {
    "name": "first", "algorithm": "VAE_DG", "dataset": "DR", "command": "python train_all.py", "steps": 5000,
    "select_by": "kappa", "notes": ["encoder started from random weights"], "targets": ["a"], "seeds": [0],
}  # fmt: skip


def record(target="a", environment=None, seed=0, protocol=BEST, part="whole", role="target", intervals=None, **metrics):
    return {
        "kind": "final", "target": target, "seed": seed, "protocol": protocol, "checkpoint": "best", "step": 1200,
        "environment": environment or target, "role": role, "part": part, "n": 40, "num_groups": 20,
        "metrics": metrics, "intervals": intervals or {},
    }  # fmt: skip


def rows(text):
    """Cells of every table row in a text."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]


def test_one_target_and_one_seed_show_intervals():
    records = [
        record(accuracy=0.71249, kappa=None, psnr=24.688, total_loss=15053.24, intervals={"accuracy": [0.65, 0.7714]}),
        record(accuracy=0.5, kappa=0.1, protocol=ORACLE),
        record(accuracy=0.4, kappa=0.0, protocol=MAJORITY),
    ]
    summary = build(records, RUN)
    text = summary.full()
    head, _, best, oracle, majority = rows(text)
    assert head == ["target", "protocol", "step", "n", "accuracy", "kappa", "PSNR (dB)", "total_loss"]
    assert best == ["a", BEST, "1200", "40", "0.712 [0.650, 0.771]", "–", "24.69", "15053.2"]
    assert oracle == ["a", f"{ORACLE} †", "1200", "40", "0.500", "0.100", "–", "–"]
    assert majority == ["a", MAJORITY, "–", "40", "0.400", "0.000", "–", "–"]
    assert "Average" not in text and summary.averages() == []
    assert "not comparable with the other rows" in text and "python train_all.py" in text
    assert "> **Note:** encoder started from random weights" in text
    assert "! encoder started" in summary.text() and "†" not in summary.text()


def test_the_lines_of_a_table_are_equally_long():
    text = build([record(accuracy=0.7), record(accuracy=0.5, protocol=MAJORITY, environment="a|b")], RUN).full()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1 and r"a\|b" in text


def average(summary, metric, protocol=BEST):
    return next(row for row in summary.averages() if (row["metric"], row["protocol"]) == (metric, protocol))


def test_one_seed_is_averaged_over_targets():
    values = {"a": 0.2, "b": 0.4, "c": 0.9}
    summary = build(
        [record(target, accuracy=value) for target, value in values.items()], RUN | {"targets": list("abc")}
    )
    row = average(summary, "accuracy")
    assert (row["mean"], row["sd"], row["se"]) == pytest.approx((0.5, 0.360555, 0.208167), abs=1e-6)  # sqrt(0.26 / 2)
    assert (row["n"], row["over"], row["seeds"], row["targets"]) == (3, "targets", [0], ["a", "b", "c"])
    text = summary.full()
    assert "Over n = 3 targets (a, b, c), with one seed (0)" in text and "(n - 1)" in text
    assert [cells[1:] for cells in rows(text)[-3:]] == [
        ["mean", "0.500"],
        ["standard deviation", "0.361"],
        ["standard error", "0.208"],
    ]


def test_several_seeds_are_averaged_over_seeds_of_means_over_targets():
    values = {("a", 0): 0.1, ("b", 0): 0.3, ("a", 1): 0.5, ("b", 1): 0.9}  # means 0.2 and 0.7
    records = [record(target, seed=seed, accuracy=value) for (target, seed), value in values.items()]
    summary = build(records, RUN | {"targets": ["a", "b"], "seeds": [0, 1]})
    row = average(summary, "accuracy")
    assert (row["mean"], row["sd"], row["se"]) == pytest.approx((0.45, 0.353553, 0.25), abs=1e-6)
    assert (row["n"], row["over"]) == (2, "seeds")
    text = summary.full()
    assert "Over n = 2 seeds (0, 1), 2 targets averaged within each seed first" in text
    assert ["a", BEST, "1200", "40", "0.300 ± 0.283"] in rows(text)  # (0.5 - 0.1) / sqrt(2)


def test_an_unfinished_seed_is_reported_and_not_averaged():
    records = [record("a", accuracy=0.1), record("b", accuracy=0.3), record("a", seed=1, accuracy=0.9)]
    summary = build(records, RUN | {"targets": ["a", "b"], "seeds": [0, 1]})
    assert summary.notes[-1] == "unfinished, so not in these tables: b (seed 1)"
    assert average(summary, "accuracy")["mean"] == pytest.approx(0.2)
    assert "Seeds that lack a target are left out" in summary.full()
    assert ["b", BEST, "1200", "40", "0.300 (n=1)"] in rows(summary.full())


def test_a_figure_that_a_target_lacks_is_averaged_over_the_others_and_says_so():
    records = [
        record("a", accuracy=0.1, kappa=0.6),
        record("b", accuracy=0.3, kappa=None),
        record("c", accuracy=1, kappa=0),
    ]
    summary = build(records, RUN)
    row = average(summary, "kappa")
    assert (row["mean"], row["n"], row["targets"]) == (pytest.approx(0.3), 2, ["a", "c"])
    assert [BEST, "mean", "0.467", "0.300 (of 2)"] in rows(summary.full())


def test_environments_that_are_held_out_together_keep_their_names():
    records = [record("a+b", "a", accuracy=0.1), record("a+b", "b", accuracy=0.3)]
    for text in (build(records, RUN).text(), build(records, RUN).full()):
        assert [cells[0] for cells in rows(text)[2:4]] == ["a (of a+b)", "b (of a+b)"]


def test_without_a_target_the_sources_are_the_result():
    places = [(name, part) for name in "ab" for part in ("train", "val")]
    records = [
        record("none", name, role="source", part=part, protocol=protocol, accuracy=0.9 if part == "train" else 0.6)
        for name, part in places
        for protocol in (BEST, "last")
    ]
    text = build(records, RUN | {"targets": ["none"]}).full()
    assert "Held-out part of each source environment" in text
    table = rows(text)
    assert [cells[:2] for cells in table[2:6]] == [["a", BEST], ["a", "last"], ["b", BEST], ["b", "last"]]
    assert table[-4:] == [["none", name, "held-out" if part == "val" else part, "40", value]
                          for (name, part), value in zip(places, ["0.900", "0.600"] * 2, strict=True)]  # fmt: skip


def test_the_confusion_of_several_seeds_is_summed():
    counts = {0: [[3, 1], [0, 0]], 1: [[1, 3], [0, 0]]}
    records = [record(seed=seed, accuracy=0.5, confusion=confusion) for seed, confusion in counts.items()]
    text = build(records, RUN | {"seeds": [0, 1], "class_names": ["none", "mild"]}).full()
    assert rows(text)[-2:] == [["none", "0.500", "8", "4", "4"], ["mild", "–", "0", "0", "0"]]
    assert "Counts summed over the seeds 0, 1." in text


def test_the_later_of_two_records_counts_and_others_do_not():
    other = record(accuracy=0.3) | {"kind": "evaluation"}
    records = [{"kind": "step", "step": 3}, record(accuracy=0.1), record(accuracy=0.2), other]
    assert [one["metrics"]["accuracy"] for one in build(records, RUN).records] == [0.2]


def test_csv_is_long_and_exact():
    intervals = {"accuracy": [0.123456789012, 0.5]}
    records = [record(accuracy=1 / 3, kappa=None, recall=[0.5, None], confusion=[[1, 1], [0, 0]], intervals=intervals)]
    lines = list(csv.DictReader(io.StringIO(build(records, RUN).csv())))
    assert [line["metric"] for line in lines] == ["accuracy", "kappa", "recall_0", "recall_1"]
    assert float(lines[0]["value"]) == 1 / 3 and lines[0]["low"] == "0.123456789012" and lines[0]["high"] == "0.5"
    assert [line["value"] for line in lines[1:]] == ["", "0.5", ""]
    assert (lines[0]["target"], lines[0]["seed"], lines[0]["step"], lines[0]["part"]) == ("a", "0", "1200", "whole")


def test_write_replaces_whole_files(tmp_path):
    (tmp_path / "summary.md").write_text("old")
    summary = build([record(accuracy=1 / 3), record("b", accuracy=0.5)], RUN)
    summary.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "summary.csv", "summary.json", "summary.md", "summary_full.md",
    ]  # fmt: skip
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == summary.brief()
    assert (tmp_path / "summary_full.md").read_text(encoding="utf-8") == summary.full()
    everything = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert everything["run"] == RUN and len(everything["records"]) == 2
    assert everything["averages"][0]["mean"] == pytest.approx(5 / 12)


def test_a_run_without_a_result_has_a_summary(tmp_path):
    summary = build([], RUN)
    summary.write(tmp_path)
    assert "unfinished, so not in these tables: a (seed 0)" in summary.text()
    assert "no finished target" in summary.text()


def test_a_confusion_names_its_true_and_its_predicted_classes():
    lines = confusion(["0", "mild"], [[10, 2], [0, 0]])
    assert rows("\n".join(lines)) == [
        ["true class", "recall", "images", "predicted 0", "predicted mild"],
        ["-" * 10, "-" * 5 + ":", "-" * 5 + ":", "-" * 10 + ":", "-" * 13 + ":"],
        ["0", "0.833", "12", "10", "2"],
        ["mild", "–", "0", "0", "0"],
    ]
    assert len(set(map(len, lines))) == 1


def test_baselines_have_a_table_of_their_own_with_the_difference_beside_each():
    figures = {"accuracy": 0.75, "accuracy_pca": 0.7, "accuracy_minus_pca": 0.05}
    probe = record(**figures, intervals={"accuracy_minus_pca": [-0.0123, 0.1]})
    summary = build([probe, record(accuracy=0.4, protocol=MAJORITY)], RUN)
    head, _, row = rows(summary.full().partition("### Baselines")[2].partition("##")[0])
    assert head == ["target", "protocol", "step", "n", "accuracy", "pca", "accuracy - pca"]
    assert row == ["a", BEST, "1200", "40", "0.750", "0.700", "0.050 [-0.012, 0.100]"]
    assert "Baselines" not in build([record(accuracy=0.7)], RUN).full()


def test_masks_have_columns_of_their_own_and_a_table_per_class():
    def masks(disc, cup, seed=0):
        return record(
            seed=seed, dice_dataset=(disc + cup) / 2, iou_image=0.5, pixel_accuracy=0.97, total_loss=0.3,
            dice_per_class=[0.99, disc, cup], iou_per_class=[0.98, None, 0.25],
        )  # fmt: skip

    baseline = record(protocol="majority mask", dice_dataset=0.0, iou_image=0.0, pixel_accuracy=0.9)
    run = RUN | {"class_names": ["retina", "disc", "cup"], "background": "retina", "select_by": "dice_dataset"}
    text = build([masks(0.8, 0.4), baseline], run).full()
    head, _, best, majority, *classes = rows(text)
    assert head[4:] == ["Dice (all pixels)", "IoU (per image)", "pixel accuracy", "total_loss"]
    assert best[4:] == ["0.600", "0.500", "0.970", "0.3"] and majority[1:] == [
        "majority mask",
        "–",
        "40",
        "0.000",
        "0.000",
        "0.900",
        "–",
    ]
    assert classes[0] == ["target", "class", "Dice", "IoU"]
    assert classes[2:] == [
        ["a", "retina (background)", "0.990", "0.980"],
        ["a", "disc", "0.800", "–"],
        ["a", "cup", "0.400", "0.250"],
    ]
    assert "means over disc, cup, without the background" in text and "most pixels of the training masks" in text
    assert "recall" not in text.lower()
    two = rows(build([masks(0.8, 0.4), masks(0.6, 0.4, seed=1)], run | {"seeds": [0, 1]}).full())
    assert ["a", "disc", "0.700 ± 0.141", "–"] in two
    of_kinds = build([masks(0.8, 0.4)], run | {"background": None}).full()
    assert "means over retina, disc, cup, without the background" in of_kinds


def test_a_run_without_masks_has_no_word_of_them():
    text = build([record(accuracy=0.7), record(accuracy=0.5, protocol=MAJORITY)], RUN).full()
    assert "Dice" not in text and "mask" not in text


POINT = {"threshold": 0.3, "chosen_on": ["b"], "sensitivity": 0.9, "positives": [1]}


def screened(sensitivity, specificity, bounds=None, **options):
    """A record of a classifier of two classes, with intervals of the same width for each figure."""
    figures = {"sensitivity": sensitivity, "specificity": specificity, "youden": sensitivity + specificity - 1}
    wide = bounds or 0.1
    return record(
        **figures, intervals={name: [value - wide, value + wide] for name, value in figures.items()}, **options
    ) | {"operating_point": POINT}


def brief_rows(records, run=RUN):
    summary = build(records, run | {"class_names": ["none", "glaucoma"]})
    brief, text = rows(summary.brief()), rows(summary.text())
    assert brief[0] == text[0] and len(brief) == len(text)
    return brief[0], brief[2:]


def test_the_brief_table_has_a_row_a_target_beside_what_needs_no_model():
    records = []
    for target, kappa, low in (("a", 0.5, 0.4), ("b", 0.1, -0.1)):
        figures = {"accuracy": 0.6, "kappa": kappa, "psnr": 20.0}
        intervals = {"accuracy": [0.5, 0.7], "kappa": [low, 0.6], "psnr": [19.0, 21.0]}
        for protocol in (BEST, "last", ORACLE):
            records += [record(target, protocol=protocol, part=part, **figures, intervals=intervals)
                        for part in ("val", "whole")]  # fmt: skip
        records += [record(target, protocol=MAJORITY, part=part, accuracy=0.4, kappa=0.0) for part in ("val", "whole")]
        records += [record(target, protocol="mean training image", psnr=18.0 if target == "a" else 20.5)]
        records += [record(target, environment="other", role="source", part="val", **figures)]
    head, lines = brief_rows(records)
    assert head == [
        "target", "selected by", "images", "kappa", "majority class", "PSNR (dB)", "mean training image",
    ]  # fmt: skip
    assert lines == [
        ["a", BEST, "40 (all)", "0.500 [0.400, 0.600] ✓", "0.000", "20.00 [19.00, 21.00] ✓", "18.00"],
        ["b", BEST, "40 (all)", "0.100 [-0.100, 0.600]", "0.000", "20.00 [19.00, 21.00]", "20.50"],
    ]
    text = build(records, RUN).brief()
    assert text.count("\n| ---") == 1 and "†" not in text
    assert "encoder started" not in text and "notes (1)" in text
    assert "encoder started" in build(records, RUN).full()


def test_classes_without_order_show_balanced_accuracy_and_an_unselected_run_its_last_weights():
    records = [record(protocol="last", accuracy=0.9, balanced_accuracy=0.6, intervals={}),
               record(protocol=MAJORITY, accuracy=0.8, balanced_accuracy=0.5)]  # fmt: skip
    head, lines = brief_rows(records)
    assert head[3:] == ["balanced accuracy", "majority class"]
    assert lines == [["a", "last", "40 (all)", "0.600 ✓", "0.500"]]


def test_a_target_whose_seeds_did_not_all_select_shows_the_last_weights_of_each():
    records = [record(seed=seed, protocol="last", kappa=0.2 + seed / 10) for seed in (0, 1)] + [record(kappa=0.9)]
    _, lines = brief_rows(records, RUN | {"seeds": [0, 1]})
    assert lines == [["a", "last", "40 (all)", "0.250 ± 0.071", "–"]]


def test_every_seed_has_to_beat_the_trivial_answer_of_its_own():
    def of(seed, low, trivial):
        return [record(seed=seed, kappa=0.5, intervals={"kappa": [low, 0.6]}),
                record(seed=seed, protocol=MAJORITY, kappa=trivial)]  # fmt: skip

    for second, marked in (((1, 0.3, 0.2), True), ((1, 0.3, 0.3), False), ((1, -0.1, 0.0), False)):
        _, lines = brief_rows(of(0, 0.1, 0.0) + of(*second), RUN | {"seeds": [0, 1]})
        assert ("✓" in lines[0][3]) == marked


def test_sensitivity_and_specificity_are_marked_where_their_sum_is_above_one():
    for bounds, marked in ((0.1, True), (0.4, False)):
        head, lines = brief_rows([screened(0.8, 0.5, bounds)])
        assert head[3:] == ["sensitivity", "specificity"]
        assert [cell.endswith(" ✓") for cell in lines[0][3:]] == [marked] * 2
        assert lines[0][3].startswith(f"0.800 [{0.8 - bounds:.3f}, ")
    text = build([screened(0.8, 0.5)], RUN | {"class_names": ["none", "glaucoma"]}).brief()
    assert "specificity for glaucoma, at the threshold that finds 90% of them or more, and" in text
    assert "flatters" not in text


def test_without_positives_there_is_a_specificity_all_the_same():
    only = record(sensitivity=None, specificity=0.5, youden=None) | {"operating_point": POINT}
    head, lines = brief_rows([only])
    assert head[3:] == ["sensitivity", "specificity"] and lines[0][3:] == ["–", "0.500"]


def test_a_threshold_that_was_chosen_on_the_same_images_says_so():
    own = screened(0.9, 0.5, target="none", environment="b", role="source", part="val")
    tested = screened(0.9, 0.5, target="none", environment="c", role="source", part="test")
    text = build([own, tested], RUN | {"targets": ["none"]}).brief()
    assert "For b these are the same images, which flatters." in text
    assert [cells[3].endswith(" ✓") for cells in rows(text)[2:]] == [False, True], "no proof of anything"
    assert [cells[2] for cells in rows(text)[2:]] == ["40 (held-out part)", "40 (test part)"]


def test_masks_and_codes_stand_beside_their_trivial_answers():
    head, lines = brief_rows([record(dice_dataset=0.6), record(protocol="majority mask", dice_dataset=0.0)])
    assert head[3:] == ["Dice (all pixels)", "majority mask"] and lines[0][3:] == ["0.600 ✓", "0.000"]
    for bits, marked in ((2.0, True), (4.0, False)):  # fewer are better
        head, lines = brief_rows([record(bits_per_code=bits, bits_by_frequency=3.0)])
        assert head[3:] == ["bits per code", "by frequency"]
        assert lines[0][3:] == [f"{bits:.3f}" + " ✓" * marked, "3.000"]
    head, lines = brief_rows([record(total_loss=3.0)])
    assert head[3:] == ["total_loss"] and lines[0][3:] == ["3"]


def test_records_of_an_older_version_are_summarised():
    """Without threshold, flags, or the trivial answers."""
    head, lines = brief_rows([record(accuracy=0.5, kappa=0.25, auc=0.6)])
    assert head[3:] == ["kappa", "majority class"] and lines[0][3:] == ["0.250", "–"]
    assert "Sensitivity" not in build([record(kappa=0.25)], RUN).full()


def test_the_full_summary_has_the_oracles_own_threshold_among_what_is_marked():
    text = build([screened(0.8, 0.5), screened(0.9, 0.6, protocol=ORACLE)], RUN).full()
    assert [cells[4:6] for cells in rows(text)[2:4]] == [
        ["0.800 [0.700, 0.900]", "0.500 [0.400, 0.600]"],
        ["0.900 [0.800, 1.000]", "0.600 [0.500, 0.700]"],
    ]
    assert "In rows with † the held-out images of the target choose it." in text
