"""wandb's server is away, wandb or the trainer is killed: the server ends with one whole run."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import pytest
import wandb

from dist_mnist.record.journal import Journal, Line, read_journal
from dist_mnist.tracking import wandb_run
from dist_mnist.training.run import run
from tests.support.configs import SOLO, make_config
from tests.support.processes import free_port
from tests.support.tracking import folders, numbers, start, track
from tests.support.wandb_cli import sync
from tests.support.wandb_server import WandbServer, wandb_server

# What the processes that the tests start need of the environment, too.
ENVIRONMENT = {
    "WANDB_API_KEY": "a" * 40,
    "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",  # the shortest
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server of wandb's, a key for it, and little patience."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb_run, "SERVER_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(wandb_run, "UPLOAD_TIMEOUT_SECONDS", 5.0)
    with wandb_server() as server:
        for name, value in {**ENVIRONMENT, "WANDB_BASE_URL": server.url}.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # it remembers the environment
        yield server
        wandb.teardown()


def steps(first: int, last: int) -> list[Line]:
    return [{"kind": "step", "epoch": 1, "step": step} for step in range(first, last + 1)]


def epoch(number: int) -> list[Line]:
    return [{"kind": kind, "epoch": number, "step": number} for kind in ("step", "epoch")]


def scored(number: int) -> Line:
    return {"kind": "test", "epoch": number, "step": number, "seconds": 1.0}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = perf_counter() + 30
    while not condition():
        assert perf_counter() < deadline
        sleep(0.01)


def signal_service(number: int) -> list[int]:
    """Send a signal to the wandb services that this process has started; return their ids."""
    tasks = Path("/proc/self/task").glob("*/children")
    children = [int(pid) for task in tasks for pid in task.read_text().split()]
    pids = [pid for pid in children if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]
    for pid in pids:
        os.kill(pid, number)
    return pids


@pytest.mark.parametrize("answer", ["refused", pytest.param("silence", marks=pytest.mark.slow)])
def test_server_away_at_start(
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: str,
) -> None:
    server.answers.clear()
    if answer == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    track(tmp_path, "auto", [], steps(1, 3))
    assert folders(tmp_path) == ["offline-run"]
    (warning,) = warnings(caplog)
    assert warning.endswith(f"wandb sync {tmp_path}/wandb/offline-run-*")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    server.answers.set()
    sync(tmp_path)
    assert server.numbers(tmp_path) == [3, 6, 9]


def test_server_back_at_a_later_start(server: WandbServer, tmp_path: Path) -> None:
    server.answers.clear()
    track(tmp_path, "online", [], steps(1, 2))
    server.answers.set()
    track(tmp_path, "online", steps(1, 2), steps(3, 4))
    assert folders(tmp_path) == ["run"]
    assert server.numbers(tmp_path) == [3, 6, 9, 12]


@pytest.mark.slow
def test_server_away_at_a_later_start(server: WandbServer, tmp_path: Path) -> None:
    track(tmp_path, "online", [], steps(1, 2))
    server.answers.clear()
    track(tmp_path, "online", steps(1, 2), steps(3, 4))
    server.answers.set()
    assert folders(tmp_path) == ["offline-run", "run"]
    sync(tmp_path)
    assert server.numbers(tmp_path) == [3, 6, 9, 12]
    track(tmp_path, "online", steps(1, 4), steps(5, 5))
    assert folders(tmp_path) == ["run", "run"]
    assert server.numbers(tmp_path) == [3, 6, 9, 12, 15]


@pytest.mark.parametrize("is_back", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_server_away_in_the_middle(
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_back: bool,
) -> None:
    with monkeypatch.context() as context:
        if not is_back:
            context.setattr(wandb_run, "UPLOAD_TIMEOUT_SECONDS", 1.0)
        tracker = start(tmp_path, "online", steps(1, 2))
        wait_for(lambda: server.numbers(tmp_path) == [3, 6])
    server.answers.clear()
    for line in steps(3, 4):
        tracker.log(line)
    if is_back:
        sleep(0.2)
        server.answers.set()
    tracker.finish(exit_code=0)
    assert sum("upload is not finished" in text for text in warnings(caplog)) == (not is_back)
    server.answers.set()
    track(tmp_path, "online", steps(1, 4), [])
    assert server.numbers(tmp_path) == [3, 6, 9, 12]


def test_synced_before_and_continued(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setenv("WANDB_RESUME", "allow")  # must not get into the run's files
        track(tmp_path, "offline", [], steps(1, 3))
    sync(tmp_path)
    track(tmp_path, "offline", steps(1, 2), steps(3, 5))
    sync(tmp_path)
    assert folders(tmp_path) == ["offline-run"]
    assert server.numbers(tmp_path) == [3, 6, 9, 12, 15]


@pytest.mark.parametrize(
    ("mode", "earlier_test"),
    [("online", [5]), ("offline", [])],  # the journal drops the line of an earlier test
)
def test_finished_run_started_again(
    server: WandbServer, tmp_path: Path, mode: str, earlier_test: list[int]
) -> None:
    track(tmp_path, mode, [], [*epoch(1), scored(1)])
    track(tmp_path, mode, epoch(1), [scored(1)])
    sync(tmp_path)
    assert server.numbers(tmp_path) == [3, 4, 5]
    track(tmp_path, mode, epoch(1), [*epoch(2), scored(2)])
    sync(tmp_path)
    assert server.numbers(tmp_path) == [3, 4, *earlier_test, 6, 7, 8]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_killed(
    server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    tracker = start(tmp_path, mode, steps(1, 2))
    if mode == "online":
        wait_for(lambda: server.numbers(tmp_path) == [3, 6])
    wait_for(lambda: list(tmp_path.glob("wandb/*run-*/*.wandb")))
    signal_service(signal.SIGKILL)
    for line in steps(3, 4):
        tracker.log(line)
    tracker.finish(exit_code=0)
    (warning,) = warnings(caplog)
    assert "training goes on" in warning
    track(tmp_path, mode, steps(1, 4), [])
    sync(tmp_path)
    assert server.numbers(tmp_path) == [3, 6, 9, 12]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["silent server", "hung service"])
def test_process_ends(server: WandbServer, tmp_path: Path, trouble: str) -> None:
    server.answers.clear()
    script = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from dist_mnist.tracking import tracker\n"
        "from tests.tracking.test_wandb_interruptions import signal_service, start, wait_for\n"
        "tracker.FINISH_TIMEOUT_SECONDS = 0.5\n"
        "run_dir = Path(sys.argv[1])\n"
        "run = start(run_dir, 'online')\n"
        "wait_for(lambda: list(run_dir.glob('wandb/run-*')))\n"
        "if sys.argv[2] == 'hung service':\n"
        "    (run_dir / 'pids').write_text(' '.join(map(str, signal_service(signal.SIGSTOP))))\n"
        "run.finish(0)\n"
        "sys.exit(3)"
    )
    errors = tmp_path / "errors"  # a file, for the service would hold a pipe open
    with errors.open("w") as file:
        command = [sys.executable, "-c", script, str(tmp_path), trouble]
        process = subprocess.Popen(command, stderr=file)
    try:
        assert process.wait(timeout=20) == 3
        assert "giving up on it" in errors.read_text()
        assert "Traceback" not in errors.read_text()
    finally:
        process.kill()
        if trouble == "hung service":
            for pid in (tmp_path / "pids").read_text().split():
                os.kill(int(pid), signal.SIGKILL)


def _train_up_to(
    line_count: int, is_there: Event, environment: dict[str, str], overrides: Sequence[str]
) -> None:
    """Train until so many lines are in the journal, then wait to be killed."""
    for name in ("WANDB_SERVICE", "WANDB_MODE"):  # a service of its own, and the mode of the test
        os.environ.pop(name, None)
    os.environ.update(environment)
    write, left = Journal.write, line_count

    def write_and_wait(journal: Journal, line: Line) -> None:
        nonlocal left
        write(journal, line)
        left -= 1
        if left == 0:
            is_there.set()
            sleep(60)

    Journal.write = write_and_wait  # type: ignore[method-assign, assignment]
    run(make_config(*overrides), SOLO)


def has_arrived(server: WandbServer, run_dir: Path, rows: Sequence[int]) -> bool:
    return server.numbers(run_dir)[: len(rows)] == rows


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_trainer_killed_again_and_again(
    small_root: Path, tmp_path: Path, server: WandbServer, mode: str
) -> None:
    overrides = [
        "data=fashion_mnist",
        f"data.root={small_root}",
        "data.validation_size=50",
        f"run_dir={tmp_path}",
        f"tracking={mode}",
        "trainer.global_batch_size=50",
        "trainer.epochs=3",
        "trainer.log_every_steps=1",
        "trainer.checkpoint_every_steps=3",
        "trainer.device=cpu",
    ]
    environment = {**ENVIRONMENT, "WANDB_BASE_URL": server.url}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dist_mnist.training.run", "torch._dynamo"])
    for line_count in (6, 4):
        is_there = context.Event()
        process = context.Process(
            target=_train_up_to, args=(line_count, is_there, environment, overrides)
        )
        process.start()
        assert is_there.wait(30)
        logged = numbers(read_journal(tmp_path / "metrics.jsonl")[:-1])
        if mode == "online":
            wait_for(partial(has_arrived, server, tmp_path, logged))
        process.kill()
        process.join()
    run(make_config(*overrides), SOLO)
    sync(tmp_path)
    assert server.numbers(tmp_path) == numbers(read_journal(tmp_path / "metrics.jsonl"))
