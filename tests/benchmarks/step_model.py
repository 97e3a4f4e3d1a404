"""A model of one training step of n processes: compute + all-reduce + waiting for the slowest.

All formulas use seconds and bytes. Sources:

- The latencies of an all-reduce on GPUs are the ones by which NCCL chooses its own algorithm:
  `baseLat`, `hwLat` and `ncclTopoTuneModel` in its src/graph/tuning.cc
  (https://github.com/NVIDIA/nccl), rows of the protocol LL, which it uses for small messages.
- The greatest of n normal variables exceeds their mean by at most sd * sqrt(2 ln n) on average.
- The gradient noise scale: McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of
  Large-Batch Training", https://arxiv.org/abs/1812.06162, equations 2.7, 2.8 and appendix A.1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

TREE_BASE_SECONDS, RING_BASE_SECONDS = 6.8e-6, 6.6e-6
TREE_NETWORK_HOP_SECONDS, RING_NETWORK_HOP_SECONDS = 5.0e-6, 2.7e-6
NVLINK_HOP_SECONDS = 0.6e-6
# NCCL multiplies the NVLink hops of LL by this if there are several nodes. They are most of a
# ring's time. The tree's formula leaves the factor out: it adds 7 microseconds at 8 GPUs a node.
RING_SEVERAL_NODES_FACTOR = 1.8


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


def tree_seconds(size_bytes: float, gpus_per_node: int, nodes: int, bandwidth: float) -> float:
    """Return the time of an all-reduce by NCCL's tree of the nodes, with a chain in each node.

    The bandwidth is the slowest link's, in bytes a second; all bytes cross it in both directions.
    """
    hops = (gpus_per_node - 1) * NVLINK_HOP_SECONDS
    hops += math.floor(math.log2(nodes)) * TREE_NETWORK_HOP_SECONDS
    return TREE_BASE_SECONDS + 2 * hops + 2 * size_bytes / bandwidth


def ring_seconds(size_bytes: float, gpus_per_node: int, nodes: int, bandwidth: float) -> float:
    """Return the time of a plain ring, which NCCL itself does not use for small messages.

    It has 2 (n - 1) hops, of which 2 (nodes - 1) cross the network.
    """
    processes = gpus_per_node * nodes
    network_hops = 2 * (nodes - 1)
    nvlink_hops = 2 * (processes - 1) - network_hops
    hops = nvlink_hops * NVLINK_HOP_SECONDS * (RING_SEVERAL_NODES_FACTOR if nodes > 1 else 1.0)
    hops += network_hops * RING_NETWORK_HOP_SECONDS
    sent_bytes = 2 * (processes - 1) / processes * size_bytes
    return RING_BASE_SECONDS + hops + sent_bytes / bandwidth


def step_seconds(compute: float, all_reduce: float, sd: float, processes: int) -> float:
    """Return the time of a step that communicates after its backward pass.

    This holds for networks whose gradients fit into one bucket of DistributedDataParallel. `sd` is
    the deviation of one process's compute; all processes wait for the slowest one.
    """
    return compute + all_reduce + sd * math.sqrt(2 * math.log(processes))


def noise_scale(small_batch: int, big_batch: int, small_norm: float, big_norm: float) -> float:
    """Estimate tr(Sigma) / |G|^2, in samples, from mean squared gradients at two batch sizes.

    A batch of B samples has E|G_B|^2 = |G|^2 + tr(Sigma) / B: two equations, two unknowns.
    """
    trace = (small_norm - big_norm) / (1 / small_batch - 1 / big_batch)
    squared_gradient = small_norm - trace / small_batch
    return trace / squared_gradient if squared_gradient > 0 else math.inf
