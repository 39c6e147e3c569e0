"""Every shipped configuration resolves, says how it is run, and repeats nothing that another layer says."""

from pathlib import Path

import pytest
import yaml

from domainbed.cli.configuration import configure, read_arguments

CONFIGS = sorted(Path(__file__).parents[1].glob("configs/**/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_resolves_and_uses_every_key(path: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    arguments = ["name", str(path), *(["--data_dir", str(tmp_path)] if values["dataset"] == "DR" else [])]
    configuration = configure("train_all", read_arguments(arguments))
    assert not [key for where, key in configuration.resolved.unused if where == str(path)]
    for key, value in values.items():
        assert configuration.resolved.sources[key] == str(path), key
        assert configuration.resolved.values[key] is not None or value is None, key
    assert configuration.settings.algorithm == values["algorithm"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_names_its_command(path: Path) -> None:
    second = path.read_text().splitlines()[1]
    relative = path.relative_to(Path(__file__).parents[1])
    assert second.startswith("#   python ")
    assert str(relative) in second or (Path(__file__).parents[1] / second.split()[2]).is_file()


def test_the_published_form_stands_for_the_published_weights() -> None:
    path = Path(__file__).parents[1] / "configs/vae_dg_paper.yaml"
    hparams = configure("train_all", read_arguments(["x", str(path), "--data_dir", "d"])).resolved.values
    expected = {
        "steps": 15_000, "loss_multiplier_kl": 50_000.0, "loss_multiplier_y": 50_000.0, "decoder": "published",
        "recon_reduction": "sum", "kl_anneal_end": 0, "batch_size": 22, "latent_dim": 256,
    }  # fmt: skip
    assert {key: hparams[key] for key in expected} == expected
