"""Which files of a folder are images, and what is passed over in it.

Operating systems, NAS boxes, archivers, sync clients and notebooks leave files and folders of their own among the
images; some hold copies or thumbnails of them. `is_clutter` is the one definition of these. Every data set that lists
files does so here, and `PassedOver` counts what it does not read, so that a folder of DICOM files is not lost in
silence.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from domainbed.datasets.images import IMAGE_SUFFIXES
from domainbed.errors import UserError

#: Names that no person gave: matched whole, in any case.
_CLUTTER = re.compile(
    r"""
      \..*                                  # hidden: .DS_Store, ._a.jpg, .Trash-1000, .git, .ipynb_checkpoints
    | \$recycle\.bin | (?-i:RECYCLER) | system\ volume\ information | found\.\d{3}
    | \$winreagent | \$extend | thumbs\.db | ehthumbs(_vista)?\.db | desktop\.ini                        # Windows
    | __macosx | network\ trash\ folder | temporary\ items | thevolumesettingsfolder | icon\r          # macOS
    | @eadir | @tmp | [#]recycle | [#]snapshot | @recycle | @recently-snapshot | ~snapshot  # Synology, QNAP, NetApp
    | lost\+found                                                                                      # Linux
    | __pycache__
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
#: What Dropbox, Nextcloud and Syncthing put into the name of the second version of a file.
_CONFLICT = re.compile(r" \([^()]*conflicted copy[^()]*\)|\.sync-conflict-\d{8}-\d{6}(-\w+)?", re.IGNORECASE)
_SHOWN = 5
#: Share of the images read. A readme or a list of labels is less, a folder of DICOM files more.
_MANY = 0.1


@dataclass
class PassedOver:
    """What a listing of images passes over.

    Attributes:
        clutter: how often each name (see `is_clutter`) occurred, of folders and of files with an image's suffix. Other
            files, such as .DS_Store, can hold no image and are not counted.
        unread: number of other files that are not read, by suffix.
        example: one of these.
    """

    clutter: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    example: str = ""

    def count_unread(self, kind: str, path: str) -> None:
        self.unread[kind] += 1
        self.example = self.example or path

    def what_is_unread(self) -> str:
        """Return the files that are not read, and which are, as the end of a sentence; empty where there are none."""
        if not self.unread:
            return ""
        suffixes = " ".join(IMAGE_SUFFIXES)
        return f"{_counted(self.unread)}, such as {self.example!r}; files that are read end in {suffixes}"

    def lines(self, where: str) -> list[str]:
        """Return a line on the files of `where` that are not read, and one on clutter; none where there are none."""
        lines = [f"{where}: not read: {self.what_is_unread()}"] * bool(self.unread)
        if self.clutter:
            lines.append(f"{where}: passed over, as systems and programs leave it behind: {_counted(self.clutter)}")
        return lines

    def report(self, where: str, num_images: int, log: list[str], notes: list[str]) -> None:
        """Add these lines to a log; to the notes instead where many files are not read.

        Args:
            where: they are, such as "environment 'a'".
            num_images: that are read there.
            log, notes: of the data set.
        """
        lines = self.lines(where)
        if self.unread and sum(self.unread.values()) >= _MANY * num_images:
            notes.append(lines.pop(0))
        log += lines


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_clutter(name: str) -> bool:
    """Whether a file or folder of that name was left behind by a system or a program, or is hidden."""
    return _CLUTTER.fullmatch(name) is not None


def folders_in(folder: str | os.PathLike[str], passed_over: PassedOver | None = None) -> list[str]:
    """Return the names of the folders in `folder`, sorted, without clutter.

    Args:
        folder: that is listed.
        passed_over: counts clutter, and links that lead nowhere, which may have been folders.
    """
    names = []
    for entry in _visible(folder, passed_over):
        if os.path.isdir(entry):
            names.append(entry.name)
        elif passed_over and entry.is_symlink() and not os.path.exists(entry) and not is_image(entry.name):
            passed_over.count_unread(_BROKEN_LINK, entry.name)
    return sorted(names)


def images_in(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of the images straight in `folder`, sorted."""
    return sorted(entry.name for entry in _visible(folder) if is_image(entry.name) and not os.path.isdir(entry))


def images_below(
    folder: str | os.PathLike[str], parts: tuple[str, ...], passed_over: PassedOver | None = None
) -> Iterator[tuple[str, ...]]:
    """Yield the parts of the path of every image below `folder`, `parts` first.

    What has an image's suffix is an image, a dangling link or a folder too: reading it fails by name, where skipping it
    would lose an image in silence.
    """
    for entry in _visible(folder, passed_over):
        if is_image(entry.name):  # without asking the file system what it is: listing stays fast
            yield (*parts, entry.name)
        elif os.path.isdir(entry):
            if not (entry.is_symlink() and _is_loop(entry.path)):
                yield from images_below(entry.path, (*parts, entry.name), passed_over)
        elif passed_over:
            broken = entry.is_symlink() and not os.path.exists(entry)
            suffix = os.path.splitext(entry.name)[1].lower() or "without a suffix"
            passed_over.count_unread(_BROKEN_LINK if broken else suffix, "/".join((*parts, entry.name)))


_BROKEN_LINK = "links that lead nowhere"


def some(names: Iterable[str]) -> str:
    """Return the first three of these names, and how many more there are, for a message."""
    names = sorted(names)
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _visible(folder: str | os.PathLike[str], passed_over: PassedOver | None = None) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_clutter(entry.name):
                    if passed_over and (is_image(entry.name) or entry.is_dir(follow_symlinks=False)):
                        passed_over.clutter[_kind_of_clutter(entry)] += 1
                elif _is_conflict_copy(entry):
                    if passed_over:
                        passed_over.clutter["conflicted copies"] += 1
                else:
                    yield entry
    except OSError as error:
        raise UserError(f"can't read the folder {os.fspath(folder)!r}: {error.strerror}") from None


def _is_conflict_copy(entry: os.DirEntry[str]) -> bool:
    """Whether a file is a sync client's second version of an image that is there, too."""
    original = _CONFLICT.sub("", entry.name)
    if original == entry.name or not is_image(entry.name):
        return False
    return os.path.lexists(os.path.join(os.path.dirname(entry.path), original))


def _kind_of_clutter(entry: os.DirEntry[str]) -> str:
    """Return a folder's name; hidden images are one kind for each suffix: "._*.jpg", ".*.png"."""
    if entry.is_dir(follow_symlinks=False):
        return entry.name
    return ("._*" if entry.name.startswith("._") else ".*") + os.path.splitext(entry.name)[1].lower()


def _is_loop(link: str) -> bool:
    real = os.path.realpath(link)
    return os.path.commonpath([real, os.path.realpath(os.path.dirname(link))]) == real


def _counted(counts: Counter[str]) -> str:
    """Return "300 .dcm, 2 .heic", the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ordered) - _SHOWN} kinds more" if len(ordered) > _SHOWN else ""
    return ", ".join(f"{number} {kind}" for kind, number in ordered[:_SHOWN]) + more
