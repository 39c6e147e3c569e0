"""From a command line and YAML files to the resolved settings of a run.

    class defaults -> the data set's defaults -> config.yaml -> YAML files -> key=value or --key value

How layers merge is in `hparams`; this file finds them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from pydantic import ValidationError

import domainbed
from domainbed.errors import UserError, did_you_mean
from domainbed.hparams import HParams, Layer, Resolved, explain, parse, read_yaml, resolve
from domainbed.paths import user_path
from domainbed.registry import ALGORITHMS, DATASETS, add_plugin
from domainbed.settings import RunSettings

COMMAND_LINE = "command line"
YAML_SUFFIXES = (".yaml", ".yml")
#: What may follow a flag without being the name of the run.
FLAG_WORDS = ("true", "false", "yes", "no", "on", "off")
#: What may differ when a run goes on: where things are and how fast, never what is computed.
#: `test_envs` is compared once its names are known.
MOVABLE = {
    "data_dir", "results_dir", "cache_dir", "num_workers", "device", "eval_batch_size", "test_envs", "plugin", "resume",
    "show", "debug", "download", "accumulate", "compile", "deterministic",
}  # fmt: skip


@dataclass
class Arguments:
    """A command line, read but not yet checked.

    Attributes:
        name: of the run, None if not given. files: YAML files, in order. values: keys, as text or lists of text.
    """

    name: str | None
    files: list[Path]
    values: dict[str, Any]


def read_arguments(argv: list[str]) -> Arguments:
    """Take a command line apart: `name`, `file.yaml`, `key=value`, `--key value`, `--key=value`, `--flag`.

    Raises:
        UserError: an option without a value, or more than one name.
    """
    names: list[str] = []
    files: list[Path] = []
    values: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token.startswith("--"):
            key, equals, value = token[2:].partition("=")
            key = key.replace("-", "_")
            if equals:
                values[key] = value
            elif _is_flag(key):
                values[key] = "true"
                if rest and rest[0].lower() in FLAG_WORDS:
                    values[key] = rest.pop(0)
            else:
                taken: list[str] = []
                while rest and not rest[0].startswith("--") and (not taken or (_is_list(key) and _is_plain(rest[0]))):
                    taken.append(rest.pop(0))
                if not taken:
                    raise UserError(f"--{key} needs a value, but none follows. Write --{key} <value> or {key}=<value>")
                values[key] = taken if _is_list(key) else taken[0]
        elif Path(token).suffix.lower() in YAML_SUFFIXES and "=" not in token:
            files.append(user_path(token))
        elif "=" in token:
            key, _, value = token.partition("=")
            values[key.replace("-", "_")] = value
        else:
            names.append(token)
    if len(names) > 1:
        raise UserError(
            f"a run has one name, but {' and '.join(map(repr, names))} are given. Write settings as key=value or "
            "--key value, and configurations as files that end in .yaml"
        )
    return Arguments(names[0] if names else None, files, values)


def _is_plain(token: str) -> bool:
    return "=" not in token and Path(token).suffix.lower() not in YAML_SUFFIXES


def _is_flag(key: str) -> bool:
    info = RunSettings.model_fields.get(key)
    return info is not None and info.annotation is bool


def _is_list(key: str) -> bool:
    info = RunSettings.model_fields.get(key)
    return info is not None and get_origin(info.annotation) is list


def check_name(name: str | None) -> str:
    """Return the name of a run, which becomes a folder.

    Raises:
        UserError: it is missing or is no plain folder name.
    """
    if not name:
        raise UserError("a run needs a name. Write it first: python train_all.py <name> [file.yaml …] [key=value …]")
    if "/" in name or "\\" in name or name in (".", "..") or name.startswith((".", "-")) or not name.isprintable():
        raise UserError(
            f"{name!r} can't name a run: it becomes a folder in results. Use letters, digits, '-' and '_', and "
            "--results_dir for another place"
        )
    if len(name.encode()) > 200:
        raise UserError(f"the run's name is {len(name.encode())} bytes long; a folder's name may have 200. Shorten it")
    return name


def config_file() -> Path | None:
    """Return the config.yaml of the current folder, or else that of the checkout."""
    for folder in (Path.cwd(), Path(domainbed.__file__).parents[1]):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    return None


@dataclass
class Configuration:
    """All settings of a run, checked.

    Attributes:
        settings: of the run; `dataset` is never None.
        dataset: the class. dataset_hparams: its options. algorithm, algorithm_hparams: likewise.
        resolved: every value and the layer that set it.
        idle: sentences about keys that the run's own files or the command line set to no effect (`HParams.idle`).
    """

    settings: RunSettings
    dataset: Any
    dataset_hparams: Any
    algorithm: Any
    algorithm_hparams: Any
    resolved: Resolved
    idle: list[str]

    def plain(self) -> dict[str, Any]:
        """The configuration as plain data, in the layout of a YAML file that repeats the run."""
        run = self.settings.model_dump(mode="json", exclude={"resume", "show", "debug"})
        return run | {
            "datasets": {self.settings.dataset: self.dataset_hparams.model_dump(mode="json")},
            "algorithms": {self.settings.algorithm: self.algorithm_hparams.model_dump(mode="json")},
        }

    def yaml(self, command: str) -> str:
        """`plain` as YAML, with the layer that set each value as a comment."""
        plain = self.plain()
        lines = [
            f"{_HEADER}{domainbed.__version__}: {command}",
            "# Repeat with: python train_all.py <name> <this file>",
        ]

        def add(values: dict[str, Any], indent: str) -> None:
            for key, value in values.items():
                source = self.resolved.sources.get(key, "default")
                lines.append(f"{indent}{key}: {json.dumps(value)}" + ("" if source == "default" else f"  # {source}"))

        add({key: value for key, value in plain.items() if key not in ("datasets", "algorithms")}, "")
        for kind in ("datasets", "algorithms"):
            ((name, values),) = plain[kind].items()
            lines += [f"{kind}:", f"  {name}:"]
            add(values, "    ")
        return "\n".join(lines) + "\n"

    def shown(self) -> list[str]:
        """Lines for `--show`: every value and the layer that set it."""
        rows = []
        for title, model in (
            ("run", self.settings),
            (f"data set {self.settings.dataset}", self.dataset_hparams),
            (f"algorithm {self.settings.algorithm}", self.algorithm_hparams),
        ):
            rows.append((f"{title}:", "", ""))
            for key, value in model.model_dump(mode="json").items():
                rows.append((f"  {key}", json.dumps(value), self.resolved.sources.get(key, "default")))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        return [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]


#: How a written configuration begins: then come the version, a colon, and the command of the run.
_HEADER = "# domainbed "


def first_command(recorded: Path) -> str | None:
    """Return the command that began a run, from its config.yaml; None where that has lost its first line."""
    first = recorded.read_text(encoding="utf-8").partition("\n")[0]
    return first.partition(": ")[2] or None if first.startswith(_HEADER) else None


def configure(script: str, arguments: Arguments, recorded: Path | None = None) -> Configuration:
    """Merge all layers.

    Args:
        script: "train_all" or "train_subset", which has defaults of its own.
        arguments: the command line.
        recorded: config.yaml of the run that goes on; it takes the place of every layer but the command line's.

    Raises:
        UserError: naming every fault at once.
    """
    shared: list[tuple[str, dict[str, Any]]] = []
    if recorded is not None:
        shared.append((str(recorded), read_yaml(recorded)))
    elif (path := config_file()) is not None:
        shared.append((path.name, read_yaml(path)))
    files = [(str(path), read_yaml(path)) for path in arguments.files]
    raw = [*(values for _, values in [*shared, *files]), arguments.values]

    for path in _plugins([*shared, *files, (COMMAND_LINE, arguments.values)]):
        add_plugin(path)
    algorithm_name = str(_last(raw, "algorithm", RunSettings.model_fields["algorithm"].default))
    data_dir = _last(raw, "data_dir", None)
    dataset_name = _last(raw, "dataset", None)
    if dataset_name in (None, "null", "none"):
        dataset_name = "DR" if data_dir not in (None, "null", "none") else "SyntheticFundus"
    faults = [
        f"no {registry.kind} named {name!r}{did_you_mean(name, registry)}"
        for registry, name in ((ALGORITHMS, algorithm_name), (DATASETS, str(dataset_name)))
        if name not in registry
    ]
    for where, values in [*shared, *files]:
        faults += _block_faults(where, values)
    if faults:
        raise UserError("\n".join(faults))

    dataset, algorithm = DATASETS[str(dataset_name)], ALGORITHMS[algorithm_name]
    if dataset.gives_vectors:
        algorithm.check_takes_vectors(of=dataset.name)
    layers = [Layer(f"data set {dataset_name}", dataset.defaults, shared=True)]
    if recorded is None and script == "train_subset":
        layers.append(Layer(SUBSET_LAYER, {"subset_size": SUBSET_SIZE}))
    for where, values in shared:  # its data set's block serves every algorithm: a key of another is no mistake
        layers += _file_layers(where, values, str(dataset_name), algorithm_name, quiet=True)
    recorded_layers = list(layers)
    for where, values in files:
        layers += _file_layers(where, values, str(dataset_name), algorithm_name)
    layers.append(Layer(COMMAND_LINE, arguments.values))
    resolved = resolve([RunSettings, dataset.HParams, algorithm.HParams], layers, _all_keys)
    if recorded is not None:
        _check_unchanged(recorded, recorded_layers, resolved)
    hparams = cast(HParams, resolved.models[algorithm.HParams])
    if dataset.gives_vectors:
        algorithm.check_takes_vectors(hparams, dataset.name)
    shared_places = {where for where, _ in shared}
    own = {layer.name for layer in layers if layer.place and layer.place not in shared_places} | {COMMAND_LINE}
    idle = [
        f"{resolved.sources[key]}: {key} = {hparams[key]} has no effect, because {why}"
        for key, why in hparams.idle().items()
        if resolved.sources[key] in own
    ]
    settings = cast(RunSettings, resolved.models[RunSettings]).model_copy(update={"dataset": str(dataset_name)})
    return Configuration(settings, dataset, resolved.models[dataset.HParams], algorithm, hparams, resolved, idle)


#: Most images per environment of `train_subset` where nothing is said: enough to see a model learn, few enough to wait
#: for.
SUBSET_SIZE = 100
#: The layer that sets it. It asks for no more than the smallest environment has.
SUBSET_LAYER = "train_subset"


def _check_unchanged(recorded: Path, before: list[Layer], now: Resolved) -> None:
    """Raise `UserError` where going on would compute something else than the run did."""
    then = resolve(list(now.models), before, _all_keys)
    movable = MOVABLE.union(*(getattr(model, "runs", {}) for model in now.models))
    changed = [
        f"{key} was {then.values[key]!r} and is now {value!r} ({now.sources[key]})"
        for key, value in now.values.items()
        if key not in movable and key != "dataset" and value != then.values[key] and value != "auto"
    ]
    for key, value in now.values.items():
        if value == "auto" and key not in movable:
            now.values[key] = then.values[key]  # an automatic choice stays as it fell
            now.sources[key] = then.sources[key]
    if changed:
        raise UserError(
            f"{recorded.parent} can't go on with other settings: {'; '.join(changed)}. Leave them out, or start "
            "another run"
        )
    for model in now.models:
        now.models[model] = model(**{key: now.values[key] for key in model.model_fields})


def _file_layers(
    where: str, values: dict[str, Any], dataset: str, algorithm: str, *, quiet: bool = False
) -> list[Layer]:
    """Return the layers of one file: its top level, then its blocks for this run, the most particular winning.

    What makes a run on a data set small is said in that data set's block, and must hold for every algorithm but those
    that have a block inside it. Under `quiet`, keys of other algorithms in that block are not reported.
    """

    def layer(name: str, values: dict[str, Any], quiet: bool = False) -> Layer:
        return Layer(name, values, shared=True, place=where, quiet=quiet)

    def block(values: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
        return (values.get(kind) or {}).get(name) or {}

    def own(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in ("algorithms", "datasets")}

    of_dataset = block(values, "datasets", dataset)
    return [
        layer(where, own(values)),
        layer(f"{where} (algorithms: {algorithm})", block(values, "algorithms", algorithm)),
        layer(f"{where} (datasets: {dataset})", own(of_dataset), quiet),
        layer(f"{where} (datasets: {dataset}, algorithms: {algorithm})", block(of_dataset, "algorithms", algorithm)),
    ]


#: What may stand in blocks of each kind, from the top level of a file.
_BLOCKS = (("algorithms", ALGORITHMS), ("datasets", DATASETS))


def _block_faults(where: str, values: dict[str, Any], kinds: Any = _BLOCKS) -> Iterable[str]:
    for kind, registry in kinds:
        block = values.get(kind) or {}
        if not isinstance(block, dict):
            yield f"{where}: {kind} must hold names, and below each its keys, but is {block!r}"
            continue
        for name, inside in block.items():
            if name not in registry:
                yield f"{where}: {kind}: no {registry.kind} named {name!r}{did_you_mean(name, registry)}"
            elif inside is not None and not isinstance(inside, dict):
                yield f"{where}: {kind}: {name} must hold keys and values, but is {inside!r}"
            elif kind == "datasets" and inside is not None:
                yield from _block_faults(f"{where}: {kind}: {name}", inside, _BLOCKS[:1])


def _plugins(places: list[tuple[str, dict[str, Any]]]) -> list[Path]:
    return parsed_early("plugin", places)


def parsed_early(key: str, places: list[tuple[str, dict[str, Any]]]) -> Any:
    """Return a setting of the run that is needed before the layers are merged, as the last place states it.

    Args:
        key: of `RunSettings`. places: names and values, from the weakest to the strongest.

    Raises:
        UserError: the value is not one of its type.
    """
    info = RunSettings.model_fields[key]
    for where, values in reversed(places):
        if key in values:
            try:
                return parse(info, values[key])
            except ValidationError as error:
                raise UserError(f"{where}: {explain(key, info, values[key], error)}") from None
    return info.get_default(call_default_factory=True)


def places_before_merging(arguments: Arguments) -> list[tuple[str, dict[str, Any]]]:
    """Return what config.yaml, the YAML files and the command line state, by the name of the place."""
    path = config_file()
    files = [(str(file), read_yaml(file)) for file in arguments.files]
    return [*([(path.name, read_yaml(path))] if path else []), *files, (COMMAND_LINE, arguments.values)]


def _last(layers: list[dict[str, Any]], key: str, default: Any) -> Any:
    return next((layer[key] for layer in reversed(layers) if key in layer), default)


def _all_keys() -> set[str]:
    """Keys of all registered algorithms and data sets. Costs their imports."""
    classes: list[Any] = [registry[name] for registry in (ALGORITHMS, DATASETS) for name in registry]
    return {key for cls in classes for key in cls.HParams.model_fields}


def option_help(model: type[RunSettings | HParams], keys: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """Return (option, explanation) of the fields of a model."""
    rows = []
    for key, info in model.model_fields.items():
        if keys is not None and key not in keys:
            continue
        annotation, default = info.annotation, info.get_default(call_default_factory=True)
        if annotation is bool:
            shape = ""
        elif get_origin(annotation) is Literal:
            shape = f" {{{','.join(map(str, get_args(annotation)))}}}"
        elif get_origin(annotation) is list:
            shape = f" {key.upper().removesuffix('S')} …"
        else:
            words = {int: "N", float: "X", Path: "PATH", str: "NAME"}
            kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
            bare = [get_args(kind)[0] if hasattr(kind, "__metadata__") else kind for kind in kinds]
            shape = f" {next((words[kind] for kind in bare if kind in words), 'VALUE')}"
        shown = "" if default is None or default is False or default == [] else f" (default: {default})"
        rows.append((f"--{key}{shape}", f"{info.description}{shown}"))
    return rows
