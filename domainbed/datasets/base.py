"""What a data set is: environments of images, or of vectors, with labels, known before any pixel is read.

A data set lists its samples (`Sample`: which environment, label, patient, split) when it is constructed, and reads one
image when asked: decoded, preprocessed, at its final size, as uint8. A data set that `gives_vectors` has an array of
floats in their place, see `vectors`. It holds no torch and no split: who is held out is
in `splits`, the decoded copy on disk in `packed`, randomness in `augment`, batches in `loaders`.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import numpy as np

from domainbed import hparams
from domainbed.datasets.augment import AUGMENTATIONS
from domainbed.datasets.images import read_image
from domainbed.datasets.labels import plain
from domainbed.datasets.masks import MAX_KINDS, MaskClasses, to_plane
from domainbed.datasets.preprocess import PREPROCESSINGS, Preprocess
from domainbed.errors import UserError, did_you_mean
from domainbed.hparams import Field, Names, PositiveInt, names_in

UNLABELLED = -1
_NAMES_SHOWN = 5


@runtime_checkable
class KnownFactors(Protocol):
    """Knows what is true of each of its images, by name: numbers, or names of what has no order."""

    def factors(self, index: int) -> dict[str, object]: ...


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


def read_file(path: str | os.PathLike[str], preprocess: Preprocess, whole: bool = False) -> np.ndarray:
    """Return an image file as uint8 (H, W, C), preprocessed, decoded no larger than needed unless `whole`.

    Raises:
        UnreadableImage: the file can't be decoded whole.
    """
    return preprocess(read_image(path, None if whole else preprocess.least_side))[0]


def refuse_vectors(dataset: "type[Dataset]", what: str) -> None:
    """Raise `UserError` for a data set of vectors where only images will do.

    Args:
        dataset: the class.
        what: needs images, as the beginning of a sentence: "explore looks at images".
    """
    if dataset.gives_vectors:
        raise UserError(f"{what}, but {dataset.name} gives vectors. Choose a data set of images")


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
            [], description=f"applied to training images only, as named, colours last: {', '.join(AUGMENTATIONS)}"
        )
        mask_kinds: Names | None = Field(
            None, description="kinds of masks that a segmenter learns, of those that there are; null for all"
        )

    name: ClassVar[str] = ""
    #: Raise it when `read` begins to give other pixels for the same content, so that packed rows are made anew.
    version: ClassVar[int] = 1
    #: Values for settings of any kind that suit this data set; they win over the defaults of the classes.
    defaults: ClassVar[dict[str, object]] = {}
    #: Whether its samples are vectors (F,), rows of `array`, in the place of images. It then has none of the settings
    #: that are about images, and only algorithms that take vectors can learn from it.
    gives_vectors: ClassVar[bool] = False
    #: Under which terms its images may be used, as their publisher says; empty where it is not known.
    terms: ClassVar[str] = ""
    #: Whether its images are photographs, for which a run says what an encoder with random weights has cost on some.
    #: False for drawings, digits, cells, and images of a few dozen pixels.
    photographs: ClassVar[bool] = True
    #: Whether the classes are ordered (grades), so that a quadratic weighted kappa means something.
    ordinal: bool = False
    #: Masks that there are, of all images together; None where there are none.
    masks: MaskClasses | None = None

    #: How a user leaves out images without a label, for a message.
    without_unlabelled: ClassVar[str] = "leave them out"

    environments: list[str]
    classes: list[str]
    samples: list[Sample]
    #: (N, F) float16 or float32, where `gives_vectors`.
    array: np.ndarray

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        self.data_dir, self.hparams = data_dir, hparams
        #: Lines for the log on how the data were read, and those that also concern whoever reads the results.
        self.log: list[str] = []
        self.notes: list[str] = []
        #: What `read` does to an image; a copy of the data set may have another in its place.
        if not self.gives_vectors:
            self.preprocess = Preprocess(hparams.preprocess, hparams.image_size)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 where the images have no labels."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of every image; (F,) of every vector."""
        return (self.preprocess.channels, self.hparams.image_size, self.hparams.image_size)

    @property
    def least_side(self) -> int | None:
        """Pixels that the shorter side of a photograph is decoded to at least; None where `read` decodes it whole."""
        return None

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

    @classmethod
    def read_new(cls, path: str | os.PathLike[str], hparams: HParams, with_masks: bool = False) -> np.ndarray:
        """Return an image file that is not of the data set as uint8 (H, W, C), as `read` would return it if it were.

        Args:
            path: of the file.
            hparams: of the data set.
            with_masks: whether the data set has masks.

        Raises:
            UnreadableImage: the file can't be decoded whole.
            UserError: under these settings, one file does not make an image.
        """
        return read_file(path, Preprocess(hparams.preprocess, hparams.image_size), whole=True)

    def file(self, index: int) -> Path | None:
        """Return the file that holds image `index` and no other; None for what is drawn, a row, or put together."""
        return None

    def read_masks(self, index: int, kinds: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Return the masks of image `index` by name, preprocessed with it; empty where there are none.

        Args:
            index: of the image.
            kinds: those wanted; None for all.

        Returns:
            bool or uint8 (H, W), of the form that `masks.to_plane` takes.

        Raises:
            UnreadableImage: the image or a mask can't be decoded whole, or they are of different sizes.
        """
        return {}

    def has_mask(self, index: int, kind: str) -> bool:
        """Whether image `index` has a mask of one of `masks.names`, known without reading it."""
        return True

    def mask_content(self, index: int, kinds: Collection[str]) -> str:
        """Return a string that changes when the masks of image `index` do, beside its `content`.

        Raises:
            UnreadableImage: a file can't be opened.
        """
        return ""

    def labels_wanted(self) -> str:
        """Return the part of a sentence that says why there are no labels."""
        return f"{self.name} has no labels there"

    def unlabelled(self, indices: Collection[int]) -> str:
        """Return the first names of images without a label, by their indices."""
        names = [self.samples[index].name for index in islice(indices, _NAMES_SHOWN)]
        return ", ".join(names) + (", …" if len(indices) > _NAMES_SHOWN else "")

    def check_for_training(self) -> None:
        """Raise `UserError` where a model can be evaluated on the data set, but none trained."""

    def check_labelled(self) -> None:
        """Raise `UserError` where some images have a label and others have none."""
        bare = [index for index, sample in enumerate(self.samples) if sample.label == UNLABELLED]
        if self.classes and bare:
            raise UserError(
                f"{len(bare)} of {len(self.samples)} images have no label: {self.unlabelled(bare)}. Label them, "
                f"{self.without_unlabelled}, or choose an algorithm that needs no labels, such as --algorithm AE"
            )

    def chosen_masks(self) -> MaskClasses:
        """Return what a segmenter learns here: the classes of the masks, or the kinds that `mask_kinds` names.

        Raises:
            UserError: there are no masks, no such kind, too many kinds, or images without a mask.
        """
        if self.masks is None:
            raise UserError(
                f"{self.name} has no masks there. Choose a data set that has, such as --dataset FundusSegmentation, or "
                "a Manifest with a column mask_<kind>; or an algorithm that needs none, such as --algorithm AE"
            )
        asked = self.hparams.mask_kinds and [plain(kind) for kind in self.hparams.mask_kinds]
        if self.masks.exclusive and asked is not None:
            raise UserError(
                f"mask_kinds = {','.join(asked)} chooses among kinds, but the masks of {self.name} hold one class for "
                f"each pixel: {', '.join(self.masks.names)}. Leave it out"
            )
        for kind in asked or ():
            if kind not in self.masks.names:
                raise UserError(f"mask_kinds: there are no masks of {kind!r}{did_you_mean(kind, self.masks.names)}")
        names = self.masks.names if asked is None else tuple(dict.fromkeys(asked))
        if not self.masks.exclusive and not 0 < len(names) <= MAX_KINDS:
            raise UserError(
                f"mask_kinds chooses {len(names)} kinds, but a mask holds 1 to {MAX_KINDS} of them. Name some of "
                f"{', '.join(self.masks.names)}"
            )
        without = {
            kind: [sample.name for index, sample in enumerate(self.samples) if not self.has_mask(index, kind)]
            for kind in names
        }
        lacking = [f"{len(found)} have none of {kind}, such as {found[0]}" for kind, found in without.items() if found]
        if lacking:
            raise UserError(
                f"of {len(self.samples)} images, {'; '.join(lacking)}. Nobody says that they have nothing to mark, so "
                "they can't be learnt from: add masks, leave these images out, or choose other kinds with mask_kinds"
            )
        return MaskClasses(names, self.masks.exclusive)

    def read_mask(self, index: int, classes: MaskClasses) -> np.ndarray:
        """Return the masks of image `index` as one plane, uint8 (H, W), see `masks`.

        Args:
            index: of the image.
            classes: what `chosen_masks` returned.

        Raises:
            UnreadableImage: as `read_masks`; or a mask holds values that it can't have.
        """
        return to_plane(self.read_masks(index, None if classes.exclusive else classes.names), classes)

    def content(self, index: int) -> str:
        """Return a string that changes when the image does: a digest of the file, or of what generates it.

        Raises:
            UnreadableImage: the file can't be opened.
        """
        raise NotImplementedError
