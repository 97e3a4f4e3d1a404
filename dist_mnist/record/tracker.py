"""Trackers: what a run tells wandb, and how training avoids waiting for it. Needs no wandb."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.record.journal import Line

logger = logging.getLogger(__name__)

# How long a run that is over waits for its upload. Schedulers often grant a stopped job 30 s,
# which must also do for a checkpoint.
UPLOAD_TIMEOUT_SECONDS = 8.0
FINISH_TIMEOUT_SECONDS = UPLOAD_TIMEOUT_SECONDS + 2.0
SEARCH_PATIENCE_SECONDS = 5.0  # of that, for a server that a short run has not found yet


class Table(NamedTuple):
    """A table; a cell that is a uint8 tensor of shape (H, W) becomes a picture."""

    columns: list[str]
    rows: list[list[Any]]


Media = Mapping[str, Path | Table]
NO_MEDIA: Media = {}


class Tracker:
    """What a run tells wandb. This one, for runs without wandb, tells nobody."""

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:
        """Add the numbers of one line of the journal, and pictures and tables of its step."""

    def keep(self, checkpoint: Path) -> None:
        """Upload a checkpoint, if there is a server."""

    def finish(self, exit_code: int) -> None:
        """End the run; say where to see it, unless it failed."""


class BackgroundTracker(Tracker):
    """Another tracker on a thread of its own, so that training never waits for it.

    The next call raises the user's mistake (`InputError`) that shows up while the tracker starts.
    Anything else that goes wrong is logged once, and the run goes on without a tracker.

    Args:
        start: Returns the tracker.
        hurry: Cuts short a start that takes long; may have to be called again.
        abandon: Ends the tracker at once, whatever it is doing.
    """

    def __init__(
        self,
        start: Callable[[], Tracker],
        hurry: Callable[[], None] = lambda: None,
        abandon: Callable[[], None] = lambda: None,
    ) -> None:
        self._hurry, self._abandon = hurry, abandon
        self._mistake: InputError | None = None
        self._calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        # Not an executor's, which Python would wait for at its end however long that takes.
        self._thread = Thread(target=self._work, args=(start,), name="tracking", daemon=True)
        self._thread.start()

    def _work(self, start: Callable[[], Tracker]) -> None:
        tracker: Tracker = Tracker()

        def begin(_: Tracker) -> None:
            nonlocal tracker
            tracker = start()

        call: Callable[[Tracker], None] | None = begin
        while call:
            try:
                call(tracker)
            except InputError as error:
                self._mistake = error
            except Exception as error:
                logger.warning(
                    "wandb failed, and training goes on without it; the next start with this "
                    "run_dir adds what is missing: %s: %s",
                    type(error).__name__,
                    one_line(error)[:300],
                )
                tracker = Tracker()
                self._abandon()
            call = self._calls.get()

    def _call(self, function: Callable[[Tracker], None]) -> None:
        if self._mistake:
            raise self._mistake
        self._calls.put(function)

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:  # noqa: D102
        self._call(lambda tracker: tracker.log(line, media))

    def keep(self, checkpoint: Path) -> None:  # noqa: D102
        self._call(lambda tracker: tracker.keep(checkpoint))

    def finish(self, exit_code: int) -> None:
        """End the run once it has been handed over, or after `FINISH_TIMEOUT_SECONDS`."""
        self._calls.put(lambda tracker: tracker.finish(exit_code))
        self._calls.put(None)
        began = time.monotonic()
        patience = SEARCH_PATIENCE_SECONDS if exit_code == 0 else 0.0
        while (
            self._thread.is_alive()
            and (waited := time.monotonic() - began) < FINISH_TIMEOUT_SECONDS
        ):
            if waited >= patience:
                self._hurry()
            self._thread.join(0.2)
        if self._thread.is_alive():
            logger.warning(
                "wandb has not ended within %g s and is left behind; the next start with this "
                "run_dir adds what is missing.",
                FINISH_TIMEOUT_SECONDS,
            )
            self._abandon()
        if self._mistake and exit_code == 0:  # a run that failed has an error of its own to tell
            raise self._mistake
