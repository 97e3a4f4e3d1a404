"""Writes a run's journal, trackers' rows and checkpoints, in that order; then the report."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_mnist.config.errors import one_line
from dist_mnist.config.schema import Config
from dist_mnist.distributed import signals, watchdog
from dist_mnist.record import checkpoint
from dist_mnist.record.console import log_to_file
from dist_mnist.record.directory import write_config
from dist_mnist.record.journal import Journal, Line
from dist_mnist.record.saved import forget_saved, note_saved
from dist_mnist.record.starts import note_end, note_start
from dist_mnist.report.page import write_report
from dist_mnist.tracking.loggers import start_loggers
from dist_mnist.tracking.tracker import Media, Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """One start of a run: how it was launched, and where it continues."""

    overrides: Sequence[str]  # the overrides on the command line
    description: str  # the network, the device and the data, in a few lines
    processes: int  # the number of ranks
    step: int  # the optimizer steps that are done
    epochs: int  # the epochs whose journal lines are kept
    lines: int  # the number of journal lines at that step


class Recorder:
    """Receives a run's journal lines and checkpoints. This one, for all ranks but 0, drops them."""

    def record(self, line: Line, media: Media | None = None) -> None:
        """Add a line to the journal; trackers also get its pictures and tables."""

    def save(self, content: dict[str, Any], step: int, is_best: bool) -> None:
        """Write a checkpoint, after the journal lines that it includes."""

    def finish(self, best: Path) -> None:
        """End the run as successful: write the report, give trackers the best checkpoint."""


class RunRecorder(Recorder):
    """Writes to the run directory and to a tracker; rank 0 has one.

    Attributes:
        tracker: Receives every journal line.
    """

    def __init__(self, run_dir: Path, journal: Journal, step: int, keep_checkpoints: int) -> None:
        self._run_dir, self._journal, self._saved_step = run_dir, journal, step
        self._keep_checkpoints = keep_checkpoints
        self.tracker = Tracker()

    def record(self, line: Line, media: Media | None = None) -> None:  # noqa: D102
        self._journal.write(line)
        self.tracker.log(line, media or {})

    def save(self, content: dict[str, Any], step: int, is_best: bool) -> None:  # noqa: D102
        with watchdog.during(f"saving the checkpoint of step {step}"):
            self._journal.sync()
            checkpoint.save(self._run_dir, content, step, is_best, self._keep_checkpoints)
            note_saved(self._run_dir)
        self._saved_step = step

    def finish(self, best: Path) -> None:  # noqa: D102
        path = self._report("finished")
        if path is not None:
            logger.info("report: %s", path)
        self.tracker.keep(best)
        self.tracker.finish(exit_code=0)
        forget_saved(self._run_dir)

    def end_early(self, error: BaseException) -> None:
        """End the run as stopped or as failed."""
        is_stopped = isinstance(error, signals.Stopped)
        self._report(f"stopped by {error}" if is_stopped else _reason(error))
        self.tracker.finish(exit_code=signals.STOPPED if is_stopped else 1)

    def _report(self, end: str) -> Path | None:
        """Note the end and write the report; a run without its report is still complete."""
        note_end(self._run_dir, self._saved_step, end)
        try:
            return write_report(self._run_dir)
        except Exception as error:
            logger.warning("the run has no report: %s", _reason(error))
            return None


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


@contextmanager
def open_recorder(
    run_dir: Path, config: Config, plain_config: dict[str, Any], start: Start
) -> Iterator[Recorder]:
    """Open the files and trackers of rank 0, with the journal cut back to where the run continues.

    If an exception ends the block, the run's end is recorded as failed or stopped.

    Args:
        run_dir: The run's directory, locked.

    Raises:
        InputError: The directory cannot be written.
    """
    write_config(run_dir, plain_config, start.overrides)
    note_start(run_dir, start.step, start.description, start.processes)
    with log_to_file(run_dir), closing(Journal(run_dir)) as journal:
        lines = journal.cut_back(start.step, start.epochs)
        if len(lines) < start.lines:
            logger.warning(
                "%s is missing %d lines from before step %d: plots and trackers will lack them.",
                *(journal.path, start.lines - len(lines), start.step),
            )
        keep = config.trainer.keep_checkpoints
        recorder = RunRecorder(run_dir, journal, start.step, keep)
        try:
            recorder.tracker = start_loggers(config.tracking, run_dir, plain_config, lines)
            yield recorder
        except BaseException as error:
            recorder.end_early(error)
            raise
