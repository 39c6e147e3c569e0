"""Every preset of `configs/quick`, from its command to its records: each beats an answer that needs no model."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domainbed.model_selection import PROTOCOLS
from domainbed.summary import MAJORITY, MAJORITY_MASK, MEAN_IMAGE

CONFIGS = Path(__file__).parents[1] / "configs" / "quick"
LAST = "last"
assert LAST in PROTOCOLS

#: By preset: what has to be better than which trivial answer, by how much, and for whom.
BEATS = {
    "ae": [("psnr", MEAN_IMAGE, 1.0, "target")],
    "vae": [("psnr", MEAN_IMAGE, 0.5, "target"), ("psnr", MEAN_IMAGE, 1.0, "source")],
    "hvae": [("psnr", MEAN_IMAGE, 1.0, "target")],
    "cvae": [("psnr", MEAN_IMAGE, 1.0, "target")],
    "vqvae": [("psnr", MEAN_IMAGE, 1.0, "target")],
    "erm": [("accuracy", MAJORITY, 0.1, "target"), ("accuracy", MAJORITY, 0.2, "source")],
    "vae_dg": [("accuracy", MAJORITY, 0.2, "source"), ("psnr", MEAN_IMAGE, 1.0, "source")],
    "latent_classifier": [("accuracy", MAJORITY, 0.2, "target")],
    "unet": [("dice_dataset", MAJORITY_MASK, 0.3, "target")],
}
#: Presets that are built on the run of another one.
BUILT_ON = {"latent_classifier": "ae", "code_prior": "vqvae"}


def test_every_preset_has_an_answer_to_beat() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*BEATS, "code_prior"}


@pytest.fixture
def quick(train: Callable[..., Any]) -> Callable[[str], list[dict[str, Any]]]:
    """Run a preset as its file says, after the one it is built on, and return its final records."""

    def run(preset: str) -> list[dict[str, Any]]:
        if preset in BUILT_ON:
            run(BUILT_ON[preset])
        status, out, err = train(f"quick_{preset}", CONFIGS / f"{preset}.yaml", "--device", "cpu", tiny=False)
        assert status == 0, out + err
        folder = Path("results/train_output/SyntheticFundus") / f"quick_{preset}"
        records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        return [record for record in records if record["kind"] == "final"]

    return run


def figure(records: list[dict[str, Any]], metric: str, protocol: str, role: str) -> float:
    """Return the mean of a figure over the whole target, or over the held-out parts of the sources."""
    part = "whole" if role == "target" else "val"
    found = [r["metrics"][metric] for r in records if (r["protocol"], r["role"], r["part"]) == (protocol, role, part)]
    return statistics.fmean(found)


@pytest.mark.parametrize("preset", BEATS)
def test_a_preset_beats_what_needs_no_model(quick: Callable[[str], list[dict[str, Any]]], preset: str) -> None:
    records = quick(preset)
    for metric, trivial, margin, role in BEATS[preset]:
        assert figure(records, metric, LAST, role) > figure(records, metric, trivial, role) + margin, (metric, role)


def test_a_prior_over_codes_needs_fewer_bits_than_their_frequencies(
    quick: Callable[[str], list[dict[str, Any]]],
) -> None:
    records = quick("code_prior")
    for role in ("source", "target"):
        trivial = figure(records, "bits_by_frequency", LAST, role)
        assert trivial < math.log2(64) and figure(records, "bits_per_code", LAST, role) < trivial - 0.5
