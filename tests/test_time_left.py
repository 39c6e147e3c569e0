"""The line on how long a command takes: against a clock that the test moves, and what the run then really does."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from domainbed import trainer
from domainbed.engine import Engine
from domainbed.records import Records
from domainbed.time_left import SKIPPED_STEPS, TIMED_STEPS, TimeLeft, Work, duration

LINE = re.compile(
    r"About (?P<total>.+) to go(?: for (?P<trainings>\d+) trainings)?: (?P<steps>[\d,]+) steps? at (?P<step>.+?)"
    r"(?:, (?P<evaluations>[\d,]+) evaluations? at (?P<evaluation>.+?))?, (?P<finals>\d+) final evaluations? at .+\."
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only steps (2 s, 50 s for the first ones) and evaluations (0.5 s an image) move, and all they do."""
    events, state = [], SimpleNamespace(now=0.0, in_training=0)
    step, judge, begin, log = Engine.step, trainer.Training.judge, trainer.Training.begin, Records.log

    def slow_step(self, *arguments):
        state.now += 50.0 if state.in_training < SKIPPED_STEPS else 2.0
        state.in_training += 1
        events.append("step")
        return step(self, *arguments)

    def slow_judge(self, at):
        state.now += 0.5 * sum(self.images.split == "val")
        events.append("evaluation")
        return judge(self, at)

    def new_training(self):
        state.in_training = 0
        return begin(self)

    def heard(self, text=""):
        events.extend([text] if "to go" in text else [])
        return log(self, text)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: state.now))
    monkeypatch.setattr(Engine, "step", slow_step)
    monkeypatch.setattr(trainer.Training, "judge", slow_judge)
    monkeypatch.setattr(trainer.Training, "begin", new_training)
    monkeypatch.setattr(Records, "log", heard)
    return events


def said_and_done(events):
    """Return the parts of the only line, and what happened after it."""
    ((place, line),) = [(at, event) for at, event in enumerate(events) if event not in ("step", "evaluation")]
    match = LINE.match(line)
    assert match, line
    return match.groupdict(), events[place + 1 :], line


ERM = ["--algorithm", "ERM", "batch_size=2", "--recon_freq", "0"]


def test_the_line_counts_all_that_the_command_then_does(train, photographs: Path, clock) -> None:
    arguments = ["--steps", 20, "--checkpoint_freq", 8, "--test_envs", "0", "2", "--seeds", 0, 1]
    assert train("counted", "--data_dir", photographs, *ERM, *arguments)[0] == 0
    said, done, line = said_and_done(clock)
    assert said["step"] == "2 s", "the median, without the first steps of 50 s"
    assert said["trainings"] == said["finals"] == "4"
    assert int(said["steps"]) == done.count("step") == 4 * 20 - 8, "told at the first checkpoint"
    assert int(said["evaluations"]) == done.count("evaluation") == 4 * 3 - 1
    with open("results/train_output/DR/counted/images.csv") as file:
        held_out = sum(",val," in row for row in file)
    assert said["evaluation"] == f"{0.5 * held_out:.2g} s" and "guess" not in line


def test_before_a_checkpoint_it_is_said_after_the_timed_steps_with_a_guess(train, photographs: Path, clock) -> None:
    assert train("early", "--data_dir", photographs, *ERM, "--steps", 30, "--test_envs", 0)[0] == 0
    said, done, line = said_and_done(clock)
    assert int(said["steps"]) == done.count("step") == 30 - SKIPPED_STEPS - TIMED_STEPS
    assert int(said["evaluations"]) == done.count("evaluation") == 1
    assert said["trainings"] is None and "guess from a step's" in line
    # 4 images in 2 s are 0.5 s each, a third of it without the backward pass; 4 + 4 + 4 held-out images
    assert said["evaluation"] == f"{2 / 4 / 3 * 12:.2g} s"


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_goes_on_counts_what_is_left(train, photographs: Path, clock, monkeypatch, lost: bool) -> None:
    """Also where the first training is lost, so that one that comes later has begun."""
    arguments = ["--steps", 20, "--checkpoint_freq", 5, "--test_envs", "0", "1", "2"]
    original = trainer.Training.judge

    def stop(self, at):
        original(self, at)
        if (self.name, at) == ("camera1", 10):
            raise trainer.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Training, "judge", stop)
        assert train("stopped", "--data_dir", photographs, *ERM, *arguments)[0] == 130
    clock.clear()
    if lost:
        shutil.rmtree("results/train_output/DR/stopped/te_camera0")
    assert train("stopped", "--resume")[0] == 0
    said, done, _ = said_and_done(clock)
    assert said["trainings"] == said["finals"] == ("3" if lost else "2"), "camera0 is done"
    last_saved = 5  # the stop came before step 10 was saved
    assert int(said["steps"]) == done.count("step") == 40 + 20 * lost - last_saved - 5
    assert int(said["evaluations"]) == done.count("evaluation") == 8 + 4 * lost - 2


def test_a_later_training_that_is_done_is_not_counted(train, photographs: Path, clock) -> None:
    arguments = ["--steps", 6, "--checkpoint_freq", 5, "--test_envs", "0", "1"]
    assert train("whole", "--data_dir", photographs, *ERM, *arguments)[0] == 0
    shutil.rmtree("results/train_output/DR/whole/te_camera0")
    clock.clear()
    assert train("whole", "--resume")[0] == 0
    said, done, _ = said_and_done(clock)
    assert said["trainings"] is None and said["finals"] == "1"
    assert int(said["steps"]) == done.count("step") == 1


def test_a_run_to_debug_says_it_too_and_a_run_that_has_ended_does_not(train, photographs: Path, clock) -> None:
    assert train("debugged", "--data_dir", photographs, *ERM, "--debug", "--test_envs", 0)[0] == 0
    said, done, _ = said_and_done(clock)
    assert int(said["steps"]) == done.count("step") == 5
    assert said["step"] == "2 s", "of five steps, three are not timed"
    clock.clear()
    assert train("short", "--data_dir", photographs, *ERM, "--steps", 6, "--test_envs", 0)[0] == 0
    assert [event for event in clock if event not in ("step", "evaluation")] == []


def test_the_final_evaluation_is_of_all_images_and_then_of_those_not_trained_on(train, photographs, clock) -> None:
    """A whole pass for `best`, and one without training images for each further step that a protocol may choose."""
    from domainbed import evaluator

    shown, original = [], evaluator.evaluate_rows

    def spy(algorithm, engine, images, rows, batch_size):
        shown.append(len(rows))
        return original(algorithm, engine, images, rows, batch_size)

    works, work_left = [], trainer.Training.work_left

    def remember(self, done=None):
        works.append(work_left(self, done))
        shown.clear()
        return works[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "evaluate_rows", spy)
        patch.setattr(trainer.Training, "work_left", remember)
        # one checkpoint after the line, whose images are those of evaluations
        arguments = ["--steps", 14, "--checkpoint_freq", 14, "--test_envs", 0]
        assert train("final", "--data_dir", photographs, *ERM, *arguments)[0] == 0
    (work,) = works
    assert sum(shown) == work.evaluations * work.images_per_evaluation + work.final_images
    found = [json.loads(row) for row in Path("results/train_output/DR/final/results.jsonl").read_text().splitlines()]
    assert {record["step"] for record in found if record["kind"] == "final"} == {14}


def test_the_parts_add_up() -> None:
    time_left = TimeLeft()
    for number in range(30):
        time_left.time_step(number, 99.0 if number < SKIPPED_STEPS else 0.25)
    time_left.time_evaluation(170, 3.4)
    works = [Work(9_000, 44, 30, 170, 850), Work(10_000, 44, 34, 170, 850), Work(0, 44, 0, 170, 0)]
    assert time_left.sentence(works) == (
        "About 1 h 23 min to go for 2 trainings: 19,000 steps at 0.25 s, 64 evaluations at 3.4 s, 2 final evaluations "
        "at 17 s. Pictures are not included."
    )  # 4,750 + 217.6 + 34 s
    assert not time_left.is_known(True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.004, "0.004 s"), (0.25, "0.25 s"), (9.97, "10 s"), (41.2, "41 s"), (119, "119 s"), (120, "2 min"),
     (2460, "41 min"), (3599, "1 h 0 min"), (12_000, "3 h 20 min"), (86_400, "1 day 0 h"), (187_000, "2 days 4 h")],
)  # fmt: skip
def test_a_duration_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
