"""Which of a U-Net's choices matter? down x up x loss, two values each, all eight cells with several seeds.

    python benchmarks/unet_factors.py configs/unet_disc.yaml --data_dir IDRiD_segmentation/
    python benchmarks/unet_factors.py configs/unet_vessels.yaml --data_dir CHASE_DB1/

Each cell is one run of the public command line, `<configuration>_<down>_<up>_<loss>`, with the seeds that are asked
for; a run that is there already goes on, or is skipped where it is finished, so an interrupted study is started again
by the same command. Then come two tables, in `<results_dir>/<configuration>_factors.md` too:

- every cell: mean and standard deviation (n - 1) over seeds of Dice, IoU and pixel accuracy, for the checkpoint chosen
  on held-out images, on the given test part or else on the held-out part
- main effects: mean over the cells of one value of a factor minus that of the other, the difference taken within each
  seed, then mean and standard error over seeds
"""

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from domainbed.cli import guarded
from domainbed.cli.train import main as train
from domainbed.errors import UserError
from domainbed.hparams import read_yaml
from domainbed.summary import BEST, MAJORITY_MASK

FACTORS = {"down": ("maxpool", "strided"), "up": ("transposed", "upsample"), "loss": ("ce", "dice")}
METRICS = {
    "dice_dataset": "Dice (all pixels)",
    "dice_image": "Dice (per image)",
    "iou_dataset": "IoU (all pixels)",
    "pixel_accuracy": "pixel accuracy",
}
Cell = tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path, help="configs/unet_disc.yaml or configs/unet_vessels.yaml")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results_dir", type=Path, default=Path("results"))
    parser.add_argument("--settings", nargs="+", default=[], metavar="key=value", help="that hold for every cell")
    arguments = parser.parse_args()
    return guarded(lambda: study(arguments))


def study(arguments: argparse.Namespace) -> int:
    """Train what is not trained yet, and write the tables; return the exit status."""
    dataset = read_yaml(arguments.config)["dataset"]
    found: dict[Cell, list[dict[str, Any]]] = {}
    for cell in itertools.product(*FACTORS.values()):
        name = "_".join([arguments.config.stem, *cell])
        folder = arguments.results_dir / "train_output" / dataset / name
        if status := run(name, folder, cell, arguments):
            return status
        found[cell] = json.loads((folder / "summary.json").read_text())["records"]
    text = report(arguments.config.stem, found)
    path = arguments.results_dir / f"{arguments.config.stem}_factors.md"
    path.write_text(text)
    print(f"\n{text}\nthese tables are in {path}")
    return 0


def run(name: str, folder: Path, cell: Cell, arguments: argparse.Namespace) -> int:
    """Train one cell with all seeds, or go on with it; return the exit status."""
    place = ["--results_dir", str(arguments.results_dir)]
    if (folder / "config.yaml").exists():
        recorded = read_yaml(folder / "config.yaml")
        if recorded["seeds"] == arguments.seeds and len(list(folder.rglob("done"))) == len(arguments.seeds):
            return 0
        return train("train_all", [name, "--resume", *place])
    choices = [f"{factor}={value}" for factor, value in zip(FACTORS, cell, strict=True)]
    seeds = ["--seeds", *map(str, arguments.seeds)]
    files = [str(arguments.config), "--data_dir", arguments.data_dir]
    return train("train_all", [name, *files, *seeds, *place, *choices, *arguments.settings])


def report(name: str, found: dict[Cell, list[dict[str, Any]]]) -> str:
    """Return the tables of cells and of main effects, as Markdown."""
    parts = {record["part"] for records in found.values() for record in records}
    part = "test" if "test" in parts else "val"
    seeds = sorted({record["seed"] for records in found.values() for record in records})
    values = {
        (cell, protocol, metric, seed): average(records, part, protocol, metric, seed)
        for cell, records in found.items()
        for protocol in (BEST, MAJORITY_MASK)
        for metric in METRICS
        for seed in seeds
    }
    what = f"{'test' if part == 'test' else 'held-out'} images, seeds {', '.join(map(str, seeds))}"
    lines = [f"# {name}: {what}", "", row([*FACTORS, *METRICS.values()]), row(["---"] * 3 + ["---:"] * len(METRICS))]
    for cell in found:
        lines.append(
            row([*cell, *(spread([values[cell, BEST, metric, seed] for seed in seeds]) for metric in METRICS)])
        )
    first = next(iter(found))
    cells = [spread([values[first, MAJORITY_MASK, metric, seed] for seed in seeds]) for metric in METRICS]
    lines += [row(["majority mask", "", "", *cells]), "", "Main effects, mean ± standard error over seeds:", ""]
    lines += [row(["second minus first", *METRICS.values()]), row(["---"] + ["---:"] * len(METRICS))]
    for position, (factor, (first_value, second_value)) in enumerate(FACTORS.items()):
        effects = []
        for metric in METRICS:
            of_seeds = []
            for seed in seeds:
                one, other = (
                    statistics.fmean(values[cell, BEST, metric, seed] for cell in found if cell[position] == value)
                    for value in (first_value, second_value)
                )
                of_seeds.append(other - one)
            effects.append(spread(of_seeds, standard_error=True, sign="+"))
        lines.append(row([f"{factor}: {second_value} - {first_value}", *effects]))
    return "\n".join(lines) + "\n"


def average(records: list[dict[str, Any]], part: str, protocol: str, metric: str, seed: int) -> float:
    """Return the mean of a figure over environments.

    Where any protocol or seed has it undefined the masks mark nothing, for nothing else leaves it so. Such an
    environment is left out of every mean, also of those whose answers invent pixels there and have a 0.

    Raises:
        UserError: no environment is left.
    """
    of_part = [record for record in records if record["part"] == part and metric in record["metrics"]]
    unmarked = {record["environment"] for record in of_part if record["metrics"][metric] is None}
    figures = [
        record["metrics"][metric]
        for record in of_part
        if (record["protocol"], record["seed"]) == (protocol, seed) and record["environment"] not in unmarked
    ]
    if not figures:
        reason = f"the masks of {', '.join(sorted(unmarked))} mark nothing" if unmarked else "there is no such record"
        raise UserError(
            f"{metric} of {protocol}, seed {seed}, is defined in no environment's part {part!r}: {reason}. The tables "
            "need an image there whose mask marks something; what each run has is in its own summary.md"
        )
    return statistics.fmean(figures)


def spread(values: list[float], standard_error: bool = False, sign: str = "") -> str:
    """Return mean ± deviation, or ± deviation of the mean."""
    if len(values) < 2:
        return f"{values[0]:{sign}.3f}"
    deviation = statistics.stdev(values) / (len(values) ** 0.5 if standard_error else 1)
    return f"{statistics.fmean(values):{sign}.3f} ± {deviation:.3f}"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
