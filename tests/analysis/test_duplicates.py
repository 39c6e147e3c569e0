"""Which images show the same: copies that were changed as files are, and other eyes, which all look alike."""

import cv2
import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from domainbed.analysis.duplicates import THRESHOLD, detail, similar
from domainbed.datasets import fundus_drawing
from domainbed.datasets.preprocess import Preprocess

ALTERED = {
    "a JPEG of quality 40": lambda one: cv2.imdecode(cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1),
    "smaller": lambda one: cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "darker": lambda one: (one * 0.75).astype(np.uint8),
    "cropped": lambda one: Preprocess(["crop_retina"], 200)(one)[0],
}


@pytest.fixture(scope="module")
def eyes() -> list[np.ndarray]:
    return [fundus_drawing.draw(0, camera, index, 256).image for camera in (1, 3) for index in range(12)]


@pytest.mark.parametrize("how", ALTERED)
def test_a_copy_is_found_among_others_of_its_kind(how: str, eyes: list[np.ndarray]) -> None:
    details = np.stack([detail(one) for one in [*eyes, ALTERED[how](eyes[5])]])
    groups, closest = similar(details, [str(row) for row in range(len(details))])
    assert groups == [[5, len(eyes)]]
    assert closest.keys() == {5, len(eyes)} and THRESHOLD <= closest[5] == closest[len(eyes)] <= 1


def test_pairs_are_those_of_scikit_learn_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(size=(8, 676))
    values = base[generator.integers(0, 8, 60)] + 0.15 * generator.normal(size=(60, 676))
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)
    expected = cosine_similarity(values.astype(np.float32)) >= THRESHOLD
    monkeypatch.setattr("domainbed.analysis.duplicates._BLOCK", 7)
    groups, _ = similar(values, [str(row) for row in range(60)])
    for rows in groups:
        assert expected[rows].any(axis=0).nonzero()[0].tolist() == rows
    assert sorted(sum(groups, [])) == np.flatnonzero(expected.sum(1) > 1).tolist()


def test_images_in_which_nothing_is_to_be_seen_are_alike_only_if_they_are_equal() -> None:
    black, dark = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 3, np.uint8)
    details = np.stack([detail(one) for one in (black, dark, black)])
    assert not details.any()
    assert similar(details, ["black", "dark", "black"]) == ([[0, 2]], {0: 1.0, 2: 1.0})
