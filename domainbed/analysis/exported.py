"""A model as a file: what its graph takes and gives, what must be known to use it, and how the file is run again.

    x (B, C, H, W) float32 in [0, 1], preprocessed  ->  those of `OUTPUTS` that the algorithm can give, by name

The graph holds whatever normalisation the encoder wants. What comes before it, from a photograph to x, is not in the
graph: it is named in the `About` that travels in the file's metadata, under the key `domainbed`, as JSON.

    about = read_about(path)
    answer = runner(path, about)        # of model.onnx or model.pt2
    logits = answer(x)["logits"]

Files are written in `export`, and used on photographs in `predict`.
"""

import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from domainbed import __version__
from domainbed.algorithms.base import (
    Coder,
    Encoder,
    MaskHParams,
    Posterior,
    Predictor,
    Reconstructor,
    Segmenter,
    needs_label,
)
from domainbed.analysis.extras import require
from domainbed.analysis.recorded import dataset_settings
from domainbed.errors import UserError
from domainbed.evaluator import computed_once
from domainbed.registry import DATASETS

#: What a graph may give, and what it means.
OUTPUTS = {
    "logits": "(B, K): their softmax is the probability of each class",
    "mean": "(B, D): mean of q(z|x)",
    "logvar": "(B, D): logarithm of the variance of q(z|x)",
    "code": "(B, D): the code of the image, without noise",
    "codes": "(B, h, w), int64: the grid of discrete codes",
    "reconstruction": "(B, C, H, W) in [0, 1]: the image again, without noise",
    "mask_logits": "(B, K, H, W): logits of the class, or of each kind, of every pixel",
}
#: Raised when the key means something else than before.
FORMAT = 1
KEY = "domainbed"
_EXTRA_FILE = f"{KEY}.json"


@dataclass(frozen=True)
class About:
    """What must be known of a model to use it, and where it comes from.

    Attributes:
        format: `FORMAT`. version: of domainbed, that wrote the file.
        run: name of the run. algorithm: name of its algorithm.
        target: what was left out of training; "none" for a run without. seed: of the training.
        checkpoint: "best", "last", "oracle" or "init". step: its number of optimiser steps.
        dataset: name of the data set. data: its settings, among them `preprocess` and `image_size`.
        trained_on: environments.
        licence: terms of the images that it was trained on, or "" where they are not known.
        input_shape: (C, H, W) of x.
        classes: of labels, or of masks; empty without. ordinal: whether those of labels are ordered.
        masks: "softmax" where the classes of a pixel exclude each other, "sigmoid" where kinds may overlap, else None.
        outputs: of `OUTPUTS`, in order.
    """

    format: int
    version: str
    run: str
    algorithm: str
    target: str
    seed: int
    checkpoint: str
    step: int
    dataset: str
    data: dict[str, Any]
    trained_on: list[str]
    licence: str
    input_shape: list[int]
    classes: list[str]
    ordinal: bool
    masks: str | None
    outputs: list[str]

    def json(self) -> str:
        """Return the text that goes into a file's metadata."""
        return json.dumps(asdict(self))

    @property
    def title(self) -> str:
        """Which model it is, in one line."""
        return f"{self.algorithm} · {self.run} · target {self.target} · {self.checkpoint} (step {self.step})"


def about_model(
    path: Path, algorithm: Any, config: dict[str, Any], meta: dict[str, Any], outputs: Sequence[str], licence: str = ""
) -> About:
    """Describe a model that was loaded.

    Args:
        path: of the run's folder or of its exported file. algorithm: that was loaded.
        config, meta: of `checkpoint.load_with_meta`.
        outputs: of `outputs_of`.
        licence: of the training images; by default what the data set knows.

    Raises:
        UserError: the model takes vectors.
    """
    if len(meta["input_shape"]) == 1:
        raise UserError(
            f"the model of {path} takes vectors, but export and predict are for models of images. Load it with "
            "domainbed.load, or evaluate it on other vectors: python -m domainbed evaluate <run> --data_dir <table>"
        )
    ((dataset, data),) = config["datasets"].items()
    terms = DATASETS[dataset].terms if dataset in DATASETS else ""
    masks = None
    if algorithm.needs_masks and isinstance(algorithm.hparams, MaskHParams):
        masks = "sigmoid" if algorithm.hparams.output == "sigmoid" else "softmax"
    folder = Path(meta["folder"]) if "folder" in meta else None
    return About(
        format=FORMAT,
        version=__version__,
        run=meta.get("run") or _run_name(path.resolve()),
        algorithm=config["algorithm"],
        target=meta["target"],
        seed=meta["seed"],
        checkpoint=folder.name.strip(".").removesuffix(".old") if folder else meta.get("checkpoint", "best"),
        step=meta["step"],
        dataset=dataset,
        data=data,
        trained_on=list(meta["sources"]),
        licence=licence or terms,
        input_shape=list(meta["input_shape"]),
        classes=list(meta["classes"]),
        ordinal=bool(meta.get("ordinal")),
        masks=masks,
        outputs=list(outputs),
    )


def _run_name(path: Path) -> str:
    """Return the name of the run of a folder, or of the file that a run exported into its folder `te_<target>`."""
    if path.is_dir() or not path.parent.name.startswith("te_"):
        return path.name
    return next(folder.name for folder in path.parents if not folder.name.startswith(("te_", "seed_")))


def check_choice(path: Path, about: About, checkpoint_name: str | None) -> None:
    """Raise `UserError` where a file was exported from another checkpoint than is asked for."""
    if checkpoint_name not in (None, about.checkpoint):
        raise UserError(f"{path} was exported from {about.checkpoint!r}. Give the run's folder for {checkpoint_name!r}")


def describe_output(name: str, masks: str | None) -> str:
    """Return what an output means; `masks` is that of `About`."""
    if name == "mask_logits" and masks == "softmax":
        return "(B, K, H, W): their softmax over K is the probability of each class of a pixel"
    if name == "mask_logits":
        return "(B, K, H, W): their sigmoid is the probability of each kind in a pixel; kinds may overlap"
    return OUTPUTS[name]


def outputs_of(algorithm: Any) -> list[str]:
    """Return the names in `OUTPUTS` of what an algorithm gives for images alone."""
    found = {
        "logits": isinstance(algorithm, Predictor),
        "mean": isinstance(algorithm, Posterior),
        "logvar": isinstance(algorithm, Posterior),
        "code": isinstance(algorithm, Encoder) and not isinstance(algorithm, Posterior),
        "codes": isinstance(algorithm, Coder),
        "reconstruction": isinstance(algorithm, Reconstructor) and not needs_label(algorithm),
        "mask_logits": isinstance(algorithm, Segmenter),
    }
    return [name for name in OUTPUTS if found[name]]


class Graph(nn.Module):
    """An algorithm as a function of images alone, without noise.

    Args:
        algorithm: in evaluation mode.
        outputs: names of `outputs_of(algorithm)`.
    """

    def __init__(self, algorithm: Any, outputs: Sequence[str]) -> None:
        super().__init__()
        self.algorithm, self.outputs = algorithm, tuple(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, in order, for images (B, C, H, W) in [0, 1]."""
        algorithm: Any = self.algorithm
        found = {}
        with computed_once(algorithm):
            for name in self.outputs:
                if name in ("mean", "logvar"):
                    if name not in found:
                        found["mean"], found["logvar"] = algorithm.posterior(x)
                else:
                    method = {"logits": "predict", "code": "encode", "reconstruction": "reconstruct"}.get(name, name)
                    found[name] = getattr(algorithm, "segment" if name == "mask_logits" else method)(x)
        return tuple(found[name] if name == "codes" else found[name].float() for name in self.outputs)

    def answer(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        return dict(zip(self.outputs, self(x), strict=True))


def read_about(path: Path) -> About:
    """Return what the metadata of model.onnx or model.pt2 say, without executing code from the file.

    Raises:
        UserError: the file is missing, broken, or not one that `export` wrote; or of another format.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}. Give a run's folder, or a file that `export` wrote")
    text = None
    if path.suffix == ".onnx":
        text = _session(path).get_modelmeta().custom_metadata_map.get(KEY)
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(f"extra/{_EXTRA_FILE}")]
                text = archive.read(names[0]).decode() if names else None
        except (zipfile.BadZipFile, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is broken ({error}). Export the run again") from None
    return parse_about(path, text)


def parse_about(path: Path, text: str | None) -> About:
    """Return the content of the key `domainbed` in a file's metadata.

    Raises:
        UserError: it is missing, broken, or of another format.
    """
    if text is None:
        raise UserError(
            f"{path} does not say how its images are preprocessed: it was not written by `python -m domainbed export`. "
            "Give one that was, or the run's folder"
        )
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise UserError(
                f"{path} is of format {values['format']}, but this version reads format {FORMAT}. Export it again"
            )
        return About(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the metadata of {path} are broken ({error}). Export the run again") from None


def runner(path: Path, outputs: Sequence[str]) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what runs model.onnx or model.pt2 on the processor: from x, (B, C, H, W) in [0, 1], to outputs by name.

    A .pt2 file is opened by `torch.export.load`, which unpickles what the file asks for, and so can run any code.

    Raises:
        UserError: the file is broken.
    """
    if path.suffix == ".onnx":
        session = _session(path)

        def answer(x: Tensor) -> dict[str, Tensor]:
            found = session.run(list(outputs), {"x": x.numpy()})
            return dict(zip(outputs, map(torch.from_numpy, found), strict=True))

        return answer
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11 of its own reading
            module = torch.export.load(path).module()
    except Exception as error:  # torch raises many kinds here; each means that the file is of no use
        raise UserError(
            f"{path} is broken ({type(error).__name__}: {_first_line(error)}). Export the run again"
        ) from None

    @torch.no_grad()
    def answer_by_torch(x: Tensor) -> dict[str, Tensor]:
        return dict(zip(outputs, module(x), strict=True))

    return answer_by_torch


def _session(path: Path) -> Any:
    onnxruntime = require("onnxruntime", "export", f"running {path.name}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; warnings are about its own optimisations
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for each way in which a file is broken
        raise UserError(f"{path} is broken ({_first_line(error)}). Export the run again") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def reader(about: About) -> Callable[[Path], np.ndarray]:
    """Return what reads an image file as the run's images were: uint8 (H, W, C), preprocessed.

    Raises:
        UserError: the data set is unknown here, or its settings are of another version.
    """
    dataset, hparams = dataset_settings(about.dataset, about.data)
    return lambda path: dataset.read_new(path, hparams, about.masks is not None)
