"""The loop against figures computed by hand on the same images, for algorithms with and without each capability."""

import json
import math
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from in_memory import graded, opened
from tiny_models import SMALL
from torch import nn

from domainbed import metrics
from domainbed.engine import Engine
from domainbed.evaluator import (
    Outputs,
    _answer,
    choose_threshold,
    evaluate,
    evaluate_rows,
    figures,
    in_batches,
    mean_images,
    of_fixed_images,
    screening,
)
from domainbed.fake_gpu import WarnOfSynchronisation, fake_gpu
from domainbed.objectives import rows as rows_module
from domainbed.registry import ALGORITHMS
from domainbed.testing import build, minibatches

N, K = 10, 3


class Plain(nn.Module):
    """An objective and nothing else."""

    num_classes = K

    def evaluation_terms(self, x, y):
        return {"loss": x.mean() + y.float().mean(), "KLD_loss": x.square().mean()}


class Predictor(Plain):
    def predict(self, x):
        return x.flatten(1)[:, :K].bfloat16()


class Autoencoder(Plain):
    def reconstruct(self, x, y=None):
        assert y is None, "the label was given away"
        return x * 0.5


class Conditional(Plain):
    def reconstruct(self, x, y):
        return x * (y.float() / K)[:, None, None, None]


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_batch_of_an_evaluation_does_not_wait_for_a_gpu(name: str) -> None:
    algorithm = build(ALGORITHMS[name], **SMALL.get(name, {})).eval()
    ((x, y), _) = minibatches(algorithm=algorithm)
    with fake_gpu() as gpu, torch.no_grad():
        algorithm.to(gpu)
        with WarnOfSynchronisation():
            found = _answer(algorithm, x.to(gpu, non_blocking=True), y.to(gpu, non_blocking=True))
    assert all(value.is_cuda for value in [*found.losses.values(), *found.per_image.values()])


def test_batches_of_an_evaluation_go_to_a_gpu_without_waiting() -> None:
    images = graded(6)
    with fake_gpu() as gpu, WarnOfSynchronisation():
        engine = SimpleNamespace(device=gpu, to_device=lambda pixels: pixels.to(gpu, non_blocking=True).float())
        found = list(in_batches(engine, images, np.arange(6), 4, range(2)))
    assert [(len(x), x.is_cuda, y.is_cuda) for x, y in found] == [(4, True, True), (2, True, True)]


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(N, 3, 16, 16, generator=generator), torch.arange(N) % K, [f"p{i // 2}" for i in range(N)]


def batches(x, y, size=4):
    return zip(x.split(size), y.split(size), strict=True)  # 4, 4, 2


class Everything(Predictor):
    def reconstruct(self, x, y=None):
        return x * 0.5


class Cutter(Plain):
    def segment(self, x):
        return x - 0.5


@pytest.mark.parametrize("algorithm", [Plain(), Everything(), Cutter()])
def test_parts_that_are_joined_are_the_whole(data, algorithm):
    x, y, groups = data
    if isinstance(algorithm, Cutter):
        y = (x > x.flip(0)).long().argmax(1)  # (N, H, W)
    rows = [np.array([7, 1, 9]), np.array([0, 2, 3, 4, 5, 6, 8])]
    of_parts = [evaluate(algorithm, batches(x[part], y[part], 3), [groups[row] for row in part]) for part in rows]
    joined, whole = Outputs.joined(list(zip(rows, of_parts, strict=True))), evaluate(algorithm, batches(x, y), groups)
    assert joined.groups == whole.groups and torch.equal(joined.labels, whole.labels)
    assert joined.losses == pytest.approx(whole.losses) and joined.needs_label == whole.needs_label
    assert joined.per_image.keys() == whole.per_image.keys()

    def tensors(outputs):
        found = {"probabilities": outputs.probabilities, "masks": outputs.masks and outputs.masks.counts}
        return {name: values for name, values in (found | outputs.per_image).items() if values is not None}

    found, expected = tensors(joined), tensors(whole)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys() and len(expected) == {Plain: 0, Everything: 4, Cutter: 1}[type(algorithm)]
    assert figures(joined, ordinal=True, intervals=True).keys() == figures(whole, ordinal=True, intervals=True).keys()
    assert Outputs.joined([(rows[1], of_parts[1])]).losses == of_parts[1].losses, "exactly"


@pytest.mark.parametrize("name", ["VAE", "HVAE", "CVAE"])
def test_noise_belongs_to_the_image(name):
    torch.manual_seed(0)
    images = graded(side=16)
    algorithm = ALGORITHMS[name](images.input_shape, 3, 2, ALGORITHMS[name].HParams.model_validate(SMALL[name]))
    run = opened(algorithm, images)
    rows = np.arange(24)

    def losses(rows, batch_size):
        return evaluate_rows(run.algorithm, run.engine, run.images, rows, batch_size).losses

    whole = losses(rows, 24)
    for other in (losses(rows, 5), losses(rows[::-1], 24), losses(np.random.default_rng(0).permutation(rows), 7)):
        assert other == pytest.approx(whole, rel=1e-5)
    halves = losses(rows[::2], 24), losses(rows[1::2], 24)
    assert {key: (halves[0][key] + halves[1][key]) / 2 for key in whole} == pytest.approx(whole, rel=1e-5)
    run.images.contents = [f"another {content}" for content in run.images.contents]
    assert losses(rows, 24)["total_loss"] != pytest.approx(whole["total_loss"], rel=1e-5), "noise that is no noise"


@pytest.mark.parametrize("batch_size", [3, 5, 64])
def test_batches_that_are_dealt_out_to_processes_come_back_in_order(batch_size, monkeypatch):
    images, algorithm, rows = graded(side=16), Everything(), np.random.default_rng(0).permutation(24)
    whole = evaluate_rows(algorithm, Engine("cpu", "float32"), images, rows, batch_size)
    sent: dict[int, list] = {}
    for process in (2, 1, 0):  # the last one to answer is told what the others had

        def gathered(objects, process=process):
            sent[process] = objects
            return [one for other in sorted(sent) for one in sent[other]]

        engine = Engine("cpu", "float32")
        engine.process, engine.num_processes = process, 3
        monkeypatch.setattr(engine, "gathered", gathered)
        monkeypatch.setattr(engine, "share_statistics", lambda: None)
        with suppress(ValueError):  # of the others, which have less than all
            found = evaluate_rows(algorithm, engine, images, rows, batch_size)
    assert sum(map(len, sent.values())) == -(-len(rows) // batch_size)
    assert found.groups == whole.groups and torch.equal(found.labels, whole.labels)
    assert torch.equal(found.probabilities, whole.probabilities) and found.losses == whole.losses
    assert all(torch.equal(found.per_image[name], values) for name, values in whole.per_image.items())
    intervals = [figures(one, ordinal=True, intervals=True)["intervals"] for one in (found, whole)]
    assert intervals[0] == intervals[1] and intervals[0]


def test_an_evaluation_that_fails_takes_its_noise_with_it():
    class Failing(Plain):
        def evaluation_terms(self, x, y):
            if len(x) < 7:
                raise RuntimeError("in the last batch")
            return super().evaluation_terms(x, y)

    images, engine, algorithm = graded(side=16), Engine("cpu", "float32"), Failing()
    with pytest.raises(RuntimeError, match="in the last batch") as kept:
        evaluate_rows(algorithm, engine, images, np.arange(10), 7)
    assert rows_module._generators is None and kept.traceback


def test_losses_are_means_over_images(data):
    x, y, groups = data
    outputs = evaluate(Plain(), batches(x, y), groups)
    expected = {"total_loss": (x.mean() + y.float().mean()).item(), "KLD_loss": x.square().mean().item()}
    assert outputs.losses == pytest.approx(expected)
    assert (outputs.probabilities, outputs.per_image, outputs.needs_label) == (None, {}, False)
    assert torch.equal(outputs.labels, y) and outputs.groups == groups


def test_a_predictor_gives_probabilities_in_float32(data):
    x, y, groups = data
    probabilities = evaluate(Predictor(), batches(x, y), groups).probabilities
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, x.flatten(1)[:, :K].bfloat16().float().softmax(1))


def test_an_autoencoder_gives_figures_of_each_image(data):
    x, y, groups = data
    outputs = evaluate(Autoencoder(), batches(x, y), groups)
    torch.testing.assert_close(outputs.per_image, metrics.reconstruction(x * 0.5, x))
    assert not outputs.needs_label


def test_a_model_that_needs_the_label_gets_it_and_says_so(data):
    x, y, groups = data
    outputs = evaluate(Conditional(), batches(x, y), groups)
    assert outputs.needs_label
    torch.testing.assert_close(
        outputs.per_image["mse"], (x * (1 - y / K)[:, None, None, None]).square().mean((1, 2, 3))
    )


def test_groups_that_do_not_match_are_refused(data):
    x, y, groups = data
    for wrong, given in [(groups[:-1], batches(x, y)), ([], ())]:
        with pytest.raises(ValueError, match="one group for each image"):
            evaluate(Plain(), given, wrong)


@pytest.fixture
def outputs():
    probabilities = torch.eye(K)[torch.tensor([0, 1, 2, 0, 0, 0])]
    mse = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    return Outputs(torch.tensor([0, 1, 2, 0, 1, 2]), list("aabbcd"), probabilities, {"mse": mse}, {"total_loss": 7.0})


def test_figures_of_all_images(outputs):
    record = figures(outputs, ordinal=False, intervals=True)
    assert (record["n"], record["num_groups"]) == (6, 4)
    assert record["metrics"]["accuracy"] == pytest.approx(4 / 6)
    assert record["metrics"]["mse"] == pytest.approx(0.35)
    assert record["metrics"]["total_loss"] == 7.0
    assert record["intervals"].keys() == {"accuracy", "balanced_accuracy", "macro_f1", "auc", "mse"}
    low, high = record["intervals"]["mse"]
    assert 0.15 <= low < 0.35 < high <= 0.6
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_figures_of_images_that_lack_a_class(outputs):
    rows = torch.tensor([0, 1, 4])
    mse = {"mse": outputs.per_image["mse"][rows]}
    few = Outputs(outputs.labels[rows], list("aac"), outputs.probabilities[rows], mse)
    record = figures(few, ordinal=True, intervals=False)
    assert (record["n"], record["num_groups"], record["intervals"]) == (3, 2, {})
    assert record["metrics"]["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert record["metrics"]["recall"] == [1, 0.5, None]
    assert record["metrics"]["mse"] == pytest.approx((0.1 + 0.2 + 0.5) / 3)


def test_a_single_class_has_no_classifier(outputs):
    outputs.probabilities = torch.ones(6, 1)
    assert figures(outputs, ordinal=False, intervals=True)["metrics"].keys() == {"mse", "total_loss"}


def test_what_is_not_finite_is_none(outputs):
    outputs.losses, outputs.per_image["mse"][2] = {"total_loss": math.inf, "recon_loss": math.nan}, math.nan
    record = figures(outputs, ordinal=True, intervals=True)
    assert [record["metrics"][name] for name in ("total_loss", "recon_loss", "mse")] == [None, None, None]
    assert record["intervals"]["mse"] is None
    json.dumps(record, allow_nan=False)


def test_the_encoder_sees_each_batch_once_and_the_figures_are_the_same(monkeypatch):
    from domainbed.algorithms.vae_dg import VAE_DG
    from domainbed.testing import NoNoise, build, minibatches

    algorithm = build(VAE_DG, latent_dim=4).eval()
    batches = [minibatches(seed=seed)[0] for seed in range(3)]
    calls = []
    algorithm.encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), NoNoise():
        once = evaluate(algorithm, batches, list(range(12)))
        assert len(calls) == 3
        monkeypatch.setattr(VAE_DG, "shared_in_evaluation", ())
        thrice = evaluate(algorithm, batches, list(range(12)))
    assert len(calls) == 3 + 9
    assert torch.equal(once.probabilities, thrice.probabilities)
    assert torch.equal(once.per_image["mse"], thrice.per_image["mse"])
    assert once.losses == thrice.losses
    assert "forward" not in vars(algorithm.encoder)


def test_baselines_are_compared_on_the_same_images(data):
    class Probe(Predictor):
        def baselines(self, x):
            return {"mirror": self.predict(-x), "same": self.predict(x)}

    x, y, groups = data
    outputs = evaluate(Probe(), batches(x, y), groups)
    record = figures(outputs, ordinal=False, intervals=True)
    accuracy = (outputs.probabilities.argmax(1) == y).double()
    mirror = ((-x).flatten(1)[:, :K].bfloat16().argmax(1) == y).double()
    assert record["metrics"]["accuracy_mirror"] == pytest.approx(mirror.mean().item())
    assert record["metrics"]["accuracy_minus_mirror"] == pytest.approx((accuracy - mirror).mean().item())
    assert record["metrics"]["accuracy_minus_same"] == 0 and record["intervals"]["accuracy_minus_same"] == [0, 0]
    assert record["intervals"]["accuracy_same"] == pytest.approx(record["intervals"]["accuracy"])


class Thresholds(nn.Module):
    """Marks what is bright, and what is brighter; needs no label for anything."""

    num_classes = 2
    shared_in_evaluation = ()

    def evaluation_terms(self, x, y):
        return {"loss": x.mean()}

    def predict(self, x):
        raise AssertionError("there are no labels to be judged by")

    def segment(self, x):
        return torch.stack([x[:, 0] - 0.5, x[:, 0] - 0.8], dim=1)


def test_masks_are_judged_batch_by_batch_and_bring_no_labels(data):
    x, _, groups = data
    kinds = torch.stack([x[:, 1] > 0.5, x[:, 1] > 0.8], dim=1).float()
    kinds[0, :, :2] = math.nan
    outputs = evaluate(Thresholds(), zip(x.split(4), kinds.split(4), strict=True), groups)
    assert outputs.labels.tolist() == [-1] * N and outputs.probabilities is None
    whole = metrics.count_pixels(Thresholds().segment(x), kinds)
    assert torch.equal(outputs.masks.counts, whole.counts) and not outputs.masks.exclusive
    record = figures(outputs, ordinal=False, intervals=True)
    assert record["metrics"] == metrics.segmentation(whole) | {"total_loss": pytest.approx(x.mean().item())}
    assert record["intervals"] == {
        name: list(bounds) for name, bounds in metrics.bootstrap(groups, masks=whole).items()
    }
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_majority_mask_is_one_answer_for_every_pixel(exclusive):
    from types import SimpleNamespace

    from domainbed.datasets.masks import MaskClasses, to_target

    classes = MaskClasses(("a", "b", "c"), exclusive)
    planes = torch.tensor([[[0, 1], [2, 255]], [[1, 1], [1, 0]]], dtype=torch.uint8)
    images = SimpleNamespace(
        mask_classes=classes,
        pixels=lambda rows: torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8),
        planes=lambda rows: planes[rows],
        targets=lambda rows, found: to_target(found, classes),
    )
    from domainbed.evaluator import majority_mask

    got = majority_mask(images, torch.arange(2).numpy(), 1, 1)  # class b everywhere; or kind a, which is bit 1
    if exclusive:
        assert got["pixel_accuracy"] == pytest.approx(4 / 7)
        assert got["dice_per_class"] == pytest.approx([0.0, 2 * 4 / (4 + 7), 0.0])
    else:
        assert got["dice_per_class"] == [pytest.approx(2 * 4 / (4 + 7)), 0.0, None]


@pytest.mark.parametrize("num_classes", [1, K])
def test_mean_images_are_those_of_all_batches_and_are_judged_on_each_image(data, num_classes):
    x, y, _ = data
    y = y % num_classes
    means = mean_images(zip(x.split(4), y.split(4), strict=True), num_classes)
    expected = torch.stack([x[y == k].double().mean(0) for k in range(num_classes)])
    torch.testing.assert_close(means.double(), expected, rtol=0, atol=1e-6)
    found = of_fixed_images(means, zip(x[:7].split(3), y[:7].split(3), strict=True))
    errors = ((x[:7].double() - expected[y[:7]]) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(found["mse"].double(), errors, rtol=1e-5, atol=0)
    torch.testing.assert_close(found["psnr"].double(), -10 * errors.log10(), rtol=1e-5, atol=0)
    assert set(found) == {"mse", "psnr", "ssim"}


def test_a_class_without_images_has_a_black_mean(data):
    means = mean_images([(data[0], torch.zeros(N, dtype=torch.long))], 2)
    assert means[0].any() and not means[1].any()


def test_a_threshold_is_chosen_on_all_sets_together_and_stays_fixed():
    def answered(scores, labels):
        score = torch.tensor(scores)
        return Outputs(torch.tensor(labels), range(len(labels)), torch.stack([1 - score, score], 1))

    first, second = answered([0.9, 0.1, 0.2], [1, 0, 1]), answered([0.3, 0.4], [1, 0])
    threshold = choose_threshold([first, second], (1,))
    assert threshold == pytest.approx(0.15)  # of 0.9, 0.3 and 0.2 all three are needed for 0.9; the next is 0.1
    assert choose_threshold([second, first], (1,)) == threshold
    other = answered([0.14, 0.16, 0.14, 0.1], [1, 1, 0, 0])
    found = screening(other, (1,), threshold, intervals=True)
    assert found["metrics"] == {"sensitivity": 0.5, "specificity": 1.0, "youden": 0.5}
    assert found["intervals"]["sensitivity"] == [0, 1] and found["intervals"]["specificity"] == [1, 1]
    assert screening(other, (1,), None, intervals=True)["metrics"] == dict.fromkeys(found["metrics"])
    assert choose_threshold([], (1,)) is None and choose_threshold([answered([0.5], [0])], (1,)) is None
    other.probabilities[2] = math.nan
    assert screening(other, (1,), threshold, intervals=True) == {
        "metrics": dict.fromkeys(found["metrics"]), "intervals": {},
    }  # fmt: skip
    assert choose_threshold([other], (1,)) is None
