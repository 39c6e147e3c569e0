"""Do reconstructions hold vessels? Squared error inside the vessel mask, relative to a blurred copy of the image.

    python benchmarks/vessels.py                 two runs of `configs/vessels.yaml`, then the table
    python benchmarks/vessels.py --quick         a check within a minute that everything works; its figures say nothing

Trains VAE_DG on SyntheticFundus twice, equally long and from the same seed: with the decoder that ends at the image's
resolution and with the published one, which ends at 39 pixels and is stretched. The measure is

    sum over vessel pixels of (reconstruction - image)^2 / sum over vessel pixels of (blur(image) - image)^2

with a Gaussian blur of sigma 4 px at 224 px, scaled with the size. Below 1 a reconstruction holds vessels better than
that blur does, which shows none of them; 0 is perfect. It is given for images that were trained on, for held-out images
of the same cameras, and for the camera that was left out.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

import domainbed
from domainbed.cli.train import main as train
from domainbed.datasets import splits
from domainbed.datasets.synthetic_fundus import SyntheticFundus

SIGMA_PX_AT_224 = 4.0
DECODERS = ("full", "published")
CONFIG = Path(__file__).parents[1] / "configs" / "vessels.yaml"
QUICK = ["model=test_resnet", "image_size=48", "num_images=10", "--steps", "4", "batch_size=4", "--subset_size", "10"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="end within a minute; the figures mean nothing")
    parser.add_argument("--results_dir", default="results", help="runs of that name that are there already go on")
    arguments = parser.parse_args()
    rows = {}
    for decoder in DECODERS:
        name = f"vessels_{decoder}" + ("_quick" if arguments.quick else "")
        folder = Path(arguments.results_dir) / "train_output" / "SyntheticFundus" / name
        common = [name, "--results_dir", arguments.results_dir]
        if (folder / "config.yaml").exists():
            status = train("train_all", [*common, "--resume"])
        else:
            status = train(
                "train_all", [*common, str(CONFIG), f"decoder={decoder}", *(QUICK if arguments.quick else [])]
            )
        if status:
            return status
        rows[decoder] = measure(folder)
    parts = list(rows["full"])
    print(f"\n{'squared error in vessels / that of a blur':<42}" + "".join(f"{part:>22}" for part in parts))
    for decoder in DECODERS:
        print(f"{decoder:<42}" + "".join(f"{rows[decoder][part]:>22.3f}" for part in parts))
    ours, baseline = rows["full"][parts[0]], rows["published"][parts[0]]
    print(
        json.dumps(
            {
                "benchmark": "vessels",
                "ratio": baseline / ours,
                "ours": ours,
                "baseline": baseline,
                "unit": "squared error in vessels / that of a Gaussian blur",
                "pairs": 1,
                "parts": rows,
            }
        )  # fmt: skip
    )
    return 0


def measure(folder: Path) -> dict[str, float]:
    """Return the measure of a run's last weights for its training images, held-out images, and target."""
    algorithm = domainbed.load(folder, checkpoint="last")
    config = domainbed.checkpoint.read_config(folder)
    meta = domainbed.checkpoint.read_meta(domainbed.checkpoint.find_checkpoint(folder, None, None, "last"))
    dataset = SyntheticFundus(None, SyntheticFundus.HParams(**config["datasets"]["SyntheticFundus"]))
    assigned = splits.assign(dataset.samples, config["trial_seed"], config["holdout_fraction"])
    chosen = np.arange(len(dataset.samples))
    if config["subset_size"]:
        chosen = splits.subset(dataset.samples, assigned, config["subset_size"], config["trial_seed"])
    errors: dict[str, list[tuple[float, float]]] = {"trained on": [], "held out": [], "camera left out": []}
    for index in chosen.tolist():
        name = dataset.environments[dataset.samples[index].environment]
        source = name in meta["sources"]
        part = ("trained on" if assigned[index] == "train" else "held out") if source else "camera left out"
        errors[part].append(one_image(algorithm, dataset, index))
    return {part: float(sum(a for a, _ in found) / sum(b for _, b in found)) for part, found in errors.items()}


def one_image(algorithm: torch.nn.Module, dataset: SyntheticFundus, index: int) -> tuple[float, float]:
    """Return the squared error in the vessels of the reconstruction, and of a blur of the image."""
    image = dataset.read(index).astype(np.float32) / 255
    vessels = dataset.read_masks(index)["vessels"].astype(bool)
    sigma = SIGMA_PX_AT_224 * image.shape[0] / 224
    blurred = cv2.GaussianBlur(image, (0, 0), sigma)
    with torch.no_grad():
        output = algorithm.reconstruct(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    return float(((output - image)[vessels] ** 2).sum()), float(((blurred - image)[vessels] ** 2).sum())


if __name__ == "__main__":
    sys.exit(main())
