"""Names without imports, and what a user reads about duplicates, unknown names and broken plug-ins."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from domainbed import registry
from domainbed.errors import UserError
from domainbed.registry import Registry


@pytest.fixture
def registries(monkeypatch):
    """Registries of this test's own under the names that plug-in files import."""
    own = {
        "ALGORITHMS": Registry("algorithm", "ALGORITHMS", "domainbed.algorithms"),
        "DATASETS": Registry("data set", "DATASETS", "domainbed.datasets"),
    }
    for name, one in own.items():
        monkeypatch.setattr(registry, name, one)
    before = set(sys.modules)
    yield own
    for name in set(sys.modules) - before:
        if name.startswith("domainbed_plugin_"):
            del sys.modules[name]


def plugin(path, text):
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


TWO = '''
    from domainbed.registry import ALGORITHMS, DATASETS

    @ALGORITHMS.register("Mine")
    class Mine:
        """What it does.

        And more.
        """

    @DATASETS.register("MyEyes")
    class Eyes:
        """Which eyes."""
'''


def python(code, *folders):
    """Run code in a process that finds packages in these folders too."""
    checkout = Path(registry.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*folders, checkout]))}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, timeout=60
    )


def test_names_and_their_lines_cost_no_import_of_torch_or_of_an_algorithm():
    done = python("""
        import sys
        from domainbed.registry import ALGORITHMS, DATASETS
        assert {"AE", "ERM", "VAE_DG"} <= set(ALGORITHMS) and {"DR", "Folder", "SyntheticFundus"} <= set(DATASETS)
        assert len(ALGORITHMS) == len(list(ALGORITHMS)) and "ERM" in ALGORITHMS and "ERN" not in ALGORITHMS
        assert all(line for one in (ALGORITHMS, DATASETS) for line in one.lines().values())
        print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "timm", "numpy", "PIL"}))
        print([name for name in sys.modules if name.startswith(("domainbed.algorithms", "domainbed.datasets"))])
    """)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


def test_every_announced_name_imports_a_class_of_that_name():
    for one in (registry.ALGORITHMS, registry.DATASETS):
        for name in one:
            assert one[name].name == name
            assert one.lines()[name] == registry.first_line(one[name].__doc__)


def test_names_are_in_alphabetical_order_whatever_their_case(registries, tmp_path):
    registry.add_plugin(plugin(tmp_path / "a.py", TWO.replace('"Mine"', '"aa"')))
    names = list(registries["ALGORITHMS"])
    assert names == sorted(names, key=str.lower) and "aa" in names


def test_two_classes_of_one_name_are_an_error_that_names_both(registries):
    @registries["ALGORITHMS"].register("Twice")
    class First:
        pass

    registries["ALGORITHMS"].register("Twice")(First)  # the same class again, as a reload does
    with pytest.raises(UserError, match="two algorithms are named 'Twice': .*First and .*Second. Rename one"):

        @registries["ALGORITHMS"].register("Twice")
        class Second:
            pass


def test_an_unknown_name_is_told_its_neighbours(registries):
    with pytest.raises(UserError) as raised:
        registries["ALGORITHMS"]["VAE_GD"]
    assert str(raised.value).startswith("no algorithm named 'VAE_GD': did you mean 'VAE_DG'? known names: AE, ")
    with pytest.raises(UserError, match="no data set named 'syntheticfundus': did you mean 'SyntheticFundus'"):
        registries["DATASETS"]["syntheticfundus"]
    with pytest.raises(UserError, match=r"no algorithm named 'xyz'\. known names: "):
        registries["ALGORITHMS"]["xyz"]


def test_a_plug_in_is_listed_at_once_and_imported_when_it_is_used(registries, tmp_path):
    path = plugin(tmp_path / "mine.py", TWO + "\n    print('imported')\n")
    registry.add_plugin(path)
    registry.add_plugin(str(path))  # named twice, as by a file and the command line
    assert registries["ALGORITHMS"].lines()["Mine"] == "What it does."
    assert registries["DATASETS"].lines()["MyEyes"] == "Which eyes."
    assert "domainbed_plugin_mine" not in sys.modules
    cls = registries["ALGORITHMS"]["Mine"]
    assert (cls.__name__, cls.name) == ("Mine", "Mine")
    assert registries["DATASETS"]["MyEyes"].name == "MyEyes"
    assert sys.modules["domainbed_plugin_mine"].Mine is cls


def test_two_plug_ins_whose_files_have_one_name_both_work(registries, tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        text = TWO.replace("Mine", f"Mine{number}").replace("MyEyes", f"Eyes{number}")
        registry.add_plugin(plugin(tmp_path / str(number) / "mine.py", text))
    assert [registries["ALGORITHMS"][f"Mine{number}"].__name__ for number in (1, 2)] == ["Mine1", "Mine2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", "is not valid Python: invalid syntax.*line 1"),
        ("a = 1\0\n", "is not valid Python"),
        ("import os\n", "registers nothing. Decorate a class with @ALGORITHMS.register"),
        ("", "registers nothing"),
        ("class Mine:\n    pass\n", "registers nothing"),
    ],
)
def test_a_plug_in_that_announces_nothing_is_one_message(registries, tmp_path, text, message):
    with pytest.raises(UserError, match=message) as raised:
        registry.add_plugin(plugin(tmp_path / "mine.py", text))
    assert f"--plugin {tmp_path / 'mine.py'}" in str(raised.value)


def test_a_plug_in_that_is_not_there_is_one_message(registries, tmp_path):
    with pytest.raises(UserError, match="No such file or directory. Give the path of a Python file"):
        registry.add_plugin(tmp_path / "nowhere.py")
    with pytest.raises(UserError, match="Is a directory. Give the path of a Python file"):
        registry.add_plugin(tmp_path)


def test_a_plug_in_that_does_not_import_is_one_message_with_the_reason(registries, tmp_path):
    path = plugin(tmp_path / "mine.py", "import no_such_package\n" + textwrap.dedent(TWO))
    registry.add_plugin(path)
    for _ in range(2):  # a failed import leaves nothing behind
        with pytest.raises(UserError, match="does not import: ModuleNotFoundError: No module named 'no_such_package'"):
            registries["ALGORITHMS"]["Mine"]
    path.write_text(textwrap.dedent(TWO), encoding="utf-8")
    assert registries["ALGORITHMS"]["Mine"].__name__ == "Mine"


def test_a_plug_in_may_not_take_a_name_that_exists(registries, tmp_path):
    with pytest.raises(UserError, match="the algorithm 'ERM' exists already in .*erm.py. Rename it"):
        registry.add_plugin(plugin(tmp_path / "mine.py", TWO.replace("Mine", "ERM")))
    registry.add_plugin(plugin(tmp_path / "one.py", TWO))
    with pytest.raises(UserError, match="the algorithm 'Mine' exists already in .*one.py. Rename it"):
        registry.add_plugin(plugin(tmp_path / "two.py", TWO))


def test_a_name_that_is_announced_but_not_registered_is_an_error_that_says_so(registries, tmp_path):
    text = textwrap.dedent(TWO) + "\nALGORITHMS._classes.pop('Mine')\n"
    registry.add_plugin(plugin(tmp_path / "mine.py", text))
    with pytest.raises(UserError, match="announces the algorithm 'Mine' but importing it registers no such name"):
        registries["ALGORITHMS"]["Mine"]


def distribution(folder, points, **modules):
    """Lay out an installed package that announces entry points."""
    info = folder / "eyes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: eyes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(points))
    (folder / "eyes").mkdir()
    for name, text in {"__init__": "", **modules}.items():
        plugin(folder / "eyes" / f"{name}.py", text)
    return folder


def test_entry_points_of_installed_packages_are_listed_without_an_import_and_load(tmp_path):
    points = "[domainbed.algorithms]\nMine = eyes.methods:Mine\n[domainbed.datasets]\nMyEyes = eyes.methods:Eyes\n"
    done = python(
        """
        import sys
        from domainbed.registry import ALGORITHMS, DATASETS
        print(ALGORITHMS.lines()["Mine"], DATASETS.lines()["MyEyes"], "eyes.methods" in sys.modules)
        print(ALGORITHMS["Mine"].__name__, DATASETS["MyEyes"].__name__, ALGORITHMS["Mine"].name)
        """,
        distribution(tmp_path, points, methods=TWO),
    )
    assert done.stdout.splitlines() == ["What it does. Which eyes. False", "Mine Eyes Mine"], done.stderr


def test_an_entry_point_that_takes_the_name_of_another_is_an_error_that_names_both(tmp_path):
    done = python(
        "from domainbed.registry import ALGORITHMS; list(ALGORITHMS)",
        distribution(tmp_path, "[domainbed.algorithms]\nERM = eyes.methods:Mine\n", methods=TWO),
    )
    assert "two algorithms are named 'ERM': in " in done.stderr and "ERM = eyes.methods:Mine" in done.stderr


def test_an_entry_point_whose_class_is_not_decorated_gets_the_name_that_it_is_announced_by(tmp_path):
    methods = "class Mine:\n    name = ''\n"
    done = python(
        "from domainbed.registry import ALGORITHMS; print(ALGORITHMS['Mine'].name)",
        distribution(tmp_path, "[domainbed.algorithms]\nMine = eyes.methods:Mine\n", methods=methods),
    )
    assert done.stdout.strip() == "Mine", done.stderr


def test_an_installed_package_that_is_broken_does_not_break_the_other_names(tmp_path):
    done = python(
        "from domainbed.registry import ALGORITHMS; print('ERM' in ALGORITHMS)",
        distribution(tmp_path, "[domainbed.algorithms]\nMine = eyes.methods:Mine\n", methods="def broken(:\n"),
    )
    assert done.stdout.strip() == "True", done.stderr
