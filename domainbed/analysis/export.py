"""A run's model as files for others: safetensors, ONNX, torch.export, or the encoder's weights for timm; and its card.

    found = export.analyse("results/train_output/DR/full_training", target="idrid", formats=["onnx", "safetensors"])

Every file is run again on the images given, in another runtime where there is one, before it gets its name: one that
disagrees with the model is deleted. What a file holds is in `exported`, the card in `card`.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from domainbed import checkpoint
from domainbed.algorithms.base import needs_label
from domainbed.algorithms.finished import Frozen
from domainbed.analysis import card
from domainbed.analysis.exported import KEY, About, Graph, about_model, check_choice, outputs_of, runner
from domainbed.analysis.extras import require
from domainbed.analysis.recorded import RecordedRun, dataset_settings
from domainbed.datasets.images import UnreadableImage
from domainbed.errors import UserError, explain_os_errors
from domainbed.files import write_atomically
from domainbed.networks.encoders import TimmEncoder
from domainbed.paths import folder_name, user_path

#: Format to the name of its file.
FORMATS = {"safetensors": "model.safetensors", "onnx": "model.onnx", "torch.export": "model.pt2"}
ENCODER = "encoder.safetensors"
#: Largest absolute difference from the model itself; of outputs that exceed 1, relative to the largest of them.
TOLERANCE = 1e-4
#: Of features of the encoder in timm.
ENCODER_TOLERANCE = 1e-6
#: Share of discrete codes that may differ: two vectors at the same distance are told apart by rounding.
CODES_TOLERANCE = 0.01
NUM_SAMPLES = 16


def analyse(
    path: str | Path,
    folder: Path | None = None,
    *,
    formats: Sequence[str] = ("safetensors",),
    outputs: Sequence[str] | None = None,
    part: str = "model",
    target: str | None = None,
    seed: int | None = None,
    checkpoint_name: str | None = None,
    plugin: Sequence[str | Path] = (),
    data_dir: str | Path | None = None,
    licence: str = "",
) -> dict[str, Any]:
    """Write a run's model as files, check each, and write its card beside them.

    Args:
        path: the run's folder, or an exported `model.safetensors`.
        folder: of the files; by default `analysis/export/te_<target>_<checkpoint>` of the run.
        formats: keys of `FORMATS`.
        outputs: of `exported.OUTPUTS`, of the graphs; None for all that the algorithm can give.
        part: "model", or "encoder" for the weights of its timm backbone.
        target, seed, checkpoint_name, plugin: of `checkpoint.load_with_meta`.
        data_dir: where the run's images are now, on some of which the files are checked; by default where they were.
        licence: terms of the training images, for the card; by default what the data set knows.

    Returns:
        folder; about: of the model; files: name, format, bytes and `difference`, the largest absolute one by output;
        checked_on: which images; notes.

    Raises:
        UserError: no such run, model, output or part; a library is missing; the disk is full; a file does not agree.
    """
    path = user_path(path)
    algorithm, config, meta = checkpoint.load_with_meta(path, target, seed, checkpoint_name, plugin)
    there = choose_outputs(algorithm, config["algorithm"], outputs)
    about = about_model(path, algorithm, config, meta, there if part == "model" else [], licence)
    check_choice(path, about, checkpoint_name)
    notes = []
    if needs_label(algorithm) and part == "model":
        notes.append(f"{about.algorithm} needs a label to reconstruct, which x does not hold: no reconstruction")
    where = data_dir if data_dir is not None else config["data_dir"]
    samples, checked_on = sample_images(about, user_path(where) if where is not None else None)
    if samples is None:
        notes.append(f"the run's images were not read ({checked_on}); the check is on random ones")
        samples, checked_on = random_images(about.input_shape), f"{NUM_SAMPLES} random images"
    folder = folder or default_folder(path, meta, about)
    with explain_os_errors(f"writing {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    if part == "encoder":
        files = [write_encoder(folder, algorithm, about, samples)]
    else:
        files = [write(folder, name, algorithm, about, config, meta, samples) for name in formats]
    found = {
        "folder": str(folder), "about": asdict(about), "files": files, "checked_on": checked_on, "notes": notes,
        "encoder": timm_of(algorithm),
    }  # fmt: skip
    text = card.text(found, about, config, meta, recorded(path))
    with explain_os_errors(f"writing {folder}"):
        (folder / card.NAME).write_text(text, encoding="utf-8", errors="backslashreplace")
    return found


def recorded(path: Path) -> RecordedRun | None:
    """Return what a run wrote down; None for an exported file, and before anything was."""
    try:
        return RecordedRun.read(path) if path.is_dir() else None
    except UserError:
        return None


def default_folder(path: Path, meta: dict[str, Any], about: About) -> Path:
    """Return where files of a model belong."""
    above = Path(meta["folder"]).parents[2] if "folder" in meta else path.parent
    return above / "analysis" / "export" / f"te_{folder_name(about.target)}_{about.checkpoint}"


def write(
    folder: Path,
    name: str,
    algorithm: Any,
    about: About,
    config: dict[str, Any],
    meta: dict[str, Any],
    samples: Tensor,
) -> dict[str, Any]:
    """Write the model in one format and check the file; return what it is.

    Args:
        folder: of the file. name: of the format, a key of `FORMATS`.
        algorithm: on the CPU, in evaluation mode.
        about: of the model. config, meta: of `checkpoint.load_with_meta`.
        samples: (N, C, H, W) in [0, 1].

    Raises:
        UserError: a library is missing, the disk is full, or the file does not agree with the model.
    """
    path = folder / FORMATS[name]
    graph = Graph(algorithm, about.outputs).eval()
    if name != "safetensors" and not about.outputs:
        raise UserError(
            f"{about.algorithm} answers nothing for an image alone, so there is no graph to export. Its weights can "
            "be: --to safetensors"
        )
    with explain_os_errors(f"writing {path}"), write_atomically(path) as draft:
        if name == "safetensors":
            kept = {key: value for key, value in meta.items() if key != "folder"}
            kept |= {"run": about.run, "checkpoint": about.checkpoint}
            checkpoint.export(draft, algorithm, config, kept, {KEY: about.json()})
            difference = _same_weights(draft, algorithm)
        else:
            (_write_onnx if name == "onnx" else _write_program)(draft, graph, about, samples[:2])
            difference = verify(path, graph, runner(draft, about.outputs), samples)
    return {"file": path.name, "format": name, "bytes": path.stat().st_size, "difference": difference}


def choose_outputs(algorithm: Any, name: str, asked: Sequence[str] | None) -> list[str]:
    """Return the outputs that a graph gives: those asked for, or all.

    Raises:
        UserError: the algorithm has no such output.
    """
    there = outputs_of(algorithm)
    for output in asked or ():
        if output not in there:
            raise UserError(f"{name} gives no {output} for an image alone. It gives: {', '.join(there) or 'nothing'}")
    return [output for output in there if not asked or output in asked]


def _same_weights(path: Path, algorithm: Any) -> dict[str, float]:
    """Build the algorithm again from the file; its weights must be the same, bit for bit."""
    again = checkpoint.load(path).state_dict()
    found = algorithm.state_dict()
    if again.keys() != found.keys() or not all(torch.equal(again[key], found[key]) for key in found):
        raise UserError(f"{path} gives other weights than it was written from. The disk may be broken")
    return {"weights": 0.0}


def _program(graph: nn.Module, x: Tensor) -> Any:
    """Return the graph as torch.export sees it, for batches of any size."""
    with torch.no_grad():
        return torch.export.export(graph, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}})


def _write_program(path: Path, graph: Graph, about: About, x: Tensor) -> None:
    torch.export.save(_program(graph, x), path, extra_files={f"{KEY}.json": about.json()})


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Tensor:
    """Group normalisation of x (B, C, …), with means axis by axis and the variance of what is left without the mean.

    The exporter would make an InstanceNormalization of it. onnxruntime sums that one, and any mean over a whole image,
    in one float32 number: the logits of a U-Net at 256 px then are 7e-4 beside those in float64, and so written 2e-5.
    """

    def mean(values: Tensor) -> Tensor:
        for axis in range(values.ndim - 1, 1, -1):
            values = values.mean(axis, keepdim=True)
        return values

    grouped = x.unflatten(1, (num_groups, -1))  # (B, G, C / G, …)
    centred = grouped - mean(grouped)
    normal = (centred * (mean(centred.square()) + eps).rsqrt()).reshape(x.shape)
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    return normal * weight.reshape(shape) + bias.reshape(shape)


def _write_onnx(path: Path, graph: Graph, about: About, x: Tensor) -> None:
    require("onnx", "export", "an export to ONNX")
    require("onnxscript", "export", "an export to ONNX")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own parts
        decomposed = _program(graph, x).run_decompositions({torch.ops.aten.group_norm.default: _group_norm})
        program: Any = torch.onnx.export(decomposed, (), input_names=["x"], dynamo=True, verbose=False)
        for node in program.model.graph:
            for value in node.outputs:  # named after their operations, one of which is a mean
                value.name = f"{value.name}_inside"
        for value, name in zip(program.model.graph.outputs, about.outputs, strict=True):
            value.name = name
        program.model.metadata_props[KEY] = about.json()
        program.model.doc_string = about.title
        program.save(path, external_data=False)


def verify(path: Path, graph: Graph, answer: Any, samples: Tensor) -> dict[str, float]:
    """Return the largest absolute difference by output between a file and the model, on a batch and on one image.

    Args:
        path: of the file, for messages.
        graph: the model. answer: that runs the file.
        samples: (N, C, H, W) in [0, 1].

    Raises:
        UserError: they disagree.
    """
    worst: dict[str, float] = {}
    for x in (samples, samples[:1]):
        with torch.no_grad():
            expected = graph.answer(x)
        found = answer(x)
        alike = torch.ones(len(x), dtype=torch.bool)
        if "codes" in expected:
            differing = expected["codes"] != found["codes"]
            alike = ~differing.flatten(1).any(1)
            worst["codes"] = max(worst.get("codes", 0.0), differing.float().mean().item())
        for name, value in expected.items():
            if name == "codes" or not alike.any():
                continue
            difference = (value[alike] - found[name][alike]).abs().max().item()
            scale = max(1.0, value.abs().max().item())
            if not difference <= TOLERANCE * scale:
                raise UserError(
                    f"{path.name} does not agree with the model: {name} differs by {difference:.3g}, more than "
                    f"{TOLERANCE * scale:.1g}. It was deleted. Export another format, or fewer outputs (--outputs)"
                )
            worst[name] = max(worst.get(name, 0.0), difference)
    if worst.get("codes", 0.0) > CODES_TOLERANCE:
        raise UserError(
            f"{path.name} does not agree with the model: {worst['codes']:.1%} of the codes differ. It was deleted. "
            "Export another format, or fewer outputs (--outputs)"
        )
    return worst


def encoder_of(algorithm: nn.Module) -> TimmEncoder | None:
    """Return the one timm backbone that the algorithm trains; None where it has none, or several."""
    frozen = {one for module in algorithm.modules() if isinstance(module, Frozen) for one in module.modules()}
    found = [one for one in algorithm.modules() if isinstance(one, TimmEncoder) and one not in frozen]
    return found[0] if len(found) == 1 else None


def timm_of(algorithm: Any) -> dict[str, Any] | None:
    """Return how timm makes the encoder's backbone: the model's name, and arguments of `timm.create_model`."""
    if encoder_of(algorithm) is None:
        return None
    channels, *size = algorithm.input_shape
    options: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    if timm.get_pretrained_cfg(algorithm.hparams.model).fixed_input_size:
        options["img_size"] = size
    return {"model": algorithm.hparams.model, "options": options}


def write_encoder(folder: Path, algorithm: Any, about: About, samples: Tensor) -> dict[str, Any]:
    """Write the weights of the timm backbone under timm's names, and check what timm makes of them.

    Args:
        folder: of the file. algorithm: on the CPU, in evaluation mode. about: of the model.
        samples: (N, C, H, W) in [0, 1].

    Raises:
        UserError: there is no such backbone, it was cut, the disk is full, or timm gives other features.
    """
    encoder, made = encoder_of(algorithm), timm_of(algorithm)
    if encoder is None or made is None:
        raise UserError(
            f"{about.algorithm} has no timm backbone of its own, as ERM and VAE_DG have. Export the whole model: leave "
            "out --part"
        )
    path = folder / ENCODER
    metadata = {KEY: about.json(), "part": "encoder", "timm": json.dumps(made)}
    metadata |= {key: json.dumps(getattr(encoder, key).flatten().tolist()) for key in ("mean", "std")}
    state = {key: value.detach().contiguous().clone() for key, value in encoder.backbone.state_dict().items()}
    with explain_os_errors(f"writing {path}"), write_atomically(path) as draft:
        draft.write_bytes(serialize(state, metadata))
        backbone = timm.create_model(made["model"], **made["options"]).eval()
        try:
            backbone.load_state_dict(load_file(draft), strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the encoder of {about.algorithm} is not a whole {made['model']}: {reason}") from None
        x = (samples - encoder.mean) / encoder.std
        with torch.no_grad():
            expected, found = encoder.backbone.forward_features(x), backbone.forward_features(x)
        difference = (expected - found).abs().max().item()
        if not difference <= ENCODER_TOLERANCE * max(1.0, expected.abs().max().item()):
            raise UserError(f"{path.name} gives other features in timm, by {difference:.3g}. It was deleted")
    size = path.stat().st_size
    return {"file": path.name, "format": "timm", "bytes": size, "difference": {"features": difference}}


def sample_images(about: About, data_dir: Path | None, num_images: int = NUM_SAMPLES) -> tuple[Tensor | None, str]:
    """Return images of the run's data set, evenly from all of it, as (N, C, H, W) in [0, 1], and which they are.

    Where the data set can't be opened or read, None and the reason.

    Args:
        about: of the model. data_dir: where the run's images are.
    """
    try:
        dataset, hparams = dataset_settings(about.dataset, about.data)
        opened = dataset(data_dir, hparams)
    except (UserError, TypeError, ValueError, OSError) as error:  # of a plug-in, anything that bad data give
        return None, str(error).partition("\n")[0]
    pixels = []
    for index in np.linspace(0, len(opened.samples) - 1, num_images).astype(int).tolist():
        try:
            pixels.append(opened.read(index))
        except UnreadableImage:
            continue
    if not pixels:
        return None, "none of the images tried can be read"
    return _to_tensor(np.stack(pixels)), f"{len(pixels)} images of the run's data set"


def random_images(input_shape: Sequence[int], num_images: int = NUM_SAMPLES) -> Tensor:
    """Return smooth random images (N, C, H, W) in [0, 1], always the same."""
    channels, *size = input_shape
    coarse = torch.rand(num_images, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=tuple(size), mode="bilinear").contiguous()


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """(N, H, W, C) uint8 to (N, C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).contiguous()
