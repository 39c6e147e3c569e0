"""Several processes, started by torchrun or accelerate: the same run, in shares; what one process does to the others.

Both listen on all addresses, so they are started in a network of their own, which has nothing but loopback.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_contract import IN_PARTS
from tools import leave_out

CHECKOUT = Path(__file__).parents[1]
ALONE = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]

LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc_per_node {} --master_addr 127.0.0.1",
    # what it calls several GPUs is several processes, wherever they compute
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes {} --main_process_ip 127.0.0.1",
}

PLUGIN = """
import os, signal
from domainbed.algorithms.autoencoder import AE
from domainbed.registry import ALGORITHMS

@ALGORITHMS.register("Faulty")
class Faulty(AE):
    '''AE that stops, dies or finishes, as the environment says.'''

    def after_step(self):
        fault = os.environ.get("FAULT") if os.environ.get("RANK") == "1" else None
        if fault == "stop" and int(self.step) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        if fault == "die" and int(self.step) == 6:
            os._exit(9)
"""


@pytest.fixture
def run(tmp_path: Path, photographs: Path):
    """Run train_all by several processes: run("name", "--resume", processes=2, fault="die") -> (status, output)."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        leave_out("torchrun is tested in a network of its own, which needs `unshare` and `ip`")
    probe = subprocess.run([*ALONE, "true"], capture_output=True, text=True)
    if probe.returncode:
        leave_out(f"torchrun is tested in a network of its own, which can't be made here: {probe.stderr.strip()}")
    plugin = tmp_path / "faulty.py"
    plugin.write_text(PLUGIN)
    (tmp_path / "config.yaml").write_text("")
    settings = [
        "--plugin", plugin, "--algorithm", "Faulty", "--data_dir", photographs, "--test_envs", "0", "--steps", "8",
        "--checkpoint_freq", "4", "--recon_freq", "0", "--tb_freq", "1", "batch_size=4", "noise=0.3", "image_size=16",
        "--device", "cpu", "--precision", "float32", "--eval_batch_size", "3", "augment=horizontal_flip",
        "optimizer=sgd", "lr=0.01",
    ]  # fmt: skip

    def start(
        name: str, *arguments: str, processes: int = 1, fault: str = "", launcher: str = "torchrun"
    ) -> tuple[int, str]:
        # one thread, as torchrun gives each process
        environment = os.environ | {"FAULT": fault, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
        module = ["-m", *LAUNCHERS[launcher].format(processes).split()]
        words = [*ALONE, sys.executable, *(module if processes > 1 else []), str(CHECKOUT / "train_all.py")]
        done = subprocess.run(
            [*words, name, *map(str, settings if "--resume" not in arguments else []), *arguments],
            cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        return done.returncode, done.stdout

    return start


def records(tmp_path: Path, name: str) -> list[dict]:
    path = tmp_path / "results" / "train_output" / "DR" / name / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_figures(found: list[dict], expected: list[dict]) -> None:
    """Equal but for the order in which sums were taken."""
    assert [(one["kind"], one.get("step"), one.get("part")) for one in found] == [
        (one["kind"], one.get("step"), one.get("part")) for one in expected
    ]
    for one, other in zip(found, expected, strict=True):
        if one["kind"] == "train":
            assert one["total_loss"] == pytest.approx(other["total_loss"], rel=1e-4)
        if one["kind"] in ("eval", "final"):
            assert one["n"] == other["n"]
            for metric, value in other["metrics"].items():
                assert one["metrics"][metric] == pytest.approx(value, rel=1e-3), metric
            for metric, bounds in other.get("intervals", {}).items():
                assert one["intervals"][metric] == pytest.approx(bounds, rel=1e-3), metric


def test_two_processes_make_the_same_run_and_either_goes_on_with_it(run, tmp_path: Path) -> None:
    status, output = run("one")
    assert status == 0, output
    expected = records(tmp_path, "one")

    status, output = run("two", processes=2)
    assert status == 0, output
    assert_same_figures(records(tmp_path, "two"), expected)
    assert output.count("summary, pictures and weights are in") == 1, "one process speaks for all"
    log = (tmp_path / "results" / "train_output" / "DR" / "two" / "log.txt").read_text()
    assert "2 processes" in log and log.count("step 8/8") == 1

    status, output = run("launched", processes=2, launcher="accelerate")
    assert status == 0, output
    assert_same_figures(records(tmp_path, "launched"), expected)
    assert "2 processes" in (tmp_path / "results" / "train_output" / "DR" / "launched" / "log.txt").read_text()

    status, output = run("stopped", processes=2, fault="stop")
    assert status != 0 and "stopped by another process after step 4. Go on with --resume" in output
    status, output = run("stopped", "--resume")
    assert status == 0, output
    assert "goes on after step 4" in output and "2 processes" in output, "and says that it began otherwise"
    assert_same_figures(
        [one for one in records(tmp_path, "stopped") if one["kind"] != "note"],
        [one for one in expected if one["kind"] != "note"],
    )


def test_a_process_that_dies_ends_the_others_and_the_run_goes_on_from_its_checkpoint(run, tmp_path: Path) -> None:
    status, output = run("dies", processes=2, fault="die")
    assert status != 0
    assert "error: another process of this run has ended or does not answer" in output
    assert "exitcode  : 9" in output, "torchrun says which and how"
    status, output = run("dies", "--resume")
    assert status == 0 and "goes on after step 4" in output, output


def test_a_mistake_that_all_processes_make_is_said_once(run, tmp_path: Path) -> None:
    status, output = run("mistake", "batch_size=3", processes=2)
    assert status != 0
    assert output.count("can't be cut into 2 equal parts (processes: 2, accumulate = 1). Use batch_size=4") == 1
    assert not list((tmp_path / "results").rglob("te_*")), "nothing was begun"


STEP = """
import json
import sys
import torch
from domainbed.engine import Engine
from domainbed.registry import ALGORITHMS
from domainbed.stepping import cut
from domainbed.testing import build, minibatches

OPTIONS = json.loads(sys.argv[1])

def step(algorithm, batches):
    for module in algorithm.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    torch.manual_seed(1000)
    return algorithm.update(batches)

torch.set_num_threads(1)
for name in ALGORITHMS:
    if ALGORITHMS[name].min_domains > 1:  # compares environments, so it is refused in parts
        continue
    options = {"optimizer": "sgd", "lr": 0.01, **OPTIONS.get(name, {})}
    whole, shared = build(ALGORITHMS[name], **options), build(ALGORITHMS[name], **options)
    engine = Engine("cpu", "float32")
    engine.prepare(shared)
    batches = minibatches(algorithm=whole)
    losses, found = step(whole, batches), step(shared, cut(batches, engine.process, engine.num_processes))
    pairs = [(key, value.float(), found[key]) for key, value in losses.items()]
    pairs += [(key, value, shared.state_dict()[key]) for key, value in whole.state_dict().items()]
    wrong = [key for key, one, other in pairs if not torch.allclose(one, other, rtol=1e-3, atol=1e-5)]
    print(f"{engine.process} of {engine.num_processes}: {name}: {wrong or 'same'}", flush=True)
    engine.release()

# BatchNorm's statistics are each process's own until they are judged: then they are what the main process saves
normalised = build(ALGORITHMS["ERM"], weight_ema=0.5)
engine = Engine("cpu", "float32")
engine.prepare(normalised)
normalised.update(cut(minibatches(algorithm=normalised), engine.process, engine.num_processes))
def differ():
    with engine.average.in_place():
        sums = sum(one.double().sum().item() for one in [*normalised.parameters(), *normalised.buffers()])
    return len(set(engine.gathered([sums]))) > 1
before = differ()
engine.share_statistics()
print(f"{engine.process} of {engine.num_processes}: statistics differed {before}, differ {differ()}", flush=True)
"""


def test_half_of_a_batch_in_each_of_two_processes_is_the_step_of_the_whole(run, tmp_path: Path) -> None:
    from domainbed.registry import ALGORITHMS

    script = tmp_path / "step.py"
    script.write_text(STEP)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [*ALONE, sys.executable, *launcher, str(script), json.dumps(IN_PARTS)],
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
    )
    for process in range(2):
        for name in (name for name in ALGORITHMS if ALGORITHMS[name].min_domains == 1):
            assert f"{process} of 2: {name}: same" in done.stdout, done.stdout + done.stderr[-2000:]
        assert f"{process} of 2: statistics differed True, differ False" in done.stdout, done.stderr[-2000:]
