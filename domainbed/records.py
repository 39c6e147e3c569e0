"""What a run writes while it goes: log.txt for people, results.jsonl for programs, TensorBoard for both.

    {"kind": "train", "target": "idrid", "seed": 0, "step": 10, "total_loss": …, …}
    {"kind": "eval",  …, "step": 300, "environment": "srahim", "role": "source", "part": "val", "n": …, "metrics": {…}}
    {"kind": "final", …, "protocol": "last", "checkpoint": "last", "part": "whole", "metrics": {…}, "intervals": {…}}

What the figures mean is in `metrics`, their table in `summary`.
"""

import errno
import fcntl
import io
import json
import math
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from PIL import Image
from tqdm import tqdm

from domainbed.errors import UserError, explain_os_errors, full_disk_explained
from domainbed.files import write_atomically
from domainbed.machine import silence

#: Of pictures in TensorBoard, from 0 to 95.
JPEG_QUALITY = 90


def begun(path: Path) -> bool:
    """Whether a run has begun in a folder: whether it has a checkpoint, if only of its first weights."""
    return any(path.glob("te_*/checkpoints/[!.]*")) or any(path.glob("seed_*/te_*/checkpoints/[!.]*"))


class RunFolder:
    """The folder of one run, held by one process at a time.

    Args:
        path: `results/train_output/<dataset>/<name>`.
        resume: whether the run may have begun already.

    Raises:
        UserError: the run exists and is not to go on, another process holds it, or it can't be written.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        if begun(path) and not resume:
            raise UserError(f"{path} exists already. Go on with it by --resume, or choose another name")
        with explain_os_errors(f"opening the run's folder {path}"):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise UserError(f"{path} can't be a folder: there is a file in its way. Choose another name") from None
            self._lock: IO[str] = open(path / ".lock", "a+")  # noqa: SIM115  (held until the process ends)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise UserError(
                f"{path} is being written by another process (number {holder}). Wait for it or choose another name"
            ) from None
        if not resume:
            self.clear()  # what one left that was killed before it began
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def clear(self) -> None:
        """Remove what a run left that trained nothing, but for its log."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in ("log.txt", ".lock"):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process have the run."""
        self._lock.close()


class Records:
    """log.txt and results.jsonl of one run.

    Args:
        folder: the run's folder, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "results.jsonl"
        self._log = open(  # noqa: SIM115  (closed by `close`)
            folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace"
        )
        self._quiet = False

    def log(self, text: str = "") -> None:
        """Write lines to the terminal and, with the time, to log.txt."""
        if not self._quiet:
            try:
                with full_disk_explained("writing the output"):
                    tqdm.write(text, file=sys.stdout)
                    sys.stdout.flush()
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                self._quiet = True  # the reader or the terminal has gone; the run goes on, and log.txt has it all
                silence(sys.stdout)
        self.log_file([text])

    def log_file(self, texts: list[str]) -> None:
        """Write lines to log.txt alone, for what the terminal has seen already."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with explain_os_errors("writing log.txt"):
            self._log.writelines(f"{stamp}  {line}\n" for text in texts for line in text.split("\n"))
            self._log.flush()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record to results.jsonl; a figure that is not finite becomes null."""
        with explain_os_errors("writing results.jsonl"), open(self.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all whole records."""
        return read_results(self.results)

    def drop_after(self, target: str, seed: int, step: int) -> None:
        """Forget what one unfinished target wrote after a step, because it will be written again."""
        kept = [
            record
            for record in self.read()
            if (record.get("target"), record.get("seed")) != (target, seed)
            or (record["kind"] != "final" and record.get("step", 0) <= step)
        ]
        with explain_os_errors("writing results.jsonl"), write_atomically(self.results) as draft:
            draft.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def close(self) -> None:
        """Close log.txt; what a full disk refuses was reported when it was written."""
        with suppress(OSError):
            self._log.close()


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return all whole records of a results.jsonl, none where there is no file.

    A line that a kill or the disk has damaged is left out.
    """
    records = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and "kind" in record:
                    records.append(record)
    return records


class Board:
    """TensorBoard of one training. A full disk is a `UserError` here, too.

    Args:
        folder: of the event files.
        purge_step: what the folder held from this step on is hidden, because it will be written again.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with explain_os_errors("writing TensorBoard"):
            self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def scalars(self, values: dict[str, Any], step: int) -> None:
        """Add the numbers among some values, by name."""
        with explain_os_errors("writing TensorBoard"):
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Add a text, shown as it is."""
        with explain_os_errors("writing TensorBoard"):
            self._writer.add_text(name, f"```\n{text}\n```", step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Add a picture, as its PNG file has it or as JPEG, whichever has fewer bytes.

        TensorBoard computes a checksum of them in Python, 0.3 s a megabyte.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        jpeg = io.BytesIO()
        with explain_os_errors("writing TensorBoard"), Image.open(path) as opened:
            opened.convert("RGB").save(jpeg, "JPEG", quality=JPEG_QUALITY)
            width, height = opened.size
            encoded = min(path.read_bytes(), jpeg.getvalue(), key=len)
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=encoded)
            self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def histogram(self, name: str, values: Any, step: int) -> None:
        """Add a histogram of the finite values of a tensor; none where there are none."""
        finite_values = values[values.isfinite()]
        if len(finite_values):
            with explain_os_errors("writing TensorBoard"):
                self._writer.add_histogram(name, finite_values, step)

    def close(self) -> None:
        """Flush and close."""
        with explain_os_errors("writing TensorBoard"):
            self._writer.close()


class Nowhere:
    """`Records` and `Board` of a process that writes nothing, because the main one does."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments, **options: None

    def read(self) -> list[dict[str, Any]]:
        """Return no records."""
        return []


def finite(value: Any) -> Any:
    """Return plain data with None in the place of every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
