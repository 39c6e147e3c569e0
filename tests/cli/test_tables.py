"""Commands on tables of images: labels that are missing, columns of other names, tables beside a flat folder."""

import json
import shutil
from pathlib import Path

import pytest
from refusal import refused

from domainbed import cli
from domainbed.cli.train import algorithm_needs
from domainbed.datasets.manifest import Manifest
from domainbed.errors import UserError
from domainbed.registry import ALGORITHMS

RUN = ["--steps", "2", "--checkpoint_freq", "2", "--recon_freq", "0", "batch_size=4", "--test_envs", "0"]
OUTPUT = Path("results/train_output/Manifest")


@pytest.fixture
def half(photographs: Path) -> Path:
    """A table of the photographs; the first three of camera1 have no label, each spelled in another way."""
    bare = dict(zip(sorted((photographs / "camera1").rglob("*.png")), ("nan", "NA", ""), strict=False))
    lines = ["path,environment,label"]
    for path in sorted(photographs.rglob("*.png")):
        label = bare.get(path, f"{path.parent.name}.0")
        lines.append(f"{path.relative_to(photographs.parent).as_posix()},{path.parts[-3]},{label}")
    (photographs.parent / "half.csv").write_text("\n".join(lines) + "\n")
    return photographs.parent / "half.csv"


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    status = cli.main([*map(str, arguments)])
    return status, *capfd.readouterr()


NAMED = (
    "3 of 72 images have no label",
    "row 26 (photographs/camera1/0/00.png: 'nan')",
    "row 28",
    "missing_labels=leave_out",
)


@pytest.mark.parametrize("algorithm", ["ERM", "VAE_DG", "CVAE"])
def test_an_algorithm_that_learns_labels_refuses_images_without(train, half: Path, algorithm: str) -> None:
    outcome = train("bad", "--dataset", "Manifest", "--data_dir", half, "--algorithm", algorithm, *RUN)
    refused(outcome, *NAMED)
    assert not (OUTPUT / "bad").exists()


def test_which_algorithms_refuse_images_without_a_label(half: Path) -> None:
    refusing = set()
    for name in ALGORITHMS:
        try:
            algorithm_needs(ALGORITHMS[name], Manifest(half, Manifest.HParams()))
        except UserError as error:
            if "images have no label" in str(error):
                refusing.add(name)
    assert refusing == {"ERM", "VAE_DG", "CVAE", "LatentClassifier", "CORAL", "DANN", "Fish"}


def test_images_without_a_label_are_left_out_on_request_and_counted(train, half: Path, capfd) -> None:
    arguments = ["--dataset", "Manifest", "--data_dir", half, "--algorithm", "ERM", *RUN]
    status, out, err = train("kept", *arguments, "missing_labels=leave_out")
    assert status == 0, err
    counted = "3 of 72 images have no label and are left out (missing_labels=leave_out): 3 of camera1"
    assert f"WARNING: {counted}" in out and counted in (OUTPUT / "kept/summary_full.md").read_text()
    assert "camera1      21 images" in out and "per class 0: 9, 2: 12" in out
    assert "kappa" in (OUTPUT / "kept/summary.md").read_text()  # 0.0 and 2.0 are grades, with an order

    evaluate = ["evaluate", OUTPUT / "kept", "--data_dir", half, "--device", "cpu"]
    refused(run(capfd, *evaluate, "missing_labels=keep"), *NAMED)
    status, out, _ = run(capfd, *evaluate, "missing_labels=leave_out", "--json")
    found = json.loads(out)
    assert found["environments"]["camera1"]["n"] == 21 and counted in " ".join(found["notes"])


@pytest.mark.parametrize("algorithm", ["AE", "VAE"])
def test_an_autoencoder_uses_images_without_a_label(train, half: Path, capfd, algorithm: str) -> None:
    arguments = ["--dataset", "Manifest", "--data_dir", half, "--algorithm", algorithm, *RUN[:4], "--recon_freq", "1"]
    status, out, err = train("all", *arguments, *RUN[6:])
    assert status == 0, err
    assert "24 images" in out and "per class 0: 9, 2: 12, no label: 3" in out
    rows = (OUTPUT / "all/images.csv").read_text().splitlines()
    classes = [row.split(",")[3] for row in rows if "camera1/0/" in row]
    assert classes == [""] * 3 + ["0"] * 9
    refused(
        train("bad", *arguments, *RUN[6:], "class_balanced=true"), "class_balanced", "some of these images have none"
    )
    assert train("all", "--resume")[0] == 0
    status, out, _ = run(capfd, "evaluate", OUTPUT / "all", "--data_dir", half, "--device", "cpu")
    assert status == 0 and "camera1: 24 images" in out
    for command, options in {"latents": ["--maps", "pca"], "traverse": [], "errors": []}.items():
        status, out, err = run(capfd, command, OUTPUT / "all", *options, "--device", "cpu", "--images", "all")
        assert status == 0, f"{command}: {err}"


def test_a_segmenter_needs_no_labels(train, photographs_with_masks: Path) -> None:
    lines = photographs_with_masks.read_text().splitlines()
    lines[1] = ",".join("nan" if place == 2 else cell for place, cell in enumerate(lines[1].split(",")))
    photographs_with_masks.write_text("\n".join(lines))
    start = ["--data_dir", photographs_with_masks, "--dataset", "Manifest", "--algorithm", "UNet", "depth=1", "width=4"]
    status, out, err = train("masks", *start, *RUN)
    assert status == 0, err
    assert "no label: 1" in out


def test_pack_reads_what_a_run_would_read(half: Path, capfd, tmp_path: Path) -> None:
    command = ["pack", "--dataset", "Manifest", "--data_dir", half, "image_size=16", f"cache_dir={tmp_path / 'cache'}"]
    refused(run(capfd, *command, "--algorithm", "ERM"), *NAMED)
    status, out, _ = run(capfd, *command, "--algorithm", "ERM", "missing_labels=leave_out")
    assert status == 0 and "69 images" in out and "WARNING: 3 of 72" in out
    status, out, _ = run(capfd, *command, "--algorithm", "AE")
    assert status == 0 and "72 images" in out


def test_explore_counts_images_without_a_label(half: Path, capfd, tmp_path: Path) -> None:
    status, out, err = run(capfd, "explore", half, "--out", tmp_path / "out")
    assert status == 0, err
    header = next(line for line in out.splitlines() if line.startswith("environment"))
    assert "no label" in header
    status, out, _ = run(capfd, "explore", half, "--out", tmp_path / "out", "missing_labels=leave_out", "--json")
    found = json.loads(out)
    assert found["environments"]["camera1"]["images"] == 21 and "3 of 72" in " ".join(found["notes"])


def test_a_table_without_labels_names_its_columns(train, half: Path, capfd) -> None:
    half.write_text(half.read_text().replace("label", "score", 1))
    arguments = ["--dataset", "Manifest", "--data_dir", half, "--algorithm", "ERM", *RUN]
    refused(train("bad", *arguments), "It has path, environment, score", "columns=label:<column>")
    status, _, err = train("named", *arguments, "columns=label:score", "missing_labels=leave_out")
    assert status == 0, err
    refused(run(capfd, "evaluate", OUTPUT / "named", "--data_dir", half.rename(half.with_name("other.csv"))), "score")


def test_columns_are_named_once_in_the_log(train, half: Path) -> None:
    half.write_text(half.read_text().replace("path,environment,label", "file,site,grade", 1))
    status, out, err = train(
        "log", "--dataset", "Manifest", "--data_dir", half, "--algorithm", "ERM", "missing_labels=leave_out", *RUN
    )
    assert status == 0, err
    assert out.count("half.csv: reads file as path, site as environment, grade as label") == 1


@pytest.fixture
def flat(photographs: Path) -> Path:
    """A flat folder of images beside its table, as competitions ship them: id_code,diagnosis and no suffixes."""
    (photographs.parent / "kaggle/train_images").mkdir(parents=True)
    lines = ["id_code,diagnosis"]
    for number, path in enumerate(sorted(photographs.rglob("*.png"))):
        shutil.move(path, photographs.parent / f"kaggle/train_images/{number:04x}.png")
        lines.append(f"{number:04x},{path.parent.name}")
    (photographs.parent / "kaggle/train.csv").write_text("\n".join(lines) + "\n")
    return photographs.parent / "kaggle"


@pytest.mark.parametrize("dataset", ["DR", "Folder"])
@pytest.mark.parametrize("below", ["", "train_images"])
def test_a_flat_folder_names_the_table_beside_it(train, flat: Path, dataset: str, below: str) -> None:
    outcome = train("bad", "--dataset", dataset, "--data_dir", flat / below, *RUN)
    refused(outcome, f"--dataset Manifest --data_dir {flat / 'train.csv'}")


def test_a_table_that_is_not_read_is_named(train, flat: Path, capfd, tmp_path: Path) -> None:
    """Read as <environment>/<class>/<image>, a flat folder has one class, called like the folder."""
    status, out, err = run(capfd, "explore", flat, "--out", tmp_path / "out")
    assert status == 0, err
    assert f"{flat / 'train.csv'} is not read" in out and f"--dataset Manifest --data_dir {flat / 'train.csv'}" in out


def test_the_table_of_a_flat_folder_says_all_that_it_needs_at_once(train, flat: Path, capfd, tmp_path: Path) -> None:
    arguments = ["--dataset", "Manifest", "--data_dir", flat, "--algorithm", "ERM", *RUN[:-2]]
    refused(train("bad", *arguments), "It has id_code, diagnosis", "environment=train", "root_dir=train_images")
    status, out, err = train("aptos", *arguments, "environment=aptos", "root_dir=train_images")
    assert status == 0, err
    assert "aptos      72 images" in out and "reads id_code as path, diagnosis as label" in out
    status, out, err = run(
        capfd, "explore", flat / "train.csv", "environment=aptos", "root_dir=train_images", "--out", tmp_path / "out"
    )
    assert status == 0 and "reads id_code as path" in out, err
    place = ["--data_dir", flat / "train.csv", "environment=new", "root_dir=train_images", "--device", "cpu"]
    status, out, err = run(capfd, "evaluate", OUTPUT / "aptos", *place)
    assert status == 0 and "new: 72 images" in out, err
