"""Autofluorescence images of single T cells, and two of them in one image (Wang et al. 2020).

    <data_dir>/<donor>/<activated|quiescent>/CD<type>_<donor>_<act|noact>_<batch>_<plate>_<cell>.png

The crops are small, of many sizes, grey, and often dark. They are padded with black and never stretched, so that a cell
keeps its size. `channels` makes the images that the experiments on autoencoders of cells compare: one cell in one
channel, two cells in two channels of one image, and two cells added up in one channel.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator

from domainbed.datasets import images
from domainbed.datasets.base import Sample
from domainbed.datasets.folder import Folder, valid_regex
from domainbed.datasets.listing import folders_in
from domainbed.datasets.preprocess import Preprocess
from domainbed.errors import UserError
from domainbed.hparams import Field, PositiveInt
from domainbed.registry import DATASETS

#: A cell's name without its last number: its plate. Cells of one plate stay on one side of a split.
PLATE = r"^(.+)_[0-9]+$"


@DATASETS.register("TCell")
class TCell(Folder):
    """Single T cells, activated or quiescent, small and grey, padded to one size; the environments are donors.

    `channels`:
    single: one cell, one channel.
    pairs: two cells of one donor and class, as the red and the green channel of one image; blue is 0.
    overlap: two such cells, centred and added up in one channel, 255 at most.

    The cells of a donor, class and split are put in the order of plate and then of a hash of their names, and each two
    neighbours make one image. Of an odd number the last but one is in two images. Plates that share an image are one
    group. So there are half as many images as cells, and no cell is on two sides of a split.
    """

    class HParams(Folder.HParams):
        """Which cells make an image, and how large it is."""

        image_size: PositiveInt = Field(
            48, description="side of the square images, in pixels; larger cells (3 %) are shrunk, the others padded"
        )
        channels: Literal["single", "pairs", "overlap"] = Field(
            "single", description="one cell an image; two as red and green channel; or two added up in one channel"
        )
        group_pattern: Annotated[str | None, AfterValidator(valid_regex)] = Field(
            PLATE, description=Folder.HParams.model_fields["group_pattern"].description
        )

        def model_post_init(self, context: object) -> None:
            """Raise ValueError where two cells could not be told apart."""
            if self.channels == "pairs" and "gray_ntsc" in self.preprocess:
                raise ValueError(
                    "preprocess = gray_ntsc makes one channel of the two that channels = pairs is about. Leave it "
                    "out, or use channels=overlap"
                )

    layout: ClassVar[str] = "<data_dir>/<donor>/<activated|quiescent>/*.png"
    source: ClassVar[str] = "https://github.com/gitter-lab/t-cell-classification"
    terms: ClassVar[str] = "Wang et al. 2020, Clear BSD"
    photographs: ClassVar[bool] = False
    #: 16 images of each of three donors are the batch of 48 in the experiments.
    defaults: ClassVar[dict[str, object]] = {"steps": 2_000, "batch_size": 16}
    hparams: HParams

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        if hparams.channels != "pairs":
            self.preprocess = _in_one_channel(hparams)
        self._cells: list[tuple[str, ...]] = [(sample.name,) for sample in self.samples]
        if hparams.channels != "single":
            self._check_partners()
            self.samples, self._cells = paired(self.samples)

    def read(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (H, W, C), its cells centred and padded, and preprocessed.

        Raises:
            UnreadableImage: a file can't be decoded whole.
        """
        cells = [images.read_image(self._root / name) for name in self._cells[index]]
        side = max(self.hparams.image_size, *(length for cell in cells for length in cell.shape[:2]))
        first, *second = (_centred(cell, side) for cell in cells)
        if self.hparams.channels == "pairs":
            image = np.stack([first[..., 0], second[0][..., 1], np.zeros_like(first[..., 2])], axis=2)
        elif self.hparams.channels == "overlap":
            image = np.minimum(first.astype(np.uint16) + second[0], 255).astype(np.uint8)
        else:
            image = first
        return self.preprocess(image)[0]

    @classmethod
    def read_new(cls, path: str | os.PathLike[str], hparams: Any, with_masks: bool = False) -> np.ndarray:
        if hparams.channels != "single":
            raise UserError(
                f"an image of TCell with channels = {hparams.channels} is made of two cells, and a file holds one. "
                "Use a model of channels=single"
            )
        cell = images.read_image(path)
        return _in_one_channel(hparams)(_centred(cell, max(hparams.image_size, *cell.shape[:2])))[0]

    @property
    def least_side(self) -> int | None:
        return None  # a cell is centred in pixels of its file

    def file(self, index: int) -> Path | None:
        """Return the file of image `index` where it shows a single cell."""
        return super().file(index) if self.hparams.channels == "single" else None

    def content(self, index: int) -> str:
        """Return the SHA-256 of the files, and what is made of them.

        Raises:
            UnreadableImage: a file can't be opened.
        """
        digests = [images.digest(self._root / name) for name in self._cells[index]]
        return " ".join([self.hparams.channels, *digests])

    def _existing(self, data_dir: Path | None) -> Path:
        root = super()._existing(data_dir)
        return root / "TCell" if "TCell" in folders_in(root) else root

    def _check_partners(self) -> None:
        buckets = _buckets(self.samples)
        for (environment, label, _), cells in buckets.items():
            if len(cells) == 1:
                raise UserError(
                    f"TCell: channels = {self.hparams.channels} needs two cells of every donor, class and split, but "
                    f"{self.environments[environment]}/{self.classes[label]} has only {cells[0].name}. Add or remove "
                    "cells, or use channels=single"
                )


def paired(cells: Sequence[Sample]) -> tuple[list[Sample], list[tuple[str, ...]]]:
    """Return samples of two cells each, and the names of the two; see `TCell` for who is with whom."""
    couples = []
    for bucket in _buckets(cells).values():
        bucket.sort(key=lambda cell: (cell.group, hashlib.sha256(cell.name.encode()).digest()))
        firsts = [*range(0, len(bucket) - 1, 2), *([len(bucket) - 2] if len(bucket) % 2 else [])]
        couples += [(bucket[first], bucket[first + 1]) for first in firsts]
    joined: dict[str, str] = {}

    def group(name: str) -> str:
        while name in joined:
            name = joined[name]
        return name

    for first, second in couples:
        if group(first.group) != group(second.group):
            joined[group(second.group)] = group(first.group)
    samples = [
        replace(first, name=f"{first.name}+{second.name.rpartition('/')[2]}", group=group(first.group))
        for first, second in couples
    ]
    return samples, [(first.name, second.name) for first, second in couples]


def _buckets(cells: Sequence[Sample]) -> dict[tuple[int, int, str | None], list[Sample]]:
    """Return the cells of each environment, class and given split."""
    buckets: dict[tuple[int, int, str | None], list[Sample]] = defaultdict(list)
    for cell in cells:
        buckets[cell.environment, cell.label, cell.split].append(cell)
    return buckets


def _in_one_channel(hparams: TCell.HParams) -> Preprocess:
    return Preprocess(["gray_ntsc", *hparams.preprocess], hparams.image_size)


def _centred(cell: np.ndarray, side: int) -> np.ndarray:
    """Return the image in the middle of a black square of `side` pixels."""
    height, width = cell.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, 3), np.uint8)
    square[top : top + height, left : left + width] = cell
    return square
