"""What rank 0 leaves behind while a run lasts: journal, wandb and checkpoints, in that order."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_mnist.config.errors import InputError
from dist_mnist.distributed import whereabouts
from dist_mnist.record import checkpoint
from dist_mnist.record.journal import Journal, Line
from dist_mnist.record.tracker import NO_MEDIA, Media, Tracker

logger = logging.getLogger(__name__)


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

    def record(self, line: Line, media: Media = NO_MEDIA) -> None:
        """Add a line to the journal and to wandb, there with pictures and tables."""
        self.journal.write(line)
        self.tracker.log(line, media)

    def save(self, content: dict[str, Any], step: int, is_best: bool) -> None:
        """Write a checkpoint, after the journal's lines that it includes."""
        with whereabouts.inside(f"saving the checkpoint of step {step}"):
            self.journal.sync()
            content = {**content, "journal_step_lines": self.journal.step_lines}
            checkpoint.save(self.run_dir, content, step, is_best, self.keep_checkpoints)

    def save_evidence(self, content: dict[str, Any], step: int) -> None:
        """Write what led to a step that is not finite to `diagnostics/step-<n>.pt`."""
        path = self.run_dir / "diagnostics" / f"step-{step}.pt"
        try:
            path.parent.mkdir(exist_ok=True)
            checkpoint.write(path, content)
        except (InputError, OSError) as error:  # there is a worse one to tell
            logger.warning("%s", error)
        else:
            logger.warning("weights, samples and gradients of step %d: %s", step, path)
