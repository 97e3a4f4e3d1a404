"""Sends a run's numbers to wandb, TensorBoard, a CSV file, or several of them.

All are made from the journal. A start writes TensorBoard's file and the CSV file anew from it, so
however often a run was interrupted, each series is one, without gaps or repeats.
"""

import csv
import importlib.util
import io
import logging
import os
import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Logger, TrackingConfig
from dist_mnist.record.files import write_atomically
from dist_mnist.record.journal import Line
from dist_mnist.tracking.tracker import (
    NO_MEDIA,
    BackgroundTracker,
    Media,
    Tracker,
    Trackers,
    charts,
)
from dist_mnist.tracking.wandb_run import start_tracking

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5  # how far TensorBoard's page is behind the run


def start_loggers(
    config: TrackingConfig, run_dir: Path, run_config: dict[str, Any], lines: Sequence[Line]
) -> Tracker:
    """Begin to tell everyone that the config names; training never waits for any of them.

    Args:
        config: What the user chose.
        run_dir: The run directory; nobody else may be writing to it.
        run_config: The run's config.
        lines: The journal so far.

    Raises:
        InputError: One of them cannot be used.
    """
    if Logger.tensorboard in config.loggers and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "tracking.loggers contains tensorboard, which is not installed: "
            "`pip install tensorboard`, or leave it out."
        )
    starts: dict[Logger, Callable[[], Tracker]] = {
        Logger.wandb: partial(start_tracking, config, run_dir, run_config, lines),
        Logger.tensorboard: partial(_start, "TensorBoard", TensorBoardRun, run_dir, lines),
        Logger.csv: partial(_start, "metrics.csv", CsvFile, run_dir, lines),
    }
    return Trackers([starts[chosen]() for chosen in dict.fromkeys(config.loggers)])


def _start(
    name: str, kind: Callable[[Path, Sequence[Line]], Tracker], run_dir: Path, lines: Sequence[Line]
) -> Tracker:
    return BackgroundTracker(partial(kind, run_dir, lines), name=name)


class TensorBoardRun(Tracker):
    """An event file in the run directory's `tensorboard/`, in the place of any earlier one.

    Args:
        run_dir: The run's directory.
        lines: The journal so far.
    """

    def __init__(self, run_dir: Path, lines: Sequence[Line]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run_dir / "tensorboard"
        _empty(self._folder)
        # A TensorBoard that is open has read the earlier file: this makes it forget those steps.
        self._writer = SummaryWriter(str(self._folder), purge_step=0, flush_secs=FLUSH_SECONDS)
        self._last_steps: dict[str, int] = {}
        for line in lines:
            self.log(line)

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:  # noqa: D102
        step = line["step"]
        for name, value in charts(line):
            # What a step's line has told already, its epoch's line need not repeat.
            if self._last_steps.get(name) != step:
                self._writer.add_scalar(name, value, step)
                self._last_steps[name] = step
        for name, content in media.items():
            if isinstance(content, Path):
                self._writer.add_image(name, _pixels(content), step)

    def finish(self, exit_code: int) -> None:  # noqa: D102
        self._writer.close()
        if exit_code == 0:
            logger.info("TensorBoard: tensorboard --logdir %s", shlex.quote(str(self._folder)))


def _empty(folder: Path) -> None:
    """Take the events out of earlier files; a TensorBoard that is open would miss a file itself.

    It goes on to files whose names sort later, and names begin with the second they were made in.
    So this waits until a new file sorts last.
    """
    earlier = [*folder.glob("events.out.tfevents.*")]
    for path in earlier:
        os.truncate(path, 0)
    seconds = [int(text) for path in earlier if (text := path.name.split(".")[3]).isdecimal()]
    time.sleep(max(0.0, min(1.0, max(seconds, default=0) + 1 - time.time())))


def _pixels(path: Path) -> "torch.Tensor":
    """Return a picture as uint8 of shape (3, H, W)."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    with Image.open(path) as picture:
        pixels: torch.Tensor = pil_to_tensor(picture.convert("RGB"))
        return pixels


class CsvFile(Tracker):
    """The journal's numbers as `metrics.csv`: a row for each line, a column for each number.

    A line may bring new columns, so the file is written as a whole: with every epoch, and at the
    end.

    Args:
        run_dir: The run's directory.
        lines: The journal so far.
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
        except InputError as error:  # nothing that would have to stop a run
            raise OSError(str(error)) from error


def _row(line: Line) -> dict[str, Any]:
    keys = ("kind", "epoch", "step")
    numbers = {key: value for key, value in line.items() if isinstance(value, (int, float))}
    return {**{key: line[key] for key in keys}, **numbers}
