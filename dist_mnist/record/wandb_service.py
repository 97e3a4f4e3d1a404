"""wandb's service process: how a search for its server is cut short, and how it is ended."""

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb


class ServerSearch:
    """Looking for wandb's server, which can be called off from another thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_on = self._is_off = False

    def look(self, start: Callable[[], "wandb.Run"]) -> "wandb.Run":
        """Return what a start returns.

        Raises:
            ConnectionError: The search was called off, before or meanwhile.
        """
        self._set(is_on=True)
        try:
            return start()
        finally:
            self._set(is_on=False)

    def _set(self, is_on: bool) -> None:
        with self._lock:
            self._is_on = is_on and not self._is_off
            if self._is_off:
                raise ConnectionError("the run ended before the server had answered")

    def call_off(self) -> None:
        """End the search, if it has not ended and has a process by now; let none begin."""
        with self._lock:
            self._is_off = True
            if self._is_on:
                kill_service()


def kill_service() -> None:
    """Kill wandb's service process: asked to end, it would first wait for its server."""
    with suppress(Exception):  # there is no public way, and perhaps no process
        import wandb

        setup: Any = wandb.setup()
        process = setup._connection._proc._process
        process.kill()
        process.wait()


def end_service() -> None:
    """End wandb's service process at once, and let wandb forget it."""
    kill_service()
    with suppress(Exception, SystemExit):  # it complains that the process is gone
        import wandb

        wandb.teardown()
