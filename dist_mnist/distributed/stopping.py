"""All ranks stop after the same step, no matter which one got the signal."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from dist_mnist.distributed import signals, watchdog
from dist_mnist.distributed.world import World, all_reduce_max, barrier

SECONDS_BETWEEN_QUESTIONS = 1.0


class StopAgreement:
    """Lets all ranks agree on whether one of them got a signal.

    That takes a message between ranks, so it happens about once a second. The same message carries
    the slowest rank's time since the last one, which determines the steps until the next.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked_at = perf_counter()
        self._interval, self._steps_left = 1, 1

    def after_step(self) -> bool:
        """Return whether to stop after this step, the same on every rank; all must call it."""
        self._steps_left -= 1
        return self._steps_left <= 0 and self.now()

    def now(self) -> bool:
        """Return whether to stop here, the same on every rank; all must call it."""
        seconds = perf_counter() - self._asked_at
        is_requested = signals.requested() is not None
        stops, slowest = all_reduce_max(self._world, [is_requested, seconds])
        if self._world.size > 1:
            most = self._interval * SECONDS_BETWEEN_QUESTIONS / max(slowest, 1e-9)
            self._interval = max(1, int(min(most, 2 * self._interval)))
        self._steps_left, self._asked_at = self._interval, perf_counter()
        return bool(stops)


def agreed_stop() -> signals.AgreedStop:
    """Return the exception that every rank raises once all have agreed to stop."""
    return signals.AgreedStop(signals.requested() or "a signal to another rank")


@contextmanager
def ending_together(world: World) -> Iterator[None]:
    """Let no rank end before rank 0 has saved: torchrun would notice and end rank 0 too."""
    try:
        yield
    except signals.AgreedStop:
        watchdog.pause()
        barrier(world)
        raise
