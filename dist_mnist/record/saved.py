"""A sign, outside of any run directory, that this launch has saved checkpoints, and where.

Without it, a restart could not tell a run that had saved nothing from storage that is not mounted
any more, and would train again from the beginning.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from dist_mnist.config.errors import InputError
from dist_mnist.distributed.launcher import launch_id
from dist_mnist.record.files import write_atomically

SIGN = "DIST_MNIST_SAVED"  # names the file; launch/slurm.sh looks at its time


def note_saved(run_dir: Path) -> None:
    """Add a run directory to the sign, or renew the time of the sign."""
    _write([*dict.fromkeys([*_saved(), str(run_dir.absolute())])])


def has_saved(run_dir: Path) -> bool:
    """Return whether an earlier start of this launch saved a checkpoint in this directory.

    The directories that are named after a launch count as one.
    """
    own, name = str(run_dir.absolute()), f"_{launch_id()}"
    return any(
        path == own or (path.endswith(name) and run_dir.name.endswith(name)) for path in _saved()
    )


def forget_saved(run_dir: Path) -> None:
    """Take a run directory off the sign: its run begins or has ended."""
    saved, own = _saved(), str(run_dir.absolute())
    if own in saved:  # the time of the sign counts
        _write([path for path in saved if path != own])


def _path() -> Path | None:
    name = launch_id()
    given = os.environ.get(SIGN)
    if given or name is None:
        return Path(given) if given else None
    return Path(tempfile.gettempdir(), f"dist_mnist-{os.getuid()}-{name}.saved")


def _saved() -> list[str]:
    path = _path()
    with suppress(OSError):
        return path.read_text(encoding="utf-8").splitlines() if path else []
    return []


def _write(run_dirs: list[str]) -> None:
    path = _path()
    with suppress(OSError, InputError):  # only a later restart needs it
        if path and (run_dirs or SIGN in os.environ):
            write_atomically(path, "".join(f"{run_dir}\n" for run_dir in run_dirs).encode())
        elif path:
            path.unlink(missing_ok=True)
