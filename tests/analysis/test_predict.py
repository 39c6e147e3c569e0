"""What `predict` writes for image files: the model's own answers for pixels as in training, and what can go wrong."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CLASSES, saved

from domainbed.analysis import export
from domainbed.analysis.exported import reader
from domainbed.analysis.predict import Found, find_images, make_rows, open_model, predict
from domainbed.datasets.folder import Folder
from domainbed.datasets.images import read_image
from domainbed.datasets.manifest import Manifest
from domainbed.datasets.preprocess import Preprocess
from domainbed.datasets.tcell import TCell
from domainbed.errors import UserError


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory):
    """A model that predicts and reconstructs, and its file."""
    return saved("VAE_DG", tmp_path_factory.mktemp("classifier"))


def photograph(height: int = 40, width: int = 60) -> np.ndarray:
    down, across = np.mgrid[:height, :width]
    return np.stack([4 * down, 255 - 4 * across, down + across], 2).clip(0, 255).astype(np.uint8)


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """One photograph in every form in which an image file comes, in <environment>/<class>/."""
    folder = tmp_path / "kinds" / "camera" / "0"
    folder.mkdir(parents=True)
    image = Image.fromarray(photograph())
    image.save(folder / "rgb.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("1").save(folder / "bits.png")
    image.convert("P").save(folder / "palette.gif")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    transparent = image.convert("RGBA")
    transparent.putalpha(128)
    transparent.save(folder / "rgba.png")
    Image.fromarray(photograph()[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    Image.fromarray(photograph(7, 90)).save(folder / "thin.bmp")
    return tmp_path / "kinds"


@pytest.mark.parametrize("preprocess", [["resize"], ["crop_retina", "gray_ntsc", "clahe", "resize"]])
def test_any_file_is_read_as_the_data_set_reads_it(kinds: Path, preprocess: list[str], tmp_path: Path) -> None:
    dataset = Folder(kinds, Folder.HParams(image_size=24, preprocess=preprocess))
    _, path = saved("AE", tmp_path, size=24, data={"preprocess": preprocess})
    read = reader(open_model(path).about)
    assert len(dataset.samples) == 9
    for index, sample in enumerate(dataset.samples):
        assert np.array_equal(read(kinds / sample.name), dataset.read(index)), sample.name


def test_data_sets_that_read_in_their_own_way(kinds: Path, tmp_path: Path) -> None:
    cells = tmp_path / "cells" / "donor1" / "activated"
    cells.mkdir(parents=True)
    for name, size in (("CD8_1_act_1_1_1", (9, 14)), ("CD8_1_act_1_1_2", (70, 31))):
        Image.fromarray(photograph(*size)).save(cells / f"{name}.png")
    dataset = TCell(tmp_path / "cells", TCell.HParams())
    for index, sample in enumerate(dataset.samples):
        new = TCell.read_new(tmp_path / "cells" / sample.name, dataset.hparams)
        assert np.array_equal(new, dataset.read(index)) and new.shape == (48, 48, 1)
    with pytest.raises(UserError, match="made of two cells"):
        TCell.read_new(cells / "CD8_1_act_1_1_1.png", TCell.HParams(channels="overlap"))
    large = tmp_path / "large.jpg"
    Image.fromarray(photograph(640, 960)).save(large)
    (tmp_path / "table.csv").write_text("path,environment\nlarge.jpg,a\n")
    table = Manifest(tmp_path / "table.csv", Manifest.HParams(image_size=16))
    assert np.array_equal(Manifest.read_new(large, table.hparams), table.read(0))
    assert not np.array_equal(Manifest.read_new(large, table.hparams, with_masks=True), table.read(0))  # decoded whole


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_holds_the_models_own_answers(classifier, kinds: Path, tmp_path: Path) -> None:
    algorithm, path = classifier
    model = open_model(path, device="cpu")
    images = find_images([kinds])
    found = predict(model, images, tmp_path / "out.csv", batch_size=4, pictures=["reconstructions"])
    rows = rows_of(tmp_path / "out.csv")
    assert list(rows[0]) == ["image", "prediction", *(f"probability_{name}" for name in CLASSES), "mse", "psnr"]
    assert [row["image"] for row in rows] == [str(image.path) for image in images]
    for row in rows:
        pixels = Image.fromarray(read_image(row["image"])).resize((16, 16), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(pixels)).movedim(-1, 0)[None] / 255
        with torch.no_grad():
            truth, again = algorithm.predict(x).softmax(1)[0], algorithm.reconstruct(x)
        values = [float(row[f"probability_{name}"]) for name in CLASSES]
        assert values == pytest.approx(truth.tolist(), abs=1e-5) and row["prediction"] == CLASSES[truth.argmax()]
        mse = (again - x).square().mean().item()
        assert float(row["mse"]) == pytest.approx(mse, rel=1e-3)
        assert float(row["psnr"]) == pytest.approx(-10 * np.log10(mse), rel=1e-3)
        place = Path(row["image"]).relative_to(kinds).with_suffix(".png")
        written = np.asarray(Image.open(tmp_path / "out" / "reconstructions" / place))
        assert np.abs(written / 255 - again[0].movedim(0, -1).numpy()).max() <= 0.5 / 255 + 1e-4
    counted = {name: one["images"] for name, one in found["summary"]["predictions"].items()}
    assert sum(counted.values()) == 9 and counted == {
        name: sum(row["prediction"] == name for row in rows) for name in counted
    }
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["finished"] and record["images"] == 9 and record["model"]["step"] == 1


def test_an_exported_file_answers_alike(classifier, kinds: Path, tmp_path: Path) -> None:
    _, path = classifier
    export.analyse(path, tmp_path, formats=["torch.export"])
    with pytest.raises(UserError, match="can run any code.*--trust"):
        open_model(tmp_path / "model.pt2")
    images = find_images([kinds])
    predict(open_model(path, device="cpu"), images, tmp_path / "run.csv")
    predict(open_model(tmp_path / "model.pt2", trust=True), images, tmp_path / "file.csv")
    for one, other in zip(rows_of(tmp_path / "run.csv"), rows_of(tmp_path / "file.csv"), strict=True):
        assert one["prediction"] == other["prediction"]
        for key in list(one)[2:]:
            assert float(one[key]) == pytest.approx(float(other[key]), abs=1e-4)
    with pytest.raises(UserError, match="runs on the processor in float32"):
        open_model(tmp_path / "model.pt2", trust=True, precision="bf16")
    with pytest.raises(UserError, match="holds the model of seed=0, not of seed=3"):
        open_model(tmp_path / "model.pt2", trust=True, seed=3)


def test_files_that_cannot_be_read_are_listed(classifier, kinds: Path, tmp_path: Path) -> None:
    model = open_model(classifier[1], device="cpu")
    (kinds / "camera" / "0" / "empty.png").touch()
    (kinds / "camera" / "notes.txt").write_text("no image")  # of no suffix of an image: not even tried
    found = predict(model, find_images([kinds]), tmp_path / "out.csv")
    assert found["images"] == 9 and [reason for _, reason in found["unreadable"]] == ["an empty file"]
    assert json.loads((tmp_path / "out.json").read_text())["unreadable"] == found["unreadable"]
    bad = find_images([kinds / "camera" / "0" / "empty.png", kinds / "camera" / "notes.txt"])
    with pytest.raises(UserError, match="none of the images .2. can be read(.|\n)*an empty file(.|\n)*not a JPEG"):
        predict(model, bad, tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists() and not (tmp_path / "none.json").exists()


def test_what_is_interrupted_is_gone_on_with(classifier, kinds: Path, tmp_path: Path) -> None:
    model, images = open_model(classifier[1], device="cpu"), find_images([kinds])
    predict(model, images, tmp_path / "whole.csv", batch_size=4)
    calls = []

    def failing(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return model.answer(pixels)

    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        predict(replace(model, answer=failing), images, out, batch_size=4)
    assert len(rows_of(out)) == 4 and not json.loads((tmp_path / "out.json").read_text())["finished"]
    with open(out, "a") as file:
        file.write("/half/a/row.png,mi")  # a kill while a row is written
    with pytest.raises(UserError, match="exists already. Go on with it by --resume"):
        predict(model, images, out)
    with pytest.raises(UserError, match="made by another model"):
        predict(replace(model, digest="another"), images, out, resume=True)
    predict(model, images, out, batch_size=4, resume=True)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert predict(model, images, out, resume=True)["images"] == 9  # nothing is left to do


def test_which_images_are_found(kinds: Path, tmp_path: Path) -> None:
    folder = kinds / "camera" / "0"
    Image.fromarray(photograph()).save(folder / "rgb.jpg")
    found = {image.path.name: image.place for image in find_images([kinds, folder / "rgb.png"])}
    assert len(found) == 10 and found["cmyk.jpg"] == "camera/0/cmyk"
    assert found["rgb.png"] == "camera/0/rgb.png" and found["rgb.jpg"] == "camera/0/rgb.jpg"  # else one file for two
    (single,) = find_images([folder / "grey.png"])
    assert single.place == "grey"
    with pytest.raises(UserError, match="there is no .*gone"):
        find_images([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image is in .*empty"):
        find_images([tmp_path / "empty"])


def test_answers_that_are_not_finite_have_empty_cells(classifier) -> None:
    about = open_model(classifier[1], device="cpu").about
    logits = torch.tensor([[1.0, 2.0, 0.0], [torch.nan, 0.0, 0.0]])
    rows, broken = make_rows(about, torch.zeros(2, 3, 16, 16, dtype=torch.uint8), {"logits": logits})
    assert rows[0][0] == "none" and rows[1] == [""] * 4 and broken == [1]


@pytest.mark.parametrize("name", ["CVAE", "CodePrior"])
def test_a_model_that_predicts_nothing_says_what_it_can(name: str, tmp_path: Path) -> None:
    _, path = saved(name, tmp_path)
    with pytest.raises(UserError, match=f"{name} (gives mean, logvar for an image|answers nothing).*traverse.*report"):
        open_model(path)


def segmenter(form: str, folder: Path, preprocess: list[str]):
    """A model that marks red pixels as class or kind 1, and kind 0, if they may overlap, what is bright."""
    _, path = saved("UNet", folder, size=64, data={"preprocess": preprocess}, output=form)
    model = open_model(path, device="cpu")

    def answer(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        red = (pixels[:, 0] > 150) & (pixels[:, 1] < 100)
        bright = pixels.amax(1) > 40
        planes = [~red if form == "softmax" else bright, red, torch.zeros_like(red)]
        return {"mask_logits": torch.stack(planes, 1).float() - 0.5}

    return replace(model, answer=answer)


def eye() -> tuple[np.ndarray, np.ndarray]:
    """A dim disc on black, off the centre of a wide picture, with a red spot in it; and where that is."""
    down, across = np.mgrid[:200, :320]
    pixels = np.zeros((200, 320, 3), np.uint8)
    pixels[(down - 100) ** 2 + (across - 190) ** 2 < 90**2] = 120
    spot = (down - 70) ** 2 + (across - 220) ** 2 < 25**2
    pixels[spot] = (220, 30, 30)
    return pixels, spot


@pytest.mark.parametrize("preprocess", [["resize"], ["crop_retina", "resize"], ["resize", "crop_retina"]])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_masks_lie_on_the_image_that_they_are_of(form: str, preprocess: list[str], tmp_path: Path) -> None:
    pixels, spot = eye()
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    model = segmenter(form, tmp_path, preprocess)
    found = predict(model, find_images([tmp_path / "images"]), tmp_path / "out.csv", pictures=["masks"])
    folder = tmp_path / "out" / "masks"
    file = folder / "a.png" if form == "softmax" else folder / "none" / "a.png"  # the name of class 1
    with Image.open(file) as mask:
        values = np.asarray(mask)
        colour = tuple(mask.getpalette()[3:6])
        assert mask.mode == "P"
    assert values.shape == spot.shape and {*np.unique(values)} == {0, 1}
    overlap = (values.astype(bool) & spot).sum() / (values.astype(bool) | spot).sum()
    assert overlap > 0.9
    described = found["masks"]["values"]
    assert (described["1"]["class"] if form == "softmax" else [*described]) in ("none", CLASSES)
    assert colour == tuple((described["1"] if form == "softmax" else described["none"])["colour"])
    (row,) = rows_of(tmp_path / "out.csv")
    small = Preprocess(preprocess, 64)(pixels)[0]
    share = ((small[..., 0] > 150) & (small[..., 1] < 100)).mean()
    assert float(row["share_none"]) == pytest.approx(share, abs=1e-6)
    if form == "sigmoid":
        assert float(row["share_mild"]) > float(row["share_none"]) > 0  # they overlap
        assert {path.name for path in folder.iterdir()} == {*CLASSES}
    else:
        assert sum(float(row[f"share_{name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-5)


def test_pictures_that_a_model_does_not_give(classifier, tmp_path: Path) -> None:
    model = open_model(classifier[1], device="cpu")
    with pytest.raises(UserError, match="VAE_DG gives no masks. It gives: logits, reconstruction"):
        predict(model, [Found(Path("a.png"), "a")], tmp_path / "out.csv", pictures=["masks"])


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", "..", ""])
def test_a_file_does_not_choose_where_masks_are_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "eye").mkdir()
    Image.fromarray(photograph()).save(tmp_path / "eye" / "a.png")
    model = segmenter("sigmoid", tmp_path / "model", ["resize"])
    model = replace(model, about=replace(model.about, classes=[name, *model.about.classes[1:]]))
    with pytest.raises(UserError, match="names no folder"):
        predict(model, find_images([tmp_path / "eye"]), tmp_path / "out" / "t.csv", pictures=["masks"])
    assert not (tmp_path / "out").exists()


def test_a_file_that_names_other_classes_than_its_model_answers_is_refused(classifier, tmp_path: Path) -> None:
    (tmp_path / "eye").mkdir()
    Image.fromarray(photograph()).save(tmp_path / "eye" / "a.png")
    model = open_model(classifier[1], device="cpu")
    model = replace(model, about=replace(model.about, classes=model.about.classes[:1]))
    with pytest.raises(UserError, match=r"answers \d classes, but its file names 1"):
        predict(model, find_images([tmp_path / "eye"]), tmp_path / "t.csv")
