"""Typed hyper-parameters, and the one place where the layers of a configuration merge.

    layers, later wins: class defaults, the data set's defaults, config.yaml, YAML files, key=value

Every setting is a field of a pydantic model (`settings.RunSettings`, a data set's `HParams`, an algorithm's `HParams`)
in one flat namespace. `resolve` parses each value by its declared type, collects every fault before it raises, and
remembers which layer set what. What the settings mean is not here.
"""

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from domainbed.errors import UserError, did_you_mean
from domainbed.paths import user_path

__all__ = [
    "Decay", "Factor", "Field", "Fraction", "HParams", "Layer", "Names", "NonNegativeFloat", "NonNegativeInt",
    "PositiveFloat", "PositiveInt", "Rate", "Resolved", "SeparatedBy", "StepCount", "names_in", "path_text",
    "TwoOrMore", "read_yaml", "resolve",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a value of a type is, for messages: "is not <text>"."""

    text: str


@dataclass(frozen=True)
class SeparatedBy:
    """What lies between the items of a list that is written as one text, as a regular expression."""

    pattern: str


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic, like Python, takes true for 1
        raise ValueError("true and false are not numbers")
    return value


_NUMBER = BeforeValidator(_no_bool)
PositiveInt = Annotated[int, _NUMBER, Field(gt=0), Kind("a whole number of 1 or more")]
TwoOrMore = Annotated[int, _NUMBER, Field(ge=2), Kind("a whole number of 2 or more")]
NonNegativeInt = Annotated[int, _NUMBER, Field(ge=0), Kind("a whole number of 0 or more")]
StepCount = Annotated[int, _NUMBER, Field(ge=0), Kind("a step count (a whole number of 0 or more, such as 5000)")]
PositiveFloat = Annotated[float, _NUMBER, Field(gt=0, allow_inf_nan=False), Kind("a number above 0, such as 1e-4")]
NonNegativeFloat = Annotated[
    float, _NUMBER, Field(ge=0, allow_inf_nan=False), Kind("a number of 0 or more, such as 1e-4")
]
Decay = Annotated[float, _NUMBER, Field(ge=0, lt=1), Kind("a number from 0 to less than 1, such as 0.999")]
Rate = Annotated[float, _NUMBER, Field(ge=0, lt=1), Kind("a number from 0 to less than 1, such as 0.1")]
Factor = Annotated[float, _NUMBER, Field(gt=0, le=1), Kind("a number above 0 and up to 1, such as 0.8")]
Fraction = Annotated[float, _NUMBER, Field(gt=0, lt=1), Kind("a fraction between 0 and 1, such as 0.2")]


def names_in(known: Iterable[str]) -> AfterValidator:
    """A check that each name of a list is one of `known`, and there once: `Annotated[Names, names_in(known)]`."""
    known = tuple(known)

    def check(values: list[str]) -> list[str]:
        unknown = [value for value in values if value not in known]
        if unknown:
            raise ValueError(f"no {unknown[0]!r}{did_you_mean(unknown[0], known)}")
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{twice[0]!r} is named twice. Name it once")
        return values

    return AfterValidator(check)


def _names(value: Any) -> Any:
    return _items(str, (), value) if isinstance(value, str) else value


#: A list of names, also written as one text with commas, by whoever makes hyper-parameters in Python too.
Names = Annotated[list[str], BeforeValidator(_names), Kind("a list of names, such as [a, b] or a,b")]


class HParams(BaseModel):
    """Base of the hyper-parameters of algorithms and data sets; also readable as `hparams["lr"]`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    #: Values, of this model or of the run, that a flag stands for. They rank just below the place that sets the flag.
    #: A subclass names its own flags only; those of its bases stay.
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    #: Keys that others of its kind have and this one can't, and why, for whoever sets one on the command line.
    refused: ClassVar[dict[str, str]] = {}

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the values of others, and those: {"capacity": "kl_anneal = …"}."""
        return {}


@dataclass(frozen=True)
class Layer:
    """Some values from one place.

    Attributes:
        name: the place, as messages name it ("config.yaml", "command line").
        values: key to value; nested `algorithms:` and `datasets:` blocks are already taken out.
        shared: whether the place serves several runs, so that a key of another algorithm is not a mistake.
        place: what layers of one file have in common; empty for a layer that is a place of its own.
        quiet: whether a key of another algorithm is not even reported as unused.
    """

    name: str
    values: Mapping[str, Any]
    shared: bool = False
    place: str = ""
    quiet: bool = False


@dataclass
class Resolved:
    """The outcome of `resolve`: a value and the layer that set it for every key, and the keys that were not used."""

    values: dict[str, Any]
    sources: dict[str, str]
    models: dict[type[BaseModel], BaseModel] = field(default_factory=dict)
    unused: list[tuple[str, str]] = field(default_factory=list)


def resolve(
    models: list[type[BaseModel]],
    layers: list[Layer],
    known_elsewhere: Callable[[], Iterable[str]] = lambda: (),
) -> Resolved:
    """Merge `layers` over the defaults of `models`, later layers winning.

    Args:
        models: pydantic models with distinct field names.
        layers: from the weakest to the strongest.
        known_elsewhere: keys of algorithms and data sets that this run does not use; asked for only when a shared
            layer holds a key that no model has, because the answer may cost imports.

    Raises:
        UserError: naming every unknown key and every value that its type does not admit.
    """
    fields: dict[str, FieldInfo] = {}
    for model in models:
        twice = sorted(fields.keys() & model.model_fields.keys())
        if twice:
            raise TypeError(f"{model.__qualname__} declares {', '.join(twice)}, which another part of the run has too")
        fields |= model.model_fields
    refused = {key: why for model in models for key, why in getattr(model, "refused", {}).items()}
    presets = {flag: values for model in models for flag, values in presets_of(model).items()}
    resolved = Resolved({key: info.get_default(call_default_factory=True) for key, info in fields.items()}, {})
    resolved.sources = dict.fromkeys(fields, "default")
    faults: list[str] = []
    for _, place in groupby(layers, key=lambda layer: layer.place or layer.name):
        stated: list[tuple[str, dict[str, Any]]] = []
        for layer in place:
            parsed: dict[str, Any] = {}
            for key, value in layer.values.items():
                if key in fields:
                    try:
                        parsed[key] = parse(fields[key], value)
                    except ValidationError as error:
                        faults.append(f"{layer.name}: {explain(key, fields[key], value, error)}")
                elif layer.shared and key in set(known_elsewhere()):
                    if not layer.quiet:
                        resolved.unused.append((layer.name, key))
                elif key in refused:
                    faults.append(f"{layer.name}: {key} = {as_text(value)} is no setting here: {refused[key]}")
                else:
                    faults.append(f"{layer.name}: no setting named {key!r}{did_you_mean(key, fields)}")
            stated.append((layer.name, parsed))
        for flag in reversed(presets):  # the run's last: --debug is short, whatever an algorithm's flag asks for
            for name, parsed in stated:
                if parsed.get(flag):
                    implied = {key: parse(fields[key], value) for key, value in presets[flag].items() if key in fields}
                    resolved.values |= implied
                    resolved.sources |= dict.fromkeys(implied, f"{name}: {flag}")
        for name, parsed in stated:  # what a place states itself wins over what its flags imply
            resolved.values |= parsed
            resolved.sources |= dict.fromkeys(parsed, name)
    for model in models:
        try:
            resolved.models[model] = model(**{key: resolved.values[key] for key in model.model_fields})
        except ValidationError as error:
            if not faults:  # a value that failed above would fail here again
                faults.extend(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))
    return resolved


def presets_of(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the `presets` of a model and its bases by flag; a subclass may redefine a flag."""
    return {flag: values for base in reversed(model.__mro__) for flag, values in vars(base).get("presets", {}).items()}


def parse(info: FieldInfo, value: Any) -> Any:
    """Return `value`, possibly text from a command line, as the type that the field declares."""
    declared: Any = info.annotation
    for item in info.metadata:
        declared = Annotated[declared, item]
    declared = Annotated[declared, BeforeValidator(partial(_read, declared))]
    return TypeAdapter(declared).validate_python(value)


def _read(declared: Any, value: Any) -> Any:
    """Return `value` with its texts read as the declared type has them: null, lists, mappings, paths.

    Raises:
        ValueError: a path that can't be one, or a number with a decimal comma.
    """
    kinds = {get_origin(kind) or kind: (get_args(kind), metadata) for kind, metadata in _alternatives(declared)}
    literals = kinds.get(Literal, ((), ()))[0]
    if isinstance(value, str) and (value in literals or value.strip().lower() in ("null", "none")):
        return None if value not in literals and type(None) in kinds else value
    if (sequence := kinds.get(list) or kinds.get(tuple)) and str not in kinds and value is not None:
        (first, *others), metadata = sequence
        types_of = chain([first, *(kind for kind in others if kind is not ...)], repeat(first))  # of tuples, one each
        return [_read(kind, item) for item, kind in zip(_items(first, metadata, value), types_of, strict=False)]
    if not isinstance(value, str):
        return value
    if dict in kinds and value.lstrip().startswith("{"):
        return _yaml(value)
    if Path in kinds:
        return Path(path_text(value))
    if kinds.keys() & {int, float} and (comma := re.fullmatch(r"([-+]?\d+),(\d+)", value.strip())):
        meant = f"{comma[1]}.{comma[2]}, with a point" if float in kinds else f"{comma[1]}{comma[2]}, without a comma"
        raise ValueError(f"write {meant}")
    return value


def path_text(value: Any) -> Any:
    """Return what may be the text of a path as `user_path` has it, and any other value as it is.

    Raises:
        ValueError: it is no path.
    """
    if not isinstance(value, (str, Path)):
        return value
    try:
        return str(user_path(value))
    except UserError as error:
        raise ValueError(str(error)) from None


def _alternatives(declared: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield the types that a value may have, each with the metadata that it is annotated with."""
    if get_origin(declared) is Annotated:
        yield from _alternatives(get_args(declared)[0], (*get_args(declared)[1:], *metadata))
    elif get_origin(declared) in (Union, types.UnionType):
        for one in get_args(declared):
            yield from _alternatives(one, metadata)
    else:
        yield declared, metadata


def _items(item: Any, metadata: Iterable[Any], value: Any) -> list[Any]:
    """Return the items of a list that may be written as one text, or be a single item."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _yaml(value)
    in_words = {get_origin(kind) or kind for kind, _ in _alternatives(item)} & {str, Path}
    between = next((one.pattern for one in metadata if isinstance(one, SeparatedBy)), "," if in_words else r"[\s,]+")
    if isinstance(value, str) or (not in_words and isinstance(value, (list, tuple))):
        texts = [value] if isinstance(value, str) else value  # `--seeds 0,1 2` is a list of texts that are lists
        split = [re.split(between, text) if isinstance(text, str) else [text] for text in texts]
        return [part.strip() if isinstance(part, str) else part for parts in split for part in parts if part != ""]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def explain(key: str, info: FieldInfo, value: Any, error: ValidationError) -> str:
    """Return the sentence for a value that its field does not admit."""
    reasons = [str(one["msg"]) for one in error.errors() if one["type"] == "value_error"]
    reason = reasons[0].removeprefix("Value error, ") if reasons else ""
    return f"{key} = {value!r} is not {describe(info.annotation, info.metadata)}{f' ({reason})' if reason else ''}"


def describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return what values of a type are, in words."""
    for item in reversed([*metadata]):  # what was said last is the most particular
        if isinstance(item, Kind):
            return item.text
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else repr(arguments[0])
    if origin in (list, tuple):
        return f"a list, each {describe(arguments[0])}"
    if origin is dict:
        return "a mapping"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    return words.get(annotation, "null" if annotation is type(None) else str(annotation))


def as_text(value: Any) -> str:
    """Return a value as a YAML file or the command line has it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_text, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def documented(info: FieldInfo) -> tuple[str, str, str]:
    """Return a setting's default as text, empty where it has none, what it does, and what values it takes in words."""
    values = describe(info.annotation, info.metadata)
    if type(None) in get_args(info.annotation) and "null" not in values:
        values += ", or null"
    default = "" if info.is_required() else as_text(info.get_default(call_default_factory=True))
    return default, info.description or "", values


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: the file can't be read, is not YAML, has a key twice, or is not a mapping of names to values.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8. Give the path of a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise UserError(f"{path}, {error}") from None
    if values is None:
        return {}
    form = f"{path} must hold lines of the form 'key: value'"
    if not isinstance(values, dict):
        raise UserError(f"{form}, but holds {type(values).__name__}")
    for key in values:
        if not isinstance(key, str):
            raise UserError(f"{form} with the name of a setting as key, but one key is {key!r}. Write a name there")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, for which a key that stands twice in one mapping is an error, as YAML has it."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (key.tag, key.value) in first:
                    before = first[key.tag, key.value]
                    raise UserError(f"line {line}: the key {key.value!r} stands in line {before} already. Keep one")
                first[key.tag, key.value] = line
        return node


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
