"""MNIST and what is made of it: small idx files in the publisher's layout, torchvision as oracle, and every damage."""

import gzip
import hashlib
import http.server
import struct
import threading
from collections import Counter

import numpy as np
import pytest
import torchvision
from PIL import Image

from domainbed.datasets import mnist, splits
from domainbed.datasets.download import RemoteFile
from domainbed.datasets.mnist import MNIST, ColoredMNIST, RotatedMNIST
from domainbed.errors import UserError
from domainbed.registry import DATASETS

COUNTS = {"train": 120, "t10k": 30}


def idx(values):
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def digits(seed, number, side=28):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (number, side, side), dtype=np.uint8)
    return images, generator.permutation(np.arange(number, dtype=np.uint8) % 10)


def write(folder, suffix="", **parts):
    """Write the four files; a part is (images, labels)."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (prefix, number) in enumerate(COUNTS.items()):
        for kind, values in zip(("images-idx3", "labels-idx1"), parts.get(prefix, digits(seed, number)), strict=True):
            content = idx(values)
            path = folder / f"{prefix}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return folder


def opened(root, cls=MNIST, **hparams):
    return cls(root, cls.HParams(**hparams))


def message(root, cls=MNIST, **hparams):
    with pytest.raises(UserError) as error:
        opened(root, cls, **hparams)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["MNIST/raw", "raw", "."])
def test_images_labels_and_splits_are_those_of_torchvision(tmp_path, place, suffix):
    write(tmp_path / "data" / place, suffix)
    data = opened(tmp_path / "data")
    assert (data.environments, data.classes, data.ordinal) == (["MNIST"], [str(digit) for digit in range(10)], False)
    assert data.input_shape == (1, 28, 28) and DATASETS["MNIST"] is MNIST
    write(tmp_path / "oracle" / "MNIST" / "raw")
    index = 0
    for split, train in (("train", True), ("test", False)):
        for number, (image, label) in enumerate(torchvision.datasets.MNIST(tmp_path / "oracle", train=train)):
            sample = data.samples[index]
            assert (sample.name, sample.label, sample.split) == (f"{split}/{number:05}", label, split)
            assert sample.group == sample.name
            assert (data.read(index)[..., 0] == np.asarray(image)).all()
            assert data.content(index) == hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
            index += 1
    assert index == len(data.samples)


def test_a_plain_file_counts_before_its_archive(tmp_path):
    write(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(b"damaged")
    assert len(opened(tmp_path).samples) == 150


def test_three_equal_channels_on_request(tmp_path):
    data = opened(write(tmp_path), preprocess=["resize"], image_size=32)
    image = data.read(0)
    assert data.input_shape == (3, 32, 32) and image.shape == (32, 32, 3)
    assert (image == image[..., :1]).all()


def test_the_test_split_stays_and_validation_comes_from_training(tmp_path):
    data = opened(write(tmp_path))
    assigned = splits.assign(data.samples, trial_seed=0, holdout_fraction=0.25)
    assert Counter(assigned.tolist()) == {"train": 90, "val": 30, "test": 30}
    assert all(
        (split == "test") == (sample.split == "test") for sample, split in zip(data.samples, assigned, strict=True)
    )


def test_every_digit_is_in_one_environment_of_equal_size(tmp_path):
    write(tmp_path)
    for cls in (RotatedMNIST, ColoredMNIST):
        data = opened(tmp_path, cls)
        counts = Counter(sample.environment for sample in data.samples)
        assert sorted(counts) == list(range(len(data.environments)))
        assert set(counts.values()) == {150 // len(data.environments)}
        assert len({sample.name for sample in data.samples}) == 150
        assert {sample.split for sample in data.samples} == {None}  # as in DomainBed: train and test are mixed
        mixed = Counter((sample.environment, sample.name.split("/")[0]) for sample in data.samples)
        assert len(mixed) == 2 * len(data.environments)


def test_the_deal_is_a_function_of_the_seed(tmp_path):
    write(tmp_path)
    for cls in (RotatedMNIST, ColoredMNIST):
        first, again, other = (opened(tmp_path, cls, data_seed=seed) for seed in (0, 0, 1))
        assert first.samples == again.samples != other.samples


def test_turned_digits_are_those_of_torchvision(tmp_path):
    write(tmp_path)
    data = opened(tmp_path, RotatedMNIST)
    assert data.environments == ["0", "15", "30", "45", "60", "75"]
    assert data.classes == [str(digit) for digit in range(10)]
    by_name = dict(zip((s.name for s in opened(tmp_path).samples), range(150), strict=True))
    upright, contents = opened(tmp_path), set()
    for index, sample in enumerate(data.samples):
        original = by_name[sample.name]
        assert sample.label == upright.samples[original].label
        expected = torchvision.transforms.functional.rotate(
            Image.fromarray(upright.read(original)[..., 0]),
            int(data.environments[sample.environment]),
            torchvision.transforms.InterpolationMode.BICUBIC,
            fill=[0],
        )
        assert (data.read(index)[..., 0] == np.asarray(expected)).all()
        contents.add(data.content(index))
    assert len(contents) == 150


def test_colours_and_labels_have_the_published_noise(tmp_path):
    number = 12_000
    images, labels = digits(0, number, side=1)
    images[:] = 200
    write(tmp_path, train=(images, labels))
    data = opened(tmp_path, ColoredMNIST, image_size=1)
    assert data.environments == ["plus90", "plus80", "minus90"] and data.classes == ["0-4", "5-9"]
    assert data.input_shape == (3, 1, 1)
    digit = {f"train/{index:05}": label for index, label in enumerate(labels.tolist())}
    for environment, flipped in enumerate((0.1, 0.2, 0.9)):
        wrong, other = [], []
        for index, sample in enumerate(data.samples):
            if sample.environment != environment or sample.name not in digit:
                continue
            red, green, blue = data.read(index)[0, 0].tolist()
            assert (red, green, blue) in ((200, 0, 0), (0, 200, 0))
            assert data.content(index).endswith("red" if red else "green")
            wrong.append(sample.label != (digit[sample.name] >= 5))
            other.append(sample.label != (red > 0))
        # five standard errors of a share of 4,000
        assert abs(np.mean(wrong) - 0.25) < 0.035
        assert abs(np.mean(other) - flipped) < 0.035
        assert abs(np.corrcoef(wrong, other)[0, 1]) < 0.08  # the two draws are independent


def test_a_coloured_digit_keeps_its_strokes(tmp_path):
    write(tmp_path)
    grey = {sample.name: index for index, sample in enumerate(opened(tmp_path).samples)}
    original, data = opened(tmp_path), opened(tmp_path, ColoredMNIST)
    for index in range(0, 150, 7):
        image = data.read(index)
        assert (image.max(axis=2) == original.read(grey[data.samples[index].name])[..., 0]).all()


def test_nothing_there(tmp_path):
    for cls in (MNIST, RotatedMNIST):
        text = message(tmp_path, cls)
        assert text.startswith(
            f"{cls.name} needs <data_dir>/MNIST/raw/train-images-idx3-ubyte and three more idx files"
        )
        assert (
            f"'{tmp_path}' holds none of them. Pass download=true to fetch them, or put the files of https://" in text
        )
    assert "there is no folder" in message(tmp_path / "gone")
    assert "no --data_dir is given" in message(None)


def test_a_file_is_missing(tmp_path):
    (write(tmp_path / "MNIST" / "raw") / "t10k-labels-idx1-ubyte").unlink()
    assert f"but '{tmp_path}/MNIST/raw' lacks t10k-labels-idx1-ubyte. Pass download=true" in message(tmp_path)


def test_the_wrong_level(tmp_path):
    write(tmp_path / "data" / "MNIST" / "raw")
    (tmp_path / "data" / "DR").mkdir()
    for wrong in (tmp_path, tmp_path / "data" / "DR"):
        assert message(wrong).endswith(f"holds none of them. Did you mean '{tmp_path / 'data'}'?")
    for right in ("data", "data/MNIST", "data/MNIST/raw"):
        assert len(opened(tmp_path / right).samples) == 150


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_truncated_file(tmp_path, suffix):
    path = write(tmp_path, suffix) / f"train-images-idx3-ubyte{suffix}"
    whole = idx(digits(0, 120)[0])
    for keep in (0, 2, 4, 10, 16, len(whole) - 1):
        path.write_bytes(gzip.compress(whole[:keep]) if suffix else whole[:keep])
        text = message(tmp_path)
        assert str(path) in text and text.endswith("Fetch it again")
    path.write_bytes(gzip.compress(whole + b"1") if suffix else whole + b"1")
    assert f"{path} holds 94081 values, but its head promises 120 x 28 x 28" in message(tmp_path)


def test_a_broken_archive(tmp_path):
    path = write(tmp_path, ".gz") / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for broken in (b"", b"<html>", whole[:-30], whole[:3000] + b"\0" * 50 + whole[3050:]):
        path.write_bytes(broken)
        text = message(tmp_path)
        assert str(path) in text and text.endswith("Fetch it again")


@pytest.mark.parametrize(
    "magic", [b"\x89PNG", b"\0\0\x08\x01", b"\0\0\x0d\x03", b"\1\0\x08\x03"], ids=["png", "labels", "floats", "zeros"]
)
def test_a_wrong_magic_number(tmp_path, magic):
    path = write(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(magic + path.read_bytes()[4:])
    assert f"{path} is no idx file of 3-dimensional bytes: it begins with {magic.hex(' ')}, not 00 00 08 03" in message(
        tmp_path
    )


def test_images_and_labels_that_do_not_belong_together(tmp_path):
    images, labels = digits(0, 120)
    write(tmp_path, train=(images, labels[:-1]))
    assert "train-images-idx3-ubyte holds 120 images, but" in message(tmp_path)
    assert "holds 119 labels" in message(tmp_path)
    write(tmp_path, train=(images, labels + 1))
    assert "holds the label 10; digits are 0 to 9" in message(tmp_path)
    write(tmp_path, train=(images[:0], labels[:0]))
    assert "holds no image" in message(tmp_path)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The four archives, served on 127.0.0.1 and known to `mnist` by the checksums that they have there."""
    folder = write(tmp_path / "served", ".gz")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        files = {
            path.stem: RemoteFile(
                path.name, (f"{url}/{path.name}",), f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
            )
            for path in sorted(folder.iterdir(), key=lambda path: list(mnist.FILES).index(path.stem))
        }
        monkeypatch.setattr(mnist, "FILES", files)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def test_missing_files_are_fetched_on_request_only(mirror, tmp_path):
    root = tmp_path / "new" / "data"
    message(root)
    assert not root.exists()
    assert len(opened(root, download=True).samples) == 150
    assert sorted(path.name for path in (root / "MNIST/raw").iterdir()) == sorted(
        path.name for path in mirror.iterdir()
    )
    (root / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    assert len(opened(root, RotatedMNIST, download=True).samples) == 150
    for path in mirror.iterdir():
        path.unlink()
    assert len(opened(root, download=True).samples) == 150  # nothing is asked for that is there


def test_a_fetched_file_with_a_wrong_checksum(mirror, tmp_path):
    (mirror / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    text = message(tmp_path / "data", download=True)
    assert text.startswith("can't fetch train-labels-idx1-ubyte.gz (http://127.0.0.1:")
    assert "what came has the checksum sha256:" in text
    assert text.endswith(f"Fetch it on a machine with access and put it into {tmp_path / 'data/MNIST/raw'}")


def test_names_and_mirror_are_those_of_torchvision():
    names = [name for name, _ in torchvision.datasets.MNIST.resources]
    assert [remote.name for remote in mnist.FILES.values()] == names
    assert mnist.FILES["train-images-idx3-ubyte"].urls[0] == f"{torchvision.datasets.MNIST.mirrors[0]}{names[0]}"


def test_the_real_digits(real_data):
    if not (real_data / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST in {real_data}")
    data = opened(real_data)
    oracle = torchvision.datasets.MNIST(real_data)
    assert [sample.label for sample in data.samples if sample.split == "train"] == oracle.targets.tolist()
    for index in (0, 1, 59_999):
        assert (data.read(index)[..., 0] == oracle.data[index].numpy()).all()
    assert {sample.split for sample in data.samples} == {"train", "test"}
