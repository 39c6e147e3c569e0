"""The house stands as designed: imports go downward, nothing is a drawer for odds and ends, start-up is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import domainbed
from domainbed.cli import COMMANDS

PACKAGE = Path(domainbed.__file__).parent
CHECKOUT = PACKAGE.parent

#: From the lowest level to the highest. A module may import its own level and those below.
LEVELS = [
    {"errors", "files", "names", "paths", "registry", "hparams", "settings", "machine"},
    {"objectives", "networks", "pretrained", "minibatch", "device", "kernels"},
    {"datasets", "algorithms"},
    {
        "averages",
        "stepping",
        "metrics",
        "engine",
        "evaluator",
        "checkpoint",
        "classification_report",
        "reconstructions",
        "records",
        "model_selection",
        "summary",
        "conclusion",
        "time_left",
    },  # fmt: skip
    {"trainer"},
    {"analysis"},
    {"fake_gpu", "testing"},
    {"cli", "__main__"},
    {"api"},
]
#: Neighbours of one level that know nothing of each other.
STRANGERS = {("datasets", "algorithms"), ("algorithms", "datasets")}


def level(part):
    return next((number for number, parts in enumerate(LEVELS) if part in parts), None)


def imports(tree, module):
    """Yield (line, imported module) of all imports, also of those within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(module, source):
    """Return a line for each import of this source that goes upward, or to a stranger."""
    own = module.split(".")[1]
    found = []
    for line, name in imports(ast.parse(source), module):
        root, *rest = name.split(".")
        if root != "domainbed" or not rest or rest[0].startswith("__version__"):
            continue
        other = rest[0]
        if level(other) is None:
            found.append(f"{module}:{line} imports {name}, which has no level")
        elif level(other) > level(own) or (own, other) in STRANGERS:
            found.append(f"{module}:{line} imports {name}")
    return found


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts != ("domainbed", "__init__"):
            yield ".".join(parts), path


def test_every_module_has_a_level():
    without = {module.split(".")[1] for module, _ in modules()} - set().union(*LEVELS)
    assert not without, f"say in LEVELS where these belong: {without}"


def test_imports_go_downward():
    found = [line for module, path in modules() for line in violations(module, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "is_fault"),
    [
        ("domainbed.errors", "from domainbed.trainer import Run", True),
        ("domainbed.errors", "def f():\n    import domainbed.cli.train", True),
        ("domainbed.objectives.gaussian", "from domainbed import networks, engine", True),
        ("domainbed.objectives.gaussian", "from domainbed import networks", False),
        ("domainbed.objectives.gaussian", "from ..algorithms.base import Algorithm", True),
        ("domainbed.objectives.gaussian", "from . import schedules", False),
        ("domainbed.datasets.base", "from domainbed.algorithms.base import Algorithm", True),
        ("domainbed.algorithms.base", "from domainbed.datasets import base", True),
        ("domainbed.algorithms.base", "from domainbed import pretrained", False),
        ("domainbed.engine", "from domainbed.algorithms.base import Algorithm", False),
        ("domainbed.engine", "from domainbed.utils import everything", True),
        ("domainbed.trainer", "from domainbed.cli import train", True),
        ("domainbed.testing", "from domainbed.trainer import Run", False),
        ("domainbed.cli.train", "import domainbed, os, torch", False),
    ],
)
def test_the_reader_of_imports_sees_what_it_should(module, source, is_fault):
    assert bool(violations(module, source)) == is_fault


def test_the_package_itself_imports_nothing_of_its_own_when_it_is_imported():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [name for node in top for _, name in imports(node, "domainbed.__init__") if name.startswith("domainbed")]


def test_networks_are_torch_modules_and_nothing_else():
    foreign = {"os", "pathlib", "socket", "threading", "urllib", "huggingface_hub", "safetensors"}
    found = [
        f"{module}:{line} imports {name}"
        for module, path in modules()
        if module.startswith("domainbed.networks")
        for line, name in imports(ast.parse(path.read_text(encoding="utf-8")), module)
        if name.split(".")[0] in foreign
    ]
    assert not found, "\n".join(found)


def test_home_is_expanded_in_one_place() -> None:
    """`Path.expanduser` raises RuntimeError for a home that nobody has, which `user_path` puts into words."""
    places = [path for path in PACKAGE.rglob("*.py") if ").expanduser()" in path.read_text(encoding="utf-8")]
    assert places == [PACKAGE / "paths.py"]


def test_there_is_no_drawer_for_odds_and_ends():
    drawers = {"utils", "util", "misc", "helpers", "common"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in drawers]


def test_every_module_says_what_it_is():
    silent = [m for m, path in modules() if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent, silent


def test_no_file_is_larger_than_a_mebibyte():
    """Looks where files are committed: results, caches and environments of a user lie elsewhere."""
    folders = ["domainbed", "tests", "configs", "docs", "benchmarks"]
    paths = [path for folder in folders for path in (CHECKOUT / folder).rglob("*")] + list(CHECKOUT.glob("*"))
    files = [path for path in paths if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > 20
    assert not [path for path in files if path.stat().st_size > 2**20]


HEAVY = {
    "torch", "torchvision", "timm", "numpy", "cv2", "accelerate", "torchmetrics", "huggingface_hub", "matplotlib",
    "sklearn", "umap", "onnx", "onnxruntime",
}  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "domainbed", "list"],
        ["-m", "domainbed", "list", "--json"],
        ["-m", "domainbed", "--help"],
        ["-m", "domainbed", "lst"],
        *(["-m", "domainbed", command, "--help"] for command in COMMANDS if not command.startswith("train_")),
        ["train_all.py", "--help"],
        ["train_subset.py", "--help"],
        ["train_all.py", "x", "--algorithm", "VAE_GD"],
        ["train_all.py", "x", "--dataset", "DRR"],
        ["train_all.py", "../x"],
        ["train_all.py", "x", "nowhere.yaml"],
    ],
    ids=" ".join,
)
def test_what_trains_nothing_answers_without_torch(tmp_path, command):
    script = "domainbed" if command[0] == "-m" else str(CHECKOUT / command[0])
    arguments = command[2:] if command[0] == "-m" else command[1:]
    runner = "run_module" if command[0] == "-m" else "run_path"
    driver = f"""
import runpy, sys
sys.path.insert(0, {str(CHECKOUT)!r})
sys.argv = {[script, *arguments]!r}
try:
    runpy.{runner}({script!r}, run_name="__main__")
except SystemExit as stop:
    assert stop.code in (0, 2), stop.code
print("IMPORTED", sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["IMPORTED []"], done.stdout + done.stderr
