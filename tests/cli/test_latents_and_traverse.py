"""`python -m domainbed latents` and `traverse`: from a run on the disk to a table, JSON and pictures."""

import json
from pathlib import Path

import pytest

from domainbed import cli
from domainbed.cli.latents import table

VAE = [
    "--algorithm", "VAE", "--dataset", "SyntheticFundus", "num_images=30", "latent_dim=4", "batch_size=4",
    "--steps", "2", "--checkpoint_freq", "2", "--recon_freq", "0", "--test_envs", "0",
]  # fmt: skip
RUN = "results/train_output/SyntheticFundus/first"


def test_figures_and_pictures_of_a_run(train, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert train("first", *VAE)[0] == 0
    capfd.readouterr()
    assert cli.main(["latents", RUN, "--maps", "pca", "tsne", "--perplexity", "4", "12"]) == 0
    out = capfd.readouterr().out
    folder = Path(RUN) / "analysis" / "latents" / "te_wide50_best"
    found = json.loads((folder / "figures.json").read_text())
    assert {path.name for path in folder.glob("*.png")} == {"kl.png", "pca.png", "tsne_4.png", "tsne_12.png"}
    assert all(str(folder / one["file"]) in out for one in found["pictures"])
    assert "wide50: 30 (left out of training)" in out and "t-SNE, perplexity 12" in out
    assert max(map(len, out.splitlines())) < 300

    assert cli.main(["latents", RUN, "--maps", "pca", "--json", "--out", str(tmp_path / "there")]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["posterior"]["dimensions"] == 4
    assert (tmp_path / "there" / "pca.png").is_file()

    assert cli.main(["traverse", RUN, "--dimensions", "2", "--num_images", "2", "--components", "2"]) == 0
    out = capfd.readouterr().out
    found = json.loads((Path(RUN) / "analysis/traverse/te_wide50_best/figures.json").read_text())
    assert len(found["dimensions"]) == 2 and sum("traversal" in one["file"] for one in found["pictures"]) == 2
    assert "mutual information gap (MIG)" in out and "2 Gaussians" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["latents", "nothing"], "nothing"),
        (["latents", "run", "--perplexity", "0.5"], "'0.5' is not a perplexity"),
        (["latents", "run", "--neighbors", "1"], "'1' is too few neighbours"),
        (["latents", "run", "--maps", "lda"], "invalid choice: 'lda'"),
        (["latents", "run", "--images", "some"], "invalid choice: 'some'"),
        (["traverse", "run", "--dimensions", "0"], "'0' is not a whole number"),
    ],
)
def test_what_is_wrong_is_one_message(arguments, message, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(arguments) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and message in err and "Traceback" not in err


def test_the_table_names_levels_and_leaves_out_what_is_not_there() -> None:
    level = {"level": 2, "dimensions": 3, "active_units": 0, "kl_nats": 0.01, "dead": True}
    posterior = {
        "levels": [level | {"level": 1, "kl_nats": 5.0}, level], "dimensions": 6, "active_units": 1, "kl_nats": 5.01,
        "mutual_information_nats": 2.0, "mutual_information_bound_nats": 4.0, "mutual_information_level": 1,
        "marginal_kl_nats": None,
    }  # fmt: skip
    found = {
        "images": 9, "images_of": "held-out", "checkpoint": "best", "environments": {}, "class": None,
        "environment": None, "pca": None, "posterior": posterior, "codebook": None, "maps": {}, "findings": ["dead"],
        "notes": ["left out"],
    }  # fmt: skip
    lines = [" ".join(line.split()) for line in table(found)]
    assert "level 2 3 0 0.010" in lines and "mutual information of level 1: 2.00 nats, of at most log N = 4.00" in lines
    assert lines[-2:] == ["* dead", "NOTE: left out"] and not any("prior" in line for line in lines)
