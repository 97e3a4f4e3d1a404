"""File systems that lack locks, syncs or shared memory."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import Timeout

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Resume
from dist_mnist.distributed import shared_memory
from dist_mnist.record import locks
from dist_mnist.record.directory import lock_run_directory
from dist_mnist.record.files import write_atomically
from dist_mnist.record.journal import Journal
from dist_mnist.record.locks import lock, lock_patiently


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK], ids=errno.errorcode.get)
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer as file systems do that have no locks."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def leave_a_lock(path: Path, host: str) -> int:
    """Write the lock of a process that is gone; return its number."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.with_name(".lock.owner").write_text(f"{gone.pid}\n{host}\n")
    return gone.pid


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_lock_still_locks(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()  # from a time when the folder was elsewhere
    for _ in range(2):
        with lock(tmp_path / ".lock", timeout=0):
            with pytest.raises(Timeout):
                lock(tmp_path / ".lock", timeout=0)
            assert f"process {os.getpid()} on " in locks.holder(tmp_path / ".lock")


@pytest.mark.usefixtures("no_flock")
def test_killed_run_leaves_no_lock_without_flock(tmp_path: Path) -> None:
    command = (
        "import sys, os, signal, filelock; held = filelock.SoftFileLock(sys.argv[1]).acquire()"
    )
    command += "; os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", command, str(tmp_path / ".lock.owner")], check=False)
    assert (tmp_path / ".lock.owner").exists()
    with lock_run_directory(tmp_path, Resume.auto, timeout_seconds=1):
        pass


@pytest.mark.usefixtures("no_flock")
def test_lock_of_another_host_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = leave_a_lock(tmp_path / ".lock", host="node7")
    monkeypatch.setattr("dist_mnist.record.directory.LOCK_PATIENCE_SECONDS", 0.1)
    message = rf"process {pid} on node7 \(if that is gone, remove {tmp_path}/.lock.owner\)"
    with (
        pytest.raises(InputError, match=rf"in use by another launch, {message}: wait until"),
        lock_run_directory(tmp_path, Resume.auto, timeout_seconds=1),
    ):
        pass


@pytest.mark.usefixtures("no_flock")
def test_waiting_for_a_data_folder_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pid = leave_a_lock(tmp_path / ".lock", host="node7")
    monkeypatch.setattr(locks, "QUIET_SECONDS", 0.1)
    remover = threading.Timer(0.3, (tmp_path / ".lock.owner").unlink)  # as the user is told to
    remover.start()
    with caplog.at_level(logging.INFO), lock_patiently(tmp_path / ".lock"):
        remover.join()
    assert f"waiting for {tmp_path}/.lock, which is locked by process {pid} on node7" in caplog.text


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_unsupported_fsync_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    journal = Journal(tmp_path)
    journal.sync()
    journal.close()


def test_a_disk_that_fails_to_sync_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="cannot be written: Input/output error"):
        write_atomically(tmp_path / "file", b"content")


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_forbidden_shared_memory(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    assert not shared_memory.is_supported()
