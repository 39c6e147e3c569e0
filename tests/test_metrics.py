"""Figures against scikit-learn, torchmetrics, segmentation_models_pytorch, closed forms; intervals against theory."""

import math

import numpy as np
import pytest
import segmentation_models_pytorch.metrics as smp
import sklearn.metrics as sk
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.segmentation import DiceScore, MeanIoU

from domainbed import metrics
from domainbed.objectives.segmentation import IGNORE_INDEX

K = 5


def cases():
    """Random answers: all classes, absent classes, ties, one class, one row."""
    generator = torch.Generator().manual_seed(0)
    for n, present in [
        (200, [0, 1, 2, 3, 4]),
        (60, [0, 2, 4]),
        (40, [1, 2]),
        (30, [3]),
        (1, [2]),
        (7, [0, 1, 2, 3, 4]),
    ]:
        for sharpness in (0.0, 1.0, 4.0):
            labels = torch.tensor(present)[torch.randint(len(present), (n,), generator=generator)]
            logits = torch.randn(n, K, generator=generator) + sharpness * torch.nn.functional.one_hot(labels, K)
            yield labels, logits.softmax(1)
            yield labels, (logits.softmax(1) * 4).round() / 4  # many ties


def oracle(labels, probabilities):
    y, p = labels.numpy(), probabilities.numpy()
    answers, present = p.argmax(1), np.unique(y)
    recall = sk.recall_score(y, answers, labels=range(K), average=None, zero_division=0.0)
    auc = [sk.roc_auc_score(y == k, p[:, k]) for k in present if len(present) > 1]
    return {
        "accuracy": sk.accuracy_score(y, answers),
        "balanced_accuracy": recall[present].mean(),
        "macro_f1": sk.f1_score(y, answers, labels=np.union1d(y, answers), average="macro", zero_division=0.0),
        "auc": np.mean(auc) if auc else None,
        "kappa": sk.cohen_kappa_score(y, answers, labels=range(K), weights="quadratic") if len(present) > 1 else None,
        "recall": [recall[k] if k in present else None for k in range(K)],
        "confusion": sk.confusion_matrix(y, answers, labels=range(K)).tolist(),
    }


def test_classification_agrees_with_scikit_learn():
    for labels, probabilities in cases():
        got, expected = metrics.classification(probabilities, labels, ordinal=True), oracle(labels, probabilities)
        assert list(got) == list(expected)
        assert got.pop("confusion") == expected.pop("confusion")
        for name, value in expected.items():
            assert got[name] == (value if value is None else pytest.approx(value, abs=1e-6)), (name, labels)


def test_closed_forms_at_weight_one_are_the_point_figures():
    for labels, probabilities in cases():
        point = metrics.classification(probabilities, labels, ordinal=True)
        closed = metrics.weighted(torch.ones(len(labels), 1, dtype=torch.float64), probabilities, labels, ordinal=True)
        assert closed.keys() == point.keys() - {"recall", "confusion"}
        for name, (value,) in closed.items():
            if point[name] is None:
                assert value.isnan(), name
            else:
                assert value.item() == pytest.approx(point[name], abs=1e-6), name


def test_a_weight_is_a_repetition():
    generator = torch.Generator().manual_seed(1)
    for labels, probabilities in cases():
        times = torch.randint(0, 4, (len(labels),), generator=generator)
        times[0] += 1
        repeated = metrics.classification(
            probabilities.repeat_interleave(times, 0), labels.repeat_interleave(times), True
        )
        errors = torch.rand(len(labels), generator=generator)
        closed = metrics.weighted(times[:, None].double(), probabilities, labels, True, {"mse": errors})
        assert closed.pop("mse").item() == pytest.approx(errors.repeat_interleave(times).mean().item(), abs=1e-6)
        for name, (value,) in closed.items():
            expected = math.nan if repeated[name] is None else repeated[name]
            assert value.item() == pytest.approx(expected, abs=1e-6, nan_ok=True), name


def test_only_ordered_classes_have_a_kappa():
    labels, probabilities = next(cases())
    assert "kappa" not in metrics.classification(probabilities, labels, ordinal=False)
    assert "kappa" not in metrics.bootstrap(range(len(labels)), probabilities=probabilities, labels=labels)


def test_answers_that_are_not_finite_have_no_figure():
    labels, probabilities = next(cases())
    probabilities = probabilities.clone()
    probabilities[3, 1] = math.nan
    figures = metrics.classification(probabilities, labels, ordinal=True)
    assert set(figures.values()) == {None}
    assert figures.keys() == oracle(labels, probabilities.nan_to_num()).keys()
    intervals = metrics.bootstrap(range(len(labels)), probabilities=probabilities, labels=labels, ordinal=True)
    assert set(intervals.values()) == {None}


def test_shapes_without_figures_are_refused():
    for shape, n in [((0, 5), 0), ((4, 1), 4), ((4, 5), 3), ((4,), 4)]:
        with pytest.raises(ValueError, match="K >= 2 classes"):
            metrics.classification(torch.rand(shape), torch.zeros(n, dtype=torch.long), ordinal=False)


def test_majority_answers_the_most_frequent_training_class():
    labels = torch.tensor([0, 0, 0, 1, 2])
    figures = metrics.majority([0, 2, 1, 0], labels, ordinal=True)
    assert figures["accuracy"] == pytest.approx(1 / 5)
    assert figures["balanced_accuracy"] == pytest.approx(1 / 3)
    assert figures["macro_f1"] == pytest.approx((2 / 6) / 3)  # F1 of class 1 is 2 / (1 + 5), of 0 and 2 nothing
    assert (figures["auc"], figures["kappa"]) == (0.5, 0.0)
    assert figures["recall"] == [0, 1, 0, None]
    tied = metrics.majority([3, 0, 3], labels, ordinal=True)
    assert tied["recall"] == [1, 0, 0], "the lowest of equally frequent classes"
    for counts in ([], [0, 0, 0]):
        with pytest.raises(ValueError, match="no training labels"):
            metrics.majority(counts, labels, ordinal=True)


def images(size, batch=3, channels=3):
    generator = torch.Generator().manual_seed(size)
    target = torch.rand(batch, channels, size, size, generator=generator)
    return (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


@pytest.mark.parametrize("size", [11, 24])
@pytest.mark.parametrize("channels", [1, 3])
def test_reconstruction_agrees_with_torchmetrics(size, channels):
    output, target = images(size, channels=channels)
    figures = metrics.reconstruction(output, target)
    psnr = peak_signal_noise_ratio(output, target, data_range=1.0, dim=(1, 2, 3), reduction="none")
    _, at_each_window = structural_similarity_index_measure(output, target, data_range=1.0, return_full_image=True)
    ssim = at_each_window[..., 5:-5, 5:-5].mean((1, 2, 3))  # without those that hang over the border
    torch.testing.assert_close(figures["mse"], ((output - target) ** 2).flatten(1).mean(1))
    torch.testing.assert_close(figures["psnr"], psnr)
    torch.testing.assert_close(figures["ssim"], ssim, atol=1e-5, rtol=0)


@pytest.mark.parametrize("images_at_once", [1, 2, 4])
def test_ssim_is_the_same_however_many_images_are_compared_at_once(images_at_once, monkeypatch):
    a, b = torch.rand(2, 5, 3, 20, 24)
    whole = metrics.reconstruction(a, b)["ssim"]
    monkeypatch.setattr(metrics, "_SSIM_CHUNK", images_at_once * 3 * 20 * 24)
    torch.testing.assert_close(metrics.reconstruction(a, b)["ssim"], whole, atol=1e-6, rtol=0)


def test_ssim_of_constant_images_is_its_luminance_term():
    a, b = torch.full((1, 3, 16, 16), 0.3), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4)
    assert metrics.reconstruction(a, b)["ssim"].item() == pytest.approx(expected, abs=1e-4)


def test_a_perfect_image_is_finite():
    _, target = images(16)
    figures = metrics.reconstruction(target, target)
    assert figures["psnr"].tolist() == [100, 100, 100]
    assert figures["ssim"].tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_figures_are_float32_whatever_comes_in():
    output, target = images(24)
    output = output.bfloat16()
    expected = metrics.reconstruction(output.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = metrics.reconstruction(output.contiguous(memory_format=torch.channels_last), target)
    for name, values in expected.items():
        torch.testing.assert_close(got[name], values)


def test_images_below_the_window_have_no_ssim():
    assert list(metrics.reconstruction(*images(10))) == ["mse", "psnr"]


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        metrics.reconstruction(torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8))


def answers(right):
    """Two classes in turn, answered rightly where `right` says so."""
    labels = torch.arange(len(right)) % 2
    return labels, torch.nn.functional.one_hot(torch.where(right, labels, 1 - labels), 2).float()


def test_intervals_of_accuracy_are_those_of_a_binomial():
    n, share = 400, 0.7
    labels, probabilities = answers(torch.arange(n) < share * n)
    (low, high) = metrics.bootstrap(range(n), probabilities=probabilities, labels=labels)["accuracy"]
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.008)


def test_groups_are_drawn_whole():
    """20 patients with 20 alike images each: the interval is that of 20 draws, not of 400."""
    right = (torch.arange(20) < 14).repeat_interleave(20)
    labels, probabilities = answers(right)
    patients = [f"patient {i // 20}" for i in range(400)]
    figures = {"mse": right.float()}
    intervals = metrics.bootstrap(patients, probabilities=probabilities, labels=labels, per_image=figures)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 20)
    assert intervals["accuracy"] == pytest.approx((0.7 - half, 0.7 + half), abs=0.06)
    assert intervals["mse"] == pytest.approx(intervals["accuracy"])


def test_groups_of_unequal_size_keep_their_images():
    """A resample of two groups, 1 image at 0 and 3 at 1, has the mean 0, 3/4 or 1."""
    intervals = metrics.bootstrap(
        ["a", "b", "b", "b"], per_image={"mse": torch.tensor([0.0, 1.0, 1.0, 1.0])}, level=0.4
    )
    assert intervals["mse"] == (0.75, 0.75)  # half of the resamples
    assert metrics.bootstrap(["a", "b", "b", "b"], per_image={"mse": torch.tensor([0.0, 1, 1, 1])})["mse"] == (0, 1)


def test_resamples_without_a_figure_are_left_out_of_its_interval():
    labels = torch.tensor([0] * 9 + [1])
    probabilities = torch.tensor([[0.9, 0.1]] * 9 + [[0.2, 0.8]])
    rare = metrics.bootstrap(range(10), probabilities=probabilities, labels=labels)
    assert rare["auc"] == (1, 1)  # defined in 65 % of the resamples, and then perfect
    one = metrics.bootstrap(range(9), probabilities=probabilities[:9], labels=labels[:9], ordinal=True)
    assert one["auc"] is None and one["kappa"] is None and one["accuracy"] == (1, 1)


def test_a_figure_that_most_resamples_lack_has_no_interval():
    """Of two groups, one of each class, half of the resamples hold both: chance decides which half is the larger."""
    given = {"probabilities": torch.eye(2), "labels": torch.arange(2)}
    assert {metrics.bootstrap("ab", **given, seed=seed)["auc"] for seed in range(10)} == {None, (1, 1)}


def test_a_single_group_has_no_interval():
    assert metrics.bootstrap(["a"] * 5, per_image={"mse": torch.rand(5)}) == {"mse": None}


def test_a_bootstrap_has_its_own_randomness(monkeypatch):
    figures = {"mse": torch.arange(50.0)}
    state = torch.get_rng_state()
    first = metrics.bootstrap(range(50), per_image=figures, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert metrics.bootstrap(range(50), per_image=figures, seed=2) != first
    monkeypatch.setattr(metrics, "_CHUNK", 50 * 7)  # memory must not change the result
    assert metrics.bootstrap(range(50), per_image=figures, seed=1)["mse"] == pytest.approx(first["mse"])


def test_a_difference_to_a_baseline_is_taken_image_by_image():
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [5.0, -5.0], [0.0, 1.0]])
    found = metrics.beside(probabilities, {"pixels": logits}, torch.tensor([0, 1, 0, 1]))
    assert found["accuracy_pixels"].tolist() == [1, 0, 1, 1]
    assert found["accuracy_minus_pixels"].tolist() == [0, 1, -1, -1]


# --- masks ---


def masks(seed: int, exclusive: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (6, 4, 8, 8) that are half right, and masks in which nobody labelled a corner."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 4, 8, 8, generator=generator)
    if exclusive:
        target = torch.where(torch.rand(6, 8, 8, generator=generator) < 0.5, logits.argmax(1), 0)
        target[:, :2, :3] = IGNORE_INDEX
    else:
        target = ((logits > 0) & (torch.rand(6, 4, 8, 8, generator=generator) < 0.5)).float()
        target[..., :2, :3] = math.nan
    return logits, target


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("exclusive", [True, False])
def test_masks_agree_with_segmentation_models_pytorch_and_scikit_learn(seed, exclusive):
    logits, target = masks(seed, exclusive)
    keep = torch.ones(8, 8, dtype=torch.bool)
    keep[:2, :3] = False
    if exclusive:  # smp's arguments are (B, …) of class indices
        stats = smp.get_stats(logits.argmax(1)[:, keep], target[:, keep], mode="multiclass", num_classes=4)
    else:
        stats = smp.get_stats((logits > 0).long()[..., keep], target[..., keep].long(), mode="multilabel")
    got = metrics.segmentation(metrics.count_pixels(logits, target))
    pooled = [one.sum(0, keepdim=True) for one in stats]
    for name, function in (("iou", smp.iou_score), ("dice", smp.f1_score)):
        per_class = function(*pooled, reduction="none")[0]
        assert got[f"{name}_per_class"] == pytest.approx(per_class.tolist(), abs=1e-6)
        scored = per_class[1:] if exclusive else per_class
        assert got[f"{name}_dataset"] == pytest.approx(scored.mean().item(), abs=1e-6)
        alone = function(*stats, reduction="none", zero_division=math.nan)[:, 1 if exclusive else 0 :]  # (6, K')
        assert got[f"{name}_image"] == pytest.approx(alone.nanmean(1).mean().item(), abs=1e-6)
    if exclusive:
        y, answer = target[:, keep].flatten().numpy(), logits.argmax(1)[:, keep].flatten().numpy()
        assert got["pixel_accuracy"] == pytest.approx(sk.accuracy_score(y, answer))
        assert got["iou_per_class"] == pytest.approx(sk.jaccard_score(y, answer, average=None).tolist())
        assert got["dice_per_class"] == pytest.approx(sk.f1_score(y, answer, average=None).tolist())
    else:
        right = ((logits > 0) == (target == 1))[..., keep].double().mean().item()
        assert got["pixel_accuracy"] == pytest.approx(right)


def test_masks_agree_with_torchmetrics_per_image():
    logits, target = masks(0, exclusive=True)
    target[:] = target.clamp(min=0)  # torchmetrics can't ignore
    scored = MeanIoU(num_classes=4, include_background=False, input_format="index")(logits.argmax(1), target)
    assert metrics.segmentation(metrics.count_pixels(logits, target))["iou_image"] == pytest.approx(
        scored.item(), abs=1e-6
    )
    dice = DiceScore(4, include_background=False, average="macro", input_format="index", aggregation_level="global")
    dice.update(logits.argmax(1), target)
    expected = dice.compute().item()
    assert metrics.segmentation(metrics.count_pixels(logits, target))["dice_dataset"] == pytest.approx(
        expected, abs=1e-6
    )


def test_masks_by_hand():
    """Two images of four pixels and two kinds. The second image has no kind, and one pixel is answered in it."""
    target = torch.tensor([[[[1, 1, 0, 0]], [[0, 0, 0, 1]]], [[[0, 0, 0, 0]], [[0, 0, 0, 0]]]]).float()
    answer = torch.tensor([[[[1, 0, 1, 0]], [[0, 0, 0, 1]]], [[[1, 0, 0, 0]], [[0, 0, 0, 0]]]]).float() - 0.5
    got = metrics.segmentation(metrics.count_pixels(answer, target))
    assert got["dice_per_class"] == pytest.approx([2 * 1 / (2 + 2 + 1), 1.0])
    assert got["iou_per_class"] == pytest.approx([1 / 4, 1.0])
    assert got["dice_dataset"] == pytest.approx(0.7)
    assert got["iou_image"] == pytest.approx(((1 / 3 + 1) / 2 + 0) / 2)  # the second kind of the second image has none
    assert got["pixel_accuracy"] == pytest.approx(13 / 16)


def test_masks_without_anything_to_find_have_no_overlap():
    answer, target = -torch.ones(3, 1, 2, 2), torch.zeros(3, 1, 2, 2)
    got = metrics.segmentation(metrics.count_pixels(answer, target))
    assert got.pop("pixel_accuracy") == 1.0
    assert got == {name: None for name in got if not name.endswith("class")} | {
        "iou_per_class": [None],
        "dice_per_class": [None],
    }
    answer[0], target[0] = 1, 1  # one image has something, and has it right
    assert metrics.segmentation(metrics.count_pixels(answer, target))["dice_image"] == 1.0


def test_the_background_is_no_part_of_a_mean():
    target = torch.zeros(1, 4, 4).long()
    target[0, 0, 0] = 1
    background = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    got = metrics.segmentation(metrics.count_pixels(background, target))
    assert (got["dice_dataset"], got["iou_image"]) == (0.0, 0.0)
    assert got["pixel_accuracy"] == pytest.approx(15 / 16) and got["dice_per_class"][0] > 0.96


@pytest.mark.parametrize("exclusive", [True, False])
def test_intervals_of_masks_are_those_of_drawn_images(exclusive):
    counts = metrics.count_pixels(*masks(1, exclusive))
    intervals = metrics.bootstrap(list(range(6)), masks=counts, num_resamples=300)
    point = metrics.segmentation(counts)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(6, (300, 6), generator=generator)  # as `bootstrap` draws its groups
    for name, bounds in intervals.items():
        values = torch.tensor(
            [metrics.segmentation(metrics.MaskCounts(counts.counts[rows], counts.exclusive))[name] for rows in drawn],
            dtype=torch.float64,
        )
        expected = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        assert list(bounds) == pytest.approx(expected, abs=1e-9)
        assert bounds[0] <= point[name] <= bounds[1]


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_mask_that_is_not_finite_has_no_figure_and_is_not_background(exclusive: bool) -> None:
    target = torch.zeros(2, 4, 4, dtype=torch.long) if exclusive else torch.zeros(2, 2, 4, 4)
    logits = torch.zeros(2, 2, 4, 4)
    assert metrics.segmentation(metrics.count_pixels(logits, target))["pixel_accuracy"] == 1
    logits[1, :, 0, 0] = torch.nan
    counts = metrics.count_pixels(logits, target)
    found = metrics.segmentation(counts)
    assert all(value is None or set(value) == {None} for value in found.values()), found
    drawn = metrics.bootstrap(["a", "b"], masks=counts)
    assert set(drawn.values()) == {None}


def test_an_answer_that_is_not_finite_is_neither_right_nor_wrong_beside_a_baseline() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [torch.nan, torch.nan]])
    found = metrics.beside(probabilities, {"other": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}, torch.tensor([0, 0]))
    assert found["accuracy_other"].tolist() == [1, 1]
    assert found["accuracy_minus_other"][0] == 0 and found["accuracy_minus_other"][1].isnan()


def scored():
    """Scores and whether each is a positive: random, with ties, constant, few, of one class alone."""
    generator = torch.Generator().manual_seed(2)
    for n in (200, 30, 10, 2, 1):
        for sharpness in (0.0, 1.0, 5.0):
            positive = torch.rand(n, generator=generator) < 0.4
            scores = (torch.randn(n, generator=generator) + sharpness * positive).sigmoid().double()
            for values in (scores, (scores * 4).round() / 4, torch.full_like(scores, 0.5)):
                yield values, positive
    yield torch.rand(9, generator=generator).double(), torch.ones(9, dtype=torch.bool)
    yield torch.rand(9, generator=generator).double(), torch.zeros(9, dtype=torch.bool)


@pytest.mark.filterwarnings("ignore:No negative samples", "ignore:Only one class")
def test_the_threshold_flags_what_the_highest_of_roc_curve_with_that_sensitivity_does():
    for scores, positive in scored():
        for sensitivity in (0.9, 0.5, 1.0):
            threshold = metrics.choose_threshold(scores, positive, sensitivity)
            if not positive.any():
                assert threshold is None
                continue
            _, tpr, thresholds = sk.roc_curve(positive.numpy(), scores.numpy(), drop_intermediate=False)
            highest = thresholds[tpr >= sensitivity].max()
            below = scores[scores < highest]
            assert threshold == pytest.approx((highest + (below.max().item() if len(below) else 0)) / 2, abs=1e-12)
            assert torch.equal(scores >= threshold, scores >= highest)


def test_shares_are_exact_where_nine_of_ten_are_needed():
    for num_positives in range(1, 200):
        scores = torch.arange(1, num_positives + 1, dtype=torch.float64) / 200
        threshold = metrics.choose_threshold(scores, torch.ones(num_positives, dtype=torch.bool))
        assert (scores >= threshold).sum() == -(-9 * num_positives // 10)


def test_scores_that_are_not_finite_have_no_threshold():
    for bad in (math.nan, math.inf):
        assert metrics.choose_threshold(torch.tensor([0.1, bad, 0.7]), torch.tensor([True, False, True])) is None
    assert metrics.screening(None) == {"sensitivity": None, "specificity": None, "youden": None}


def test_sensitivity_and_specificity_are_scikit_learns_recalls():
    for scores, positive in scored():
        flagged = scores >= 0.5
        found = metrics.screening(metrics.Flags(flagged, positive))
        for name, label in (("sensitivity", True), ("specificity", False)):
            if (positive == label).any():
                expected = sk.recall_score(positive, flagged, pos_label=label, zero_division=0.0)
                assert found[name] == pytest.approx(expected, abs=1e-12)
            else:
                assert found[name] is None and found["youden"] is None
        if 0 < positive.sum() < len(positive):
            assert found["youden"] == pytest.approx(sk.balanced_accuracy_score(positive, flagged, adjusted=True))


def test_the_auc_of_several_positive_classes_is_that_of_their_summed_probability():
    for labels, probabilities in cases():
        positive = np.isin(labels.numpy(), (2, 3, 4))
        point = metrics.classification(probabilities, labels, True, (2, 3, 4))["auc_referable"]
        ones = torch.ones(len(labels), 1, dtype=torch.float64)
        (closed,) = metrics.weighted(ones, probabilities, labels, True, positives=(2, 3, 4))["auc_referable"]
        if not 0 < positive.sum() < len(positive):
            assert point is None and closed.isnan()
            continue
        expected = sk.roc_auc_score(positive, probabilities.double().numpy()[:, 2:].sum(1))
        assert point == pytest.approx(expected, abs=1e-12) and closed.item() == pytest.approx(expected, abs=1e-12)
    assert "auc_referable" not in metrics.classification(probabilities, labels, True, (1,))


def test_intervals_of_sensitivity_and_specificity_draw_patients_and_leave_the_threshold_alone():
    generator = np.random.default_rng(3)
    positive = generator.random(60) < 0.5
    flagged = generator.random(60) < np.where(positive, 0.8, 0.3)
    patients = np.arange(60) // 2
    found = metrics.bootstrap(
        patients.tolist(), flags=metrics.Flags(torch.from_numpy(flagged), torch.from_numpy(positive))
    )
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(patients == one) for one in generator.integers(0, 30, 30)])
        shares = flagged[rows][positive[rows]].mean(), 1 - flagged[rows][~positive[rows]].mean()
        drawn.append([*shares, sum(shares) - 1])
    expected = np.quantile(drawn, [0.025, 0.975], axis=0)
    for name, bounds in zip(("sensitivity", "specificity", "youden"), expected.T, strict=True):
        assert found[name] == pytest.approx(tuple(bounds), abs=0.03), name
    none = metrics.bootstrap([1, 2], flags=metrics.Flags(torch.ones(2).bool(), torch.zeros(2).bool()))
    assert none["sensitivity"] is None and none["specificity"] == (0, 0)


def test_the_majority_flags_all_or_none():
    labels = torch.tensor([0, 2, 4, 1])
    assert metrics.majority([1, 0, 3, 0, 0], labels, True, (2, 3, 4))["sensitivity"] == 1
    assert metrics.majority([1, 0, 3, 0, 0], labels, True, (2, 3, 4))["specificity"] == 0
    healthy = metrics.majority([5, 0, 3, 0, 0], labels, True, (2, 3, 4))
    assert (healthy["sensitivity"], healthy["specificity"], healthy["youden"]) == (0, 1, 0)
    assert healthy["auc_referable"] == 0.5
    assert metrics.majority([5, 0, 3, 0, 0], torch.tensor([2, 2]), True, (2, 3, 4))["specificity"] is None
    assert "sensitivity" not in metrics.majority([5, 0, 3, 0, 0], labels, True)
