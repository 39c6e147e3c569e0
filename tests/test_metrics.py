"""Figures against scikit-learn, torchmetrics and closed forms; intervals against the binomial they must resemble."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from domainbed import metrics

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
