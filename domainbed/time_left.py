"""How long a command still takes, said once and early: what is left of all its trainings, times what steps have taken.

time_left.time_step(number, seconds)             # of every step; a training's first since it began or went on is 0
time_left.time_evaluation(images, seconds)
if time_left.is_known(at_checkpoint):
    log(time_left.sentence(works))               # of the training that runs, and of each that comes after it
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Steps of each training that are not timed: in them kernels are chosen, code is compiled, and memory is allocated.
SKIPPED_STEPS = 3
#: Steps whose median is the time of a step.
TIMED_STEPS = 10
#: Time to evaluate an image over that to train on it, until an evaluation was timed: without the backward pass, which
#: takes about twice as long as the forward pass.
EVALUATION_SHARE = 1 / 3


@dataclass(frozen=True)
class Work:
    """What is left of one training.

    Attributes:
        steps: to be taken. images_per_step: in the batches of all environments together.
        evaluations: of held-out images, at checkpoints. images_per_evaluation: how many.
        final_images: evaluated after the last step, counted once for each checkpoint; 0 for a training that is done.
    """

    steps: int
    images_per_step: int
    evaluations: int
    images_per_evaluation: int
    final_images: int


@dataclass
class TimeLeft:
    """Times of the steps and evaluations of a command, whatever training they belong to.

    Attributes:
        steps: seconds of each timed step. per_image: seconds to evaluate an image, as the last evaluation took.
        said: whether `sentence` was called.
    """

    steps: list[float] = field(default_factory=list)
    per_image: float | None = None
    said: bool = False

    def time_step(self, number: int, seconds: float) -> None:
        """Take note of a step, unless it is among the first of its training."""
        if number >= SKIPPED_STEPS and len(self.steps) < TIMED_STEPS:
            self.steps.append(seconds)

    def time_evaluation(self, images: int, seconds: float) -> None:
        """Take note of an evaluation."""
        if images:
            self.per_image = seconds / images

    def is_known(self, at_checkpoint: bool) -> bool:
        """Whether it is time to say it: enough steps were timed, or fewer and an evaluation."""
        return not self.said and len(self.steps) >= (1 if at_checkpoint else TIMED_STEPS)

    def sentence(self, works: Sequence[Work]) -> str:
        """Return a line on the time that all trainings together still take, empty where no step is left."""
        self.said = True
        works = [work for work in works if work.final_images]
        steps, evaluations = sum(work.steps for work in works), sum(work.evaluations for work in works)
        if not steps:
            return ""
        step = statistics.median(self.steps)
        per_image = self.per_image
        if per_image is None:
            per_image = EVALUATION_SHARE * step / works[0].images_per_step
        evaluation = per_image * works[0].images_per_evaluation
        final = per_image * sum(work.final_images for work in works)
        total = duration(steps * step + evaluations * evaluation + final)
        trainings = f" for {len(works)} trainings" if len(works) > 1 else ""
        parts = [counted(steps, "step", step)]
        parts += [counted(evaluations, "evaluation", evaluation)] if evaluations else []
        parts += [counted(len(works), "final evaluation", final / len(works))]
        guessed = " No evaluation was timed yet: theirs is a guess from a step's." if self.per_image is None else ""
        return f"About {total} to go{trainings}: {', '.join(parts)}. Pictures are not included.{guessed}"


def counted(count: int, what: str, seconds: float) -> str:
    """Return a number of things and the time of each: "34 evaluations at 3 s"."""
    return f"{count:,} {what}{'s' if count > 1 else ''} at {duration(seconds)}"


def duration(seconds: float) -> str:
    """Return a time as people say it: "0.25 s", "41 min", "3 h 20 min", "2 days 4 h"."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} day{'s' if days > 1 else ''} {hours} h"
