"""`python -m domainbed pack`: decode a data set ahead of its runs; check or delete what was decoded."""

import json
import sys
from typing import Any

from domainbed.cli.configuration import configure, read_arguments
from domainbed.errors import UserError

USAGE = """\
usage: python -m domainbed pack [FILE.yaml …] [key=value …] [--key value …] [--check | --clear] [--json]

Decode and preprocess the images that a run with these settings reads, as the run itself would do first. It can be
stopped at any moment and goes on where it was; a file that has changed is decoded again, and no other.

  --check   read everything that is kept and compare checksums; what is damaged is decoded again by the next run
  --clear   delete it
  --json    print one JSON object instead of text

--check and --clear are of all that --cache_dir keeps. With settings they are of what a run with these settings reads
from: rows of one data set, preprocessing and size, which all folders of such images share.

examples:
  python -m domainbed pack --data_dir DR2/ image_size=224
  python -m domainbed pack configs/unet_disc.yaml --data_dir IDRiD/
  python -m domainbed pack --check
"""


def main(argv: list[str]) -> int:
    """Do as the command line says; return the exit status: 1 where something damaged was found."""
    if "-h" in argv or "--help" in argv:
        print(USAGE.rstrip())
        return 0
    check, clear, as_json = ("--check" in argv, "--clear" in argv, "--json" in argv)
    arguments = read_arguments([word for word in argv if word not in ("--check", "--clear", "--json")])
    if arguments.name:
        raise UserError(
            f"pack makes no run, so it takes no name, but {arguments.name!r} is given. Write settings as key=value, "
            "and the folder of the images as --data_dir <folder>"
        )
    if check and clear:
        raise UserError("--check and --clear exclude each other. Leave one out")
    configuration = configure("train_all", arguments)
    settings = configuration.settings

    from domainbed.algorithms.base import handles_labels
    from domainbed.datasets.base import refuse_vectors
    from domainbed.datasets.packed import Store, pack
    from domainbed.datasets.prepare import choose, report_unreadable
    from domainbed.machine import default_cache_dir, default_num_workers

    cache_dir = settings.cache_dir or default_cache_dir()
    num_workers = settings.num_workers or default_num_workers()
    if (check or clear) and not arguments.files and arguments.values.keys() <= {"cache_dir", "num_workers"}:
        return inspect(Store.all(cache_dir), clear, num_workers, as_json, str(cache_dir))

    refuse_vectors(configuration.dataset, "pack decodes images ahead of their runs")
    dataset = configuration.dataset(settings.data_dir, configuration.dataset_hparams)
    if handles_labels(configuration.algorithm) and not (check or clear):
        dataset.check_labelled()
    classes = dataset.chosen_masks() if configuration.algorithm.needs_masks else None
    store = Store.of(dataset, classes, cache_dir)
    if check or clear:
        return inspect([store] if store.folder.is_dir() else [], clear, num_workers, as_json, str(store.folder))

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    for line in [*dataset.log, *(f"WARNING: {note}" for note in dataset.notes)]:
        say(line)
    _, chosen = choose(dataset, settings.trial_seed, settings.holdout_fraction, settings.subset_size)
    packed = pack(dataset, chosen.tolist(), cache_dir, num_workers, say, classes)
    report_unreadable(packed.unreadable, len(chosen), settings.skip_unreadable, say)
    if not store.folder.is_dir():
        raise UserError(
            f"nothing could be kept in {cache_dir}. Make room, or name another folder with cache_dir=<folder>"
        )
    found = described(store)
    print(json.dumps(found) if as_json else line_of(found))
    return 0


def inspect(stores: list[Any], clear: bool, num_workers: int, as_json: bool, where: str) -> int:
    """Check or delete some stores and say what there was; return the exit status."""
    found = []
    for store in stores:
        one = described(store)
        if clear:
            store.clear()
        elif store.is_known:
            one["images"], one["damaged"] = store.check(num_workers)
        found.append(one)
    done = "deleted" if clear else "checked"
    if as_json:
        print(json.dumps({done: found}, indent=1))
    elif found:
        print("\n".join(line_of(one) for one in found))
        print(f"{done}: {size_text(sum(one['bytes'] for one in found))}")
    else:
        print(f"no decoded images in {where}")
    damaged, unknown = sum(one.get("damaged", 0) for one in found), not all(store.is_known for store in stores)
    if damaged and not as_json:
        print(f"{damaged} images are damaged: the next run decodes them again. Several mean that the disk is failing")
    if unknown and not clear and not as_json:
        print("where about.json is damaged nothing was checked: the next run that reads there writes it again")
    return 1 if damaged or (unknown and not clear) else 0


def described(store: Any) -> dict[str, Any]:
    """What there is to say of a store, for programs; of one that is not known, its folder and size."""
    if not store.is_known:
        return {"folder": str(store.folder), "bytes": store.num_bytes}
    return {
        "folder": str(store.folder),
        "data_set": store.about["data set"][0],
        "image_size": store.about["image_size"],
        "preprocess": store.about["preprocess"][:-1],
        "images": store.num_rows,
        "bytes": store.num_bytes,
    }


def line_of(found: dict[str, Any]) -> str:
    """What `described` returned, for people."""
    if "images" not in found:
        return f"{found['folder']}: about.json is damaged, {size_text(found['bytes'])}"
    damaged = f"{found['damaged']} damaged, " if "damaged" in found else ""
    how = ", ".join([f"{found['image_size']} px", *found["preprocess"], size_text(found["bytes"])])
    return f"{found['folder']}: {found['images']} images, {damaged}{how}"


def size_text(num_bytes: int) -> str:
    """`packed.size_text`, which costs an import that --help should not pay for."""
    from domainbed.datasets import packed

    return packed.size_text(num_bytes)
