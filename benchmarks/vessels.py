"""Does a code keep vessels? Squared error inside the vessel mask, relative to a blurred copy of the image.

    python benchmarks/vessels.py                                     SyntheticFundus: `configs/vessels.yaml`
    python benchmarks/vessels.py --data_dir DR/ --vessels CHASE_DB1/    real photographs: `configs/vessels_dr.yaml`
    python benchmarks/vessels.py --quick                             checks within two minutes that everything works

Trains the same algorithm from the same seed for the same number of steps with each kind of code, and compares

    vector       latent=vector: latent_dim numbers an image
    published    SyntheticFundus only: VAE_DG's published decoder, which ends at 39 pixels and is stretched
    map          latent=map: latent_channels numbers for each patch
    laplace, gradient, ms_ssim   with --codes: the map with that likelihood, or that term of structure beside sigma-VAE
    components   principal components of the same patches, as many numbers: what a linear code of this size keeps

by

    sum over vessel pixels of (reconstruction - image)^2 / sum over vessel pixels of (blur(image) - image)^2

with a Gaussian blur of sigma 4 px at 224 px, scaled with the size. 0 is perfect; at 1 a reconstruction is as wrong
about vessels as that blur, which shows none. On SyntheticFundus it is given for images that were trained on, for
held-out images of the same cameras and for the camera left out; with --vessels for photographs of a camera that no run
has seen, with a 95 % interval of the paired difference between map and components over patients.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import domainbed
from domainbed.algorithms.base import Posterior
from domainbed.analysis.opened import dataset_of
from domainbed.cli.train import main as train
from domainbed.datasets import splits
from domainbed.datasets.base import Dataset
from domainbed.datasets.fundus_segmentation import FundusSegmentation
from domainbed.objectives import gaussian

SIGMA_PX_AT_224 = 4.0
NUM_RESAMPLES = 10_000
CONFIGS = Path(__file__).parents[1] / "configs"
QUICK = ["image_size=48", "--steps", "4", "batch_size=4", "--subset_size", "10", "latent_channels=4"]
DRAWN = {"vector": [], "published": ["decoder=published"], "map": ["latent=map", "likelihood=sigma_vae"]}
REAL = {
    "map": ["latent=map"],
    "vector": ["latent=vector"],
    "laplace": ["latent=map", "likelihood=laplace", "sigma=0.01"],
    "gradient": ["latent=map", "structure=gradient", "structure_weight=1000000"],
    "ms_ssim": ["latent=map", "structure=ms_ssim", "structure_weight=1000000"],
}
Reconstruct = Callable[[np.ndarray], np.ndarray]  # (H, W, C) to (H, W, C), both float32 in [0, 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data_dir", help="photographs to train on, <camera>/<grade>/<image>; default: SyntheticFundus"
    )
    parser.add_argument("--vessels", help="photographs with vessel masks of a camera that is not in data_dir")
    parser.add_argument(
        "--codes",
        nargs="+",
        default=["map", "vector"],
        choices=REAL,
        help="of real photographs; map is always among them",
    )
    parser.add_argument("--quick", action="store_true", help="end within two minutes; the figures mean nothing")
    parser.add_argument("--results_dir", default="results", help="runs of that name that are there already go on")
    arguments = parser.parse_args()
    if bool(arguments.data_dir) != bool(arguments.vessels):
        parser.error("--data_dir and --vessels belong together: photographs to train on, and others with vessel masks")
    is_real = bool(arguments.data_dir)
    rows: dict[str, dict[str, Any]] = {}
    codes = {code: REAL[code] for code in {"map": None} | dict.fromkeys(arguments.codes)} if is_real else DRAWN
    for code, settings in codes.items():
        name = f"vessels_{code}" + ("_quick" if arguments.quick else "")
        folder = Path(arguments.results_dir) / "train_output" / ("DR" if is_real else "SyntheticFundus") / name
        command = [name, "--results_dir", arguments.results_dir]
        if (folder / "config.yaml").exists():
            command.append("--resume")
        else:
            command += [str(CONFIGS / ("vessels_dr.yaml" if is_real else "vessels.yaml")), *settings]
            command += ["--data_dir", arguments.data_dir] if is_real else []
            command += QUICK if arguments.quick else []
            command += ["num_images=10", "model=test_resnet"] if arguments.quick and not is_real else []
        start = time.monotonic()
        if status := train("train_all", command):
            return status
        seconds = time.monotonic() - start
        algorithm: Any = domainbed.load(folder, checkpoint="last")
        config = domainbed.checkpoint.read_config(folder)
        meta = domainbed.checkpoint.read_meta(domainbed.checkpoint.find_checkpoint(folder, None, None, "last"))
        training = dataset_of(config)
        parts = parts_of_run(training, config, meta)
        if is_real:
            options = {"image_size": config["datasets"]["DR"]["image_size"]}
            options["preprocess"] = config["datasets"]["DR"]["preprocess"]
            photographs = FundusSegmentation(Path(arguments.vessels), FundusSegmentation.HParams(**options))
            judged = {"camera of no run": (photographs, list(range(len(photographs.samples))))}
        else:
            judged = {part: (training, indices) for part, indices in parts.items()}
        rows[code] = {"numbers": algorithm.latent_size, "seconds": seconds, **measure(judged, by(algorithm), algorithm)}
        if code == "map":
            components = principal_components(training, parts["trained on"], algorithm.latent_map)
            rows["components"] = {"numbers": algorithm.latent_size, **measure(judged, components)}
    report(rows, list(judged))
    return 0


def parts_of_run(dataset: Dataset, config: dict[str, Any], meta: dict[str, Any]) -> dict[str, list[int]]:
    """Return the indices of the images that a run has trained on, held out, and of the camera that it left out."""
    assigned = splits.assign(dataset.samples, config["trial_seed"], config["holdout_fraction"])
    chosen = np.arange(len(dataset.samples))
    if config["subset_size"]:
        chosen = splits.subset(dataset.samples, assigned, config["subset_size"], config["trial_seed"])
    parts: dict[str, list[int]] = {"trained on": [], "held out": [], "camera left out": []}
    for index in chosen.tolist():
        is_source = dataset.environments[dataset.samples[index].environment] in meta["sources"]
        part = ("trained on" if assigned[index] == "train" else "held out") if is_source else "camera left out"
        parts[part].append(index)
    return parts


def by(algorithm: Any) -> Reconstruct:
    """Return how an algorithm reconstructs an image, without noise."""

    def reconstruct(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            x = torch.from_numpy(image).permute(2, 0, 1)[None]
            return algorithm.reconstruct(x)[0].permute(1, 2, 0).numpy()

    return reconstruct


def principal_components(dataset: Dataset, indices: list[int], latent_map: tuple[int, int, int]) -> Reconstruct:
    """Return how the principal components of patches reconstruct an image, fitted to some images of a data set."""
    channels, height, _ = latent_map
    patch = -(-dataset.read(indices[0]).shape[0] // height)

    def cut(image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        margins = [(0, -side % patch) for side in image.shape[:2]]
        padded = np.pad(image, (*margins, (0, 0)), constant_values=0.5)
        h, w, c = padded.shape
        patches = padded.reshape(h // patch, patch, w // patch, patch, c).transpose(0, 2, 1, 3, 4)
        return patches.reshape(-1, patch * patch * c), (h, w, c)

    patches = np.concatenate([cut(dataset.read(index).astype(np.float64) / 255)[0] for index in indices])
    mean = patches.mean(0)
    axes = np.linalg.eigh(np.cov(patches.T, bias=True))[1][:, -channels:]  # (D, c)

    def reconstruct(image: np.ndarray) -> np.ndarray:
        patches, (h, w, c) = cut(image)
        drawn = (patches - mean) @ axes @ axes.T + mean
        drawn = drawn.reshape(h // patch, w // patch, patch, patch, c).transpose(0, 2, 1, 3, 4).reshape(h, w, c)
        return drawn[: image.shape[0], : image.shape[1]].clip(0, 1).astype(np.float32)

    return reconstruct


def measure(
    judged: dict[str, tuple[Dataset, list[int]]], reconstruct: Reconstruct, algorithm: Any = None
) -> dict[str, Any]:
    """Return for each part the error in vessels relative to the blur, PSNR, bits, and the sums of each patient."""
    found = {}
    for part, (dataset, indices) in judged.items():
        sums: dict[str, list[float]] = {}
        errors, bits = [], []
        for index in indices:
            image = dataset.read(index).astype(np.float32) / 255
            vessels = dataset.read_masks(index, ["vessels"])["vessels"].astype(bool)
            blurred = cv2.GaussianBlur(image, (0, 0), SIGMA_PX_AT_224 * image.shape[0] / 224)
            output = reconstruct(image)
            of_patient = sums.setdefault(dataset.samples[index].group, [0.0, 0.0])
            of_patient[0] += float(((output - image)[vessels] ** 2).sum())
            of_patient[1] += float(((blurred - image)[vessels] ** 2).sum())
            errors.append(float(((output - image) ** 2).mean()))
            if isinstance(algorithm, Posterior):
                with torch.no_grad():
                    posterior = algorithm.posterior(torch.from_numpy(image).permute(2, 0, 1)[None])
                    bits.append(float(gaussian.kl_to_standard_normal(*posterior).sum()) / math.log(2))
        each = np.array([*sums.values()])
        found[part] = {
            "vessels": float(each[:, 0].sum() / each[:, 1].sum()),
            "psnr": float(np.mean([-10 * math.log10(max(error, 1e-10)) for error in errors])),
            "bits": float(np.mean(bits)) if bits else None,
            "patients": {patient: values for patient, values in sums.items()},
        }
    return found


def paired_interval(one: dict[str, list[float]], other: dict[str, list[float]]) -> list[float]:
    """Return the 95 % interval of a difference of relative errors, from drawing patients with replacement."""
    first, second = (np.array([sums[patient] for patient in one]) for sums in (one, other))
    drawn = np.random.default_rng(0).integers(len(first), size=(NUM_RESAMPLES, len(first)))
    values = [sums[drawn].sum(1) for sums in (first, second)]  # (resamples, 2) each
    differences = values[0][:, 0] / values[0][:, 1] - values[1][:, 0] / values[1][:, 1]
    return np.quantile(differences, [0.025, 0.975]).tolist()


def report(rows: dict[str, dict[str, Any]], parts: list[str]) -> None:
    """Print the table, and the figures of the last part as JSON."""
    head = "".join(f"{part:>20}{'PSNR':>7}{'bits':>9}" for part in parts)
    print(f"\n{'error in vessels / that of a blur':<36}{'numbers':>8}{head}")
    for code, row in rows.items():
        cells = ""
        for part in parts:
            bits = row[part]["bits"]
            cells += (
                f"{row[part]['vessels']:>20.3f}{row[part]['psnr']:>7.1f}{'–' if bits is None else f'{bits:,.0f}':>9}"
            )
        print(f"{code:<36}{row['numbers']:>8,}{cells}")
    ours, baseline = (rows[code][parts[-1]] for code in ("map", "components"))
    interval = paired_interval(ours["patients"], baseline["patients"])
    print(f"map - components, {parts[-1]}: 95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}, over patients")
    print(
        "seconds of training: "
        + ", ".join(f"{code} {row['seconds']:.0f}" for code, row in rows.items() if "seconds" in row)
    )
    for row in rows.values():
        for part in parts:
            row[part].pop("patients")
    print(
        json.dumps(
            {
                "benchmark": "vessels",
                "ratio": baseline["vessels"] / ours["vessels"],
                "ours": ours["vessels"],
                "baseline": baseline["vessels"],
                "unit": "squared error in vessels / that of a Gaussian blur",
                "pairs": 1,
                "interval_of_difference": interval,
                "rows": rows,
            }
        )  # fmt: skip
    )


if __name__ == "__main__":
    sys.exit(main())
