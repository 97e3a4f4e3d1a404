"""A model of one training step on n processes: compute + all-reduce + waiting for the slowest.

Pure formulas, in seconds and bytes. Their sources:

- The latencies of an all-reduce on GPUs are those by which NCCL chooses its own algorithm:
  `baseLat`, `hwLat` and `ncclTopoTuneModel` in its src/graph/tuning.cc
  (https://github.com/NVIDIA/nccl), rows of the protocol LL, which it takes for small messages.
- The greatest of n normal variables exceeds their mean by sd * sqrt(2 ln n) at most on average.
- The gradient noise scale: McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of
  Large-Batch Training", https://arxiv.org/abs/1812.06162, equations 2.7, 2.8 and appendix A.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TREE_BASE_SECONDS = 6.8e-6
TREE_NVLINK_HOP_SECONDS = 0.6e-6
TREE_NETWORK_HOP_SECONDS = 5.0e-6
RING_BASE_SECONDS = 6.6e-6
RING_NVLINK_HOP_SECONDS = 0.6e-6
RING_NETWORK_HOP_SECONDS = 2.7e-6
# What NCCL multiplies the NVLink hops of LL by where there are several nodes. The tree's formula
# here leaves it out: it would add 7 microseconds at 8 GPUs a node, far less than the band of 1x
# to 3x. In a ring these hops are most of the sum.
RING_SEVERAL_NODES_FACTOR = 1.8


@dataclass(frozen=True)
class AllReduceCost:
    """An all-reduce between a fixed number of processes: latency + bytes / bandwidth."""

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, size_bytes: float) -> float:
        """Return how long a message of this size takes."""
        return self.latency_seconds + size_bytes / self.bytes_per_second


def fit_all_reduce(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> AllReduceCost:
    """Fit latency and bandwidth to measured all-reduces, by least squares of relative errors.

    Of absolute errors the largest message alone would decide, and the latency would be noise.

    Args:
        sizes_bytes: At least two different sizes.
        seconds: What each took.
    """
    weights = [1 / second**2 for second in seconds]
    total = sum(weights)
    mean_size = sum(w * x for w, x in zip(weights, sizes_bytes, strict=True)) / total
    mean_seconds = sum(w * t for w, t in zip(weights, seconds, strict=True)) / total
    covariance, variance = 0.0, 0.0
    for weight, size, second in zip(weights, sizes_bytes, seconds, strict=True):
        covariance += weight * (size - mean_size) * (second - mean_seconds)
        variance += weight * (size - mean_size) ** 2
    seconds_per_byte = covariance / variance
    return AllReduceCost(mean_seconds - seconds_per_byte * mean_size, 1 / seconds_per_byte)


def tree_latency_seconds(gpus_per_node: int, nodes: int) -> float:
    """Return the latency of NCCL's tree: up and down a chain in the node and a tree of nodes."""
    hops = (gpus_per_node - 1) * TREE_NVLINK_HOP_SECONDS
    hops += math.floor(math.log2(nodes)) * TREE_NETWORK_HOP_SECONDS
    return TREE_BASE_SECONDS + 2 * hops


def tree_all_reduce_seconds(
    size_bytes: float, gpus_per_node: int, nodes: int, bytes_per_second: float
) -> float:
    """Return what an all-reduce by tree takes: all bytes go up the slowest link, and down again.

    Args:
        size_bytes: Of one process's gradients.
        gpus_per_node: Processes on each node.
        nodes: The number of nodes.
        bytes_per_second: The bandwidth of the slowest link, in one direction.
    """
    return tree_latency_seconds(gpus_per_node, nodes) + 2 * size_bytes / bytes_per_second


def ring_latency_seconds(gpus_per_node: int, nodes: int) -> float:
    """Return the latency of NCCL's ring, 2 (n - 1) hops of which 2 (nodes - 1) cross the network.

    This is what a plain ring model says of a small message. NCCL itself takes the tree there.
    """
    network_hops = 2 * (nodes - 1)
    nvlink_hops = 2 * (gpus_per_node * nodes - 1) - network_hops
    factor = RING_SEVERAL_NODES_FACTOR if nodes > 1 else 1.0
    hops = nvlink_hops * factor * RING_NVLINK_HOP_SECONDS
    return RING_BASE_SECONDS + hops + network_hops * RING_NETWORK_HOP_SECONDS


def ring_all_reduce_seconds(
    size_bytes: float, gpus_per_node: int, nodes: int, bytes_per_second: float
) -> float:
    """Return what an all-reduce by ring takes; the arguments are `tree_all_reduce_seconds`'s."""
    processes = gpus_per_node * nodes
    sent_bytes = 2 * (processes - 1) / processes * size_bytes
    return ring_latency_seconds(gpus_per_node, nodes) + sent_bytes / bytes_per_second


def straggler_seconds(sd_seconds: float, processes: int) -> float:
    """Return how much longer than the mean the slowest of n processes computes.

    Args:
        sd_seconds: The standard deviation of one process's compute over the steps.
        processes: How many wait for each other.
    """
    return sd_seconds * math.sqrt(2 * math.log(processes))


def step_seconds(
    compute_seconds: float, all_reduce_seconds: float, sd_seconds: float, processes: int
) -> float:
    """Return T(n) of a step whose communication begins when its backward pass has ended.

    That holds for a network whose gradients fit into one bucket of DistributedDataParallel.
    """
    return compute_seconds + all_reduce_seconds + straggler_seconds(sd_seconds, processes)


@dataclass(frozen=True)
class GradientNoise:
    """How the gradients of single samples lie around their mean.

    Attributes:
        squared_gradient: |G|^2, the squared norm of the mean gradient over all data.
        trace: tr(Sigma), the summed variance of a single sample's gradient.
    """

    squared_gradient: float
    trace: float

    @property
    def scale(self) -> float:
        """B_simple = tr(Sigma) / |G|^2, in samples; infinite where no gradient is to be seen."""
        return self.trace / self.squared_gradient if self.squared_gradient > 0 else math.inf


def estimate_noise(
    small_batch: int, big_batch: int, small_squared_norm: float, big_squared_norm: float
) -> GradientNoise:
    """Estimate |G|^2 and tr(Sigma), both without bias, from gradients at two batch sizes.

    A batch of B samples has E|G_B|^2 = |G|^2 + tr(Sigma) / B: two equations, two unknowns. Average
    the squared norms over many batches first, for the ratio of the two estimates has a bias.

    Args:
        small_batch: Samples in a small batch.
        big_batch: Samples in a big batch.
        small_squared_norm: The mean of |G_B|^2 over small batches.
        big_squared_norm: The mean of |G_B|^2 over big batches.
    """
    squared_gradient = big_batch * big_squared_norm - small_batch * small_squared_norm
    trace = (small_squared_norm - big_squared_norm) / (1 / small_batch - 1 / big_batch)
    return GradientNoise(squared_gradient / (big_batch - small_batch), trace)


def steps_needed(noise_scale: float, batch: float) -> float:
    """Return the steps to the same loss, in those that an infinite batch would need."""
    return 1 + noise_scale / batch
