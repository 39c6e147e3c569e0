"""Leaks of small sets, written out by hand, and all pairs of random sets."""

import itertools
import random

from domainbed.datasets.base import Sample
from domainbed.datasets.leakage import Leak, find, report

ENVIRONMENTS = ["a", "b"]


def sample(environment: int, name: str, group: str | None = None) -> Sample:
    return Sample(environment, name, 0, group or name)


def test_the_same_image_in_two_environments():
    samples = [sample(0, "a/1"), sample(1, "b/1"), sample(1, "b/2")]
    assert find(samples, ["train"] * 3, ["x", "x", "y"], ENVIRONMENTS) == [Leak("image", ("a", "b"), ("a/1", "b/1"))]


def test_the_same_image_on_two_sides_of_a_split():
    samples = [sample(0, "a/1"), sample(0, "a/2"), sample(0, "a/3")]
    leaks = find(samples, ["train", "val", "test"], ["x", "x", "y"], ENVIRONMENTS)
    assert leaks == [Leak("image", ("a/train", "a/val"), ("a/1", "a/2"))]


def test_copies_on_one_side_are_no_leak():
    samples = [sample(0, "a/1"), sample(0, "a/2"), sample(1, "b/1", "p"), sample(1, "b/2", "p")]
    assert find(samples, ["train", "train", "val", "val"], ["x", "x", "y", "z"], ENVIRONMENTS) == []


def test_both_kinds_of_place_at_once():
    samples = [sample(0, "a/1"), sample(0, "a/2"), sample(1, "b/1")]
    leaks = find(samples, ["train", "val", "train"], ["x", "x", "x"], ENVIRONMENTS)
    assert leaks == [
        Leak("image", ("a", "b"), ("a/1", "a/2", "b/1")),
        Leak("image", ("a/train", "a/val"), ("a/1", "a/2")),
    ]


def test_a_patient_whom_a_given_split_divides():
    samples = [sample(0, "a/1_L", "a/1"), sample(0, "a/1_R", "a/1"), sample(0, "a/2_L", "a/2")]
    leaks = find(samples, ["train", "test", "test"], ["x", "y", "z"], ENVIRONMENTS)
    assert leaks == [Leak("patient", ("a/test", "a/train"), ("a/1_L", "a/1_R"), "a/1")]


def test_a_patient_in_two_environments():
    samples = [sample(0, "a/1", "p"), sample(1, "b/1", "p"), sample(1, "b/2", "p"), sample(0, "a/2", "q")]
    assert find(samples, ["train"] * 4, list("wxyz"), ENVIRONMENTS) == [
        Leak("patient", ("a", "b"), ("a/1", "b/1", "b/2"), "p")
    ]
    assert find(samples, ["train", "train", "val", "val"], [None] * 4, ENVIRONMENTS) == [
        Leak("patient", ("a", "b"), ("a/1", "b/1", "b/2"), "p"),
        Leak("patient", ("b/train", "b/val"), ("b/1", "b/2"), "p"),
    ]


def test_images_without_content_are_compared_with_nothing():
    samples = [sample(0, "a/1"), sample(1, "b/1")]
    assert find(samples, ["train"] * 2, [None, None], ENVIRONMENTS) == []


def test_every_leaking_pair_is_in_a_leak_and_no_other():
    for seed in range(30):
        rng = random.Random(seed)
        n = 40
        samples = [sample(rng.randrange(2), str(i)) for i in range(n)]
        splits = [rng.choice(("train", "val", "test")) for _ in range(n)]
        contents = [str(rng.randrange(30)) for _ in range(n)]
        places = [(s.environment, split) for s, split in zip(samples, splits, strict=True)]
        expected = {
            (i, j)
            for i, j in itertools.combinations(range(n), 2)
            if contents[i] == contents[j] and places[i] != places[j]
        }
        found = set()
        for leak in find(samples, splits, contents, ENVIRONMENTS):
            files = [int(name) for name in leak.files]
            assert len({contents[i] for i in files}) == 1
            found |= {(i, j) for i, j in itertools.combinations(files, 2) if places[i] != places[j]}
        assert found == expected


def test_report_counts_and_names_the_first():
    leaks = [Leak("image", ("a", "b"), (f"a/{i}", f"b/{i}")) for i in range(5)]
    leaks.append(Leak("patient", ("a/test", "a/train"), ("a/1_L", "a/1_R"), "a/1"))
    leaks += [Leak("patient", ("a", "b"), ("a/7", "b/7"), "p7"), Leak("patient", ("a", "b"), tuple("vwxyz"), "p8")]
    assert report(leaks) == [
        "5 images are in a and in b: a/0 = b/0; a/1 = b/1; a/2 = b/2; and 2 more",
        "2 patients are in a and in b: p7 in a/7, b/7; p8 in v, w, x (5 files)",
        "1 patient is in a/test and in a/train: a/1 in a/1_L, a/1_R",
    ]
    assert report([Leak("image", ("a", "b"), tuple("vwxyz"))]) == ["1 image is in a and in b: v = w = x (5 files)"]
    assert report([]) == []
