"""Writes a run's journal, wandb rows and checkpoints, in that order."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from dist_mnist.config.schema import Config, plain_config
from dist_mnist.distributed import signals, watchdog
from dist_mnist.record import checkpoint
from dist_mnist.record.console import log_to_file
from dist_mnist.record.directory import write_config
from dist_mnist.record.journal import Journal, Line
from dist_mnist.record.tracker import Media, Tracker
from dist_mnist.record.wandb_run import start_tracking

logger = logging.getLogger(__name__)


class Recorder:
    """Receives a run's numbers and weights. This one, for ranks other than 0, drops them."""

    def record(self, line: Line, media: Media | None = None) -> None:
        """Add a line to the journal, and to wandb with pictures and tables beside it."""

    def save(self, content: dict[str, Any], step: int, is_best: bool) -> None:
        """Write a checkpoint, after the journal lines that it includes."""

    def finish(self, best: Path) -> None:
        """Upload the best checkpoint, if wandb has a server; end the wandb run as successful."""


class RunRecorder(Recorder):
    """Writes to the run directory and to wandb; rank 0 has one.

    Args:
        run_dir: The run's directory.
        keep_checkpoints: How many `step-<n>.safetensors` to keep.
    """

    def __init__(
        self, run_dir: Path, journal: Journal, tracker: Tracker, keep_checkpoints: int
    ) -> None:
        self._run_dir, self._journal, self._tracker = run_dir, journal, tracker
        self._keep_checkpoints = keep_checkpoints

    def record(self, line: Line, media: Media | None = None) -> None:  # noqa: D102
        self._journal.write(line)
        self._tracker.log(line, media or {})

    def save(self, content: dict[str, Any], step: int, is_best: bool) -> None:  # noqa: D102
        with watchdog.during(f"saving the checkpoint of step {step}"):
            self._journal.sync()
            checkpoint.save(self._run_dir, content, step, is_best, self._keep_checkpoints)

    def finish(self, best: Path) -> None:  # noqa: D102
        self._tracker.keep(best)
        self._tracker.finish(exit_code=0)


@contextmanager
def open_recorder(
    run_dir: Path,
    config: Config,
    overrides: Sequence[str],
    step: int,
    finished_epochs: int,
    expected_lines: int,
) -> Iterator[Recorder]:
    """Open everything that rank 0 writes to, with the journal cut back to where the run continues.

    If something goes wrong inside, the wandb run ends as failed or as stopped.

    Args:
        run_dir: The run's directory, locked.
        config: The run's config.
        overrides: What was given on the command line.
        step: Where the run continues.
        finished_epochs: How many epochs it has finished.
        expected_lines: How many journal lines it had written by then.

    Raises:
        InputError: The directory cannot be written.
    """
    write_config(run_dir, config, overrides)
    with log_to_file(run_dir), closing(Journal(run_dir)) as journal:
        lines = journal.cut_back(step, finished_epochs)
        if len(lines) < expected_lines:
            logger.warning(
                "%s has lost %d of the lines that it had at step %d: pictures and wandb will lack "
                "them.",
                *(journal.path, expected_lines - len(lines), step),
            )
        tracker = start_tracking(config.tracking, run_dir, plain_config(config), lines)
        try:
            yield RunRecorder(run_dir, journal, tracker, config.trainer.keep_checkpoints)
        except BaseException as error:
            tracker.finish(exit_code=signals.STOPPED if isinstance(error, signals.Stopped) else 1)
            raise
