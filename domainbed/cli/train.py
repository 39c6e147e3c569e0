"""Train: what `train_all.py` and `train_subset.py` call."""

import json
import shlex
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from domainbed.cli import guarded
from domainbed.cli.configuration import (
    SUBSET_LAYER,
    SUBSET_SIZE,
    Arguments,
    Configuration,
    check_name,
    configure,
    first_command,
    option_help,
    parsed_early,
    places_before_merging,
    read_arguments,
)  # fmt: skip
from domainbed.datasets.labels import plain
from domainbed.errors import UserError, did_you_mean, explain_os_errors, full_disk_explained
from domainbed.files import write_atomically
from domainbed.hparams import read_yaml
from domainbed.machine import default_cache_dir, default_num_workers, process_number
from domainbed.paths import user_path
from domainbed.records import Nowhere, Records, RunFolder, begun
from domainbed.settings import RunSettings

USAGE = """\
usage: python {script}.py NAME [FILE.yaml …] [key=value …] [--key value …]

{what}

  NAME                    results land in results/train_output/<dataset>/NAME
  FILE.yaml               a configuration; later ones win, and config.yaml ranks below all
  key=value, --key value  any setting below, of the algorithm, or of the data set; these win over every file

examples:
  python train_subset.py test_run --subset_size 500 --steps 2000 --data_dir DR2/ kl_anneal_end=600
  python train_all.py full_training --data_dir DR2/ --steps 10000
  python train_all.py full_training --resume
  python train_all.py seeds --algorithm ERM --seeds 0 1 2 --test_envs 0 2
"""
WHAT = {
    "train_all": "Leave out each environment of a data set in turn, train on the others, judge on the one left out.",
    "train_subset": f"The same as train_all on a few images per environment (--subset_size; at most {SUBSET_SIZE} "
    "where nothing is said), with the first\nenvironment left out unless --test_envs says otherwise.",
}
FOOTER = """
names of all algorithms and data sets: python -m domainbed list
settings of one of them, explained: python -m domainbed list VAE_DG
every setting with its value, and who set it: --algorithm NAME --dataset NAME --show
"""


def main(script: str, argv: list[str] | None = None) -> int:
    """Run a script of the command line and return its exit status."""
    return guarded(lambda: run(script, sys.argv[1:] if argv is None else argv))


def run(script: str, argv: list[str]) -> int:
    """Train as the command line says; return the exit status.

    Raises:
        UserError: a mistake in arguments, configuration or data.
    """
    if "-h" in argv or "--help" in argv:
        print(help_text(script))
        return 0
    name, configuration = configured(script, read_arguments(argv))
    if configuration.settings.show:
        print("\n".join(configuration.shown()))
        return 0
    return train(script, name, argv, configuration)


def configured(script: str, arguments: Arguments) -> tuple[str, Configuration]:
    """Return the name of the run and all of its settings, of a new run or of the one that goes on.

    Raises:
        UserError: a mistake in arguments or configuration, or no such run.
    """
    places = places_before_merging(arguments)
    show, resume = (parsed_early(flag, places) for flag in ("show", "resume"))
    recorded = find_run(arguments, parsed_early("results_dir", places)) / "config.yaml" if resume else None
    name = recorded.parent.name if recorded else "" if show else check_name(arguments.name)
    configuration = configure(script, arguments, recorded)
    if recorded is not None:  # wherever it was found
        configuration.settings = configuration.settings.model_copy(update={"results_dir": recorded.parents[3]})
    return name, configuration


def help_text(script: str) -> str:
    """Return the text of `--help`, settings by group."""
    lines = [USAGE.format(script=script, what=WHAT[script])]
    groups: dict[str, list[str]] = {}
    for key, info in RunSettings.model_fields.items():
        groups.setdefault(info.json_schema_extra["group"], []).append(key)  # type: ignore[index, arg-type]
    for group, keys in groups.items():
        rows = option_help(RunSettings, keys)
        lines.append(f"{group}:")
        lines += [f"  {option:<38} {text}" for option, text in rows]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n" + FOOTER.rstrip()


def find_run(arguments: Arguments, results_dir: Path) -> Path:
    """Return the folder of the run that goes on, named or given as its folder, of whatever data set it is.

    Raises:
        UserError: there is none, one in which nothing was begun, or several and no data set is named.
    """
    given, root, dataset = arguments.name, results_dir / "train_output", arguments.values.get("dataset")
    if given and "/" in given:
        folders = [user_path(given).resolve()]  # `..` and links aside, parents are the data set and the results
    else:
        name = check_name(given)
        folders = [path for path in sorted(root.glob("*/*")) if path.name == name]
    found = [path for path in folders if (path / "config.yaml").is_file()]
    of_dataset = [path for path in found if dataset in (None, path.parent.name)]
    if len(of_dataset) > 1:
        raise UserError(
            f"several runs are named {given!r}: {', '.join(map(str, found))}. Name the data set with --dataset"
        )
    if of_dataset:
        return of_dataset[0]
    if found:
        raise UserError(
            f"the run {given!r} is of the data set {' and '.join(path.parent.name for path in found)}, not of "
            f"{dataset}. Leave out --dataset to go on with it, or start another run on {dataset} without --resume"
        )
    if stopped := [path for path in folders if path.is_dir() and not begun(path)]:
        raise UserError(
            f"the run {stopped[0]} was stopped before anything was saved, so there is nothing to go on with. Start it "
            "again without --resume"
        )
    if given and "/" in given:
        raise UserError(f"{given} is not the folder of a run: it holds no config.yaml. Give the run's name or folder")
    names = [path.parent.name for path in root.glob("*/*/config.yaml")]
    raise UserError(f"there is no run {given!r} in {root} to go on with{did_you_mean(str(given), names)}")


def train(script: str, name: str, argv: list[str], configuration: Configuration) -> int:
    """Prepare data, engine and folder, and train; return the exit status."""
    settings = configuration.settings
    folder = settings.results_dir / "train_output" / str(settings.dataset) / name
    said: list[str] = []

    def say(text: str) -> None:
        if process_number() == 0:
            with suppress(BrokenPipeError), full_disk_explained("writing the output"):
                print(text, flush=True)
        said.append(text)

    command = shlex.join(["python", f"{script}.py", *argv])
    say(f"$ {command}")
    for where, key in configuration.resolved.unused:
        say(f"{where}: {key} is not a setting of this run and is not used")
    for text in configuration.idle:
        say(f"WARNING: {text}")
    dataset = configuration.dataset(settings.data_dir, configuration.dataset_hparams)
    for line in dataset.log:
        say(line)
    dataset.check_for_training()
    targets = choose_targets(script, settings.test_envs, dataset.environments)
    if settings.resume:
        command = first_command(folder / "config.yaml") or command  # the summary shows how the run began
        before = choose_targets(script, read_yaml(folder / "config.yaml")["test_envs"], dataset.environments)
        if targets != before:
            raise UserError(
                f"{folder} can't go on with other targets: --test_envs was {' '.join(map(str, before))} and is now "
                f"{' '.join(map(str, targets))}. Leave it out, or start another run"
            )

    from domainbed import checkpoint  # imports torch: from here on it is worth its seconds
    from domainbed.algorithms import finished
    from domainbed.algorithms.base import check_encoder, handles_labels
    from domainbed.datasets.augment import Augment
    from domainbed.datasets.prepare import Images, check_same_images, prepare
    from domainbed.engine import Engine
    from domainbed.trainer import Interrupted, Run, target_name, train_all_targets

    engine = Engine(settings.device, settings.precision, settings.accumulate, settings.compile, settings.deterministic)
    with engine.alike():
        algorithm_needs(configuration.algorithm, dataset)
        settings, hparams, notes, weights = resolve_automatic(configuration, dataset, engine, targets)
        if weights is not None and (weights.warning or weights.source != "false"):
            say(weights.notice(dataset.photographs))
        notes = [*dataset.notes, *notes]
        engine.check_batch_size(hparams.batch_size)
        built_on: dict[str, dict[str, str]] = {}
        if settings.resume:  # what has begun has what it is built on in its checkpoints
            path = folder / finished.BUILT_ON
            built_on = json.loads(path.read_text()) if path.is_file() else {}
        else:
            hparams.check_size(dataset.input_shape)
            if has_encoder(hparams):
                check_encoder(hparams, dataset.input_shape)
            for seed in settings.seeds or [settings.seed]:
                for target in targets or [[]]:
                    name = target_name(target, dataset.environments)
                    bound = finished.bind(hparams, name, seed)
                    for key, run in finished.runs_of(bound).items():
                        finished.check_shape(key, run, dataset.input_shape)
                    built_on[f"{seed}/{name}"] = finished.digests(bound)
    run_folder = engine.on_main(lambda: RunFolder(folder, settings.resume))
    records: Any = Records(folder) if engine.is_main else Nowhere()

    def read_images() -> Images:
        return prepare(
            dataset,
            trial_seed=settings.trial_seed,
            holdout_fraction=settings.holdout_fraction,
            subset_size=settings.subset_size,
            cache_dir=settings.cache_dir or default_cache_dir(),
            num_workers=settings.num_workers or default_num_workers(),
            skip_unreadable=settings.skip_unreadable,
            strict=settings.strict,
            report=records.log,
            with_masks=configuration.algorithm.needs_masks,
            with_labels=handles_labels(configuration.algorithm),
        )

    try:
        records.log_file(said)
        images = engine.on_main(read_images) or read_images()  # once they are decoded, all find them
        records.log(f"{settings.dataset}: {images.describe()}")
        for line in images.table():
            records.log(line)
        if images.mask_classes:
            records.log(images.mask_classes.describe())
        if not targets:
            part = "test part" if (images.split == "test").any() else "held-out images"
            records.log(f"one environment: training without a target, judged on its {part}")
        records.log(f"{settings.algorithm} on {engine.describe()}; selected by {settings.select_by}")
        for note in notes:
            records.log(f"WARNING: {note}")
        if weights is not None and weights.warning:  # said above
            notes.append(weights.message)
        if images.unreadable:
            notes.append(f"{len(images.unreadable)} unreadable images were left out (--skip_unreadable)")
        notes += images.leaks

        def begin_folder() -> None:
            if settings.resume:
                check_same_images(folder / "images.csv", images.csv())
            else:
                write_text(folder / "images.csv", images.csv())
                write_text(folder / "config.yaml", configuration.yaml(command))
                write_text(folder / finished.BUILT_ON, json.dumps(built_on, indent=1))

        engine.on_main(begin_folder)
        earlier = [record["text"] for record in records.read() if record["kind"] == "note"]
        for note in notes:
            if note not in earlier:
                records.write({"kind": "note", "text": note})
        train_all_targets(
            Run(
                settings=settings,
                algorithm=configuration.algorithm,
                hparams=hparams,
                augment=Augment(getattr(configuration.dataset_hparams, "augment", ())),
                images=images,
                targets=targets or [[]],
                folder=folder,
                config=configuration.plain(),
                command=command,
                engine=engine,
                records=records,
                built_on=built_on,
                notes=[*earlier, *(note for note in notes if note not in earlier)],
            )
        )
        return 0
    except Interrupted:
        return 130
    except BaseException as error:
        if isinstance(error, UserError) and engine.is_main:
            with suppress(UserError):
                records.log_file([f"error: {error}"])
        trained = any(
            checkpoint.exists(path / "checkpoints" / "last") for path in checkpoint.find_targets(folder).values()
        )
        if run_folder is not None and not trained and not settings.resume:
            run_folder.clear()  # nothing was trained: the name is free again
        raise
    finally:
        records.close()
        if run_folder is not None:
            run_folder.close()


def algorithm_needs(algorithm: Any, dataset: Any) -> None:
    """Raise `UserError` before any work where the labels, or the masks, are not what the algorithm learns from."""
    from domainbed.algorithms.base import handles_labels
    from domainbed.datasets.base import UNLABELLED

    if algorithm.needs_masks:
        dataset.chosen_masks()
    occurring = len({sample.label for sample in dataset.samples} - {UNLABELLED})
    if algorithm.needs_labels and (dataset.num_classes < 2 or occurring < 2):
        what = f"{dataset.name} has images of one class only" if dataset.num_classes else dataset.labels_wanted()
        raise UserError(
            f"{algorithm.name} learns from labels, but {what}. Choose an algorithm that needs none, such as "
            "--algorithm AE, or give images of at least two classes"
        )
    if handles_labels(algorithm):
        dataset.check_labelled()


def resolve_automatic(
    configuration: Configuration, dataset: Any, engine: Any, targets: list[list[int]]
) -> tuple[RunSettings, Any, list[str], Any]:
    """Replace what is automatic by what it is with this machine and these data.

    Returns:
        settings, hyper-parameters, notes for the summary, and the `pretrained.Weights` of an encoder or None.
    """
    from pydantic import ValidationError

    from domainbed import model_selection, pretrained

    make_paths_absolute(configuration)
    settings, hparams, notes, weights = configuration.settings, configuration.algorithm_hparams, [], None
    sources = configuration.resolved.sources
    selected = model_selection.resolve(
        settings.select_by,
        hasattr(configuration.algorithm, "predict"),
        dataset.num_classes,
        dataset.ordinal,
        hasattr(configuration.algorithm, "reconstruct"),
        configuration.algorithm.needs_masks,
    )
    changed: dict[str, Any] = {
        "select_by": selected,
        "device": engine.device.type,
        "precision": engine.precision,
        "test_envs": [",".join(dataset.environments[environment] for environment in target) for target in targets],
    }
    if sources.get("subset_size") == SUBSET_LAYER:  # nobody asked for so many: as many as the smallest has will do
        sizes = Counter(sample.environment for sample in dataset.samples)
        smallest, size = min(sizes.items(), key=lambda item: item[1])
        if size < SUBSET_SIZE:
            changed["subset_size"] = size
            notes.append(
                f"{size} images of each environment are taken, because {dataset.environments[smallest]} has no more. "
                "train_all takes all; --subset_size and environments choose otherwise"
            )
    settings = settings.model_copy(update=changed)
    if configuration.algorithm.needs_masks:
        hparams = hparams.model_copy(update={"output": mask_output(hparams.output, dataset.chosen_masks())})
    if timm_model(hparams) is not None:
        weights = pretrained.locate(hparams.model, hparams.pretrained)
        try:
            hparams = type(hparams)(**(hparams.model_dump() | {"pretrained": weights.source}))
        except ValidationError as error:
            reasons = [str(one["msg"]).removeprefix("Value error, ") for one in error.errors()]
            if weights.warning:
                reasons = [weights.message, *reasons, f"To have weights: {weights.advice}"]
            raise UserError(". ".join(reasons)) from None
    elif "pretrained" in type(hparams).model_fields:  # no backbone of timm's, so no weights of one
        hparams = hparams.model_copy(update={"pretrained": "false"})
    for before, now in ((configuration.settings, settings), (configuration.algorithm_hparams, hparams)):
        for key, value in now.model_dump().items():
            if value != getattr(before, key):
                sources[key] = f"automatic, {sources.get(key, 'default')}"
    configuration.settings, configuration.algorithm_hparams = settings, hparams
    return settings, hparams, notes, weights


def has_encoder(hparams: Any) -> bool:
    """Return whether an algorithm has an encoder that `model` names."""
    return "pretrained" in type(hparams).model_fields and hparams.model is not None


def timm_model(hparams: Any) -> str | None:
    """Return timm's name of an algorithm's backbone, for which there is a choice of weights; None without one."""
    return getattr(hparams, "timm_model", hparams.model) if has_encoder(hparams) else None


def mask_output(output: str, classes: Any) -> str:
    """Return "softmax" or "sigmoid": what fits masks of exclusive classes, or of kinds that may overlap.

    Raises:
        UserError: the other one is asked for.
    """
    fitting = "softmax" if classes.exclusive else "sigmoid"
    if output not in ("auto", fitting):
        why = "each pixel has one class" if classes.exclusive else "a pixel may be of several kinds, or of none"
        raise UserError(
            f"output = {output} does not fit {classes.describe()}: {why}. Leave output out, or use output={fitting}"
        )
    return fitting


def make_paths_absolute(configuration: Configuration) -> None:
    """Let every path mean the same from whatever folder the run goes on."""
    from domainbed import pretrained

    settings, hparams = configuration.settings, configuration.algorithm_hparams
    paths = {
        "data_dir": settings.data_dir and settings.data_dir.resolve(),
        "cache_dir": settings.cache_dir and settings.cache_dir.resolve(),
        "plugin": [path.resolve() for path in settings.plugin],
    }
    files = {key: str(Path(run).resolve()) for key in hparams.runs if (run := hparams[key])}
    if timm_model(hparams) is not None and pretrained.is_file(hparams.pretrained):
        files["pretrained"] = str(Path(hparams.pretrained).absolute())
    configuration.settings = settings.model_copy(update=paths)
    configuration.algorithm_hparams = hparams.model_copy(update=files)


def choose_targets(script: str, test_envs: list[str], environments: list[str]) -> list[list[int]]:
    """Return the environments to leave out, one list for each training; [] where there is one environment only.

    Raises:
        UserError: an unknown environment, one named twice, or none left to train on.
    """
    if not test_envs:
        if len(environments) == 1:
            return []
        return [[0]] if script == "train_subset" else [[index] for index in range(len(environments))]
    if not all(text.strip(", ") for text in test_envs):
        raise UserError(
            f"--test_envs {shlex.join(test_envs)} names no environment to leave out. Name some of "
            f"{', '.join(environments)}, by name or number, or leave --test_envs out"
        )
    chosen = [[find_environment(one, environments) for one in text.split(",") if one] for text in test_envs]
    for text, target in zip(test_envs, chosen, strict=True):
        if len(set(target)) < len(target) or chosen.count(target) > 1:
            raise UserError(f"--test_envs {' '.join(test_envs)}: {text!r} is named twice. Name it once")
        if len(target) == len(environments):
            raise UserError(
                f"--test_envs {text} leaves no environment to train on: there "
                f"{'is only' if len(environments) == 1 else 'are only'} {', '.join(environments)}"
            )
    return chosen


def find_environment(text: str, environments: list[str]) -> int:
    """Return the index of an environment given by name or number."""
    if plain(text) in environments:
        return environments.index(plain(text))
    if text.isdigit() and int(text) < len(environments):
        return int(text)
    if text.lstrip("-").isdigit():
        numbered = ", ".join(f"{index} {name}" for index, name in enumerate(environments))
        raise UserError(f"no environment number {text}: there are {numbered}")
    raise UserError(f"no environment named {text!r}{did_you_mean(text, environments)}")


def write_text(path: Path, text: str) -> None:
    """Write a file of the run's folder, atomically; names of files that are no text are kept byte by byte."""
    with explain_os_errors(f"writing {path}"), write_atomically(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="surrogateescape")
