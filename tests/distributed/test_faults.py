"""Real kills, signals and hangs of real processes, and the run's reaction."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from dist_mnist.distributed import shared_memory, signals
from dist_mnist.distributed.session import is_lost_contact
from dist_mnist.distributed.signals import INTERRUPTED, STOPPED
from dist_mnist.record import checkpoint
from dist_mnist.training.finite import NonFiniteError
from tests import faults
from tests.support.configs import CHECKOUT, SMALL_DATA
from tests.support.datasets import write_idx
from tests.support.processes import free_port, python, run_ranks, torchrun
from tests.support.runs import assert_equal, result, run_once
from tests.support.wandb_cli import inspect

SMALL = (
    *SMALL_DATA,
    "trainer.epochs=2",
    "trainer.log_every_steps=3",
    "model=mlp",
    "model.hidden_sizes=[16]",
    "model.dropout=0.2",
    "trusted_modules=[tests.support.networks]",
)


def misbehaving(folder: Path, does: str, rank: int = 0, step: int = 5) -> list[str]:
    """Return the overrides for a run in a folder whose network does something in one step."""
    return [
        *SMALL,
        f"run_dir={folder / 'run'}",
        "model._target_=tests.support.networks.Misbehaving",
        f"+model.step={step}",
        f"+model.rank={rank}",
        f"+model.does={does}",
        f"+model.once={folder / 'done'}",
    ]


def require_equal(folder: Path, size: int, overrides: list[str]) -> None:
    """Require that a finished run equals one that was not disturbed, in a folder beside it."""
    other = folder / "undisturbed"
    other.mkdir()
    (other / "done").touch()
    named = [text.replace(str(folder), str(other)) for text in overrides]
    run_ranks(size, run_once, named)
    (checkpoint_a, journal_a), (checkpoint_b, journal_b) = (
        result(folder / "run"),
        result(other / "run"),
    )
    assert_equal(checkpoint_a["model"], checkpoint_b["model"])
    assert_equal(checkpoint_a["optimizer"], checkpoint_b["optimizer"])
    assert journal_a == journal_b


# `python -m tests.faults` does hundreds, and of every kind.
@pytest.mark.slow
def test_killed_run_continues_exactly(tmp_path: Path) -> None:
    runs = faults.kill_runs(["restart"], kills=1, kills_of_a_run=1, seed=1, folder=tmp_path)
    assert [run for run in runs if not run.is_equal] == []


def run_with_handlers(overrides: list[str]) -> float:
    signals.install()
    return run_once(overrides)


def test_signal_to_one_rank_stops_all(small_root: Path, tmp_path: Path) -> None:
    overrides = [*misbehaving(tmp_path, "SIGUSR1", rank=1), f"data.root={small_root}"]
    with pytest.raises(signals.AgreedStop, match="a signal to another rank"):
        run_ranks(2, run_with_handlers, overrides)
    last = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert 5 <= last["progress"]["step"] < 16
    run_ranks(2, run_once, overrides)
    require_equal(tmp_path, 2, overrides)


@pytest.mark.slow
def test_torchrun_reports_a_stop(small_root: Path, tmp_path: Path) -> None:
    overrides = [*misbehaving(tmp_path, "SIGUSR1", rank=1), f"data.root={small_root}"]
    stopped = torchrun(2, *overrides, PYTHONPATH=str(CHECKOUT))
    assert stopped.returncode != 0
    assert stopped.stderr.count(f"exitcode  : {STOPPED} ") == 2
    assert stopped.stdout.count("stopped by a signal to another rank after step") == 1
    last = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert 5 <= last["progress"]["step"] < 16


@pytest.mark.slow
def test_ctrl_c_to_rank_0_alone(small_root: Path, tmp_path: Path) -> None:
    overrides = [*misbehaving(tmp_path, "SIGINT", rank=0), f"data.root={small_root}"]
    stopped = torchrun(2, *overrides, PYTHONPATH=str(CHECKOUT), WANDB_MODE="offline")
    assert stopped.stderr.count(f"exitcode  : {STOPPED} ") == 2
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert json.loads(inspect(file, "--summary"))["exit_code"] == STOPPED


def run_without_shared_memory(overrides: list[str]) -> None:
    shared_memory.is_supported = lambda: False
    run_once(overrides)


@pytest.mark.slow
def test_gloo_sums_survive_a_restart(small_root: Path, tmp_path: Path) -> None:
    (tmp_path / "done").touch()
    overrides = [*misbehaving(tmp_path, "nothing"), f"data.root={small_root}"]
    run_ranks(3, run_without_shared_memory, [*overrides, "trainer.max_steps=5"])
    run_ranks(3, run_without_shared_memory, overrides)
    require_equal(tmp_path, 3, overrides)  # which goes through shared memory


@pytest.mark.slow
def test_lost_rank_leaves_no_gradient(small_root: Path, tmp_path: Path) -> None:
    """A failed gather is reported as a lost rank, and no checkpoint follows it."""
    overrides = [
        *misbehaving(tmp_path, "SIGKILL", rank=1),
        f"data.root={small_root}",
        "trainer.compress_gradients=true",  # goes through gloo
        "trainer.checkpoint_every_steps=1",
    ]
    with pytest.raises(RuntimeError, match="gloo") as lost:
        run_ranks(2, run_once, overrides)
    assert is_lost_contact(lost.value), lost.value
    last = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert last["progress"]["step"] == 4
    run_ranks(2, run_once, overrides)
    require_equal(tmp_path, 2, overrides)


@pytest.mark.slow
def test_stopped_process_has_a_special_status(small_root: Path, tmp_path: Path) -> None:
    overrides = [*misbehaving(tmp_path, "SIGTERM"), f"data.root={small_root}"]
    stopped = python("-m", "dist_mnist", *overrides, PYTHONPATH=str(CHECKOUT))
    assert stopped.returncode == STOPPED
    assert stopped.stderr == ""
    assert stopped.stdout.splitlines()[-1] == (
        f"stopped by SIGTERM after step 5: start again with run_dir={tmp_path / 'run'} to continue"
    )
    assert "AgreedStop" in (tmp_path / "run" / "train.log").read_text()
    run_ranks(1, run_once, overrides)
    require_equal(tmp_path, 1, overrides)


@contextmanager
def training(
    small_root: Path, folder: Path, does: str, *launcher: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a training without an end, and wait until it is under way."""
    process = subprocess.Popen(
        [
            *(sys.executable, *launcher, "-m", "dist_mnist", *misbehaving(folder, does, step=20)),
            *(f"data.root={small_root}", "trainer.epochs=1000000"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        # A shell makes background programs ignore Ctrl-C, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not (folder / "done").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def require_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), (*faults.TORCHRUN, "--nproc_per_node=2")])
def test_a_second_ctrl_c_ends_at_once(
    small_root: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    with training(small_root, tmp_path, "sleep", *launcher) as process:
        ranks = faults.children(process.pid)
        process.send_signal(signal.SIGINT)
        if not launcher:  # the same once more, as from a launcher that passes it on
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert process.poll() is None  # it would stop after the step, which takes a minute
        process.send_signal(signal.SIGINT)
        status = process.wait(10)
        assert status == (1 if launcher else INTERRUPTED)
        require_gone(ranks)


@pytest.mark.slow
def test_stopped_torchrun_leaves_no_process(small_root: Path, tmp_path: Path) -> None:
    launcher = (*faults.TORCHRUN, "--nproc_per_node=2")
    with training(small_root, tmp_path, "nothing", *launcher) as process:
        ranks = faults.children(process.pid)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "stopped by SIGTERM after step" in out
        assert len(ranks) == 2
        require_gone(ranks)


def handles_sigterm(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_signal_before_training_ends_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "dist_mnist"], cwd=tmp_path)
    try:
        while not handles_sigterm(process.pid):  # and then in the middle of the imports
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == STOPPED
    finally:
        process.kill()


def start_hanging(
    small_root: Path, folder: Path, does: str, *overrides: str
) -> subprocess.Popen[str]:
    """Start two ranks of which one will hang."""
    folder.mkdir()
    return subprocess.Popen(
        [
            *(sys.executable, *faults.TORCHRUN, "--nproc_per_node=2", "-m", "dist_mnist"),
            *misbehaving(folder, does, rank=1),
            *(f"data.root={small_root}", "trainer.timeout_seconds=6", *overrides),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )


def errors_of(process: subprocess.Popen[str]) -> list[str]:
    """Return the error lines of a run that hangs."""
    ranks: list[int] = []
    errors: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            ranks = ranks or faults.children(process.pid)
            errors += [line] if "error:" in line else []
            if errors:  # torchrun would wait half a minute for a rank that is stopped
                for rank in ranks:
                    with suppress(ProcessLookupError):
                        os.kill(rank, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    return errors


@pytest.mark.slow
def test_slow_rank_is_named(small_root: Path, tmp_path: Path) -> None:
    stopped = start_hanging(small_root, tmp_path / "stopped", "SIGSTOP")
    slow = start_hanging(small_root, tmp_path / "slow", "sleep")
    for process, sentence in (
        (stopped, "rank 1 sends no heartbeat"),
        (slow, "rank 1 is behind, in step 5; rank 0 waits in the gradients of step 5"),
    ):
        (error,) = errors_of(process)
        assert "error: no progress for 6 s (trainer.timeout_seconds): " in error
        assert sentence in error


@pytest.mark.slow
def test_slow_shard_is_named(small_root: Path, tmp_path: Path) -> None:
    # Each rank has four shards: the fifth pass is in step 2.
    in_shards = "trainer.reproducible=true"
    (error,) = errors_of(start_hanging(small_root, tmp_path / "run", "sleep", in_shards))
    assert "rank 1 is behind, in shard 1 of step 2; rank 0 waits in the gradients of step" in error


def test_a_missing_rank_is_named(small_root: Path, tmp_path: Path) -> None:
    alone = python(
        *("-m", "dist_mnist", *misbehaving(tmp_path, "nothing"), f"data.root={small_root}"),
        "trainer.timeout_seconds=2",
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    assert alone.returncode == 1
    assert alone.stderr.startswith(
        "[rank 0] error: rank 1 of 2 did not join within trainer.timeout"
    )
    assert alone.stderr.count("\n") == 1


LATE = """
import os, sys, time
import torch, torch.distributed as dist
from dist_mnist.distributed import gpus, session as module
connect, pick = dist.init_process_group, module._pick_device
def late(*args, **kwargs):
    time.sleep(60 if os.environ["RANK"] == "1" and sys.argv[1] == "stuck" else 0)
    return connect(*args, **kwargs)
def other(name, place):
    return torch.device("meta" if place.rank == 1 and sys.argv[1] == "device" else "cpu")
dist.init_process_group, module._pick_device, gpus.tried = late, other, lambda _, device: device
with module.session("auto", 2):
    print("joined")
"""


@pytest.mark.parametrize(
    ("what", "told", "statuses"),
    [
        # NCCL would wait without end for a rank that is stuck before it connects.
        ("stuck", "rank 1 is behind|all ranks are in start-up", [1, 1]),
        ("device", "the device differs between the ranks: cpu on rank 0, meta on rank 1", [1, 1]),
    ],
)
def test_ranks_that_cannot_connect_are_told(what: str, told: str, statuses: list[int]) -> None:
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LATE, what],
            env={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                **{"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = "".join(rank.communicate(timeout=60)[1] for rank in ranks)
    assert [rank.returncode for rank in ranks] == statuses, errors
    assert re.search(told, errors), errors


@pytest.mark.slow
@pytest.mark.parametrize(("size", "does"), [(1, "forget"), (2, "overflow")])
def test_non_finite_step_stops_all_ranks(
    small_root: Path, tmp_path: Path, size: int, does: str
) -> None:
    overrides = [*misbehaving(tmp_path, does, rank=size - 1, step=11), f"data.root={small_root}"]
    with pytest.raises(Exception, match="not finite in step 11 ") as caught:
        run_ranks(size, run_once, overrides)
    assert "learning rate 0.0" in str(caught.value)
    assert "loss scale 1" in str(caught.value)
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoint.load(folder / "last.safetensors")["progress"]["step"] == 8
    run_ranks(size, run_once, overrides)  # the network behaves from now on
    require_equal(tmp_path, size, overrides)


def test_non_finite_weights_are_not_saved(small_root: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"run_dir={tmp_path}", f"data.root={small_root}", "scheduler=constant"]
    with pytest.raises(NonFiniteError, match="not finite by step 1 "):
        run_once(
            [*overrides, "optimizer=sgd", "optimizer.lr=1e39", "trainer.checkpoint_every_steps=1"]
        )
    assert not (tmp_path / "checkpoints").exists()


def write_numbered_images(root: Path) -> None:
    """Write a training and a test set whose first two pixels hold each image's number."""
    for part, size in (("train", 207), ("t10k", 50)):
        numbers = torch.arange(size)
        images = torch.randint(0, 256, (size, 28, 28), dtype=torch.uint8)
        images[:, 0, 0], images[:, 0, 1] = numbers // 256, numbers % 256
        folder = root / "FashionMNIST" / "raw"
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", (numbers % 10).to(torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 4])
def test_resume_at_another_world_size(tmp_path: Path, size: int) -> None:
    write_numbered_images(tmp_path)
    overrides = [
        *SMALL,
        f"data.root={tmp_path}",
        f"run_dir={tmp_path / 'run'}",
        "data.validation_size=0",
        "data.normalize=false",
        "augmentation=none",
        "trainer.epochs=1",
        "model._target_=tests.support.networks.Recording",
        f"+model.file={tmp_path / 'seen'}",
    ]
    run_ranks(2, run_once, [*overrides, "trainer.max_steps=4"])
    first = (tmp_path / "seen").read_text().split()
    assert len(set(first)) == len(first) == 80
    run_ranks(size, run_once, overrides)
    seen = [int(number) for number in (tmp_path / "seen").read_text().split()]
    assert sorted(seen) == list(range(207))
