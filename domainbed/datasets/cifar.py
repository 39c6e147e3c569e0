"""CIFAR-10 and CIFAR-100: small photographs, one environment, the publisher's test split (Krizhevsky 2009).

--data_dir is, or holds, one of these; the first that is found is read:
- the publisher's binary version: cifar-10-batches-bin/ with data_batch_1.bin to data_batch_5.bin and test_batch.bin, or
  cifar-100-binary/ with train.bin and test.bin. A record is a label (CIFAR-100: the coarse one, then the fine one,
  which is used), and 3 x 32 x 32 bytes, a plane for each of red, green and blue;
- a folder, or a zip archive that is read where it is, of images <train|test>/<class>/<image>, whatever lies above them.

With download=true the binary version is fetched where none of them is found.

The publisher's Python version is pickles, which can run any code when they are read. It is never read.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from domainbed.datasets import splits
from domainbed.datasets.base import Dataset, Sample
from domainbed.datasets.download import RemoteFile, fetch, unpack
from domainbed.datasets.listing import PassedOver, folders_in, images_below, is_clutter, is_image, some
from domainbed.datasets.mnist import numbered
from domainbed.datasets.sources import Files, Rows, Source, SourceDataset, ZipMembers
from domainbed.errors import UserError, did_you_mean
from domainbed.hparams import Field, PositiveInt
from domainbed.paths import user_path
from domainbed.registry import DATASETS

_SIDE_PX = 32
_URL = "https://www.cs.toronto.edu/~kriz/"


class _Cifar(SourceDataset):
    """Labelled photographs of 32 x 32 px in one environment."""

    class HParams(Dataset.HParams):
        """Their size, and whether they are fetched."""

        image_size: PositiveInt = Field(32, description=Dataset.HParams.model_fields["image_size"].description)
        download: bool = Field(False, description="fetch the binary version into --data_dir if nothing is there")

    photographs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, object]] = {"batch_size": 64, "eval_batch_size": 256}
    class_names: ClassVar[Sequence[str]]
    #: Folder of the binary version, its files by split, and the label bytes of a record, of which the last is used.
    binary_folder: ClassVar[str]
    binary_files: ClassVar[dict[str, tuple[str, ...]]]
    num_label_bytes: ClassVar[int]
    archive: ClassVar[RemoteFile]
    #: Folder of the Python version, and one of its files.
    pickled: ClassVar[tuple[str, str]]
    hparams: HParams

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        self.environments, self.classes = [self.name], list(self.class_names)
        self.source, self.samples = self._open(data_dir)

    def _open(self, data_dir: Path | None) -> tuple[Source, list[Sample]]:
        """Return where the images are read from, and the samples, in one order."""
        if data_dir is None:
            raise self._fault("no --data_dir is given")
        root = user_path(data_dir)
        if root.is_file():
            if root.suffix.lower() != ".zip":
                raise self._fault(f"{str(root)!r} is a file, and no .zip")
            return self._open_zip(root)
        if folder := self._binary_folder(root):
            return self._open_binary(folder)
        for candidate in (root, *(root / name for name in (self.name.lower(), self.name))):
            if candidate.is_dir() and any(map(splits.spelled, folders_in(candidate))):
                return self._open_folder(candidate)
        for path in sorted(root.glob("*.zip")):
            if path.stem.lower() == self.name.lower():
                return self._open_zip(path)
        if self.hparams.download:
            tar = fetch(self.archive, root)
            folder = root / self.binary_folder
            unpack(tar, [name for names in self.binary_files.values() for name in names], folder)
            return self._open_binary(folder)
        if not root.is_dir():
            raise self._fault(f"there is no {str(root)!r}")
        pickles, example = self.pickled
        if any((folder / example).is_file() for folder in (root, root / pickles)):
            raise self._fault(
                f"{str(root)!r} holds the Python version: pickles, which can run any code and are not read"
            )
        raise self._fault(f"{str(root)!r} holds neither")

    def _fault(self, found: str) -> UserError:
        first = self.binary_files["train"][0]
        fetched = "Give a folder without these" if self.hparams.download else "Pass download=true"
        return UserError(
            f"{self.name} needs <data_dir>/{self.binary_folder}/{first}, or images in "
            f"<data_dir>/<train|test>/<class>/ or in {self.name.lower()}.zip, but {found}. {fetched} to fetch the "
            f"former, or unpack {self.archive.urls[0]} in --data_dir"
        )

    def _binary_folder(self, root: Path) -> Path | None:
        for folder in (root / self.binary_folder, root):
            if any((folder / name).is_file() for names in self.binary_files.values() for name in names):
                return folder
        return None

    def _open_binary(self, folder: Path) -> tuple[Source, list[Sample]]:
        stacks, samples = [], []
        for split, names in self.binary_files.items():
            records = [self._read_records(folder / name) for name in names]
            stacks += [one[:, self.num_label_bytes :].reshape(-1, 3, _SIDE_PX, _SIDE_PX) for one in records]
            labels = np.concatenate([one[:, self.num_label_bytes - 1] for one in records])
            if labels.max() >= len(self.classes):
                raise UserError(
                    f"{folder} holds the label {labels.max()} in its {split} files; {self.name} has "
                    f"{len(self.classes)} classes. Unpack {self.archive.urls[0]} again"
                )
            samples += [Sample(0, name, label, name, split) for name, label in numbered(split, labels)]
        return Rows(*(stack.transpose(0, 2, 3, 1) for stack in stacks)), samples

    def _read_records(self, path: Path) -> np.ndarray:
        """Return uint8 (N, label bytes + 3072), memory-mapped."""
        size = self.num_label_bytes + 3 * _SIDE_PX**2
        try:
            num_bytes = path.stat().st_size
            if not num_bytes or num_bytes % size:
                raise UserError(
                    f"{path} has {num_bytes} bytes, which are no records of {size}: it is not whole. "
                    f"Unpack {self.archive.urls[0]} again"
                )
            return np.memmap(path, np.uint8, mode="r").reshape(-1, size)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}. Unpack {self.archive.urls[0]} again") from None

    def _open_folder(self, root: Path) -> tuple[Source, list[Sample]]:
        passed_over = PassedOver()
        samples = self._listed(str(root), ["/".join(path) for path in images_below(root, (), passed_over)])
        passed_over.report(repr(str(root)), len(samples), self.log, self.notes)
        return Files(root, [sample.name for sample in samples]), samples

    def _open_zip(self, path: Path) -> tuple[Source, list[Sample]]:
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} can't be read: {getattr(error, 'strerror', None) or error}. Fetch it again"
            ) from None
        samples = self._listed(str(path), [name for name in archive.namelist() if _is_visible_image(name)])
        return ZipMembers(archive, [sample.name for sample in samples]), samples

    def _listed(self, where: str, names: list[str]) -> list[Sample]:
        """Return the samples that the paths of image files stand for, in the order of their names."""
        samples, stray, unknown = [], [], set()
        index = {name: label for label, name in enumerate(self.classes)}
        for name in sorted(set(names)):
            *_, split, folder, _ = ["", "", *name.split("/")]
            if not splits.spelled(split):
                stray.append(name)
            elif folder not in index:
                unknown.add(folder)
            else:
                samples.append(Sample(0, name, index[folder], name, splits.spelled(split)))
        if unknown:
            first = min(unknown)
            raise UserError(f"{where}: {first!r} is no class of {self.name}{did_you_mean(first, self.classes)}")
        if stray or not samples:
            found = f"{where!r} has images outside such folders: {some(stray)}" if stray else f"{where!r} has no image"
            raise self._fault(found)
        return samples


def _is_visible_image(name: str) -> bool:
    return is_image(name) and not any(map(is_clutter, name.split("/")))


@DATASETS.register("CIFAR10")
class CIFAR10(_Cifar):
    """Photographs of ten kinds of things, 32 x 32 px: one environment with the publisher's test split.

    50,000 images for training, of which a part is held out as "val", and 10,000 for the test.
    """

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    binary_folder = "cifar-10-batches-bin"
    binary_files: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test": ("test_batch.bin",),
    }
    num_label_bytes = 1
    archive = RemoteFile(
        "cifar-10-binary.tar.gz",
        (f"{_URL}cifar-10-binary.tar.gz",),
        "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",  # as in TensorFlow Datasets
    )
    pickled = ("cifar-10-batches-py", "data_batch_1")


@DATASETS.register("CIFAR100")
class CIFAR100(_Cifar):
    """Photographs of a hundred kinds of things, 32 x 32 px: one environment with the publisher's test split.

    50,000 images for training, of which a part is held out as "val", and 10,000 for the test. The classes are the fine
    labels.
    """

    class_names = (
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
        "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
        "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
        "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
        "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
        "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
        "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
        "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
        "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television",
        "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
        "woman", "worm",
    )  # fmt: skip
    binary_folder = "cifar-100-binary"
    binary_files: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("train.bin",), "test": ("test.bin",)}
    num_label_bytes = 2
    archive = RemoteFile(
        "cifar-100-binary.tar.gz",
        (f"{_URL}cifar-100-binary.tar.gz",),
        "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",  # as in TensorFlow Datasets
    )
    pickled = ("cifar-100-python", "train")
