"""Notices that a run stands still, and names the rank that the others wait for.

Every rank tells the others about once a second that it lives and where it is. A rank that has not
moved for too long looks at what the others told: one is silent (its process is stopped, or its
machine is gone), or one is behind (it is slow, or stuck). One rank says so, and all of them end.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from dist_mnist.distributed import whereabouts

ANSWER_SECONDS = 5.0  # how long the store may take to answer before it counts as gone
FAILED = 1


class Store(Protocol):
    """What ranks leave messages in for each other."""

    def set(self, key: str, value: str) -> None:
        """Leave a message."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Return messages, once all of them are there."""

    def add(self, key: str, amount: int) -> int:
        """Add to a number and return what it has become."""


class Sign(NamedTuple):
    """What a rank tells of itself; `beat` is how often it has."""

    beat: int
    step: int
    phase: int
    name: str


def start(rank: int, size: int, open_store: Callable[[], Store], timeout_seconds: float) -> None:
    """Watch over this process from now on, on threads that end with it.

    Args:
        rank: This process.
        size: The number of processes.
        open_store: Connects to where the ranks leave messages; it may fail or block.
        timeout_seconds: How long this process may stay in one place.
    """
    interval = min(1.0, timeout_seconds / 10)
    threading.Thread(target=_tell, args=(rank, open_store, interval), daemon=True).start()
    threading.Thread(
        target=_watch, args=(rank, size, open_store, interval, timeout_seconds), daemon=True
    ).start()


def _tell(rank: int, open_store: Callable[[], Store], interval: float) -> None:
    try:
        store = open_store()
        beat = 0
        while True:
            place = whereabouts.current()
            store.set(_key(rank), json.dumps((beat, *place[:3])))
            beat += 1
            time.sleep(interval)
    except RuntimeError:  # the store has ended: so has the run, or whoever waits for us will say it
        return


def _watch(
    rank: int, size: int, open_store: Callable[[], Store], interval: float, timeout: float
) -> None:
    while True:
        time.sleep(interval)
        place = whereabouts.current()
        if place.since is not None and time.monotonic() - place.since > timeout:
            sentence, is_first = _diagnose(size, open_store, 3 * interval)
            if whereabouts.current() != place:
                continue  # it moved, at the last moment
            # Everyone who waits comes to the same conclusion: the first one tells it.
            if is_first:
                print(
                    f"[rank {rank}] error: no progress for {timeout:g} s "
                    f"(trainer.timeout_seconds): {sentence}.",
                    file=sys.stderr,
                    flush=True,
                )
            else:
                time.sleep(ANSWER_SECONDS)
            sys.stdout.flush()
            os._exit(FAILED)


def _diagnose(size: int, open_store: Callable[[], Store], pause: float) -> tuple[str, bool]:
    """Return a sentence about the rank that is behind, and whether nobody has come to it before."""
    answers: list[list[Sign]] = []
    order: list[int] = []

    def ask() -> None:
        store = open_store()
        for _ in range(2):
            answers.append([_parse(text) for text in store.multi_get([*map(_key, range(size))])])
            time.sleep(pause)
        order.append(store.add("diagnoses", 1))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS + 2 * pause)
    if not order:
        return "rank 0, or what keeps the ranks' messages for it, does not answer", True
    return _sentence(*answers), order == [1]


def _sentence(before: list[Sign], now: list[Sign]) -> str:
    """Return what two looks at the ranks' signs, some time apart, say of the one that is behind."""

    def place(rank: int) -> tuple[int, int]:
        return now[rank].step, now[rank].phase

    ranks = range(len(now))
    last, ahead = min(ranks, key=place), max(ranks, key=place)
    others = f"rank {ahead} waits in {now[ahead].name}"
    for rank in ranks:
        if now[rank].beat == before[rank].beat:
            return (
                f"rank {rank} gives no sign of life (stopped, or its machine is gone); it was last "
                f"heard of in {now[rank].name}; {others}"
            )
    if place(last) == place(ahead):
        return f"every rank is in the same place, {now[last].name}, and none is behind"
    return f"rank {last} is behind, in {now[last].name}; {others}"


def _key(rank: int) -> str:
    return f"whereabouts/{rank}"


def _parse(text: bytes) -> Sign:
    return Sign(*json.loads(text))
