"""Whole runs: their files, and that stopping and continuing leaves no trace."""

import threading
from pathlib import Path

import pytest
from filelock import FileLock

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Resume
from dist_mnist.record import checkpoint
from dist_mnist.record.directory import lock_run_directory
from dist_mnist.record.journal import read_journal
from dist_mnist.training.run import run
from tests.support.configs import SMALL_DATA, SOLO, make_config
from tests.support.processes import run_ranks
from tests.support.runs import assert_equal, result, run_once

SMALL = (
    *SMALL_DATA,
    "trainer.epochs=3",
    "trainer.log_every_steps=3",
    "model.dropout=0.2",
)


@pytest.mark.parametrize(
    ("size", "stops"),
    [(1, [11]), pytest.param(2, [3, 16], marks=pytest.mark.slow)],
    ids=["once", "twice"],
)
def test_stopped_run_continues_exactly(
    small_root: Path, tmp_path: Path, size: int, stops: list[int]
) -> None:
    overrides = [*SMALL, f"data.root={small_root}"]
    run_ranks(size, run_once, [*overrides, f"run_dir={tmp_path / 'whole'}"])
    for stop in [*stops, "null"]:
        parts = [*overrides, f"run_dir={tmp_path / 'parts'}", f"trainer.max_steps={stop}"]
        run_ranks(size, run_once, parts)
    whole, journal = result(tmp_path / "whole")
    parts_checkpoint, parts_journal = result(tmp_path / "parts")
    for key in ("model", "optimizer"):
        assert_equal(whole[key], parts_checkpoint[key])
    assert whole["progress"]["best_accuracy"] == parts_checkpoint["progress"]["best_accuracy"]
    assert journal == parts_journal
    best = [
        checkpoint.load(tmp_path / name / "checkpoints" / "best.safetensors")
        for name in ("whole", "parts")
    ]
    assert_equal(best[0]["model"], best[1]["model"])


@pytest.mark.usefixtures("no_pictures")
def test_resume_inside_an_epoch(small_root: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    run_once([*overrides, "trainer.checkpoint_every_steps=5"])
    whole, journal = result(tmp_path)
    folder = tmp_path / "checkpoints"
    assert {path.name for path in folder.glob("step-*")} == {
        "step-16.safetensors",
        "step-20.safetensors",
        "step-24.safetensors",
    }
    for name in (
        "last.safetensors",
        "step-24.safetensors",
    ):  # as if it had been killed after step 20
        (folder / name).unlink()
    run_once([*overrides, "trainer.checkpoint_every_steps=5"])
    again, journal_again = result(tmp_path)
    assert_equal(whole["model"], again["model"])
    assert_equal(whole["optimizer"], again["optimizer"])
    assert journal == journal_again


@pytest.mark.usefixtures("no_pictures")
def test_finished_run_takes_more_epochs(small_root: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    run_once(overrides)
    run_once([*overrides, "trainer.epochs=5"])
    _, lines = result(tmp_path)
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if line["kind"] == "test"] == [40]


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_is_only_tested_again(small_root: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    accuracy = run_once(overrides)
    before = result(tmp_path)
    assert run_once(overrides) == accuracy
    assert_equal(before, result(tmp_path))


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_gets_no_record_of_other_settings(small_root: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    run_once(overrides)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    for key, value, old in (
        ("optimizer.lr", "0.5", "0.01"),
        ("+optimizer.eps", "0.1", "None"),
        ("scheduler.warmup_fraction", "0.5", "0.2"),
        ("augmentation.rotation_degrees", "3.0", "0.0"),
        ("trainer.epochs", "2", "3"),
        ("trainer.precision", "bf16", "auto"),
    ):
        with pytest.raises(InputError) as raised:
            run_once([*overrides, f"{key}={value}"])
        name = key.lstrip("+")
        for part in (f"{name}={value} ", f"{name}={old}:", f"run_dir={tmp_path}"):
            assert part in str(raised.value)
        assert before == {path: path.read_bytes() for path in before}
    run_once([*overrides, "trainer.log_every_steps=7", "tracking.tags=[other]", "resume=must"])


def test_run_leaves_its_files(small_root: Path, tmp_path: Path) -> None:
    run_once([*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"])
    lines = read_journal(tmp_path / "metrics.jsonl")
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(3, 25, 3))
    assert len(epochs) == 3
    for line in epochs:
        assert line.keys() >= {
            *("epoch", "step", "train/loss", "train/accuracy", "validation/loss"),
            *("validation/accuracy", "validation/correct", "validation/count"),
            *("learning_rate", "seconds", "images_per_second"),
        }
        assert line["validation/count"] == 50
        assert line["validation/accuracy"] == line["validation/correct"] / 50
    test = lines[-1]
    assert test["kind"] == "test"
    assert test["test/count"] == 101
    assert sum(sum(row) for row in test["test/confusion"]) == 101
    for name in (
        *("config.yaml", "overrides.yaml", "train.log", "checkpoints/best.safetensors"),
        *("plots/curves.png", "plots/confusion_matrix.png", "plots/mistakes.png"),
    ):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.usefixtures("no_pictures")
def test_interrupted_run_can_be_read(small_root: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}", "trainer.max_steps=11"]
    run_once(overrides)
    before = result(tmp_path)
    run_once(overrides)
    assert_equal(before, result(tmp_path))


@pytest.mark.usefixtures("no_pictures")
def test_resume_takes_new_optimizer_options(small_root: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    run_once([*overrides, "trainer.max_steps=3"])
    run_once([*overrides, "trainer.max_steps=5", "optimizer.weight_decay=0.7"])
    last, _ = result(tmp_path)
    assert last["optimizer"]["param_groups"][0]["weight_decay"] == 0.7


@pytest.mark.usefixtures("no_pictures")
def test_missing_best_tests_last_state(small_root: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    run_once(overrides)
    (tmp_path / "checkpoints" / "best.safetensors").unlink()
    run_once(overrides)
    assert read_journal(tmp_path / "metrics.jsonl")[-1]["kind"] == "test"


@pytest.mark.usefixtures("no_pictures")
def test_no_validation_tests_last_state(small_root: Path, tmp_path: Path) -> None:
    run_once([*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}", "data.validation_size=0"])
    last, lines = result(tmp_path)
    best = checkpoint.load(tmp_path / "checkpoints" / "best.safetensors")
    assert_equal(last["model"], best["model"])
    epoch = next(line for line in lines if line["kind"] == "epoch")
    assert epoch["validation/accuracy"] is None


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "trainer.global_batch_size=10",
        "model.channels=[8,8,8]",
        "data.validation_size=30",
        "optimizer=sgd",
    ],
)
def test_unusable_resume_touches_nothing(small_root: Path, tmp_path: Path, override: str) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}", "trainer.max_steps=2"]
    run_once(overrides)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="does not fit this run, which began with"):
        run_once([*overrides, override])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_pictures")
def test_resume_modes(small_root: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", "trainer.max_steps=2", f"run_dir={tmp_path}"]
    with pytest.raises(InputError, match="holds no checkpoint and resume=must"):
        run_once([*overrides, "resume=must"])
    run_once(overrides)
    with pytest.raises(InputError, match="already holds a run and resume=never"):
        run_once([*overrides, "resume=never"])
    run_once([*overrides, "resume=must"])


@pytest.mark.usefixtures("no_pictures")
def test_two_launches_cannot_share_a_directory(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_mnist.record.directory.LOCK_PATIENCE_SECONDS", 0.2)
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    with (
        lock_run_directory(tmp_path, Resume.auto, 600),
        pytest.raises(InputError, match="is in use by another launch"),
    ):
        run_once(overrides)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    run_once(overrides)


@pytest.mark.usefixtures("no_pictures")
def test_unwritable_run_directory_is_named(small_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"run_dir=.*file/run cannot be written"):
        run_once([*SMALL, f"data.root={small_root}", f"run_dir={tmp_path / 'file' / 'run'}"])


@pytest.mark.usefixtures("no_pictures")
def test_restarted_launch_finds_its_directory(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*SMALL, f"data.root={small_root}", "trainer.max_steps=2"]
    for launch in ("first", "first", "second", None, None):
        if launch:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
        else:
            monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        run(make_config(*overrides), SOLO)
    assert len(list((tmp_path / "outputs").iterdir())) == 4


@pytest.mark.usefixtures("no_pictures")
def test_requeued_job_finds_its_directories(
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*SMALL, f"data.root={small_root}", "trainer.max_steps=2"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("ENVIRONMENT", "BATCH")
    runs = []
    for restarts in ("0", "1"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        for step, seed in (("0", "seed=1"), ("1", "seed=1"), ("1", "seed=2")):
            monkeypatch.setenv("SLURM_STEP_ID", step)
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"7.{restarts}")
            monkeypatch.setattr("sys.argv", ["dist_mnist", seed])
            run(make_config(*overrides, seed), SOLO)
            runs.append(sorted((tmp_path / "outputs").iterdir()))
    assert [len(directories) for directories in runs] == [1, 2, 3, 3, 3, 3]
    assert "holds no checkpoint" not in caplog.text
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    run(make_config(*overrides), SOLO)
    assert "was started before, but run_dir=outputs" in caplog.text
    assert "holds no checkpoint: starting from the beginning" in caplog.text


def test_restart_waits_for_lost_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_mnist.record.directory.LOCK_PATIENCE_SECONDS", 0.1)
    lost = FileLock(tmp_path / ".lock", thread_local=False)
    lost.acquire()
    ends = threading.Timer(1.0, lost.release)
    ends.start()
    with pytest.raises(InputError, match="is in use by another launch"):
        lock_run_directory(tmp_path, Resume.auto, 600).__enter__()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with lock_run_directory(tmp_path, Resume.auto, 600):
        ends.join()


@pytest.mark.usefixtures("no_pictures")
def test_lost_journal_lines_are_reported(
    small_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    run_once([*overrides, "trainer.max_steps=8"])
    run_once([*overrides, "trainer.max_steps=12"])
    assert "is missing" not in caplog.text
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[2:]))
    run_once(overrides)
    assert "metrics.jsonl is missing 2 lines from before step 12" in caplog.text
