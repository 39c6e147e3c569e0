"""Fundus photographs with masks of vessels, the optic disc or lesions, from one publisher or several.

An environment is a publisher's folder as it comes (`fundus_layouts`), at most two levels down, or one of your own:

    <environment>/images/<name>.jpg                 <environment>/masks/<kind>/<name>_EX.png
    <environment>/<split>/images/<name>.jpg         <environment>/<split>/mask/<name>_1stHO.png

It holds `images`, with train, val and test folders between where they are given; `masks` has a folder for each kind,
`mask` has the masks themselves. Masks are named as their image, which `_` and anything may follow. Folders below
`images` are repeated below `masks/<kind>` and `mask`; without them, masks are matched by file name, which one
photograph alone may then have. Masks without a folder of their kind are of `vessels` where their names end as
CHASE_DB1's (1stHO) and DRIVE's (manual1) do, else of `mask`; those of a second observer (2ndHO, manual2) are passed
over.

A kind `ignore` marks what nobody labelled. Neither did anybody label what is outside of a kind `field_of_view`, which
is never learnt: `mask` is refused where it seems to be one.

data_dir is such a folder, or holds several: DRIVE, STARE, HRF, CHASE_DB1, IDRiD, DDR. `notes` says what is passed over.
"""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import AfterValidator

from domainbed.datasets import fundus_layouts, images, splits
from domainbed.datasets.base import UNLABELLED, Dataset, Sample
from domainbed.datasets.folder import valid_regex
from domainbed.datasets.fundus_layouts import SECOND_OBSERVER, Found, Photograph
from domainbed.datasets.labels import alike, plain
from domainbed.datasets.listing import PassedOver, folders_in, images_below, some
from domainbed.datasets.masks import (
    FIELD_KIND,
    NOT_LEARNT,
    MaskClasses,
    digest_files,
    looks_like_field_of_view,
    read_files,
)
from domainbed.errors import UserError, did_you_mean
from domainbed.hparams import Field, Names
from domainbed.paths import user_path
from domainbed.registry import DATASETS

LESIONS = ("microaneurysms", "haemorrhages", "hard_exudates", "soft_exudates")
#: What the name of a mask without a folder of its kind ends in.
_KIND_OF_ENDING = (
    (re.compile("_(1stHO|manual1)$", re.IGNORECASE), "vessels"),
    (re.compile("_(2ndHO|manual2)$", re.IGNORECASE), SECOND_OBSERVER),
)
#: Names of a folder of masks that mean the field of view.
_FIELD = re.compile("fov|field[ _-]?of[ _-]?view", re.IGNORECASE)
#: Kind of masks of which nothing says what they show.
_UNNAMED = "mask"
_MASK_FOLDERS = ("masks", "mask")
_PROBED = 3
_PLACE_OF_MASK = (
    "Give each mask, in masks/<kind> or in mask, the folders and the name of its photograph in images, which '_' and "
    "anything may follow"
)


@DATASETS.register("FundusSegmentation")
class FundusSegmentation(Dataset):
    """Fundus photographs with masks: DRIVE, STARE, HRF, CHASE_DB1, IDRiD, DDR, or your own images/ and masks/<kind>/.

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
        self.environments, self.classes, self.samples = [], [], []
        self._files: list[Path] = []
        self._masks: list[dict[str, Path]] = []
        for environment, folder, photographs in self._environments(self._existing(data_dir)):
            self._add(environment, folder, photographs)
        #: Every (environment, kind) of which there is a mask.
        self._marked = {
            (sample.environment, kind)
            for sample, masks in zip(self.samples, self._masks, strict=True)
            for kind in masks
        }
        kinds = {kind for _, kind in self._marked if kind not in NOT_LEARNT}
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
            kinds: those wanted, beside `ignore` and `field_of_view`; None for all.

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
        return {kind: found[kind] for kind in found if kinds is None or kind in kinds or kind in NOT_LEARNT}

    def _existing(self, data_dir: Path | None) -> Path:
        if data_dir is None:
            raise self._fault("no --data_dir is given")
        root = user_path(data_dir)
        if not root.is_dir():
            raise self._fault(f"{str(root)!r} is a file" if root.exists() else f"there is no {str(root)!r}")
        return root

    def _environments(self, root: Path) -> list[tuple[str, Path, list[Photograph]]]:
        """Return name, folder and photographs of every environment that is read."""
        paths = ["/".join(parts) for parts in images_below(root, ())]
        if (source := _source(root, paths, levels=0)) is not None:
            found = {plain(root.resolve().name): (root, source)}
        else:
            found = self._below(root, paths)
        wanted = [plain(name) for name in self.hparams.environments or found]
        for name in wanted:
            if name not in found:
                raise UserError(f"no environment {name!r} in {str(root)!r}{did_you_mean(name, found)}")
        for group in alike(found):
            self.notes.append(f"the environments {' and '.join(map(repr, group))} differ in case or punctuation alone")
        environments = [(name, *self._read(name, *found[name])) for name in wanted]
        empty = {name: folder for name, folder, photographs in environments if not photographs}
        if empty:
            rest = ",".join(name for name in wanted if name not in empty)
            unread = PassedOver()
            for folder in empty.values():
                list(images_below(folder, (), unread))
            not_read = f" (not read: {unread.what_is_unread()})" if unread.unread else ""
            do = f", or name the environments: environments={rest}" if rest else ""
            raise UserError(
                f"{some(empty)} in {str(root)!r} {'holds' if len(empty) == 1 else 'hold'} no photograph{not_read}. Put "
                f"photographs into {'its folder' if len(empty) == 1 else 'their folders'} images{do}"
            )
        return environments

    def _below(self, root: Path, paths: Sequence[str]) -> dict[str, tuple[Path, "Source"]]:
        """Return the folders in `root` that are environments, by name."""
        found: dict[str, tuple[Path, Source]] = {}
        others = []
        passed_over = PassedOver()
        for name in folders_in(root, passed_over):
            inside = [path.removeprefix(f"{name}/") for path in paths if path.startswith(f"{name}/")]
            source = _source(root / name, inside, levels=2)
            if source is None:
                others.append((name, fundus_layouts.why_not(inside)))
            elif plain(name) in found:
                raise UserError(
                    f"{str(root)!r} has two folders {plain(name)!r}: {found[plain(name)][0].name!a} and {name!a}. "
                    "Rename one, or put them into one folder"
                )
            else:
                found[plain(name)] = (root / name, source)
        if not found:
            unread = PassedOver()
            list(images_below(root, (), unread))
            why = fundus_layouts.why_not(paths) or unread.what_is_unread()
            raise self._fault(f"neither {str(root)!r} nor a folder in it is one" + (f" ({why})" if why else ""))
        if others and not self.hparams.environments:
            names = some(name for name, _ in others)
            self.log.append(f"{str(root)!r}: passed over, because they hold no photographs with masks: {names}")
            self.notes += [f"{name!r} is passed over: {why}" for name, why in others if why]
        passed_over.report(repr(str(root)), 0, self.log, self.notes)
        return found

    def _read(self, environment: str, folder: Path, source: "Source") -> tuple[Path, list[Photograph]]:
        """Return the folder of an environment and its photographs; note what is there and not read."""
        where = f"environment {environment!r}"
        passed_over = PassedOver()
        others = {"/".join(parts) for parts in images_below(folder, (), passed_over)}
        if isinstance(source, Found):
            self.log.append(f"{where} is laid out as {source.layout.publisher}")
            photographs, left_out = source.photographs(folder)
            second = list(source.files[SECOND_OBSERVER].values())
            others -= source.paths
            if left_out:
                self.notes.append(
                    f"{where}: {len(left_out)} photographs are left out, as their split has no masks: {some(left_out)}"
                )
        else:
            photographs = [one for split, place in source for one in _photographs_of_place(place, split)]
            used = [path for one in photographs for path in (one.path, *one.masks.values())]
            others -= {path.relative_to(folder).as_posix() for path in used}
            second = [mask.name for one in photographs if (mask := one.masks.pop(SECOND_OBSERVER, None))]
            _refuse_unnamed_fields(folder, photographs, others)
        if second:
            self.log.append(f"{where}: {len(second)} masks of a second observer are passed over: {some(second)}")
        if fields := sum(FIELD_KIND in one.masks for one in photographs):
            self.log.append(f"{where}: pixels outside of {fields} masks of the field of view count as unlabelled")
        if others:
            self.log.append(f"{where}: {len(others)} other images are passed over: {some(others)}")
        passed_over.report(where, len(photographs), self.log, self.notes)
        return folder, photographs

    def _add(self, environment: str, root: Path, photographs: Sequence[Photograph]) -> None:
        """Add an environment."""
        pattern = re.compile(self.hparams.group_pattern) if self.hparams.group_pattern else None
        for photograph in photographs:
            name = f"{environment}/{photograph.path.relative_to(root).as_posix()}"
            match = pattern.search(photograph.path.stem) if pattern else None
            patient = match and (match[1] if match.re.groups else match[0])
            group = f"{environment}/{plain(patient)}" if patient else name
            self.samples.append(Sample(len(self.environments), name, UNLABELLED, group, photograph.split))
            self._files.append(photograph.path)
            self._masks.append(photograph.masks)
        self.environments.append(environment)

    def _fault(self, found: str) -> UserError:
        return UserError(
            f"{self.name} needs {self.layout}, but {found}. Give such a folder, one that has them in train and test "
            "folders, that of a publisher, or one that holds several"
        )


#: What a publisher's layout found, or the folders of one's own layout with their splits.
Source = Found | list[tuple[str | None, Path]]


def _source(folder: Path, paths: Sequence[str], levels: int) -> Source | None:
    """Return where the photographs of an environment and their masks are; None where it is none.

    Args:
        folder: of the environment. paths: of the images in it.
        levels: how far down a publisher's folder may be.

    Raises:
        UserError: there are several publishers' folders.
    """
    found = [one for one in fundus_layouts.match(paths) if one.base.count("/") <= levels]
    here = [one for one in found if not one.base]
    if not here and (places := _places(folder)):
        return places
    if len(chosen := here or found) > 1:
        names = " and ".join(f"{one.layout.publisher} in {str(folder / one.base)!r}" for one in chosen)
        raise UserError(f"{str(folder)!r} holds several data sets: {names}. Give each its folder in --data_dir")
    return chosen[0] if chosen else None


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


def _photographs_of_place(folder: Path, split: str | None) -> list[Photograph]:
    """Return the photographs in `folder`/images with their masks."""
    photographs = _photographs_in(folder)
    masks = _masks_of(folder, photographs)
    return [Photograph(path, split, masks[name]) for name, path in sorted(photographs.items())]


def _refuse_unnamed_fields(folder: Path, photographs: Sequence[Photograph], others: Collection[str]) -> None:
    """Raise `UserError` where masks of which nothing says what they show seem to be of the field of view.

    Args:
        folder: of the environment. photographs: in it. others: images in it that are neither these nor their masks.
    """
    unnamed = [photograph.masks[_UNNAMED] for photograph in photographs if _UNNAMED in photograph.masks]
    if not unnamed:
        return
    why = ""
    if others and all(path.stem.lower().endswith("_mask") for path in unnamed):
        why = f"their names end in _mask, and others may hold the segmentations: {some(others)}"
    with suppress(images.UnreadableImage):  # said by name when the images are read
        # The one look at pixels before training: a network that learns this mask looks perfect, and has learnt nothing.
        if all(looks_like_field_of_view(images.read_mask(path)) for path in unnamed[:_PROBED]):
            why = "they cover a disc"
    if why:
        raise UserError(
            f"{folder}: {len(unnamed)} masks such as {unnamed[0].name} seem to be of the field of view: {why}. Move "
            "them to masks/field_of_view, so that what is outside of it counts as unlabelled, and those that are to be "
            "learnt to masks/<kind>"
        )


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
            kind = next((kind for ending, kind in _KIND_OF_ENDING if ending.search(stem)), _UNNAMED)
            if top == "masks" and folders:
                kind = plain(folders.pop(0))
                kind = FIELD_KIND if _FIELD.fullmatch(kind) else kind
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
