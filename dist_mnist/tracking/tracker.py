"""Trackers (wandb, TensorBoard, CSV) and the thread that keeps training from waiting for them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.distributed import signals
from dist_mnist.record.journal import Line

logger = logging.getLogger(__name__)

# How long a finished run waits for its tracker. Schedulers often grant a stopped job 30 s, which
# must also be enough for a checkpoint.
FINISH_TIMEOUT_SECONDS = 10.0
ABANDON_TIMEOUT_SECONDS = 1.0


T = TypeVar("T")


class Table(NamedTuple):
    """A table; a cell that is a uint8 tensor (H, W) or (H, W, 3) becomes a picture."""

    columns: list[str]
    rows: list[list[Any]]


Media = Mapping[str, Path | Table]
NO_MEDIA: Media = {}


def charts(line: Line) -> Iterator[tuple[str, float]]:
    """Yield each number of a journal line with its chart; epochs have charts apart from steps."""
    kind = line["kind"]
    for key, value in line.items():
        if not isinstance(value, (int, float)) or key == "step":
            continue
        if kind == "step" and key.startswith("train/"):
            yield f"{key}_step", value
        else:
            yield "test/seconds" if (kind, key) == ("test", "seconds") else key, value


class Tracker:
    """Receives a run's numbers. This one, for untracked runs, drops them."""

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:
        """Add a row with the numbers of a journal line, and with pictures and tables."""

    def keep(self, checkpoint: Path) -> None:
        """Upload a checkpoint, if there is a server."""

    def finish(self, exit_code: int) -> None:
        """End the run; log where to see it, unless it failed."""


class Trackers(Tracker):
    """Forwards each call to several trackers.

    Args:
        trackers: None of them may block.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:  # noqa: D102
        for tracker in self._trackers:
            tracker.log(line, media)

    def keep(self, checkpoint: Path) -> None:  # noqa: D102
        for tracker in self._trackers:
            tracker.keep(checkpoint)

    def finish(self, exit_code: int) -> None:  # noqa: D102
        with ExitStack() as stack:  # if one fails, the others still finish
            for tracker in reversed(self._trackers):
                stack.callback(tracker.finish, exit_code)


class BackgroundTracker(Tracker):
    """Another tracker on a background thread, so that training never waits for it.

    An `InputError` while the tracker starts is raised by the next call. Any other error is logged
    once, and from then on the tracker gets no call but `finish`.

    Args:
        start: Returns the tracker.
        abandon: Releases a tracker that failed or hangs, at the end. It may hang too.
    """

    def __init__(
        self,
        start: Callable[[], Tracker],
        abandon: Callable[[], None] = lambda: None,
        name: str = "wandb",
    ) -> None:
        self._start, self._abandon, self._name = start, abandon, name
        self._mistake: InputError | None = None
        self._has_failed = False
        self._exit_code = 0
        self._calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        # Not an executor's thread: Python would wait for it at exit.
        self._thread = Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        tracker = self._attempt(self._start) or Tracker()
        while call := self._calls.get():
            if not self._has_failed:
                self._attempt(partial(call, tracker))
        self._attempt(partial(tracker.finish, self._exit_code))
        if self._has_failed:
            self._abandon()

    def _attempt(self, function: Callable[[], T]) -> T | None:
        try:
            return function()
        except InputError as error:
            self._mistake = error
        except Exception as error:
            if not self._has_failed:
                _log_failure(self._name, error)
            self._has_failed = True
        return None

    def _call(self, function: Callable[[Tracker], None]) -> None:
        if self._mistake:
            raise self._mistake
        self._calls.put(function)

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:  # noqa: D102
        self._call(lambda tracker: tracker.log(line, media))

    def keep(self, checkpoint: Path) -> None:  # noqa: D102
        self._call(lambda tracker: tracker.keep(checkpoint))

    def finish(self, exit_code: int) -> None:
        """End the run once all rows are logged, or after `FINISH_TIMEOUT_SECONDS`."""
        self._exit_code = exit_code
        self._calls.put(None)
        self._thread.join(FINISH_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            logger.warning(
                "%s did not finish within %g s; giving up on it. The next start with this run_dir "
                "adds the missing rows.",
                *(self._name, FINISH_TIMEOUT_SECONDS),
            )
            self._has_failed = True  # already logged
            last = Thread(target=self._abandon, name="abandon tracking", daemon=True)
            last.start()
            last.join(ABANDON_TIMEOUT_SECONDS)
        if self._mistake and exit_code == 0:  # a run that failed reports its own error
            raise self._mistake


def _log_failure(name: str, error: Exception) -> None:
    """Log that a tracker failed, which is expected in a run that got a signal.

    Schedulers and torchrun also signal the processes that a rank has started, and wandb's service
    ends at the second signal.
    """
    reason = f"{type(error).__name__}: {one_line(error)}"
    if signals.requested():
        logger.info(
            "%s was stopped as well; the next start with this run_dir adds the missing rows: %s",
            *(name, reason),
        )
    else:
        logger.warning(
            "%s failed, and training goes on without it; the next start with this run_dir adds "
            "the missing rows: %s",
            *(name, reason),
        )
