"""Folders of runs that nobody trained, with figures that a test has chosen."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from domainbed.summary import BEST


def plant(
    folder: Path,
    figures: Mapping[tuple[int, str], Mapping[str, float | None]],
    *,
    algorithm: str = "ERM",
    dataset: str = "DR",
    hparams: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    curves: Mapping[tuple[int, str], Mapping[int, Mapping[str, float]]] | None = None,
    unfinished: Sequence[tuple[int, str]] = (),
    majority: Mapping[str, float] | None = None,
    sources: Mapping[str, float] | None = None,
    intervals: Mapping[str, Sequence[float]] | None = None,
    content: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.yaml, images.csv, results.jsonl and the marks of finished trainings; return the folder.

    Args:
        folder: of the run. figures: (seed, target) to what the main protocol scores on the whole target.
        hparams: of the algorithm. weights: of the start record.
        curves: (seed, target) to step to figures; they go into train records and held-out ones of source and target.
        unfinished: trainings that have begun and not ended. majority: figures of the majority class on every target.
        sources: figures of the main protocol on the held-out part of the environment "home"; the majority's are halves.
        intervals: of the figures. content: of the images, so that two runs can have other ones.
        settings: of the run.
    """
    folder.mkdir(parents=True)
    trainings = [*dict.fromkeys([*figures, *(curves or {}), *unfinished])]
    config = {
        "algorithm": algorithm, "dataset": dataset, "steps": 300, "select_by": "auto", "trial_seed": 0,
        "algorithms": {algorithm: {"batch_size": 8, "lr": 0.1} | dict(hparams or {})},
        "datasets": {dataset: {"image_size": 64, "preprocess": ["resize"]}},
    } | dict(settings or {})  # fmt: skip
    (folder / "config.yaml").write_text(f"# domainbed: python train_all.py {folder.name}\n{yaml.safe_dump(config)}")
    lines = ["image,environment,split,class,group,content"]
    for environment in dict.fromkeys(["home", *(target for _, target in trainings)]):
        lines += [
            f"{environment}/{n},{environment},{split},a,{n},{content}{n}" for n, split in enumerate(("train", "val"))
        ]
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    records: list[dict[str, Any]] = []
    for seed, target in trainings:
        of = {"target": target, "seed": seed}
        start: dict[str, Any] = {"kind": "start", **of, "step": 0, "sources": ["home"]}
        records.append(start | ({"weights": dict(weights)} if weights else {}))
        for step, values in (curves or {}).get((seed, target), {}).items():
            records.append({"kind": "train", **of, "step": step, **values})
            for role, environment in (("source", "home"), ("target", target)):
                place = {"environment": environment, "role": role, "part": "val", "n": 1}
                records.append({"kind": "eval", **of, "step": step, **place, "metrics": dict(values)})
        if (seed, target) in figures:
            end = {"kind": "final", **of, "step": 300, "num_groups": 1, "n": 2}
            at_target = {"environment": target, "role": "target", "part": "whole"}
            at_home = {"environment": "home", "role": "source", "part": "val"}
            best = {"protocol": BEST, "checkpoint": "best"}
            trivial = {"protocol": "majority class", "checkpoint": None, "intervals": {}}
            between = {key: list(value) for key, value in (intervals or {}).items()}
            records.append({**end, **best, **at_target, "metrics": dict(figures[seed, target]), "intervals": between})
            if majority:
                records.append({**end, **trivial, **at_target, "metrics": dict(majority)})
            if sources:
                records.append({**end, **best, **at_home, "metrics": dict(sources), "intervals": {}})
                half = {key: value / 2 for key, value in sources.items()}
                records.append({**end, **trivial, **at_home, "metrics": half})
        place = folder / (f"seed_{seed}" if len({seed for seed, _ in trainings}) > 1 else "") / f"te_{target}"
        place.mkdir(parents=True)
        if (seed, target) not in unfinished:
            (place / "done").touch()
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder
