"""MNIST beside USPS in both forms of the latter, torchvision as oracle, and every damage."""

import bz2
import re
import struct

import numpy as np
import pytest
import torchvision

from domainbed.datasets import digits
from domainbed.datasets.digits import Digits
from domainbed.errors import UserError
from domainbed.registry import DATASETS


def write_mnist(root):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, number in (("train", 20), ("t10k", 10)):
        labels = np.arange(number, dtype=np.uint8) % 10
        images = np.random.default_rng(number).integers(0, 256, (number, 28, 28), dtype=np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(head + values.tobytes())
    return root


def usps(number):
    return np.random.default_rng(7).integers(0, 256, (number, 16, 16), dtype=np.uint8), np.arange(number) % 10


def text(images, labels):
    """The form of LIBSVM: "7 1:-1 2:0.5 … 256:1" a line; labels from 1, values in [-1, 1]."""
    lines = []
    for image, label in zip(images.reshape(-1, 256) / 127.5 - 1, labels, strict=True):
        lines.append(f"{label + 1} " + " ".join(f"{i}:{value:.6g}" for i, value in enumerate(image, 1)) + " \n")
    return "".join(lines)


def write_text(root, name="USPS/usps.bz2", content=None, number=12):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(bz2.compress((text(*usps(number)) if content is None else content).encode()))


def write_npz(root, name="USPS/usps_train.npz", **arrays):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    images, labels = usps(12)
    np.savez(root / name, **({"images": images, "labels": labels.astype(np.uint8)} | arrays))


def opened(root, **hparams):
    return Digits(root, Digits.HParams(**hparams))


def message(root, **hparams):
    with pytest.raises(UserError) as error:
        opened(root, **hparams)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_two_environments_at_one_size(tmp_path):
    write_mnist(tmp_path)
    write_text(tmp_path)
    write_text(tmp_path, "USPS/usps.t.bz2", number=5)
    data = opened(tmp_path)
    assert data.environments == ["MNIST", "USPS"] and data.input_shape == (1, 28, 28) and DATASETS["Digits"] is Digits
    counted = [(s.environment, s.split) for s in data.samples]
    assert [counted.count(one) for one in ((0, "train"), (0, "test"), (1, "train"), (1, "test"))] == [20, 10, 12, 5]
    assert {data.read(index).shape for index in range(len(data.samples))} == {(28, 28, 1)}
    assert len({sample.name for sample in data.samples}) == len(data.samples)
    assert opened(tmp_path, image_size=16, preprocess=["resize"]).input_shape == (3, 16, 16)


@pytest.mark.parametrize("place", ["USPS", "."])
def test_the_text_form_is_read_as_torchvision_reads_it(tmp_path, place):
    write_mnist(tmp_path)
    write_text(tmp_path, f"{place}/usps.bz2")
    data = opened(tmp_path, image_size=16)
    oracle = torchvision.datasets.USPS(tmp_path / place)
    images, labels = usps(12)
    for index, (image, label) in enumerate(oracle):
        assert data.samples[30 + index].label == label == labels[index]
        found = data.read(30 + index)[..., 0]
        assert (found == images[index]).all()
        assert (np.abs(found.astype(int) - np.asarray(image)) <= 1).all()  # which cuts off where this rounds


def test_both_forms_give_the_same(tmp_path):
    for name, write in (("text", write_text), ("npz", write_npz)):
        write(write_mnist(tmp_path / name))
    one, other = (opened(tmp_path / name, image_size=16) for name in ("text", "npz"))
    assert one.samples == other.samples
    assert [one.content(i) for i in range(42)] == [other.content(i) for i in range(42)]


def test_usps_is_missing(tmp_path):
    write_mnist(tmp_path)
    found = message(tmp_path)
    assert found.startswith("Digits needs <data_dir>/USPS/usps.bz2 or usps_train.npz, but")
    assert "Pass download=true to fetch it, or put usps.bz2 and usps.t.bz2 of https://www.csie" in found


def test_mnist_is_missing(tmp_path):
    write_text(tmp_path)
    assert message(tmp_path).startswith("Digits needs <data_dir>/MNIST/raw/train-images-idx3-ubyte")
    assert "no --data_dir" in message(None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "does not hold a label and 256 values"),
        ("1 1:0 2:0\n", "does not hold a label and 256 values"),
        ("<html>\n", "does not hold a label and 256 values"),
        (text(*usps(3)) + "1 1:0\n", "does not hold a label and 256 values"),
        (text(*usps(3)).replace(" 7:", " 8:"), "does not hold a label and 256 values"),
        (text(usps(1)[0], [10]), "holds the label 10"),
        (text(usps(1)[0], [-1]), "labels below 1"),
        (re.sub(" 7:[^ ]*", " 7:-1.1", text(*usps(1))), "values outside"),
        (re.sub(" 7:[^ ]*", " 7:nan", text(*usps(1))), "values outside"),
    ],
)
def test_a_damaged_text(tmp_path, content, reason):
    write_mnist(tmp_path)
    write_text(tmp_path, content=content)
    assert reason in message(tmp_path)


def test_a_damaged_archive(tmp_path):
    write_mnist(tmp_path)
    write_text(tmp_path)
    whole = (tmp_path / "USPS/usps.bz2").read_bytes()
    for broken in (b"", b"no archive", whole[:-20], whole[:400]):
        (tmp_path / "USPS/usps.bz2").write_bytes(broken)
        assert "usps.bz2" in message(tmp_path) and message(tmp_path).endswith("Fetch it again")


def test_a_damaged_npz(tmp_path):
    write_mnist(tmp_path)
    for arrays, reason in (
        ({"images": np.zeros((3, 16, 16), np.uint8)}, "holds 3 images, but .* holds 12 labels"),
        ({"images": np.zeros((12, 16, 16))}, "images float64"),
        ({"images": np.zeros((12, 256), np.uint8)}, r"images uint8 \(12, 256\)"),
        ({"labels": np.zeros(12)}, "labels float64"),
        ({"labels": np.array([object()] * 12)}, "can't be read: Object arrays cannot be loaded"),
        ({"labels": np.full(12, 10, np.uint8)}, "holds the label 10"),
        ({"labels": np.full(12, -1)}, "holds the label -1"),
    ):
        write_npz(tmp_path, **arrays)
        with pytest.raises(UserError, match=reason):
            opened(tmp_path)
    whole = (tmp_path / "USPS/usps_train.npz").read_bytes()
    for broken in (b"", b"text", whole[:100]):
        (tmp_path / "USPS/usps_train.npz").write_bytes(broken)
        assert "usps_train.npz can't be read" in message(tmp_path)
    np.savez(tmp_path / "USPS/usps_train.npz", x=np.zeros(3))
    assert "must hold the arrays images and labels" in message(tmp_path)


def test_addresses_and_checksums_are_those_of_torchvision():
    for split, (url, name, md5) in torchvision.datasets.USPS.split_list.items():
        remote = digits.TEXT_FILES[split]
        assert (remote.urls, remote.name, remote.checksum) == ((url,), name, f"md5:{md5}")


def test_the_real_digits(real_data):
    if not (real_data / "USPS" / "usps_train.npz").is_file():
        pytest.skip(f"no USPS in {real_data}")
    data = opened(real_data)
    labels = data.labels[[sample.environment == 1 for sample in data.samples]]
    # The counts per digit of the publisher's training file.
    assert np.bincount(labels).tolist() == [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]
