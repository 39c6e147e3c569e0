"""What is found in a folder of drawn eyes of two cameras in which the faults are known."""

import math
import shutil
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainbed.analysis import explore
from domainbed.datasets import fundus_drawing
from domainbed.datasets.base import Sample
from domainbed.datasets.dr import DR
from domainbed.datasets.folder import Folder
from domainbed.datasets.manifest import Manifest
from domainbed.datasets.synthetic_fundus import SyntheticFundus
from domainbed.errors import UserError

SIDE = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cameras `round` and `hand`: 5 eyes of grade 0 and 3 of grade 2 each, then what is wrong with some of them."""
    root = tmp_path_factory.mktemp("eyes")
    for name, camera in (("round", 1), ("hand", 3)):
        for index in range(8):
            path = root / name / ("0" if index < 5 else "2") / f"p{index}_L.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(fundus_drawing.draw(0, camera, index, SIDE).image).save(path)
    shutil.copy(root / "round/0/p1_L.png", root / "round/2/copy.png")  # the same eye with another grade
    Image.open(root / "round/0/p2_L.png").save(root / "hand/0/p9_R.jpg", quality=60)  # and in the other environment
    Image.open(root / "hand/0/p0_L.png").convert("L").save(root / "hand/0/grey.png")
    Image.open(root / "hand/0/p3_L.png").resize((SIDE, 90)).save(root / "hand/2/p3_R.png")
    (root / "hand/2/broken.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    return explore.analyse(DR(folder, DR.HParams()), out, num_workers=2) | {"out": out}


def test_images_are_counted_by_class_size_and_format(found: dict[str, Any]) -> None:
    assert found["images"] == 20 and found["notes"] == []
    one, other = found["environments"]["round"], found["environments"]["hand"]
    assert one["per_class"] == {"no_dr": 5, "mild": 0, "moderate": 4, "severe": 0, "proliferative": 0}
    assert other["per_class"]["no_dr"] == 7 and other["per_class"]["moderate"] == 4
    assert one["formats"] == {"PNG": 9} and other["formats"] == {"PNG": 10, "JPEG": 1}
    assert other["sizes"] == [[SIDE, SIDE, 10], [SIDE, 90, 1]]
    assert one["images"] == 9 and one["groups"] == 9  # `copy` tells no patient
    assert other["images"] == 11 and other["groups"] == 10  # both eyes of p3


def test_what_can_not_be_read_is_listed_with_its_reason(found: dict[str, Any]) -> None:
    ((name, reason),) = found["unreadable"]
    assert name == "hand/2/broken.jpg" and reason.startswith("not a JPEG")


def test_faults_are_counted_where_they_are(found: dict[str, Any]) -> None:
    one, other = found["environments"]["round"]["checks"], found["environments"]["hand"]["checks"]
    assert (one["grey"], other["grey"]) == (0, 1)
    assert (one["squashed"], other["squashed"]) == (0, 1)
    assert (one["cut"], other["cut"]) == (0, 10)  # by the gate of the one camera; not the eye of the other


def test_duplicates_are_named_with_their_classes_and_where_they_leak(found: dict[str, Any]) -> None:
    groups = {tuple(sorted(group["files"])): group for group in found["duplicates"]}
    exact = groups["round/0/p1_L.png", "round/2/copy.png"]
    assert exact["exact"] and exact["classes_differ"] and sorted(exact["classes"]) == ["moderate", "no_dr"]
    near = groups["hand/0/p9_R.jpg", "round/0/p2_L.png"]
    assert not near["exact"] and not near["classes_differ"] and near["correlation"] > 0.96
    (leak,) = found["leaks"]
    assert "hand and in round" in leak and "p2_L" in leak
    assert ("hand/0/grey.png", "hand/0/p0_L.png") in groups  # without its colour


def test_pictures_are_there_and_are_explained(found: dict[str, Any]) -> None:
    assert {picture["file"] for picture in found["pictures"]} == {path.name for path in found["out"].glob("*.png")}
    by_file = {picture["file"]: picture["caption"] for picture in found["pictures"]}
    assert {
        "examples.png",
        "classes.png",
        "light.png",
        "check_cut.png",
        "duplicates.png",
        "shift.png",
    } <= by_file.keys()
    assert "hand 10 of 11" in by_file["check_cut.png"] and "round 0 of 9" in by_file["check_cut.png"]
    assert "check_doubled.png" not in by_file


def test_classes_differ_by_half_the_sum_of_differences(found: dict[str, Any]) -> None:
    assert found["class_distance"]["distance"] == pytest.approx(7 / 11 - 5 / 9)


def test_drawn_images_have_no_files_and_a_subset_is_drawn_once(tmp_path: Path) -> None:
    dataset = SyntheticFundus(None, SyntheticFundus.HParams(num_images=6, image_size=64, preprocess=["gray_ntsc"]))
    one, again = (explore.analyse(dataset, tmp_path, max_images=2) for _ in range(2))
    assert one == again and one["images"] == 8
    assert any("8 of 24 images" in note for note in one["notes"]) and any("no files" in note for note in one["notes"])
    assert all(environment["formats"] == {} for environment in one["environments"].values())
    assert all(environment["checks"]["grey"] == 0 for environment in one["environments"].values())  # as stored
    assert dataset.preprocess.names == ("gray_ntsc",)


@pytest.mark.parametrize("dataset", [DR, Manifest])
def test_files_are_looked_at_as_they_are_whatever_a_run_does_to_them(dataset: type, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(4):
        path = tmp_path / "eyes/camera" / str(index % 2) / f"p{index}_L.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(60, 200, (60, 90, 3), np.uint8)).save(path)
    rows = [f"{path.relative_to(tmp_path)},camera,{path.parent.name}" for path in sorted(tmp_path.rglob("*.png"))]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,environment,label", *rows]))
    settings = dataset.HParams(preprocess=["gray_ntsc", "resize"], image_size=32)
    where = tmp_path / "eyes" if dataset is DR else table
    found = explore.analyse(dataset(where, settings), tmp_path / "out")["environments"]["camera"]
    assert found["checks"]["grey"] == 0 and found["checks"]["squashed"] == 0


def test_a_folder_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "0").mkdir(parents=True)
    (tmp_path / "a" / "0" / "x.png").write_bytes(b"?")
    with pytest.raises(UserError, match="none of 1 images can be read, such as a/0/x.png: not a JPEG"):
        explore.analyse(DR(tmp_path, DR.HParams()), tmp_path)


def test_something_round_now_and_then_is_no_retina(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(20):
        noise = Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        image = noise if index else Image.fromarray(fundus_drawing.draw(0, 1, 0, 64).image)
        (tmp_path / "a" / "x").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "a" / "x" / f"{index}.png")
    found = explore.analyse(Folder(tmp_path, Folder.HParams()), tmp_path / "out")
    assert found["environments"]["a"]["retina"] == 0
    assert [note for note in found["notes"] if "no photographs of retinas" in note]
    assert found["shift"] is None


def table(**given: np.ndarray) -> dict[str, np.ndarray]:
    (count,) = {len(values) for values in given.values()}
    names = [name for members in explore.FIGURE_SETS.values() for name in members]
    return {name: np.full(count, math.nan) for name in names} | given


def patients(environment: np.ndarray, groups: np.ndarray) -> list[Sample]:
    return [Sample(int(e), str(i), 0, str(group)) for i, (e, group) in enumerate(zip(environment, groups, strict=True))]


def test_environments_are_told_as_well_as_the_best_rule_tells_them() -> None:
    generator = np.random.default_rng(0)
    environment = np.repeat([0, 1], 1000)
    figures = table(red=generator.normal(environment * 1.5), sharpness=generator.normal(size=2000))
    shift = explore.tell_apart(figures, environment, patients(environment, np.arange(2000)), ["a", "b"])
    assert shift is not None and shift["chance"] == 0.5
    told = shift["told_by"]
    assert told.keys() == {"sharpness", "colour and light", "all figures"}  # nothing is known of size and frame
    best = NormalDist().cdf(1.5 / 2)  # two normal distributions of variance 1, a distance of 1.5 apart
    assert told["colour and light"]["balanced_accuracy"] == pytest.approx(best, abs=0.02)
    assert told["colour and light"]["figures"] == ["red"]
    assert told["sharpness"]["balanced_accuracy"] == pytest.approx(0.5, abs=0.04)
    assert list(shift["auc"]) == ["red", "sharpness"]
    assert shift["auc"]["red"]["auc"] == pytest.approx(NormalDist().cdf(1.5 / math.sqrt(2)), abs=0.02)
    assert (shift["auc"]["red"]["environment"], shift["auc"]["red"]["is"]) == ("a", "lower")


def test_a_patient_is_not_told_by_another_image_of_the_same_patient() -> None:
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(12), 30)
    environment = groups % 2
    own = generator.normal(size=(12, 8))[groups]  # 8 figures that are a patient's and of no environment
    names = explore.FIGURE_SETS["colour and light"]
    figures = table(**{name: own[:, i] for i, name in enumerate(names)})
    together = explore.tell_apart(figures, environment, patients(environment, groups), ["a", "b"])
    assert together is not None and together["told_by"]["colour and light"]["balanced_accuracy"] < 0.8
    as_if_alone = explore.tell_apart(figures, environment, patients(environment, np.arange(360)), ["a", "b"])
    assert as_if_alone is not None and as_if_alone["told_by"]["colour and light"]["balanced_accuracy"] > 0.95


def test_one_environment_is_told_from_none() -> None:
    environment = np.zeros(4, int)
    assert (
        explore.tell_apart(table(red=np.arange(4.0)), environment, patients(environment, np.arange(4)), ["a"]) is None
    )


def test_environments_of_equal_colours_are_not_told_apart(tmp_path: Path) -> None:
    for environment in "ab":
        (tmp_path / "same" / environment / "x").mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / "same" / environment / "x" / f"{index}.png")
    found = explore.analyse(Folder(tmp_path / "same", Folder.HParams()), tmp_path)
    assert found["shift"] is None and "shift.png" not in {one["file"] for one in found["pictures"]}
