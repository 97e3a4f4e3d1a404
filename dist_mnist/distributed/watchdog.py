"""Notices that a run makes no progress, and names the rank that the others are waiting for.

The loop reports its position with `enter`. About once a second, every rank sends a heartbeat with
its position. A rank that has not moved for too long compares the others' heartbeats: one rank is
silent (its process is stopped, or its machine is gone) or behind (slow, or stuck). One rank reports
it, and all of them end.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NamedTuple, Protocol

from dist_mnist.distributed import signals

ANSWER_SECONDS = 5.0  # a store that takes longer to answer counts as gone
FAILED = 1


class Phase(IntEnum):
    """The places in one step where ranks wait for each other, in order."""

    START_UP = 0
    STEP = 1
    GRADIENTS = 2
    EVALUATION = 3
    END_OF_EPOCH = 4
    TEST = 5


NAMES = {
    Phase.START_UP: "start-up",
    Phase.STEP: "step {}",
    Phase.GRADIENTS: "the gradients of step {}",
    Phase.EVALUATION: "the evaluation after step {}",
    Phase.END_OF_EPOCH: "the end of the epoch, step {}",
    Phase.TEST: "the test after step {}",
}


class Position(NamedTuple):
    """A position in the run."""

    step: int  # the optimizer step in progress, from 1, or the last one done
    phase: Phase  # the place within that step; every rank passes through the same ones
    since: float | None  # when it was entered, on the monotonic clock; None if no rank waits here
    activity: str = ""  # work that only this rank does here
    shards: Collection[int] = ()  # those in progress; the threads that compute them change it

    @property
    def name(self) -> str:
        """Its name in a message."""
        shards = ", ".join(map(str, sorted(self.shards)))
        prefix = f"shard {shards} of " if shards else ""
        return self.activity or prefix + NAMES[self.phase].format(self.step)


_position = Position(0, Phase.START_UP, None)


def enter(phase: Phase, step: int, shards: Collection[int] = ()) -> None:
    """Report that this process has reached a place where ranks may wait for each other."""
    global _position
    _position = Position(step, phase, time.monotonic(), shards=shards)


def keep_alive() -> None:
    """Report that this process is making progress in its place."""
    global _position
    if _position.since is not None:
        _position = _position._replace(since=time.monotonic())


def pause(activity: str = "the end") -> None:
    """Report that from here on no rank waits for another, until the next `enter`."""
    global _position
    _position = _position._replace(since=None, activity=activity)


@contextmanager
def during(activity: str) -> Iterator[None]:
    """Report work that the other ranks do not do."""
    global _position
    outer = _position
    _position = outer._replace(since=time.monotonic(), activity=activity)
    yield
    _position = outer._replace(since=time.monotonic())


class Store(Protocol):
    """Messages between ranks by key, such as a `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None:
        """Store a message."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Return messages once all of them are there."""

    def add(self, key: str, amount: int) -> int:
        """Add to a number and return the sum."""


class Heartbeat(NamedTuple):
    """A rank's message to the others; `beat` counts its messages."""

    beat: int
    step: int
    phase: int
    name: str


def start(rank: int, size: int, open_store: Callable[[], Store], timeout_seconds: float) -> None:
    """Watch this process from now on, on threads that end with it.

    Args:
        open_store: Connects to the ranks' store; it may fail or block.
        timeout_seconds: How long this process may stay in one place.
    """
    interval = min(1.0, timeout_seconds / 10)
    for target, arguments in (
        (_send_heartbeats, (rank, open_store, interval)),
        (_watch, (rank, size, open_store, interval, timeout_seconds)),
    ):
        threading.Thread(target=target, args=arguments, daemon=True).start()


def _send_heartbeats(rank: int, open_store: Callable[[], Store], interval: float) -> None:
    try:
        store = open_store()
        beat = 0
        while True:
            position = _position
            heartbeat = Heartbeat(beat, position.step, position.phase, position.name)
            store.set(_key(rank), json.dumps(heartbeat))
            beat += 1
            time.sleep(interval)
    except RuntimeError:  # the store is gone: the run has ended, or another rank will report it
        return


def _watch(
    rank: int, size: int, open_store: Callable[[], Store], interval: float, timeout: float
) -> None:
    while True:
        time.sleep(interval)
        position = _position
        if position.since is not None and time.monotonic() - position.since > timeout:
            sentence, is_first = _diagnose(size, open_store, 3 * interval)
            if _position != position:
                continue  # it moved just now
            # Every waiting rank comes to the same conclusion: the first one reports it.
            if is_first:
                print(
                    f"[rank {rank}] error: no progress for {timeout:g} s "
                    f"(trainer.timeout_seconds): {sentence}.",
                    file=sys.stderr,
                    flush=True,
                )
            else:
                time.sleep(ANSWER_SECONDS)
            signals.end(FAILED)


def _diagnose(size: int, open_store: Callable[[], Store], pause: float) -> tuple[str, bool]:
    """Return a sentence about the rank that is behind, and whether this is the first diagnosis."""
    samples: list[list[Heartbeat]] = []
    order: list[int] = []

    def ask() -> None:
        store = open_store()
        for _ in range(2):
            texts = store.multi_get([*map(_key, range(size))])
            samples.append([Heartbeat(*json.loads(text)) for text in texts])
            time.sleep(pause)
        order.append(store.add("diagnoses", 1))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS + 2 * pause)
    if not order:
        return "rank 0, or the store with the ranks' messages, does not answer", True
    return _sentence(*samples), order == [1]


def _sentence(before: list[Heartbeat], now: list[Heartbeat]) -> str:
    """Return a sentence about the rank that is behind, from two samples of all heartbeats."""

    def place(rank: int) -> tuple[int, int]:
        return now[rank].step, now[rank].phase

    ranks = range(len(now))
    last, ahead = min(ranks, key=place), max(ranks, key=place)
    others = f"rank {ahead} waits in {now[ahead].name}"
    for rank in ranks:
        if now[rank].beat == before[rank].beat:
            return (
                f"rank {rank} sends no heartbeat (it is stopped, or its machine is gone); "
                f"it was last seen in {now[rank].name}; {others}"
            )
    if place(last) == place(ahead):
        return f"all ranks are in {now[last].name}, and none is behind"
    return f"rank {last} is behind, in {now[last].name}; {others}"


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"
