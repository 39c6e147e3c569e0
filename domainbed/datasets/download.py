"""Fetching what a publisher allows to be fetched directly: one file, checked, whole or not at all.

    path = fetch(RemoteFile("usps.bz2", ("https://…/usps.bz2",), "md5:ec16…"), data_dir / "USPS")

A data set asks for it with `download=true` where its files are missing; what the files mean is in its own module.
"""

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import domainbed
from domainbed.errors import UserError
from domainbed.files import write_atomically

_TIMEOUT_S = 30  # without a byte
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file that its publisher, or a mirror, serves.

    Attributes:
        name: of the file.
        urls: where it is, in the order in which they are tried.
        checksum: algorithm and hexadecimal digest, such as "sha256:440f…" or "md5:ec16…".
    """

    name: str
    urls: tuple[str, ...]
    checksum: str


def fetch(remote: RemoteFile, folder: Path) -> Path:
    """Return the path of the file in `folder`, fetched if it isn't there yet.

    It appears under its name once it is whole and its checksum is right. Progress is shown after two seconds.

    Raises:
        UserError: no address serves it with that checksum, the folder can't be written, or a file of that name that is
            there already is another one.
    """
    path = folder / remote.name
    if path.is_file():
        if _checksum(path, remote) != remote.checksum:
            raise UserError(
                f"{path} is not the published file: its checksum is {_checksum(path, remote)}, not {remote.checksum}. "
                "Remove it to have it fetched anew"
            )
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as draft:
            _fetch_any(remote, draft)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}. Give another --data_dir") from None
    return path


def _fetch_any(remote: RemoteFile, draft: Path) -> None:
    """Write the file from the first of its addresses that has it whole.

    Raises:
        UserError: none has.
    """
    reasons = []
    for url in remote.urls:
        try:
            _download(url, draft, remote.name)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reasons.append(f"{url}: {_plain(error)}")
            continue
        found = _checksum(draft, remote)
        if found == remote.checksum:
            return
        reasons.append(f"{url}: what came has the checksum {found}, not {remote.checksum}")
    raise UserError(
        f"can't fetch {remote.name} ({'; '.join(reasons)}). Fetch it on a machine with access and put it into "
        f"{draft.parent}"
    )


def unpack(archive: Path, names: Collection[str], folder: Path) -> None:
    """Write the members of a .tar.gz that have these file names into `folder`; it appears whole or not at all.

    Raises:
        UserError: the archive is damaged or lacks a member, or the folder can't be written.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                name = os.path.basename(member.name)
                if name in names and member.isfile() and (source := tar.extractfile(member)) is not None:
                    with source, open(part / name, "wb") as target:
                        shutil.copyfileobj(source, target)
        missing = sorted(set(names) - {path.name for path in part.iterdir()})
        if missing:
            raise UserError(f"{archive} holds no {missing[0]}. Remove it to have it fetched anew")
        os.replace(part, folder)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is damaged: {error}. Remove it to have it fetched anew") from None
    except OSError as error:  # zlib's and gzip's errors are among them
        raise UserError(f"can't unpack {archive} into {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(url: str, path: Path, title: str) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": f"domainbed/{domainbed.__version__}"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response, open(path, "wb") as file:
        promised = response.headers.get("Content-Length")
        total = int(promised) if promised else None
        with tqdm(total=total, desc=f"fetching {title}", unit="B", unit_scale=True, delay=2) as bar:
            while block := response.read(_BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
        if total is not None and file.tell() < total:  # `read(n)` ends early without a word
            raise http.client.IncompleteRead(b"", total - file.tell())


def _checksum(path: Path, remote: RemoteFile) -> str:
    algorithm = remote.checksum.partition(":")[0]
    with open(path, "rb") as file:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


def _plain(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, http.client.IncompleteRead):
        return f"the connection broke {error.expected} bytes before the end"
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)
