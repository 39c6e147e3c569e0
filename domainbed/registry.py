"""Names of algorithms and data sets, and the classes behind them.

A name is registered by a decorator,

    @ALGORITHMS.register("VAE_DG")
    class VAE_DG(Algorithm): ...

and found without importing anything: the files of `domainbed.algorithms` and `domainbed.datasets`, of the installed
entry points in the groups of the same names, and of `--plugin` files are read with `ast`. So `list`, `--help` and an
error in a name answer before torch is imported; the class itself is imported when it is asked for.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from domainbed.errors import UserError, did_you_mean
from domainbed.paths import user_path


@dataclass(frozen=True)
class Entry:
    """Where a name was found: its first docstring line, and the module that registers it when imported."""

    name: str
    line: str
    origin: str
    load: Callable[[], Any]


class Registry:
    """A mapping from names to classes that imports a class only when it is asked for.

    Args:
        kind: what a name stands for, in messages ("algorithm").
        variable: the name under which decorators refer to this registry ("ALGORITHMS").
        group: the package whose files are searched, and the entry-point group ("domainbed.algorithms").
    """

    def __init__(self, kind: str, variable: str, group: str) -> None:
        self.kind, self.variable, self.group = kind, variable, group
        self._classes: dict[str, type] = {}
        self._plugins: dict[str, Entry] = {}
        self._found: dict[str, Entry] | None = None

    def register(self, name: str) -> Callable[[type], type]:
        """Return a decorator that registers a class under `name`; a second class of that name is an error."""

        def decorate(cls: type) -> type:
            known = self._classes.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UserError(
                    f"two {self.kind}s are named {name!r}: {known.__module__}.{known.__qualname__} and "
                    f"{cls.__module__}.{cls.__qualname__}. Rename one of them"
                )
            self._classes[name] = cls
            cls.name = name  # type: ignore[attr-defined]
            return cls

        return decorate

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries() | self._classes, key=str.lower))

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in self._entries()

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> Any:
        """Import and return the class; raise `UserError` with the nearest names where there is none."""
        if name not in self._classes:
            entries = self._entries()
            if name not in entries:
                raise UserError(f"no {self.kind} named {name!r}{did_you_mean(name, self)}")
            entries[name].load()
            if name not in self._classes:
                raise UserError(
                    f"{entries[name].origin} announces the {self.kind} {name!r} but importing it registers no such "
                    f"name. Decorate the class with @{self.variable}.register({name!r})"
                )
        return self._classes[name]

    def lines(self) -> dict[str, str]:
        """First docstring line of every name, in the order of the names, without importing a class."""
        entries = self._entries()
        return {
            name: entries[name].line if name in entries else first_line(self._classes[name].__doc__) for name in self
        }

    def add_plugin(self, path: Path, tree: ast.Module, load: Callable[[], Any]) -> int:
        """Announce the names that a plug-in file registers here; return how many there are."""
        found = {name: Entry(name, line, str(path), load) for name, line in _registered(tree, self.variable)}
        for name in found:
            known = (self._entries() | self._plugins).get(name)
            if known is not None and known.origin != str(path):
                raise UserError(f"{path}: the {self.kind} {name!r} exists already in {known.origin}. Rename it")
        self._plugins |= found
        return len(found)

    def _entries(self) -> dict[str, Entry]:
        if self._found is None:
            self._found = {}
            for entry in [*self._in_package(), *self._in_entry_points()]:
                if entry.name in self._found and self._found[entry.name].origin != entry.origin:
                    origins = f"{self._found[entry.name].origin} and {entry.origin}"
                    raise UserError(f"two {self.kind}s are named {entry.name!r}: in {origins}. Uninstall or rename one")
                self._found[entry.name] = entry
        return self._found | self._plugins

    def _in_package(self) -> Iterator[Entry]:
        folder = Path(__file__).parent / self.group.rpartition(".")[2]
        for path in sorted(folder.glob("*.py")):
            module = f"{self.group}.{path.stem}"
            for name, line in _registered(ast.parse(path.read_bytes()), self.variable):
                yield Entry(name, line, str(path), partial(importlib.import_module, module))

    def _in_entry_points(self) -> Iterator[Entry]:
        for point in entry_points(group=self.group):
            origin = f"the entry point {point.name} = {point.value}"
            yield Entry(point.name, _entry_point_line(point), origin, partial(self._load, point))

    def _load(self, point: EntryPoint) -> None:
        try:
            cls = point.load()
        except Exception as error:
            raise UserError(
                f"the installed {self.kind} {point.name!r} ({point.value}) does not import: "
                f"{type(error).__name__}: {error}. Mend or uninstall its package"
            ) from error
        if point.name not in self._classes:
            self.register(point.name)(cls)


ALGORITHMS = Registry("algorithm", "ALGORITHMS", "domainbed.algorithms")
DATASETS = Registry("data set", "DATASETS", "domainbed.datasets")


def add_plugin(path: str | Path) -> None:
    """Announce the algorithms and data sets of a Python file; it is imported when one of them is first used.

    Raises:
        UserError: the file is missing, is not Python, registers nothing, or fails when imported.
    """
    path = user_path(path).resolve()
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise UserError(f"--plugin {path}: {error.strerror}. Give the path of a Python file") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"--plugin {path} is not valid Python: {error}") from None
    module = f"domainbed_plugin_{path.stem}"

    def load() -> None:
        if module in sys.modules and getattr(sys.modules[module], "__file__", None) == str(path):
            return
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None and spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[module])
        except Exception as error:
            del sys.modules[module]
            if isinstance(error, UserError):
                raise
            raise UserError(f"--plugin {path} does not import: {type(error).__name__}: {error}") from error

    if not sum(registry.add_plugin(path, tree, load) for registry in (ALGORITHMS, DATASETS)):
        raise UserError(
            f"--plugin {path} registers nothing. Decorate a class with @ALGORITHMS.register('Name') or "
            "@DATASETS.register('Name'), both from domainbed.registry"
        )


def first_line(docstring: str | None) -> str:
    """First line of a docstring, or an empty string."""
    return (docstring or "").strip().partition("\n")[0].strip()


def _registered(tree: ast.Module, variable: str) -> Iterator[tuple[str, str]]:
    """Yield (name, first docstring line) of the classes decorated with `@<variable>.register("name")`."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            match decorator:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr="register"),
                    args=[ast.Constant(value=str(name))],
                ) if owner == variable:
                    yield name, first_line(ast.get_docstring(node))


def _entry_point_line(point: EntryPoint) -> str:
    """First docstring line of an entry point's class, read from its file; empty where that can't be found."""
    top, *rest = point.module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        if spec is None or spec.origin is None:
            return ""
        base = Path(spec.origin)
        if rest:
            base = base.parent.joinpath(*rest)
            base = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        tree = ast.parse(base.read_bytes())
    except (OSError, SyntaxError, ValueError, ImportError):
        return ""  # a broken package says so when its class is asked for; it must not break the others
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == point.attr:
            return first_line(ast.get_docstring(node))
    return ""
