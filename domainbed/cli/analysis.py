"""What the commands that look at a run share: the options that open it, where pictures go, and how figures are printed.

    python -m domainbed latents results/train_output/DR/full_training --target idrid

The commands are `cli/<command>.py`, what they do is in `analysis/<command>.py`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainbed.analysis import CHOICES
from domainbed.cli import Parser
from domainbed.errors import explain_os_errors
from domainbed.names import printable
from domainbed.paths import as_path

Found = dict[str, Any]


def run_parser(command: str, description: str) -> Parser:
    """Return a parser of the options that open a run."""
    parser = Parser(description, command=command)
    parser.add_argument(
        "run",
        type=as_path,
        help="results/train_output/<dataset>/<name>, finished or not, or an exported model.safetensors",
    )
    add_run_options(parser)
    add_output_options(parser)
    return parser


def add_model_options(
    parser: argparse.ArgumentParser, without_checkpoint: str = "the first of these that is there"
) -> None:
    """Add what chooses a model of a run, and say which checkpoint it is without a choice."""
    parser.add_argument("--target", help="which model of the run: the environment that was left out")
    parser.add_argument("--seed", type=int, help="which model of the run: its seed")
    parser.add_argument("--checkpoint", help=f"best, last, oracle or init (default: {without_checkpoint})")
    parser.add_argument("--plugin", nargs="+", default=[], help="Python files that register the run's algorithm")


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add where and how a model computes."""
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", choices=["auto", "float32", "bf16"], help="default: the run's")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what chooses a model of a run, where its images are, and where it computes."""
    add_model_options(parser)
    parser.add_argument("--data_dir", type=as_path, help="where the run's images are now (default: where they were)")
    parser.add_argument("--cache_dir", type=as_path, help="folder of decoded images (default: the run's)")
    add_machine_options(parser)


def add_images_option(parser: argparse.ArgumentParser) -> None:
    """Add which images of the run are looked at."""
    parser.add_argument(
        "--images", default=CHOICES[0], choices=CHOICES, help=f"which images are looked at (default: {CHOICES[0]})"
    )


def add_output_options(
    parser: argparse.ArgumentParser, out: str = "folder of pictures and figures.json (default: analysis/ in the run)"
) -> None:
    """Add where pictures go, what `--help` says of that, and how figures are printed."""
    parser.add_argument("--out", type=as_path, help=out)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def opened(arguments: argparse.Namespace) -> Any:
    """Return the `analysis.opened.OpenedRun` that the arguments name; what there is to say goes to the terminal."""
    from domainbed.analysis.opened import open_run

    return open_run(
        arguments.run, target=arguments.target, seed=arguments.seed, checkpoint_name=arguments.checkpoint,
        plugin=arguments.plugin, data_dir=arguments.data_dir, cache_dir=arguments.cache_dir, device=arguments.device,
        precision=arguments.precision, report=teller(arguments),
    )  # fmt: skip


def made(folder: Path) -> Path:
    """Make the folder of the output before the work begins, and return it.

    Raises:
        UserError: it can't be made.
    """
    with explain_os_errors(f"writing {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def teller(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Return what prints a line for people: on the terminal, or beside it where the output is JSON."""
    return lambda text: print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)


def finish(arguments: argparse.Namespace, folder: Path, found: Found, lines: Callable[[Found], list[str]]) -> int:
    """Write figures.json beside the pictures, print figures and pictures; return the exit status."""
    from domainbed.records import finite

    found = finite(found)
    made(folder)
    with explain_os_errors(f"writing {folder}"):
        (folder / "figures.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    print("\n".join(map(printable, lines(found))))
    for picture in found.get("pictures", ()):
        print(f"{folder / picture['file']}: {picture['title']}")
    print(f"figures are in {folder / 'figures.json'}")
    return 0
