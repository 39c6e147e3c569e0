"""Images read for evaluation in a run of VAE-DG's schedule: 15,000 steps, evaluated every 200.

    python benchmarks/evaluate.py [--data_dir DR/] [--steps 15000] [--checkpoint_freq 200] [--quick]

The steps are the paper's (Chokuwa & Khan 2023), the interval is that of its code for DR. Nothing is computed from a
formula: both sides run, and readings are counted. A run with as many evaluations has them every 3 steps instead of
every 200, and pictures every 15 instead of every 1,000, which changes no reading but those for training, and those are
left out.

Counted is every image that is read other than for a training step, packed or decoded, and as often as it is read:

    ours       what `train_all` takes out of the pack for checkpoints (the held-out part of every environment), for the
               last judgement of the chosen and the last weights (target, whole and in parts; parts of the sources), for
               the mean training image, and for pictures and histograms; a network of a few thousand weights
    baseline   what the evaluation loaders of DomainBed's `scripts/train.py` (`paired.Plain`) take out of ImageFolder:
               both parts of every environment after step 0, every 200 steps and after the last

Each environment is left out once; --quick leaves out the first alone. Decoding every image once into the pack is not
counted. SWAD and the published VAE-DG leave the training parts of the sources out unless they are asked for them
(`--evalmode all`); the second row is the baseline without these. A pair is one seed; which weights are chosen, and so
whether they are the last ones, depends on it.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from paired import Plain, environments_in, evaluates, export, guarded_by, in_turn, parser, record
from torchvision.datasets import DatasetFolder

from domainbed.cli import positive
from domainbed.cli.train import run as train
from domainbed.datasets.loaders import TrainLoader
from domainbed.datasets.prepare import Images
from domainbed.datasets.synthetic_fundus import SyntheticFundus
from domainbed.trainer import Training

SIZE, BATCH_SIZE = 32, 4
#: Steps between evaluations of the run that is counted.
SCALED_FREQ = 3
#: Steps between pictures of the schedule, as `recon_freq` is by default.
PICTURES_EVERY = 1000
#: What an image is read for, by the method that reads it; the innermost counts.
PURPOSES = {
    "judge": "checkpoints", "final_figures": "last judgement", "trivial_figures": "mean training image",
    "dump": "pictures",
}  # fmt: skip


def main() -> int:
    options = parser(__doc__, pairs=1, quick="the first environment left out, 100 images each where they are drawn")
    options.add_argument("--data_dir", type=Path, help="<environment>/<grade>/<image>; left out, photographs are drawn")
    options.add_argument("--steps", type=positive, default=15_000, help="of the schedule: 15000")
    options.add_argument("--checkpoint_freq", type=positive, default=200, help="steps between evaluations: 200")
    return guarded_by(options, compare)


def compare(arguments: argparse.Namespace) -> int:
    """Print the table and the line for programs; return the exit status."""
    steps, freq, pairs = arguments.steps, arguments.checkpoint_freq, arguments.pairs
    # equally many evaluations on both sides: after step 0 and the last too, which may be one that is evaluated anyway
    scaled = steps // freq * SCALED_FREQ + min(steps % freq, SCALED_FREQ - 1)
    recon_freq = max(1, PICTURES_EVERY * SCALED_FREQ // freq)
    ours: list[Counter] = []
    baseline: list[Counter] = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data_dir is None:
            dataset = SyntheticFundus.HParams.model_validate(
                {"image_size": SIZE, "num_images": 100 if arguments.quick else 500}
            )
            data_dir = Path(folder) / "images"
            export(SyntheticFundus(None, dataset), data_dir)
        else:
            data_dir = arguments.data_dir.expanduser().resolve()
        targets = range(1 if arguments.quick else len(environments_in(data_dir)))

        def read_by_baseline() -> float:
            baseline.append(sum((of_baseline(data_dir, target, scaled) for target in targets), Counter()))
            return sum(baseline[-1].values())

        def read_by_ours() -> float:
            ours.append(of_ours(data_dir, Path(folder), len(ours), targets, scaled, recon_freq))
            return sum(ours[-1].values())

        theirs, mine = in_turn(read_by_baseline, read_by_ours, pairs)
    without = theirs - baseline[0]["training parts of the sources"]
    print(f"images read for evaluation, {steps} steps, a checkpoint every {freq}, {len(targets)} targets")
    print(f"{'both parts of every environment':45} {theirs:10.0f}  ratio {theirs / mine:5.2f}")
    print(f"{'without the training parts of the sources':45} {without:10.0f}  ratio {without / mine:5.2f}")
    print(f"{'ours':45} {mine:10.0f}")
    for purpose, count in ours[0].items():
        print(f"  {purpose:43} {count:10}")
    more = {"ratio_without_training_parts": without / mine, "ours_by_purpose": ours[0]}
    print(record("evaluate", theirs / mine, mine, theirs, "images", pairs, **more))
    return 0


def of_baseline(data_dir: Path, target: int, steps: int) -> Counter:
    """Iterate over DomainBed's evaluation loaders as often as it does; return what ImageFolder gave."""
    data = Plain(data_dir, target, SIZE, BATCH_SIZE, workers=0)
    held_out = len(data.evaluations) // 2
    of_sources = [data.evaluations[environment] for environment in data.sources]
    found: Counter[str] = Counter()
    given: Counter[str] = Counter()
    read = DatasetFolder.__getitem__

    def counted(self: DatasetFolder, index: int) -> Any:
        given["images"] += 1
        return read(self, index)

    with patch.object(DatasetFolder, "__getitem__", counted):
        for step in range(steps):
            if not evaluates(step, steps, SCALED_FREQ):
                continue
            for number, batches in enumerate(data.evaluations):
                before = given["images"]
                for _ in batches:
                    pass
                part = "training parts of the sources" if batches in of_sources else "other"
                found["held-out parts" if number >= held_out else part] += given["images"] - before
    return found


def of_ours(data_dir: Path, folder: Path, seed: int, targets: range, steps: int, recon_freq: int) -> Counter:
    """Run `train_all` with a small network; return what was taken out of the pack, by purpose."""
    found: Counter = Counter()
    doing = threading.local()  # the next training steps are read in a thread of their own, while others evaluate
    doing.what = []

    @contextlib.contextmanager
    def during(what: str) -> Iterator[None]:
        doing.what = [*getattr(doing, "what", []), what]
        try:
            yield
        finally:
            doing.what = doing.what[:-1]

    def marked(method: Any, what: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with during(what):
                answer = method(*args, **kwargs)
                return iter(list(answer)) if isinstance(answer, Iterator) else answer

        return call

    read = Images.pixels

    def counted(self: Images, rows: Any) -> Any:
        what = getattr(doing, "what", [])
        found[what[-1] if what else "other"] += len(rows)
        return read(self, rows)

    with contextlib.ExitStack() as stack:
        for name, what in PURPOSES.items():
            stack.enter_context(patch.object(Training, name, marked(getattr(Training, name), what)))
        stack.enter_context(patch.object(TrainLoader, "read", marked(TrainLoader.read, "training")))
        stack.enter_context(patch.object(Images, "pixels", counted))
        stack.enter_context(patch("domainbed.cli.configuration.config_file", return_value=None))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        status = train("train_all", [
            f"evaluate_{seed}", "--dataset", "DR", "--algorithm", "VAE_DG", "--data_dir", str(data_dir), f"seed={seed}",
            "--test_envs", *map(str, targets), f"steps={steps}", f"checkpoint_freq={SCALED_FREQ}",
            f"recon_freq={recon_freq}", f"image_size={SIZE}", f"batch_size={BATCH_SIZE}", "model=test_resnet",
            "pretrained=false", "preprocess=[resize]", "augment=[]",
            "--cache_dir", str(folder / "cache"), "--results_dir", str(folder / "results"),
        ])  # fmt: skip
    if status:
        raise KeyboardInterrupt
    del found["training"]
    return found


if __name__ == "__main__":
    sys.exit(main())
