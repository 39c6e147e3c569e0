"""Folders of images. What a name means as a class is in `labels`, who is held out in `splits`.

    <data_dir>/<environment>/<class>/**/<image>
    <data_dir>/<environment>/<train|val|test>/<class>/**/<image>
    <data_dir>/<train|val|test>/<environment>/<class>/**/<image>

Which files are images, and what is passed over, is in `listing`. A train, val or test folder inside a class gives a
split as well. Folders whose names look alike (`labels.plain`) are one environment, or one class; what is read from
them keeps the names of the files as they are on disk.
"""

import difflib
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator

from domainbed.datasets import images, labels, splits, tables
from domainbed.datasets.base import Dataset, Sample, read_file
from domainbed.datasets.labels import plain
from domainbed.datasets.listing import PassedOver, folders_in, images_below, images_in, some
from domainbed.datasets.preprocess import Preprocess
from domainbed.errors import UserError, did_you_mean
from domainbed.hparams import Field, Names
from domainbed.paths import user_path
from domainbed.registry import DATASETS


def valid_regex(pattern: str | None) -> str | None:
    """Return `pattern`; raise ValueError, for pydantic, where it is not a regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


class OneEnvironment(UserError):
    """A folder whose folders hold images directly, where environments are wanted."""


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image file, and what its path says about it."""

    name: str  # relative to data_dir, parts joined by "/"
    folder: str  # of its class
    nested: str | None  # folder below that one, where there is one
    split: str | None


@DATASETS.register("Folder")
class Folder(Dataset):
    """Your own images in <data_dir>/<environment>/<class>/, with train, val and test folders kept where there are any.

    Environments are sorted by name; classes are those of all environments together, in the order that `labels.order`
    finds. A sample's name is its path relative to `data_dir`; a patient belongs to one environment.
    """

    class HParams(Dataset.HParams):
        """Which images are read, and what tells their patients."""

        environments: Names | None = Field(None, description="read only these environments; null for all")
        group_pattern: Annotated[str | None, AfterValidator(valid_regex)] = Field(
            None,
            description="regular expression searched in a file's name without suffix; its first group, or else the "
            "whole match, is the patient. A file that does not match is a patient of its own",
        )

    layout: ClassVar[str] = "<data_dir>/<environment>/<class>/*.jpg"
    #: Where the data set comes from, for messages.
    source: ClassVar[str] = ""
    hparams: HParams

    def __init__(self, data_dir: Path | None, hparams: HParams) -> None:
        super().__init__(data_dir, hparams)
        self._root = self._existing(data_dir)
        found = self._find()
        folders = {(environment, image.folder) for environment in found for image in found[environment]}
        scale = self._order(folders)
        self.log += labels.same("class", (folder for _, folder in folders))
        self.notes += scale.notes
        for group in labels.alike(found):
            self.notes.append(f"the environments {' and '.join(map(repr, group))} differ in case or punctuation alone")
        pattern = re.compile(hparams.group_pattern) if hparams.group_pattern else None
        self.environments, self.classes, self.ordinal = sorted(found), scale.classes, scale.ordinal
        if beside := _tables_in([self._root, *(self._root / name for name in self.environments)]):
            self.log.append(
                f"classes are names of folders; {beside[0]} is not read. If the labels are in a table, use "
                f"{_reading(beside)}"
            )
        self.samples = [
            Sample(i, image.name, scale.index[image.folder], group_of(pattern, environment, image.name), image.split)
            for i, environment in enumerate(self.environments)
            for image in sorted(found[environment], key=lambda image: image.name)
        ]

    def read(self, index: int) -> np.ndarray:
        """Return image `index` as uint8 (H, W, C), decoded and preprocessed.

        Raises:
            UnreadableImage: the file can't be decoded whole.
        """
        return read_file(self._root / self.samples[index].name, self.preprocess)

    @classmethod
    def read_new(cls, path: str | os.PathLike[str], hparams: Any, with_masks: bool = False) -> np.ndarray:
        return read_file(path, Preprocess(hparams.preprocess, hparams.image_size))

    @property
    def least_side(self) -> int | None:
        return self.preprocess.least_side

    def file(self, index: int) -> Path | None:
        """Return the file of image `index`."""
        return self._root / self.samples[index].name

    def content(self, index: int) -> str:
        """Return the SHA-256 of the file.

        Raises:
            UnreadableImage: the file can't be opened.
        """
        return images.digest(os.path.join(self._root, self.samples[index].name))

    def _order(self, folders: set[tuple[str, str]]) -> labels.Scale:
        """Return the classes that these folders, (environment, class folder) each, stand for."""
        return labels.order(folder for _, folder in folders)

    def _existing(self, data_dir: Path | None) -> Path:
        if data_dir is None:
            raise self._fault("no --data_dir is given", "Give it the folder that holds the environments")
        root = user_path(data_dir)
        if root.is_dir():
            return root
        if root.exists():
            is_table = root.suffix.lower() in tables.SUFFIXES
            raise self._fault(
                f"{str(root)!r} is a file",
                "Use --dataset Manifest for it" if is_table else "Give the folder that holds the environments",
            )
        near = difflib.get_close_matches(root.name, folders_in(root.parent) if root.parent.is_dir() else [], n=1)
        raise self._fault(
            f"there is no {str(root)!r}",
            f"Did you mean {str(root.parent / near[0])!r}?" if near else "Give the folder that holds the environments",
        )

    def _find(self) -> dict[str, list[FoundImage]]:
        """Return the images of every environment that is read.

        Raises:
            UserError: the folders are not laid out as `layout` says.
        """
        root, shown = self._root, repr(str(self._root))
        above = PassedOver()  # what lies beside the environments
        tops = folders_in(root, above)
        if not tops:
            only_images = any(images_below(root, (), above))
            unread = f", only files that are not read: {above.what_is_unread()}" if above.unread else ""
            raise self._fault(
                f"{shown} holds only images" if only_images else f"{shown} holds no folder and no image{unread}",
                "Point --data_dir at the folder that holds the environments",
            )
        split_first = all(map(splits.spelled, tops))
        starts: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for top in tops:
            for folder in folders_in(root / top, above) if split_first else [top]:
                starts[plain(folder)].append((top, folder) if split_first else (top,))
        wanted = list(dict.fromkeys(map(plain, self.hparams.environments or sorted(starts))))
        for name in wanted:
            if name not in starts:
                raise UserError(f"no environment {name!r} in {shown}{did_you_mean(name, starts)}")

        found: dict[str, list[FoundImage]] = {}
        outside: dict[str, list[str]] = {}
        within = {name: PassedOver() for name in wanted}
        for name in wanted:
            paths = [
                path for start in starts[name] for path in images_below(root.joinpath(*start), start, within[name])
            ]
            found[name], outside[name] = _interpret(paths, split_first)
        self._check(found, outside, {name: passed.what_is_unread() for name, passed in within.items()})
        self.log += labels.same("environment", (start[-1] for name in wanted for start in starts[name]))
        for name in wanted:
            within[name].report(f"environment {name!r}", len(found[name]), self.log, self.notes)
        beside = [(), *((top,) for top in tops if split_first)]
        stray = ["/".join((*start, image)) for start in beside for image in images_in(root.joinpath(*start))]
        if stray and not self.hparams.environments:
            self.log.append(f"{shown}: in no environment, so not read: {some(stray)}")
        above.report(shown, 0, self.log, self.notes)
        return found

    def _check(self, found: dict[str, list[FoundImage]], outside: dict[str, list[str]], unread: dict[str, str]) -> None:
        """Raise `UserError` where the images in class folders, and those outside, tell of another layout."""
        root, shown = self._root, repr(str(self._root))
        if not any(found.values()):
            if any(outside.values()):
                place = root.resolve()
                raise self._fault(
                    f"{shown} looks like one environment: its folders ({some(outside)}) hold images directly",
                    f"Point --data_dir at its parent {str(place.parent)!r}; environments={place.name} then reads it "
                    "alone",
                    OneEnvironment,
                )
            lost = "".join(f" ({name!r}: not read: {what})" for name, what in [*unread.items()][:3] if what)
            raise self._fault(f"no folder below {shown} holds an image in a class folder{lost}", "Give another folder")
        too_high = _look_like_data_dirs(found)
        if too_high and not self.hparams.environments:
            raise self._fault(
                f"{shown} looks one level too high",
                f"Point --data_dir at {' or '.join(repr(str(root / name)) for name in too_high)}; if these are "
                f"environments all the same, say so with environments={','.join(found)}",
            )
        for name, stray in outside.items():
            if stray:
                raise self._fault(
                    f"environment {name!r} has images outside its class folders: {some(stray)}",
                    "Move them into class folders or out of the environment, or list the images in a Manifest",
                )
        empty = [name for name, inside in found.items() if not inside]
        if empty:
            rest = ",".join(name for name in found if name not in empty)
            raise self._fault(
                f"{some(empty)} in {shown} {'holds' if len(empty) == 1 else 'hold'} no image"
                + "".join(f" ({name!r}: not read: {unread[name]})" for name in empty[:3] if unread[name]),
                f"Fill or move {'it' if len(empty) == 1 else 'them'}, or name the environments: environments={rest}",
            )

    def _fault(self, found: str, do: str, kind: type[UserError] = UserError) -> UserError:
        source = f". It comes from {self.source}" if self.source else ""
        return kind(f"{self.name} needs {self.layout}, but {found}. {do}{source}{self._table_hint()}")

    def _table_hint(self) -> str:
        """Return a sentence that names a table that lies near the images, as competitions ship their labels."""
        root = user_path(self.data_dir) if self.data_dir else None
        if root is None or not root.is_dir():
            return ""
        beside = _tables_in([root, *(root / name for name in folders_in(root))]) or _tables_in([root.resolve().parent])
        return f". If the labels are in a table, read that: {_reading(beside)}" if beside else ""


def _tables_in(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path in tables.in_folder(folder)]


def _reading(beside: list[Path]) -> str:
    """Return the options that read a table, and the names of other tables that could be meant."""
    others = f" (or {', '.join(path.name for path in beside[1:4])})" if beside[1:] else ""
    return f"--dataset Manifest --data_dir {shlex.quote(str(beside[0]))}{others}"


def _interpret(paths: Iterable[tuple[str, ...]], split_first: bool) -> tuple[list[FoundImage], list[str]]:
    """Return the images of one environment that lie in a class folder, and the names of those that do not.

    A folder with the name of a split is one where it holds no image directly, or where all beside it are splits too;
    else a class may be called "test".
    """
    start = 2 if split_first else 1
    paths = list(paths)
    folders = {path[start] for path in paths if len(path) > start + 1}
    holding = {path[start] for path in paths if len(path) == start + 2}
    all_splits = all(map(splits.spelled, folders))
    split_folders = {folder for folder in folders if splits.spelled(folder) and (all_splits or folder not in holding)}
    if split_first:
        split_folders = set()

    inside, outside = [], []
    for path in paths:
        split = splits.spelled(path[0]) if split_first else None
        rest = path[start:]
        if rest[0] in split_folders:
            split, rest = splits.spelled(rest[0]), rest[1:]
        if len(rest) < 2:
            outside.append("/".join(path))
            continue
        folder, *below, _ = rest
        nested = None
        for part in below:
            if split is None and splits.spelled(part):
                split = splits.spelled(part)
            elif nested is None:
                nested = part
        inside.append(FoundImage("/".join(path), folder, nested, split))
    return inside, outside


def _look_like_data_dirs(found: dict[str, list[FoundImage]]) -> list[str]:
    """Return the folders that hold environments rather than classes: `found` was read one level too high.

    In them no image lies directly in what would be the class folders, and the folders below are grades, or are called
    the same from one to the next (cats and dogs of one camera and of another). Against the latter, class folders that
    environments share are believed (cats and dogs, each with a folder for the left and the right side).
    """
    classes = [folder for inside in found.values() for folder in {plain(image.folder) for image in inside}]
    if labels.order(classes).ordinal:
        return []
    shared = len(set(classes)) < len(classes)
    suspects = []
    for name, inside in found.items():
        nested: dict[str, set[str | None]] = defaultdict(set)
        for image in inside:
            nested[plain(image.folder)].add(image.nested and plain(image.nested))
        names = set().union(*nested.values())
        if names and None not in names:
            grades = all(labels.grade(folder) is not None for folder in names if folder)
            if grades or (not shared and len(nested) > 1 and set.intersection(*nested.values())):
                suspects.append(name)
    return suspects


def group_of(pattern: re.Pattern[str] | None, environment: str, name: str) -> str:
    """Return the patient that a pattern finds in the name of an image's file, else the image as a group of its own."""
    match = pattern.search(os.path.splitext(name.rpartition("/")[2])[0]) if pattern else None
    patient = match and (match[1] if match.re.groups else match[0])
    return f"{environment}/{plain(patient)}" if patient else name  # a name has more slashes: never another's patient
