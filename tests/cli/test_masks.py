"""Whole runs of an algorithm that learns masks: what they leave and say, and what a user may get wrong."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from refusal import refused

import domainbed
from domainbed import cli
from domainbed.analysis.opened import open_run
from domainbed.errors import UserError

PLAIN = ["model=null", "pretrained=auto", "width=4", "depth=2", "--algorithm", "UNet"]
SHORT = ["--steps", "4", "--checkpoint_freq", "2", "--recon_freq", "2", "batch_size=4", "--test_envs", "0"]
RUN = [*PLAIN, *SHORT, "--dataset", "Manifest"]


def folder(name: str, dataset: str = "Manifest") -> Path:
    return Path("results/train_output") / dataset / name


def test_what_a_run_on_masks_leaves(train, photographs_with_masks: Path) -> None:
    status, out, err = train("whole", "--data_dir", photographs_with_masks, *RUN)
    assert (status, err) == (0, "")
    assert "masks of disc, red; they may overlap" in out and "selected by dice_dataset" in out
    config = yaml.safe_load((folder("whole") / "config.yaml").read_text())
    chosen = config["algorithms"]["UNet"]
    assert (chosen["output"], chosen["pretrained"], chosen["model"]) == ("sigmoid", "false", None)
    assert config["select_by"] == "dice_dataset"
    records = [json.loads(line) for line in (folder("whole") / "results.jsonl").read_text().splitlines()]
    final = {r["protocol"]: r["metrics"] for r in records if r["kind"] == "final" and r["part"] == "whole"}
    assert set(final) == {"training-domain validation", "last", "oracle (test-domain validation)", "majority mask"}
    assert len(final["last"]["dice_per_class"]) == 2 and "accuracy" not in final["last"]
    assert final["majority mask"]["dice_per_class"][0] == 0.0  # the disc covers less than half of the pixels
    summary = (folder("whole") / "summary_full.md").read_text()
    assert "Dice (all pixels)" in summary and "majority mask" in summary and "means over disc, red" in summary
    for step in ("recon_step_0", "recon_step_2", "recon_final"):
        names = {path.name for path in (folder("whole") / step / "te_camera0").iterdir()}
        assert names == {f"camera{i}_{split}.png" for i in range(3) for split in ("train", "val")}
    assert (folder("whole") / "images.csv").read_text().splitlines()[0].endswith(",masks")


def test_loading_gives_the_masks_of_the_run(train, photographs_with_masks: Path) -> None:
    train("loaded", "--data_dir", photographs_with_masks, *RUN)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = domainbed.load(folder("loaded"))
    target = json.loads((folder("loaded") / "te_camera0/checkpoints/best/checkpoint.json").read_text())
    exported = domainbed.load(folder("loaded") / "te_camera0/model.safetensors")
    assert target["classes"] == ["disc", "red"] and target["majority_mask"] in (0, 2)  # red, or neither
    assert whole.hparams.output == "sigmoid" and whole.segment(x).shape == (2, 2, 16, 16)
    assert torch.equal(whole.segment(x), exported.segment(x))


def test_a_run_whose_masks_are_in_another_order_now_is_not_looked_at(train, photographs_with_masks: Path) -> None:
    train("turned", "--data_dir", photographs_with_masks, *RUN)
    path = folder("turned") / "te_camera0/checkpoints/best/checkpoint.json"
    path.write_text(path.read_text().replace('"disc",', '"red",').replace('"red"\n', '"disc"\n'))
    assert json.loads(path.read_text())["classes"] == ["red", "disc"]
    with pytest.raises(UserError, match="has learnt the classes red, disc, in this order, but .* now are disc, red"):
        open_run(folder("turned"), device="cpu")


def test_classes_that_exclude_each_other_meet_a_softmax(train, photographs_with_masks: Path) -> None:
    table = photographs_with_masks
    lines = [line.split(",") for line in table.read_text().splitlines()]
    for cells in lines[1:]:
        mask = np.array(Image.open(table.parent / cells[3])).astype(np.uint8)
        mask[:4] = 2
        mask[-1] = 255
        Image.fromarray(mask).save(table.parent / cells[3])
    table.write_text("\n".join(",".join(cells[:4]) for cells in lines).replace("mask_disc", "mask") + "\n")
    outcome = train("classes", "--data_dir", table, *RUN, "mask_classes=retina,disc,top", "loss=ce+dice")
    assert outcome[0] == 0 and "masks of the classes retina, disc, top; retina is the background" in outcome[1]
    assert domainbed.load(folder("classes")).hparams.output == "softmax"
    assert "retina (background)" in (folder("classes") / "summary_full.md").read_text()
    refused(train("bad", "--data_dir", table, *RUN, "mask_classes=a,b"), "holds the value 2", "255 is a pixel without")


def test_a_picture_shows_each_mask_in_its_colour(train, photographs_with_masks: Path) -> None:
    from domainbed.reconstructions import COLOURS, OPACITY

    train("seen", "--data_dir", photographs_with_masks, *RUN, "mask_kinds=disc", "image_size=20")
    picture = np.array(Image.open(next((folder("seen") / "recon_final").rglob("*_train.png"))))
    images, masks = (
        picture[44:144, 118:],
        picture[148:248, 118:],
    )  # the first two rows of tiles, of 20 x 5 pixels a side
    painted = (images != masks).any(2)
    assert painted.any()
    expected = OPACITY * np.array(COLOURS[0]) + (1 - OPACITY) * images[painted]
    assert np.abs(masks[painted] - expected).max() <= 1


def test_a_run_judges_new_masks(train, photographs_with_masks: Path, capfd) -> None:
    train("judge", "--data_dir", photographs_with_masks, *RUN)
    capfd.readouterr()
    command = ["evaluate", str(folder("judge")), "--data_dir", str(photographs_with_masks)]
    assert cli.main(command) == 0
    out = capfd.readouterr().out
    assert "Dice (all pixels)" in out and "majority mask 0." in out
    assert cli.main([*command, "mask_kinds=red"]) == 2
    assert "learnt masks of disc, red, but those of these images are of red" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mask_kinds=disk"], ["there are no masks of 'disk'", "did you mean 'disc'"]),
        (["output=softmax"], ["output = softmax does not fit masks of disc, red", "use output=sigmoid"]),
        (["--select_by", "kappa"], ["kappa is a figure of labels", "dice_dataset"]),
        (["mask_classes=a,b"], ["mask_classes names the values of a column mask", "has mask_disc, mask_red"]),
        (["pretrained=x.pth"], ["pretrained is about a timm encoder, but model = null"]),
        (["loss=focal"], ["loss = 'focal' is not one of ce, dice, ce+dice"]),
    ],
)
def test_a_wrong_value(train, photographs_with_masks: Path, arguments: list[str], says: list[str]) -> None:
    kept = [one for one in RUN if one.partition("=")[0] not in [two.partition("=")[0] for two in arguments]]
    refused(train("bad", "--data_dir", photographs_with_masks, *kept, *arguments), *says)
    assert not folder("bad").joinpath("config.yaml").exists()


def without_discs(table: Path, *cameras: str) -> None:
    """Make the discs' masks of these cameras background alone."""
    for number, line in enumerate(table.read_text().splitlines()[1:]):
        if line.split(",")[1] in cameras:
            Image.fromarray(np.zeros((20, 20), bool)).save(table.parent / f"masks/{number}_disc.png")


def test_environments_with_nothing_to_find_do_not_count_for_the_choice(train, photographs_with_masks: Path) -> None:
    without_discs(photographs_with_masks, "camera0", "camera1")
    status, out, _ = train("some", "--data_dir", photographs_with_masks, *RUN, "mask_kinds=disc")
    assert status == 0 and "no best" not in out
    needed = "dice_dataset needs held-out masks with a pixel that is not background"
    assert f"target camera0, best: {needed}, and camera1 has none: left out of the choice" in out
    assert f"target camera0 has no oracle checkpoint: select_by={needed}" in out
    assert {path.name for path in (folder("some") / "te_camera0/checkpoints").iterdir()} == {"init", "best", "last"}
    records = [json.loads(line) for line in (folder("some") / "results.jsonl").read_text().splitlines()]
    of_camera2 = [
        one["metrics"]["dice_dataset"] for one in records if one["kind"] == "eval" and one["environment"] == "camera2"
    ]
    meta = json.loads((folder("some") / "te_camera0/checkpoints/best/checkpoint.json").read_text())
    assert meta["best"] == max(of_camera2)


def test_sources_with_nothing_to_find(train, photographs_with_masks: Path) -> None:
    without_discs(photographs_with_masks, "camera1", "camera2")
    outcome = train("none", "--data_dir", photographs_with_masks, *RUN, "mask_kinds=disc")
    refused(outcome, "camera1 has none, camera2 has none. Use select_by=total_loss or hold out more images")


def test_the_study_of_unets_leaves_out_environments_with_nothing_to_find() -> None:
    average = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/unet_factors.py"))["average"]

    def records(**figures: list[float | None]) -> list[dict]:
        """Figures of seeds 0, 1, … in each environment."""
        common = {"part": "test", "protocol": "p"}
        return [
            common | {"seed": seed, "environment": environment, "metrics": {"dice_image": value}}
            for environment, values in figures.items()
            for seed, value in enumerate(values)
        ]

    found = records(a=[0.5, 0.25], b=[1.0, 0.75], c=[None, 0.0])  # seed 1 has invented pixels in c
    assert [average(found, "test", "p", "dice_image", seed) for seed in (0, 1)] == [0.75, 0.5]
    with pytest.raises(UserError, match="the masks of a, c mark nothing"):
        average(records(a=[None], c=[None]), "test", "p", "dice_image", 0)
    with pytest.raises(UserError, match="seed 7, is defined in no environment's part 'test': there is no such record"):
        average(records(a=[0.5]), "test", "p", "dice_image", 7)


def test_data_without_masks(train, photographs: Path) -> None:
    refused(train("bad", "--data_dir", photographs, *PLAIN, *SHORT), "DR has no masks there", "--algorithm AE")


def test_figures_of_masks_are_not_there_without_masks(train, photographs: Path) -> None:
    outcome = train("bad", "--data_dir", photographs, *SHORT, "--select_by", "dice_dataset")
    refused(outcome, "dice_dataset needs an algorithm that learns masks", "kappa")


def test_masks_that_changed_since_the_run_began(train, photographs_with_masks: Path) -> None:
    train("kept", "--data_dir", photographs_with_masks, *RUN)
    next(folder("kept").glob("te_*/done")).unlink()
    mask = photographs_with_masks.parent / "masks/0_disc.png"
    Image.fromarray(~np.array(Image.open(mask))).save(mask)
    refused(train("kept", "--resume"), "not those that this run began with")


def test_a_segmenter_beats_the_mask_that_marks_nothing(train) -> None:
    """The shipped quick configuration, shortened: one kind, two cameras' worth of drawings."""
    arguments = [*PLAIN, "--dataset", "SyntheticFundus", "mask_kinds=disc", "image_size=32", "num_images=8"]
    arguments += ["--test_envs", "0", "--steps", "60", "--checkpoint_freq", "60", "--recon_freq", "0", "batch_size=4"]
    assert train("learns", *arguments, "loss=ce+dice", "lr=0.01", "width=8", tiny=True)[0] == 0
    summary = json.loads((folder("learns", "SyntheticFundus") / "summary.json").read_text())
    dice = {r["protocol"]: r["metrics"]["dice_dataset"] for r in summary["records"] if r["part"] == "whole"}
    assert dice["majority mask"] == 0.0 and dice["last"] > 0.2
