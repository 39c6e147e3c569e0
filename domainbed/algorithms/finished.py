"""Algorithms of finished runs: built again from what a run recorded, and frozen as parts of other algorithms.

Two stages are two runs. A judge, an encoder or a codebook is trained by its own run and named by the next one,

    python train_all.py probe --algorithm LatentClassifier encoder_run=results/train_output/<dataset>/<name>

`find` chooses the model that belongs to the target and seed in hand, `read` describes it, `frozen` builds it. The
description is kept with the checkpoints of the run that uses it, and so are the weights: a run stays whole when the
one it was built on is moved or deleted. How checkpoints are written is in `checkpoint`.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm, Coder, Encoder, Predictor
from domainbed.errors import UserError
from domainbed.hparams import Kind, path_text
from domainbed.paths import is_shortened, user_path
from domainbed.registry import ALGORITHMS

EXPORTED = "model.safetensors"
#: In a run's folder: digests of the models that each of its trainings is built on.
BUILT_ON = "built_on.json"
#: Settings of a data set that do not change what an image looks like.
IRRELEVANT = {"augment", "download", "environments", "group_pattern", "label", "mask_kinds", "num_images"}


class FinishedRun(BaseModel):
    """A model that a run exported, described so that it can be built again.

    Attributes:
        path: the exported file; empty where the weights come with those of the algorithm that it is a part of.
        digest: SHA-256 of that file.
        algorithm: its name. hparams: the values of its keys.
        input_shape: (C, H, W), or (F,). classes: of its labels. num_domains: of its training.
        dataset: the name of its data set. sources: environments that it was trained on. target: that it left out.
        seed: of the run. step: of the checkpoint. data: the settings of its data set.
        runs: finished runs that it is built on itself, by key.
        train_images: `fingerprints` of what it was trained on; not kept by the runs that are built on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    digest: str = ""
    algorithm: str
    hparams: dict[str, Any]
    input_shape: tuple[int, ...]
    classes: list[str]
    num_domains: int
    dataset: str
    sources: list[str]
    target: str
    seed: int
    step: int
    data: dict[str, Any]
    runs: dict[str, "FinishedRun"] = {}
    train_images: str = Field("", exclude=True, repr=False)


#: Type of a key that names a finished run: a path, or its description once target and seed are known.
RunPath = Annotated[
    FinishedRun | str | None,
    BeforeValidator(path_text),
    Kind("the folder of a finished run, results/train_output/<dataset>/<name>"),
]


def missing(hparams: Any, key: str) -> UserError:
    """Return the error for a key that has to name a finished run and does not."""
    what = type(hparams).model_fields[key].description
    return UserError(
        f"{key} is not given, but the algorithm is built on it: {what}. Train one first, such as python "
        f"train_all.py first --algorithm {hparams.runs[key]}, and pass {key}=results/train_output/<dataset>/first"
    )


def bind(hparams: Any, target: str, seed: int) -> Any:
    """Return the hyper-parameters with every path of a finished run replaced by the description of its model.

    Raises:
        UserError: a run is not named, missing, unfinished, or holds no model for this target and seed.
    """
    for key in hparams.runs:
        if hparams[key] is None and hparams.needs_run(key):
            raise missing(hparams, key)
    paths = {key: hparams[key] for key in hparams.runs if isinstance(hparams[key], str)}
    return hparams.model_copy(update={key: read(find(key, path, target, seed)) for key, path in paths.items()})


def digests(hparams: Any) -> dict[str, str]:
    """Return the digests of the models that bound hyper-parameters name, by key."""
    return {key: run.digest for key, run in runs_of(hparams).items()}


def check_digests(hparams: Any, begun_with: Mapping[str, str]) -> None:
    """Raise `UserError` where bound hyper-parameters name other models than a run began with.

    Args:
        hparams: bound. begun_with: `digests` at the start of the run.
    """
    for key, digest in digests(hparams).items():
        if key in begun_with and begun_with[key] != digest:
            raise UserError(
                f"{key}: {hparams[key].path} is not the model that this run began with. Put that one back, name the "
                f"folder that it is in now, {key}=<folder>, or start another run"
            )


def runs_of(hparams: Any) -> dict[str, FinishedRun]:
    """Return the descriptions of the finished runs that bound hyper-parameters name, by key."""
    return {key: hparams[key] for key in hparams.runs if isinstance(hparams[key], FinishedRun)}


def find(key: str, path: str | Path, target: str, seed: int) -> Path:
    """Return the exported model of a finished run that belongs to a target and a seed.

    A run that left out the same target gives that model, so that nothing has seen what is left out; a run of one model
    gives that one. `<run>/te_<target>` and `<file>.safetensors` name a model themselves.

    Args:
        key: the hyper-parameter, for messages.
        path: as it was given.
        target: name of what is left out, as in `te_<target>`. seed: of the run.

    Raises:
        UserError: there is no run, it is not finished, or it holds several models and none for this target or seed.
    """
    if not str(path).strip():
        raise UserError(f"{key} is empty. Give the folder of a finished run, or its exported model")
    path = user_path(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise UserError(f"{key}: there is no file {path}. Give the folder of a finished run, or its exported model")
        return path
    if not path.is_dir():
        found = "is a file, and no .safetensors" if path.is_file() else "is not there"
        raise UserError(f"{key}: {path} {found}. Give the folder of a finished run, or its exported model")
    if path.name.startswith("te_") and not (path / "config.yaml").is_file():
        return _exported(key, path)
    models = find_targets(path)
    if not models:
        raise UserError(
            f"{key}: {path} holds no model (no te_<target> folder): it is not the folder of a run, or nothing was "
            "trained yet. Give results/train_output/<dataset>/<name> of a finished run"
        )
    of_seed = {name: folder for (number, name), folder in models.items() if number in (None, seed)}
    if not of_seed:
        numbers = ", ".join(str(number) for number in sorted({n for n, _ in models if n is not None}))
        raise UserError(
            f"{key}: {path} has the seeds {numbers}, but not {seed}, which is that of this run. Name one model: "
            f"{key}={path}/seed_<s>/te_<target>"
        )
    if target in of_seed:
        return _exported(key, of_seed[target])
    if len(of_seed) == 1:
        return _exported(key, next(iter(of_seed.values())))
    raise UserError(
        f"{key}: {path} left out {', '.join(of_seed)}, each in turn, but not {target}, which is the target of this "
        f"run. Name one model: {key}={path}/te_<target>"
    )


def _exported(key: str, folder: Path) -> Path:
    if not (folder / EXPORTED).is_file():
        raise UserError(
            f"{key}: {folder} is not finished: it holds no {EXPORTED}. Finish that run with --resume, or name another"
        )
    return folder / EXPORTED


def find_targets(run_dir: Path) -> dict[tuple[int | None, str], Path]:
    """Return the folders te_<target> of a run by (seed, target); the seed is None where the run has a single one."""
    found: dict[tuple[int | None, str], Path] = {
        (None, _target_of(path)): path for path in sorted(run_dir.glob("te_*")) if path.is_dir()
    }
    for folder in sorted(run_dir.glob("seed_*")):
        if folder.name[5:].isdigit():
            found |= {(int(folder.name[5:]), _target_of(path)): path for path in sorted(folder.glob("te_*"))}
    return found


def _target_of(folder: Path) -> str:
    """Return the target of a folder te_<target>, from a checkpoint where the folder's name is not the whole of it."""
    name = folder.name.removeprefix("te_")
    if is_shortened(name):
        for path in sorted(folder.glob("checkpoints/*/checkpoint.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                return str(json.loads(path.read_text(encoding="utf-8"))["target"])
    return name


def read(path: Path) -> FinishedRun:
    """Return the description of an exported model.

    Raises:
        UserError: the file is missing, broken, or was not exported by a run.
    """
    config, meta = read_export(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return describe(config, meta).model_copy(update={"path": str(path), "digest": digest})


def describe(config: dict[str, Any], meta: dict[str, Any]) -> FinishedRun:
    """Return the description of the model of a run, of which the weights are elsewhere.

    Args:
        config: of the run, as in its config.yaml. meta: as in checkpoint.json.

    Raises:
        UserError: something is missing there.
    """
    try:
        ((dataset, settings),) = config["datasets"].items()
        return FinishedRun(
            path="",
            algorithm=config["algorithm"],
            hparams=config["algorithms"][config["algorithm"]],
            input_shape=meta["input_shape"],
            classes=meta["classes"],
            num_domains=meta["num_domains"],
            dataset=dataset,
            sources=meta["sources"],
            target=meta["target"],
            seed=meta["seed"],
            step=meta["step"],
            data=settings,
            runs=meta.get("runs", {}),
            train_images=meta.get("train_images", ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the recorded configuration of a run is not one of this version ({type(error).__name__}: {error})"
        ) from None


def build(run: FinishedRun) -> Algorithm:
    """Return the algorithm of a run on the CPU, with its weights where the run has a path, else yet to be loaded.

    Raises:
        UserError: the algorithm is unknown here, its keys have changed, or the weights don't fit.
    """
    if run.algorithm not in ALGORITHMS:
        raise UserError(
            f"{run.path or 'this run'} is of the algorithm {run.algorithm!r}, which is not built in. A plug-in is "
            "code: if you trust the one that has it, name it, plugin=[<file>] or --plugin <file>"
        )
    cls = ALGORITHMS[run.algorithm]
    try:
        hparams = cls.HParams(**run.hparams)
    except (TypeError, ValueError) as error:
        raise UserError(f"the configuration of {run.path or 'a run'} does not fit {run.algorithm}: {error}") from None
    hparams = hparams.model_copy(update=dict(run.runs))
    algorithm = construct(cls, run.input_shape, len(run.classes), run.num_domains, hparams)
    if run.path:
        load_tensors(Path(run.path), algorithm)
    return algorithm


def construct(cls: Any, shape: Any, num_classes: int, num_domains: int, hparams: Any) -> Algorithm:
    """Construct an algorithm whose weights will be loaded: no pretrained ones are looked for, no finished run read."""
    changed: dict[str, Any] = {key: run.model_copy(update={"path": ""}) for key, run in runs_of(hparams).items()}
    if "pretrained" in type(hparams).model_fields:
        changed["pretrained"] = "false"
    return cls(shape, num_classes, num_domains, hparams.model_copy(update=changed))


class Frozen(nn.Module):
    """The algorithm of a finished run as a part of another: in evaluation mode for ever, its weights never move.

    Gradients flow through it to its input, so that a judge can teach whom it judges.

    Attributes:
        algorithm: the algorithm.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__()
        self.algorithm = algorithm.requires_grad_(False).eval()
        self.training = False

    def train(self, mode: bool = True) -> "Frozen":
        """Leave the mode as it is."""
        return self


def frozen(hparams: Any, key: str, input_shape: tuple[int, int, int], capability: Any = None) -> Frozen:
    """Return the algorithm of the finished run that a key names, frozen.

    Args:
        hparams: with the key. key: one of `hparams.runs`.
        input_shape, capability: of `freeze`.

    Raises:
        UserError: the key names no run, or one that can't be used.
    """
    if hparams[key] is None:
        raise missing(hparams, key)
    return freeze(key, hparams[key], input_shape, capability)


def check_shape(key: str, run: FinishedRun, input_shape: tuple[int, int, int]) -> None:
    """Raise `UserError` where a finished run takes images of another size."""
    if tuple(run.input_shape) != tuple(input_shape):
        theirs, ours = (" x ".join(map(str, shape)) for shape in (run.input_shape, input_shape))
        raise UserError(
            f"{key}: {run.path} takes images of {theirs} (channels, height, width), but those of this run are {ours}. "
            "Use the image_size and preprocess of that run, or another run"
        )


#: What a run can't do that lacks a capability.
_LACKS: dict[Any, str] = {
    Coder: "gives no grid of discrete codes",
    Encoder: "gives no code of an image",
    Predictor: "predicts no classes",
}


def freeze(key: str, run: FinishedRun | str, input_shape: tuple[int, int, int], capability: Any = None) -> Frozen:
    """Return the algorithm of a finished run, frozen.

    Args:
        key: what named the run, for messages.
        run: its description, or the path of an exported model or of a run that holds one.
        input_shape: (C, H, W) of the images that it will be given.
        capability: `Coder`, `Encoder` or `Predictor` of `algorithms.base`, which it must be.

    Raises:
        UserError: the run can't be used: missing, unfinished, of another input size, without the capability.
    """
    if not isinstance(run, FinishedRun):
        run = read(find(key, run, "none", 0))
    check_shape(key, run, input_shape)
    algorithm = build(run)
    if capability is not None and not isinstance(algorithm, capability):
        raise UserError(
            f"{key}: {run.path} is a run of {run.algorithm}, which {_LACKS[capability]}. Name a run of an algorithm "
            "that does"
        )
    return Frozen(algorithm)


def warnings_of(
    key: str,
    run: FinishedRun,
    *,
    dataset: str,
    data: Mapping[str, Any],
    target: list[str],
    classes: list[str],
    unseen: Sequence[str],
) -> list[str]:
    """Return what a reader of figures must know of a finished run that a run is built on.

    Args:
        key: the hyper-parameter that names it.
        run: its description.
        dataset, classes: of the run that is built on it. data: the settings of its data set.
        target: the environments that it leaves out.
        unseen: contents (`Dataset.content`) of the images that it does not train on.
    """
    found = []
    if run.dataset == dataset:
        seen = [environment for environment in target if environment in run.sources]
        if seen:
            found.append(
                f"{key} was trained on {', '.join(seen)}, which is left out here: the figures are not those of an "
                "unseen camera"
            )
    if count := np.isin(_fingerprints(unseen), _decoded(run.train_images)).sum():
        found.append(
            f"{key} was trained on {count} of the {len(unseen)} images that are held out or left out here. Use the "
            "same trial_seed, holdout_fraction and labels for both runs"
        )
    keys = (run.data.keys() & data.keys()) - IRRELEVANT if run.dataset == dataset else {"preprocess"}
    for name in sorted(keys):
        if run.data[name] != data[name]:
            found.append(f"{key} was trained on images with {name} = {run.data[name]}, here it is {data[name]}")
    if run.classes and classes and run.classes != classes:
        found.append(f"{key} knows the classes {', '.join(run.classes)}, here they are {', '.join(classes)}")
    return found


def fingerprints(contents: Iterable[str]) -> str:
    """Return 64 bits of each image's content (`Dataset.content`), sorted, as base64: 11 letters an image."""
    return base64.b64encode(np.sort(_fingerprints(contents)).tobytes()).decode()


def _fingerprints(contents: Iterable[str]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(content.encode(), digest_size=8).digest() for content in contents)
    return np.frombuffer(digests, np.dtype("<u8"))


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.dtype("<u8"))


def read_export(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration and the checkpoint.json in the metadata of an exported model.

    Raises:
        UserError: the file is missing, broken, or was not exported by a run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return json.loads(metadata["config"]), json.loads(metadata["checkpoint"])
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except KeyError:
        raise UserError(
            f"{path} holds weights but no configuration: it is not a model exported by a run. Give the run's folder, "
            "and which checkpoint of it"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a model exported by a run ({error})") from None


def tensors_of(algorithm: nn.Module) -> dict[str, Tensor]:
    """Return the state of an algorithm on the CPU, each tensor with memory of its own, as safetensors wants it."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in algorithm.state_dict().items()}


def load_tensors(path: Path, algorithm: Algorithm) -> None:
    """Load weights and buffers out of a safetensors file.

    Raises:
        UserError: the file is missing, broken or truncated, or belongs to another algorithm.
    """
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. Use another checkpoint") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is broken or truncated ({error}). Use another checkpoint") from None
    try:
        algorithm.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} belongs to another algorithm or configuration: {reason}") from None
