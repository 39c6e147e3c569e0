"""CIFAR in the publisher's binary version, in folders and in a zip; torchvision as oracle; and every damage."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from domainbed.datasets import cifar
from domainbed.datasets.cifar import CIFAR10, CIFAR100
from domainbed.datasets.download import RemoteFile
from domainbed.datasets.packed import pack
from domainbed.errors import UserError
from domainbed.registry import DATASETS

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def batch(seed, number, classes=10):
    """Labels (N,) and pixels (N, 3072), as both versions of the publisher store them: red plane, green plane, blue."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, classes, number), generator.integers(0, 256, (number, 3072), dtype=np.uint8)


def write_10(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for seed, name in enumerate(BATCHES):
        labels, pixels = batch(seed, 4 + seed)
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels, pixels]).astype(np.uint8).tobytes())
    return folder


def write_100(root):
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for seed, (name, number) in enumerate((("train", 20), ("test", 8))):
        fine, pixels = batch(seed, number, 100)
        coarse = fine // 5
        (folder / f"{name}.bin").write_bytes(np.column_stack([coarse, fine, pixels]).astype(np.uint8).tobytes())
    return folder


def opened(root, cls=CIFAR10, **hparams):
    return cls(root, cls.HParams(**hparams))


def message(root, cls=CIFAR10, **hparams):
    with pytest.raises(UserError) as error:
        opened(root, cls, **hparams)
    assert "\n" not in str(error.value)
    return str(error.value)


class Small10(torchvision.datasets.CIFAR10):
    """torchvision's reader of the Python version, for files whose checksums are not those of the publisher."""

    train_list = [[name, None] for name in BATCHES[:5]]
    test_list = [[BATCHES[5], None]]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}


class Small100(torchvision.datasets.CIFAR100):
    train_list, test_list = [["train", None]], [["test", None]]
    meta = {"filename": "meta", "key": "fine_label_names", "md5": None}


def agrees(data, oracles):
    index = 0
    for split, oracle in oracles.items():
        for number, (image, label) in enumerate(oracle):
            sample = data.samples[index]
            assert (sample.name, sample.label, sample.split) == (f"{split}/{number:05}", label, split)
            assert (data.read(index) == np.asarray(image)).all()
            assert data.content(index) == hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
            index += 1
    assert index == len(data.samples)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar10_is_that_of_torchvision(tmp_path, below):
    write_10(tmp_path / "bin")
    folder = tmp_path / "py" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, name in enumerate(BATCHES):
        labels, pixels = batch(seed, 4 + seed)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10.class_names)}))
    data = opened(tmp_path / "bin" / below)
    assert (data.environments, data.num_classes, data.ordinal) == (["CIFAR10"], 10, False)
    assert data.input_shape == (3, 32, 32) and DATASETS["CIFAR10"] is CIFAR10
    agrees(data, {"train": Small10(tmp_path / "py"), "test": Small10(tmp_path / "py", train=False)})
    assert opened(tmp_path / "bin", preprocess=["gray_ntsc"], image_size=16).read(0).shape == (16, 16, 1)


def test_cifar100_is_that_of_torchvision(tmp_path):
    write_100(tmp_path)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for seed, (name, number) in enumerate((("train", 20), ("test", 8))):
        fine, pixels = batch(seed, number, 100)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "fine_labels": fine.tolist()}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(CIFAR100.class_names)}))
    data = opened(tmp_path, CIFAR100)
    assert data.environments == ["CIFAR100"] and data.num_classes == len(set(data.classes)) == 100
    assert data.classes == sorted(data.classes)  # the publisher's order of fine labels is that of the alphabet
    agrees(data, {"train": Small100(tmp_path), "test": Small100(tmp_path, train=False)})


def images(number=30):
    generator = np.random.default_rng(5)
    found = {}
    for index in range(number):
        split, label = ("train", "test")[index % 3 == 0], CIFAR10.class_names[index % 10]
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        found[f"{split}/{label}/{index:04}.png"] = file.getvalue()
    return found


def write_zip(path, members, above="cifar10/"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(above + name, content)
    return path


def write_folder(root, members):
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("form", ["folder", "folder above", "zip", "zip's folder", "bare zip"])
def test_images_in_folders_and_in_a_zip(tmp_path, form):
    members = images()
    above = ""
    if form.startswith("folder"):
        root = write_folder(tmp_path / "cifar10", members)
        root = tmp_path if form == "folder above" else root
    else:
        above = "" if form == "bare zip" else "cifar10/"
        root = write_zip(tmp_path / "cifar10.zip", members, above)
        root = tmp_path if form == "zip's folder" else root
    data = opened(root)
    assert [sample.name.removeprefix(above) for sample in data.samples] == sorted(members)
    for index, name in enumerate(sorted(members)):
        split, label, _ = name.split("/")
        sample = data.samples[index]
        assert (sample.split, data.classes[sample.label]) == (split, label)
        assert (data.read(index) == np.asarray(Image.open(io.BytesIO(members[name])))).all()
        assert data.content(index) == hashlib.sha256(members[name]).hexdigest()


def test_a_zip_is_packed_by_several_threads(tmp_path):
    members = images()
    data = opened(write_zip(tmp_path / "cifar10.zip", members))
    found = pack(data, range(len(members)), tmp_path / "cache", 8, lambda line: None)
    assert not found.unreadable
    for row, name in zip(found.rows, sorted(members), strict=True):
        assert (row == np.asarray(Image.open(io.BytesIO(members[name])))).all()


def test_what_is_no_image_is_passed_over(tmp_path):
    extra = {"train/cat/notes.txt": b"x", "__MACOSX/train/cat/._1.png": b"x", "train/cat/.hidden.png": b"x"}
    data = opened(write_zip(tmp_path / "x.zip", images() | extra))
    assert len(data.samples) == len(images())


def test_training_in_folders_alone(tmp_path):
    members = {name: content for name, content in images().items() if name.startswith("train")}
    assert Counter(sample.split for sample in opened(write_folder(tmp_path, members)).samples) == {"train": 20}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("train/cta/1.png", "'cta' is no class of CIFAR10: did you mean 'cat'?"),
        ("train/1.png", "has images outside such folders: .*train/1.png"),
        ("train/cat/more/1.png", "has images outside such folders: .*train/cat/more/1.png"),
    ],
)
def test_images_in_the_wrong_place(tmp_path, form, name, reason):
    members = images() | {name: b""}
    root = write_folder(tmp_path, members) if form == "folder" else write_zip(tmp_path / "cifar10.zip", members)
    with pytest.raises(UserError, match=reason):
        opened(root)


def test_a_damaged_zip(tmp_path):
    path = write_zip(tmp_path / "cifar10.zip", images())
    for broken in (b"", b"text", path.read_bytes()[:500]):
        path.write_bytes(broken)
        assert message(tmp_path) == f"{path} can't be read: File is not a zip file. Fetch it again"
    write_zip(path, {"readme.txt": b""})
    assert f"but '{path}' has no image" in message(path)


def test_nothing_there(tmp_path):
    text = message(tmp_path)
    assert text.startswith("CIFAR10 needs <data_dir>/cifar-10-batches-bin/data_batch_1.bin, or images in <data_dir>/")
    assert f"but '{tmp_path}' holds neither. Pass download=true to fetch the former, or unpack https://www.cs" in text
    assert "there is no" in message(tmp_path / "gone") and "no --data_dir" in message(None)
    (tmp_path / "x.tar").touch()
    assert "is a file, and no .zip" in message(tmp_path / "x.tar")
    assert "cifar-100-binary/train.bin" in message(tmp_path, CIFAR100)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize(
    ("cls", "name"), [(CIFAR10, "cifar-10-batches-py/data_batch_1"), (CIFAR10, "test_batch"), (CIFAR100, "train")]
)
def test_pickles_are_refused_unread(tmp_path, monkeypatch, cls, name):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, (tmp_path / name).parent / "data_batch_1"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(Bomb()))
    text = message(tmp_path, cls)
    assert "holds the Python version: pickles, which can run any code and are not read" in text
    assert f"unpack https://www.cs.toronto.edu/~kriz/{cls.archive.name} in --data_dir" in text
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_batch(tmp_path):
    path = write_10(tmp_path) / "data_batch_2.bin"
    whole = path.read_bytes()
    for keep in (0, 1, len(whole) - 1):
        path.write_bytes(whole[:keep])
        text = message(tmp_path)
        assert f"{path} has {keep} bytes, which are no records of 3073: it is not whole. Unpack https://" in text
    path.unlink()
    assert message(tmp_path).startswith(f"{path}: No such file or directory. Unpack https://")


def test_a_label_that_is_no_class(tmp_path):
    path = write_10(tmp_path) / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    assert "holds the label 10 in its test files; CIFAR10 has 10 classes" in message(tmp_path)


def test_the_wrong_cifar(tmp_path):
    write_100(tmp_path)
    assert "holds neither" in message(tmp_path)


def test_the_binary_version_is_fetched_on_request(tmp_path, monkeypatch):
    write_10(tmp_path / "made")
    with tarfile.open(tmp_path / "archive", "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    content = (tmp_path / "archive").read_bytes()
    asked = []

    def fetch(remote, folder):
        asked.append(remote.name)
        folder.mkdir(exist_ok=True)
        (folder / remote.name).write_bytes(content)
        return folder / remote.name

    monkeypatch.setattr(cifar, "fetch", fetch)  # fetching itself is tested with it
    for _ in range(2):
        assert len(opened(tmp_path / "data", download=True).samples) == 39
    assert asked == ["cifar-10-binary.tar.gz"]
    assert len(opened(tmp_path / "data").samples) == 39


@pytest.mark.parametrize("form", ["folders", "folders above", "zip"])
def test_nothing_is_fetched_where_something_is_there(tmp_path, monkeypatch, form):
    if form == "zip":
        write_zip(tmp_path / "cifar10.zip", images())
    else:
        write_folder(tmp_path / "cifar10" if form == "folders above" else tmp_path, images())
    monkeypatch.setattr(cifar, "fetch", lambda remote, folder: pytest.fail(f"fetches {remote.name}"))
    assert opened(tmp_path, download=True).samples == opened(tmp_path).samples


def test_other_folders_in_the_place_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "fetch", lambda remote, folder: pytest.fail(f"fetches {remote.name}"))
    (tmp_path / "train").mkdir()
    assert f"'{tmp_path}' has no image. Pass download=true to fetch" in message(tmp_path)
    assert f"'{tmp_path}' has no image. Give a folder without these to fetch" in message(tmp_path, download=True)


def test_addresses_lie_beside_those_of_torchvision():
    for cls, oracle in ((CIFAR10, torchvision.datasets.CIFAR10), (CIFAR100, torchvision.datasets.CIFAR100)):
        assert isinstance(cls.archive, RemoteFile) and len(cls.archive.checksum) == len("sha256:") + 64
        assert cls.archive.urls == (oracle.url.replace("python", "binary"),)
        assert cls.pickled == (oracle.base_folder, oracle.train_list[0][0])


def test_the_real_zip(real_data):
    if not (real_data / "cifar10.zip").is_file():
        pytest.skip(f"no cifar10.zip in {real_data}")
    data = opened(real_data)
    counts = Counter((sample.split, sample.label) for sample in data.samples)
    assert {counts["train", label] for label in range(10)} == {5000}
    assert {sample.split for sample in data.samples} == {"train", "test"}
    assert data.read(0).shape == data.read(len(data.samples) - 1).shape == (32, 32, 3)
