"""Untrained models as a run exports them, for tests of what is done with a finished run."""

from pathlib import Path
from typing import Any

import torch

from domainbed import checkpoint
from domainbed.algorithms import finished
from domainbed.algorithms.base import needs_label
from domainbed.registry import ALGORITHMS
from domainbed.testing import NUM_DOMAINS, build, minibatches

CLASSES = ["mild", "none", "severe"]
SMALL: dict[str, dict[str, Any]] = {
    "VAE_DG": {"latent_dim": 8},
    "AE": {"latent_dim": 8},
    "VAE": {"latent_dim": 8},
    "CVAE": {"latent_dim": 8, "width": 8},
    "UNet": {"width": 4, "depth": 1},
    "HVAE": {"encoder_hidden_dims": [8, 16, 16], "latent_dims": [6, 4]},
    "VQVAE": {"num_codes": 32, "code_dim": 8, "hidden_dim": 16, "num_blocks": 1},
    "CodePrior": {"hidden_dim": 16, "num_layers": 2},
}


def saved(
    name: str,
    folder: Path,
    size: int = 16,
    data_dir: Path | None = None,
    data: dict[str, Any] | None = None,
    **hparams: Any,
) -> tuple[Any, Path]:
    """Return an algorithm after one step, in evaluation mode, and the model.safetensors that a run would export of it.

    Its data set is `Folder`, its images grey if `data` says so, else RGB.
    """
    data = {"image_size": size, "preprocess": ["resize"]} | (data or {})
    channels = 1 if "gray_ntsc" in data["preprocess"] else 3
    shape = (channels, size, size)
    algorithm = build(ALGORITHMS[name], shape, **(SMALL.get(name, {}) | hparams))
    algorithm.update(minibatches(shape, algorithm=algorithm))
    bound = finished.runs_of(algorithm.hparams)
    config = {
        "algorithm": name,
        "algorithms": {name: algorithm.hparams.model_dump(mode="json", exclude=set(bound))},
        "dataset": "Folder",
        "datasets": {"Folder": data},
        "data_dir": None if data_dir is None else str(data_dir),
        "precision": "float32",
        "eval_batch_size": 4,
    }
    meta = {
        "input_shape": list(shape), "classes": CLASSES, "ordinal": False, "num_domains": NUM_DOMAINS,
        "sources": ["clinic", "field"], "target": "none", "seed": 0, "step": 1, "select_by": "total_loss",
        "train_counts": [], "runs": {key: run.model_dump(mode="json") for key, run in bound.items()},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.export(folder / "model.safetensors", algorithm, config, meta)
    return algorithm.eval(), folder / "model.safetensors"


def expected(algorithm, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What an algorithm's own methods say, by the name of the output."""
    found = {}
    with torch.no_grad():
        if hasattr(algorithm, "predict"):
            found["logits"] = algorithm.predict(x)
        if hasattr(algorithm, "posterior"):
            found["mean"], found["logvar"] = algorithm.posterior(x)
        elif hasattr(algorithm, "encode"):
            found["code"] = algorithm.encode(x)
        if hasattr(algorithm, "codes") and hasattr(algorithm, "decode_codes"):
            found["codes"] = algorithm.codes(x)
        if hasattr(algorithm, "reconstruct") and not needs_label(algorithm):
            found["reconstruction"] = algorithm.reconstruct(x)
        if hasattr(algorithm, "segment"):
            found["mask_logits"] = algorithm.segment(x)
    return found
