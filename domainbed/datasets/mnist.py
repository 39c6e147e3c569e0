"""Handwritten digits: MNIST, and the two data sets of shifts that are made of it. Digits of two sources: `digits`.

Files are the publisher's idx files, plain or .gz, in <data_dir>/MNIST/raw as torchvision lays them out, in
<data_dir>/raw, or in <data_dir> itself. `RotatedMNIST` and `ColoredMNIST` are those of DomainBed (Gulrajani & Lopez-Paz
2021): MNIST's training and test images, shuffled together, are dealt out to the environments, so that no digit is in
two. DomainBed draws the shuffle and the noise anew in every run; here they are functions of `data_seed` and the image's
name.
"""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image

from domainbed.datasets.base import Dataset, Sample
from domainbed.datasets.download import RemoteFile, fetch
from domainbed.datasets.listing import folders_in
from domainbed.datasets.preprocess import PREPROCESSINGS
from domainbed.datasets.sources import Rows, SourceDataset
from domainbed.errors import UserError
from domainbed.hparams import Field, Names, NonNegativeInt, PositiveInt, names_in
from domainbed.paths import user_path
from domainbed.registry import DATASETS

DIGITS = [str(digit) for digit in range(10)]

# The mirrors that torchvision and TensorFlow Datasets fetch from, which the publisher's own address names no more, with
# the digests of the latter.
_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
_SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
FILES = {
    name: RemoteFile(f"{name}.gz", tuple(f"{mirror}{name}.gz" for mirror in _MIRRORS), f"sha256:{digest}")
    for name, digest in _SHA256.items()
}
_PREFIXES = {"train": "train", "t10k": "test"}
_PLACES = ("MNIST/raw", "raw", "")

_UNSIGNED_BYTE = 0x08  # the type of value in an idx file's magic number


#: DomainBed's steps, batch per environment and learning rate for small images, which are evaluated many at once.
DIGIT_DEFAULTS: dict[str, object] = {"steps": 5_000, "batch_size": 64, "lr": 1e-3, "eval_batch_size": 256}


@DATASETS.register("MNIST")
class MNIST(SourceDataset):
    """Handwritten digits 0 to 9, 28 x 28 px, grey: one environment with the publisher's test split.

    60,000 images for training, of which a part is held out as "val", and 10,000 for the test (LeCun et al. 1998).
    `preprocess=resize` gives three equal channels instead of one.
    """

    class HParams(Dataset.HParams):
        """Defaults that suit digits, and whether they are fetched."""

        image_size: PositiveInt = Field(28, description=Dataset.HParams.model_fields["image_size"].description)
        preprocess: Annotated[Names, names_in(PREPROCESSINGS)] = Field(
            ["gray_ntsc", "resize"], description=Dataset.HParams.model_fields["preprocess"].description
        )
        download: bool = Field(False, description="fetch files that are missing into --data_dir")

    terms: ClassVar[str] = "LeCun et al. 1998, CC BY-SA 3.0"
    photographs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, object]] = DIGIT_DEFAULTS
    hparams: HParams

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        parts = read_mnist(self.name, data_dir, hparams.download)
        self.source = Rows(*(images for images, _ in parts.values()))
        self.environments, self.classes = ["MNIST"], list(DIGITS)
        self.samples = [
            Sample(0, name, label, name, split)
            for split, (_, labels) in parts.items()
            for name, label in numbered(split, labels)
        ]


class _ShiftedMNIST(Dataset):
    """MNIST's images dealt out to environments, each of which changes them in its own way.

    `samples` are in the order of environments; `_order[i]` is the number of sample i's image among MNIST's.
    """

    class HParams(MNIST.HParams):
        """Which digit goes where."""

        data_seed: NonNegativeInt = Field(0, description="seed of which digit is in which environment, and of noise")

    terms: ClassVar[str] = "LeCun et al. 1998, CC BY-SA 3.0"
    photographs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, object]] = DIGIT_DEFAULTS
    shifts: ClassVar[dict[str, float]]  # by environment
    class_names: ClassVar[list[str]]
    hparams: HParams

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        parts = read_mnist(self.name, data_dir, hparams.download)
        self._rows = Rows(*(images for images, _ in parts.values()))
        self.environments, self.classes = list(self.shifts), list(self.class_names)
        digits = [digit for split, (_, labels) in parts.items() for digit in numbered(split, labels)]
        shuffled = np.argsort([self._draw("environment", name) for name, _ in digits], kind="stable")
        dealt = [np.sort(shuffled[first :: len(self.shifts)]) for first in range(len(self.shifts))]
        self._order = np.concatenate(dealt)
        self.samples = [
            Sample(environment, digits[image][0], self._label(*digits[image]), digits[image][0])
            for environment, hand in enumerate(dealt)
            for image in hand.tolist()
        ]

    def read(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (H, W, C), changed as its environment does, and preprocessed."""
        return self.preprocess(self._changed(index, self._rows.row(int(self._order[index]))))[0]

    def content(self, index: int) -> str:
        """Return the SHA-256 of the original image's values, and what is done to it."""
        return f"{self._rows.content(int(self._order[index]))} {self._change(index)}"

    def _label(self, name: str, digit: int) -> int:
        """Return the class of an image."""
        raise NotImplementedError

    def _changed(self, index: int, image: np.ndarray) -> np.ndarray:
        """Return a digit, (h, w), as its environment shows it, (h, w, 3)."""
        raise NotImplementedError

    def _change(self, index: int) -> str:
        """Say what `_changed` does to an image."""
        raise NotImplementedError

    def _shift(self, index: int) -> float:
        return self.shifts[self.environments[self.samples[index].environment]]

    def _draw(self, purpose: str, name: str) -> float:
        """Return a number in [0, 1) that is the same in every run with this `data_seed`."""
        digest = hashlib.sha256(f"{purpose}/{self.hparams.data_seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


@DATASETS.register("RotatedMNIST")
class RotatedMNIST(_ShiftedMNIST):
    """MNIST in six environments, turned by 0, 15, 30, 45, 60 and 75 degrees.

    Ghifary et al. 2015, as DomainBed has it: anticlockwise, bicubic, what comes in from outside is black; at 28 px,
    before `preprocess`. The publisher's test images are among those of every environment.
    """

    shifts: ClassVar[dict[str, float]] = {str(degrees): degrees for degrees in (0, 15, 30, 45, 60, 75)}
    class_names: ClassVar[list[str]] = DIGITS

    def _label(self, name: str, digit: int) -> int:
        return digit

    def _changed(self, index: int, image: np.ndarray) -> np.ndarray:
        turned = np.asarray(Image.fromarray(image).rotate(self._shift(index), Image.Resampling.BICUBIC))
        return np.repeat(turned[..., None], 3, axis=2)

    def _change(self, index: int) -> str:
        return f"turned by {self._shift(index)} degrees"


@DATASETS.register("ColoredMNIST")
class ColoredMNIST(_ShiftedMNIST):
    """MNIST in red and green, where the colour tells more of the label than the digit does, and turns on the target.

    Arjovsky et al. 2019: the label is 0 for the digits 0 to 4 and 1 for 5 to 9, and wrong in 25 % of all images. The
    digit is red where the label, turned over once more with a probability of 10 %, 20 % and 90 %, is 1, else green: the
    environments `plus90`, `plus80` and `minus90`, DomainBed's +90 %, +80 % and -90 %, named so because '+' joins
    targets. DomainBed has two channels, red and green; here they are those of an RGB image, whose blue is 0.
    """

    class HParams(_ShiftedMNIST.HParams):
        """Colours are kept."""

        preprocess: Annotated[Names, names_in(PREPROCESSINGS)] = Field(
            ["resize"], description=Dataset.HParams.model_fields["preprocess"].description
        )

    #: Probability that the colour is not that of the label.
    shifts: ClassVar[dict[str, float]] = {"plus90": 0.1, "plus80": 0.2, "minus90": 0.9}
    class_names: ClassVar[list[str]] = ["0-4", "5-9"]
    #: Probability that the label is not that of the digit.
    label_noise: ClassVar[float] = 0.25

    def _label(self, name: str, digit: int) -> int:
        return int((digit >= 5) != (self._draw("label", name) < self.label_noise))

    def _changed(self, index: int, image: np.ndarray) -> np.ndarray:
        blank = np.zeros_like(image)
        return np.stack([image, blank, blank] if self._is_red(index) else [blank, image, blank], axis=2)

    def _change(self, index: int) -> str:
        return "red" if self._is_red(index) else "green"

    def _is_red(self, index: int) -> bool:
        sample = self.samples[index]
        return bool(sample.label) != (self._draw("colour", sample.name) < self._shift(index))


def numbered(split: str, labels: np.ndarray) -> Iterator[tuple[str, int]]:
    """Yield the name of every image of a split, such as "train/00007", and its label."""
    return ((f"{split}/{number:05}", label) for number, label in enumerate(labels.tolist()))


def read_mnist(needs: str, data_dir: Path | None, download: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return MNIST's images, uint8 (N, 28, 28), and labels, uint8 (N,), of "train" and "test".

    Args:
        needs: the data set that needs them, for messages.
        data_dir: where they are, see above.
        download: whether files that are missing are fetched.

    Raises:
        UserError: files are missing, can't be fetched, or are damaged.
    """
    paths = _find(needs, data_dir, download)
    parts = {}
    for prefix, split in _PREFIXES.items():
        images_path, labels_path = (paths[name] for name in FILES if name.startswith(prefix))
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        check_digits(images_path, images, labels_path, labels)
        parts[split] = (images, labels)
    return parts


def check_digits(images_path: Path, images: np.ndarray, labels_path: Path, labels: np.ndarray) -> None:
    """Raise `UserError` where there is not one label from 0 to 9 for every image."""
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} holds {len(images)} images, but {labels_path} holds {len(labels)} labels. "
            "Fetch both from one place"
        )
    if not images.size:
        raise UserError(f"{images_path} holds no image. Fetch it again")
    if wrong := sorted(set(labels.tolist()) - set(range(10))):
        raise UserError(f"{labels_path} holds the label {wrong[0]}; digits are 0 to 9. Fetch it again")


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Return the array in an idx file of unsigned bytes, plain or .gz.

    The format is a magic number 00 00 <type> <dimensions>, one big-endian uint32 per dimension, and the values (LeCun).

    Raises:
        UserError: the file is not such a file, or not whole.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            magic = file.read(4)
            expected = bytes([0, 0, _UNSIGNED_BYTE, num_dimensions])
            if magic != expected:
                raise UserError(
                    f"{path} is no idx file of {num_dimensions}-dimensional bytes: it begins with {magic.hex(' ')}, "
                    f"not {expected.hex(' ')}. Fetch it again"
                )
            head = file.read(4 * num_dimensions)
            shape = struct.unpack(f">{num_dimensions}I", head.ljust(4 * num_dimensions, b"\0"))
            values = np.frombuffer(file.read(), np.uint8)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise UserError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}. Fetch it again") from None
    if len(head) < 4 * num_dimensions or values.size != np.prod(shape, dtype=np.int64):
        raise UserError(
            f"{path} holds {values.size} values, but its head promises {' x '.join(map(str, shape))}. Fetch it again"
        )
    return values.reshape(shape)


def _find(needs: str, data_dir: Path | None, download: bool) -> dict[str, Path]:
    """Return the path of each of the four files.

    Raises:
        UserError: one is missing, and is not or can't be fetched.
    """
    layout = f"{needs} needs <data_dir>/MNIST/raw/{next(iter(FILES))} and three more idx files, plain or .gz"
    advice = (
        f"Pass download=true to fetch them, or put the files of {_MIRRORS[0]} there: "
        f"{', '.join(remote.name for remote in FILES.values())}"
    )
    if data_dir is None:
        raise UserError(f"{layout}, but no --data_dir is given. Give it the folder that holds MNIST/raw")
    root = user_path(data_dir)
    found = max((_files_in(root / place) for place in _PLACES), key=len)
    missing = [name for name in FILES if name not in found]
    if missing and download:
        folder = next(iter(found.values())).parent if found else root / _PLACES[0]
        found |= {name: fetch(FILES[name], folder) for name in missing}
    elif missing and found:
        folder = next(iter(found.values())).parent
        raise UserError(f"{layout}, but {str(folder)!r} lacks {', '.join(missing)}. {advice}")
    elif missing:
        if not root.is_dir():
            raise UserError(f"{layout}, but there is no folder {str(root)!r}. {advice}")
        near = [folder for folder in [root.parent, *(root / one for one in folders_in(root))] if _lies_in(folder)]
        if near:
            raise UserError(f"{layout}, but {str(root)!r} holds none of them. Did you mean {str(near[0])!r}?")
        raise UserError(f"{layout}, but {str(root)!r} holds none of them. {advice}")
    return found


def _lies_in(data_dir: Path) -> bool:
    return bool(_files_in(data_dir / _PLACES[0]))


def _files_in(folder: Path) -> dict[str, Path]:
    """Return those of the four files that a folder holds, a plain one before its .gz."""
    found = {}
    for name in FILES:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                found[name] = path
    return found
