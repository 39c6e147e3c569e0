"""What the documentation site has beyond the files of `docs/`: tables made from the code, and the pages beside `docs/`.

Markers in a page, which the repository's own view does not show:

    <!-- options: VAE_DG -->        the options of an algorithm, but for those that all have unchanged
    <!-- options: algorithms -->    those that all algorithms have; likewise `datasets`
    <!-- options: single_datasets -->   those that only some data sets have, or have otherwise
    <!-- options: run -->           those of a run that belong to neither
    <!-- registry: algorithms -->   every registered name with its first docstring line; likewise `datasets`
    <!-- commands -->               every command of `python -m domainbed`

In `mkdocs.yml` a `folder/*.md` of the nav stands for the pages of that folder. README, CHANGELOG, CONTRIBUTING and
LICENSE become pages, and links are rewritten to them, so that one relative link serves the repository and the site.
"""

import html
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from domainbed.algorithms.base import Algorithm
from domainbed.cli import COMMANDS
from domainbed.datasets.base import Dataset
from domainbed.hparams import as_text, documented
from domainbed.registry import ALGORITHMS, DATASETS
from domainbed.settings import RunSettings

DOCS = Path(__file__).parent
#: Files beside `docs/`, and the pages that they become.
BESIDE = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "licence.md",
    "results/README.md": "results_folder.md",
}
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)#:\s]+)(?=[)#])")
#: The repository's view wants a bar in code in a table escaped, and Python-Markdown shows the backslash.
_TABLE_ROW, _CODE = re.compile(r"(?m)^\|.*$"), re.compile(r"`[^`]*`")
HEAD = ["option", "default", "what it is", "values"]
_MARKER = re.compile(r"<!-- (?P<kind>options|registry|commands)(?:: (?P<what>\w+))? -->")


def on_config(config: MkDocsConfig) -> None:
    """Replace each `folder/*.md` of the nav by the pages of that folder."""
    config.nav = _expanded(config.nav or [])


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages beside `docs/`."""
    for source, page in BESIDE.items():
        text = (DOCS.parent / source).read_text(encoding="utf-8")
        if not source.endswith(".md"):
            text = f"# Licence\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the markers of a page, and point its links at the site's pages."""
    place = page.file.src_uri
    markdown = _MARKER.sub(lambda found: _filled(place, found["kind"], found["what"] or ""), markdown)
    markdown = _TABLE_ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), markdown)
    return _LINK.sub(lambda found: _link(place, found["path"]), markdown)


def _expanded(nav: Iterable[Any]) -> list[Any]:
    items: list[Any] = []
    for item in nav:
        if isinstance(item, dict):
            items.append(
                {title: _expanded(below) if isinstance(below, list) else below for title, below in item.items()}
            )
        elif "*" in item:
            items.extend(_pages(item))
        else:
            items.append(item)
    return items


def _pages(pattern: str) -> list[Any]:
    """Return the nav's items for the pages of a folder: commands by their names and in their order, others by title."""
    order = list(COMMANDS)
    paths = sorted(DOCS.glob(pattern), key=lambda path: (path.stem in order and order.index(path.stem), path.name))
    pages = [(path.stem, path.relative_to(DOCS).as_posix()) for path in paths]
    return [{name: page} if name in COMMANDS else page for name, page in pages]


def _link(place: str, path: str) -> str:
    """Return the link from page `place` to what `path` names as seen from the page's own file."""
    own = {page: DOCS.parent / source for source, page in BESIDE.items()}.get(place, DOCS / place)
    target = Path(os.path.normpath(own.parent / path))
    beside = BESIDE.get(target.relative_to(DOCS.parent).as_posix()) if target.is_relative_to(DOCS.parent) else None
    if beside is None and not target.is_relative_to(DOCS):
        return path
    within = beside or target.relative_to(DOCS).as_posix()
    return Path(os.path.relpath(within, Path(place).parent)).as_posix()


def _filled(place: str, kind: str, what: str) -> str:
    """Return the table that a marker of page `place` stands for."""
    if kind == "commands":
        pages = {name: DOCS / "analysis" / f"{name}.md" for name in COMMANDS}
        return _table(
            ["command", ""],
            [[_linked(place, name, pages[name]), line] for name, line in COMMANDS.items()],
        )
    if kind == "registry" and what == "algorithms":
        pages = {name: DOCS / "algorithms" / f"{name.lower()}.md" for name in ALGORITHMS}
        return _table(
            ["algorithm", ""], [[_linked(place, name, pages[name]), line] for name, line in ALGORITHMS.lines().items()]
        )
    if kind == "registry" and what == "datasets":
        return _table(["data set", ""], [[f"`{name}`", line] for name, line in DATASETS.lines().items()])
    if kind == "options" and what == "run":
        return _run_settings()
    if kind == "options" and what == "algorithms":
        return _options(Algorithm.HParams.model_fields)
    if kind == "options" and what == "datasets":
        return _options(Dataset.HParams.model_fields)
    if kind == "options" and what == "single_datasets":
        return _dataset_options()
    if kind == "options" and what in ALGORITHMS:
        return _options(_own(ALGORITHMS[what].HParams.model_fields, Algorithm.HParams.model_fields))
    raise ValueError(f"{place}: <!-- {kind}: {what} --> names nothing. The markers are in {__file__}")


def _linked(place: str, name: str, page: Path) -> str:
    """Return a name as code, linked from page `place` to its own page if there is one."""
    link = os.path.relpath(page, (DOCS / place).parent)
    return f"[`{name}`]({link})" if page.is_file() else f"`{name}`"


def _own(fields: Mapping[str, FieldInfo], shared: Mapping[str, FieldInfo]) -> dict[str, FieldInfo]:
    """Return the fields that are not the same in `shared`: first those that it lacks."""
    changed = {key: info for key, info in fields.items() if key in shared and _row(key, info) != _row(key, shared[key])}
    return {key: info for key, info in fields.items() if key not in shared} | changed


def _run_settings() -> str:
    groups: dict[str, dict[str, FieldInfo]] = {}
    for key, info in RunSettings.model_fields.items():
        extra = info.json_schema_extra
        assert isinstance(extra, dict)
        groups.setdefault(str(extra["group"]), {})[key] = info
    return "\n\n".join(f"### {group.capitalize()}\n\n{_options(fields)}" for group, fields in groups.items())


def _dataset_options() -> str:
    """Return the options that are not those of every data set, and the values that data sets give to other settings."""
    owners: dict[tuple[str, ...], list[str]] = {}
    for name in DATASETS:
        for key, info in _own(DATASETS[name].HParams.model_fields, Dataset.HParams.model_fields).items():
            owners.setdefault(tuple(_row(key, info)), []).append(f"`{name}`")
    rows = [[option, ", ".join(names), *rest] for (option, *rest), names in sorted(owners.items())]
    defaults = [
        [f"`{name}`", ", ".join(f"`{key}={as_text(value)}`" for key, value in DATASETS[name].defaults.items())]
        for name in DATASETS
        if DATASETS[name].defaults
    ]
    return (
        _table(["option", "of", *HEAD[1:]], rows)
        + "\n\nSettings of a run or of an algorithm that have another default with a data set:\n\n"
        + _table(["data set", "default"], defaults)
    )


def _options(fields: Mapping[str, FieldInfo]) -> str:
    return _table(HEAD, [_row(key, info) for key, info in fields.items()])


def _row(key: str, info: FieldInfo) -> list[str]:
    default, description, values = documented(info)
    return [f"`{key}`", f"`{default}`", description, values]


def _table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return text, with code between backticks, as a cell that shows it as it stands."""
    parts = text.split("`")
    parts[::2] = [html.escape(part, quote=False).replace("*", "\\*").replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)
