"""Drawn fundus photographs as a data set. The drawing itself, and what its factors mean, is in `fundus_drawing`."""

import hashlib
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from domainbed.datasets import fundus_drawing
from domainbed.datasets.base import Dataset, Sample
from domainbed.datasets.masks import MaskClasses
from domainbed.errors import UserError
from domainbed.hparams import Field, Names, NonNegativeInt, PositiveInt
from domainbed.registry import DATASETS

EYES = ("left", "right")
_MIRRORS = "horizontal_flip"


@DATASETS.register("SyntheticFundus")
class SyntheticFundus(Dataset):
    """Drawn fundus photographs of four cameras, with grades, masks and known factors; needs no files.

    Environments are cameras, classes are grades of diabetic retinopathy, and every image is a patient of its own.
    `label=eye` asks for left and right instead, which a few hundred steps can learn: the disc lies on the nasal side.
    Images are drawn at `image_size`, so that no detail is lost to resizing.
    """

    class HParams(Dataset.HParams):
        """How many photographs are drawn, and which."""

        num_images: PositiveInt = Field(500, description="photographs per camera")
        data_seed: NonNegativeInt = Field(0, description="seed of the eyes; another one gives other patients")
        label: Literal["grade", "eye"] = Field(
            "grade", description="what the classes are: grade, or left and right eye"
        )
        mask_kinds: Names | None = Field(
            ["vessels", "disc", "cup"], description=f"masks that a segmenter learns: {', '.join(fundus_drawing.MASKS)}"
        )

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            if self.label == "eye" and _MIRRORS in self.augment:
                others = ",".join(name for name in self.augment if name != _MIRRORS)
                raise ValueError(
                    f"label = eye, but augment has {_MIRRORS}, which makes a right eye of a left one. Leave it out: "
                    f"augment=[{others}]"
                )

    masks = MaskClasses(fundus_drawing.MASKS, exclusive=False)
    terms: ClassVar[str] = "drawn by this program; no photograph of anyone"
    photographs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, object]] = {"steps": 2_000}
    hparams: HParams

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        if data_dir is not None:
            raise UserError(
                f"SyntheticFundus draws its images and reads no files, but --data_dir {str(data_dir)!r} is given. "
                "Leave --data_dir out, or name the data set of that folder, such as --dataset DR"
            )
        if hparams.image_size < fundus_drawing.MIN_SIZE_PX:
            raise UserError(
                f"image_size = {hparams.image_size} is too small for SyntheticFundus. "
                f"Give {fundus_drawing.MIN_SIZE_PX} or more"
            )
        self.environments = [camera.name for camera in fundus_drawing.CAMERAS]
        self.ordinal = hparams.label == "grade"
        self.classes = list(fundus_drawing.GRADES if self.ordinal else EYES)
        self.samples = [
            Sample(camera, f"{name}/{index}", self._label(camera, index), f"{name}/{index}")
            for camera, name in enumerate(self.environments)
            for index in range(hparams.num_images)
        ]

    def read(self, index: int) -> np.ndarray:
        """Return photograph `index` as uint8 (H, W, C), drawn and preprocessed."""
        return self.preprocess(self._draw(index).image)[0]

    def read_masks(self, index: int, kinds: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Return the masks of photograph `index` by name (`fundus_drawing.MASKS`), bool (H, W), preprocessed like it.

        Args:
            index: of the photograph.
            kinds: those wanted; None for all.
        """
        photograph = self._draw(index, masks=True)
        wanted = {name: mask for name, mask in photograph.masks.items() if kinds is None or name in kinds}
        return self.preprocess(photograph.image, wanted)[1]

    def factors(self, index: int) -> dict[str, object]:
        """Return what is true of photograph `index`, by name; units are at `fundus_drawing.Factors`."""
        return self._factors(*self._place(index)).as_dict()

    def content(self, index: int) -> str:
        """Return what the photograph is a function of: its numbers, and the program that draws it."""
        camera, number = self._place(index)
        size, seed = self.hparams.image_size, self.hparams.data_seed
        return f"fundus_drawing {_drawing()} seed {seed} camera {camera} index {number} size {size}"

    def _place(self, index: int) -> tuple[int, int]:
        return self.samples[index].environment, index % self.hparams.num_images

    def _factors(self, camera: int, number: int) -> fundus_drawing.Factors:
        return fundus_drawing.draw_factors(self.hparams.data_seed, camera, number)

    def _label(self, camera: int, number: int) -> int:
        factors = self._factors(camera, number)
        return factors.grade if self.hparams.label == "grade" else EYES.index(factors.eye)

    def _draw(self, index: int, masks: bool = False) -> fundus_drawing.Photograph:
        camera, number = self._place(index)
        return fundus_drawing.draw(self.hparams.data_seed, camera, number, self.hparams.image_size, masks)


@cache
def _drawing() -> str:
    """Digest of the drawing's source: a pack drawn by another version of it is drawn anew."""
    return hashlib.sha256(Path(fundus_drawing.__file__).read_bytes()).hexdigest()
