"""`python -m domainbed pack`: what it leaves, prints, finds and deletes."""

import json
from pathlib import Path

import pytest

from domainbed import cli
from domainbed.datasets.packed import Store


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOMAINBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(*words: object) -> int:
    return cli.main(["pack", *map(str, words)])


def test_a_run_finds_what_was_packed_before(train, photographs: Path, cache: Path, capfd) -> None:
    for index in range(30):
        (photographs / "camera2" / f"{index}.dcm").touch()
    assert pack("--data_dir", photographs, "image_size=16") == 0
    out = capfd.readouterr().out
    assert "WARNING: environment 'camera2': not read: 30 .dcm, such as 'camera2/" in out
    (store,) = Store.all(cache)
    count = len(list(photographs.rglob("*.png")))
    assert len(store.records()) == count and f"decoded {count} images" in out
    assert f"{store.folder}: {count} images, 16 px, crop_retina, resize, " in out
    status, out, _ = train("after", "--data_dir", photographs, "--debug", "batch_size=2", "--cache_dir", cache)
    assert status == 0 and f"found {count} decoded images" in out
    assert len(Store.all(cache)) == 1


def test_check_and_clear(photographs: Path, cache: Path, capfd) -> None:
    for size in (16, 24):
        assert pack("--data_dir", photographs, f"image_size={size}") == 0
    small, large = sorted(Store.all(cache), key=lambda store: store.about["image_size"])
    capfd.readouterr()
    assert pack("--check", "--json") == 0
    found = json.loads(capfd.readouterr().out)["checked"]
    count = len(small.records())
    assert [(one["images"], one["damaged"]) for one in found] == 2 * [(count, 0)]
    assert sum(one["bytes"] for one in found) == sum(
        path.stat().st_size for path in cache.glob("*/*") if path.is_file()
    )

    with open(small.folder / "rows.u8", "r+b") as rows:
        before = rows.read(4)
        rows.seek(0)
        rows.write(bytes(byte ^ 255 for byte in before))
    assert pack("--check") == 1
    out = capfd.readouterr().out
    assert f"{count - 1} images, 1 damaged, 16 px" in out and f"{count} images, 0 damaged, 24 px" in out
    assert "the next run decodes them again" in out

    assert pack("--clear", "--data_dir", photographs, "image_size=48") == 0
    assert pack("--clear", "image_size=24") == 0, "of another data set"
    assert large.folder.exists() and small.folder.exists()
    assert pack("--clear", "--data_dir", photographs, "image_size=24") == 0
    assert not large.folder.exists() and small.folder.exists()
    assert pack("--clear") == 0
    assert Store.all(cache) == [] and "deleted" in capfd.readouterr().out
    assert pack("--check") == 0 and "no decoded images in" in capfd.readouterr().out


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text.replace("16", "17", 1)], ids=["cut", "flipped"])
def test_a_pack_of_which_nobody_knows_what_it_holds(damage, photographs: Path, cache: Path, capfd) -> None:
    assert pack("--data_dir", photographs, "image_size=16") == 0
    (about,) = cache.glob("*/about.json")
    before = about.read_text()
    about.write_text(damage(before))
    capfd.readouterr()
    assert pack("--check") == 1
    out = capfd.readouterr().out
    assert f"{about.parent}: about.json is damaged" in out and "no decoded images" not in out
    assert pack("--data_dir", photographs, "image_size=16") == 0
    out = capfd.readouterr().out
    assert "is written again" in out and "decoded 0" not in out and "found 72 decoded images" in out
    assert about.read_text() == before and pack("--check") == 0
    about.write_text(damage(before))
    assert pack("--clear") == 0 and list(cache.glob("*/rows.u8")) == []


def test_what_is_no_pack_is_left_alone(photographs: Path, cache: Path, capfd) -> None:
    assert pack("--data_dir", photographs, "image_size=16") == 0
    others = [cache / ".git" / "index", cache / "mesa" / "index", cache / "other-0123456789abcdef" / "rows.u8"]
    for path in (*others, others[-1].with_name("notes.txt")):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert pack("--check") == 0
    half = cache / "DR-00112233445566ff" / "about.json"  # killed before it had any row
    half.parent.mkdir()
    half.write_text("{}")
    assert pack("--clear") == 0 and Store.all(cache) == [] and not half.parent.exists()
    assert all(path.read_text() == "mine" for path in others)


def test_a_fault_that_can_not_be_mended_costs_nothing(photographs: Path, cache: Path, capfd, monkeypatch) -> None:
    assert pack("--data_dir", photographs, "image_size=16") == 0
    (about,) = cache.glob("*/about.json")
    about.write_text("")

    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Store, "_lock_file", refused)
    capfd.readouterr()
    assert pack("--data_dir", photographs, "image_size=16") == 0
    assert "found 72 decoded images" in capfd.readouterr().out and about.read_text() == ""


def test_rows_that_are_lost_are_said_once(photographs: Path, cache: Path, capfd) -> None:
    assert pack("--data_dir", photographs, "image_size=16") == 0
    (index,) = cache.glob("*/index")
    with index.open("ab") as file:
        file.write(b"x" * 24 * 4)  # four records without rows
    for times in (1, 0):
        capfd.readouterr()
        assert pack("--data_dir", photographs, "image_size=16") == 0
        out = capfd.readouterr().out
        assert out.count("4 images are not there whole") == times and "found 72 decoded images" in out


def test_a_subset_is_packed_as_a_run_takes_it(train, photographs: Path, cache: Path, capfd) -> None:
    assert pack("--data_dir", photographs, "image_size=16", "subset_size=10") == 0
    assert "decoded 30 images" in capfd.readouterr().out
    words = ["--data_dir", photographs, "--debug", "batch_size=2", "--subset_size", 10, "--cache_dir", cache]
    status, out, _ = train("subset", *words)
    assert status == 0 and "found 30 decoded images" in out and "decoded 0" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DR2/"], "takes no name, but 'DR2/' is given"),
        (["--check", "--clear"], "exclude each other"),
        (["--data_dir", "nowhere"], "nowhere"),
        (["image_sise=3"], "image_size"),
    ],
)
def test_mistakes_are_one_message(words: list[str], message: str, cache: Path, capfd) -> None:
    assert pack(*words) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and message in err and "Traceback" not in err


def test_images_that_cant_be_read_are_named(photographs: Path, cache: Path, capfd) -> None:
    victim = sorted(photographs.rglob("*.png"))[0]
    victim.write_bytes(b"no image")
    assert pack("--data_dir", photographs) == 2
    assert victim.name in capfd.readouterr().err
    assert pack("--data_dir", photographs, "--skip_unreadable") == 0
    assert victim.name in capfd.readouterr().out
