"""A model of one training step of n processes: compute + all-reduce + waiting for the slowest.

All formulas use seconds and bytes. The greatest of n normal variables exceeds their mean by at most
sd * sqrt(2 ln n) on average.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class AllReduceCost(NamedTuple):
    """An all-reduce between a fixed number of processes: latency + bytes / bandwidth."""

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, size_bytes: float) -> float:
        """Return the time of a message of this size."""
        return self.latency_seconds + size_bytes / self.bytes_per_second


def fit_all_reduce(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> AllReduceCost:
    """Fit latency and bandwidth to measured all-reduces, by least squares of relative errors.

    With absolute errors, the largest message alone would decide, and the latency would be noise.
    """
    rows = [(1 / s, size / s) for size, s in zip(sizes_bytes, seconds, strict=True)]
    matrix = torch.tensor(rows, dtype=torch.float64)
    solution = torch.linalg.lstsq(matrix, torch.ones_like(matrix[:, :1])).solution
    latency, seconds_per_byte = solution.flatten().tolist()
    return AllReduceCost(latency, 1 / seconds_per_byte)


def step_seconds(compute: float, all_reduce: float, sd: float, processes: int) -> float:
    """Return the time of a step that communicates after its backward pass.

    This holds for networks whose gradients fit into one bucket of DistributedDataParallel. `sd` is
    the deviation of one process's compute; all processes wait for the slowest one.
    """
    return compute + all_reduce + sd * math.sqrt(2 * math.log(processes))
