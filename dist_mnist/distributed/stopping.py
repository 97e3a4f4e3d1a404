"""All ranks stop in the same step, whichever of them a signal has reached."""

from time import perf_counter

from dist_mnist.distributed import signals
from dist_mnist.distributed.gradients import World, all_reduce_max

SECONDS_BETWEEN_QUESTIONS = 1.0


class StopAgreement:
    """Asks all ranks whether one of them has been told to stop.

    Between ranks that takes a message, so it is done about once a second: the slowest rank's time
    since the last one, which the same message brings, says how many steps to wait for the next.

    Args:
        world: This process.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked = perf_counter()
        self._steps, self._left = 1, 1

    def error(self) -> signals.AgreedStop:
        """Return what every rank raises where all have agreed to stop."""
        return signals.AgreedStop(signals.requested() or "a signal to another rank")

    def after_step(self) -> bool:
        """Return whether to stop after this step, alike on every rank, each of which must call."""
        self._left -= 1
        return self._left <= 0 and self.now()

    def now(self) -> bool:
        """Return whether to stop here, alike on every rank, each of which must call."""
        seconds = perf_counter() - self._asked
        told, slowest = all_reduce_max(self._world, [signals.requested() is not None, seconds])
        if self._world.size > 1:
            most = self._steps * SECONDS_BETWEEN_QUESTIONS / max(slowest, 1e-9)
            self._steps = max(1, int(min(most, 2 * self._steps)))
        self._left, self._asked = self._steps, perf_counter()
        return bool(told)
