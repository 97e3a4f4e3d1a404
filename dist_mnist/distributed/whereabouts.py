"""Where in the run this process is, for whoever wants to know why nothing moves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NamedTuple


class Phase(IntEnum):
    """The places of one step in which ranks wait for each other, in order."""

    START_UP = 0
    STEP = 1
    GRADIENTS = 2
    EVALUATION = 3
    END_OF_EPOCH = 4
    TEST = 5


class Place(NamedTuple):
    """A place in the run.

    Attributes:
        step: The optimizer step that is being made, from 1, or after which something else is done.
        phase: Which of the places of that step; every rank comes through the same ones.
        name: For a person.
        since: When it was entered, in seconds of the monotonic clock; None where no rank waits for
            another.
    """

    step: int
    phase: int
    name: str
    since: float | None


_place = Place(0, Phase.START_UP, "start-up", None)


def enter(step: int, phase: Phase, name: str) -> None:
    """Say that this process gets to a place where ranks may wait for each other."""
    global _place
    _place = Place(step, phase, name, time.monotonic())


def move() -> None:
    """Say that something goes on in the place where this process is."""
    global _place
    if _place.since is not None:
        _place = _place._replace(since=time.monotonic())


def leave() -> None:
    """Say that from here on no rank waits for another."""
    global _place
    _place = _place._replace(name="the end", since=None)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Say that this process does something on the way that other ranks need not do."""
    global _place
    outer = _place
    _place = outer._replace(name=name, since=time.monotonic())
    yield
    _place = outer._replace(since=time.monotonic())


def current() -> Place:
    """Return where this process is."""
    return _place
