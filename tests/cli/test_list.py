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
    keys = [setting.partition("=")[0] for setting in found["settings"]]
    assert keys == list(registry[name].HParams.model_fields)


@pytest.mark.parametrize(
    ("name", "setting", "values"),
    [
        ("DR", "preprocess=[crop_retina, resize]", "names"),
        ("VAE_DG", "class_balanced=false", "true or false"),
        ("VAE_DG", "lr_schedule=constant", "one of constant, cosine, step"),
        ("VAE_DG", "weight_decay=0", "number"),
        ("VAE_DG", "kl_anneal_start=0", "whole number"),
        ("Folder", "environments=null", "null"),
    ],
)
def test_a_setting_is_shown_as_it_is_written_with_its_default_and_its_values(name, setting, values, capsys) -> None:
    assert main(["list", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.strip().startswith(f"{setting} "))
    description, _, of_values = line.strip().removeprefix(setting).strip().rpartition("; ")
    assert description and values in of_values


def test_a_name_that_is_not_there(capsys) -> None:
    assert main(["list", "VAE_GD"]) == 2
    assert "did you mean 'VAE_DG'" in capsys.readouterr().err
    assert main(["list", ""]) == 2


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
    assert "width=7" in (out := capsys.readouterr().out) and "of what; a whole number" in out
