"""`python -m domainbed export`: files and card of a real run. What is in them is in `tests/analysis/test_export`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from domainbed import cli

RUN = ["--steps", "2", "--checkpoint_freq", "2", "--recon_freq", "0", "batch_size=4", "--test_envs", "0"]


def test_a_run_is_handed_on(train, photographs: Path, capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    assert train("given", "--data_dir", photographs, *RUN, "latent_dim=8")[0] == 0
    run = Path("results/train_output/DR/given").resolve()
    assert cli.main(["export", str(run), "--to", "safetensors", "torch.export", "--outputs", "logits"]) == 0
    out = capfd.readouterr().out
    folder = run / "analysis" / "export" / "te_camera0_best"
    assert "VAE_DG · given · target camera0 · best (step 2)" in out and "checked on 16 images of the run" in out
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "model.pt2", "MODEL_CARD.md", "figures.json",
    }  # fmt: skip
    card = (folder / "MODEL_CARD.md").read_text()
    figures = card[card.index("## Figures") : card.index("## Limits")]
    assert "### Whole target environment" in figures and "95 % percentile bootstrap interval" in figures
    rows = [line for line in figures.splitlines() if line.startswith("| camera0")]
    protocols = {row.split("|")[2].strip() for row in rows}
    assert {"training-domain validation", "majority class", "mean training image"} <= protocols
    assert "last" not in protocols  # other weights than these
    summary = (run / "summary_full.md").read_text()
    best = next(row for row in rows if "training-domain" in row)
    assert re.sub(r" +", " ", best) in re.sub(r" +", " ", summary)  # the run's own figures
    assert "training images: 38" in card or re.search(r"training images: \d+ \(no_dr: \d+", card)
    monkeypatch.chdir(folder)
    Image.new("RGB", (20, 20), (90, 60, 60)).save("image.png")
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(compile(code, "card", "exec"), {})
        assert "proliferative: 0." in capfd.readouterr().out
    # what was exported is a run for the other commands
    assert cli.main(["predict", "model.safetensors", "image.png", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["images"] == 1
    assert cli.main(["export", "model.safetensors", "--out", "again", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["files"][0]["difference"] == {"weights": 0} and found["about"]["run"] == "given"
    assert "without the records of its run" in Path("again/MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx", "--part", "encoder"], "--part encoder writes weights for timm"),
        (["--to", "tensorrt"], "invalid choice: 'tensorrt'"),
        ([], "is not the folder of a run"),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize("command", ["export", "predict"])
def test_help_needs_no_torch(command: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; from domainbed import cli; cli.main([{command!r}, '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and f"usage: python -m domainbed {command}" in done.stdout


def test_the_choices_are_those_of_the_analysis() -> None:
    from domainbed.analysis import export, exported
    from domainbed.cli.export import FORMATS, OUTPUTS

    assert tuple(export.FORMATS) == FORMATS and tuple(exported.OUTPUTS) == OUTPUTS
