"""How publishers lay out fundus photographs and their masks: a table, and the one way in which it is read.

A publisher's `Layout` says, as regular expressions for the paths below its folder, where the photographs are and where
the masks of each kind. A photograph and its masks have one `id`, and one `split` where folders tell it. Masks of the
field of view and of a second observer are kinds of their own, so that neither is ever learnt by mistake.

    for found in match(paths): found.photographs(folder)

Nothing is read from the disk here. `fundus_segmentation` has the layout for images of your own.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from domainbed.datasets import splits
from domainbed.datasets.listing import some
from domainbed.datasets.masks import FIELD_KIND
from domainbed.errors import UserError

PHOTOGRAPHS = "photographs"
#: Masks that a second person drew. They measure how far people agree and are not learnt from.
SECOND_OBSERVER = "second observer"
_NOT_LEARNT = {PHOTOGRAPHS, FIELD_KIND, SECOND_OBSERVER}


@dataclass(frozen=True)
class Layout:
    """Where a publisher puts things.

    Attributes:
        publisher: name of the data set.
        patterns: of `PHOTOGRAPHS` and of each kind of mask, a regular expression that matches the whole path of a file
            below the publisher's folder, without its suffix and in any case. Its group `id` pairs masks with
            photographs, together with the group `split` where it has one.
    """

    publisher: str
    patterns: dict[str, str]


def _split(*names: str) -> str:
    return f"(?P<split>{'|'.join(names)})"


def _drive() -> Layout:
    split = f"(?:{_split('training', 'test')}/)?"  # one of the two may be given alone
    return Layout("DRIVE", {
        PHOTOGRAPHS: rf"{split}images/(?P<id>\d+)_(training|test)",
        "vessels": rf"{split}1st_manual/(?P<id>\d+)_manual1",
        SECOND_OBSERVER: rf"{split}2nd_manual/(?P<id>\d+)_manual2",
        FIELD_KIND: rf"{split}mask/(?P<id>\d+)_(training|test)_mask",
    })  # fmt: skip


def _idrid() -> Layout:
    split, number = rf"[ab]\. {_split('Training', 'Testing')} Set", r"(?P<id>IDRiD_\d+)"
    folders = {
        "microaneurysms": ("1. Microaneurysms", "MA"), "haemorrhages": ("2. Haemorrhages", "HE"),
        "hard_exudates": ("3. Hard Exudates", "EX"), "soft_exudates": ("4. Soft Exudates", "SE"),
        "optic_disc": ("5. Optic Disc", "OD"),
    }  # fmt: skip
    masks = {
        kind: rf"2\. All Segmentation Groundtruths/{split}/{re.escape(folder)}/{number}_{code}"
        for kind, (folder, code) in folders.items()
    }
    return Layout("IDRiD", {PHOTOGRAPHS: rf"1\. Original Images/{split}/{number}", **masks})


def _ddr() -> Layout:
    split, number = _split("train", "valid", "test"), "(?P<id>[^/]+)"
    kinds = {"microaneurysms": "MA", "haemorrhages": "HE", "hard_exudates": "EX", "soft_exudates": "SE"}
    masks = {kind: rf"{split}/(segmentation )?label/{code}/{number}" for kind, code in kinds.items()}
    return Layout("DDR", {PHOTOGRAPHS: rf"{split}/image/{number}", **masks})


LAYOUTS = (
    _drive(),  # Staal et al. 2004
    Layout("STARE", {  # Hoover et al. 2000; its three archives unpacked into one folder, or each into its own
        PHOTOGRAPHS: r"((stare-)?images/)?(?P<id>im\d{4})",
        "vessels": r"(labels-ah/|labels/|masks/)?(?P<id>im\d{4})\.ah",
        SECOND_OBSERVER: r"(labels-vk/|labels/|masks/)?(?P<id>im\d{4})\.vk",
    }),
    Layout("HRF", {  # Budai et al. 2013
        PHOTOGRAPHS: r"images/(?P<id>\d+_(dr|g|h))",
        "vessels": r"manual1/(?P<id>\d+_(dr|g|h))",
        FIELD_KIND: r"mask/(?P<id>\d+_(dr|g|h))_mask",
    }),
    Layout("CHASE_DB1", {  # Fraz et al. 2012
        PHOTOGRAPHS: r"(?P<id>Image_\d+[LR])",
        "vessels": r"(?P<id>Image_\d+[LR])_1stHO",
        SECOND_OBSERVER: r"(?P<id>Image_\d+[LR])_2ndHO",
    }),
    _idrid(),  # Porwal et al. 2018
    _ddr(),  # Li et al. 2019
)  # fmt: skip

#: Publishers whose masks are not black and white: what gives one away (searched in a path), its name, what masks are.
_OTHERS = (
    (r"(^|/)Disc_Cup_Masks/", "REFUGE", "hold disc and cup as grey levels of one file"),
    (r"(^|/)Masks(_Square|_Cropped)?/image_\d+\.", "G1020", "hold disc and cup as grey levels of one file"),
    (r"_(OD|cup)segSoftmap\.", "DRISHTI-GS", "are soft maps of several experts"),
    (r"(^|/)(Hemohedge|HardExudate|SoftExudate)_Masks/", "FGADR", "have soft edges"),
)

_Key = tuple[str | None, str]  # split, id


@dataclass
class Photograph:
    """A photograph and its masks.

    Attributes:
        path: of its file.
        split: "train", "val" or "test" where folders tell it, else None.
        masks: files by kind.
    """

    path: Path
    split: str | None
    masks: dict[str, Path]


@dataclass
class Found:
    """What a layout finds below one folder.

    Attributes:
        layout: of the publisher.
        base: path of the publisher's folder below the one that was searched, with a slash behind; "" for that itself.
        files: paths of each kind by split and id.
        twice: two paths of one kind, split and id.
    """

    layout: Layout
    base: str
    files: dict[str, dict[_Key, str]] = field(default_factory=lambda: defaultdict(dict))
    twice: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether there are photographs and masks to learn from."""
        return bool(self.files[PHOTOGRAPHS]) and bool(self.files.keys() - _NOT_LEARNT)

    def photographs(self, folder: Path) -> tuple[list[Photograph], list[str]]:
        """Return the photographs in `folder`, where the paths were found, and the paths of those that are left out.

        In a split of which nobody marked anything, masks are not missing: they are kept back by the publisher.

        Raises:
            UserError: two files for the same thing, or masks without a photograph.
        """
        publisher = f"{folder / self.base} is laid out as {self.layout.publisher}"
        if self.twice:
            raise UserError(f"{publisher}, but has two files for the same: {some(self.twice[0])}. Keep one")
        masks = {kind: files for kind, files in self.files.items() if kind not in (PHOTOGRAPHS, SECOND_OBSERVER)}
        there = self.files[PHOTOGRAPHS]
        strange = [path for files in masks.values() for key, path in files.items() if key not in there]
        if strange:
            raise UserError(f"{publisher}, but has masks of no photograph: {some(strange)}. Add it, or move them away")
        marked = {split for kind in masks.keys() - _NOT_LEARNT for split, _ in masks[kind]}
        photographs, without = [], []
        for (split, number), path in sorted(there.items(), key=lambda item: item[1]):
            if split not in marked:
                without.append(path)
                continue
            own = {kind: folder / files[split, number] for kind, files in masks.items() if (split, number) in files}
            photographs.append(Photograph(folder / path, split, own))
        return photographs, without

    @property
    def paths(self) -> set[str]:
        """All paths that the layout knows."""
        return {path for files in self.files.values() for path in files.values()}


def match(paths: Iterable[str]) -> list[Found]:
    """Return what publishers' layouts find among paths of images, in any folder at most two levels down.

    Args:
        paths: below one folder, parts joined by "/".
    """
    found: dict[tuple[str, str], Found] = {}
    for path in paths:
        for layout, kind, place in _matches(os.path.splitext(path)[0]):
            one = found.setdefault((layout.publisher, place["base"]), Found(layout, place["base"]))
            key = (splits.spelled(place.groupdict().get("split") or ""), place["id"].casefold())
            if key in one.files[kind]:
                one.twice.append((one.files[kind][key], path))
            one.files[kind][key] = path
    return [one for one in found.values() if one.is_whole]


def why_not(paths: Iterable[str]) -> str:
    """Return what is wrong with the masks of a publisher who is known but not read; empty where there is none such."""
    for path in paths:
        for sign, publisher, masks in _OTHERS:
            if re.search(sign, path, re.IGNORECASE):
                return (
                    f"these are files of {publisher}, whose masks {masks}: write each kind as black and white files "
                    "into masks/<kind>/, and the photographs into images/ beside it"
                )
    return ""


_PATTERNS = [
    (layout, kind, re.compile(f"(?P<base>(?:[^/]+/){{0,2}}?){pattern}", re.IGNORECASE))
    for layout in LAYOUTS
    for kind, pattern in layout.patterns.items()
]


def _matches(stem: str) -> Iterator[tuple[Layout, str, re.Match[str]]]:
    return ((layout, kind, place) for layout, kind, one in _PATTERNS if (place := one.fullmatch(stem)))
