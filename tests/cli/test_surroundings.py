"""What surrounds a command: standard streams, signals, a launcher's variables, the user's environment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TINY = [
    "--algorithm", "AE", "--steps", "2", "latent_dim=2", "batch_size=2", "image_size=16", "num_images=6", "--device",
    "cpu", "--precision", "float32", "--checkpoint_freq", "2", "--recon_freq", "0",
]  # fmt: skip
TRAIN = [sys.executable, str(REPOSITORY / "train_subset.py")]
COMMAND = [sys.executable, "-m", "domainbed"]


def surroundings(**changes: str | None) -> dict[str, str]:
    """Return this process's environment, changed; None takes a variable away."""
    known = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | changes
    return {name: value for name, value in known.items() if value is not None}


def shell(command: list[str], redirections: str, folder: Path, **changes: str | None) -> tuple[int, str, str]:
    (folder / "config.yaml").write_text("")
    words = ["sh", "-c", f'exec "$@" {redirections}', "sh", *command]
    done = subprocess.run(words, cwd=folder, env=surroundings(**changes), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full to write to")
@pytest.mark.parametrize(
    "command",
    [[*COMMAND, "list"], [*COMMAND, "list", "VAE", "--json"], [*COMMAND, "--help"], COMMAND, [*TRAIN, "--help"],
     [*COMMAND, "export", "--help"]],
    ids=range(6),
)  # fmt: skip
def test_output_to_a_full_device_is_one_message_and_status_2(command: list[str], tmp_path: Path) -> None:
    status, _, err = shell(command, ">/dev/full", tmp_path)
    assert status == 2 and err.startswith("error: ") and "No space left" in err and err.count("\n") == 1, err
    assert shell(command, ">/dev/full 2>/dev/full", tmp_path)[0] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full to write to")
def test_a_message_that_can_not_be_written_keeps_its_status(tmp_path: Path) -> None:
    for redirection in ("2>/dev/full", "2>&-", "2>&- >&- <&-"):
        assert shell([*COMMAND, "nope"], redirection, tmp_path)[0] == 2, redirection
    status, _, err = shell([*TRAIN, "run", *TINY], ">/dev/full", tmp_path)
    assert status == 2 and "No space left" in err and not (tmp_path / "results").exists()


def test_a_run_with_closed_streams_in_odd_surroundings_is_a_run_like_any_other(tmp_path: Path) -> None:
    """Files must not take the numbers of closed streams, or output would land in them."""
    changes = {
        "HF_HOME": "/proc/none", "TMPDIR": "/none", "MPLBACKEND": "TkAgg", "LANG": "C", "PYTHONIOENCODING": "ascii",
        "COLUMNS": "abc", "TERM": "dumb", "OMP_NUM_THREADS": "abc", "CUDA_VISIBLE_DEVICES": "abc", "HOME": None,
        "ACCELERATE_MIXED_PRECISION": "fp8", "ACCELERATE_DYNAMO_BACKEND": "none such", "ACCELERATE_USE_CPU": "perhaps",
        "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    }  # fmt: skip
    losses = {}
    for name, redirections, odd in (("plain", "", {}), ("odd", "", changes), ("closed", "<&- >&- 2>&-", {})):
        status, out, err = shell([*TRAIN, name, *TINY], redirections, tmp_path, **odd)
        assert status == 0 and "Traceback" not in err, err
        folder = tmp_path / "results/train_output/SyntheticFundus" / name
        records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        losses[name] = [record["total_loss"] for record in records if record["kind"] == "train"]
        assert "summary, pictures" in (folder / "log.txt").read_text()
    assert losses["odd"] == losses["closed"] == losses["plain"]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "2"}, ["RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set", "unset WORLD_SIZE"]),
        ({"RANK": "1"}, ["WORLD_SIZE", "unset RANK"]),
        ({"LOCAL_RANK": "abc"}, ["LOCAL_RANK = 'abc' is no whole number"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ["unset OMPI_COMM_WORLD_SIZE"]),
        ({"PMI_SIZE": "x"}, ["PMI_SIZE = 'x'"]),
        (dict(zip(LAUNCHED, ["2", "2", "0", "localhost", "29500"], strict=True)), ["RANK = 2 is not below"]),
        (dict(zip(LAUNCHED, ["0", "2", "1", "localhost", "29500"], strict=True)), ["LOCAL_RANK = 1 is above"]),
        (dict(zip(LAUNCHED, ["0", "2", "0", "localhost", "99999"], strict=True)), ["is no port"]),
        (dict(zip(LAUNCHED, ["0", "two", "0", "localhost", "1234"], strict=True)), ["WORLD_SIZE = 'two'"]),
    ],
)
def test_what_a_launcher_left_over_is_named(
    variables: dict[str, str], says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from domainbed.engine import Engine
    from domainbed.errors import UserError

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as raised:
        Engine("cpu", "float32")
    assert all(text in str(raised.value) for text in says), raised.value


def test_one_process_that_says_so_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from domainbed.machine import check_launcher

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_SIZE", "1"), ("SLURM_PROCID", "3")):
        monkeypatch.setenv(name, value)
        check_launcher()


def started(folder: Path, before: str = "") -> subprocess.Popen[bytes]:
    """Start a long training, and return when it has begun its steps."""
    (folder / "config.yaml").write_text("")
    command = [*TRAIN, "run", *TINY, "--steps", "1000000", "--checkpoint_freq", "1000000", "--tb_freq", "1"]
    process = subprocess.Popen(
        ["sh", "-c", f'{before} exec "$@"', "sh", *command], cwd=folder, env=surroundings(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    results = folder / "results/train_output/SyntheticFundus/run/results.jsonl"
    deadline = time.monotonic() + 120
    while not (results.exists() and '"train"' in results.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.2)
    return process


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU])
def test_a_signal_to_stop_saves_and_one_that_was_ignored_at_the_start_does_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    trap = f"trap '' {signal.SIGHUP.name[3:]};" if number == signal.SIGUSR1 else ""  # as nohup does
    process = started(tmp_path, trap)
    try:
        if trap:
            process.send_signal(signal.SIGHUP)
            time.sleep(1)
            assert process.poll() is None, "it was started to ignore a lost terminal"
        process.send_signal(number)
        assert process.wait(60) == 130
    finally:
        process.kill()
    folder = tmp_path / "results/train_output/SyntheticFundus/run"
    assert f"stopped by {number.name} after step" in (folder / "log.txt").read_text()
    assert list(folder.glob("te_*/checkpoints/last/state.pt"))


def test_a_terminal_that_goes_takes_no_run_with_it(tmp_path: Path) -> None:
    """Writing to it fails then, with EIO, while the run saves."""
    import pty

    (tmp_path / "config.yaml").write_text("")
    command = [*TRAIN, "run", *TINY, "--steps", "1000000", "--checkpoint_freq", "1000000", "--tb_freq", "1"]
    child, terminal = pty.fork()
    if not child:
        os.chdir(tmp_path)
        os.execve(command[0], command, surroundings())
    results = tmp_path / "results/train_output/SyntheticFundus/run/results.jsonl"
    deadline = time.monotonic() + 120
    os.set_blocking(terminal, False)
    while not (results.exists() and '"train"' in results.read_text()) and time.monotonic() < deadline:
        try:
            os.read(terminal, 2**16)  # or the child waits for a reader
        except BlockingIOError:
            time.sleep(0.2)
    os.close(terminal)  # hangs up: SIGHUP, and EIO for whoever writes
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    folder = tmp_path / "results/train_output/SyntheticFundus/run"
    assert "stopped by SIGHUP after step" in (folder / "log.txt").read_text()
    assert list(folder.glob("te_*/checkpoints/last/state.pt"))
