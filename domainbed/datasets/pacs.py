"""PACS: photographs, art paintings, cartoons and sketches of seven kinds of things (Li et al. 2017).

    <data_dir>/PACS/<art_painting|cartoon|photo|sketch>/<class>/<image>

`PACS/` may be left out, and `pacs_data/` may follow. Where the published lists are there, beside the four folders or in
`pacs_label/`, their split is kept: <environment>_train_kfold.txt is "train", <environment>_crossval_kfold.txt is "val".
<environment>_test_kfold.txt names all images of an environment, which is what a target is judged on: only images that
neither of the others names are "test".
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from domainbed.datasets import splits
from domainbed.datasets.augment import AUGMENTATIONS
from domainbed.datasets.folder import Folder, FoundImage
from domainbed.datasets.listing import folders_in, some
from domainbed.errors import UserError
from domainbed.hparams import Field, Names, names_in
from domainbed.registry import DATASETS

ENVIRONMENTS = ["art_painting", "cartoon", "photo", "sketch"]
_PLACES = ("PACS/pacs_data", "PACS", "pacs_data", "")
_LIST_PLACES = (".", "pacs_label", "../pacs_label")
_LISTS = {"test": splits.TEST, "crossval": splits.VAL, "train": splits.TRAIN}  # later wins
#: Listed, but known to be broken: Dassl (Zhou et al. 2021) leaves it out too.
_LISTED_IN_ERROR = frozenset({"sketch/dog/n02103406_4068-1.png"})


@DATASETS.register("PACS")
class PACS(Folder):
    """Photographs, art paintings, cartoons and sketches of seven kinds of things: DomainBed's PACS.

    9,991 images; dog, elephant, giraffe, guitar, horse, house, person. Without the published lists the split is drawn,
    as DomainBed does.
    """

    class HParams(Folder.HParams):
        """Its four environments, and DomainBed's augmentation but for random grey."""

        environments: Names | None = Field(
            ENVIRONMENTS, description=Folder.HParams.model_fields["environments"].description
        )
        augment: Annotated[Names, names_in(AUGMENTATIONS)] = Field(
            ["crop_scale", "horizontal_flip", "color_jitter"],
            description=Folder.HParams.model_fields["augment"].description,
        )

    layout: ClassVar[str] = "<data_dir>/PACS/<art_painting|cartoon|photo|sketch>/<class>/*.jpg"
    source: ClassVar[str] = "the Google Drive of https://dali-dl.github.io/project_iccv2017.html"
    #: DomainBed's steps, batch per environment, and learning rate of a pretrained ResNet.
    defaults: ClassVar[dict[str, object]] = {"steps": 5_000, "batch_size": 32, "lr": 5e-5}

    def _existing(self, data_dir: Path | None) -> Path:
        root = super()._existing(data_dir)
        for place in (root / place for place in _PLACES):
            if place.is_dir() and set(ENVIRONMENTS) & set(folders_in(place)):
                return place
        raise self._fault(f"{str(root)!r} holds none of these folders", "Give the folder that holds PACS")

    def _find(self) -> dict[str, list[FoundImage]]:
        found = super()._find()
        listed = {environment: self._listed(environment) for environment in found}
        here = {image.name for images in found.values() for image in images}
        gone = {name for names in listed.values() for name in names} - here - _LISTED_IN_ERROR
        if gone:
            raise UserError(
                f"the lists *_kfold.txt of {str(self._root)!r} name {len(gone)} images that are not there: "
                f"{some(gone)}. Put the images back, or move the lists away to have the split drawn"
            )
        return {
            environment: [replace(image, split=listed[environment].get(image.name, image.split)) for image in images]
            for environment, images in found.items()
        }

    def _listed(self, environment: str) -> dict[str, str]:
        """Return the split of every image that the lists of an environment name; empty where there are none."""
        by_name: dict[str, str] = {}
        for kind, split in _LISTS.items():
            for place in _LIST_PLACES:
                path = self._root / place / f"{environment}_{kind}_kfold.txt"
                if path.is_file():
                    # "photo/dog/056_0001.jpg 1": the number is the class, which the folder tells as well.
                    lines = path.read_text("utf-8", "surrogateescape").splitlines()
                    by_name |= {line.rsplit(maxsplit=1)[0]: split for line in lines if line.strip()}
                    break
        return by_name
