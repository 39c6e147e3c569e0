"""Save and load everything that a run needs to go on, and give a finished run's algorithm back.

    te_<target>/checkpoints/<init|last|best|oracle>/
        model.safetensors    weights and buffers of the algorithm
        state.pt             optimisers (of `last` only): tensors, numbers and text, loaded with weights_only=True
        checkpoint.json      step, scores, shapes, class names: what is needed to build the algorithm again
    te_<target>/model.safetensors    exported from `best`, its configuration in the file's metadata

A checkpoint is written beside its place and swapped in by renaming, so that a kill at any moment leaves the old one or
the new one, whole. Nothing that is loaded here executes code.
"""

import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save as serialize

from domainbed.algorithms import finished
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.finished import find_targets
from domainbed.datasets.labels import plain
from domainbed.errors import UserError, explain_os_errors
from domainbed.paths import user_path
from domainbed.records import read_results
from domainbed.registry import add_plugin

FORMAT = 1
CHECKPOINTS = ("best", "last", "oracle", "init")


def save(
    folder: Path,
    algorithm: Algorithm,
    meta: dict[str, Any],
    state: dict[str, Any] | None = None,
    weights_of: Path | None = None,
) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one.

    Args:
        folder: `…/checkpoints/<name>`, replaced as a whole.
        algorithm: the unwrapped algorithm.
        meta: what goes into checkpoint.json.
        state: what goes into state.pt: tensors, numbers, text, lists and mappings only.
        weights_of: another checkpoint that was written with these very weights: they then share one file.

    Raises:
        UserError: the disk is full or the folder can't be written; the older checkpoint is untouched.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    with explain_os_errors(f"saving the checkpoint {folder}"):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            recover(folder)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            if weights_of is None or not _linked(weights_of / "model.safetensors", new / "model.safetensors"):
                # through bytes: writing a file then fails as an OSError, whatever the format's own writer would raise
                (new / "model.safetensors").write_bytes(serialize(finished.tensors_of(algorithm)))
            if state is not None:
                buffer = io.BytesIO()
                torch.save(state, buffer)
                (new / "state.pt").write_bytes(buffer.getvalue())  # a view would outlive it where this fails
            (new / "checkpoint.json").write_text(json.dumps({"format": FORMAT, **meta}, indent=1) + "\n")
            for path in new.iterdir():
                _sync(path)
            if folder.exists():
                os.rename(folder, old)
            os.rename(new, folder)
            _sync(folder.parent)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            recover(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _linked(path: Path, new: Path) -> bool:
    """Give a file a second name; return whether the file system could."""
    try:
        os.link(path, new)
    except OSError:
        return False
    return True


def recover(folder: Path) -> None:
    """Finish what a kill between the two renames of `save` left undone."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, folder)


def exists(folder: Path) -> bool:
    """Whether there is a whole checkpoint at `folder`."""
    return (folder / "checkpoint.json").is_file() or (
        folder.with_name(f".{folder.name}.old") / "checkpoint.json"
    ).is_file()


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the content of checkpoint.json.

    Raises:
        UserError: there is no checkpoint, or it is broken or of another format.
    """
    if not (folder / "checkpoint.json").is_file():
        folder = folder.with_name(f".{folder.name}.old")  # a kill between two renames; reading changes nothing on disk
    try:
        meta = json.loads((folder / "checkpoint.json").read_text())
        version = meta["format"]
    except FileNotFoundError:
        raise UserError(
            f"there is no checkpoint in {folder.parent}/{folder.name.strip('.').removesuffix('.old')}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/checkpoint.json is broken ({error}). Delete that checkpoint and use another"
        ) from None
    if version != FORMAT:
        raise UserError(f"{folder} is of checkpoint format {version}, but this version reads format {FORMAT}")
    return {**_with_plain_names(meta), "folder": str(folder)}


def _with_plain_names(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the content of checkpoint.json with the names that data sets give now, whatever bytes stood for them."""
    return meta | {key: [plain(name) for name in meta[key]] for key in ("classes", "sources") if key in meta}


def load_weights(folder: Path, algorithm: Algorithm) -> dict[str, Any]:
    """Load the weights of a checkpoint into an algorithm; return the content of its checkpoint.json.

    Raises:
        UserError: the checkpoint is missing, broken, truncated, or belongs to another algorithm.
    """
    meta = read_meta(folder)
    finished.load_tensors(Path(meta["folder"]) / "model.safetensors", algorithm)
    return meta


def load_state(folder: Path) -> dict[str, Any]:
    """Return the content of state.pt, without executing code from it.

    Raises:
        UserError: the file is missing, broken, or holds more than data.
    """
    path = Path(read_meta(folder)["folder"]) / "state.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, so the run can't go on from {folder}. Start it anew under another name"
        ) from None
    except Exception as error:  # torch raises many kinds here; each means that the file is of no use
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"{path} can't be loaded as plain data ({type(error).__name__}: {reason}). It is broken or was not written "
            f"by this program. Delete {folder} and start anew"
        ) from None


def export(
    path: Path,
    algorithm: Algorithm,
    config: dict[str, Any],
    meta: dict[str, Any],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write weights and configuration into one safetensors file, atomically.

    Args:
        path: of the file. algorithm: the unwrapped algorithm.
        config: of the run. meta: as in checkpoint.json.
        notes: further entries of the file's metadata.

    Raises:
        UserError: the disk is full or the folder can't be written.
    """
    new = path.with_name(f".{path.name}.new")
    with explain_os_errors(f"exporting {path}"):
        metadata = {"config": json.dumps(config), "checkpoint": json.dumps(meta)} | dict(notes or {})
        new.write_bytes(serialize(finished.tensors_of(algorithm), metadata=metadata))
        _sync(new)
        os.replace(new, path)


def load(
    run_dir: str | Path,
    target: str | None = None,
    seed: int | None = None,
    checkpoint: str = "best",
    plugin: Sequence[str | Path] = (),
) -> Algorithm:
    """Give the algorithm of a run back, on the CPU and in evaluation mode.

    Args:
        run_dir: `results/train_output/<dataset>/<name>`, or an exported `model.safetensors`.
        target: the environment that was left out ("none" for a run without); needed where there are several.
        seed: needed where the run has several.
        checkpoint: "best", "last", "oracle" or "init".
        plugin: files that register the algorithm, where it is not built in. A run names its plug-ins but they are not
            imported on its word, because what is loaded may come from somebody else.

    Raises:
        UserError: nothing fits, or more than one; the message names the choices.
    """
    return load_with_meta(run_dir, target, seed, checkpoint, plugin)[0]


def load_with_meta(
    run_dir: str | Path,
    target: str | None = None,
    seed: int | None = None,
    checkpoint: str | None = "best",
    plugin: Sequence[str | Path] = (),
) -> tuple[Algorithm, dict[str, Any], dict[str, Any]]:
    """`load`, together with the configuration of the run and the content of checkpoint.json.

    With the latter comes the `operating_point` of the checkpoint, where the run recorded one.
    Without a `checkpoint` it is the first of `CHECKPOINTS` that is there.
    """
    for path in plugin:
        add_plugin(path)
    run_dir = user_path(run_dir)
    if run_dir.suffix == ".safetensors":
        config, meta = finished.read_export(run_dir)
        finished.describe(config, meta)  # refuses what no run has exported
        meta, weights = _with_plain_names(meta), run_dir
    else:
        config = read_config(run_dir)
        folder = find_checkpoint(run_dir, target, seed, checkpoint)
        meta = read_meta(folder)
        weights = Path(meta["folder"]) / "model.safetensors"
        meta |= recorded_operating_point(run_dir, folder.name, meta)
    described = finished.describe(config, meta)
    for name, asked, found in (("target", target, described.target), ("seed", seed, described.seed)):
        if asked is not None and plain(str(asked)) != plain(str(found)):
            raise UserError(f"{run_dir} holds the model of {name}={found!r}, not of {name}={asked!r}")
    algorithm = finished.build(described)
    finished.load_tensors(weights, algorithm)
    return algorithm.eval(), config, meta


def recorded_operating_point(run_dir: Path, checkpoint: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"operating_point": …} of a checkpoint from the final records of its run; empty where there is none.

    A training that is not finished has none yet, nor has a run of a version that recorded none.
    """
    for record in read_results(run_dir / "results.jsonl"):
        place = (record["kind"], record.get("target"), record.get("seed"), record.get("checkpoint"), record.get("step"))
        wanted = ("final", meta["target"], meta["seed"], checkpoint, meta["step"])
        if place == wanted and "operating_point" in record:
            return {"operating_point": record["operating_point"]}
    return {}


def read_config(run_dir: Path) -> dict[str, Any]:
    """Return the resolved configuration of a run.

    Raises:
        UserError: `run_dir` is not the folder of a run.
    """
    path = run_dir / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{run_dir} is not the folder of a run: it holds no config.yaml. Give results/train_output/<dataset>/<name>"
        ) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or not {"dataset", "algorithm", "datasets", "algorithms"} <= config.keys():
        raise UserError(f"{path} is not the configuration of a run. Give results/train_output/<dataset>/<name>")
    return config


def find_checkpoint(run_dir: Path, target: str | None, seed: int | None, checkpoint: str | None) -> Path:
    """Return the folder of the one checkpoint that fits; without a name it is the first of `CHECKPOINTS` there is.

    Raises:
        UserError: none fits, or more than one; the message names the choices.
    """
    found = find_targets(run_dir)
    fitting = {
        key: path
        for key, path in found.items()
        if (target is None or plain(key[1]) == plain(target)) and (seed is None or key[0] in (None, seed))
    }
    choices = ", ".join(
        f"target={name!r}" + ("" if number is None else f" seed={number}") for number, name in (fitting or found)
    )
    if len(fitting) != 1:
        what = "more than one model" if fitting else "no such model"
        raise UserError(f"{run_dir} holds {what}. Choose one of: {choices or 'none, the run has saved nothing yet'}")
    folders = next(iter(fitting.values())) / "checkpoints"
    there = [name for name in CHECKPOINTS if exists(folders / name)]
    folder = folders / (checkpoint or next(iter(there), CHECKPOINTS[0]))
    if folder.name not in there:
        raise UserError(f"{folders} holds no checkpoint {folder.name!r}. There are: {', '.join(there) or 'none'}")
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
