"""Small grey cells, alone and in twos: padding, partners and groups, on files that the tests write."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets import splits
from domainbed.datasets.images import read_image
from domainbed.datasets.tcell import TCell
from domainbed.errors import UserError
from domainbed.hparams import Layer, resolve
from domainbed.registry import DATASETS


def write(root: Path, counts=None, size=(9, 6)) -> dict[str, np.ndarray]:
    """Write cells of several plates, each another grey picture; return them by name."""
    counts = counts or {("donor1", "activated"): 6, ("donor1", "quiescent"): 7, ("donor2", "activated"): 2,
                        ("donor2", "quiescent"): 5}  # fmt: skip
    cells = {}
    for (donor, label), number in counts.items():
        for cell in range(number):
            name = f"{donor}/{label}/CD3_{donor[-1]}_{label[:3]}_9_{cell // 3}_{cell}.png"
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
            cells[name] = np.random.default_rng(seed).integers(1, 256, size, dtype=np.uint8)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(cells[name]).save(root / name)
    return cells


def opened(root, **hparams):
    return TCell(root, TCell.HParams(**{"image_size": 12, **hparams}))


def names_of(sample):
    """The two cells of a sample called donor/label/a.png+b.png."""
    first, second = sample.name.split("+")
    return first, f"{first.rpartition('/')[0]}/{second}"


@pytest.mark.parametrize("place", [".", "TCell"])
def test_single_cells_are_padded_and_keep_their_pixels(tmp_path, place):
    cells = write(tmp_path / place)
    data = opened(tmp_path)
    assert (data.environments, data.classes) == (["donor1", "donor2"], ["activated", "quiescent"])
    assert data.input_shape == (1, 12, 12) and DATASETS["TCell"] is TCell
    assert [sample.name for sample in data.samples] == sorted(cells)
    for index, name in enumerate(sorted(cells)):
        image = data.read(index)
        assert image.shape == (12, 12, 1)
        assert (image[1:10, 3:9, 0] == cells[name]).all()
        assert np.count_nonzero(image) == 9 * 6  # all around is black; no pixel of these cells is
        assert data.content(index) == f"single {hashlib.sha256((tmp_path / place / name).read_bytes()).hexdigest()}"


def test_larger_cells_are_shrunk_with_their_aspect_ratio(tmp_path):
    write(tmp_path, size=(40, 20))
    image = opened(tmp_path, image_size=10).read(0)[..., 0]
    assert image.shape == (10, 10)
    columns = np.flatnonzero(image.any(axis=0))
    assert columns.min() in (1, 2) and columns.max() in (7, 8) and image.any(axis=1).all()  # 20 of 40 px are half


def test_pairs_are_red_and_green_of_two_cells(tmp_path):
    cells = write(tmp_path)
    data = opened(tmp_path, channels="pairs")
    assert data.input_shape == (3, 12, 12)
    for index, sample in enumerate(data.samples):
        first, second = names_of(sample)
        red, green, blue = np.moveaxis(data.read(index), 2, 0)
        assert (red[1:10, 3:9] == cells[first]).all() and (green[1:10, 3:9] == cells[second]).all()
        assert not blue.any()


def test_overlap_adds_two_cells_up(tmp_path):
    cells = write(tmp_path)
    data, pairs = opened(tmp_path, channels="overlap"), opened(tmp_path, channels="pairs")
    assert data.input_shape == (1, 12, 12) and data.samples == pairs.samples
    for index, sample in enumerate(data.samples):
        first, second = (cells[name].astype(int) for name in names_of(sample))
        assert (data.read(index)[1:10, 3:9, 0] == np.clip(first + second, 0, 255)).all()
        assert data.content(index) != pairs.content(index)
        assert data.content(index).split()[1:] == pairs.content(index).split()[1:]


def test_partners_are_two_cells_of_one_donor_and_class_and_every_cell_has_one(tmp_path):
    cells = write(tmp_path)
    data = opened(tmp_path, channels="pairs")
    counts = Counter(name for sample in data.samples for name in names_of(sample))
    assert set(counts) == set(cells)
    twice = {name.rpartition("/")[0] for name, count in counts.items() if count == 2}
    assert twice == {"donor1/quiescent", "donor2/quiescent"} and sum(counts.values()) == len(cells) + 2  # odd numbers
    for sample in data.samples:
        first, second = names_of(sample)
        assert first != second
        assert first.split("/")[:2] == second.split("/")[:2] == sample.name.split("/")[:2]
        assert (data.environments[sample.environment], data.classes[sample.label]) == tuple(first.split("/")[:2])
    assert len({sample.name for sample in data.samples}) == len(data.samples) == 3 + 4 + 1 + 3


def test_partners_are_a_function_of_names_alone(tmp_path):
    write(tmp_path / "a")
    for index, name in enumerate(sorted(write(tmp_path / "b"), reverse=True)):
        Image.fromarray(np.full((3, 3), index, np.uint8)).save(tmp_path / "b" / name)
    one, other = (opened(tmp_path / folder, channels="pairs") for folder in "ab")
    assert one.samples == other.samples


@pytest.mark.parametrize("channels", ["single", "pairs", "overlap"])
def test_no_cell_and_no_plate_is_on_two_sides_of_a_split(tmp_path, channels):
    write(tmp_path, {(f"donor{d}", label): 31 + d for d in (1, 2) for label in ("activated", "quiescent")})
    data = opened(tmp_path, channels=channels)
    sides = defaultdict(set)
    for sample, split in zip(data.samples, splits.assign(data.samples, 0, 0.3), strict=True):
        for name in names_of(sample) if channels != "single" else [sample.name]:
            sides[name].add(split)
            sides[name.rpartition("_")[0]].add(split)
    assert {len(found) for found in sides.values()} == {1}
    assert set.union(*sides.values()) == {"train", "val"}


def test_partners_have_one_given_split(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split, {("donor1", "activated"): 3, ("donor2", "activated"): 4})
    data = opened(tmp_path, channels="pairs")
    assert Counter(sample.split for sample in data.samples) == {"train": 4, "test": 4}


def test_preprocessing_by_name(tmp_path):
    write(tmp_path)
    single, pairs = (opened(tmp_path, channels=one, preprocess=["clahe", "resize"]) for one in ("single", "pairs"))
    assert single.read(0).shape == (12, 12, 1) and pairs.read(0).shape == (12, 12, 3)
    assert (single.read(0) != opened(tmp_path).read(0)).any()
    with pytest.raises(UserError, match="gray_ntsc makes one channel of the two that channels = pairs is about"):
        resolve([TCell.HParams], [Layer("command line", {"channels": "pairs", "preprocess": "gray_ntsc,resize"})])


def test_a_cell_without_a_partner(tmp_path):
    write(tmp_path, {("donor1", "activated"): 2, ("donor1", "quiescent"): 1})
    assert len(opened(tmp_path).samples) == 3
    with pytest.raises(UserError) as error:
        opened(tmp_path, channels="overlap")
    assert str(error.value) == (
        "TCell: channels = overlap needs two cells of every donor, class and split, but donor1/quiescent has only "
        "donor1/quiescent/CD3_1_qui_9_0_0.png. Add or remove cells, or use channels=single"
    )


def test_the_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="TCell needs <data_dir>/<donor>/<activated.*It comes from https://github.com/"):
        opened(tmp_path)
    with pytest.raises(UserError, match="channels = 'double' is not one of single, pairs, overlap"):
        resolve([TCell.HParams], [Layer("command line", {"channels": "double"})])


def test_the_real_cells(real_data):
    if not (real_data / "TCell").is_dir():
        pytest.skip(f"no TCell in {real_data}")
    single = TCell(real_data, TCell.HParams())
    assert len(single.samples) == 656 and single.environments == [f"donor{number}" for number in range(1, 5)]
    assert single.input_shape == (1, 48, 48)
    sides = [max(read_image(real_data / "TCell" / sample.name).shape) for sample in single.samples]
    assert np.mean(np.array(sides) > 48) < 0.03
    for channels in ("pairs", "overlap"):
        data = TCell(real_data, TCell.HParams(channels=channels))
        assert len(data.samples) == sum(-(-n // 2) for n in (27, 163, 65, 15, 48, 127, 49, 162))
        for environment in range(4):  # plates that share an image are one group, and still there are several to split
            assert len({sample.group for sample in data.samples if sample.environment == environment}) >= 10
