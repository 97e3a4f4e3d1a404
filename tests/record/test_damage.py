"""Damage from outside: corrupt files, full and read-only disks, other launches, the clock."""

import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Resume, plain_config
from dist_mnist.record import checkpoint
from dist_mnist.record.directory import lock_run_directory, write_config
from tests.support.configs import SMALL_DATA, make_config
from tests.support.processes import python
from tests.support.runs import assert_equal, result, run_once

SMALL = (
    *SMALL_DATA,
    "model=mlp",
    "model.hidden_sizes=[16]",
    "trainer.epochs=3",
    "trainer.log_every_steps=3",
)
Disk = Any  # a function of a size, which mounts or remounts


@pytest.fixture(scope="module")
def whole(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("whole")
    run_once([*SMALL, f"data.root={small_root}", f"run_dir={run_dir}"])
    return run_dir


def assert_same_end(run_dir: Path, whole: Path) -> None:
    (content, journal), (expected, expected_journal) = result(run_dir), result(whole)
    assert_equal(content["model"], expected["model"])
    assert_equal(content["optimizer"], expected["optimizer"])
    assert journal == expected_journal


def small_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write a small checkpoint of a real network and optimizer; return the file and its content."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 3)).sum().backward()
    optimizer.step()
    content = {
        **{key: kind() for key, kind in checkpoint.PARTS.items()},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": {"step": 1, "best_accuracy": None, "epoch_seconds": 0.25},
        "classes": ["0", "1"],
    }
    checkpoint.save(folder, content, 1, is_best=False, keep=1)
    return folder / "checkpoints" / "last.safetensors", content


def test_flipped_bits_and_truncation_are_noticed(tmp_path: Path) -> None:
    path, content = small_checkpoint(tmp_path)
    assert_equal(checkpoint.load(path), content)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(600):
        damaged = bytearray(whole)
        if chance.random() < 0.8:
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(whole)) :]
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            checkpoint.load(path)


class KilledError(BaseException):
    """Ends a save where a kill would."""


class KillAt:
    """Lets so many calls pass; all later ones fail, tidying up included."""

    def __init__(self, instant: int) -> None:
        self.left = instant

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left <= 0:
                raise KilledError
            return function(*args, **kwargs)

        return call


def test_save_killed_at_any_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def content(step: int) -> dict[str, Any]:
        plain = {key: kind() for key, kind in checkpoint.PARTS.items()}
        return {**plain, "progress": {"step": step}}

    instant, finished = 0, False
    while not finished:
        instant += 1
        run_dir = tmp_path / str(instant)
        run_dir.mkdir()
        checkpoint.save(run_dir, content(1), 1, is_best=True, keep=2)
        kill = KillAt(instant)
        with monkeypatch.context() as patch:
            for place, names in ((os, ("fsync", "open")), (Path, ("replace", "unlink", "open"))):
                for name in names:
                    patch.setattr(place, name, kill.counted(getattr(place, name)))
            try:
                checkpoint.save(run_dir, content(2), 2, is_best=True, keep=2)
                finished = True
            except KilledError:
                pass
        steps = {
            path.name: checkpoint.load(path)["progress"]["step"]
            for path in (run_dir / "checkpoints").glob("*.safetensors")
        }
        newest = checkpoint.newest(run_dir)
        assert newest is not None
        assert newest["progress"]["step"] == max(
            step for name, step in steps.items() if name != "best.safetensors"
        )
        assert steps["best.safetensors"] >= steps["last.safetensors"]
        checkpoint.save(run_dir, content(3), 3, is_best=True, keep=1)
        left = {path.name for path in (run_dir / "checkpoints").iterdir()}
        assert left == {"best.safetensors", "last.safetensors", "step-3.safetensors"}
    assert instant > 10


@pytest.mark.usefixtures("no_pictures")
def test_damaged_last_checkpoint(small_root: Path, tmp_path: Path, whole: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    run_once([*overrides, "trainer.max_steps=16"])
    for name in ("last.safetensors", "step-16.safetensors"):
        path = tmp_path / "checkpoints" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    run_once(overrides)
    assert_same_end(tmp_path, whole)


@pytest.mark.usefixtures("no_pictures")
def test_best_of_another_network_is_not_tested(
    small_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}", "trainer.max_steps=2"]
    accuracy = run_once(overrides)
    best = tmp_path / "checkpoints" / "best.safetensors"
    foreign = checkpoint.load(best)
    foreign["model"]["output.extra"] = torch.zeros(1)
    best.write_bytes(checkpoint.encode(foreign))
    assert run_once(overrides) == accuracy
    assert "does not fit the network" in caplog.text
    assert "Testing the last state instead" in caplog.text


@pytest.mark.usefixtures("no_pictures")
def test_a_run_goes_on_without_its_log(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.log").symlink_to("/dev/full")
    run_once([*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}", "trainer.max_steps=2"])
    assert not capsys.readouterr().err


def test_second_launch_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A crashed launch's last process, which holds the lock a little longer.
    holder = "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire()"
    command = f"{holder}; print('locked', flush=True); time.sleep(0.5)"
    first = subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "locked\n"
    monkeypatch.setattr("dist_mnist.record.directory.LOCK_PATIENCE_SECONDS", 0.1)
    with pytest.raises(InputError, match="is in use by another launch"):
        lock_run_directory(tmp_path, Resume.auto, 600).__enter__()
    monkeypatch.setattr("dist_mnist.record.directory.LOCK_PATIENCE_SECONDS", 10.0)
    with lock_run_directory(tmp_path, Resume.auto, 600):
        pass
    first.communicate()


def test_run_of_another_launch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_mnist.record import directory as run_directory

    lock = run_directory._lock

    def slow_lock(directory: Path, patience: float) -> Any:
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "last.safetensors").touch()
        return lock(directory, patience)

    monkeypatch.setattr(run_directory, "_lock", slow_lock)
    with pytest.raises(InputError, match="already holds a run and resume=never"):
        lock_run_directory(tmp_path, Resume.never, 600).__enter__()


class Deleter(logging.Handler):
    """Removes the run directory when the first epoch is told."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("  1/"):
            shutil.rmtree(self.run_dir)


@pytest.mark.usefixtures("no_pictures")
def test_deleted_run_directory_ends_the_run(small_root: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    handler = Deleter(run_dir)
    logging.getLogger("dist_mnist").addHandler(handler)
    try:
        with pytest.raises(InputError, match=r"metrics.jsonl was deleted while the run"):
            run_once([*SMALL, f"data.root={small_root}", f"run_dir={run_dir}"])
    finally:
        logging.getLogger("dist_mnist").removeHandler(handler)
    assert not run_dir.exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk of its own at `tmp_path / "disk"`: call it with mount options to change it."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return place

    try:
        mount("size=1m")
        yield mount
    finally:
        subprocess.run(["umount", str(place)], capture_output=True, check=False)


def free_bytes(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
def test_full_disk_and_room_again(
    small_root: Path, whole: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    place = disk("remount,size=2m")
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={place / 'run'}"]
    one = (whole / "checkpoints" / "last.safetensors").stat().st_size
    (place / "other").write_bytes(bytes(free_bytes(place) - int(4.5 * one)))
    done = python("-m", "dist_mnist", *overrides)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "the disk is full" in done.stderr
    disk("remount,size=8m")
    run_once(overrides)
    assert "continuing after step 16 of 24" in caplog.text
    assert_same_end(place / "run", whole)


def test_full_disk_keeps_the_configs(tmp_path: Path, disk: Disk) -> None:
    place = disk("remount,size=64k")
    write_config(place, plain_config(make_config()), ["seed=1"])
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    (place / "other").write_bytes(bytes(free_bytes(place)))
    with pytest.raises(InputError, match=r"config.yaml cannot be written: the disk is full"):
        write_config(place, plain_config(make_config("tracking.tags=[a,b]")), ["seed=2"])
    (place / "other").unlink()
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


@pytest.mark.usefixtures("no_pictures")
def test_a_read_only_run_directory_is_named(small_root: Path, tmp_path: Path, disk: Disk) -> None:
    place = disk("remount,size=8m")
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={place / 'run'}"]
    run_once([*overrides, "trainer.max_steps=2"])
    disk("remount,ro")
    for run_dir in (place / "run", place / "new"):
        with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
            run_once([*overrides, f"run_dir={run_dir}"])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
def test_clock_set_back(small_root: Path, tmp_path: Path, whole: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}"]
    run_once([*overrides, "trainer.max_steps=11"])
    command = ["faketime", "1975-01-01 00:00:00", sys.executable, "-m", "dist_mnist"]
    subprocess.run([*command, *overrides], check=True, capture_output=True)
    assert_same_end(tmp_path, whole)
