"""From argv to a run. Each command is a file with `main(argv)`; nothing here imports torch before it is needed.

python -m domainbed list [NAME]
python -m domainbed new <Name>                             a file to start an algorithm of your own from
python -m domainbed explore <folder>
python -m domainbed evaluate <run> --data_dir <folder>
python -m domainbed latents | traverse | layers | errors <run>
python -m domainbed compare | report <run> <run> …
python -m domainbed predict <run> <images …>
python -m domainbed export <run> --to safetensors | onnx | torch.export
python -m domainbed pack --data_dir <folder> [--check | --clear]
python -m domainbed train_all | train_subset <name> …      the same as train_all.py and train_subset.py
"""

import argparse
import gc
import importlib
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from domainbed.errors import UserError, did_you_mean, full_disk_explained
from domainbed.machine import lose_terminal, open_standard_streams, process_number, silence, stop_signals

COMMANDS = {
    "list": "names of all algorithms and data sets, or the settings of one",
    "new": "write a file to start an algorithm of your own from",
    "explore": "what is in a folder of images, and how far its environments are apart",
    "evaluate": "figures of a finished run on data that it never saw",
    "latents": "maps and figures of a run's latent codes",
    "traverse": "what each latent dimension draws; interpolations and samples",
    "layers": "what training changed in each layer, and what the layers answer",
    "errors": "the most wrong answers and the worst reconstructions",
    "compare": "curves and tables of several runs, and which differences exceed the seed noise",
    "report": "all of it as one HTML page",
    "predict": "probabilities, reconstructions or masks of images",
    "export": "the model as safetensors, ONNX or torch.export, with its card",
    "pack": "decode a data set ahead of its runs; check or delete what was decoded",
    "train_all": "leave each environment out in turn",
    "train_subset": "the same on a few images per environment, the first environment left out",
}
#: New objects between two searches for garbage, as long as a command runs. Importing torch and timm makes 700,000
#: objects and no garbage; Python's own 700 or 2,000 has them looked through so often that a fifth of the imports' time
#: goes there. Training leaves next to no garbage that only such a search finds.
GARBAGE_THRESHOLD = 100_000


def main(argv: list[str] | None = None) -> int:
    """Run `python -m domainbed <command> …` and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv

    def run() -> int:
        if not argv or argv[0] in ("-h", "--help"):
            print("usage: python -m domainbed <command> [--help]\n\ncommands:")
            print("\n".join(f"  {name:<13} {line}" for name, line in COMMANDS.items()))
            return 0 if argv else 2
        if argv[0] not in COMMANDS:
            raise UserError(f"no command named {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}")
        if argv[0].startswith("train_"):
            return importlib.import_module("domainbed.cli.train").run(argv[0], argv[1:])
        return importlib.import_module(f"domainbed.cli.{argv[0]}").main(argv[1:])

    return guarded(run)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `UserError`s, like every other mistake.

    Args:
        description: what `--help` says first, as it stands.
        command: of `python -m domainbed <command>`; None for a script of its own.
    """

    def __init__(self, description: str, command: str | None = None) -> None:
        super().__init__(
            prog=command and f"python -m domainbed {command}", description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip

    def print_help(self, file: Any = None) -> None:
        """Print the help; argparse's own ignores an output that can't be written."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}. --help explains the options")


def positive(text: str) -> int:
    """Return a whole number of at least 1, as the type of an argument."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _processes_have_met() -> bool:
    """Whether several processes know of each other; before that, all on a machine make the same mistake."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _interrupt(number: int, frame: Any) -> None:
    if number == signal.SIGHUP:
        lose_terminal()
    raise KeyboardInterrupt


def guarded(run: Callable[[], int]) -> int:
    """Run a command; a user's mistake is one message and status 2, an interrupt status 130, a bug its traceback.

    So is output that can't be written: a full disk is a mistake like another, a reader that has gone ends the command.
    """
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no text, and the terminal may know ASCII alone
        with suppress(AttributeError):  # where something else stands in for the terminal
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    before, thresholds = {}, gc.get_threshold()
    gc.set_threshold(GARBAGE_THRESHOLD)
    with suppress(ValueError):  # not in the main thread, where signals are another's business
        for one in stop_signals():
            if one != signal.SIGINT:  # which is a KeyboardInterrupt already
                before[one] = signal.signal(one, _interrupt)
    try:
        with full_disk_explained("writing"):
            try:
                status = run()
            except SystemExit as done:  # of argparse, after --help
                status = int(done.code or 0)
            sys.stdout.flush()
            return status
    except UserError as error:
        if not error.said and (_processes_have_met() or not process_number("LOCAL_RANK")):
            process = process_number()
            _say(f"process {process}: error: {error}" if process else f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("\ninterrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        return 0
    finally:
        gc.set_threshold(*thresholds)
        for number, handler in before.items():
            signal.signal(number, handler)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # what can't be written would fail again when Python ends, with status 120
                silence(stream)


def _say(text: str) -> None:
    """Write to the terminal, where it can still be read."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
