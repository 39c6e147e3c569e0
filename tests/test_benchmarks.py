"""Benchmarks answer like other commands, and the plain way that they compare with is DomainBed's. Nothing is timed."""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest

from domainbed.errors import UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARED = "paired"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != SHARED)
COMPARING = ["evaluate", "kernels", "loader", "run", "scale", "start", "step"]


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Run a benchmark in this process: benchmark("step", "--quick") -> (status, stdout, stderr)."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_what_it_is(benchmark, name):
    status, out, _ = benchmark(name, "--help")
    assert status == 0
    docstring = (BENCHMARKS / f"{name}.py").read_text().split('"""')[1]
    assert " ".join(docstring.partition("\n")[0].split()) in " ".join(out.split())
    assert f"python benchmarks/{name}.py" in docstring


@pytest.mark.parametrize("name", COMPARING)
def test_a_wrong_argument_is_one_message(benchmark, name):
    status, out, err = benchmark(name, "--pairs", "0")
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and "is not a whole number of at least 1" in err and err.count("\n") == 1


def test_the_last_line_is_for_programs(benchmark):
    small = ["--model", "test_resnet", "--image_size", 16, "--batch_size", 4, "--environments", 2, "--pairs", 1]
    status, out, err = benchmark("step", *small)
    assert status == 0, out + err
    figures = json.loads(out.splitlines()[-1])
    assert {"benchmark", "ratio", "ours", "baseline", "unit", "pairs", "share_of_ceiling"} <= figures.keys()
    assert figures["benchmark"] == "step" and figures["pairs"] == 1
    assert figures["ratio"] == pytest.approx(figures["ours"] / figures["baseline"])


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import paired

    return paired


@pytest.mark.parametrize(
    ("steps", "freq", "expected"), [(7, 3, [0, 3, 6]), (8, 3, [0, 3, 6, 7]), (6, 3, [0, 3, 5]), (1, 3, [0])]
)
def test_domainbed_evaluates_after_the_first_and_the_last_step(plain, steps, freq, expected):
    assert [step for step in range(steps) if plain.evaluates(step, steps, freq)] == expected


def test_the_plain_evaluation_reads_every_image_once(plain, photographs):
    data = plain.Plain(photographs, 1, 16, 4, workers=0)
    assert data.sources == [0, 2] and data.num_classes == 2
    assert len(data.evaluations) == 6
    for _ in range(2):  # again at the next checkpoint
        sizes = [sum(len(y) for _, y in batches) for batches in data.evaluations]
        assert sizes == [20, 20, 20, 4, 4, 4]
    assert [(*x.shape, *y.shape) for x, y in data.minibatches()] == [(4, 3, 16, 16, 4)] * 2


def test_the_plain_training_part_is_what_is_not_held_out(plain):
    out, rest = plain.held_out(24, seed=0)
    assert len(out) == 4 and Counter(out + rest) == Counter(range(24))


def test_a_batch_that_an_environment_can_not_fill_is_refused(plain, photographs):
    with pytest.raises(UserError, match="camera0, camera1, camera2: fewer than 21 images"):
        plain.Plain(photographs, 1, 16, 21, workers=0)
