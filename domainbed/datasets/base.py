"""What a data set is: environments of images with labels, known before any pixel is read.

A data set lists its samples (`Sample`: which environment, label, patient, split) when it is constructed, and reads one
image when asked: decoded, preprocessed, at its final size, as uint8. It holds no torch and no split: who is held out is
in `splits`, the decoded copy on disk in `packed`, randomness in `augment`, batches in `loaders`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from domainbed import hparams
from domainbed.datasets.augment import AUGMENTATIONS
from domainbed.datasets.preprocess import PREPROCESSINGS, Preprocess
from domainbed.hparams import Field, Names, PositiveInt, names_in

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set, before it is read.

    Attributes:
        environment: index into `Dataset.environments`.
        name: unique and stable name, e.g. the path relative to the data directory.
        label: class index, or `UNLABELLED`.
        group: what must stay on one side of a split (a patient), unique over all environments.
        split: "train", "val" or "test" where the data set gives one, else None.
    """

    environment: int
    name: str
    label: int
    group: str
    split: str | None = None


class Dataset:
    """Environments of images. Subclasses list `environments`, `classes`, `samples`, and read single images.

    Args:
        data_dir: the folder (or manifest) that holds the data; None for data that the program makes.
        hparams: the values of the class's `HParams`.

    Raises:
        UserError: the data are missing or not laid out as the class expects.
    """

    class HParams(hparams.HParams):
        """Options of every data set."""

        image_size: PositiveInt = Field(224, description="side of the square images, in pixels")
        preprocess: Annotated[Names, names_in(PREPROCESSINGS)] = Field(
            ["resize"], description=f"applied to every image of every split, in order: {', '.join(PREPROCESSINGS)}"
        )
        augment: Annotated[Names, names_in(AUGMENTATIONS)] = Field(
            [], description=f"applied to training images only, in order: {', '.join(AUGMENTATIONS)}"
        )

    name: ClassVar[str] = ""
    #: Raise it when `read` begins to give other pixels for the same content, so that packed rows are made anew.
    version: ClassVar[int] = 1
    #: Values for settings of any kind that suit this data set; they win over the defaults of the classes.
    defaults: ClassVar[dict[str, object]] = {}
    #: Whether the classes are ordered (grades), so that a quadratic weighted kappa means something.
    ordinal: bool = False

    environments: list[str]
    classes: list[str]
    samples: list[Sample]

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        self.data_dir, self.hparams = data_dir, hparams
        self.preprocess = Preprocess(hparams.preprocess, hparams.image_size)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 where the images have no labels."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return (self.preprocess.channels, self.hparams.image_size, self.hparams.image_size)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class indices of all samples."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)

    def read(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (H, W, C), decoded and preprocessed.

        Raises:
            UnreadableImage: the file can't be decoded whole.
        """
        raise NotImplementedError

    def read_masks(self, index: int) -> dict[str, np.ndarray]:
        """Return the masks of image `index` by name, bool or class-index uint8 (H, W); empty where there are none."""
        return {}

    def content(self, index: int) -> str:
        """Return a string that changes when the image does: a digest of the file, or of what generates it.

        Raises:
            UnreadableImage: the file can't be opened.
        """
        raise NotImplementedError
