"""Fixtures. No test reads or writes outside its temporary folders, but for real photographs, which it only reads."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that wants the hub says so itself
# A command leaves a signal ignored that it was started with (nohup, a shell's &), and so would the tests of signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def real_data() -> Path:
    """A folder of public image sets, beside the checkout or at $DOMAINBED_TEST_DATA."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("DOMAINBED_TEST_DATA", default))
    if not (folder / "DR").is_dir():
        pytest.skip(f"no real photographs: {folder} holds no DR. Set DOMAINBED_TEST_DATA to run this test")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images land in a folder of this test run, not in the user's cache."""
    os.environ["DOMAINBED_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models are slower on several threads, and workers of a parallel run would fight for the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    """A plug-in of one test is unknown to the next."""
    from domainbed.registry import ALGORITHMS, DATASETS

    before = [(one, dict(one._plugins), dict(one._classes)) for one in (ALGORITHMS, DATASETS)]
    yield
    for one, plugins, classes in before:
        announced = one._plugins.keys() - plugins.keys()
        one._plugins = plugins
        one._classes = {name: cls for name, cls in one._classes.items() if name in classes or name not in announced}


TINY = ["model=test_resnet", "pretrained=false", "image_size=16", "--precision", "float32", "--device", "cpu"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three cameras with 12 images of each of two grades, told apart by colour; the cameras differ in brightness."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for camera, brightness in enumerate((60, 100, 140)):
        for grade in (0, 2):
            folder = tmp_path / "photographs" / f"camera{camera}" / str(grade)
            folder.mkdir(parents=True)
            for index in range(12):
                pixels = generator.integers(0, 40, (20, 20, 3)) + brightness
                pixels[..., 0] += 30 * grade
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
    return tmp_path / "photographs"


@pytest.fixture
def photographs_with_masks(photographs: Path) -> Path:
    """A manifest of the photographs with masks of two kinds that overlap: a disc, and what is red."""
    import numpy as np
    from PIL import Image

    rows = ["path,environment,label,mask_disc,mask_red"]
    down, across = np.indices((20, 20))
    for number, path in enumerate(sorted(photographs.glob("camera*/*/*.png"))):
        pixels = np.array(Image.open(path))
        disc = (down - 10) ** 2 + (across - 5 - number % 10) ** 2 < 16
        pixels[disc] = 255 - pixels[disc]
        Image.fromarray(pixels).save(path)
        cells = [path.relative_to(photographs.parent).as_posix(), *path.parts[-3:-1]]
        for kind, mask in (("disc", disc), ("red", pixels[..., 0] > pixels[..., 1])):
            target = photographs.parent / "masks" / f"{number}_{kind}.png"
            target.parent.mkdir(exist_ok=True)
            Image.fromarray(mask).save(target)
            cells.append(target.relative_to(photographs.parent).as_posix())
        rows.append(",".join(cells))
    (photographs.parent / "masks.csv").write_text("\n".join(rows) + "\n")
    return photographs.parent / "masks.csv"


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the training script in a folder of its own: train("name", "--steps", 3) -> (status, stdout, stderr)."""
    from domainbed.cli.train import main
    from domainbed.registry import ALGORITHMS

    (tmp_path / "work").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work" / "config.yaml").write_text("")  # not the one of the checkout

    def run(*arguments: object, script: str = "train_all", tiny: bool = True) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(script, [*map(str, arguments), *(one for one in TINY if tiny and _free(one, arguments))])
        finally:
            captured = capfd.readouterr()
        return status, captured.out, captured.err

    def _has_backbone(arguments: tuple[object, ...]) -> bool:
        texts = [*map(str, arguments)]
        name = texts[texts.index("--algorithm") + 1] if "--algorithm" in texts else "VAE_DG"
        return name not in ALGORITHMS or "model" in ALGORITHMS[name].HParams.model_fields

    def _free(token: str, arguments: tuple[object, ...]) -> bool:
        if "=" not in token:
            return "--resume" not in arguments and not {"--precision", "--device"} & set(map(str, arguments))
        known = "--resume" not in arguments
        if token.startswith(("model=", "pretrained=")) and not _has_backbone(arguments):
            return False
        return known and not any(str(one).startswith(token.split("=")[0] + "=") for one in arguments)

    return run
