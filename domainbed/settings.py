"""The settings of a run that belong to no algorithm and no data set: what is trained, on what, how long, and where to.

Each is a key like any other (`steps=2000`, `--steps 2000`, `steps: 2000` in YAML). How layers merge is in `hparams`.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from domainbed.hparams import Fraction, Kind, NonNegativeInt, PositiveInt, SeparatedBy, StepCount


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) else value


Environments = Annotated[
    list[Annotated[str, BeforeValidator(_as_text)]],
    SeparatedBy(r"\s+"),
    Kind("a list of environments by number or name, such as 0 2 (two runs) or 0,2 (both held out in one run)"),
]


def _distinct(values: list[int]) -> list[int]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    return values


Seeds = Annotated[list[NonNegativeInt], AfterValidator(_distinct), Kind("a list of whole numbers, such as 0 1 2")]

Paths = Annotated[
    list[Path],
    BeforeValidator(lambda value: [] if value is None else value),
    Kind("the path of a file, or a list of paths"),
]

WHAT, DATA, HOW_LONG, JUDGED, MACHINE, OUTPUT = (
    "what is trained", "data and splits", "how long, how often", "how it is judged", "machine", "where it goes",
)  # fmt: skip


def setting(default: Any, group: str, description: str) -> Any:
    """A field that `--help` lists in `group`."""
    return Field(default, description=description, json_schema_extra={"group": group})


class RunSettings(BaseModel):
    """Settings of a run, with their defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    algorithm: str = setting("VAE_DG", WHAT, "name of an algorithm; `python -m domainbed list` shows all")
    dataset: str | None = setting(None, WHAT, "name of a data set: DR where --data_dir is given, else SyntheticFundus")
    plugin: Paths = setting([], WHAT, "Python files that register algorithms or data sets of your own")

    data_dir: Path | None = setting(None, DATA, "folder of the data, <environment>/<class>/<image>, or a manifest")
    test_envs: Environments = setting(
        [], DATA, "environments to leave out, one run each (0 2); 0,2 leaves out both in one run. By number or name"
    )
    subset_size: PositiveInt | None = setting(None, DATA, "use this many images per environment, stratified by class")
    holdout_fraction: Fraction = setting(0.2, DATA, "share of each environment that is held out")
    trial_seed: NonNegativeInt = setting(0, DATA, "seed of splits and subsets")
    skip_unreadable: bool = setting(False, DATA, "go on without images that can't be read, and count them")
    strict: bool = setting(False, DATA, "stop where the same photograph is on two sides of a split or in two cameras")

    steps: PositiveInt = setting(10_000, HOW_LONG, "optimiser steps; each takes one minibatch per training environment")
    checkpoint_freq: PositiveInt = setting(300, HOW_LONG, "evaluate held-out splits and save every so many steps")
    recon_freq: StepCount = setting(1000, HOW_LONG, "dump reconstructions every so many steps; 0: only first and last")
    tb_freq: PositiveInt = setting(10, HOW_LONG, "record the losses at the first step and every so many")
    debug: bool = setting(False, HOW_LONG, "10 steps with frequent checkpoints, to see that everything works")

    select_by: str = setting(
        "auto", JUDGED, "held-out figure that chooses `best`: auto, kappa, accuracy, total_loss, …"
    )
    seed: NonNegativeInt = setting(0, JUDGED, "seed of everything but the splits")
    seeds: Seeds = setting([], JUDGED, "repeat the run with each of these seeds")

    device: Literal["auto", "cpu", "cuda"] = setting("auto", MACHINE, "auto takes a GPU where there is one")
    precision: Literal["auto", "float32", "bf16"] = setting(
        "auto", MACHINE, "auto takes bf16 where the hardware has it and is faster so, measured once"
    )
    deterministic: bool = setting(
        False, MACHINE, "use no kernel that adds in varying order: a GPU then repeats a run bit for bit, more slowly"
    )
    accumulate: PositiveInt = setting(
        1, MACHINE, "pieces in which a step's batch is computed, one after the other, where memory is short"
    )
    compile: bool = setting(
        False, MACHINE, "compile the loss by torch.compile: minutes at the start, perhaps faster then"
    )
    num_workers: PositiveInt | None = setting(None, MACHINE, "threads that decode images; default: one per core")
    eval_batch_size: PositiveInt = setting(64, MACHINE, "images in one batch of an evaluation")

    results_dir: Path = setting(Path("results"), OUTPUT, "results land in <results_dir>/train_output/<dataset>/<name>")
    cache_dir: Path | None = setting(None, OUTPUT, "folder of decoded images; default: ~/.cache/domainbed")
    resume: bool = setting(False, OUTPUT, "go on with the run of this name where it stopped")
    show: bool = setting(False, OUTPUT, "print every setting with the layer that set it, and do not run")

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"steps": 10, "checkpoint_freq": 5, "recon_freq": 5, "tb_freq": 1}
    }
