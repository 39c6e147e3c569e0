"""Fundus photographs with masks of vessels, the optic disc or lesions, from one publisher or several.

    <environment>/images/<name>.jpg                 <environment>/masks/<kind>/<name>_EX.png
    <environment>/<split>/images/<name>.jpg         <environment>/<split>/mask/<name>_1stHO.png

An environment is a folder that holds `images`, with train, val and test folders between where they are given; `masks`
has a folder for each kind, `mask` has the masks themselves. Masks are named as their image, which `_` and anything may
follow. Folders below `images` are repeated below `masks/<kind>` and `mask`; without them, masks are matched by file
name, which one photograph alone may then have. Masks without a folder of their kind are of `vessels` where their names
end as CHASE_DB1's (1stHO) and DRIVE's (manual1) do, else of `mask`. A kind `ignore` marks what nobody labelled.

data_dir is such a folder, or holds several: IDRiD (Porwal et al. 2018), CHASE_DB1 (Fraz et al. 2012). Other folders
beside them are passed over.
"""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import AfterValidator

from domainbed.datasets import images, splits
from domainbed.datasets.base import UNLABELLED, Dataset, Sample
from domainbed.datasets.folder import valid_regex
from domainbed.datasets.listing import folders_in, images_below, some
from domainbed.datasets.masks import IGNORED_KIND, MaskClasses, digest_files, read_files
from domainbed.errors import UserError, did_you_mean
from domainbed.hparams import Field, Names
from domainbed.registry import DATASETS

LESIONS = ("microaneurysms", "haemorrhages", "hard_exudates", "soft_exudates")
_VESSELS = re.compile("_(1stHO|manual1)$", re.IGNORECASE)
_MASK_FOLDERS = ("masks", "mask")
_PLACE_OF_MASK = (
    "Give each mask, in masks/<kind> or in mask, the folders and the name of its photograph in images, which '_' and "
    "anything may follow"
)


@DATASETS.register("FundusSegmentation")
class FundusSegmentation(Dataset):
    """Fundus photographs with masks: IDRiD_segmentation, CHASE_DB1, or your own images/ and masks/<kind>/.

    Environments are publishers' folders; there are no labels. The given split is kept. The two eyes of a child of
    CHASE_DB1 are one patient.
    """

    class HParams(Dataset.HParams):
        """Which folders and kinds are read, and what a missing mask means."""

        environments: Names | None = Field(None, description="read only these environments; null for all")
        empty_if_missing: Names = Field(
            list(LESIONS),
            description="kinds of which a photograph without a mask shows none, as IDRiD's publisher says of lesions",
        )
        group_pattern: Annotated[str | None, AfterValidator(valid_regex)] = Field(
            r"^(Image_\d+)[LR]$",
            description="regular expression searched in a file's name without suffix; its first group, or else the "
            "whole match, is the patient. A file that does not match is a patient of its own",
        )

    layout: ClassVar[str] = "a folder with images/*.jpg beside masks/<kind>/*.png or mask/*.png"
    hparams: HParams

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        found = self._environments(self._existing(data_dir))
        self.environments, self.classes, self.samples = list(found), [], []
        self._files: list[Path] = []
        self._masks: list[dict[str, Path]] = []
        for number, (environment, root) in enumerate(found.items()):
            for split, folder in _places(root):
                self._add(number, environment, root, split, folder)
        #: Every (environment, kind) of which there is a mask.
        self._marked = {
            (sample.environment, kind)
            for sample, masks in zip(self.samples, self._masks, strict=True)
            for kind in masks
        }
        kinds = {kind for _, kind in self._marked if kind != IGNORED_KIND}
        if kinds:
            self.masks = MaskClasses(tuple(sorted(kinds)), exclusive=False)

    def read(self, index: int) -> np.ndarray:
        """Return photograph `index` as uint8 (H, W, C), decoded and preprocessed.

        Raises:
            UnreadableImage: the file can't be decoded whole.
        """
        return self.preprocess(images.read_image(self._files[index]))[0]

    def file(self, index: int) -> Path | None:
        """Return the file of photograph `index`."""
        return self._files[index]

    def read_masks(self, index: int, kinds: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Return the masks of photograph `index` by kind, uint8 (H, W), preprocessed with it.

        Args:
            index: of the photograph.
            kinds: those wanted, beside `ignore`; None for all.

        Raises:
            UnreadableImage: the photograph or a mask can't be decoded whole, or they are of different sizes.
        """
        image = images.read_image(self._files[index])
        masks = read_files(self._paths(index, kinds), image)
        for kind in self.masks.names if self.masks else ():
            if kind not in masks and (kinds is None or kind in kinds) and self.has_mask(index, kind):
                masks[kind] = np.zeros(image.shape[:2], np.uint8)
        return self.preprocess(image, masks)[1]

    def has_mask(self, index: int, kind: str) -> bool:
        """Whether there is a mask of that kind, or its absence says that there is nothing to mark.

        Absence says so only in an environment in which somebody has marked that kind.
        """
        nothing = kind in self.hparams.empty_if_missing and (self.samples[index].environment, kind) in self._marked
        return kind in self._masks[index] or nothing

    def content(self, index: int) -> str:
        """Return the SHA-256 of the photograph's file.

        Raises:
            UnreadableImage: the file can't be opened.
        """
        return images.digest(self._files[index])

    def mask_content(self, index: int, kinds: Collection[str]) -> str:
        """Return the SHA-256 of the masks' files.

        Raises:
            UnreadableImage: one can't be opened.
        """
        return digest_files(self._paths(index, kinds))

    def _paths(self, index: int, kinds: Collection[str] | None) -> dict[str, Path]:
        found = self._masks[index]
        return {kind: found[kind] for kind in found if kinds is None or kind in kinds or kind == IGNORED_KIND}

    def _existing(self, data_dir: Path | None) -> Path:
        if data_dir is None:
            raise self._fault("no --data_dir is given")
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            raise self._fault(f"{str(root)!r} is a file" if root.exists() else f"there is no {str(root)!r}")
        return root

    def _environments(self, root: Path) -> dict[str, Path]:
        """Return the folder of every environment that is read."""
        found = {name: root / name for name in folders_in(root) if _places(root / name)}
        if _places(root):
            found = {root.resolve().name: root}
        if not found:
            raise self._fault(f"neither {str(root)!r} nor a folder in it is one")
        for name in self.hparams.environments or ():
            if name not in found:
                raise UserError(f"no environment {name!r} in {str(root)!r}{did_you_mean(name, found)}")
        return {name: found[name] for name in self.hparams.environments or found}

    def _add(self, number: int, environment: str, root: Path, split: str | None, folder: Path) -> None:
        """Add the photographs of a folder with their masks."""
        pattern = re.compile(self.hparams.group_pattern) if self.hparams.group_pattern else None
        photographs = _photographs_in(folder)
        masks = _masks_of(folder, photographs)
        for key, path in sorted(photographs.items()):
            name = f"{environment}/{path.relative_to(root).as_posix()}"
            match = pattern.search(path.stem) if pattern else None
            patient = match and (match[1] if match.re.groups else match[0])
            group = f"{environment}/{patient}" if patient else name
            self.samples.append(Sample(number, name, UNLABELLED, group, split))
            self._files.append(path)
            self._masks.append(masks[key])

    def _fault(self, found: str) -> UserError:
        return UserError(
            f"{self.name} needs {self.layout}, but {found}. Give such a folder, one that has them in train and test "
            "folders, or one that holds several"
        )


def _places(folder: Path) -> list[tuple[str | None, Path]]:
    """Return (split, folder) of the folders of an environment with photographs and masks; none if it is not one."""
    if _is_place(folder):
        return [(None, folder)]
    return [
        (splits.spelled(name), folder / name)
        for name in folders_in(folder)
        if splits.spelled(name) and _is_place(folder / name)
    ]


def _is_place(folder: Path) -> bool:
    return (folder / "images").is_dir() and any((folder / name).is_dir() for name in _MASK_FOLDERS)


def _photographs_in(folder: Path) -> dict[str, Path]:
    """Return the photographs by name: their path in `images`, without suffix.

    Raises:
        UserError: two have one name.
    """
    found: dict[str, Path] = {}
    for parts in sorted(images_below(folder / "images", ())):
        name = os.path.splitext("/".join(parts))[0]
        path = folder.joinpath("images", *parts)
        if name in found:
            raise UserError(
                f"{folder / 'images'} has two photographs {name}: {found[name].name} and {path.name}. Masks are "
                "matched by name, without suffix: keep one, or rename one and its masks"
            )
        found[name] = path
    return found


def _masks_of(folder: Path, photographs: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """Return kind -> file of the masks of each photograph.

    Raises:
        UserError: masks of no photograph, a mask that may be of several, or two of one kind.
    """
    found: dict[str, dict[str, Path]] = {name: {} for name in photographs}
    namesakes: dict[str, list[str]] = defaultdict(list)
    for name in photographs:
        namesakes[name.rpartition("/")[2]].append(name)
    strange = []
    for top in _MASK_FOLDERS:
        for parts in sorted(images_below(folder / top, ())) if (folder / top).is_dir() else ():
            *folders, file = parts
            stem = os.path.splitext(file)[0]
            kind = "vessels" if _VESSELS.search(stem) else "mask"
            if top == "masks" and folders:
                kind = folders.pop(0)
            path = folder.joinpath(top, *parts)
            possible = _photographs_of(folders, stem, namesakes)
            if not possible:
                strange.append("/".join((top, *parts)))
                continue
            if len(possible) > 1:
                files = some(photographs[name].relative_to(folder).as_posix() for name in possible)
                raise UserError(f"{path} may be the mask of several photographs: {files}. {_PLACE_OF_MASK}")
            masks = found[possible[0]]
            if kind in masks:
                raise UserError(f"two masks of {kind} for {possible[0]}: {masks[kind]} and {path}. Keep one")
            masks[kind] = path
    if strange:
        raise UserError(
            f"{folder} has masks of no photograph in images: {some(strange)}. {_PLACE_OF_MASK}, or move them away"
        )
    return found


def _photographs_of(folders: list[str], stem: str, namesakes: Mapping[str, list[str]]) -> list[str]:
    """Return the photographs that a mask may be of: that of its folders and name, else, without folders, all so named.

    Args:
        folders: of the mask, below that of its kind.
        stem: its file's name without suffix. The longest beginning that names a photograph counts.
        namesakes: the photographs' names by their last part.
    """
    while True:
        same = namesakes.get(stem, [])
        name = "/".join((*folders, stem))
        if name in same:
            return [name]
        if same and not folders:
            return same
        if "_" not in stem:
            return []
        stem = stem.rpartition("_")[0]
