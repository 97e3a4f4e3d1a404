"""Where in the run this process is, for whoever wants to know why nothing moves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Place(NamedTuple):
    """A place in the run.

    Attributes:
        number: How many places were entered up to it, the same on every rank at the same place; 0
            where no rank waits for another.
        name: For a person.
        since: When it was entered, in seconds of the monotonic clock.
    """

    number: int
    name: str
    since: float


_place = Place(0, "start-up", time.monotonic())


def enter(name: str) -> None:
    """Say that this process gets to a place that every rank gets to, in the same order."""
    global _place
    _place = Place(_place.number + 1, name, time.monotonic())


def leave() -> None:
    """Say that from here on no rank waits for this one, nor this one for any."""
    global _place
    _place = Place(0, "the end", time.monotonic())


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Say that this process does something on the way that other ranks need not do."""
    global _place
    outer = _place
    _place = Place(outer.number, name, time.monotonic())
    yield
    _place = outer._replace(since=time.monotonic())


def current() -> Place:
    """Return where this process is."""
    return _place
