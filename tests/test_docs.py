"""The documentation: the site builds without a warning, says all that the code has, and its tutorial runs."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import yaml
from pydantic.fields import FieldInfo

from domainbed import cli
from domainbed.cli.train import main as train
from domainbed.datasets.base import Dataset
from domainbed.hparams import parse
from domainbed.registry import ALGORITHMS, DATASETS, add_plugin
from domainbed.settings import RunSettings
from domainbed.testing import check_algorithm

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"
PAGES = sorted(path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md"))


class Parsed(HTMLParser):
    """What a built page links to, what it loads, and the cells of its tables."""

    LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.rows: list[list[str]] = []
        self.title = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "a":
            self.links.append(found.get("href") or "")
        if tag in self.LOADED:
            self.loaded.append(found.get(self.LOADED[tag]) or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag in ("td", "h1"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["td"]:
            self.rows[-1][-1] += data
        elif self._open[-1:] == ["h1"]:
            self.title += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. mkdocs-material's advice about its future is no warning about these pages."""
    pytest.importorskip("material", reason="needs pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=CHECKOUT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("INFO ") for line in lines), done.stderr
    assert any("Documentation built" in line for line in lines), done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Parsed]:
    """Every built page by its place in the site; the page for a link that leads nowhere is no page of ours."""
    found = {path.relative_to(site).as_posix(): Parsed(path) for path in site.rglob("*.html")}
    return {place: page for place, page in found.items() if place != "404.html"}


def test_every_page_is_built_and_in_the_navigation(pages: dict[str, Parsed]) -> None:
    beside = {"readme.html", "changelog.html", "contributing.html", "licence.html", "results_folder.html"}
    assert pages.keys() == {*PAGES, *beside}
    assert pages.keys() <= {urlsplit(link).path for link in pages["index.html"].links}


def test_every_algorithm_has_a_page(pages: dict[str, Parsed]) -> None:
    assert {f"algorithms/{name.lower()}.html" for name in ALGORITHMS} == {
        place for place in pages if place.startswith("algorithms/")
    }
    for name in ALGORITHMS:
        assert pages[f"algorithms/{name.lower()}.html"].title.rstrip("¶") == name


def is_listed(page: Parsed, key: str, info: FieldInfo, of: str = "") -> bool:
    """Whether a table of a page has an option with its description, and a default that, given again, is the same."""
    return any(
        row[0] == key
        and of in row[1]
        and (info.description or "").replace("`", "") in row
        and parse(info, row[-3]) == info.get_default(call_default_factory=True)
        for row in page.rows
        if len(row) >= 4
    )


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_option_of_an_algorithm_is_documented(pages: dict[str, Parsed], name: str) -> None:
    own, shared = pages[f"algorithms/{name.lower()}.html"], pages["settings.html"]
    for key, info in ALGORITHMS[name].HParams.model_fields.items():
        assert is_listed(own, key, info) or is_listed(shared, key, info), key


def test_every_option_of_a_run_and_of_a_data_set_is_documented(pages: dict[str, Parsed]) -> None:
    page = pages["settings.html"]
    for key, info in RunSettings.model_fields.items():
        assert is_listed(page, key, info), key
    for name in DATASETS:
        for key, info in DATASETS[name].HParams.model_fields.items():
            same = key in Dataset.HParams.model_fields and info.default == Dataset.HParams.model_fields[key].default
            assert is_listed(page, key, info, of="" if same else name), (name, key)
    for name, line in (ALGORITHMS.lines() | DATASETS.lines()).items():
        place = "algorithms.html" if name in ALGORITHMS else "datasets.html"
        assert [name, line.replace("`", "")] in pages[place].rows


def test_the_table_of_capabilities_is_that_of_the_classes(pages: dict[str, Parsed]) -> None:
    table = {row[0]: row[1:5] for row in pages["algorithms.html"].rows if len(row) == 6 and row[0]}
    assert table.keys() == set(ALGORITHMS)
    for name, cells in table.items():
        for cell, methods in zip(
            cells, (("predict", "segment"), ("reconstruct",), ("sample",), ("encode",)), strict=True
        ):
            assert (cell != "–") == any(hasattr(ALGORITHMS[name], method) for method in methods), (name, methods)


def test_no_list_is_shown_as_text(pages: dict[str, Parsed], site: Path) -> None:
    """The repository's view takes a list, or what belongs to an item, with less indentation than the site."""
    for place in pages:
        for paragraph in re.findall(r"<p>(.*?)</p>", (site / place).read_text(encoding="utf-8"), re.DOTALL):
            assert not re.search(r"^\s*(-|1\.) ", paragraph, re.MULTILINE), f"{place}: {paragraph}"


def test_a_built_page_loads_nothing_from_elsewhere(pages: dict[str, Parsed], site: Path) -> None:
    for place, page in pages.items():
        assert page.loaded
        for url in page.loaded:
            assert not urlsplit(url).netloc, f"{place} loads {url}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_links_of_the_repository_lead_somewhere() -> None:
    """On the repository's own pages, where nothing rewrites them."""
    for path in [*DOCS.rglob("*.md"), *CHECKOUT.glob("*.md"), CHECKOUT / "results" / "README.md"]:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#:\s]+)[)#]", text):
            assert (path.parent / link).exists(), f"{path.relative_to(CHECKOUT)} links to {link}"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (what follows the fence, content) of the blocks of a page that name a language."""
    for found in re.finditer(
        r"^```(\w+[^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        yield found[1], found[2]


#: Examples that are complete files, by the name that they register, with settings under which they learn in seconds.
EXAMPLES = {"LinearAE": {"latent_dim": 8}, "CodeClassifier": {"lr": 0.03}, "VREx": {}}


def test_every_example_of_an_algorithm_keeps_the_contract(tmp_path: Path) -> None:
    found = example_files(tmp_path, "ALGORITHMS")
    assert found == EXAMPLES.keys()
    for name, hparams in EXAMPLES.items():
        check_algorithm(ALGORITHMS[name], **hparams)


def test_the_example_of_a_data_set_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert example_files(tmp_path, "DATASETS") == {"NpzCameras"}
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for camera in ("a", "b"):
        images = generator.integers(0, 255, (12, 20, 24, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{camera}.npz", images=images, labels=np.arange(12) % 3)
    line = f"python train_all.py mine --plugin NpzCameras.py --dataset NpzCameras --data_dir {tmp_path} --algorithm AE"
    assert run(f"{line} --test_envs a --steps 2 --checkpoint_freq 2 image_size=16 batch_size=4") == 0
    assert Path("results/train_output/NpzCameras/mine/te_a/done").exists()


def example_files(folder: Path, registry: str) -> set[str]:
    """Write the examples that register a name, announce them as plug-ins, and return their names."""
    names = set()
    for page in (CHECKOUT / "README.md", *DOCS.rglob("*.md")):
        for language, text in blocks(page):
            registered = re.search(rf'^@{registry}\.register\("(\w+)"\)$', text, re.MULTILINE)
            if language == "python" and registered:
                path = folder / f"{registered[1]}.py"
                path.write_text(text, encoding="utf-8")
                add_plugin(path)
                names.add(registered[1])
    return names


#: The tutorial's settings, smaller.
TINY = {"image_size": 32, "model": "test_resnet", "batch_size": 4, "steps": 4, "checkpoint_freq": 2, "recon_freq": 4}


class QuickMap:
    """In the place of the module umap, whose compilation takes longer than all the rest; tests of `latents` have it."""

    class UMAP:
        def __init__(self, **options: object) -> None:
            pass

        def fit_transform(self, codes: np.ndarray) -> np.ndarray:
            return codes[:, :2]


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "umap", QuickMap)
    ran: list[str] = []
    for language, text in blocks(DOCS / "tutorial.md"):
        if language == "python":
            exec(text.replace("image_size=224, num_images=100", "image_size=32, num_images=25"), {})
        elif language.startswith("yaml"):
            (name,) = re.findall(r'title="([\w.]+)"', language)
            values = yaml.safe_load(text)
            assert values.keys() >= TINY.keys()
            Path(name).write_text(yaml.safe_dump(values | TINY), encoding="utf-8")
        else:
            assert language == "bash"
            for line in text.splitlines():
                status = run(line)
                captured = capfd.readouterr()
                assert status == 0, f"{line}\n{captured.out}{captured.err}"
                ran.append(line)
    assert len(ran) > 10
    results = Path("results/train_output/DR")
    assert (results / "first" / "te_wide50" / "done").exists() and (results / "baseline" / "summary.md").exists()


def run(line: str) -> int:
    """Run a command as a shell would, in this process."""
    python, *arguments = shlex.split(line)
    assert python == "python"
    if arguments[0] == "-m":
        assert arguments[1] == "domainbed"
        return cli.main(arguments[2:])
    return train(Path(arguments[0]).stem, arguments[1:])
