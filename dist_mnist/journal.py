"""The journal, `metrics.jsonl`: the record from which wandb and every picture can be made again."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

Line = Mapping[str, Any]


class Journal:
    """The file `metrics.jsonl`: one JSON object a line, only ever added to while a run lasts."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        """Add a line and hand it to the operating system."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def sync(self) -> None:
        """Put all lines on the disk, so that a checkpoint never knows more than the journal."""
        os.fsync(self._file.fileno())

    def cut_back(self, step: int, finished_epochs: int) -> None:
        """Drop what a run that continues from a checkpoint will write again.

        Args:
            step: The checkpoint's step; later step lines go.
            finished_epochs: The epochs that were finished by then; later epoch lines go.
        """
        self._file.close()
        kept = [
            line
            for line in read_journal(self.path)
            if (line["kind"] == "step" and line["step"] <= step)
            or (line["kind"] == "epoch" and line["epoch"] <= finished_epochs)
        ]
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the journal's lines; a last line that a crash tore off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if text.endswith("\n"):
            lines.append(json.loads(text))
    return lines
