"""Does training in bf16 end where float32 ends? The same run in both, for several seeds.

    python benchmarks/precision.py [file.yaml] [--seeds 0 1 2] [--settings key=value …] [--results_dir results]

Each is one run of the public command line, `<configuration>_<precision>`; a run that is there goes on, or is skipped
where it is finished. The table has, for every checkpoint and each figure of the held-out images of the sources (mean
over these), the mean over seeds in float32, the mean of the differences bf16 - float32 of the same seed with its
standard error, and the deviation between seeds in float32: what a change of seed alone does. The last line is for
programs: `ratio` is the largest difference over that deviation, in the whole table.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from domainbed.cli import Parser, guarded
from domainbed.cli.train import main as train
from domainbed.errors import UserError

PRECISIONS = ("float32", "bf16")
METRICS = ("total_loss", "psnr", "accuracy")


def main() -> int:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", nargs="?", type=Path, help="a configuration; default: the embedded data, VAE_DG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results_dir", type=Path, default=Path("results"))
    parser.add_argument("--settings", nargs="+", default=[], metavar="key=value")
    return guarded(lambda: study(parser.parse_args()))


def study(arguments: argparse.Namespace) -> int:
    """Train what is not trained yet, and print the table; return the exit status."""
    if len(arguments.seeds) < 2:
        raise UserError("one seed has no deviation to compare with. Give two or more, such as --seeds 0 1 2")
    stem = arguments.config.stem if arguments.config else "vae_dg"
    curves = {}
    for precision in PRECISIONS:
        name, place = f"{stem}_{precision}", ["--results_dir", str(arguments.results_dir)]
        found = sorted(arguments.results_dir.glob(f"train_output/*/{name}/config.yaml"))
        seeds = ["--seeds", *map(str, arguments.seeds)]
        files = [str(arguments.config)] if arguments.config else []
        words = ["--resume"] if found else [*files, *seeds, "--precision", precision, *arguments.settings]
        if status := train("train_all", [name, *words, *place]):
            return status
        (folder,) = arguments.results_dir.glob(f"train_output/*/{name}")
        curves[precision] = read(folder / "results.jsonl")
    lines, ratio, pairs = table(curves["float32"], curves["bf16"])
    print("\n".join(lines))
    print(json.dumps({"benchmark": "precision", "ratio": ratio, "unit": "deviations between seeds", "pairs": pairs}))
    return 0


Curves = dict[tuple[int, str], dict[int, float]]


def read(path: Path) -> Curves:
    """Return, for each step and figure, its mean over the sources' held-out images by seed."""
    several: dict[tuple[int, str], dict[int, list[float]]] = {}
    for line in path.read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        if record["kind"] == "eval" and record["role"] == "source":
            for metric in METRICS:
                if record["metrics"].get(metric) is not None:
                    by_seed = several.setdefault((record["step"], metric), {})
                    by_seed.setdefault(record["seed"], []).append(record["metrics"][metric])
    return {key: {seed: statistics.fmean(all_) for seed, all_ in of.items()} for key, of in several.items()}


def table(plain: Curves, fast: Curves) -> tuple[list[str], float, int]:
    """Return the table as Markdown, the largest difference in deviations between seeds, and the number of seeds."""
    lines = [
        "| step | figure | float32 | bf16 - float32 | between seeds |", "|---:|---|---:|---:|---:|",
    ]  # fmt: skip
    largest, count = 0.0, 0
    for (step, metric), values in sorted(plain.items()):
        seeds = sorted(values.keys() & fast[step, metric].keys())
        differences = [fast[step, metric][seed] - values[seed] for seed in seeds]
        deviation = statistics.stdev(values[seed] for seed in seeds)
        error = statistics.stdev(differences) / len(seeds) ** 0.5
        mean = statistics.fmean(differences)
        lines.append(
            f"| {step} | {metric} | {statistics.fmean(values.values()):.4g} | {mean:+.2g} ± {error:.1g} | "
            f"{deviation:.2g} |"
        )
        largest, count = max(largest, abs(mean) / deviation if deviation else 0.0), len(seeds)
    return lines, largest, count


if __name__ == "__main__":
    sys.exit(main())
