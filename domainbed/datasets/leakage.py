"""Images and patients that are where they give an answer away: in two environments, or on both sides of a split.

    for line in report(find(dataset.samples, splits, contents, dataset.environments)): ...

A target's image that is also in a training environment makes generalisation look easy, and so does another image of
the same patient; a training image that is also held out makes selection and testing look good. Two copies on one side
of one environment only count twice.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from domainbed.datasets.base import Sample

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Leak:
    """One image, or one patient, in places that should share nothing.

    Attributes:
        kind: "image" where the content is the same, "patient" where the group is.
        places: names of two or more environments, or of two or more splits of one environment ("idrid/train").
        files: sample names, in the order of the samples.
        patient: the group; empty for an image.
    """

    kind: Literal["image", "patient"]
    places: tuple[str, ...]
    files: tuple[str, ...]
    patient: str = ""


def find(
    samples: Sequence[Sample], splits: Sequence[str], contents: Sequence[str | None], environments: Sequence[str]
) -> list[Leak]:
    """Return every leak.

    The rule of `splits.assign` keeps a group on one side of its environment, so a patient on two sides comes from a
    given split, and one in two environments from a table.

    Args:
        samples: (N,) samples.
        splits: (N,) their splits.
        contents: (N,) `Dataset.content` of each; None for an image that can't be read, which is compared with nothing.
        environments: names, by `Sample.environment`.
    """
    by_content = _repeated(contents)
    by_group = _repeated([sample.group for sample in samples])

    leaks: list[Leak] = []

    def compare(kind: Literal["image", "patient"], places: Mapping[str, list[int]], patient: str = "") -> None:
        if len(places) > 1:
            files = tuple(samples[i].name for i in sorted(sum(places.values(), [])))
            leaks.append(Leak(kind, tuple(sorted(places)), files, patient))

    def compare_places(kind: Literal["image", "patient"], indices: list[int], patient: str = "") -> None:
        in_environments = _by_place(indices, [environments[samples[i].environment] for i in indices])
        compare(kind, in_environments, patient)
        for environment, inside in in_environments.items():
            compare(kind, _by_place(inside, [f"{environment}/{splits[i]}" for i in inside]), patient)

    for indices in by_content.values():
        compare_places("image", indices)
    for group, indices in by_group.items():
        compare_places("patient", indices, group)
    return leaks


def report(leaks: Iterable[Leak]) -> list[str]:
    """Return one line for every kind and every set of places: how many, and the first files."""
    kinds: dict[tuple[str, tuple[str, ...]], list[Leak]] = defaultdict(list)
    for leak in leaks:
        kinds[leak.kind, leak.places].append(leak)
    lines = []
    for (kind, places), found in sorted(kinds.items()):
        shown = "; ".join(_files(leak) for leak in found[:_NAMES_SHOWN])
        more = f"; and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
        are = "is" if len(found) == 1 else "are"
        lines.append(f"{len(found)} {kind}{'s' * (len(found) > 1)} {are} in {' and in '.join(places)}: {shown}{more}")
    return lines


def _repeated(values: Sequence[str | None]) -> dict[str, list[int]]:
    """Return where each value stands that occurs more than once; None is no value."""
    more_than_once = {value for value, count in Counter(values).items() if count > 1 and value is not None}
    found: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        if value in more_than_once:
            found[value].append(i)
    return found


def _by_place(indices: list[int], places: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, place in zip(indices, places, strict=True):
        found[place].append(i)
    return found


def _files(leak: Leak) -> str:
    shown = " = " if leak.kind == "image" else ", "
    more = f" ({len(leak.files)} files)" if len(leak.files) > _NAMES_SHOWN else ""
    whose = f"{leak.patient} in " if leak.patient else ""
    return whose + shown.join(leak.files[:_NAMES_SHOWN]) + more
