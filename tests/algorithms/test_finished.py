"""A finished run as a part of another: the right model is found, it never moves, and the run on top stays whole."""

import csv
import inspect
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import domainbed
from domainbed.algorithms import finished
from domainbed.algorithms.base import Algorithm, Encoder, Predictor, concatenate
from domainbed.algorithms.erm import ERM
from domainbed.errors import UserError
from domainbed.hparams import Field
from domainbed.registry import ALGORITHMS
from domainbed.testing import SHAPES, check_algorithm, minibatches, untrained_run

SHORT = ["--steps", "4", "--checkpoint_freq", "2", "batch_size=4"]


class Probe(Algorithm):
    """A linear classifier on the code of a finished run."""

    class HParams(Algorithm.HParams):
        """Options of Probe."""

        encoder_run: finished.RunPath = Field(None, description="finished run")
        runs = {"encoder_run": "ERM"}  # with BatchNorm in it

    needs_labels = True

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.encoder = finished.frozen(self.hparams, "encoder_run", input_shape, Encoder)
        width = self.encoder.algorithm.encode(torch.zeros(1, *input_shape)).shape[1]
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def predict(self, x):
        return self.head(self.encoder.algorithm.encode(x))

    def losses(self, minibatches):
        x, y = concatenate(minibatches)
        return {"loss": nn.functional.cross_entropy(self.predict(x).float(), y)}


PLUGIN = f"""
import torch
from torch import nn
from domainbed.algorithms import finished
from domainbed.algorithms.base import Algorithm, Encoder, concatenate
from domainbed.hparams import Field
from domainbed.registry import ALGORITHMS

@ALGORITHMS.register("Probe")
{inspect.getsource(Probe)}"""


def make_probe() -> Probe:
    return Probe(SHAPES[0], 3, 2, {"encoder_run": untrained_run(ERM, SHAPES[0]), "lr": 0.1})


def test_an_algorithm_on_a_finished_run_keeps_the_contract() -> None:
    check_algorithm(Probe)


def test_a_frozen_algorithm_never_moves_and_never_leaves_evaluation_mode() -> None:
    probe = make_probe()
    before = {key: value.clone() for key, value in probe.encoder.state_dict().items()}
    assert any("running_mean" in key for key in before)
    probe.train()
    for step in range(3):
        probe.update(minibatches(seed=step))
    assert all(torch.equal(value, before[key]) for key, value in probe.encoder.state_dict().items())
    assert not any(module.training for module in probe.encoder.algorithm.modules())
    assert probe.training and probe.head.training


def test_gradients_flow_through_a_frozen_algorithm_to_its_input() -> None:
    probe = make_probe()
    x = minibatches()[0][0].requires_grad_()
    probe.predict(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in probe.encoder.parameters())


def test_weights_of_the_run_are_used_and_not_those_of_a_new_model() -> None:
    run = untrained_run(ERM, SHAPES[0])
    torch.manual_seed(123)
    again, other = finished.build(run), finished.build(run.model_copy(update={"path": ""}))
    state = finished.freeze("encoder_run", run.path, SHAPES[0]).algorithm.state_dict()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items())
    assert not all(torch.equal(value, other.state_dict()[key]) for key, value in state.items())


def test_another_image_size_or_a_lacking_capability_says_what_to_do() -> None:
    run = untrained_run(ALGORITHMS["AE"], SHAPES[0])
    with pytest.raises(UserError, match=r"3 x 32 x 32.*1 x 28 x 28.*image_size"):
        finished.freeze("encoder_run", run, (1, 28, 28))
    with pytest.raises(UserError, match="run of AE, which predicts no classes. Name a run of an algorithm that does"):
        finished.freeze("judge_run", run, SHAPES[0], Predictor)


@pytest.fixture
def probe_file(tmp_path: Path) -> Path:
    path = tmp_path / "probe.py"
    path.write_text(PLUGIN)
    return path


def folder(name: str) -> Path:
    return Path("results/train_output/DR") / name


def test_each_target_is_built_on_the_model_that_left_it_out(train, photographs: Path, probe_file: Path) -> None:
    assert train("first", "--data_dir", photographs, "--algorithm", "AE", *SHORT)[0] == 0
    arguments = ["--data_dir", photographs, "--plugin", probe_file, "--algorithm", "Probe", *SHORT]
    status, out, err = train("probe", *arguments, f"encoder_run={folder('first')}", tiny=False)
    assert status == 2 and "Use the image_size" in err  # 224 px by default; the first run has 16
    small = ["image_size=16", "--precision", "float32"]
    status, out, err = train("probe", *arguments, *small, f"encoder_run={folder('first')}", tiny=False)
    assert (status, err) == (0, "")
    assert "left out here" not in out
    for target in ("camera0", "camera1", "camera2"):
        probe = domainbed.load(folder("probe"), target=target, plugin=[probe_file])
        first = domainbed.load(folder("first"), target=target)
        inside = probe.encoder.algorithm.state_dict()
        assert all(torch.equal(value, inside[key]) for key, value in first.state_dict().items())


def test_a_run_stays_whole_when_the_one_it_is_built_on_is_gone(train, photographs: Path, probe_file: Path) -> None:
    train("first", "--data_dir", photographs, "--test_envs", "0", "--algorithm", "AE", *SHORT)
    arguments = ["--data_dir", photographs, "--plugin", probe_file, "--algorithm", "Probe", "--test_envs", "0", *SHORT]
    arguments += ["image_size=16", "--precision", "float32", f"encoder_run={folder('first')}"]
    assert train("probe", *arguments, tiny=False)[0] == 0
    (folder("probe") / "te_camera0/done").unlink()
    shutil.rmtree(folder("first"))
    assert train("probe", "--resume", tiny=False)[0] == 0
    probe = domainbed.load(folder("probe"), plugin=[probe_file])
    assert probe.predict(torch.rand(2, 3, 16, 16)).shape == (2, 5)


def test_targets_that_have_not_begun_are_built_on_the_same_model_wherever_it_lies(
    train, photographs: Path, probe_file: Path
) -> None:
    start = ["--data_dir", photographs, "--test_envs", "0", "1"]
    for name, seed in (("first", 0), ("other", 1)):
        assert train(name, *start, "--algorithm", "AE", "--seed", seed, *SHORT)[0] == 0
    arguments = [*start, "--plugin", probe_file, "--algorithm", "Probe", *SHORT, "image_size=16"]
    assert train("probe", *arguments, "--precision", "float32", f"encoder_run={folder('first')}", tiny=False)[0] == 0
    shutil.rmtree(folder("probe") / "te_camera1")
    folder("first").rename(folder("moved"))
    status, _, err = train("probe", "--resume", tiny=False)
    assert status == 2 and "first is not there" in err
    status, _, err = train("probe", "--resume", f"encoder_run={folder('other')}", tiny=False)
    assert status == 2 and "is not the model that this run began with" in err
    assert train("probe", "--resume", f"encoder_run={folder('moved')}", tiny=False)[0] == 0
    assert (folder("probe") / "te_camera1/done").is_file()


def test_a_model_that_has_seen_the_target_is_announced(train, photographs: Path, probe_file: Path) -> None:
    train("first", "--data_dir", photographs, "--test_envs", "1", "--algorithm", "AE", *SHORT)
    arguments = ["--data_dir", photographs, "--plugin", probe_file, "--algorithm", "Probe", "--test_envs", "0", *SHORT]
    arguments += ["image_size=16", "--precision", "float32", "--trial_seed", "3", f"encoder_run={folder('first')}"]
    status, out, _ = train("probe", *arguments, tiny=False)
    assert status == 0
    assert "was trained on camera0, which is left out here" in out
    held_out = {}
    for name in ("first", "probe"):
        with open(folder(name) / "images.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        left_out = {"first": "camera1", "probe": "camera0"}[name]
        held_out[name] = {r["content"] for r in rows if r["environment"] == left_out or r["split"] != "train"}
    count = len(held_out["probe"] - held_out["first"])
    assert f"was trained on {count} of the {len(held_out['probe'])} images that are held out or left out here" in out
    assert "was trained on camera0" in (folder("probe") / "summary_full.md").read_text()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere is not there. Give the folder of a finished run"),
        ("file.txt", "file.txt is a file, and no .safetensors. Give the folder"),
        ("te_run", "te_run holds no model"),
        ("nowhere.safetensors", "there is no file"),
        ("empty", "holds no model .no te_<target> folder."),
        ("unfinished", "te_a is not finished: it holds no model.safetensors. Finish that run with --resume"),
        ("several", "left out a, b, each in turn, but not c.*encoder_run=.*/te_<target>"),
        ("seeds", "has the seeds 1, 2, but not 0"),
    ],
)
def test_a_run_that_can_not_be_used_says_what_to_do(tmp_path: Path, path: str, message: str) -> None:
    for made in ("empty", "unfinished/te_a", "several/te_a", "several/te_b", "seeds/seed_1/te_a", "seeds/seed_2/te_a"):
        (tmp_path / made).mkdir(parents=True)
    (tmp_path / "file.txt").write_text("no run")
    (tmp_path / "te_run").mkdir()
    (tmp_path / "te_run/config.yaml").write_text("")
    with pytest.raises(UserError, match=message):
        finished.find("encoder_run", tmp_path / path, "c", 0)


def test_an_empty_path_is_not_the_folder_that_one_stands_in() -> None:
    with pytest.raises(UserError, match="encoder_run is empty. Give the folder"):
        finished.find("encoder_run", "", "c", 0)


def test_a_key_without_a_run_names_the_command_that_makes_one() -> None:
    advice = r"encoder_run is not given.*python train_all.py first --algorithm ERM.*encoder_run="
    with pytest.raises(UserError, match=advice):
        finished.bind(Probe.HParams(), "camera0", 0)
    with pytest.raises(UserError, match=advice):
        Probe(SHAPES[0], 3, 2, {})
