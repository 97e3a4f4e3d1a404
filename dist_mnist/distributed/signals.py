"""Signals that ask a run to end: noted when they come, obeyed where nothing is lost by it.

Imports nothing that is slow, so that the handlers stand before anything else is imported.
"""

import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# What a person, a scheduler and a terminal that is closed send; any of them may come repeatedly.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
STOPPED = 75  # the exit status of a run that was stopped early: start it again (EX_TEMPFAIL)
INTERRUPTED = 130  # the exit status that a shell expects of a program that Ctrl-C has ended
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>

ONE_CTRL_C_SECONDS = 0.5  # a launcher may pass on what the terminal has sent already
BLOCKED_SECONDS = 10.0  # after that a process that cannot handle a signal is given up

_received: list[signal.Signals] = []
_interrupted_at = math.inf
_held = False


class Stopped(BaseException):
    """A signal ends the run early; starting it again continues it.

    No Exception: those are caught wherever something is tried that may fail.
    """


class AgreedStop(Stopped):
    """All ranks end after the same step, since a signal has come to one of them."""


def install() -> None:
    """Handle the signals from now on: the first one raises `Stopped`, or waits while `held`.

    A signal that this process was started to ignore stays ignored, as with nohup. Under torchrun
    the agent's end counts as SIGTERM (Linux): its workers would train on without it, unseen.
    """
    parent = os.getppid()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)
    _watch_for_signals()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with suppress(AttributeError, OSError):  # another system than Linux
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            _receive(signal.SIGTERM, None)


def _receive(number: int, frame: FrameType | None) -> None:
    global _interrupted_at
    is_first = not _received
    _received.append(signal.Signals(number))
    # Ctrl-C again, which torchrun turns into SIGTERM.
    is_again = time.monotonic() - _interrupted_at > ONE_CTRL_C_SECONDS
    if is_again and number in (signal.SIGINT, signal.SIGTERM):
        os._exit(INTERRUPTED)
    if number == signal.SIGINT:
        _interrupted_at = min(_interrupted_at, time.monotonic())
    if is_first and not _held:
        raise Stopped(_received[0].name)


def _watch_for_signals() -> None:
    """End this process where a signal has come and Python cannot handle it.

    It cannot while it waits, in torch, for what a rank that is gone was to send.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(reader, 1)[0] not in SIGNALS:
            pass
        time.sleep(BLOCKED_SECONDS)
        if not _received:
            os._exit(STOPPED)
        time.sleep(BLOCKED_SECONDS)
        if not _held:  # and yet nothing has ended: what was raised is lost
            os._exit(STOPPED)

    threading.Thread(target=watch, name="signals", daemon=True).start()


def requested() -> str | None:
    """Return the name of the first signal that has come, if any has."""
    return _received[0].name if _received else None


def obey() -> None:
    """Raise `Stopped` if a signal has come: it may have been lost where it was raised first.

    Python drops an exception that a handler raises while C code loads a module, for one.
    """
    if _received:
        raise Stopped(_received[0].name)


@contextmanager
def held() -> Iterator[None]:
    """Let signals only be noted: what runs inside asks `requested` and ends where it can.

    After an exception they stay held, or a second one would cut short what the first has begun.

    Raises:
        Stopped: One has come before, or at the end, where nobody has asked since.
    """
    global _held
    obey()
    _held = True
    yield
    _held = False
    obey()


def wait(seconds: float) -> bool:
    """Wait, but no longer than until another signal comes; return whether one has."""
    global _held
    _held = True  # for good: whoever waits so is about to end
    before, deadline = len(_received), time.monotonic() + seconds
    while len(_received) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(_received) > before
