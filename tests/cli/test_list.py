"""`python -m domainbed list`: what there is, and the settings of one name."""

import json

import pytest

from domainbed.cli import main
from domainbed.registry import ALGORITHMS, DATASETS

NAMES = [(registry, name) for registry in (ALGORITHMS, DATASETS) for name in registry]


@pytest.mark.parametrize(("registry", "name"), NAMES, ids=[name for _, name in NAMES])
def test_every_setting_of_a_name_is_listed(registry, name: str, capsys) -> None:
    assert main(["list", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [registry.kind, "settings"]
    assert found[registry.kind] == {name: registry.lines()[name]}
    keys = [option.removeprefix("--").partition(" ")[0] for option in found["settings"]]
    assert keys == list(registry[name].HParams.model_fields)


def test_a_setting_is_shown_with_what_it_takes_what_it_does_and_its_default(capsys) -> None:
    assert main(["list", "DR"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "--preprocess PREPROCESS …" in line)
    assert "applied to every image" in line and line.endswith("(default: crop_retina,resize)")


def test_a_name_that_is_not_there(capsys) -> None:
    assert main(["list", "VAE_GD"]) == 2
    assert "did you mean 'VAE_DG'" in capsys.readouterr().err


def test_the_settings_of_a_plug_in(tmp_path, capsys) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from domainbed.algorithms.erm import ERM\n"
        "from domainbed.hparams import Field\n"
        "from domainbed.registry import ALGORITHMS\n"
        "@ALGORITHMS.register('ListedPlugIn')\n"
        "class ListedPlugIn(ERM):\n"
        "    '''Mine.'''\n"
        "    class HParams(ERM.HParams):\n"
        "        '''Its own.'''\n"
        "        width: int = Field(7, description='of what')\n"
    )
    assert main(["list", "ListedPlugIn", "--plugin", str(path)]) == 0
    assert "--width N" in (out := capsys.readouterr().out) and "of what (default: 7)" in out
