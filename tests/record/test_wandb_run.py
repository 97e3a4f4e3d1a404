"""Real wandb runs, read back with wandb's own reader, and with a server that is there or not."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import pytest
import wandb

from dist_mnist.config.errors import InputError
from dist_mnist.distributed.signals import STOPPED, Stopped
from dist_mnist.record import tracker as tracker_module
from dist_mnist.record import wandb_run
from dist_mnist.record.journal import Journal, Line, read_journal
from dist_mnist.record.tracker import NO_MEDIA, BackgroundTracker, Media, Tracker
from dist_mnist.record.wandb_run import start_tracking
from dist_mnist.training.run import run
from tests.support.configs import SOLO, make_config
from tests.support.processes import free_port, python
from tests.support.wandb_cli import inspect, wandb_command
from tests.support.wandb_server import WandbServer, wandb_server


@pytest.fixture
def tracked_run(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    overrides = [
        "data=fashion_mnist",
        f"data.root={small_root}",
        f"run_dir={tmp_path / 'my_run'}",
        "data.validation_size=50",
        "trainer.global_batch_size=50",
        "trainer.epochs=2",
        "trainer.log_every_steps=2",
        "optimizer.lr=0.000001",  # learns next to nothing, so there are mistakes to show
        "trainer.device=cpu",
    ]
    run(make_config(*overrides), SOLO)
    return tmp_path / "my_run", overrides


def history(file: Path) -> list[dict[str, Any]]:
    """Return the rows that a run logged."""
    records = [json.loads(text) for text in inspect(file).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def whole_history(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of all starts of a run directory in wandb's own order."""
    files = run_dir.glob("wandb/*run-*/*.wandb")
    return sorted((row for file in files for row in history(file)), key=lambda row: row["_step"])


def bare(row: dict[str, Any]) -> dict[str, Any]:
    """Return what is the same in a row whenever and however often it is computed."""
    timings = ("seconds", "images_per_second", "test/seconds")
    return {
        key: None if key in timings or isinstance(value, dict) else value
        for key, value in row.items()
        if key == "_step" or not key.startswith(("_", "plots/", "test/worst_mistakes"))
    }


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def step_lines(*steps: int) -> list[Line]:
    return [{"kind": "step", "epoch": 1, "step": step, "train/loss": 1 / step} for step in steps]


def service_pids() -> list[int]:
    """Return the ids of wandb's service processes that are this process's children."""
    tasks = Path("/proc/self/task").glob("*/children")
    pids = [int(pid) for task in tasks for pid in task.read_text().split()]
    return [pid for pid in pids if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = perf_counter() + 15
    while not condition():
        assert perf_counter() < deadline
        sleep(0.01)


def kill_service() -> None:
    for pid in service_pids():
        os.kill(pid, signal.SIGKILL)


def test_an_offline_run_holds_config_history_summary_and_pictures(
    tracked_run: tuple[Path, list[str]],
) -> None:
    run_dir, _ = tracked_run
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    summary = json.loads(inspect(file, "--summary"))
    assert summary["state"] == "finished"
    assert summary["exit_code"] == 0
    assert summary["name"] == "my_run"
    assert summary["run_id"] == (run_dir / "wandb_run_id").read_text()
    assert summary["config"]["optimizer"]["lr"] == 0.000001
    assert summary["config"]["trainer"]["global_batch_size"] == 50

    journal = read_journal(run_dir / "metrics.jsonl")
    rows = history(file)
    epochs = [line for line in journal if line["kind"] == "epoch"]
    for key in ("train/loss", "validation/accuracy", "learning_rate"):
        logged = [row[key] for row in rows if "validation/accuracy" in row]
        assert logged == pytest.approx([line[key] for line in epochs])
    steps = [line["train/loss"] for line in journal if line["kind"] == "step"]
    assert [row["train/loss_step"] for row in rows if "train/loss_step" in row] == steps
    assert all("step" in row for row in rows)

    test = journal[-1]
    for key in ("test/accuracy", "test/correct", "test/count", "test/loss"):
        assert summary["summary"][key] == test[key]
    for name in ("curves", "confusion_matrix", "mistakes"):
        picture = file.parent / "files" / summary["summary"][f"plots/{name}"]["path"]
        assert picture.read_bytes() == (run_dir / "plots" / f"{name}.png").read_bytes()
    table = summary["summary"]["test/worst_mistakes"]
    content = json.loads((file.parent / "files" / table["path"]).read_text())
    assert content["columns"] == ["image", "label", "prediction", "confidence"]
    assert len(content["data"]) == len(test["test/mistakes"]) > 0


def test_continuing_a_run_continues_its_wandb_run(tracked_run: tuple[Path, list[str]]) -> None:
    run_dir, overrides = tracked_run
    run(make_config(*overrides, "trainer.epochs=3"), SOLO)
    ids = {path.name for path in run_dir.glob("wandb/offline-run-*/*.wandb")}
    assert ids == {f"run-{(run_dir / 'wandb_run_id').read_text()}.wandb"}


@pytest.mark.parametrize(
    ("error", "exit_code"), [(ZeroDivisionError(), 1), (Stopped("SIGTERM"), STOPPED)]
)
def test_a_run_that_is_cut_short_is_marked_with_its_status(
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exit_code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setenv("WANDB_MODE", "offline")
    overrides = ["data=fashion_mnist", f"data.root={small_root}", f"run_dir={tmp_path}"]
    monkeypatch.setattr("dist_mnist.training.run.fit", fail)
    with pytest.raises(type(error)):
        run(make_config(*overrides, "data.validation_size=50"), SOLO)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert json.loads(inspect(file, "--summary"))["exit_code"] == exit_code


class FailingTracker(Tracker):
    """Refuses every line."""

    def __init__(self) -> None:
        self.exit_codes: list[int] = []

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:
        raise OSError(f"no room for step {line['step']}")

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


def test_what_goes_wrong_in_the_background_is_told_once_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = FailingTracker()
    tracker = BackgroundTracker(lambda: failing)
    for step in (1, 2, 3):
        tracker.log({"kind": "step", "step": step})
    tracker.finish(exit_code=0)
    assert [record.getMessage().count("no room for step 1") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("choice", "variable", "expected"),
    [
        ("auto", "", "offline"),  # no key on this machine
        ("auto", "disabled", "disabled"),
        ("auto", "dryrun", "offline"),
        ("offline", "online", "offline"),
        ("disabled", "offline", "disabled"),
    ],
)
def test_an_explicit_choice_wins_then_the_variable_then_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, variable: str, expected: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    config = make_config(f"tracking={choice}").tracking
    tracker = start_tracking(config, tmp_path, {}, [])
    tracker.finish(exit_code=0)
    assert (type(tracker) is Tracker) == (expected == "disabled")
    assert bool(list(tmp_path.glob("wandb/offline-run-*"))) == (expected == "offline")


def test_a_mode_that_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(InputError, match="WANDB_MODE=sometimes"):
        start_tracking(make_config().tracking, tmp_path, {}, [])


def test_online_without_a_key_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    with pytest.raises(InputError, match="tracking=offline"):
        start_tracking(make_config("tracking=online").tracking, tmp_path, {}, [])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server of wandb's, and a key for it."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()  # it remembers what it found in the environment
        yield server
        wandb.teardown()


def test_a_run_that_is_over_at_once_reaches_its_server_all_the_same(
    server: WandbServer, tmp_path: Path
) -> None:
    tracker = start_tracking(make_config("tracking=auto").tracking, tmp_path, {}, [])
    for line in step_lines(1, 2):
        tracker.log(line)
    tracker.finish(exit_code=0)
    assert list(tmp_path.glob("wandb/run-*"))
    assert not list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.parametrize("mode", ["auto", "online"])
@pytest.mark.parametrize("answer", ["refuses", "is silent"])
def test_a_run_that_ends_before_its_server_answers_is_written_offline_at_once(
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    answer: str,
) -> None:
    monkeypatch.setattr(tracker_module, "SEARCH_PATIENCE_SECONDS", 0.5)
    server.answers.clear()
    if answer == "refuses":
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    tracker = start_tracking(make_config(f"tracking={mode}").tracking, tmp_path, {}, [])
    started = perf_counter()
    for line in step_lines(1, 2, 3):
        tracker.log(line)
    assert perf_counter() - started < 0.1
    wait_for(lambda: list(tmp_path.glob("wandb/run-*")))  # the search is on
    tracker.finish(exit_code=0)
    assert perf_counter() - started < tracker_module.FINISH_TIMEOUT_SECONDS / 2
    assert [row["step"] for row in whole_history(tmp_path)] == [1, 2, 3]
    (warning,) = warnings(caplog)
    assert warning.endswith(f"wandb sync {tmp_path}/wandb/offline-run-*")


def test_a_server_that_does_not_answer_in_time_is_given_up(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_run, "SERVER_TIMEOUT_SECONDS", 0.3)
    server.answers.clear()
    tracker = start_tracking(make_config("tracking=online").tracking, tmp_path, {}, [])
    wait_for(lambda: list(tmp_path.glob("wandb/offline-run-*")))
    for line in step_lines(1):
        tracker.log(line)
    tracker.finish(exit_code=0)
    assert [row["step"] for row in whole_history(tmp_path)] == [1]


def test_an_upload_that_does_not_end_is_left_to_wandb_sync(
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracker_module, "UPLOAD_TIMEOUT_SECONDS", 0.5)
    caplog.set_level("INFO", "dist_mnist")
    tracker = start_tracking(make_config("tracking=online").tracking, tmp_path, {}, [])
    for line in step_lines(1, 2):
        tracker.log(line)
    run_id = (tmp_path / "wandb_run_id").read_text()
    wait_for(lambda: f"wandb: {server.url}" in caplog.text)
    server.answers.clear()
    for line in step_lines(3, 4):
        tracker.log(line)
    started = perf_counter()
    tracker.finish(exit_code=0)
    assert perf_counter() - started < 3
    assert [row["step"] for row in whole_history(tmp_path)] == [1, 2, 3, 4]
    (warning,) = warnings(caplog)
    server.answers.set()
    wandb_command(*warning.partition(": wandb ")[2].split(), cwd=tmp_path)
    assert [row["step"] for row in server.rows[run_id].values()] == [1, 2, 3, 4]


def test_a_process_ends_though_wandb_still_looks_for_its_server(
    server: WandbServer, tmp_path: Path
) -> None:
    server.answers.clear()
    started = perf_counter()
    ended = python(
        "-c",
        "import sys, time\n"
        "from pathlib import Path\n"
        "from dist_mnist.config.schema import TrackingConfig, TrackingMode\n"
        "from dist_mnist.record.wandb_run import start_tracking\n"
        "config = TrackingConfig(TrackingMode.online, 'p', None, None, [])\n"
        f"start_tracking(config, Path({str(tmp_path)!r}), {{}}, []).finish(1)\n"
        "sys.exit(3)",
    )
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    assert perf_counter() - started < tracker_module.FINISH_TIMEOUT_SECONDS


def test_training_goes_on_when_wandb_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config("tracking=offline").tracking
    lines = step_lines(1, 2, 3, 4)
    tracker = start_tracking(config, tmp_path, {}, [])
    tracker.log(lines[0])
    wait_for(lambda: list(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    kill_service()
    for line in lines[1:]:
        tracker.log(line)
    tracker.finish(exit_code=0)
    (warning,) = warnings(caplog)
    assert "training goes on" in warning
    start_tracking(config, tmp_path, {}, lines).finish(exit_code=0)
    assert [(row["_step"], row["step"]) for row in whole_history(tmp_path)] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
    ]


def _die_after(lines: int, wandb_dies_first: bool, overrides: list[str]) -> None:
    """Train, and be killed once so many lines are in the journal."""
    os.environ.pop("WANDB_SERVICE", None)  # a process of its own, not that of the tests
    write = Journal.write

    def write_or_die(journal: Journal, line: Line) -> None:
        nonlocal lines
        write(journal, line)
        lines -= 1
        if lines == 0:
            if wandb_dies_first:  # with most of the rows that it was given
                kill_service()
            else:
                sleep(1.2)  # wandb writes to its files once a second
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.write = write_or_die  # type: ignore[method-assign, assignment]
    run(make_config(*overrides), SOLO)


def test_a_run_killed_again_and_again_is_one_wandb_run_without_gaps_or_repeats(
    small_root: Path, tmp_path: Path, server: WandbServer
) -> None:
    overrides = [
        "data=fashion_mnist",
        f"data.root={small_root}",
        "data.validation_size=50",
        "tracking=offline",
        "trainer.global_batch_size=50",
        "trainer.epochs=3",
        "trainer.log_every_steps=1",
        "trainer.checkpoint_every_steps=3",
        "trainer.device=cpu",
    ]
    run(make_config(*overrides, f"run_dir={tmp_path / 'straight'}"), SOLO)
    killed = [*overrides, f"run_dir={tmp_path / 'killed'}"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dist_mnist.training.run", "torch._dynamo"])
    for lines, wandb_dies_first in ((6, False), (4, True)):
        process = context.Process(target=_die_after, args=(lines, wandb_dies_first, killed))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    run(make_config(*killed), SOLO)

    expected = [bare(row) for row in whole_history(tmp_path / "straight")]
    assert [row["_step"] for row in expected] == list(range(len(expected)))
    assert [bare(row) for row in whole_history(tmp_path / "killed")] == expected
    wandb_command("sync", *map(str, tmp_path.glob("killed/wandb/offline-run-*")), cwd=tmp_path)
    uploaded = server.rows[(tmp_path / "killed" / "wandb_run_id").read_text()]
    assert [row["_step"] for row in uploaded.values()] == list(range(len(expected)))


def test_a_finished_run_started_again_adds_no_rows_and_more_epochs_add_theirs(
    tracked_run: tuple[Path, list[str]],
) -> None:
    run_dir, overrides = tracked_run
    first = whole_history(run_dir)
    run(make_config(*overrides), SOLO)
    assert whole_history(run_dir) == first
    run(make_config(*overrides, "trainer.epochs=3"), SOLO)
    rows = whole_history(run_dir)
    assert rows[: len(first)] == first
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert [row["epoch"] for row in rows if "test/accuracy" in row] == [2, 3]
    assert [row["epoch"] for row in rows if "validation/accuracy" in row] == [1, 2, 3]


def test_a_clock_set_back_changes_no_row_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, lines = make_config("tracking=offline").tracking, step_lines(1, 2, 3)
    tracker = start_tracking(config, tmp_path, {}, [])
    tracker.log(lines[0])
    tracker.finish(exit_code=0)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    tracker = start_tracking(config, tmp_path, {}, lines[:2])
    tracker.log(lines[2])
    tracker.finish(exit_code=0)
    rows = whole_history(tmp_path)
    assert [(row["_step"], row["step"]) for row in rows] == [(0, 1), (1, 2), (2, 3)]
    assert any("clock was set back" in warning for warning in warnings(caplog))


@pytest.mark.parametrize("content", ["", "\0\0\0\0", "a b", "../x"])
def test_an_id_that_a_crash_has_spoilt_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "wandb_run_id").write_text(content)
    start_tracking(make_config("tracking=offline").tracking, tmp_path, {}, []).finish(exit_code=0)
    run_id = (tmp_path / "wandb_run_id").read_text()
    assert re.fullmatch("[0-9a-f]{8}", run_id)
    assert list(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
