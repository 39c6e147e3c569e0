"""`python -m domainbed evaluate <run> --data_dir <folder>`: a run's figures on data that it never saw."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed.cli import Parser, positive
from domainbed.cli.analysis import add_machine_options, add_model_options
from domainbed.cli.configuration import COMMAND_LINE, read_arguments
from domainbed.errors import UserError
from domainbed.hparams import Layer, resolve
from domainbed.paths import as_path, user_path
from domainbed.registry import DATASETS

if TYPE_CHECKING:
    import numpy as np

DESCRIPTION = """\
Evaluate the model of a run on images from a new camera. The folder is laid out as
<environment>/<class>/<image>, or as <class>/<image> for a single camera. It is preprocessed as the run's
images were; key=value changes a setting of the data set.
"""


def main(argv: list[str]) -> int:
    """Print the figures; return the exit status."""
    parser = Parser(DESCRIPTION, command="evaluate")
    parser.add_argument(
        "run", type=as_path, help="results/train_output/<dataset>/<name>, or an exported model.safetensors"
    )
    parser.add_argument("--data_dir", type=as_path, help="folder of the images, or a manifest")
    parser.add_argument(
        "--dataset", help="data set that reads them; default: the run's, or DR if that draws its images"
    )
    add_model_options(parser, without_checkpoint="best")
    add_machine_options(parser)
    parser.add_argument("--eval_batch_size", type=positive, help="images in one batch (default: the run's)")
    parser.add_argument("--skip_unreadable", action="store_true", help="go on without images that can't be read")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the data set")
    arguments = parser.parse_intermixed_args(argv)
    found = evaluate(arguments)
    print(json.dumps(found, indent=1) if arguments.json else table(found))
    return 0


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of every environment, by name, with what was evaluated."""
    import numpy as np

    from domainbed import checkpoint, evaluator, metrics
    from domainbed.algorithms.base import Predictor, handles_labels
    from domainbed.datasets.base import UNLABELLED
    from domainbed.datasets.labels import positives
    from domainbed.datasets.prepare import prepare
    from domainbed.engine import Engine
    from domainbed.machine import default_cache_dir, default_num_workers
    from domainbed.records import finite

    algorithm, config, meta = checkpoint.load_with_meta(
        arguments.run, arguments.target, arguments.seed, arguments.checkpoint or "best", arguments.plugin
    )
    exported = arguments.run.suffix == ".safetensors"
    if exported and arguments.checkpoint not in (None, "best"):
        raise UserError(f"{arguments.run} was exported from `best`. Give the run's folder for {arguments.checkpoint!r}")
    dataset, seen = open_dataset(arguments, config, meta["classes"])
    if not exported and not (Path(meta["folder"]).parents[1] / "done").exists():
        seen.append(f"the training of target {meta['target']} is not finished")

    def say(text: str) -> None:
        if not arguments.json:
            print(text, flush=True)

    for line in dataset.log:
        say(line)
    seen += dataset.notes
    images = prepare(
        dataset, trial_seed=0, holdout_fraction=None, subset_size=None,
        cache_dir=user_path(config.get("cache_dir") or default_cache_dir()), num_workers=default_num_workers(),
        skip_unreadable=arguments.skip_unreadable, strict=False, report=say, with_masks=algorithm.needs_masks,
        with_labels=handles_labels(algorithm),
    )  # fmt: skip
    if list(images.input_shape) != meta["input_shape"]:
        theirs, ours = (" x ".join(map(str, shape)) for shape in (meta["input_shape"], images.input_shape))
        if images.are_vectors:
            raise UserError(f"the model takes vectors of {theirs} numbers, but these are of {ours}. Give others")
        raise UserError(
            f"the model takes images of {theirs} (channels, height, width), but these are {ours}. Leave out image_size "
            "and preprocess: those of the run hold"
        )
    if algorithm.needs_masks and images.target_classes != meta["classes"]:
        raise UserError(
            f"the model learnt masks of {', '.join(meta['classes'])}, but those of these images are of "
            f"{', '.join(images.target_classes)}. Choose the same ones, in that order, with mask_kinds=…"
        )
    if handles_labels(algorithm):
        if meta["classes"] and not images.classes:
            raise UserError(
                f"the model learnt the classes {', '.join(meta['classes'])}, so it is evaluated on images with labels, "
                f"but {dataset.labels_wanted()}"
            )
        images.labels = translate(images.labels, images.classes, meta["classes"])
    elif not algorithm.needs_masks:
        images.labels = np.full_like(images.labels, UNLABELLED)  # of no use to a model that never learnt any
    known = [name for name in images.environments if name in meta["sources"]]
    if known and not seen:
        seen.append(
            f"the run was trained on {' and '.join(known)}: if these are the same camera, or even the same eyes, the "
            "figures are not those of a new one"
        )
    point = meta.get("operating_point", {})
    threshold = point.get("threshold")
    to_find: tuple[int, ...] = ()
    if isinstance(algorithm, Predictor) and not algorithm.needs_masks:
        to_find = tuple(point.get("positives", positives(meta["classes"])))  # the threshold is for these
    if to_find and threshold is None:
        seen.append(
            "no sensitivity and specificity: the run recorded no threshold for this checkpoint, because it is not "
            "finished, or is of an older version, or held out no image of the classes to be found"
        )
    engine = Engine(arguments.device, arguments.precision or config["precision"])
    engine.prepare(algorithm)
    result: dict[str, Any] = {
        "run": str(arguments.run), "checkpoint": arguments.checkpoint or "best", "step": meta["step"],
        "target": meta["target"],
        "seed": meta["seed"], "trained_on": meta["sources"], "data_dir": str(arguments.data_dir),
        "classes": meta["classes"], "operating_point": meta.get("operating_point"),
        "unreadable": images.unreadable, "notes": seen, "environments": {},
    }  # fmt: skip
    batch_size = arguments.eval_batch_size or config["eval_batch_size"]
    for environment, name in enumerate(images.environments):
        rows = images.select(environment)
        outputs = evaluator.evaluate_rows(algorithm, engine, images, rows, batch_size)
        found = evaluator.figures(outputs, ordinal=meta["ordinal"], intervals=True, positives=to_find)
        if to_find and threshold is not None:
            flagged = evaluator.screening(outputs, to_find, threshold, intervals=True)
            found |= {key: found[key] | flagged[key] for key in ("metrics", "intervals")}
        result["environments"][name] = found
        if sum(meta["train_counts"]) and outputs.probabilities is not None:
            result["environments"][name]["majority"] = metrics.majority(
                meta["train_counts"], outputs.labels, meta["ordinal"], to_find
            )
        if algorithm.needs_masks:
            result["environments"][name]["majority"] = evaluator.majority_mask(
                images, rows, meta["majority_mask"], batch_size
            )
    return finite(result)


def open_dataset(arguments: argparse.Namespace, config: dict[str, Any], classes: list[str]) -> tuple[Any, list[str]]:
    """Return the data set of the new images, preprocessed as those of the run, and what its reader must know.

    Args:
        arguments: the command line. config: of the run. classes: that its model knows.

    Raises:
        UserError: no data, an unknown data set or setting.
    """
    from domainbed.datasets.folder import OneEnvironment

    name = arguments.dataset or config["dataset"]
    if arguments.dataset is None and name == "SyntheticFundus" and arguments.data_dir is not None:
        name = "DR"
    cls = DATASETS[name]
    if cls.gives_vectors != DATASETS[config["dataset"]].gives_vectors:
        theirs, ours = ("vectors" if one.gives_vectors else "images" for one in (DATASETS[config["dataset"]], cls))
        raise UserError(f"the model takes {theirs}, but {name} gives {ours}. Choose another --dataset")
    recorded = next(iter(config["datasets"].values()))
    keep = ("image_size", "preprocess", "augment", "group_pattern") if name != config["dataset"] else recorded
    same = {key: recorded[key] for key in keep if key in recorded and key in cls.HParams.model_fields}
    folder = arguments.data_dir and arguments.data_dir.resolve()
    is_own = name == config["dataset"] and str(folder) == str(config["data_dir"])
    for key in ("environments",) if is_own else ("environments", "environment", "columns", "root_dir", "array"):
        same.pop(key, None)  # of the run's own folder or table, not the new camera's
    words = read_arguments(arguments.settings)
    if words.name or words.files:
        raise UserError(
            f"evaluate takes one run, and settings as key=value, but {str(words.name or words.files[0])!r} is given, "
            "too. Leave it out"
        )
    given = words.values
    resolved = resolve([cls.HParams], [Layer("the run", same), Layer(COMMAND_LINE, given)])
    hparams = resolved.models[cls.HParams]
    if arguments.data_dir is None and name == config["dataset"] and not given:
        raise UserError("evaluate needs data that the run never saw. Give --data_dir <folder from a new camera>")
    notes = []
    if is_own:
        same_eyes = "data_seed" not in recorded or getattr(hparams, "data_seed", None) == recorded["data_seed"]
        if same_eyes:
            notes.append("these are the images of the run itself: it was trained on some of them")
    try:
        return cls(arguments.data_dir, hparams), notes
    except UserError as error:
        if folder is None or "environments" in given or "environments" not in cls.HParams.model_fields:
            raise
        if not folder.is_dir() or not (isinstance(error, OneEnvironment) or holds_classes(folder, classes)):
            raise
        # <class>/<image>: one camera; what is wrong with it is its own fault
        single = cls(folder.parent, hparams.model_copy(update={"environments": [folder.name]}))
        if name == config["dataset"] and str(folder.parent) == str(config["data_dir"]):
            notes.append("this is an environment of the run itself; its figures are new only if it was left out")
        return single, notes


def holds_classes(folder: Path, classes: list[str]) -> bool:
    """Whether the folders in a folder, or in its split folders, are all called like classes or grades."""
    from domainbed.datasets.labels import grade, plain
    from domainbed.datasets.listing import folders_in
    from domainbed.datasets.splits import spelled

    tops = folders_in(folder)
    names = {plain(name) for top in tops for name in (folders_in(folder / top) if spelled(top) else [top])}
    return bool(names) and all(name in classes or grade(name) is not None for name in names)


def translate(labels: "np.ndarray", classes: list[str], known: list[str]) -> "np.ndarray":
    """Return labels as indices into the classes that the model knows: equal names, or equal grades.

    Raises:
        UserError: a class that occurs is unknown to the model.
    """
    import numpy as np

    from domainbed.datasets.labels import grade

    if not known:
        return labels
    by_name = {name: index for index, name in enumerate(known)}
    by_grade = {grade(name): index for index, name in enumerate(known) if grade(name) is not None}
    if len(by_grade) < len(known):
        by_grade = {}
    mapping = np.full(len(classes), -1)
    for index, name in enumerate(classes):
        mapping[index] = by_name.get(name, by_grade.get(grade(name), -1))
        if mapping[index] < 0 and (labels == index).any():
            raise UserError(
                f"the model knows no class {name!r}: it was trained on {', '.join(known)}. Rename the folder of that "
                "class, or leave it out"
            )
    return mapping[labels]


def table(found: dict[str, Any]) -> str:
    """The figures as text: one line per figure with its interval, recall per class, confusion."""
    from domainbed.summary import COLUMNS, baseline_columns, confusion, either

    lines = [f"NOTE: {note}" for note in found["notes"]] + [
        f"{found['run']}: checkpoint {found['checkpoint']} (step {found['step']}), trained on "
        f"{', '.join(found['trained_on'])}; 95 % bootstrap intervals over groups of images"
    ]
    if (point := found.get("operating_point")) and point["threshold"] is not None:
        to_find = either(found["classes"][index] for index in point["positives"])
        lines.append(
            f"flags an image where the probability of {to_find} is at least {point['threshold']:.4f}, which found "
            f"{point['sensitivity']:.0%} of them or more among the held-out images of {', '.join(point['chosen_on'])}"
        )
    for name, figures in found["environments"].items():
        lines.append(f"{name}: {figures['n']} images in {figures['num_groups']} groups")
        for key, title in (COLUMNS | baseline_columns(figures["metrics"])).items():
            if key not in figures["metrics"]:
                continue
            value, interval = figures["metrics"][key], figures["intervals"].get(key)
            shown = "undefined" if value is None else f"{value:.4f}"
            between = f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""
            majority = figures.get("majority", {}).get(key)
            what = "mask" if "dice_dataset" in figures["metrics"] else "class"
            beside = f"   majority {what} {majority:.4f}" if majority is not None else ""
            lines.append(f"  {title:<18} {shown}{between}{beside}")
        if counts := figures["metrics"].get("confusion"):
            lines += [f"  {line}" for line in confusion(found["classes"], counts)]
    return "\n".join(lines)
