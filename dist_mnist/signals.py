"""Signals that ask a run to end: noted when they come, obeyed where nothing is lost by it.

Imports nothing that is slow, so that the handlers stand before anything else is imported.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# What a person, a scheduler and a terminal that is closed send; any of them may come repeatedly.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOPPED = 75  # the exit status of a run that was stopped early: start it again (EX_TEMPFAIL)
INTERRUPTED = 130  # the exit status that a shell expects of a program that Ctrl-C has ended
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>

_received: list[signal.Signals] = []
_held = False


class Stopped(BaseException):
    """A signal ends the run early; starting it again continues it.

    No Exception: those are caught wherever something is tried that may fail.
    """


def install() -> None:
    """Handle the signals from now on: the first one raises `Stopped`, or waits while `held`.

    A signal that this process was started to ignore stays ignored, as with nohup. Under torchrun
    the agent's end counts as SIGTERM (Linux): its workers would train on without it, unseen.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with suppress(AttributeError, OSError):  # another system than Linux
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _receive(number: int, frame: FrameType | None) -> None:
    is_first = not _received
    _received.append(signal.Signals(number))
    # Ctrl-C again, which torchrun turns into SIGTERM.
    if signal.SIGINT in _received[:-1] and number in (signal.SIGINT, signal.SIGTERM):
        os._exit(INTERRUPTED)
    if is_first and not _held:
        raise Stopped(_received[0].name)


def requested() -> str | None:
    """Return the name of the first signal that has come, if any has."""
    return _received[0].name if _received else None


@contextmanager
def held() -> Iterator[None]:
    """Let signals only be noted: what runs inside asks `requested` and ends where it can.

    After an exception they stay held, or a second one would cut short what the first has begun.
    """
    global _held
    _held = True
    yield
    _held = False


def wait(seconds: float) -> bool:
    """Wait, but no longer than until a signal has come; return whether one has."""
    deadline = time.monotonic() + seconds
    with held():
        while not _received and time.monotonic() < deadline:
            time.sleep(0.02)
    return bool(_received)
