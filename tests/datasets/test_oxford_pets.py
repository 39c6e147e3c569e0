"""Small files in the publisher's layout, read here and by torchvision."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from domainbed.datasets.images import UnreadableImage
from domainbed.datasets.oxford_pets import OxfordPets
from domainbed.errors import UserError

SIDE = 12
#: torchvision's class of a trimap value, and the one here.
CLASS_OF = {1: 1, 2: 0, 3: 2}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that torchvision unpacks into, with two breeds."""
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations/trimaps").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for number in range(1, 7):
        for breed, name in ((1, "Abyssinian"), (2, "american_bulldog")):
            stem = f"{name}_{number}"
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"images/{stem}.jpg")
            Image.fromarray(rng.integers(1, 4, (SIDE, SIDE), dtype=np.uint8)).save(
                folder / f"annotations/trimaps/{stem}.png"
            )
            lists["trainval" if number < 5 else "test"].append(f"{stem} {breed} {breed} 1")
    for name, lines in lists.items():
        (folder / f"annotations/{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def open_(root: Path | None, **hparams) -> OxfordPets:
    return OxfordPets(root, OxfordPets.HParams(image_size=SIDE, **hparams))


@pytest.mark.parametrize(("split", "ours"), [("trainval", "train"), ("test", "test")])
def test_it_reads_what_torchvision_reads(root: Path, split: str, ours: str) -> None:
    data, theirs = open_(root), OxfordIIITPet(root, split, target_types=["category", "segmentation"])
    chosen = [i for i, sample in enumerate(data.samples) if sample.split == ours]
    by_name = {data.samples[i].name: i for i in chosen}
    assert len(theirs) == len(chosen) > 0
    classes = data.chosen_masks()
    for number, (image, (category, trimap)) in enumerate(theirs):
        index = by_name[theirs._images[number].stem]
        assert np.array_equal(data.read(index), np.asarray(image.convert("RGB")))
        assert data.classes[data.samples[index].label].lower().replace("_", " ") == theirs.classes[category].lower()
        expected = np.vectorize(CLASS_OF.get)(np.asarray(trimap))
        assert np.array_equal(data.read_mask(index, classes), expected)


def test_what_it_is(root: Path) -> None:
    data = open_(root / "oxford-iiit-pet")
    assert data.samples == open_(root).samples
    assert data.environments == ["pets"] and data.classes == ["Abyssinian", "american_bulldog"] and not data.ordinal
    assert data.chosen_masks().names == ("background", "pet", "border") and data.chosen_masks().exclusive
    before = data.mask_content(0, ())
    Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(data._trimap(0))
    assert data.mask_content(0, ()) != before


@pytest.mark.parametrize("value", [0, 4, 255])
def test_a_trimap_with_another_value_is_refused(root: Path, value: int) -> None:
    data = open_(root)
    trimap = np.asarray(Image.open(data._trimap(0))).copy()
    trimap[3, 5] = value
    Image.fromarray(trimap).save(data._trimap(0))
    text = f"its trimap holds the value {value}, but the values of a trimap are 1 pet, 2 background, 3 border. Unpack"
    with pytest.raises(UnreadableImage, match=re.escape(text)):
        data.read_mask(0, data.chosen_masks())
    trimap[4, 5:7] = 9, 254
    Image.fromarray(trimap).save(data._trimap(0))
    with pytest.raises(UnreadableImage, match=f"holds the value {min(value, 9)} and 2 more, but"):
        data.read_mask(0, data.chosen_masks())


def test_what_is_not_laid_out_so(root: Path) -> None:
    with pytest.raises(UserError, match="no --data_dir"):
        open_(None)
    with pytest.raises(UserError, match="holds no folders images and annotations.*robots.ox.ac.uk"):
        open_(root / "nowhere")
    (root / "oxford-iiit-pet/annotations/test.txt").write_text("Abyssinian_1 one 1 1\n")
    with pytest.raises(UserError, match="lines that are not '<name> <class id>"):
        open_(root)
    (root / "oxford-iiit-pet/annotations/test.txt").unlink()
    with pytest.raises(UserError, match="test.txt: no such file"):
        open_(root)
