"""What does beta buy? Runs that differ in beta: the curves of both terms in one picture, and rate against distortion.

    for beta in 0.015625 0.0625 0.25 1 4 16 64; do
        python train_all.py beta_$beta configs/hvae_dr.yaml --data_dir DR/ --test_envs idrid beta=$beta
    done
    python benchmarks/beta_sweep.py results/train_output/DR/beta_* --output beta.png

Reads finished runs of variational autoencoders, one target and seed each. The picture has a line per run: the
reconstruction term and the weighted KL of the training batches, in nats, as medians over `--window` steps, and rate
against distortion of held-out images. The table has a row per run, sorted by beta:

    KL          of held-out images of the environments trained on, nats: the rate
    beta x KL   what it costs in the loss, in nats (with recon_reduction=mean, times the number of values)
    PSNR        of their reconstructions, and of the environment that was left out: the distortion

The picture needs matplotlib: pip install -e .[analysis]
"""

import argparse
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed.cli import Parser, guarded, positive
from domainbed.errors import UserError
from domainbed.hparams import read_yaml
from domainbed.summary import BEST


@dataclass(frozen=True)
class Sweep:
    """One run.

    Attributes:
        name: of its folder. beta: the weight of the KL in nats beside the whole reconstruction term.
        steps, recon, weighted_kl: of the training records; the terms in nats.
        kl: nats of held-out images of the sources. psnr: dB of the same. target_psnr: of what was left out, or None.
    """

    name: str
    beta: float
    steps: list[int]
    recon: list[float]
    weighted_kl: list[float]
    kl: float
    psnr: float
    target_psnr: float | None


def main() -> int:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders results/train_output/<dataset>/<name>")
    parser.add_argument("--output", type=Path, help="PNG for the curves")
    parser.add_argument("--window", type=positive, default=10, help="training records in one median")
    arguments = parser.parse_args()
    return guarded(lambda: compare(arguments))


def compare(arguments: argparse.Namespace) -> int:
    """Print the table and write the picture; return the exit status."""
    sweeps = sorted((read(run) for run in arguments.runs), key=lambda sweep: (sweep.beta, sweep.name))
    print(table(sweeps))
    if arguments.output:
        draw(sweeps, arguments.window, arguments.output)
        print(f"\nthe curves are in {arguments.output}")
    return 0


def read(run: Path) -> Sweep:
    """Return what a run recorded.

    Raises:
        UserError: it is no run, not finished, not variational, or has several targets or seeds.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not the folder of a run. Give results/train_output/<dataset>/<name>")
    config = read_yaml(run / "config.yaml")
    records = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    final = [record for record in records if record["kind"] == "final" and record["protocol"] == BEST]
    if not final:
        raise UserError(f"{run} is not finished. Finish it with --resume")
    if len({(record["target"], record["seed"]) for record in final}) > 1:
        raise UserError(f"{run} has several targets or seeds. Give runs of one, such as --test_envs 0 --seed 0")
    train = [record for record in records if record["kind"] == "train"]
    if "KLD_nats" not in train[-1]:
        raise UserError(f"{run} is a run of {config['algorithm']}, which has no KL. Give runs of VAE or HVAE")
    hparams: dict[str, Any] = config["algorithms"][config["algorithm"]]
    # a mean over values and one over latents become the sums of which nats are made
    to_nats = train[-1]["recon_nats"] / train[-1]["recon_loss"]
    to_kl = train[-1]["KLD_nats"] / train[-1]["KLD_loss"]
    sources = [record["metrics"] for record in final if (record["role"], record["part"]) == ("source", "val")]
    target = [record["metrics"]["psnr"] for record in final if (record["role"], record["part"]) == ("target", "whole")]
    return Sweep(
        name=run.name,
        beta=hparams["beta"] * to_nats / to_kl,
        steps=[record["step"] for record in train],
        recon=[record["recon_nats"] for record in train],
        weighted_kl=[record["KLD_weighted"] * to_nats for record in train],
        kl=statistics.fmean(metrics["KLD_nats"] for metrics in sources),
        psnr=statistics.fmean(metrics["psnr"] for metrics in sources),
        target_psnr=statistics.fmean(target) if target else None,
    )


def table(sweeps: list[Sweep]) -> str:
    """Return a row per run, as Markdown."""
    rows = [["run", "beta", "KL (nats)", "beta x KL", "PSNR (dB)", "PSNR left out (dB)"], ["---", *["---:"] * 5]]
    for sweep in sweeps:
        left_out = "–" if sweep.target_psnr is None else f"{sweep.target_psnr:.2f}"
        cost = sweep.beta * sweep.kl
        rows.append([sweep.name, f"{sweep.beta:.4g}", f"{sweep.kl:.1f}", f"{cost:.1f}", f"{sweep.psnr:.2f}", left_out])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def medians(steps: list[int], values: list[float], window: int) -> tuple[list[float], list[float]]:
    """Return the means of steps and the medians of values, of windows that don't overlap."""
    starts = range(0, len(steps), window)
    return (
        [statistics.fmean(steps[start : start + window]) for start in starts],
        [statistics.median(values[start : start + window]) for start in starts],
    )


def draw(sweeps: list[Sweep], window: int, path: Path) -> None:
    """Write the picture of the curves."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("the picture needs matplotlib. Install it: pip install -e .[analysis]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    colours = pyplot.get_cmap("viridis")
    exponents = [math.log(sweep.beta) if sweep.beta else -math.inf for sweep in sweeps]
    order = {value: rank for rank, value in enumerate(sorted(set(exponents)))}
    differ = len(order) == len(sweeps)
    for sweep, exponent in zip(sweeps, exponents, strict=True):
        colour = colours(0.92 * order[exponent] / max(1, len(order) - 1))
        label = f"beta {sweep.beta:.3g}" if differ else sweep.name
        left.plot(*medians(sweep.steps, sweep.recon, window), color=colour, label=label)
        middle.plot(*medians(sweep.steps, sweep.weighted_kl, window), color=colour, label=label)
        right.plot(sweep.kl, sweep.psnr, "o", color=colour)
        right.annotate(f"{sweep.beta:.3g}", (sweep.kl, sweep.psnr), (5, -3), textcoords="offset points", fontsize=8)
    left.set(title="reconstruction", xlabel="step", ylabel="nats")
    middle.set(title="beta x annealing x KL", xlabel="step", ylabel="nats", yscale="log")
    right.set(title="held out: distortion against rate", xlabel="KL (nats)", ylabel="PSNR (dB)", xscale="log")
    ends = [value for sweep in sweeps for value in medians(sweep.steps, sweep.recon, window)[1][1:]]
    margin = 0.05 * (max(ends) - min(ends))
    left.set_ylim(min(ends) - margin, max(ends) + margin)  # the first steps would squash the others
    left.legend(fontsize=8, loc="upper right")
    right.margins(x=0.15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
