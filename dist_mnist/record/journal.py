"""The journal, `metrics.jsonl`: every plot and the wandb run can be made from it again."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_mnist.config.errors import InputError
from dist_mnist.record.files import cannot_write, sync, write_atomically

logger = logging.getLogger(__name__)

Line = Mapping[str, Any]


class Journal:
    """The file `metrics.jsonl`: one JSON object a line, only appended to while a run lasts.

    Attributes:
        path: The file.

    Raises:
        InputError: The file cannot be written; all methods but `close` raise it too.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._descriptor = self._open()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def write(self, line: Line) -> None:
        """Append a line and pass it to the operating system."""
        rest = _encoded(line)
        try:
            while rest:  # a nearly full disk takes only a part
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def sync(self) -> None:
        """Flush all lines to the disk, so that a checkpoint is never ahead of the journal."""
        try:
            sync(self._descriptor)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if os.fstat(self._descriptor).st_nlink == 0:
            raise InputError(
                f"{self.path} was deleted while the run was writing to it: start in a new run_dir."
            )

    def cut_back(self, step: int, finished_epochs: int) -> list[Line]:
        """Drop the lines that a continued run will write again, and damaged lines.

        Args:
            step: The checkpoint's step; later step lines are dropped.
            finished_epochs: The epochs finished by then; later epoch lines are dropped.

        Returns:
            The remaining lines.
        """
        kept: list[Line] = [
            line
            for line in read_journal(self.path)
            if (line["kind"] == "step" and line["step"] <= step)
            or (line["kind"] == "epoch" and line["epoch"] <= finished_epochs)
        ]
        write_atomically(self.path, b"".join(map(_encoded, kept)))
        before, self._descriptor = self._descriptor, self._open()
        os.close(before)
        return kept


def _encoded(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the journal's lines; unreadable ones are skipped with a warning.

    A last line that a crash cut off is skipped without one: the run writes it again.

    Raises:
        InputError: The file itself cannot be read.
    """
    try:
        *texts, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    lines = [_decoded(text) for text in texts]
    damaged = [number for number, line in enumerate(lines, start=1) if line is None]
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        logger.warning("%s: skipped unreadable lines: %s", path, shown)
    return [line for line in lines if line is not None]


def best_validation_accuracy(run_dir: Path) -> float | None:
    """Return the best validation accuracy of a run's epochs, or None if there is none."""
    lines = read_journal(run_dir / "metrics.jsonl")
    found = [line.get("validation/accuracy") for line in lines if line["kind"] == "epoch"]
    return max((value for value in found if isinstance(value, float)), default=None)


def _decoded(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    is_ours = (
        isinstance(line, dict)
        and isinstance(line.get("kind"), str)
        and all(type(line.get(key)) is int for key in ("epoch", "step"))
    )
    return line if is_ours else None
