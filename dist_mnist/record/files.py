"""Files that are replaced whole or not at all, and the error if they cannot be written."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from dist_mnist.config.errors import InputError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace a file so that a crash at any instant leaves the old content or the new.

    Only one process may write to a path at a time.

    Raises:
        InputError: The file cannot be written; the old one is untouched.
    """
    # Always the same name, so that the next attempt replaces a file left by a kill.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                sync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def sync(descriptor: int) -> None:
    """Flush a file or a folder to the disk; some network file systems cannot, which is ignored.

    Raises:
        OSError: The disk is full or damaged.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _sync_folder(folder: Path) -> None:
    """Flush the folder's own entries, so that a new file name survives a power cut."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be written."""
    if error.errno in FULL_DISK:
        return InputError(
            f"{path} cannot be written: the disk is full; free some space and start again with the "
            f"same run_dir to continue."
        )
    if error.errno == errno.ENOENT:
        return InputError(f"{path} cannot be written: its folder does not exist.")
    return InputError(f"{path} cannot be written: {error.strerror or error}.")
