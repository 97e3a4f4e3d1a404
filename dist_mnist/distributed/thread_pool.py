"""Threads that compute side by side, with one torch thread each.

torch's own threads share every operation and wait for each other at its end: one that has lost its
core to another program keeps them all waiting. These threads take whole pieces of work instead, and
whichever is free takes the next one.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class ThreadPool:
    """The calling thread and some helpers, which end when the pool is deleted.

    Args:
        threads: With more than one, every thread computes with one torch thread.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._helpers: ThreadPoolExecutor | None = None
        if threads > 1:
            torch.set_num_threads(1)
            self._helpers = ThreadPoolExecutor(
                threads - 1, "helper", initializer=torch.set_num_threads, initargs=(1,)
            )

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return `function(item)` of every item, in their order.

        After an error, no thread begins another item. The error is raised when all have stopped.
        """
        waiting = deque(enumerate(items))
        results: dict[int, Result] = {}

        def work() -> None:
            while waiting:
                try:
                    place, item = waiting.popleft()
                except IndexError:  # another thread has taken it
                    return
                try:
                    results[place] = function(item)
                except BaseException:
                    waiting.clear()
                    raise

        count = min(self.threads, len(waiting)) - 1
        helping = [self._helpers.submit(work) for _ in range(count)] if self._helpers else []
        try:
            work()
        finally:
            wait(helping)
        for helper in helping:
            helper.result()
        return [results[place] for place in range(len(results))]
