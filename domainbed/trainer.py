"""The loop: one algorithm, trained with some environments left out and judged on them. Reads from top to bottom.

    run = Run(...)                 # everything that the targets and seeds of a run share, see `cli.train`
    train_all_targets(run)

A step is a function of the run's seed and the step's number alone: the order of the images, their augmentation and
every random draw are keyed by both. So going on from a checkpoint needs weights (with `weight_ema` also those that are
trained beside those that are judged), optimisers and the step, no more.
"""

import math
import random
import signal
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from tqdm import tqdm

from domainbed import (
    checkpoint,
    classification_report,
    evaluator,
    machine,
    metrics,
    model_selection,
    reconstructions,
    summary,
)
from domainbed.algorithms import fine_tuning, finished
from domainbed.algorithms.base import (
    Algorithm,
    EncoderHParams,
    ExplainsWeights,
    Predictor,
    Reconstructor,
    SeesClassCounts,
    SeesTrainingImages,
    Segmenter,
    needs_label,
    reports_training_loss,
)
from domainbed.algorithms.finished import FinishedRun, construct
from domainbed.conclusion import conclude
from domainbed.datasets.augment import Augment
from domainbed.datasets.base import UNLABELLED
from domainbed.datasets.labels import positives
from domainbed.datasets.loaders import ReadAhead, TrainLoader, in_order
from domainbed.datasets.masks import labelled_values
from domainbed.datasets.prepare import Images, check_same_classes
from domainbed.datasets.splits import SPLITS
from domainbed.engine import Engine, out_of_memory_explained
from domainbed.errors import UserError, explain_os_errors
from domainbed.model_selection import PROTOCOLS
from domainbed.paths import folder_name
from domainbed.pretrained import settings_with_weights
from domainbed.records import Board, Nowhere, Records
from domainbed.settings import RunSettings
from domainbed.stepping import NonFiniteLoss
from domainbed.time_left import TimeLeft, Work

#: Between checkpoints, `last` is saved this often, so that a power cut costs minutes and not hours.
SAVE_EVERY_SECONDS = 300
LOG_EVERY_SECONDS = 30
#: Letters in a line of the paragraph that ends a run.
CONCLUSION_WIDTH = 100

Judged = tuple[dict[str, Any], evaluator.Outputs]
"""Figures of a part that is judged, with its place, and the answers that they are of."""


class Interrupted(Exception):
    """The run was told to stop and has saved where it is."""


@dataclass
class Run:
    """What all targets and seeds of a run share.

    Attributes:
        settings: of the run, every automatic choice resolved.
        algorithm: the class. hparams: its hyper-parameters.
        augment: of training images. images: of all environments.
        targets: environments that are left out, one list for each training; [] for training without a target.
        folder: `results/train_output/<dataset>/<name>`.
        config: the resolved configuration, as plain data.
        command: the command line.
        built_on: `finished.digests` of each training when the run began, by "<seed>/<target>".
        time_left: times of steps and evaluations, to say how long all trainings take.
    """

    settings: RunSettings
    algorithm: type[Algorithm]
    hparams: Any
    augment: Augment
    images: Images
    targets: list[list[int]]
    folder: Path
    config: dict[str, Any]
    command: str
    engine: Engine
    records: Records
    built_on: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    time_left: TimeLeft = field(default_factory=TimeLeft)

    @property
    def seeds(self) -> list[int]:
        """The seeds to repeat the run with."""
        return self.settings.seeds or [self.settings.seed]

    def target_name(self, target: list[int]) -> str:
        """Name of a target in folders and records: "idrid", "idrid+srahim", or "none"."""
        return target_name(target, self.images.environments)

    def base(self, seed: int) -> Path:
        """Folder of everything that belongs to one seed."""
        return self.folder / f"seed_{seed}" if len(self.seeds) > 1 else self.folder


def target_name(target: list[int], environments: list[str]) -> str:
    """Return the name of what is left out, as in te_<target>: "idrid", "idrid+srahim", or "none"."""
    return "+".join(environments[environment] for environment in target) or "none"


def train_all_targets(run: Run) -> None:
    """Train every target with every seed, skip those that are done, and write the summary.

    Raises:
        UserError: a loss is not finite, the disk is full, a checkpoint is broken.
        Interrupted: by one of `machine.STOP_SIGNALS`, after saving.
    """
    with run.engine.alike():  # each checks its target
        trainings = [Training(run, seed, target) for seed in run.seeds for target in run.targets]
    while trainings:
        trainings.pop(0).run(later=trainings)  # and nothing of it is kept
        write_summary(run)
    result = write_summary(run)
    if result is not None:
        run.records.log("\n" + result.text())
        run.records.log(f"summary, pictures and weights are in {run.folder}\n")
        run.records.log(textwrap.fill(result.conclusion, CONCLUSION_WIDTH))


def write_summary(run: Run) -> summary.Summary | None:
    """Write the summary of what is finished so far, in the main process."""
    if not run.engine.is_main:
        return None
    settings, model = run.settings, getattr(run.hparams, "timm_model", getattr(run.hparams, "model", None))
    described = {
        "name": run.folder.name,
        "algorithm": settings.algorithm,
        "dataset": settings.dataset,
        "subset_size": settings.subset_size,
        "command": run.command,
        "steps": settings.steps,
        "select_by": settings.select_by,
        "notes": run.notes,
        "targets": [run.target_name(target) for target in run.targets],
        "seeds": run.seeds,
        "class_names": run.images.target_classes,
        "pretrained": getattr(run.hparams, "pretrained", None) if model else None,
        "weights_to_try": settings_with_weights(model) if model else None,
        "class_balanced": run.hparams.class_balanced,
        "may_have_seen": any(run.hparams[key] for key in run.hparams.runs) or shares_images(run.images),
    }
    if run.images.mask_classes:
        described["background"] = run.images.mask_classes.background
    records = run.records.read()
    result = summary.build(records, described)
    result.conclusion = conclude(result, records)
    with explain_os_errors("writing the summary"):
        result.write(run.folder)
    return result


class Training:
    """One algorithm, one seed, one target.

    Args:
        run: what it shares with others.
        seed: of everything but the splits.
        target: the environments that are left out; [] for none.
    """

    def __init__(self, run: Run, seed: int, target: list[int]) -> None:
        self.shared, self.seed, self.target = run, seed, target
        self.images, self.engine, self.records, self.settings = run.images, run.engine, run.records, run.settings
        self.name = run.target_name(target)
        self.sources = [e for e in range(len(run.images.environments)) if e not in target]
        known = finished.find_targets(run.folder).get((seed if len(run.seeds) > 1 else None, self.name))
        self.folder = known or run.base(seed) / f"te_{folder_name(self.name)}"
        self.checkpoints = self.folder / "checkpoints"
        self.best: float | None = None
        self.oracle: float | None = None
        self.saved: tuple[int, Path] | None = None  # the checkpoint that was written last, and its step
        run.algorithm.check_domains(len(self.sources))
        self.make_loader()  # checked now, kept from when it is needed: several trainings of many images wait here
        self.scored = self.choose_selection_environments()
        self.hparams = self.bind_finished_runs()

    # --- the way of a run, from top to bottom ---

    def run(self, later: Sequence["Training"] = ()) -> None:
        """Train, or go on, or do nothing where the target is done.

        Args:
            later: trainings that the command runs after this one, for the time that it takes.
        """
        log, settings, engine, time_left = self.records.log, self.settings, self.engine, self.shared.time_left
        engine.wait()  # what the last training left is there for all
        title = f"target {self.name}, seed {self.seed}"
        with engine.alike():
            self.check_folder()
        if engine.agreed((self.folder / "done").exists()):
            log(f"\n{title}: done already")
            return
        log(f"\n{title}: trains on {', '.join(self.images.environments[e] for e in self.sources)}")
        start = self.begin()
        folder = self.shared.base(self.seed) / "tensorboard" / self.folder.name
        self.board: Any = Board(folder, purge_step=start + 1 if start else 0) if engine.is_main else Nowhere()
        self.board.text("config", f"$ {self.shared.command}\n{yaml.safe_dump(self.shared.config)}", start)
        if start == 0:
            self.dump(0)
        saved_at = logged_at = time.monotonic()
        began = time.monotonic()
        with (
            stop_between_steps() as stop,
            ReadAhead(self.loader.read, start, settings.steps) as ahead,
            tqdm(
                total=settings.steps,
                initial=start,
                desc=title,
                unit="step",
                dynamic_ncols=True,
                disable=None if engine.is_main else True,
            ) as bar,
        ):
            for step in range(start, settings.steps):
                step_began = time.monotonic()
                seed_everything(self.seed, step)
                minibatches = self.loader.finish(next(ahead), engine.to_device)
                try:
                    losses = self.algorithm.update(minibatches)
                except NonFiniteLoss as error:
                    with engine.alike():
                        raise self.explain_non_finite(error, step, minibatches) from None
                done = step + 1
                bar.update()
                now = time.monotonic()
                time_left.time_step(step - start, now - step_began)
                to_stop = engine.any(bool(stop.asked))
                at_checkpoint = done % settings.checkpoint_freq == 0 or done == settings.steps
                if done % settings.tb_freq == 0 or done in (1, settings.steps):  # a curve begins where training does
                    self.record_losses(done, losses)
                if at_checkpoint or now - logged_at > LOG_EVERY_SECONDS:
                    log(progress(done, start, settings.steps, now - began, losses, ahead.waited))
                    logged_at = now
                if settings.recon_freq and done % settings.recon_freq == 0 and done < settings.steps:
                    self.dump(done)
                if at_checkpoint:
                    judging_began = time.monotonic()
                    self.judge(done)
                    time_left.time_evaluation(self.num_held_out, time.monotonic() - judging_began)
                if engine.is_main and time_left.is_known(at_checkpoint):
                    sentence = time_left.sentence([self.work_left(done), *(one.work_left() for one in later)])
                    if sentence:
                        log(sentence)
                if at_checkpoint or to_stop or now - saved_at > SAVE_EVERY_SECONDS:
                    self.save("last", done)
                    saved_at = time.monotonic()
                if to_stop:
                    self.interrupt(stop, done)
            if engine.any(bool(stop.asked)):  # while the last step was judged and saved
                self.interrupt(stop, settings.steps)
        self.finish()

    @property
    def num_held_out(self) -> int:
        """Number of images that are evaluated at a checkpoint."""
        return sum(len(self.images.select(environment, "val")) for environment in range(len(self.images.environments)))

    def work_left(self, done: int | None = None) -> Work:
        """Return what is left to do after a step; without one, what a training that was not begun now has to do."""
        settings, last = self.settings, self.checkpoints / "last"
        if done is None:
            done = int(checkpoint.read_meta(last)["step"]) if checkpoint.exists(last) else 0
        num_train = sum(len(self.images.select(environment, "train")) for environment in self.sources)
        num_images = len(self.images.names)
        checkpoints = math.ceil(settings.steps / settings.checkpoint_freq)
        num_judged = min(checkpoints, 3 if self.target else 2)  # last, best, oracle, where their steps differ
        return Work(
            steps=settings.steps - done,
            images_per_step=self.shared.hparams.batch_size * len(self.sources),
            evaluations=checkpoints - done // settings.checkpoint_freq if done < settings.steps else 0,
            images_per_evaluation=self.num_held_out,
            final_images=0
            if (self.folder / "done").exists()
            else num_images + (num_judged - 1) * (num_images - num_train),
        )

    def check_folder(self) -> None:
        """Raise `UserError` where the folder is another target's: some file systems take `A` and `a` for one name."""
        if (self.checkpoints / "init").is_dir():
            target = checkpoint.read_meta(self.checkpoints / "init")["target"]
            if target != self.name:
                raise UserError(
                    f"{self.folder} holds the training of target {target}, so {self.name} has no folder of its own. "
                    "Rename one of these environments"
                )

    def interrupt(self, stop: "Stop", step: int) -> NoReturn:
        """End the run, which is saved, as it was asked to.

        Raises:
            Interrupted: always.
        """
        self.records.log(f"stopped by {stop.asked or 'another process'} after step {step}. Go on with --resume")
        self.engine.wait()  # until it is saved
        raise Interrupted

    @cached_property
    def loader(self) -> TrainLoader:
        """Of the training environments."""
        return self.make_loader()

    @cached_property
    def train_rows(self) -> np.ndarray:
        """The rows of the training images of all sources."""
        return np.concatenate([self.loader.rows[environment] for environment in self.sources])

    @property
    def positives(self) -> tuple[int, ...]:
        """The classes to be found, none where masks take the place of labels."""
        return () if self.images.mask_classes else positives(self.images.classes)

    @cached_property
    def majority_mask(self) -> int | None:
        """`Images.majority_mask` of the training images, whose masks are all read for it."""
        return self.images.majority_mask(self.train_rows)

    def make_loader(self) -> TrainLoader:
        """Return the loader of the training environments."""
        hparams, images = self.shared.hparams, self.images
        if hparams.class_balanced and (not images.classes or (images.labels == UNLABELLED).any()):
            what = "some of these images" if images.classes else "these images"
            raise UserError(f"class_balanced = true needs labels, but {what} have none. Leave it out")
        return TrainLoader(
            images, self.sources, hparams.batch_size, self.seed, self.shared.augment,
            class_balanced=hparams.class_balanced, second_view=self.shared.algorithm.needs_second_view,
            process=self.engine.process, num_processes=self.engine.num_processes, pin=self.engine.device.type == "cuda",
        )  # fmt: skip

    def choose_selection_environments(self) -> dict[str, list[str]]:
        """Decide, from labels or masks alone, over which environments `best` and `oracle` are scored."""
        metric = self.settings.select_by
        masks = self.images.masks if metric in model_selection.OF_MASKS else None
        scored: dict[str, list[str]] = {}
        for checkpoint_name, environments in (("best", self.sources), ("oracle", self.target)):
            if not environments:
                continue
            held_out: dict[str, Any] = {}
            for e in environments:
                rows = self.images.select(e, "val")
                of_rows = self.images.labels[rows] if masks is None else labelled_values(masks[row] for row in rows)
                held_out[self.images.environments[e]] = of_rows
            try:
                scored[checkpoint_name], left_out = model_selection.defined_environments(metric, held_out)
            except UserError as error:
                if checkpoint_name == "best":
                    raise
                self.records.log(f"WARNING: target {self.name} has no oracle checkpoint: {error}")
                continue
            if left_out:
                self.records.log(
                    f"target {self.name}, {checkpoint_name}: {metric} needs held-out "
                    f"{model_selection.required(metric)}, and {', '.join(left_out)} "
                    f"{'have' if len(left_out) > 1 else 'has'} none: left out of the choice"
                )
        return scored

    def bind_finished_runs(self) -> Any:
        """Return the hyper-parameters with the models of finished runs that belong to this target and seed.

        A run that goes on keeps those that it began with, also where their files are gone.
        """
        hparams, last = self.shared.hparams, self.checkpoints / "last"
        if checkpoint.exists(last):
            runs = checkpoint.read_meta(last).get("runs", {})
            return hparams.model_copy(update={key: FinishedRun(**run) for key, run in runs.items()})
        bound = finished.bind(hparams, self.name, self.seed)
        finished.check_digests(bound, self.shared.built_on.get(f"{self.seed}/{self.name}", {}))
        return bound

    def say_what_finished_runs_have_seen(self) -> None:
        """Note whatever a finished run has seen that this one leaves or holds out."""
        config, runs = self.shared.config, finished.runs_of(self.hparams)
        if not runs:
            return
        trained_on = {self.images.contents[row] for row in self.train_rows}  # duplicates are named elsewhere
        unseen = [content for content in self.images.contents if content not in trained_on]
        for key, run in runs.items():
            for warning in finished.warnings_of(
                key,
                run,
                dataset=str(self.settings.dataset),
                data=config["datasets"][self.settings.dataset],
                target=[self.images.environments[environment] for environment in self.target],
                classes=self.images.classes,
                unseen=unseen,
            ):
                self.note(f"target {self.name}, seed {self.seed}: {warning}")

    def begin(self) -> int:
        """Make the algorithm, from its `last` checkpoint if there is one; return the step to go on from."""
        run, last = self.shared, self.checkpoints / "last"
        seed_everything(self.seed, -1)
        shape, classes, domains = self.images.input_shape, len(self.images.target_classes), len(self.sources)
        resumed = self.engine.agreed(checkpoint.exists(last))
        with self.engine.alike():
            if resumed:
                check_same_classes(last, checkpoint.read_meta(last)["classes"], self.images)
        build = construct if resumed else lambda cls, *args: cls(*args)
        with out_of_memory_explained("building the network"):
            self.algorithm: Algorithm = build(run.algorithm, shape, classes, domains, self.hparams)
        if not any(parameter.requires_grad for parameter in self.algorithm.parameters()):
            with self.engine.alike():
                raise UserError(
                    f"{self.settings.algorithm} has nothing to learn with these settings: no layer of it has weights. "
                    "Give it one that has, such as a convolution"
                )
        self.say_what_finished_runs_have_seen()
        with self.engine.alike():
            self.check_batch_norm()
        if isinstance(self.algorithm, SeesClassCounts):
            self.algorithm.set_class_counts(torch.tensor(self.train_counts(), dtype=torch.float32))
        self.engine.prepare(self.algorithm, self.settings.steps)
        self.say_how_it_is_fine_tuned()
        algorithm = self.algorithm
        if isinstance(algorithm, SeesTrainingImages) and not resumed:
            with self.engine.evaluation(self.algorithm, evaluator.NOISE_SEED):
                algorithm.see_training_images(self.training_images)
        if reports_training_loss(self.algorithm) and not type(self.algorithm).__module__.startswith("domainbed."):
            self.records.log(
                f"{self.settings.algorithm} has no evaluation_terms: evaluations report its training loss, one "
                "environment at a time"
            )
        if isinstance(self.algorithm, ExplainsWeights):
            meaning = self.algorithm.explain_weights(self.settings.steps, run.hparams.batch_size * domains)
            for line in meaning.lines():
                self.records.log(line)
            if meaning.warning:
                self.note(meaning.warning)
        if not resumed:
            self.records.drop_after(self.name, self.seed, -1)
            self.records.write(
                self.record("start", 0)
                | {
                    "sources": [self.images.environments[e] for e in self.sources],
                    "batch_coupled": self.algorithm.batch_coupled,
                }
                | ({"weights": meaning.as_dict()} if isinstance(self.algorithm, ExplainsWeights) else {})
            )
            self.save("init", 0)
            return 0
        meta = checkpoint.load_weights(last, self.algorithm)
        state = checkpoint.load_state(last)
        try:
            self.engine.load_state(state)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{last}/state.pt does not fit this algorithm: {error}. Start the run anew") from None
        self.best, self.oracle = meta["best"], meta["oracle"]
        self.majority_mask = meta.get("majority_mask")  # not counted anew: a signal may ask for the next checkpoint now
        if meta["machine"] != self.engine.describe():
            self.records.log(
                f"WARNING: this run began on {meta['machine']} and goes on on {self.engine.describe()}: "
                "what follows is not bit for bit what it would have been"
            )
        if meta["eval_batch_size"] != self.settings.eval_batch_size:
            self.records.log(
                f"WARNING: eval_batch_size was {meta['eval_batch_size']} and is now {self.settings.eval_batch_size}: "
                "evaluated losses with a term of the whole batch (free bits, a capacity, Dice), or with noise that "
                "objectives.rows does not draw, do not compare with those before"
            )
        self.records.drop_after(self.name, self.seed, meta["step"])
        self.records.log(f"goes on after step {meta['step']}")
        return int(meta["step"])

    def judge(self, step: int) -> None:
        """Evaluate the held-out split of every environment; keep `best` and `oracle` where they improve."""
        figures: dict[str, dict[str, Any]] = {}
        for environment, name in enumerate(self.images.environments):
            rows = self.images.select(environment, "val")
            if not len(rows):
                continue
            found = evaluator.figures(
                self.outputs(rows), ordinal=self.images.ordinal, intervals=False, positives=self.positives
            )
            figures[name] = found["metrics"]
            role = "target" if environment in self.target else "source"
            self.records.write(
                self.record("eval", step)
                | {"environment": name, "role": role, "part": "val", "n": found["n"], "metrics": found["metrics"]}
            )
            self.board.scalars({f"{name}_{role}_val/{metric}": v for metric, v in found["metrics"].items()}, step)
        self.check_divergence(step, figures)
        scores = {
            name: model_selection.score(self.settings.select_by, {e: figures[e] for e in environments})
            for name, environments in self.scored.items()
        }
        for name, score in scores.items():
            if model_selection.better(score, getattr(self, name)):
                setattr(self, name, score)
                self.save(name, step)
        metric = self.settings.select_by
        targets = {self.images.environments[environment] for environment in self.target}
        text = ", ".join(
            f"{name}{' (target)' if name in targets else ''} {found[metric]:.4g}"
            for name, found in figures.items()
            if found.get(metric) is not None
        )
        sign = 1 if model_selection.SELECTION_METRICS[metric] == "higher" else -1  # a score is higher for a lower loss
        best = f"; best so far {sign * self.best:.4g}" if self.best is not None else ""
        self.records.log(f"  held-out {metric}: {text or 'undefined'}{best}")

    def check_divergence(self, step: int, figures: dict[str, dict[str, Any]]) -> None:
        """Warn where the loss on held-out images is not finite; end the run where that holds for every source.

        The next step would meet it, too, but after the last one there is none.

        Args:
            step: of the checkpoint. figures: by environment.

        Raises:
            UserError: no held-out loss of a training environment is finite.
        """
        diverged = [name for name, found in figures.items() if found.get("total_loss", 0) is None]
        sources = [name for e in self.sources if (name := self.images.environments[e]) in figures]
        if not diverged:
            return
        where = f"the loss on held-out images of {', '.join(diverged)} is not finite after step {step}"
        if set(sources) - set(diverged) or not sources:
            self.records.log(f"WARNING: {where}")
            return
        with self.engine.alike():
            raise UserError(
                f"{where}, target {self.name}, seed {self.seed}: the training has diverged. {self.saved_earlier()}"
                "Start another run with a lower lr, or with clip_norm=1"
            )

    def saved_earlier(self) -> str:
        """Return the sentence that says where checkpoints of earlier steps are, empty where there is none."""
        last = checkpoint.exists(self.checkpoints / "last")
        return f"Checkpoints of earlier steps are in {self.checkpoints}. " if last else ""

    def finish(self) -> None:
        """Judge the target once with every protocol's checkpoint, export `best`, and mark the target as done."""
        self.dump(None)
        self.engine.wait()  # for the last checkpoint
        self.engine.stop_averaging()  # from here on it is checkpoints that are judged
        if not checkpoint.exists(self.checkpoints / "best"):
            self.note(
                f"target {self.name}, seed {self.seed}: {self.settings.select_by} was undefined at every checkpoint, "
                "so there is no best"
            )
        cached: dict[int, list[Judged]] = {}
        for protocol, name in PROTOCOLS.items():
            if not self.engine.agreed(checkpoint.exists(self.checkpoints / name)):
                continue
            meta = checkpoint.load_weights(self.checkpoints / name, self.algorithm)
            step = int(meta["step"])
            if step not in cached:  # two protocols often choose the same step: its weights are judged once
                cached[step] = self.final_figures(with_train=name == "best")
            chosen_on = self.target if protocol == summary.ORACLE else self.sources
            judged, operating_point = self.at_operating_point(cached[step], chosen_on)
            for figures in judged:
                if figures["part"] != "train" or name == "best":
                    self.records.write(
                        self.record("final", step) | {"protocol": protocol, "checkpoint": name} | figures
                    )
            if name == "best" and self.engine.is_main:
                config, path = self.shared.config, self.folder / "model.safetensors"
                seen = finished.fingerprints(self.images.contents[row] for row in self.train_rows)
                meta = self.meta(step) | {"train_images": seen} | operating_point
                checkpoint.export(path, self.algorithm, config, meta)
                self.report_classes(step, judged)
        for figures in self.trivial_figures() if self.engine.is_main else ():
            self.records.write(self.record("final", self.settings.steps) | figures)
        self.board.close()
        del self.algorithm  # the next target's needs the memory
        self.engine.release()
        if not self.engine.is_main:
            return
        with explain_os_errors(f"writing {self.folder / 'done'}"):
            (self.folder / "done").write_text(f"{self.settings.steps} steps\n")

    # --- parts ---

    def outputs(self, rows: np.ndarray) -> evaluator.Outputs:
        """Run the algorithm over some rows, with the run's precision and noise of its own."""
        return evaluator.evaluate_rows(self.algorithm, self.engine, self.images, rows, self.settings.eval_batch_size)

    def judged_parts(self, with_train: bool = False) -> Iterator[tuple[dict[str, Any], list[np.ndarray]]]:
        """Yield where and on what parts a model is judged, and the rows of each split that is in them.

        Every target, whole and by part, and the held-out, test and, if asked for, training split of every source.
        """
        for environment, name in enumerate(self.images.environments):
            is_target = environment in self.target
            for part in ("whole", "val", "test") if is_target else ("val", "test", *["train"] * with_train):
                chosen = [self.images.select(environment, split) for split in (SPLITS if part == "whole" else [part])]
                if rows := [of_split for of_split in chosen if len(of_split)]:
                    yield {"environment": name, "role": "target" if is_target else "source", "part": part}, rows

    def final_figures(self, with_train: bool) -> list[Judged]:
        """Figures of every part that is judged; an image is judged once, whatever it is a part of."""
        found = []
        by_split: dict[int, evaluator.Outputs] = {}  # by the first row of the split
        for place, splits in self.judged_parts(with_train):
            for rows in splits:
                if rows[0] not in by_split:
                    by_split[rows[0]] = self.outputs(rows)
            outputs = evaluator.Outputs.joined([(rows, by_split[rows[0]]) for rows in splits])
            intervals = place["role"] == "target" or (place["part"] != "train" and not self.target)
            figures = evaluator.figures(
                outputs, ordinal=self.images.ordinal, intervals=intervals, positives=self.positives
            )
            found.append((place | figures | ({"needs_label": True} if outputs.needs_label else {}), outputs))
        return found

    def at_operating_point(
        self, judged: list[Judged], chosen_on: list[int]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Add sensitivity and specificity to figures, at a threshold that some environments' held-out images fix.

        Args:
            judged: of `final_figures`.
            chosen_on: the environments: the sources, or for the oracle the target.

        Returns:
            The figures, and {"operating_point": …} that says what the threshold is; that is empty where an algorithm
            predicts nothing, or no class is to be found.
        """
        if not self.positives or any(outputs.probabilities is None for _, outputs in judged):
            return [figures for figures, _ in judged], {}
        names = [self.images.environments[environment] for environment in chosen_on]
        held_out = [(f["environment"], o) for f, o in judged if f["part"] == "val" and f["environment"] in names]
        threshold = evaluator.choose_threshold([outputs for _, outputs in held_out], self.positives)
        point = {
            "operating_point": {
                "threshold": threshold,
                "chosen_on": [name for name, _ in held_out],
                "sensitivity": metrics.SENSITIVITY,
                "positives": list(self.positives),
            }
        }
        found = []
        for figures, outputs in judged:
            flagged = evaluator.screening(outputs, self.positives, threshold, intervals=bool(figures["intervals"]))
            added = {key: figures[key] | flagged[key] for key in ("metrics", "intervals")}
            found.append(figures | added | point)
        return found, point

    def report_classes(self, step: int, figures: list[dict[str, Any]]) -> None:
        """Write the classification report of final figures, for an algorithm that predicts."""
        if not isinstance(self.algorithm, Predictor):
            return
        title = f"{self.settings.algorithm} · step {step} · target {self.name}"
        found = classification_report.dump(self.folder / "classification", figures, self.images.classes, title)
        for name, path in found.items():
            self.board.picture(f"confusion/{name}", path, step)

    def on_device(self, rows: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield some images, (B, C, H, W) in [0, 1] on the device, not augmented, and their labels or masks."""
        for x, y in in_order(self.images, rows, self.settings.eval_batch_size):
            yield self.engine.to_device(x), y

    def training_images(self) -> Iterator[torch.Tensor]:
        """Yield the training images of all sources once, as `on_device` does."""
        return (x for x, _ in self.on_device(self.train_rows))

    def trivial_answers(self) -> dict[str, Callable[[np.ndarray], dict[str, Any]]]:
        """What needs no model, of the kinds that this algorithm gives: by protocol, what figures some rows have."""
        images, found = self.images, {}
        if isinstance(self.algorithm, Segmenter) and (plane := self.majority_mask) is not None:
            size = self.settings.eval_batch_size
            found[summary.MAJORITY_MASK] = lambda rows: evaluator.majority_mask(images, rows, plane, size)
        elif isinstance(self.algorithm, Predictor) and len(images.target_classes) > 1:
            counts = self.train_counts()
            found[summary.MAJORITY] = lambda rows: metrics.majority(
                counts, torch.from_numpy(images.labels[rows]), images.ordinal, self.positives
            )
        if isinstance(self.algorithm, Reconstructor):
            told = needs_label(self.algorithm)

            def by_class(rows: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
                for x, y in self.on_device(rows):
                    yield x, y if told else torch.zeros(len(x), dtype=torch.long)

            mean = evaluator.mean_images(by_class(self.train_rows), len(images.classes) if told else 1)
            judged_rows = np.unique(np.concatenate([rows for _, splits in self.judged_parts() for rows in splits]))
            compared = evaluator.of_fixed_images(mean, by_class(judged_rows))

            def mean_image(rows: np.ndarray) -> dict[str, float | None]:
                places = torch.from_numpy(np.searchsorted(judged_rows, rows))
                return evaluator.means({name: values[places] for name, values in compared.items()})

            found[summary.MEAN_IMAGE] = mean_image
        return found

    def trivial_figures(self) -> Iterator[dict[str, Any]]:
        """Figures of what needs no model, where and on what parts the model is judged."""
        for protocol, figures_of in self.trivial_answers().items():
            for place, splits in self.judged_parts():
                rows = np.sort(np.concatenate(splits))
                counts = {"n": len(rows), "num_groups": len(set(self.images.groups[rows]))}
                figures = {"metrics": figures_of(rows), "intervals": {}}
                yield {"protocol": protocol, "checkpoint": None} | place | counts | figures

    def train_counts(self) -> list[int]:
        """Number of training images per class; empty without labels, and where masks take their place."""
        if self.images.mask_classes:
            return []
        return self.images.class_counts(self.train_rows).tolist() if self.images.classes else []

    def record(self, kind: str, step: int) -> dict[str, Any]:
        """The beginning of every record."""
        return {"kind": kind, "target": self.name, "seed": self.seed, "step": step}

    def meta(self, step: int) -> dict[str, Any]:
        """What checkpoint.json says."""
        return {
            "step": step,
            "target": self.name,
            "seed": self.seed,
            "best": self.best,
            "oracle": self.oracle,
            "select_by": self.settings.select_by,
            "input_shape": list(self.images.input_shape),
            "classes": self.images.target_classes,
            "ordinal": self.images.ordinal,
            "num_domains": len(self.sources),
            "train_counts": self.train_counts(),
            **({"majority_mask": self.majority_mask} if self.images.mask_classes else {}),
            "environments": self.images.environments,
            "sources": [self.images.environments[e] for e in self.sources],
            "machine": self.engine.describe(),
            "eval_batch_size": self.settings.eval_batch_size,
            "runs": {key: run.model_dump(mode="json") for key, run in finished.runs_of(self.hparams).items()},
        }

    def save(self, name: str, step: int) -> None:
        """Save the weights that are judged, and for `last` what else the run needs to go on."""
        if not self.engine.is_main:
            return
        state = self.engine.state() if name == "last" else None
        with self.engine.average.in_place():
            same = self.saved[1] if self.saved and self.saved[0] == step else None
            checkpoint.save(self.checkpoints / name, self.algorithm, self.meta(step), state, weights_of=same)
        self.saved = (step, self.checkpoints / name)

    def record_losses(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Write the terms of the loss of one step."""
        values = {"total_loss" if key == "loss" else key: value.item() for key, value in losses.items()}
        self.records.write(self.record("train", step) | values)
        self.board.scalars({f"train/{key}": value for key, value in values.items()}, step)

    def dump(self, step: int | None) -> None:
        """Write the pictures of a step, and histograms of the codes of what they show; None is the end."""
        if not self.engine.is_main:
            return
        folder = (
            self.shared.base(self.seed) / ("recon_final" if step is None else f"recon_step_{step}") / self.folder.name
        )
        at = self.settings.steps if step is None else step
        title = f"{self.settings.algorithm} · step {at} · target {self.name}"
        batch_size = self.settings.eval_batch_size
        shown = reconstructions.dump(self.algorithm, self.engine, self.images, self.target, folder, title, batch_size)
        for name, path in shown.files.items():
            self.board.picture(f"reconstructions/{name}", path, at)
        for name, codes in shown.codes.items():
            self.board.histogram(f"latent/{name}", codes, at)

    def note(self, text: str) -> None:
        """Say something that nobody should miss: at the start, in the log, and in the summary."""
        self.records.log(f"WARNING: {text}")
        if text not in self.shared.notes:
            self.shared.notes.append(text)
            self.records.write({"kind": "note", "text": text})

    def say_how_it_is_fine_tuned(self) -> None:
        """Say what of a timm encoder is frozen and which rates there are, or refuse what would have no effect."""
        if not isinstance(self.shared.hparams, EncoderHParams):
            return
        with self.engine.alike():
            fine_tuning.check(self.algorithm, self.engine.stepper.optimizers)
        if sentence := fine_tuning.describe(self.algorithm, self.engine.stepper.optimizers, self.settings.steps):
            self.records.log(sentence)

    def check_batch_norm(self) -> None:
        """Refuse a batch of one image for a network with BatchNorm, whose variance it would take from one value."""
        parts = self.engine.num_parts
        batch = self.shared.hparams.batch_size * len(self.sources) // parts
        layers = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
        if not any(isinstance(module, layers) and module.training for module in self.algorithm.modules()):
            return
        if batch == 1:
            raise UserError(
                f"batch_size = {self.shared.hparams.batch_size} with {len(self.sources)} training environments in "
                f"{parts} parts is one image in each part, which BatchNorm can't normalise. Use batch_size={2 * parts} "
                "or more"
            )
        if parts > 1:
            self.note(
                f"a step's batch is computed in {parts} parts, and BatchNorm normalises the {batch} images of each by "
                "themselves: the run differs from one that computes it whole"
            )

    def explain_non_finite(self, error: NonFiniteLoss, step: int, minibatches: list[Any]) -> UserError:
        """Say which environments' minibatch alone makes the loss infinite or not a number."""
        guilty, unknown = [], []
        for environment, minibatch in zip(self.sources, minibatches, strict=True):
            seed_everything(self.seed, step)
            finite, name = self.engine.is_finite([minibatch]), self.images.environments[environment]
            if self.engine.any(finite is False):
                guilty.append(name)
            elif self.engine.any(finite is None):
                unknown.append(name)
        terms = ["total_loss" if term == "loss" else term for term in error.terms]
        who = [f"the minibatch of {' and of '.join(guilty)} alone gives it"] if guilty else []
        who += [f"whether that of {' or of '.join(unknown)} alone does can't be computed"] if unknown else []
        who = who or ["no environment's minibatch alone gives it"]
        return UserError(
            f"the loss is not finite at step {step + 1}, target {self.name}, seed {self.seed}: "
            f"{', '.join(terms)}; {'; '.join(who)}. {self.saved_earlier()}Start another run with a lower lr, "
            "with clip_norm=1, or with --precision float32"
        )


def shares_images(images: Images) -> bool:
    """Whether an image is in two environments, so that leaving out one does not leave it out."""
    places = set(zip(images.contents, images.environment.tolist(), strict=True))
    return len(places) > len({content for content, _ in places})


def seed_everything(seed: int, step: int) -> None:
    """Set every generator that an algorithm may draw from to a state that depends on seed and step alone."""
    state = int(np.random.SeedSequence((seed, step + 1)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


def progress(done: int, start: int, total: int, seconds: float, losses: dict[str, torch.Tensor], waited: float) -> str:
    """A line with the step, the losses, the rate, the time left and the share of it that was spent on waiting."""
    rate = (done - start) / max(seconds, 1e-9)
    minutes, seconds_left = divmod(int((total - done) / rate), 60)
    left = f"{minutes // 60}:{minutes % 60:02d}:{seconds_left:02d}"
    terms = ", ".join(f"{'total_loss' if key == 'loss' else key} {value.item():.4g}" for key, value in losses.items())
    share = waited / max(seconds, 1e-9)
    return f"step {done}/{total}: {terms} ({rate:.2f} steps/s, {left} left, {share:.0%} waiting for data)"


@dataclass
class Stop:
    """Whether the run was asked to stop, and by which signal."""

    asked: str = ""


@contextmanager
def stop_between_steps() -> Iterator[Stop]:
    """Turn signals to stop into a wish that the loop grants between two steps.

    A second SIGINT acts at once. The others stay a wish however often they come: schedulers and torchrun repeat them.
    """
    stop = Stop()
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: Any) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            machine.lose_terminal()
        stop.asked = signal.Signals(number).name

    with suppress(ValueError):  # not in the main thread: whoever runs this handles signals
        for one in machine.stop_signals():
            before[one] = signal.signal(one, ask)
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
