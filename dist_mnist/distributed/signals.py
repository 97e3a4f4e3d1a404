"""Signals that ask a run to end: recorded when they arrive, acted on where nothing is lost.

Imports nothing slow, so that the handlers are in place before anything else is imported.
"""

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

# Sent by people, schedulers and closing terminals; each may come repeatedly.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
STOPPED = 75  # exit status of a run that was stopped early: start it again (EX_TEMPFAIL)
INTERRUPTED = 130  # exit status that a shell expects from a program ended by Ctrl-C
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>

ONE_CTRL_C_SECONDS = 0.5  # the launcher may pass on a Ctrl-C that the terminal already sent
BLOCKED_SECONDS = 10.0  # a process that cannot handle a signal for longer is ended

_received: list[signal.Signals] = []
_interrupted_at = math.inf
_deferred = False


class Stopped(BaseException):
    """A signal ends the run early; starting it again continues it.

    It is not an Exception, so that `except Exception` does not catch it.
    """


class AgreedStop(Stopped):
    """All ranks end after the same step, because one of them got a signal."""


def install() -> None:
    """Handle signals from now on: the first one raises `Stopped`, unless signals are deferred.

    A signal that was ignored when this process started stays ignored, as with nohup. Under
    torchrun, the agent's death counts as SIGTERM (Linux): its workers would train on unseen.
    """
    parent = os.getppid()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)
    _watch_for_signals()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with suppress(AttributeError, OSError):  # not Linux
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            _receive(signal.SIGTERM, None)


def _receive(number: int, frame: FrameType | None) -> None:
    global _interrupted_at
    is_first = not _received
    _received.append(signal.Signals(number))
    # A second Ctrl-C; torchrun turns it into SIGTERM.
    is_again = time.monotonic() - _interrupted_at > ONE_CTRL_C_SECONDS
    if is_again and number in (signal.SIGINT, signal.SIGTERM):
        os._exit(INTERRUPTED)
    if number == signal.SIGINT:
        _interrupted_at = min(_interrupted_at, time.monotonic())
    if is_first and not _deferred:
        raise Stopped(_received[0].name)


def _watch_for_signals() -> None:
    """End this process if a signal came but Python cannot run its handler.

    That happens while torch waits for a message from a rank that is gone.
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
        if not _deferred:  # the exception was raised but lost
            os._exit(STOPPED)

    threading.Thread(target=watch, name="signals", daemon=True).start()


def end(status: int) -> NoReturn:
    """End this process at once, without waiting for threads or other ranks."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # the stream or its pipe is closed
            stream.flush()
    os._exit(status)


def requested() -> str | None:
    """Return the name of the first signal that came, or None."""
    return _received[0].name if _received else None


def raise_if_stopped() -> None:
    """Raise `Stopped` if a signal has come, in case its exception was lost.

    For example, Python drops an exception that a handler raises while C code loads a module.
    """
    if _received:
        raise Stopped(_received[0].name)


@contextmanager
def deferred() -> Iterator[None]:
    """Only record signals inside: the code asks `requested` and ends at a good point.

    After an exception they stay deferred, so that a second signal does not interrupt the clean-up.

    Raises:
        Stopped: A signal came before, or came inside and was not acted on.
    """
    global _deferred
    raise_if_stopped()
    _deferred = True
    yield
    _deferred = False
    raise_if_stopped()


def accept() -> None:
    """Raise `Stopped` at signals again, after an error has ended one job of a sweep."""
    global _deferred
    _deferred = False
    raise_if_stopped()


def wait(seconds: float) -> bool:
    """Wait for another signal or until the time is up; return whether one came."""
    global _deferred
    _deferred = True  # for good: this process is about to end
    before, deadline = len(_received), time.monotonic() + seconds
    while len(_received) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(_received) > before
