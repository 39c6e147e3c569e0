"""Oxford-IIIT Pet: 37 breeds of cats and dogs with trimaps (Parkhi et al. 2012).

    <data_dir>/images/<Breed>_<n>.jpg
    <data_dir>/annotations/trimaps/<Breed>_<n>.png          1 pet, 2 background, 3 border, not classified
    <data_dir>/annotations/trainval.txt, test.txt           <Breed>_<n> <class id> <species> <breed id>

`oxford-iiit-pet/`, the folder into which torchvision unpacks, may come between. The files are images.tar.gz and
annotations.tar.gz of https://www.robots.ox.ac.uk/~vgg/data/pets/.
"""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import numpy as np

from domainbed.datasets import images, splits
from domainbed.datasets.base import Dataset, Sample
from domainbed.datasets.listing import some
from domainbed.datasets.masks import MaskClasses, digest_files, read_files
from domainbed.errors import UserError
from domainbed.paths import user_path
from domainbed.registry import DATASETS

#: File of a split, and what it is here: the published training images are divided into train and val by the run.
LISTS = {"trainval.txt": splits.TRAIN, "test.txt": splits.TEST}
#: Class of each value of a trimap. The publisher's 2 becomes 0, because 0 is the background everywhere here.
CLASS_OF = {1: 1, 2: 0, 3: 2}
_PLACES = ("", "oxford-iiit-pet")


@DATASETS.register("OxfordPets")
class OxfordPets(Dataset):
    """Oxford-IIIT Pet: photographs of 37 breeds of cats and dogs, and masks of background, pet and border.

    One environment, `pets`. Labels are the breeds, in the publisher's order. trainval.txt is the training images, of
    which each run holds out some; test.txt is kept as the test part.
    """

    terms: ClassVar[str] = "Parkhi et al. 2012, CC BY-SA 4.0"
    layout: ClassVar[str] = (
        "<data_dir>/images/*.jpg and <data_dir>/annotations with trimaps/, trainval.txt and test.txt"
    )

    def __init__(self, data_dir: Path | None, hparams: Dataset.HParams) -> None:
        super().__init__(data_dir, hparams)
        self._root = self._existing(data_dir)
        rows = [(split, *row) for name, split in LISTS.items() for row in self._listed(name)]
        numbers = sorted({number for _, _, number in rows})
        breeds = {number: name.rpartition("_")[0] for _, name, number in rows}
        self.environments, self.classes = ["pets"], [breeds[number] for number in numbers]
        self.samples = [Sample(0, name, numbers.index(number), name, split) for split, name, number in sorted(rows)]
        self.masks = MaskClasses(("background", "pet", "border"), exclusive=True)

    def read(self, index: int) -> np.ndarray:
        """Return photograph `index` as uint8 (H, W, C), decoded and preprocessed.

        Raises:
            UnreadableImage: the file can't be decoded whole.
        """
        return self.preprocess(images.read_image(self._image(index)))[0]

    def file(self, index: int) -> Path | None:
        """Return the file of photograph `index`."""
        return self._image(index)

    def read_masks(self, index: int, kinds: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Return {"mask": the class of each pixel, uint8 (H, W), preprocessed with its photograph}.

        Raises:
            UnreadableImage: photograph or trimap can't be decoded whole, they are of different sizes, or the trimap
                holds another value than 1, 2 and 3.
        """
        image = images.read_image(self._image(index))
        trimap = read_files({"mask": self._trimap(index)}, image)["mask"]
        unknown = np.setdiff1d(trimap, [*CLASS_OF])
        if unknown.size:
            others = f" and {unknown.size - 1} more" if unknown.size > 1 else ""
            raise images.UnreadableImage(
                f"its trimap holds the value {unknown[0]}{others}, but the values of a trimap are 1 pet, 2 background, "
                "3 border. Unpack annotations.tar.gz again"
            )
        classes = np.zeros_like(trimap)
        for value, number in CLASS_OF.items():
            classes[trimap == value] = number
        return self.preprocess(image, {"mask": classes})[1]

    def content(self, index: int) -> str:
        """Return the SHA-256 of the photograph's file.

        Raises:
            UnreadableImage: the file can't be opened.
        """
        return images.digest(self._image(index))

    def mask_content(self, index: int, kinds: Collection[str]) -> str:
        """Return the SHA-256 of the trimap's file.

        Raises:
            UnreadableImage: it can't be opened.
        """
        return digest_files({"mask": self._trimap(index)})

    def _image(self, index: int) -> Path:
        return self._root / "images" / f"{self.samples[index].name}.jpg"

    def _trimap(self, index: int) -> Path:
        return self._root / "annotations" / "trimaps" / f"{self.samples[index].name}.png"

    def _existing(self, data_dir: Path | None) -> Path:
        if data_dir is None:
            raise self._fault("no --data_dir is given")
        root = user_path(data_dir)
        for place in (root / place for place in _PLACES):
            if (place / "images").is_dir() and (place / "annotations").is_dir():
                return place
        raise self._fault(f"{str(root)!r} holds no folders images and annotations")

    def _listed(self, name: str) -> list[tuple[str, int]]:
        """Return the name and the number of the breed of every photograph in a list."""
        path = self._root / "annotations" / name
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise self._fault(f"{path}: {(error.strerror or str(error)).lower()}") from None
        rows, strange = [], []
        for line in lines:
            fields = line.split()
            if not fields or fields[0].startswith("#"):
                continue
            if len(fields) != 4 or not fields[1].isdigit():
                strange.append(line)
                continue
            rows.append((fields[0], int(fields[1])))
        if strange:
            raise UserError(f"{path} has lines that are not '<name> <class id> <species> <breed id>': {some(strange)}")
        return rows

    def _fault(self, found: str) -> UserError:
        return UserError(
            f"{self.name} needs {self.layout}, but {found}. Unpack images.tar.gz and annotations.tar.gz of "
            "https://www.robots.ox.ac.uk/~vgg/data/pets/ into one folder and give that"
        )
