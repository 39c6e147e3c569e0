"""Wall time of a whole `train_all`: every environment left out in turn, from the command to the last table.

    python benchmarks/run.py --data_dir DR/ [--model resnet50] [--image_size 224] [--quick]

Both sides train VAE_DG, built by the same class with random weights, equally many steps on batches of the same size,
with random crop, flip and colour jitter, once with each environment left out; each is a process of its own, and the
time is from its start to its end. They take turns, and the ratio is that of the medians.

Ours is `train_all.py` with nothing prepared: it decodes and packs all images first, trains, evaluates the held-out part
of every environment at each checkpoint, saves weights and optimiser there, judges the chosen and the last weights with
bootstrap intervals, and writes pictures, TensorBoard and the summary. Precision, threads and layout are its automatic
choices.

The baseline is `python benchmarks/run.py --baseline …` of this file, the way of DomainBed's `scripts/train.py` (see
`paired.Plain`): Pillow decodes a file each time that it is asked for, in workers of each of 3 loaders per source and 2
of the target; float32; both parts of every environment are evaluated after step 0, every `checkpoint_freq` steps and
after the last; weights are saved once, at the end. DomainBed starts 8 workers per loader; here it is `--workers`, by
default 8 or the number of cores, whichever is less.

By default the baseline reads about three times as many images for evaluation as for training.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from paired import (
    AUGMENT,
    WORKERS,
    Plain,
    PlainTraining,
    environments_in,
    evaluates,
    guarded_by,
    in_turn,
    parser,
    record,
    timed,
    vae_dg,
)

from domainbed.cli import positive
from domainbed.errors import UserError
from domainbed.machine import default_num_workers

SCRIPT = Path(__file__).resolve()
TRAIN_ALL = SCRIPT.parents[1] / "train_all.py"
QUICK = {"model": "resnet18", "image_size": 32, "batch_size": 8, "steps": 5, "checkpoint_freq": 5}
LR = 1e-4


def main() -> int:
    options = parser(__doc__, pairs=1, quick="one pair of a ResNet-18 at 32 px, 5 steps")
    options.add_argument("--data_dir", type=Path, required=True, help="<environment>/<grade>/<image>")
    options.add_argument("--model", default="resnet50", help="a timm model: resnet50")
    options.add_argument("--image_size", type=positive, default=224, help="in pixels: 224")
    options.add_argument(
        "--batch_size", type=positive, default=22, help="images per source and step: 22, as VAE-DG has it"
    )
    options.add_argument("--steps", type=positive, default=40, help="of each training: 40")
    options.add_argument("--checkpoint_freq", type=positive, default=20, help="steps between evaluations: 20")
    workers = min(WORKERS, default_num_workers())
    options.add_argument("--workers", type=positive, default=workers, help=f"of each loader of the baseline: {workers}")
    options.add_argument("--baseline", action="store_true", help="run the baseline alone, in the current folder")
    return guarded_by(options, run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, or be the baseline."""
    if arguments.quick:
        vars(arguments).update(QUICK, pairs=1)
    arguments.data_dir = arguments.data_dir.expanduser().resolve()
    if len(environments_in(arguments.data_dir)) < 2:
        raise UserError(f"{arguments.data_dir} holds one environment. Give two or more, to leave one out")
    return baseline(arguments) if arguments.baseline else compare(arguments)


def compare(arguments: argparse.Namespace) -> int:
    """Print the table and the line for programs; return the exit status."""
    theirs, ours = in_turn(lambda: time_of_baseline(arguments), lambda: time_of_ours(arguments), arguments.pairs)
    targets = len(environments_in(arguments.data_dir))
    print(f"VAE_DG, {arguments.model}, {arguments.image_size} px, {arguments.batch_size} images per source and step")
    print(f"{targets} targets, {arguments.steps} steps each, a checkpoint every {arguments.checkpoint_freq}")
    print(f"seconds, medians of {arguments.pairs} {'pair' if arguments.pairs == 1 else 'pairs'}")
    print(f"baseline, {arguments.workers} workers per loader {theirs:10.1f}")
    print(f"train_all.py, packing included     {ours:10.1f}")
    print(f"ratio                              {theirs / ours:10.2f}")
    settings = {key: getattr(arguments, key) for key in QUICK} | {"workers": arguments.workers}
    print(record("run", theirs / ours, ours, theirs, "s", arguments.pairs, **settings))
    return 0


def time_of_ours(arguments: argparse.Namespace) -> float:
    """Seconds of `train_all.py` in a new folder, with a new cache."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").touch()  # not that of the checkout
        chosen = [f"{key}={getattr(arguments, key)}" for key in QUICK]
        changes = ["preprocess=[resize]", f"augment=[{','.join(AUGMENT)}]"]
        fixed = ["--dataset", "DR", "--algorithm", "VAE_DG", f"lr={LR}", "recon_freq=0", "pretrained=false", *changes]
        places = ["--data_dir", arguments.data_dir, "--cache_dir", "cache", "--results_dir", "results"]
        return timed([TRAIN_ALL, "run", *places, *fixed, *chosen], Path(folder))


def time_of_baseline(arguments: argparse.Namespace) -> float:
    """Seconds of the baseline in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = [f"--{key}={getattr(arguments, key)}" for key in (*QUICK, "data_dir", "workers")]
        return timed([SCRIPT, "--baseline", *chosen], Path(folder))


def baseline(arguments: argparse.Namespace) -> int:
    """Leave each environment out in turn; save weights in the current folder; return the exit status."""
    environments = environments_in(arguments.data_dir)
    for target, environment in enumerate(environments):
        data = Plain(arguments.data_dir, target, arguments.image_size, arguments.batch_size, arguments.workers)
        algorithm = vae_dg(
            arguments.image_size, data.num_classes, len(data.sources), model=arguments.model, lr=LR,
            batch_size=arguments.batch_size,
        )  # fmt: skip
        training = PlainTraining(algorithm, "cuda" if torch.cuda.is_available() else "cpu")
        for step in range(arguments.steps):
            losses = training.step(data.minibatches())
            if evaluates(step, arguments.steps, arguments.checkpoint_freq):
                accuracies = [f"{training.accuracy(batches):.3f}" for batches in data.evaluations]
                print(f"{environment.name}, step {step}: loss {losses['loss']:.4g}, accuracies {', '.join(accuracies)}")
        torch.save(algorithm.state_dict(), f"{environment.name}.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
