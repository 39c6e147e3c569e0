"""Does a given label show? The share of a CVAE's reconstructions that a judge reads as the label that was given.

    python benchmarks/cvae_labels.py <run> [<run> ...] --judge <run> --out results/cvae_labels

For finished runs of CVAE on one data set. Each image that no part was trained on (the publisher's test images, where
there are any, else held-out ones) is reconstructed under every label, from the mean of its posterior. The table has

    clean        share of the reconstructions under the image's own label that the judge reads as this
    perturbed    share of those under each of the other labels that it reads as the label given
    sampled      share of images drawn from the prior under a label that it reads as this
    PSNR         of the reconstructions under the image's own label, in dB

A decoder can learn to please the one judge that taught it. So `--judge` should name a classifier of another seed and
model than that of `judge_run`: each share is then given as the run's own judge and as the other one reads it.

`<out>/<run>.png` shows an image of each class (rows) under each label (columns).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from domainbed import checkpoint, metrics
from domainbed.algorithms import finished
from domainbed.algorithms.base import Predictor
from domainbed.cli import guarded
from domainbed.datasets import splits
from domainbed.errors import UserError
from domainbed.reconstructions import to_image
from domainbed.registry import DATASETS

#: Kinds of drawn images.
KINDS = ("clean", "perturbed", "sampled")
BATCH, TILE_PX, GAP_PX = 250, 56, 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of CVAE, on one data set")
    parser.add_argument("--judge", help="finished run of a classifier; default: each run's own judge")
    parser.add_argument("--num_images", type=int, default=1000, help="images to reconstruct under every label")
    parser.add_argument("--out", type=Path, default=Path("results/cvae_labels"), help="folder of the pictures")
    arguments = parser.parse_args()
    return guarded(lambda: compare(arguments.runs, arguments.judge, arguments.num_images, arguments.out))


def compare(runs: list[Path], judge_run: str | None, num_images: int, out: Path) -> int:
    """Write the picture of every run, and print the table; return the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for run in runs:
        cvae: Any
        cvae, config, meta = checkpoint.load_with_meta(run)
        if config["algorithm"] != "CVAE":
            raise UserError(f"{run} is a run of {config['algorithm']}. Name runs of CVAE")
        judges: dict[str, Any] = {} if cvae.judge is None else {"own": cvae.judge.algorithm}
        if judge_run is not None:
            judges["other"] = finished.freeze("--judge", judge_run, tuple(meta["input_shape"]), Predictor).algorithm
        if not judges:
            raise UserError(f"{run} has no judge of its own. Name a classifier: --judge <run>")
        x, y = unseen_images(config, num_images)
        with torch.no_grad():
            torch.manual_seed(0)
            rows.append(measure(cvae, judges, x, y))
            picture(cvae, x, y, meta["classes"]).save(out / f"{run.name}.png")
        rows[-1] |= {"run": run.name, "hparams": cvae.hparams}
    print(table(rows))
    read = ", ".join(f"{share:.1%} by {name}" for name, share in rows[-1]["images"].items())
    print(f"\n{len(y)} images, read as their own label: {read}. Pictures are in {out}")
    return 0


def unseen_images(config: dict[str, Any], num_images: int) -> tuple[Tensor, Tensor]:
    """Return (N, C, H, W) in [0, 1] and (N,) of a run's test images, or held-out ones where there are none."""
    cls = DATASETS[config["dataset"]]
    data_dir = config["data_dir"] and Path(config["data_dir"])
    dataset = cls(data_dir, cls.HParams(**config["datasets"][config["dataset"]]))
    assigned = splits.assign(dataset.samples, config["trial_seed"], config["holdout_fraction"])
    rows = np.flatnonzero(assigned == (splits.TEST if (assigned == splits.TEST).any() else splits.VAL))
    rows = np.random.default_rng(0).permutation(rows)[:num_images]
    pixels = np.stack([dataset.read(row) for row in rows.tolist()])  # (N, H, W, C)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(dataset.labels[rows])


def measure(cvae: Any, judges: dict[str, Any], x: Tensor, y: Tensor) -> dict[str, Any]:
    """Return PSNR, and by kind of image and judge the share that is read as the label that it was given."""
    num_classes = cvae.num_classes
    read = {kind: dict.fromkeys(judges, 0) for kind in ("images", *KINDS)}
    psnr = []
    for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        for shift in range(num_classes):
            given = (labels + shift) % num_classes
            output = cvae.reconstruct(images, given)
            count(judges, output, given, read["perturbed" if shift else "clean"])
            if shift == 0:
                psnr.append(metrics.reconstruction(output, images)["psnr"])
        count(judges, images, labels, read["images"])
        count(judges, cvae.sample(len(labels), labels), labels, read["sampled"])
    sizes = dict.fromkeys(read, len(y)) | {"perturbed": len(y) * (num_classes - 1)}
    shares = {kind: {name: n / sizes[kind] for name, n in found.items()} for kind, found in read.items()}
    return {"psnr": torch.cat(psnr).mean().item(), **shares}


def count(judges: dict[str, Any], images: Tensor, given: Tensor, found: dict[str, int]) -> None:
    """Add the number of images that each judge reads as the label given."""
    for name, judge in judges.items():
        found[name] += int((judge.predict(images).argmax(1) == given).sum())


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of all runs in Markdown."""
    lines = ["| run | conditioning | lambda | clean | perturbed | sampled | PSNR |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        shares = [" / ".join(f"{share:.1%}" for share in row[kind].values()) for kind in KINDS]
        h = row["hparams"]
        lines.append(
            f"| {row['run']} | {h.conditioning} | {h.judge_weight:g} | {' | '.join(shares)} | {row['psnr']:.2f} |"
        )
    return "\n".join(lines)


def picture(cvae: Any, x: Tensor, y: Tensor, classes: list[str]) -> Image.Image:
    """Draw the first image of each class, and beside it its reconstruction under every label."""
    font = ImageFont.load_default(13)
    step, left, top = TILE_PX + GAP_PX, 72, 44
    canvas = Image.new("RGB", (left + step * (len(classes) + 1), top + step * len(classes)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text(
        (GAP_PX, GAP_PX), "rows: an image of each class; columns: the label it was given", fill="black", font=font
    )
    for column, name in enumerate(["image", *classes]):
        draw.text((left + column * step, 24), name[: TILE_PX // 7], fill="black", font=font)
    for row, name in enumerate(classes):
        draw.text((GAP_PX, top + row * step + TILE_PX // 2 - 8), name[:9], fill="black", font=font)
        chosen = x[y == row][:1]
        if not len(chosen):
            continue
        outputs = [chosen[0], *cvae.reconstruct(chosen.expand(len(classes), -1, -1, -1), torch.arange(len(classes)))]
        for column, tile in enumerate(outputs):
            canvas.paste(to_image(tile, (TILE_PX, TILE_PX)), (left + column * step, top + row * step))
    return canvas


if __name__ == "__main__":
    sys.exit(main())
