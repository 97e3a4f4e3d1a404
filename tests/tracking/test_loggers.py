"""TensorBoard's files and the CSV file are the journal, also after a kill and a second start."""

import csv
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep, time
from typing import Any

import pytest

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Logger, TrackingConfig, TrackingMode
from dist_mnist.record.journal import Line, read_journal
from dist_mnist.record.starts import read_starts
from dist_mnist.tracking.csv_file import CsvFile
from dist_mnist.tracking.loggers import start_loggers
from tests.support.configs import SMALL_DATA, make_config
from tests.support.runs import run_once

OVERRIDES = (
    *SMALL_DATA,
    *("model=linear", "trainer.log_every_steps=1", "trainer.checkpoint_every_steps=5"),
    "tracking.loggers=[tensorboard,csv]",
)


def accumulator(run_dir: Path) -> Any:
    """Return TensorBoard's own reader of a run, with every point that there is."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    everything = {"scalars": 0, "images": 0}
    return module.EventAccumulator(str(run_dir / "tensorboard"), size_guidance=everything).Reload()


def series(reader: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def in_journal(lines: Sequence[Line], kind: str, key: str) -> list[tuple[int, Any]]:
    found = [(line["step"], line[key]) for line in lines if line["kind"] == kind]
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in found]


def kill_in_training(run_dir: Path, overrides: Sequence[str], lines: int) -> None:
    """Start a training and kill it once its journal has so many lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dist_mnist", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline, journal = perf_counter() + 60, run_dir / "metrics.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        assert process.poll() is None
        assert perf_counter() < deadline
        sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def tracked(run_dir: Path, chosen: Logger, lines: Sequence[Line]) -> None:
    """Start with a journal of these lines, and end."""
    config = TrackingConfig(TrackingMode.disabled, None, None, None, None, [chosen])
    start_loggers(config, run_dir, {}, lines).finish(exit_code=0)


def test_second_start_replaces_the_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    lines = [{"kind": "step", "epoch": 1, "step": step, "train/loss": step} for step in range(9)]
    tracked(tmp_path, Logger.tensorboard, lines[:6])
    watching = accumulator(tmp_path)
    tracked(tmp_path, Logger.tensorboard, lines[:3])
    tracked(tmp_path, Logger.tensorboard, lines)
    for reader in (accumulator(tmp_path), watching.Reload()):
        assert series(reader, "train/loss_step") == [(step, step) for step in range(9)]


def test_new_events_sort_behind_those_of_the_same_second(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    earlier = folder / f"events.out.tfevents.{int(time())}.zzz.99999.9"
    earlier.touch()
    tracked(tmp_path, Logger.tensorboard, [])
    assert sorted(folder.iterdir())[0] == earlier


@pytest.mark.slow
def test_killed_run_becomes_one_series(small_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    overrides = [*OVERRIDES, f"data.root={small_root}", f"run_dir={tmp_path}"]
    kill_in_training(tmp_path, [*overrides, "trainer.epochs=100000"], lines=43)
    (tmp_path / "tensorboard").mkdir(exist_ok=True)  # it may have been killed before that
    watching = accumulator(tmp_path)  # a TensorBoard that is open all the time
    run_once([*overrides, "trainer.epochs=30"])
    journal = read_journal(tmp_path / "metrics.jsonl")
    for reader in (accumulator(tmp_path), watching.Reload()):
        losses = series(reader, "train/loss_step")
        assert [step for step, _ in losses] == list(range(1, 241))
        assert losses == in_journal(journal, "step", "train/loss")
        assert series(reader, "train/loss") == in_journal(journal, "epoch", "train/loss")
        assert series(reader, "test/accuracy") == in_journal(journal, "test", "test/accuracy")
        rates = series(reader, "learning_rate")
        assert rates == in_journal(journal, "step", "learning_rate")
        assert {"plots/curves", "plots/confusion_matrix"} <= {*reader.Tags()["images"]}
    events = (path for path in (tmp_path / "tensorboard").iterdir() if path.stat().st_size)
    assert len([*events]) == 1
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], int(row["step"])) for row in rows] == [
        (line["kind"], line["step"]) for line in journal
    ]
    for row, line in zip(rows, journal, strict=True):
        for key, text in row.items():
            value = line.get(key)
            assert text == ("" if value is None else str(value))
    first, second, end = read_starts(tmp_path)
    assert (first["step"], end["step"], end["reason"]) == (0, 240, "finished")
    assert second["step"] >= 35
    assert first["time"] < second["journal_time"] < second["time"]


def test_wandb_alone_is_the_default() -> None:
    assert make_config().tracking.loggers == [Logger.wandb]
    chosen = make_config("tracking.loggers=[csv,wandb]", "tracking=offline").tracking
    assert chosen.loggers == [Logger.csv, Logger.wandb]


def test_unknown_logger_is_named() -> None:
    with pytest.raises(InputError, match="tensorbord"):
        make_config("tracking.loggers=[tensorbord]")


def test_missing_tensorboard_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = TrackingConfig(TrackingMode.disabled, None, None, None, None, [Logger.tensorboard])
    with pytest.raises(InputError, match=r"tensorboard, which is not installed: `pip install"):
        start_loggers(config, tmp_path, {}, [])


def test_rows_of_later_columns_are_whole(tmp_path: Path) -> None:
    table = CsvFile(tmp_path, [{"kind": "step", "epoch": 1, "step": 1, "train/loss": 0.5}])
    table.log({"kind": "epoch", "epoch": 1, "step": 1, "validation/loss": 0.25, "mistakes": [1]})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "kind,epoch,step,train/loss,validation/loss",
        "step,1,1,0.5,",
        "epoch,1,1,,0.25",
    ]


def test_unwritable_table_does_not_stop_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.csv").mkdir()
    config = TrackingConfig(TrackingMode.disabled, None, None, None, None, [Logger.csv])
    tracker = start_loggers(config, tmp_path, {}, [])
    tracker.log({"kind": "epoch", "epoch": 1, "step": 1})
    tracker.finish(exit_code=0)
    (message,) = caplog.messages
    assert message.startswith("metrics.csv failed, and training goes on without it")
