"""The journal's numbers as `metrics.csv`, for spreadsheets."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_mnist.config.errors import InputError
from dist_mnist.record.files import write_atomically
from dist_mnist.record.journal import Line
from dist_mnist.tracking.tracker import NO_MEDIA, Media, Tracker


class CsvFile(Tracker):
    """A row for each line of the journal, a column for each number.

    A line may bring new columns, so the whole file is written after every epoch and at the end.
    """

    def __init__(self, run_dir: Path, lines: Sequence[Line]) -> None:
        self._path = run_dir / "metrics.csv"
        self._rows = [_row(line) for line in lines]
        self._write()

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:  # noqa: D102
        self._rows.append(_row(line))
        if line["kind"] != "step":
            self._write()

    def finish(self, exit_code: int) -> None:  # noqa: D102
        self._write()

    def _write(self) -> None:
        columns = dict.fromkeys(key for row in self._rows for key in row)
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, [*columns], restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self._rows)
        try:
            write_atomically(self._path, text.getvalue().encode())
        except InputError as error:  # not a reason to stop the run
            raise OSError(str(error)) from error


def _row(line: Line) -> dict[str, Any]:
    numbers = {key: value for key, value in line.items() if isinstance(value, (int, float))}
    return {**{key: line[key] for key in ("kind", "epoch", "step")}, **numbers}
