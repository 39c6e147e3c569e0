"""The promises of `assign` and `subset`, checked on random sample sets and against a naive version of the rule."""

import hashlib
import random
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from domainbed.datasets.base import Sample
from domainbed.datasets.splits import TEST, TRAIN, VAL, assign, spelled, subset
from domainbed.errors import UserError


def random_samples(seed: int, environments: int = 3, groups: int = 60, classes: int = 4) -> list[Sample]:
    """Groups of 1 to 4 images; classes that are unevenly frequent."""
    rng = random.Random(seed)
    samples = []
    for environment in range(environments):
        for group in range(rng.randint(groups // 2, groups)):
            for image in range(rng.choice((1, 1, 2, 2, 4))):
                label = rng.choices(range(classes), weights=range(classes, 0, -1))[0]
                samples.append(
                    Sample(environment, f"e{environment}/g{group}/{image}", label, f"e{environment}/g{group}")
                )
    rng.shuffle(samples)
    return samples


def strata_of(samples):
    """(environment, highest label) -> set of groups."""
    members = defaultdict(list)
    for sample in samples:
        members[sample.environment, sample.group].append(sample.label)
    strata = defaultdict(set)
    for (environment, group), found in members.items():
        strata[environment, max(found)].add(group)
    return strata


def held_out(samples, splits):
    return {sample.group for sample, split in zip(samples, splits, strict=True) if split == VAL}


@pytest.mark.parametrize("seed", range(5))
def test_assign_is_the_rule(seed):
    samples = random_samples(seed)
    expected = set()
    for groups in strata_of(samples).values():
        ranked = sorted(groups, key=lambda group: hashlib.sha256(f"split/{seed}/{group}".encode()).hexdigest())
        n = len(ranked)
        nearest = n // 5 + (n % 5 >= 3)  # a fifth, to the nearest
        expected |= set(ranked[: max(1, nearest)])
    splits = assign(samples, seed, 0.2)
    assert held_out(samples, splits) == expected
    assert set(splits) == {TRAIN, VAL}


def test_hash_is_the_same_everywhere():
    # Written down once. Should these change, every published result's splits change.
    samples = [Sample(0, f"a/{i}.jpg", i % 2, f"a/{i}.jpg") for i in range(20)]
    splits = assign(samples, 0, 0.2)
    assert [i for i in range(20) if splits[i] == VAL] == [0, 7, 8, 13]
    assert subset(samples, splits, 6, 0).tolist() == [0, 2, 13, 15, 18, 19]


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole(seed):
    samples = random_samples(seed)
    sides = defaultdict(set)
    for sample, split in zip(samples, assign(samples, seed, 0.3), strict=True):
        sides[sample.group].add(split)
    assert all(len(side) == 1 for side in sides.values())


def test_share_is_the_fraction_up_to_half_a_group():
    samples = [Sample(e, f"{e}/{c}/{i}", c, f"{e}/{c}/{i}") for e, c in ((0, 0), (0, 1), (1, 1)) for i in range(97)]
    for fraction in (0.1, 0.2, 0.29, 0.5, 0.8):
        splits = assign(samples, 3, fraction)
        counts = Counter((s.environment, s.label) for s, split in zip(samples, splits, strict=True) if split == VAL)
        assert all(abs(counts[stratum] - fraction * 97) <= 0.5 for stratum in ((0, 0), (0, 1), (1, 1)))


@pytest.mark.parametrize(("fraction", "count", "expected"), [(0.29, 100, 29), (0.1, 15, 1), (0.1, 25, 2), (0.7, 5, 3)])
def test_fractions_are_the_decimals_that_were_written(fraction, count, expected):
    # As floats 0.1 is more than a tenth and 0.7 less than seven; 0.29 * 100 is 28.999999999999996.
    samples = [Sample(0, str(i), 0, str(i)) for i in range(count)]
    assert (assign(samples, 0, fraction) == VAL).sum() == expected


def test_half_a_group_stays_in_train():
    samples = [Sample(0, str(i), 0, str(i)) for i in range(5)]
    assert (assign(samples, 0, 0.5) == VAL).sum() == 2


def test_a_stratum_of_one_group_is_held_out():
    samples = [Sample(0, str(i), 0, str(i)) for i in range(10)] + [Sample(0, "rare", 4, "rare")]
    assert assign(samples, 0, 0.2)[-1] == VAL


@pytest.mark.parametrize("seed", range(4))
def test_order_of_samples_does_not_matter(seed):
    samples = random_samples(seed)
    shuffled = random.Random(seed).sample(samples, len(samples))
    assert held_out(samples, assign(samples, 1, 0.2)) == held_out(shuffled, assign(shuffled, 1, 0.2))


def test_trial_seed_moves_the_split():
    samples = random_samples(0)
    assert held_out(samples, assign(samples, 0, 0.2)) != held_out(samples, assign(samples, 1, 0.2))


@pytest.mark.parametrize("fraction", [0.2, 0.37, 0.5, 0.9])
def test_an_added_image_moves_at_most_one_other_group_per_stratum(fraction):
    rng = random.Random(0)
    moved_somewhere = False
    for trial in range(60):
        samples = random_samples(trial, environments=2, groups=25)
        if rng.random() < 0.5:
            base = rng.choice(samples)  # may lift its group into another stratum
            added = replace(base, name="added", label=rng.randrange(5))
        else:
            added = Sample(rng.randrange(2), "added", rng.randrange(5), "added")
        before, after = strata_of(samples), strata_of([*samples, added])
        held_before = held_out(samples, assign(samples, trial, fraction))
        held_after = held_out([*samples, added], assign([*samples, added], trial, fraction))
        moved = (held_before ^ held_after) - {added.group}
        for stratum in before.keys() | after.keys():
            touched = before[stratum] != after[stratum]
            here = moved & (before[stratum] | after[stratum])
            assert len(here) <= touched
            moved_somewhere |= bool(here)
    assert moved_somewhere  # or the test could not fail


def test_a_given_split_is_kept():
    given = [TRAIN, VAL, TEST] * 10
    samples = [Sample(0, str(i), 0, str(i), split) for i, split in enumerate(given)]
    assert assign(samples, 0, 0.2).tolist() == given


def test_train_without_val_gives_its_val():
    samples = [Sample(0, str(i), i % 2, str(i // 2), TRAIN if i < 100 else TEST) for i in range(140)]
    splits = assign(samples, 0, 0.2)
    assert splits[100:].tolist() == [TEST] * 40
    assert (splits[:100] == VAL).sum() == 20
    assert all(splits[i] == splits[i + 1] for i in range(0, 100, 2))  # patients whole


def test_each_environment_decides_for_itself():
    samples = [Sample(0, f"a{i}", 0, f"a{i}", (TRAIN, VAL)[i % 2]) for i in range(20)]
    samples += [Sample(1, f"b{i}", 0, f"b{i}", TRAIN) for i in range(20)] + [Sample(2, "c", 0, "c", TEST)]
    splits = assign(samples, 0, 0.2)
    assert splits[:20].tolist() == [TRAIN, VAL] * 10
    assert Counter(splits[20:40]) == {TRAIN: 16, VAL: 4}
    assert splits[40] == TEST


def test_images_without_a_split_follow_their_group():
    samples = [Sample(0, f"{g}{i}", 0, g, split) for g, splits in
               (("x", (TEST, None, TRAIN)), ("y", (VAL, None, None)), ("z", (TRAIN, None, None)))
               for i, split in enumerate(splits)]  # fmt: skip
    assert assign(samples, 0, 0.2).tolist() == [TEST, TEST, TRAIN, VAL, VAL, VAL, TRAIN, TRAIN, TRAIN]


def test_images_without_a_split_beside_a_given_val_are_divided():
    samples = [Sample(0, f"{split}{i}", 0, f"{split}{i}", split) for split in (VAL, TRAIN) for i in range(5)]
    samples += [Sample(0, f"n{i}", 0, f"n{i}") for i in range(50)]
    splits = assign(samples, 0, 0.2)
    assert splits[:10].tolist() == [VAL] * 5 + [TRAIN] * 5
    assert Counter(splits[10:]) == {TRAIN: 40, VAL: 10}


def test_unlabelled_images_are_split_too():
    samples = [Sample(0, str(i), -1, str(i)) for i in range(50)]
    assert (assign(samples, 0, 0.2) == VAL).sum() == 10


@pytest.mark.parametrize("seed", range(5))
def test_subsets_are_exact_nested_and_keep_splits(seed):
    samples = random_samples(seed, groups=80)
    splits = assign(samples, seed, 0.2)
    count = min(Counter(sample.environment for sample in samples).values())
    previous: set[int] = set()
    for size in [*range(1, 12), *range(12, count, 9), count]:
        chosen = subset(samples, splits, size, seed)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        per_environment = Counter(samples[i].environment for i in chosen)
        assert set(per_environment.values()) == {size} and len(per_environment) == 3
        assert previous <= set(chosen.tolist())
        previous = set(chosen.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_subsets_are_stratified(seed):
    samples = random_samples(seed, environments=1, groups=150)
    splits = assign(samples, seed, 0.2)
    strata = Counter((sample.label, split) for sample, split in zip(samples, splits, strict=True))
    for size in (1, 7, 20, 50, 100):
        chosen = Counter((samples[i].label, splits[i]) for i in subset(samples, splits, size, seed))
        # A threshold t on (rank + 1/2) / n takes within 1/2 of t * n from each of S strata; so t is within S / 2N of
        # size / N.
        for stratum, n in strata.items():
            share = n / len(samples)
            assert abs(chosen[stratum] - size * share) <= 0.5 + 0.5 * len(strata) * share + 1e-9
    smallest = min(strata.values())
    enough = len(samples) // smallest + len(strata)
    assert set(Counter((samples[i].label, splits[i]) for i in subset(samples, splits, enough, seed))) == set(strata)


def test_subset_ranks_are_independent_of_the_split():
    # With the ranks of `assign`, the images next to the held-out ones would always come first.
    samples = [Sample(0, f"{i}", 0, f"{i}") for i in range(1000)]
    splits = assign(samples, 0, 0.2)
    by_split_rank = sorted(range(1000), key=lambda i: hashlib.sha256(f"split/0/{i}".encode()).hexdigest())
    position = {i: k for k, i in enumerate(i for i in by_split_rank if splits[i] == TRAIN)}
    chosen = [position[i] for i in subset(samples, splits, 100, 0) if splits[i] == TRAIN]
    assert 330 < np.mean(chosen) < 470  # 399.5 expected, standard error 25


def test_an_image_that_is_added_to_one_stratum_leaves_the_ranks_of_the_others():
    samples = [Sample(0, f"{c}/{i}", c, f"{c}/{i}", TRAIN) for c in range(2) for i in range(50)]
    splits = np.array([TRAIN] * 100)
    before = {samples[i].name for i in subset(samples, splits, 20, 0)}
    more = [*samples, Sample(0, "0/new", 0, "0/new", TRAIN)]
    after = {more[i].name for i in subset(more, np.array([TRAIN] * 101), 20, 0)}
    assert len(before - after) <= 1


def test_too_large_a_subset_names_environment_and_count():
    samples = [Sample(0, f"a{i}", 0, f"a{i}") for i in range(9)] + [Sample(1, f"b{i}", 0, f"b{i}") for i in range(4)]
    with pytest.raises(UserError, match="10 images.*'first' has 9, 'second' has 4.*4 or fewer"):
        subset(samples, assign(samples, 0, 0.2), 10, 0, ["first", "second"])


def test_spellings():
    assert [spelled(name) for name in ("Train", "TRAINING", "valid", "validation", "val", "Testing", "test", "0")] == [
        TRAIN, TRAIN, VAL, VAL, VAL, TEST, TEST, None
    ]  # fmt: skip


def test_nothing_to_split():
    assert assign([], 0, 0.2).tolist() == []
    assert subset([], np.array([]), 3, 0).tolist() == []


def test_names_that_are_no_utf8():
    assign([Sample(0, "a\udcff", 0, "a\udcff")], 0, 0.2)
