"""A real wandb run, offline, read back with wandb's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_mnist.errors import InputError
from dist_mnist.journal import Line, read_journal
from dist_mnist.run import run
from dist_mnist.tracking import BackgroundTracker, NoTracking, start_tracking
from tests.helpers import SOLO, free_port, make_config


def inspect(path: Path, *options: str) -> str:
    """Read a run's records the way `wandb leet inspect` shows them to a user."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *options]
    shown = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    return shown.stdout


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


def test_a_run_that_fails_is_marked_as_failed(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    overrides = ["data=fashion_mnist", f"data.root={small_root}", f"run_dir={tmp_path}"]
    monkeypatch.setattr("dist_mnist.run.fit", lambda state, recorder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(make_config(*overrides, "data.validation_size=50"), SOLO)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert json.loads(inspect(file, "--summary"))["exit_code"] == 1


class FailingTracker(NoTracking):
    """Refuses every line."""

    def __init__(self) -> None:
        self.exit_codes: list[int] = []

    def log(self, line: Line) -> None:
        raise OSError(f"no room for step {line['step']}")

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


def test_what_goes_wrong_in_the_background_is_told_and_ends_the_run_as_failed() -> None:
    failing = FailingTracker()
    tracker = BackgroundTracker(lambda: failing)
    tracker.log({"kind": "step", "step": 1})
    with pytest.raises(OSError, match="no room for step 1"):
        tracker.finish(exit_code=0)
    assert failing.exit_codes == [1]


def test_a_run_that_failed_has_its_own_error_to_tell() -> None:
    failing = FailingTracker()
    tracker = BackgroundTracker(lambda: failing)
    tracker.log({"kind": "step", "step": 1})
    tracker.finish(exit_code=1)
    assert failing.exit_codes == [1]


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
    tracker = start_tracking(config, tmp_path, {})
    tracker.finish(exit_code=0)
    assert isinstance(tracker, NoTracking) == (expected == "disabled")
    assert bool(list(tmp_path.glob("wandb/offline-run-*"))) == (expected == "offline")


def test_a_mode_that_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(InputError, match="WANDB_MODE=sometimes"):
        start_tracking(make_config().tracking, tmp_path, {})


def test_online_without_a_key_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    with pytest.raises(InputError, match="tracking=offline"):
        start_tracking(make_config("tracking=online").tracking, tmp_path, {})


def test_with_a_key_and_no_server_a_run_is_written_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("dist_mnist.tracking.SERVER_TIMEOUT_SECONDS", 1.0)
    tracker = start_tracking(make_config("tracking=auto").tracking, tmp_path, {})
    tracker.log({"kind": "step", "step": 1, "train/loss": 0.5})
    tracker.finish(exit_code=0)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert [row["train/loss_step"] for row in history(file)] == [0.5]
