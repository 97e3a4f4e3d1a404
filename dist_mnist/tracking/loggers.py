"""Starts the loggers of a run: wandb, TensorBoard, a CSV file, or several of them.

All of them log the journal. Each start writes TensorBoard's file and the CSV file again from it, so
however often a run was interrupted, each series is one, without gaps or repeats.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Logger, TrackingConfig
from dist_mnist.record.journal import Line
from dist_mnist.tracking.csv_file import CsvFile
from dist_mnist.tracking.tensorboard import TensorBoardRun
from dist_mnist.tracking.tracker import BackgroundTracker, Tracker, Trackers
from dist_mnist.tracking.wandb_run import start_tracking


def start_loggers(
    config: TrackingConfig, run_dir: Path, run_config: dict[str, Any], lines: Sequence[Line]
) -> Tracker:
    """Start the configured loggers; training never waits for any of them.

    Args:
        run_dir: The run directory, which this process has locked.

    Raises:
        InputError: One of them cannot be used.
    """
    if Logger.tensorboard in config.loggers and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "tracking.loggers contains tensorboard, which is not installed: "
            "`pip install tensorboard`, or leave it out."
        )

    def in_background(name: str, kind: Callable[[Path, Sequence[Line]], Tracker]) -> Tracker:
        return BackgroundTracker(partial(kind, run_dir, lines), name=name)

    starts: dict[Logger, Callable[[], Tracker]] = {
        Logger.wandb: partial(start_tracking, config, run_dir, run_config, lines),
        Logger.tensorboard: partial(in_background, "TensorBoard", TensorBoardRun),
        Logger.csv: partial(in_background, "metrics.csv", CsvFile),
    }
    return Trackers([starts[chosen]() for chosen in dict.fromkeys(config.loggers)])
