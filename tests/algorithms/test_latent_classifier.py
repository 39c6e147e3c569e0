"""Three probes trained at once are three probes trained alone; what they read is fitted to the training images only."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor, nn

import domainbed
from domainbed.algorithms import finished, latent_classifier
from domainbed.algorithms.autoencoder import AE
from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.algorithms.code_prior import CodePrior
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.latent_classifier import LatentClassifier, components_beside, principal_components
from domainbed.algorithms.vae import VAE
from domainbed.algorithms.vqvae import VQVAE
from domainbed.errors import UserError
from domainbed.evaluator import computed_once
from domainbed.testing import NUM_CLASSES, SHAPES, build, check_algorithm, minibatches, untrained_run

SHAPE = (1, 17, 23)


def images(count: int = 60) -> Tensor:
    x = minibatches(SHAPE, seed=7, batch=count)[0][0]
    x = 0.8 * x + 0.2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))  # of full rank
    x[:, :, 0, 0] = 0.25  # a pixel that never changes
    return x


def batches_of(x: Tensor):
    return lambda: x.split(7)


def fitted(**hparams) -> LatentClassifier:
    algorithm = build(LatentClassifier, SHAPE, **hparams)
    assert isinstance(algorithm, LatentClassifier)
    algorithm.see_training_images(batches_of(images()))
    return algorithm


def test_an_mlp_on_features_keeps_the_contract() -> None:
    check_algorithm(LatentClassifier, layer="features", head="mlp", hidden_dims=[8])


@pytest.mark.parametrize("name", ["latent", "pixels", "pca"])
def test_each_probe_is_what_it_would_be_alone(name: str) -> None:
    algorithm = fitted(lr=1e-2)
    x, y = concatenate(minibatches(SHAPE))
    inputs = algorithm.inputs(x)[name].clone()
    alone = nn.Linear(inputs.shape[1], NUM_CLASSES)
    alone.load_state_dict(algorithm.heads[name][0].state_dict())
    optimizer = torch.optim.Adam(alone.parameters(), lr=1e-2)
    key = {"latent": "y_loss"}.get(name, f"y_loss_{name}")
    for _ in range(10):
        loss = nn.functional.cross_entropy(alone(inputs), y)
        assert algorithm.update(minibatches(SHAPE))[key].item() == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(algorithm.heads[name][0].weight, alone.weight, rtol=1e-3, atol=1e-5)


def test_the_answer_is_that_of_the_latent_and_the_loss_the_sum() -> None:
    algorithm = fitted()
    x, y = concatenate(minibatches(SHAPE))
    losses = algorithm.losses([(x, y)])
    assert losses["loss"].item() == pytest.approx(sum(losses[k].item() for k in losses if k != "loss"))
    code = algorithm.inputs.frozen.algorithm.encode(x)
    statistics = algorithm.inputs.standardise["latent"]
    torch.testing.assert_close(
        algorithm.predict(x), algorithm.heads["latent"]((code - statistics.mean) / statistics.scale)
    )
    assert list(algorithm.baselines(x)) == ["pixels", "pca"]
    x.requires_grad_()
    assert not any(value.requires_grad for value in algorithm.inputs(x).values())


def test_inputs_are_centred_and_scaled_as_a_whole_by_the_training_images() -> None:
    algorithm = fitted()
    for values in algorithm.inputs(images()).values():
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), rtol=0, atol=1e-4)
        assert values.square().mean().item() == pytest.approx(1, rel=1e-3)
    pixels = images().flatten(1)
    expected = (pixels - pixels.mean(0)) / pixels.var(0, correction=0).mean().sqrt()
    torch.testing.assert_close(algorithm.inputs(images())["pixels"], expected, rtol=0, atol=1e-4)


def test_a_corner_that_is_nearly_black_on_the_training_cameras_is_not_blown_up_on_another() -> None:
    def photographs(corner: float) -> Tensor:
        x = images()
        x[:, :, :6, :6] = corner + 1e-3 * torch.rand(len(x), SHAPE[0], 6, 6, generator=torch.Generator().manual_seed(1))
        return x

    algorithm = build(LatentClassifier, SHAPE)
    algorithm.see_training_images(batches_of(photographs(0.0)))
    for name, values in algorithm.inputs(photographs(0.9)).items():
        assert values.abs().max() < 20, name  # by its own deviation a pixel of the corner is at 3,000


def test_components_are_those_of_scikit_learn() -> None:
    algorithm, x = fitted(), images()
    k = 30
    oracle = PCA(k, svd_solver="full").fit(x.flatten(1).double().numpy())
    expected = oracle.transform(x.flatten(1).double().numpy())
    scale = algorithm.inputs.standardise["pca"].scale.item()
    found = algorithm.inputs(x)["pca"][:, :k].numpy() * scale
    assert algorithm.inputs.sizes == {"latent": 256, "pixels": 391, "pca": 256}
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=5e-3)


def test_there_are_as_many_components_as_the_code_has_values_but_no_more_than_a_gibibyte_of_them() -> None:
    assert components_beside(128, 3 * 32 * 32) == 128
    assert components_beside(4096, 3 * 32 * 32) == components_beside(4096, 3 * 40 * 40) == 3072
    assert components_beside(4096, 28 * 28) == 28 * 28
    assert components_beside(4096, 3 * 224 * 224) * 3 * 224 * 224 * 4 <= 2**30
    assert components_beside(2, 2**29) == 1


def test_components_of_large_images_explain_what_scikit_learn_s_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_classifier, "EXACT_VALUES", 0)
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, 201) ** -0.8
    rows = torch.randn(500, 200, generator=generator) * spectrum + 3  # without a gap between any two components
    k = 20
    components, variances = principal_components(lambda: rows.split(64), rows.mean(0), k)
    oracle = PCA(k, svd_solver="full").fit(rows.double().numpy())
    expected = torch.from_numpy(oracle.explained_variance_) * 499 / 500
    torch.testing.assert_close(variances, expected, rtol=2e-3, atol=0)
    torch.testing.assert_close(components.T @ components, torch.eye(k), rtol=0, atol=1e-5)
    again, _ = principal_components(lambda: rows.split(64), rows.mean(0), k)
    assert torch.equal(components, again)


def test_fewer_images_than_components_leave_the_rest_at_zero() -> None:
    algorithm = build(LatentClassifier, SHAPE)
    few = images()[:8]
    algorithm.see_training_images(batches_of(few))
    scores = algorithm.inputs(torch.rand(3, *SHAPE))["pca"]
    assert scores[:, :7].abs().min() > 0 and not scores[:, 7:].any()


def test_in_half_precision_pixels_and_components_are_as_exact_as_ever() -> None:
    algorithm = build(LatentClassifier, SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        algorithm.see_training_images(batches_of(images()))
        found = algorithm.inputs(images(5))
    for name, values in algorithm.inputs(images(5)).items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], values) == (name != "latent")  # the encoder computes in half precision
    exact = fitted().inputs(images(5))["pca"]
    torch.testing.assert_close(found["pca"].abs()[:, :30], exact.abs()[:, :30], rtol=0, atol=1e-4)


@pytest.mark.parametrize("cls", [AE, VAE, VQVAE, ERM])
def test_features_are_what_the_encoder_gives_flattened(cls: type[Algorithm]) -> None:
    algorithm = build(LatentClassifier, SHAPE, encoder_run=untrained_run(cls, SHAPE), layer="features")
    x = images()[:3]
    encoder = algorithm.inputs.frozen.algorithm.encoder
    with torch.no_grad():
        torch.testing.assert_close(algorithm.inputs(x)["latent"], encoder(x).flatten(1))
        size = encoder(x)[0].numel()
    assert algorithm.inputs.sizes == {"latent": size, "pixels": 17 * 23, "pca": min(size, 17 * 23)}


def test_a_batch_is_encoded_once_in_evaluation() -> None:
    algorithm = fitted().eval()
    calls = []
    algorithm.inputs.frozen.algorithm.encoder.register_forward_hook(lambda *_: calls.append(1))
    x, y = concatenate(minibatches(SHAPE))
    with torch.no_grad(), computed_once(algorithm):
        algorithm.losses([(x, y)]), algorithm.predict(x), algorithm.baselines(x)
    assert len(calls) == 1


class Pyramid(AE):
    """An autoencoder whose encoder gives several maps."""

    name = "Pyramid"

    def __init__(self, *args):
        super().__init__(*args)
        self.encoder.register_forward_hook(lambda _, __, output: [output])


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"encoder_run": None}, "encoder_run is not given, .* Train one first, such as .* --algorithm AE"),
        ({"encoder_run": "nowhere"}, "encoder_run: nowhere is not there"),
        ({"encoder_run": untrained_run(AE, SHAPES[0])}, "3 x 32 x 32 .*but those of this run are 1 x 17 x 23"),
    ],
)
def test_a_run_that_can_not_be_probed_says_what_to_do(hparams: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LatentClassifier(SHAPE, NUM_CLASSES, 2, hparams)


def test_an_algorithm_that_does_not_encode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained_run(CodePrior, SHAPE)
    with pytest.raises(UserError, match="run of CodePrior, which gives no code of an image. Name a run of"):
        LatentClassifier(SHAPE, NUM_CLASSES, 2, {"encoder_run": run})
    with pytest.raises(UserError, match="CodePrior, the algorithm of encoder_run, has no part `encoder`.*layer=latent"):
        LatentClassifier(SHAPE, NUM_CLASSES, 2, {"encoder_run": run, "layer": "features"})
    frozen = finished.Frozen(Pyramid(SHAPE, NUM_CLASSES, 2, {"latent_dim": 4}))
    monkeypatch.setattr(finished, "frozen", lambda *_: frozen)
    with pytest.raises(UserError, match="Pyramid, the algorithm of encoder_run"):
        LatentClassifier(SHAPE, NUM_CLASSES, 2, {"encoder_run": run, "layer": "features"})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["layer=conv3"], "layer = 'conv3' is not one of latent, features"),
        (["hidden_dims=[64]"], r"hidden_dims = \[64\], but head = linear has no hidden layer"),
        (["head=mlp"], "head = mlp needs the widths"),
        (["head=mlp", "hidden_dims=[0]"], "hidden_dims = .* a whole number of 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_one_message(train, photographs: Path, setting: list[str], message: str) -> None:
    arguments = ["--data_dir", photographs, "--algorithm", "LatentClassifier", "encoder_run=nowhere", *setting]
    status, _, err = train("probe", *arguments, "image_size=16", tiny=False)
    assert status == 2 and re.search(message, err), err


def test_a_run_from_the_encoder_to_the_report(train, photographs: Path) -> None:
    here = Path("results/train_output/DR")
    common = ["--data_dir", photographs, "--test_envs", "0", "--steps", "4", "--checkpoint_freq", "2", "batch_size=4"]
    common += ["image_size=16", "--precision", "float32", "--device", "cpu"]
    assert train("first", *common, "--algorithm", "AE", tiny=False)[0] == 0
    probe = ["--algorithm", "LatentClassifier", f"encoder_run={here / 'first'}", "lr=1e-2"]
    status, _, err = train("probe", *common, *probe, tiny=False)
    assert (status, err) == (0, "")
    full = (here / "probe/summary_full.md").read_text()
    assert "accuracy - pixels" in full and "accuracy - pca" in full

    folder = here / "probe/te_camera0"
    with (here / "probe/images.csv").open() as file:
        chosen = [row for row in csv.DictReader(file) if row["split"] == "train" and row["environment"] != "camera0"]
    pixels = np.stack([np.asarray(Image.open(photographs / row["image"]).resize((16, 16))) for row in chosen])
    algorithm = domainbed.load(here / "probe")
    mean = algorithm.inputs.standardise["pixels"].mean.reshape(3, 16, 16).mean((1, 2))
    assert mean.numpy() == pytest.approx(pixels.mean((0, 1, 2)) / 255, abs=0.01)  # resized by another program
    assert mean[0] > 0.5  # with camera0, which is darker, it would be 0.47

    records = [json.loads(line) for line in (here / "probe/results.jsonl").read_text().splitlines()]
    final = [r for r in records if r["kind"] == "final" and r["checkpoint"] == "best" and r["part"] == "whole"]
    metrics, intervals = final[0]["metrics"], final[0]["intervals"]
    for name in ("pixels", "pca"):
        difference = metrics["accuracy"] - metrics[f"accuracy_{name}"]
        assert metrics[f"accuracy_minus_{name}"] == pytest.approx(difference)
        low, high = intervals[f"accuracy_minus_{name}"]
        assert low <= difference <= high
    report = (folder / "classification/camera0_whole.txt").read_text()
    assert f"{metrics['accuracy']:.3f}" in report and (folder / "classification/camera0_whole.png").is_file()
    assert "### Baselines" in (here / "probe/summary_full.md").read_text()

    with pytest.MonkeyPatch.context() as patch:
        finish_step = Algorithm.finish_step

        def interrupt(self: Algorithm) -> None:
            finish_step(self)
            if self.step == 3:  # between two checkpoints
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(Algorithm, "finish_step", interrupt)
        assert train("stopped", *common, *probe, tiny=False)[0] == 130
    shutil.rmtree(here / "first")
    assert train("stopped", "--resume", tiny=False)[0] == 0
    for checkpoint in ("init", "last", "best"):
        straight, stopped = (domainbed.load(here / name, checkpoint=checkpoint) for name in ("probe", "stopped"))
        assert all(torch.equal(v, stopped.state_dict()[key]) for key, v in straight.state_dict().items())
