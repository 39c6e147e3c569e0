"""Who is in which split, and which images make a subset: pure functions of the samples and the trial seed.

    splits = assign(dataset.samples, trial_seed=0, holdout_fraction=0.2)   # (N,) of "train", "val", "test"
    indices = subset(dataset.samples, splits, size=200, trial_seed=0, environments=dataset.environments)

Ranks come from SHA-256 of names, never from a random generator's stream: an image that is added draws a rank of its own
and leaves those of the others as they are, on every machine.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import compress
from math import ceil

import numpy as np

from domainbed.datasets.base import Sample
from domainbed.datasets.labels import plain
from domainbed.errors import UserError

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
_SPELLINGS = {
    "train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST, "testing": TEST,
}  # fmt: skip


def spelled(name: str) -> str | None:
    """Return the split that a folder or a table's cell names, None where it names none."""
    return _SPELLINGS.get(plain(name).lower())


def assign(samples: Sequence[Sample], trial_seed: int, holdout_fraction: float) -> np.ndarray:
    """Return the split of every sample, (N,) of str: the same few objects, not copies of them.

    Per environment, `holdout_fraction` is held out as "val", in whole groups. Strata are (environment, highest class
    index in the group); groups are ranked in their stratum by a hash of (trial_seed, group), and the lowest fraction is
    held out, rounded to the nearest number of groups but at least one. As a stratum grows by one group that number
    stays or grows by one, so an added image moves at most one other group in each stratum that it touches.

    A given split is kept, with these rules where only some of it is given:
    - An environment that gives no val has it drawn from its train, given or not, by the rule above; its test stays.
    - In an environment that gives val, images without a split are divided by the rule and the given ones stay.
    - An image without a split goes where its group's given images are: to test, else to val, else to train.

    An environment of one group alone is held out whole: it can be a target, and can't be trained on.
    """
    splits = [sample.split or "" for sample in samples]
    given: dict[tuple[int, str], set[str]] = defaultdict(set)
    for sample in samples:
        if sample.split:
            given[sample.environment, sample.group].add(sample.split)
    for i, sample in enumerate(samples):
        if not sample.split:
            of_group = given.get((sample.environment, sample.group), set())
            splits[i] = next((split for split in (TEST, VAL, TRAIN) if split in of_group), "")
    has_val = {sample.environment for sample in samples if sample.split == VAL}
    undecided = [
        split == "" or (split == TRAIN and sample.environment not in has_val)
        for sample, split in zip(samples, splits, strict=True)
    ]

    highest: dict[int, dict[str, int]] = defaultdict(dict)  # class index in each group, by environment
    for sample in compress(samples, undecided):
        groups = highest[sample.environment]
        groups[sample.group] = max(groups.get(sample.group, sample.label), sample.label)
    held_out: dict[int, set[str]] = defaultdict(set)
    for environment, by_group in highest.items():
        strata: dict[int, list[str]] = defaultdict(list)
        for group, label in by_group.items():
            strata[label].append(group)
        for stratum in strata.values():
            stratum.sort(key=lambda group: _rank("split", trial_seed, group))
            held_out[environment].update(stratum[: _number_held_out(len(stratum), holdout_fraction)])

    for i, sample in enumerate(samples):
        if undecided[i]:
            splits[i] = VAL if sample.group in held_out[sample.environment] else TRAIN
    return np.array(splits, dtype=object)


def subset(
    samples: Sequence[Sample], splits: np.ndarray, size: int, trial_seed: int, environments: Sequence[str] = ()
) -> np.ndarray:
    """Return the sorted indices, (M,) int64, of `size` images of every environment, over all its splits.

    Images are ranked by a hash within (class, split), ordered by (rank + 1/2) / size of that stratum, and the first
    are taken: exactly `size`, each stratum with its share, 200 contained in 500, and every image in its split.

    Args:
        samples: (N,) samples.
        splits: (N,) their splits, from `assign`.
        size: images per environment.
        trial_seed: the seed of the hash.
        environments: names for the message.

    Raises:
        UserError: an environment has fewer images than `size`.
    """
    strata: dict[int, dict[tuple[int, str], list[tuple[bytes, int]]]] = defaultdict(lambda: defaultdict(list))
    for i, (sample, split) in enumerate(zip(samples, splits, strict=True)):
        rank = _rank("subset", trial_seed, sample.name)
        strata[sample.environment][sample.label, split].append((rank, i))

    chosen: list[int] = []
    too_small: dict[str, int] = {}
    for environment, by_stratum in sorted(strata.items()):
        ordered = [
            ((2 * rank + 1) / (2 * len(stratum)), digest, i)  # equal fractions are equal floats; their hashes decide
            for stratum in by_stratum.values()
            for rank, (digest, i) in enumerate(sorted(stratum))
        ]
        if len(ordered) < size:
            too_small[environments[environment] if environments else str(environment)] = len(ordered)
        chosen += [i for _, _, i in sorted(ordered)[:size]]
    if too_small:
        counts = ", ".join(f"{name!r} has {count}" for name, count in too_small.items())
        raise UserError(
            f"a subset of {size} images per environment is asked for, but {counts}. "
            f"Ask for {min(too_small.values())} or fewer"
        )
    return np.array(sorted(chosen), dtype=np.int64)


def _rank(purpose: str, trial_seed: int, name: str) -> bytes:
    """A hash to sort by. `purpose` keeps the images of a subset independent of those held out."""
    return hashlib.sha256(f"{purpose}/{trial_seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def _number_held_out(num_groups: int, fraction: float) -> int:
    """The nearest whole number, the lower of two, and at least 1; exact, because the float 0.1 is more than 1/10."""
    return max(1, ceil(Fraction(str(fraction)) * num_groups - Fraction(1, 2)))
