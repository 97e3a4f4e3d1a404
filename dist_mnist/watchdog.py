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

from dist_mnist import whereabouts

ANSWER_SECONDS = 5.0  # how long the store may take to answer before it counts as gone
FAILED = 1


class Store(Protocol):
    """What ranks leave messages in for each other."""

    def set(self, key: str, value: str) -> None:
        """Leave a message."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Return messages, once all of them are there."""


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
    for task in (_tell, _watch):
        threading.Thread(
            target=task, args=(rank, size, open_store, interval, timeout_seconds), daemon=True
        ).start()


def _tell(
    rank: int, size: int, open_store: Callable[[], Store], interval: float, timeout: float
) -> None:
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
            culprit, sentence = _diagnose(rank, size, open_store, 3 * interval)
            if whereabouts.current() != place:
                continue  # it moved, at the last moment
            # Everyone who waits comes to the same conclusion: one of them tells it.
            if rank == (1 if culprit == 0 else 0):
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


def _diagnose(
    rank: int, size: int, open_store: Callable[[], Store], pause: float
) -> tuple[int, str]:
    """Return the rank that is behind, and a sentence about it."""
    answers: list[list[Sign]] = []

    def ask() -> None:
        store = open_store()
        for _ in range(2):
            answers.append([_parse(text) for text in store.multi_get([*map(_key, range(size))])])
            time.sleep(pause)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS + 2 * pause)
    if len(answers) < 2:
        return 0, "rank 0, or what keeps the ranks' messages for it, does not answer"
    before, now = answers
    here = f"rank {rank} waits in {whereabouts.current().name}"
    for other in range(size):
        if now[other].beat == before[other].beat:
            place = now[other].name
            return other, (
                f"rank {other} gives no sign of life (stopped, or its machine is gone); it was "
                f"last in {place}; {here}"
            )
    last = min(range(size), key=lambda other: now[other][1:3])
    if now[last][1:3] == now[rank][1:3]:
        return last, f"every rank is in the same place, none is behind; {here}"
    return last, f"rank {last} is behind, in {now[last].name}; {here}"


def _key(rank: int) -> str:
    return f"whereabouts/{rank}"


def _parse(text: bytes) -> Sign:
    return Sign(*json.loads(text))
