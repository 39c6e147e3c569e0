"""What `errors` says, against torchmetrics, scikit-learn, closed forms, and faults that were planted."""

import csv
from pathlib import Path
from typing import Any

import in_memory
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from domainbed import metrics, testing
from domainbed.algorithms.base import Algorithm
from domainbed.analysis import calibration, errors
from domainbed.errors import UserError
from domainbed.evaluator import Outputs
from domainbed.registry import ALGORITHMS

NUM_CLASSES = 4


@pytest.fixture(scope="module")
def answers() -> tuple[Tensor, Tensor]:
    """Probabilities (500, 4) and labels that are right more often than not."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, NUM_CLASSES, generator=generator)
    labels = torch.where(torch.rand(500, generator=generator) < 0.6, logits.argmax(1), torch.arange(500) % 4)
    return logits.softmax(1), labels


def test_calibration_is_what_torchmetrics_and_scikit_learn_find(answers: tuple[Tensor, Tensor]) -> None:
    probabilities, labels = answers
    found = calibration.figures(probabilities, labels)
    expected = multiclass_calibration_error(probabilities, labels, NUM_CLASSES, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(expected.item(), abs=1e-6)
    exact = probabilities.double().numpy() / probabilities.double().sum(1, keepdim=True).numpy()
    assert found["nll"] == pytest.approx(log_loss(labels, exact, labels=range(NUM_CLASSES)), rel=1e-5)
    one_hot = np.eye(NUM_CLASSES)[labels]
    assert found["brier"] == pytest.approx(np.mean(np.sum((probabilities.numpy() - one_hot) ** 2, axis=1)), rel=1e-6)
    order = np.argsort(probabilities.max(1).values.numpy())
    confidence, right = probabilities.max(1).values.numpy()[order], (probabilities.argmax(1) == labels).numpy()[order]
    expected = sum(
        len(part) / 500 * abs(confidence[part].mean() - right[part].mean()) for part in np.array_split(range(500), 15)
    )
    assert found["ece_adaptive"] == pytest.approx(expected, abs=1e-6)


def test_a_bin_has_its_upper_bound() -> None:
    bins = calibration.of_equal_width(torch.tensor([0.0, 0.05, 0.1, 1.0, 0.95], dtype=torch.float64))
    assert {number: one.tolist() for number, one in enumerate(bins) if len(one)} == {0: [0, 1], 1: [2], 14: [3, 4]}


@pytest.mark.parametrize("share", [0.5, 0.75, 1.0])
def test_an_honest_model_has_no_calibration_error_and_an_overconfident_one_its_overconfidence(share: float) -> None:
    right = torch.arange(100) < 100 * share
    labels = torch.where(right, 0, 1)
    honest = torch.tensor([[share, 1 - share]]).repeat(100, 1)
    sure = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    for name in ("ece", "ece_adaptive"):
        if name == "ece":  # bins of equal numbers split what is tied
            assert calibration.figures(honest, labels)[name] == pytest.approx(0, abs=1e-6)
        assert calibration.figures(sure, labels)[name] == pytest.approx(1 - share, abs=1e-6)
    assert calibration.figures(sure, labels)["brier"] == pytest.approx(2 * (1 - share))
    assert np.isfinite(calibration.figures(sure, labels)["nll"])


def made(
    per_image: dict[str, Tensor], labels: Tensor | None = None, probabilities: Tensor | None = None
) -> errors.Answers:
    count = len(next(iter(per_image.values()))) if per_image else len(labels)
    labels = torch.full((count,), -1) if labels is None else labels
    outputs = Outputs(labels, [str(one) for one in range(count)], probabilities, per_image)
    return errors.Answers(np.arange(count), outputs, None)


def test_the_most_wrong_come_first() -> None:
    labels = torch.tensor([0, 0, 0, 2, 1])
    sure = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.1, 0.3, 0.6], [0.5, 0.2, 0.3], [0.3, 0.4, 0.3]])
    found = errors.worst_of(made({"mse": torch.tensor([1.0, 3, 2, 0, 4])}, labels, sure), ordinal=True, num_worst=3)
    assert found == {"confident": [1, 2, 3], "far": [2, 3, 1], "reconstruction": [4, 1, 2]}
    assert "far" not in errors.worst_of(made({}, labels, sure), ordinal=False, num_worst=3)


class Dimmed(Algorithm):
    """Predicts the class by the brightness of the image, and returns the image darkened."""

    class HParams(Algorithm.HParams):
        """None of its own."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__((1, 16, 16), num_classes, 1, self.HParams())
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def predict(self, x: Tensor) -> Tensor:
        centres = torch.tensor([0.2, 0.5, 0.8])
        return -200 * (x.mean((1, 2, 3))[:, None] - centres).square()

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.scale * x


def dimmed_run(shift: int, count: int = 64, noise: int = 20) -> Any:
    """A run on two cameras with images as bright as their grade; those of camera1, the target, by `shift` brighter."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, count)
    level = np.array([51, 128, 204])[labels] + shift * (np.arange(count) % 2)
    pixels = level[:, None, None, None] + generator.integers(-noise, noise + 1, (count, 16, 16, 1))
    return in_memory.opened(Dimmed(), in_memory.images(pixels.clip(0, 255).astype(np.uint8), labels))


def test_every_image_has_its_line_and_its_own_figures(tmp_path: Path) -> None:
    run = dimmed_run(40)
    found = errors.analyse(run, tmp_path, images="all", num_worst=4)
    with (tmp_path / "errors.csv").open() as file:
        lines = {one["image"]: one for one in csv.DictReader(file)}
    assert len(lines) == len(run.images.names) == 64
    x = run.pixels(np.arange(64))
    figures = metrics.reconstruction(0.5 * x, x)
    probabilities = Dimmed().predict(x).softmax(1)
    for row in range(64):
        line = lines[f"image{row}.png"]
        assert line["environment"] == f"camera{row % 2}" and line["class"] == f"grade{run.images.labels[row]}"
        assert float(line["psnr"]) == pytest.approx(figures["psnr"][row].item(), rel=1e-4)
        assert float(line["ssim"]) == pytest.approx(figures["ssim"][row].item(), rel=1e-3)
        assert line["answer"] == f"grade{probabilities[row].argmax()}"
        assert float(line["probability"]) == pytest.approx(probabilities[row].max().item(), abs=1e-4)
        assert line["right"] == str(bool(probabilities[row].argmax() == run.images.labels[row]))
    assert lines["image1.png"]["role"] == "left out of training" and lines["image0.png"]["role"] == "trained on"
    for picture in found["pictures"]:
        with Image.open(tmp_path / picture["file"]) as drawn:
            assert drawn.size[0] > 200
        assert picture["caption"].endswith(".")
    assert {"calibration.png", "confusion_camera1.png", "reconstructions_camera0.png"} <= {
        one["file"] for one in found["pictures"]
    }
    counts = np.array(found["environments"]["camera1"]["metrics"]["confusion"])
    expected = sum(line["right"] == "False" for line in lines.values() if line["environment"] == "camera1")
    assert counts.sum() - counts.trace() == expected


@pytest.mark.parametrize(("shift", "verdict"), [(0, "not told apart"), (60, "worse")])
def test_a_target_is_worse_only_if_it_is(tmp_path: Path, shift: int, verdict: str) -> None:
    found = errors.analyse(dimmed_run(shift, count=200), tmp_path, num_worst=1)
    accuracy = next(one for one in found["differences"] if one["figure"] == "accuracy")
    assert accuracy["environment"] == "camera1" and accuracy["verdict"] == verdict
    accuracies = [found["environments"][name]["metrics"]["accuracy"] for name in ("camera1", "camera0")]
    assert accuracy["difference"] == pytest.approx(accuracies[0] - accuracies[1], abs=1e-6)


def test_the_interval_of_a_difference_is_that_of_two_means() -> None:
    run = dimmed_run(0)
    generator = torch.Generator().manual_seed(0)
    parts = {
        "camera0": made({"mse": 1 + 2 * torch.randn(400, generator=generator)}),
        "camera1": made({"mse": 1.4 + torch.randn(900, generator=generator)}),
    }
    (found,) = errors.differences(run, parts)
    own, other = (parts[name].outputs.per_image["mse"].double() for name in ("camera1", "camera0"))
    width = 1.96 * (own.var() / len(own) + other.var() / len(other)).sqrt()
    assert found["difference"] == pytest.approx((own.mean() - other.mean()).item(), rel=1e-6)
    expected = [found["difference"] - width.item(), found["difference"] + width.item()]
    assert found["interval"] == pytest.approx(expected, abs=0.03)
    assert found["verdict"] == "worse"  # more error is worse


def test_without_a_target_there_is_no_difference(tmp_path: Path) -> None:
    run = dimmed_run(0)
    run.meta["sources"] = run.images.environments
    found = errors.analyse(run, tmp_path, num_worst=1)
    assert found["differences"] == [] and len(found["environments"]) == 2


def test_answers_that_are_not_finite_are_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = dimmed_run(0)
    run.algorithm.predict = lambda x: torch.full((len(x), 3), torch.nan)
    found = errors.analyse(run, tmp_path, num_worst=2)
    assert any("not finite" in note for note in found["notes"])
    assert {one["file"] for one in found["pictures"]} == {f"reconstructions_camera{one}.png" for one in (0, 1)}


def test_reconstructions_that_are_not_finite_are_said(tmp_path: Path) -> None:
    run = dimmed_run(0)
    run.algorithm.reconstruct = lambda x: torch.full_like(x, torch.nan)
    found = errors.analyse(run, tmp_path, num_worst=2)
    assert any("reconstructions of 40 of 40 images are not finite" in note for note in found["notes"])


def test_the_worst_masks_are_those_with_the_lowest_dice(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    masks = np.zeros((16, 32, 32), np.uint8)
    masks[:, 8:24, 8:24] = 1
    masks[0] = 0
    cls = ALGORITHMS["UNet"]
    algorithm = cls((3, 32, 32), 2, 1, {"width": 4, "depth": 2, "output": "softmax"})
    answered = torch.from_numpy(masks).long()
    for row in range(16):
        answered[row, :row] = 0  # more and more of the square is missed
    logits = torch.nn.functional.one_hot(answered, 2).movedim(-1, 1).float()
    images = in_memory.images(pixels, np.zeros(16, int), num_environments=1, masks=masks)
    run = in_memory.opened(algorithm, images)
    by_content = {tuple(pixels[row, 0, 0]): row for row in range(16)}

    def segment(x: Tensor) -> Tensor:
        return torch.stack([logits[by_content[tuple((255 * one[:, 0, 0]).round().int().tolist())]] for one in x])

    run.algorithm.segment = segment
    found = errors.analyse(run, tmp_path, images="all", num_worst=3)
    worst = found["environments"]["camera0"]["worst"]["mask"]
    assert [one["image"] for one in worst] == ["image15.png", "image14.png", "image13.png"]
    assert worst[0]["dice"] == pytest.approx(2 * 9 * 16 / (9 * 16 + 16 * 16))
    with (tmp_path / "errors.csv").open() as file:
        assert next(csv.DictReader(file))["dice"] == ""  # nothing is marked, nothing answered
    assert [one["file"] for one in found["pictures"]] == ["masks_camera0.png"]


def test_an_algorithm_without_answers_is_refused_with_what_works(tmp_path: Path) -> None:
    algorithm = testing.build(ALGORITHMS["CodePrior"])
    pixels = np.zeros((8, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="neither predicts classes nor .* `layers`"):
        errors.analyse(in_memory.opened(algorithm, in_memory.images(pixels, np.zeros(8, int))), tmp_path)
