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
    ("name", "setting", "default"),
    [
        ("DR", "preprocess=PREPROCESS,PREPROCESS,…", "crop_retina,resize"),
        ("VAE_DG", "class_balanced=true|false", None),
        ("VAE_DG", "lr_schedule=constant|cosine|step", "constant"),
        ("VAE_DG", "weight_decay=X", "0.0"),
        ("VAE_DG", "kl_anneal_start=N", "0"),
        ("Folder", "environments=ENVIRONMENT,ENVIRONMENT,…", None),
    ],
)
def test_a_setting_is_shown_as_it_is_written_with_its_default(name: str, setting: str, default, capsys) -> None:
    assert main(["list", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.split()[0] == setting)
    assert len(line.split()) > 2 and line.endswith(f"(default: {default})") == (default is not None)


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
    assert "width=N" in (out := capsys.readouterr().out) and "of what (default: 7)" in out
