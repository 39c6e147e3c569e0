"""Seconds from the command to the end of the first training step, on images that are decoded and in memory already.

    python benchmarks/start.py [--quick]

Ours is `train_subset.py` on SyntheticFundus whose pack is there: from starting the process until the record of step 1
stands in results.jsonl, which the trainer writes as soon as that step is taken (`tb_freq=1`). That includes the
imports, finding the images, the leakage check, the first weights on disk, and the pictures of step 0. It is looked for
every few milliseconds, then the process is stopped.

The baseline is `python benchmarks/start.py --baseline …` of this file, on the same images, exported once as PNG files
in folders, in the way of DomainBed's `scripts/train.py` (see `paired.Plain`): imports, ImageFolder, the workers of a
loader per source and of two per environment for evaluation, network, one step in float32; from starting the process
until it says so. DomainBed starts 8 workers per loader; here it is `--workers`, by default 8 or the number of cores,
whichever is less.

Both sides build VAE_DG by the same class, so the baseline imports timm where DomainBed has torchvision's models alone.
Each is run once before, so that all files are in the page cache; then they take turns, and the ratio is that of the
medians. `train_all.py --help` and `python -m domainbed list` are timed as well.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paired import AUGMENT, WORKERS, Plain, PlainTraining, export, guarded_by, in_turn, parser, record, timed, vae_dg

from domainbed.cli import positive
from domainbed.errors import UserError
from domainbed.machine import default_num_workers

SCRIPT = Path(__file__).resolve()
CHECKOUT = SCRIPT.parents[1]
SIZES = ("model", "image_size", "batch_size")
QUICK = {"model": "test_resnet", "image_size": 32, "num_images": 30}
STARTED = "the first step is taken"
POLL_SECONDS, GIVE_UP_SECONDS = 0.005, 600


def main() -> int:
    options = parser(__doc__, pairs=3, quick="one pair of a small network at 32 px, 30 images per camera")
    options.add_argument("--model", default="resnet50", help="a timm model: resnet50")
    options.add_argument("--image_size", type=positive, default=64, help="in pixels: 64, as in config.yaml")
    options.add_argument("--num_images", type=positive, default=200, help="per camera: 200")
    options.add_argument("--batch_size", type=positive, default=8, help="images per source and step: 8")
    workers = min(WORKERS, default_num_workers())
    options.add_argument("--workers", type=positive, default=workers, help=f"of each loader of the baseline: {workers}")
    options.add_argument("--baseline", type=Path, metavar="FOLDER", help="run the baseline alone, on exported images")
    return guarded_by(options, run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, or be the baseline."""
    return baseline(arguments) if arguments.baseline else compare(arguments)


def compare(arguments: argparse.Namespace) -> int:
    """Print the table and the line for programs; return the exit status."""
    from domainbed.datasets.synthetic_fundus import SyntheticFundus  # what the baseline need not import

    if arguments.quick:
        vars(arguments).update(QUICK, pairs=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").touch()  # not that of the checkout
        settings = SyntheticFundus.HParams.model_validate(
            {key: getattr(arguments, key) for key in ("image_size", "num_images")}
        )
        export(SyntheticFundus(None, settings), folder / "images")
        numbers = iter(range(arguments.pairs + 1))
        time_of_baseline(folder, arguments)
        time_of_ours(folder, next(numbers), arguments)
        theirs, ours = in_turn(
            lambda: time_of_baseline(folder, arguments),
            lambda: time_of_ours(folder, next(numbers), arguments),
            arguments.pairs,
        )
        commands: dict[str, list[object]] = {
            "help": [CHECKOUT / "train_all.py", "--help"],
            "list": ["-m", "domainbed", "list"],
        }
        quickly = {
            what: statistics.median(timed(command, CHECKOUT) for _ in range(1 + arguments.pairs))
            for what, command in commands.items()
        }
    print(f"VAE_DG, {arguments.model}, {4 * arguments.num_images} images of {arguments.image_size} px")
    print(f"seconds, medians of {arguments.pairs} {'pair' if arguments.pairs == 1 else 'pairs'}")
    print(f"baseline, {arguments.workers} workers per loader {theirs:8.2f}")
    print(f"train_subset.py                    {ours:8.2f}")
    print(f"ratio                              {theirs / ours:8.2f}")
    print(f"train_all.py --help                {quickly['help']:8.2f}")
    print(f"python -m domainbed list           {quickly['list']:8.2f}")
    more = {f"{what}_seconds": found for what, found in quickly.items()} | {"workers": arguments.workers}
    print(record("start", theirs / ours, ours, theirs, "s", arguments.pairs, **more))
    return 0


def time_of_ours(folder: Path, number: int, arguments: argparse.Namespace) -> float:
    """Seconds until the trainer has recorded its first step."""
    chosen = [f"{key}={getattr(arguments, key)}" for key in (*SIZES, "num_images")]
    fixed = ["steps=1", "tb_freq=1", "pretrained=false", f"augment=[{','.join(AUGMENT)}]"]
    subset = ["--subset_size", arguments.num_images, "--cache_dir", "cache", "--results_dir", "results"]
    command = [CHECKOUT / "train_subset.py", number, "--dataset", "SyntheticFundus", *subset, *chosen, *fixed]
    results = folder / "results" / "train_output" / "SyntheticFundus" / str(number) / "results.jsonl"
    started = time.perf_counter()
    with open(folder / "said", "w+") as said:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=folder, stdout=said, stderr=said)
        try:
            while not (results.exists() and '"kind": "train"' in results.read_text()):
                if process.poll() is not None or time.perf_counter() - started > GIVE_UP_SECONDS:
                    said.seek(0)
                    raise UserError(f"train_subset.py took no step: {(said.read().splitlines() or ['nothing'])[-1]}")
                time.sleep(POLL_SECONDS)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def time_of_baseline(folder: Path, arguments: argparse.Namespace) -> float:
    """Seconds until the baseline says that it has taken its first step."""
    chosen = [f"--{key}={getattr(arguments, key)}" for key in (*SIZES, "workers")]
    command = [sys.executable, str(SCRIPT), "--baseline", str(folder / "images"), *chosen]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == STARTED:
                return time.perf_counter() - started  # on leaving, what its workers still do is waited for
    raise UserError("the baseline took no step: see above")


def baseline(arguments: argparse.Namespace) -> int:
    """Start as DomainBed does, take a step, and say so; return the exit status."""
    data = Plain(arguments.baseline, 0, arguments.image_size, arguments.batch_size, arguments.workers)
    algorithm = vae_dg(arguments.image_size, data.num_classes, len(data.sources), model=arguments.model)
    PlainTraining(algorithm).step(data.minibatches())
    print(STARTED, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
