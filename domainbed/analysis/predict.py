"""What a model answers for image files: a table with a row per image, and reconstructions or masks as files.

    model = open_model("results/train_output/DR/full_training", target="idrid")     # or model.onnx, model.pt2
    found = predict(model, find_images(["photographs"]), Path("predictions.csv"))

Images are decoded and preprocessed as those of the run were (`Dataset.read_new`); the run's own images are not needed.
Rows are written while the model answers, so that what is done stays done: `resume` goes on behind it. Beside the table,
a JSON file of the same name says which model answered, what the values of a mask mean, and what could not be read.
"""

import csv
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from domainbed import checkpoint, metrics
from domainbed.analysis.exported import About, Graph, about_model, check_choice, outputs_of, read_about, reader, runner
from domainbed.datasets.images import UnreadableImage, read_image
from domainbed.datasets.listing import PassedOver, images_below
from domainbed.datasets.preprocess import Preprocess
from domainbed.datasets.threads import in_threads
from domainbed.engine import Engine
from domainbed.errors import UserError, explain_os_errors
from domainbed.evaluator import NOISE_SEED
from domainbed.files import write_atomically
from domainbed.machine import default_num_workers
from domainbed.paths import folder_name, user_path
from domainbed.reconstructions import COLOURS

#: Of `exported.OUTPUTS`, what a row is made of.
ANSWERS = ("logits", "reconstruction", "mask_logits")
PICTURES = {"reconstructions": "reconstruction", "masks": "mask_logits"}
Reader = Callable[[Path], np.ndarray]


@dataclass
class Model:
    """A model that answers for images.

    Attributes:
        about: where it comes from, and what its images are.
        digest: SHA-256 of the file of its weights.
        outputs: of `ANSWERS`, those that it gives.
        read: from an image file to uint8 (H, W, C).
        answer: from uint8 (B, C, H, W) to the outputs by name, float32 on the CPU.
        batch_size: images that are answered at once, where nobody says otherwise.
    """

    about: About
    digest: str
    outputs: list[str]
    read: Reader
    answer: Callable[[Tensor], dict[str, Tensor]]
    batch_size: int


@dataclass(frozen=True)
class Found:
    """An image file: its path, as it stands in the table, and its place below `images_out`, without suffix."""

    path: Path
    place: str


def open_model(
    path: str | Path,
    *,
    target: str | None = None,
    seed: int | None = None,
    checkpoint_name: str | None = None,
    plugin: Sequence[str | Path] = (),
    device: str = "auto",
    precision: str | None = None,
    trust: bool = False,
) -> Model:
    """Open a run, or a file that `export` wrote.

    Args:
        path: the run's folder, or model.safetensors, model.onnx or model.pt2. The latter two run on the processor.
        target, seed, checkpoint_name, plugin: of `checkpoint.load_with_meta`.
        device, precision: of the engine; by default the machine's and the run's.
        trust: whether a .pt2 file may be opened, which can run any code.

    Raises:
        UserError: there is no such model, it is broken or of another version, or it predicts nothing.
    """
    path = user_path(path)
    if path.suffix in (".onnx", ".pt2"):
        if device == "cuda" or precision == "bf16":
            raise UserError(f"{path.name} runs on the processor in float32. Give the run's folder for other ways")
        if path.suffix == ".pt2" and path.is_file() and not trust:
            raise UserError(
                f"opening {path} can run any code that somebody put into it. If it is yours, or from somebody you "
                "trust, say --trust; an .onnx file needs no trust"
            )
        about = read_about(path)
        for name, asked, found in (("target", target, about.target), ("seed", seed, about.seed)):
            if asked is not None and asked != found:
                raise UserError(f"{path} holds the model of {name}={found!r}, not of {name}={asked!r}")
        check_choice(path, about, checkpoint_name)
        outputs = answers_of(about.algorithm, about.outputs)
        answer = runner(path, about.outputs)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()

        def run(pixels: Tensor) -> dict[str, Tensor]:
            found = answer(pixels.float() / 255)
            return {name: found[name] for name in outputs}

        return Model(about, digest, outputs, reader(about), run, batch_size=64)
    algorithm, config, meta = checkpoint.load_with_meta(path, target, seed, checkpoint_name, plugin)
    about = about_model(path, algorithm, config, meta, outputs_of(algorithm))
    check_choice(path, about, checkpoint_name)
    outputs = answers_of(about.algorithm, about.outputs)
    weights = Path(meta["folder"]) / "model.safetensors" if "folder" in meta else path
    engine = Engine(device, precision or config["precision"])
    engine.prepare(algorithm)
    graph = Graph(algorithm, outputs)

    def compute(pixels: Tensor) -> dict[str, Tensor]:
        with engine.evaluation(algorithm, NOISE_SEED):
            return {name: value.cpu() for name, value in graph.answer(engine.to_device(pixels)).items()}

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return Model(about, digest, outputs, reader(about), compute, int(config["eval_batch_size"]))


def answers_of(algorithm: str, outputs: Sequence[str]) -> list[str]:
    """Return the outputs that a row is made of.

    Raises:
        UserError: there is none.
    """
    found = [name for name in ANSWERS if name in outputs]
    if found:
        return found
    if outputs:
        raise UserError(
            f"{algorithm} gives {', '.join(outputs)} for an image, but no class, mask or reconstruction without being "
            "told more, such as a label. Look at it with: python -m domainbed latents, traverse, layers or report"
        )
    raise UserError(
        f"{algorithm} answers nothing for an image. Look at it with: python -m domainbed traverse, layers or report"
    )


def find_images(paths: Sequence[str | Path], passed_over: PassedOver | None = None) -> list[Found]:
    """Return the images that files and folders name, each once, in order; folders with all that is in them.

    A file is taken whatever its name; in a folder, what has the suffix of an image.

    Args:
        paths: of files and folders.
        passed_over: counts what is in a folder and not read.

    Raises:
        UserError: a path is not there, or there is no image.
    """
    passed_over = passed_over or PassedOver()
    files: dict[str, Path] = {}
    tops = []
    for path in map(user_path, paths):
        if not path.exists() and not path.is_symlink():
            raise UserError(f"there is no {path}. Give image files, or folders of them")
        tops.append(os.path.abspath(path if path.is_dir() else path.parent))
        below = sorted(images_below(path, (), passed_over)) if path.is_dir() else [()]
        for parts in below:
            file = path.joinpath(*parts)
            files.setdefault(os.path.realpath(file), file)
    if not files:
        unread = f", only files that are not read: {passed_over.what_is_unread()}" if passed_over.unread else ""
        raise UserError(f"no image is in {', '.join(map(str, paths))}{unread}. Give image files, or folders of them")
    top = os.path.commonpath(tops)
    places = {key: os.path.relpath(os.path.abspath(file), top) for key, file in files.items()}
    stems = Counter(os.path.splitext(place)[0] for place in places.values())
    return [
        Found(file, stem if stems[stem := os.path.splitext(places[key])[0]] == 1 else places[key])
        for key, file in files.items()
    ]


def predict(
    model: Model,
    images: Sequence[Found],
    out: Path,
    *,
    pictures: Sequence[str] = (),
    images_out: Path | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Write what a model answers for images, and return what was written.

    Args:
        model: that answers.
        images: in the order of the rows.
        out: the table, a CSV.
        pictures: of `PICTURES`, what is written as PNG files.
        images_out: their folder; by default that of the table's name.
        batch_size: images that are answered at once. num_workers: threads that decode.
        resume: go on behind the rows that are there.

    Returns:
        out: the table. model: its `About`. images: number of rows. unreadable: (path, reason) of each.
        summary: of the rows. masks: what their files hold. pictures: their folders. notes.

    Raises:
        UserError: the table is there already, has no suffix, or is of another model; no image can be read; or the disk
            is full.
    """
    for name in pictures:
        if PICTURES[name] not in model.outputs:
            raise UserError(f"{model.about.algorithm} gives no {name}. It gives: {', '.join(model.outputs)}")
    if not out.suffix:
        raise UserError(
            f"--out {out} has no suffix, and what lies beside the table is named without one. Use {out}.csv"
        )
    beside = out.with_suffix(".json")
    images_out = images_out or out.with_suffix("")
    record: dict[str, Any] = {
        "model": asdict(model.about), "digest": model.digest, "pictures": sorted(pictures),
        "masks": describe_masks(model.about) if "masks" in pictures else None,
        "unreadable": [], "non_finite": [], "images": 0, "finished": False,
    }  # fmt: skip
    header = columns(model)
    done = rows_done(out, beside, header, record, resume)
    wanted = [image for image in images if str(image.path) not in done]
    writers = [_WRITERS[name](model, images_out) for name in sorted(pictures)]
    record["images"] = len(done)
    workers = num_workers or default_num_workers()

    def read(image: Found) -> tuple[Found, np.ndarray | UnreadableImage]:
        try:
            return image, model.read(image.path)
        except UnreadableImage as error:
            return image, error

    with explain_os_errors(f"writing {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_json(beside, record)
        try:
            with (
                open(out, "a", newline="", encoding="utf-8", errors="surrogateescape") as file,
                ThreadPoolExecutor(workers) as pool,
                closing(in_threads(read, wanted, workers, "predict", delay=0, initial=len(done))) as decoded,
            ):
                table = csv.writer(file, lineterminator="\n")
                if not done:
                    table.writerow(header)
                for batch in _batches(decoded, batch_size or model.batch_size, record["unreadable"]):
                    pixels = torch.from_numpy(np.stack([one for _, one in batch])).permute(0, 3, 1, 2).contiguous()
                    answers = model.answer(pixels)
                    for write in writers:
                        pairs = zip((image for image, _ in batch), answers[write.output], strict=True)
                        finite = [(image, value) for image, value in pairs if value.isfinite().all()]
                        list(pool.map(lambda pair, write=write: write(*pair), finite))
                    rows, broken = make_rows(model.about, pixels, answers)
                    table.writerows([str(image.path), *row] for (image, _), row in zip(batch, rows, strict=True))
                    file.flush()
                    record["images"] += len(batch)
                    record["non_finite"] += [str(batch[index][0].path) for index in broken]
            record["finished"] = True
        finally:
            _write_json(beside, record)
    if not record["images"]:
        out.unlink()
        beside.unlink()
        reasons = "\n".join(f"  {path}: {reason}" for path, reason in record["unreadable"][:20])
        raise UserError(f"none of the images ({len(images)}) can be read:\n{reasons}\nMend them, or give others")
    notes = []
    if record["non_finite"]:
        notes.append(
            f"the model's answer is not finite for {len(record['non_finite'])} images; their cells are empty, and "
            "they have no picture"
        )
    return {
        "out": str(out), "beside": str(beside), "model": record["model"], "images": record["images"],
        "unreadable": record["unreadable"], "summary": summarise(out), "masks": record["masks"],
        "pictures": {name: str(images_out / name) for name in sorted(pictures)}, "notes": notes,
    }  # fmt: skip


def columns(model: Model) -> list[str]:
    """Return the names of the columns of the table."""
    about, names = model.about, ["image"]
    if "logits" in model.outputs:
        names += ["prediction", *(f"probability_{name}" for name in about.classes)]
    if "mask_logits" in model.outputs:
        names += [f"share_{name}" for name in about.classes]
    if "reconstruction" in model.outputs:
        names += ["mse", "psnr"]
    return names


def make_rows(about: About, pixels: Tensor, answers: dict[str, Tensor]) -> tuple[list[list[str]], list[int]]:
    """Return the cells behind the first of each image, and which images have an answer that is not finite.

    Args:
        about: of the model. pixels: uint8 (B, C, H, W). answers: of the model.
    """
    size = len(pixels)
    parts: list[list[list[str]]] = []
    broken: set[int] = set()
    for name, value in answers.items():
        if name in ("logits", "mask_logits") and value.shape[1] != len(about.classes):
            raise UserError(
                f"the model answers {value.shape[1]} classes, but its file names {len(about.classes)}: "
                f"{', '.join(about.classes) or 'none'}. The file was changed or is broken; export the run again"
            )
        finite = value.flatten(1).isfinite().all(1).tolist()
        broken |= {index for index in range(size) if not finite[index]}
        if name == "logits":
            probabilities = value.softmax(1)
            best = probabilities.argmax(1).tolist()
            cells = [
                [about.classes[k], *map(_number, row)] for k, row in zip(best, probabilities.tolist(), strict=True)
            ]
        elif name == "mask_logits":
            shares = mask_of(value, about).flatten(2).float().mean(2)  # (B, K)
            cells = [[*map(_number, row)] for row in shares.tolist()]
        else:
            figures = metrics.reconstruction(value, pixels.float() / 255)
            pairs = zip(figures["mse"].tolist(), figures["psnr"].tolist(), strict=True)
            cells = [[*map(_number, pair)] for pair in pairs]
        parts.append([row if good else [""] * len(row) for row, good in zip(cells, finite, strict=True)])
    return [[cell for part in parts for cell in part[index]] for index in range(size)], sorted(broken)


def mask_of(logits: Tensor, about: About) -> Tensor:
    """Return whether each pixel is of each class or kind, bool (B, K, H, W), for logits of that shape."""
    if about.masks == "sigmoid":
        return logits > 0
    return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).bool()


def describe_masks(about: About) -> dict[str, Any]:
    """Return what the values of mask files mean, and in which geometry they are."""
    if about.masks == "softmax":
        values: dict[str, Any] = {
            str(index): {"class": name, "colour": _palette(index)} for index, name in enumerate(about.classes)
        }
        files = "masks/<image>.png"
    else:
        values = {
            name: {"0": "not of the kind", "1": "of the kind", "colour": _palette(index + 1)}
            for index, name in enumerate(about.classes)
        }
        files = "masks/<kind>/<image>.png, one for each kind, since kinds may overlap"
    return {
        "files": files,
        "values": values,
        "geometry": "that of the image file, upright; enlarged from the model's "
        f"{about.input_shape[2]} x {about.input_shape[1]} px by nearest neighbour, 0 where the image was cropped away",
    }


class _Reconstructions:
    """Writes reconstructions, in the geometry of the model's input."""

    output = "reconstruction"

    def __init__(self, model: Model, folder: Path) -> None:
        self.folder = folder / "reconstructions"

    def __call__(self, image: Found, value: Tensor) -> None:
        pixels = value.clamp(0, 1).mul(255).round().to(torch.uint8).movedim(0, -1).numpy()
        _save(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)),
              self.folder / f"{image.place}.png")  # fmt: skip


class _Masks:
    """Writes masks with a palette, in the geometry of the image file."""

    output = "mask_logits"

    def __init__(self, model: Model, folder: Path) -> None:
        self.about, self.folder = model.about, folder / "masks"
        for name in self.about.classes if self.about.masks == "sigmoid" else ():
            if name in ("", "..") or Path(name).name != name:  # the file of a model must not choose where to write
                raise UserError(f"the model has a kind of mask named {name!r}, which names no folder. Leave masks out")
        self.preprocess = Preprocess(model.about.data["preprocess"], model.about.data["image_size"])

    def __call__(self, image: Found, value: Tensor) -> None:
        original = read_image(image.path)
        found = mask_of(value[None], self.about)[0].numpy()  # (K, H, W)
        if self.about.masks == "softmax":
            self.save(found.argmax(0), original, self.folder / f"{image.place}.png", 0)
            return
        for kind, (name, mask) in enumerate(zip(self.about.classes, found, strict=True)):
            self.save(mask, original, self.folder / folder_name(name) / f"{image.place}.png", kind)

    def save(self, mask: np.ndarray, original: np.ndarray, path: Path, shift: int) -> None:
        """Write one file: 0 is black, 1 and so on the colours from `shift` on."""
        picture = Image.fromarray(self.preprocess.restore(mask.astype(np.uint8), original))
        picture.putpalette([value for index in range(256) for value in _palette(index + shift if index else 0)])
        _save(picture, path)


_WRITERS: dict[str, Any] = {"reconstructions": _Reconstructions, "masks": _Masks}


def _palette(index: int) -> tuple[int, int, int]:
    """Return the colour of a class: black for 0, the background, then those of the run's own pictures."""
    return COLOURS[(index - 1) % len(COLOURS)] if index else (0, 0, 0)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _number(value: float) -> str:
    return f"{value:.6g}"


def _batches(
    decoded: Iterable[tuple[Found, np.ndarray | UnreadableImage]], size: int, unreadable: list[Any]
) -> Iterator[list[tuple[Found, np.ndarray]]]:
    """Yield readable images in batches; list the others."""
    batch: list[tuple[Found, np.ndarray]] = []
    for image, pixels in decoded:
        if isinstance(pixels, UnreadableImage):
            unreadable.append([str(image.path), str(pixels)])
            continue
        batch.append((image, pixels))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def rows_done(out: Path, beside: Path, header: list[str], record: dict[str, Any], resume: bool) -> set[str]:
    """Return the images of which a table has rows; what was cut off while it was written is removed from it.

    Raises:
        UserError: there is a table and it is not to be gone on with, or it is of another model.
    """
    if not out.exists():
        return set()
    if out.is_dir():
        raise UserError(f"{out} is a folder, and the table is a file. Name one with --out")
    if not resume:
        raise UserError(f"{out} exists already. Go on with it by --resume, or choose another file with --out")
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{beside}, which says what made {out}, is not there or broken. Choose another --out") from None
    same = ("digest", "pictures")
    if any(before.get(key) != record[key] for key in same):
        raise UserError(f"{out} was made by another model, or with other pictures. Choose another file with --out")
    with open(out, newline="", encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.reader(whole.splitlines(keepends=True)))
    if rows and rows[0] != header:
        raise UserError(f"{out} has other columns than this model gives. Choose another file with --out")
    if whole != text:
        with write_atomically(out) as draft:
            draft.write_bytes(whole.encode(errors="surrogateescape"))
    record["non_finite"] = before.get("non_finite", [])
    return {row[0] for row in rows[1:]}


def _write_json(path: Path, record: dict[str, Any]) -> None:
    with write_atomically(path) as draft:
        draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def summarise(out: Path) -> dict[str, Any]:
    """Return what a table holds, column by column.

    Returns:
        predictions: number of images and mean probability of each class that was predicted, most frequent first.
        mse, psnr: median over images. shares: mean over images of the share of pixels of each class.
    """
    with open(out, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, Any] = {}
    if rows and "prediction" in rows[0]:
        counts = Counter(row["prediction"] for row in rows if row["prediction"])
        found["predictions"] = {
            name: {
                "images": count,
                "mean_probability": math.fsum(
                    float(row[f"probability_{name}"]) for row in rows if row["prediction"] == name
                ) / count,
            }
            for name, count in counts.most_common()
        }  # fmt: skip
    for key in ("mse", "psnr"):
        values = [float(row[key]) for row in rows if row.get(key)]
        if values:
            found[key] = float(np.median(values))
    shares: dict[str, float] = {}
    for key in rows[0] if rows else ():
        if key.startswith("share_"):
            with suppress(ZeroDivisionError):
                values = [float(row[key]) for row in rows if row[key]]
                shares[key.removeprefix("share_")] = math.fsum(values) / len(values)
    if shares:
        found["shares"] = shares
    return found
