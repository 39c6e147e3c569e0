"""Handwritten digits of two sources: MNIST (see `mnist`) and USPS (Hull 1994).

USPS is read from <data_dir>/USPS or <data_dir>, in one of two forms, a test file being optional in both:
- usps.bz2 and usps.t.bz2, LIBSVM's text files: in each line a label from 1 to 10, and 256 index:value in [-1, 1];
- usps_train.npz and usps_test.npz: `images` uint8 (N, 16, 16) and `labels` (N,) from 0 to 9.
"""

import bz2
import zipfile
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np

from domainbed.datasets.base import Sample
from domainbed.datasets.download import RemoteFile, fetch
from domainbed.datasets.mnist import DIGIT_DEFAULTS, DIGITS, MNIST, check_digits, numbered, read_mnist
from domainbed.datasets.sources import Rows, SourceDataset
from domainbed.errors import UserError
from domainbed.paths import user_path
from domainbed.registry import DATASETS

_URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
#: By split, with the checksums of torchvision.
TEXT_FILES = {
    "train": RemoteFile("usps.bz2", (f"{_URL}usps.bz2",), "md5:ec16c51db3855ca6c91edd34d0e9b197"),
    "test": RemoteFile("usps.t.bz2", (f"{_URL}usps.t.bz2",), "md5:8ea070ee2aca1ac39742fdd1ef5ed118"),
}
_NPZ_FILES = {"train": "usps_train.npz", "test": "usps_test.npz"}
_PLACES = ("USPS", "")
_SIDE_PX = 16


@DATASETS.register("Digits")
class Digits(SourceDataset):
    """Handwritten digits 0 to 9 of two environments, MNIST and USPS, grey, at one size, with their test splits.

    USPS is 16 x 16 px and fills its frame more than MNIST's 28 x 28 px; both are resized to `image_size`, 28 unless
    another is given, and nothing else is done to bring them closer.
    """

    class HParams(MNIST.HParams):
        """Those of MNIST."""

    photographs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, object]] = DIGIT_DEFAULTS

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        self.environments, self.classes = ["MNIST", "USPS"], list(DIGITS)
        mnist = read_mnist(self.name, data_dir, hparams.download)
        assert data_dir is not None  # or the line above says so
        usps = read_usps(self.name, data_dir, hparams.download)
        self.source = Rows(*(images for parts in (mnist, usps) for images, _ in parts.values()))
        self.samples = [
            Sample(i, f"{environment}/{name}", label, f"{environment}/{name}", split)
            for i, (environment, parts) in enumerate(zip(self.environments, (mnist, usps), strict=True))
            for split, (_, labels) in parts.items()
            for name, label in numbered(split, labels)
        ]


def read_usps(needs: str, data_dir: Path, download: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return USPS's images, uint8 (N, 16, 16), and labels, (N,), of "train" and, where it is there, "test".

    Args:
        needs: the data set that needs them, for messages.
        data_dir: where they are, see above.
        download: whether they are fetched where neither form is there.

    Raises:
        UserError: files are missing, can't be fetched, or are damaged.
    """
    root = user_path(data_dir)
    for folder in (root / place for place in _PLACES):
        if (folder / TEXT_FILES["train"].name).is_file():
            paths = {split: folder / remote.name for split, remote in TEXT_FILES.items()}
            return {split: _read_text(path) for split, path in paths.items() if path.is_file()}
        if (folder / _NPZ_FILES["train"]).is_file():
            paths = {split: folder / name for split, name in _NPZ_FILES.items()}
            return {split: _read_npz(path) for split, path in paths.items() if path.is_file()}
    names = [remote.name for remote in TEXT_FILES.values()]
    if download:
        return {split: _read_text(fetch(remote, root / _PLACES[0])) for split, remote in TEXT_FILES.items()}
    raise UserError(
        f"{needs} needs <data_dir>/USPS/{names[0]} or {_NPZ_FILES['train']}, but {str(root)!r} holds neither. "
        f"Pass download=true to fetch it, or put {' and '.join(names)} of {_URL} there"
    )


def _read_text(path: Path) -> tuple[np.ndarray, np.ndarray]:
    size = _SIDE_PX**2
    try:
        with bz2.open(path) as file:
            lines = [line.replace(b":", b" ").split() for line in file]
        table = np.array(lines, dtype=np.float32)  # (N, 1 + 2 x 256): label, then index and value of each pixel
    except (OSError, EOFError) as error:
        raise UserError(f"{path} can't be read: {error}. Fetch it again") from None
    except ValueError:
        table = np.empty((0, 0), dtype=np.float32)
    if table.ndim != 2 or table.shape[1] != 1 + 2 * size or (table[:, 1::2] != np.arange(1, size + 1)).any():
        raise UserError(f"{path} does not hold a label and {size} values index:value in every line. Fetch it again")
    labels, values = table[:, 0] - 1, table[:, 2::2]
    if labels.min() < 0 or not np.abs(values).max() <= 1:  # not a number is refused as well
        raise UserError(f"{path} holds labels below 1 or values outside [-1, 1]. Fetch it again")
    images = np.round((values + 1) / 2 * 255).astype(np.uint8).reshape(-1, _SIDE_PX, _SIDE_PX)
    check_digits(path, images, path, labels.astype(np.uint8))
    return images, labels.astype(np.uint8)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no .npz file, or not whole")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                images, labels = arrays["images"], arrays["labels"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} can't be read: {error}. It must hold the arrays images and labels") from None
    if images.dtype != np.uint8 or images.ndim != 3 or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path} holds images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}; they must be "
            f"uint8 (N, {_SIDE_PX}, {_SIDE_PX}) and whole numbers (N,)"
        )
    check_digits(path, images, path, labels)
    return images, labels
