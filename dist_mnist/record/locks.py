"""File locks that end with their process, also on file systems without locks."""

import errno
import fcntl
import logging
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
QUIET_SECONDS = 10.0  # processes of one launch may wait for each other that long
MOST_BYTES_OF_A_HOLDER = 1024


def lock(path: Path, timeout: float = -1) -> AbstractContextManager[object]:
    """Take the lock of a file, which is created if necessary; leaving the context returns it.

    The system frees it when this process ends, however it ends. Where the file system has no locks,
    another file beside it is the lock: it names its process and its host, and the next process on
    that host takes it over if that process is gone.

    Args:
        timeout: Seconds to wait for another process; negative for no limit.

    Raises:
        Timeout: Another process has it.
        OSError: The file cannot be written.
    """
    if _has_locks(path):
        try:
            return FileLock(path).acquire(timeout=timeout)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    return SoftFileLock(_owner_file(path)).acquire(timeout=timeout)


def _has_locks(path: Path) -> bool:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_UN)  # of no effect: this descriptor has locked nothing
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
    return True


def _owner_file(path: Path) -> Path:
    # Not the file itself: an empty file would be a lock without an owner, forever.
    return path.with_name(f"{path.name}.owner")


def lock_patiently(path: Path) -> AbstractContextManager[object]:
    """Take a lock without a time limit; a long wait is logged.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        return lock(path, QUIET_SECONDS)
    except Timeout:
        logger.info("waiting for %s, which is locked by %s", path, holder(path))
        return lock(path)


def holder(path: Path) -> str:
    """Return the owner of a lock as far as it is known, and how to remove a stale lock."""
    try:
        with _owner_file(path).open("rb") as file:
            lines = file.read(MOST_BYTES_OF_A_HOLDER).decode(errors="replace").split()
    except OSError:
        lines = []
    if len(lines) < 2 or not lines[0].isdigit():
        return "another process"
    return f"process {lines[0]} on {lines[1]} (if that is gone, remove {_owner_file(path)})"
