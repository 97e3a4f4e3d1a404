"""What rank 0 leaves behind while a run lasts: journal, wandb and checkpoints, in that order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_mnist import checkpoint
from dist_mnist.journal import Journal, Line
from dist_mnist.tracking import Tracker


@dataclass(frozen=True)
class Recorder:
    """The places a run's numbers and weights go to; only rank 0 has one.

    Attributes:
        run_dir: The run's directory.
        keep_checkpoints: How many `step-<n>.pt` to keep.
    """

    run_dir: Path
    journal: Journal
    tracker: Tracker
    keep_checkpoints: int

    def record(self, line: Line) -> None:
        """Add a line to the journal and to wandb."""
        self.journal.write(line)
        self.tracker.log(line)

    def save(self, content: dict[str, Any], step: int, is_best: bool) -> None:
        """Write a checkpoint, after the journal's lines that it includes."""
        self.journal.sync()
        checkpoint.save(self.run_dir, content, step, is_best, self.keep_checkpoints)
