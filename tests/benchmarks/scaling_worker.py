"""One of the two processes of the `scaling` benchmark, each with one thread. Run by torchrun.

All that is compared is measured by the same two processes, in turn, so that a slow minute strikes
all of it: steps of one process while the other one sleeps, of both beside each other without a
word between them, and of both as a world of size 2. Rank 0 prints the times as JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import torch
import torch.distributed as dist

from dist_mnist.data.splits import DataSplits, load_splits
from dist_mnist.distributed.session import session
from dist_mnist.distributed.shared_memory import SharedMemory
from dist_mnist.distributed.world import World, broadcast_object
from dist_mnist.training.build import build_training_state
from dist_mnist.training.progress import Progress, RunningMetrics
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import set_train_mode
from tests.benchmarks.loop_worker import in_ddp, keep
from tests.support.configs import make_config

WARM_UP_STEPS = 3
SIZES_BYTES = [2**power for power in range(10, 25, 2)]  # 1 KB to 16 MB

# How each measurement is set up: the processes that compute, the size of their world, what the
# global batch is multiplied by, and whether a world of size 1 is wrapped in DDP, sending nothing.
MODES: dict[str, tuple[int, int, float, bool]] = {
    "one process": (1, 1, 1.0, False),
    "one process, half batch": (1, 1, 0.5, False),
    "two apart, half batch": (2, 1, 0.5, False),
    "two apart": (2, 1, 1.0, False),
    "nothing sent, half batch": (2, 1, 0.5, True),
    "strong": (2, 2, 1.0, False),
    "nothing sent": (2, 1, 1.0, True),
    "weak": (2, 2, 2.0, False),
}
MODES_OF_THE_CHECK = ("nothing sent, half batch", "strong", "nothing sent", "weak")


def main() -> None:
    """Measure the networks that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--networks", type=json.loads, required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with session("cpu", timeout_seconds=120) as world:
        torch.set_num_threads(1)
        result = measure(world, arguments.networks, arguments.overrides, arguments.rounds)
        if world.is_main:
            print(json.dumps(result), flush=True)


def measure(
    world: World, networks: Mapping[str, Mapping[str, Any]], overrides: list[str], rounds: int
) -> dict[str, Any]:
    """Measure steps and all-reduces in turn, for a number of rounds.

    Args:
        world: This process, one of two.
        networks: By name: its `overrides`, its `batch`, how many `steps` to time, and whether it
            only serves to `check` the model.
        overrides: For all networks.
        rounds: How often.

    Returns:
        By network its gradient's bytes and by mode a list over the rounds of what
        `summary_of_ranks` gives; by kind of all-reduce and size the seconds of each round.
    """
    config = make_config(*overrides)
    splits = load_splits(config.data, config.seed)
    states = {n: build_states(world, splits, overrides, chosen) for n, chosen in networks.items()}
    steps: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {mode: [] for mode in states[name]} for name in networks
    }
    all_reduces = build_all_reduces(world)
    seconds: dict[str, dict[str, list[float]]] = {
        kind: {str(size): [] for size in SIZES_BYTES} for kind in all_reduces
    }
    for _ in range(rounds):
        for name, network in networks.items():
            for mode, state in states[name].items():
                times = time_mode(world, state, MODES[mode][0], network["steps"])
                steps[name][mode].append(summary_of_ranks(world, times))
        for kind, all_reduce in all_reduces.items():
            for size in SIZES_BYTES:
                seconds[kind][str(size)].append(time_all_reduce(all_reduce, size))
    return {
        "gradient_bytes": {name: gradient_bytes(states[name]["strong"]) for name in networks},
        "steps": steps,
        "all_reduce_seconds": seconds,
    }


def build_states(
    world: World, splits: DataSplits, overrides: list[str], network: Mapping[str, Any]
) -> dict[str, TrainingState]:
    """Build the network of each mode."""
    states = {}
    for mode in MODES_OF_THE_CHECK if network["check"] else MODES:
        _, world_size, factor, in_silence = MODES[mode]
        batch_size = f"trainer.global_batch_size={int(factor * network['batch'])}"
        config = make_config(
            *overrides, *network["overrides"], batch_size, "trainer.reproducible=false"
        )
        alone = replace(world, rank=0, local_rank=0, size=1, local_size=1)
        state = build_training_state(config, world if world_size == 2 else alone, splits)
        if in_silence:
            state.parallel_model = in_ddp(state.model, keep)
        states[mode] = state
    return states


def gradient_bytes(state: TrainingState) -> int:
    """Return the bytes that a step adds up over the ranks."""
    return sum(p.nbytes for p in state.model.parameters() if p.requires_grad)


def time_mode(world: World, state: TrainingState, processes: int, steps: int) -> list[float]:
    """Time steps of `processes` processes that start together; the others sleep meanwhile."""
    dist.barrier()
    times = time_steps(state, steps) if world.rank < processes else []
    dist.barrier()
    return times


def time_steps(state: TrainingState, steps: int) -> list[float]:
    """Return the seconds of each step of the real loop: fetching a batch, and training on it."""
    state.progress = Progress()
    set_train_mode(state)
    state.metrics = RunningMetrics(state.world, state.progress.epoch_totals)
    moments = [time.perf_counter()]
    for batch in islice(state.batches(), WARM_UP_STEPS + steps):
        state.step(batch)
        state.progress.step += 1
        moments.append(time.perf_counter())
    return [end - start for start, end in pairwise(moments)][WARM_UP_STEPS:]


def summary_of_ranks(world: World, times: list[float]) -> dict[str, float]:
    """Return a step's median, mean and deviations, each averaged over those who computed."""
    gathered: list[list[float]] = [[] for _ in range(world.size)]
    dist.all_gather_object(gathered, times)
    of_ranks = [times for times in gathered if times]
    return {
        "median_seconds": statistics.mean(map(statistics.median, of_ranks)),
        "mean_seconds": statistics.mean(map(statistics.mean, of_ranks)),
        "sd_seconds": statistics.mean(map(statistics.stdev, of_ranks)),
        "robust_sd_seconds": statistics.mean(map(robust_sd, of_ranks)),
    }


def robust_sd(values: list[float]) -> float:
    """Return the sd of the normal distribution that has this distance between its quartiles.

    A step during which another program had the core does not belong to the network's spread, but
    would dominate its sd.
    """
    lower, _, upper = statistics.quantiles(values, n=4)
    return (upper - lower) / 1.349


def build_all_reduces(world: World) -> dict[str, Callable[[torch.Tensor], object]]:
    """Return the two ways to add tensors up over the ranks."""
    name = broadcast_object(world, f"scaling {time.monotonic_ns()}")
    shared = SharedMemory(world.rank, world.size, name, SIZES_BYTES[-1], timeout_seconds=120)
    return {"shared memory": shared.sum, "gloo": dist.all_reduce}


def time_all_reduce(all_reduce: Callable[[torch.Tensor], object], size_bytes: int) -> float:
    """Return the seconds of one all-reduce, the mean of several."""
    tensor = torch.zeros(size_bytes // 4)
    repeats = max(5, min(200, 2**24 // size_bytes))
    for _ in range(3):
        all_reduce(tensor)
    dist.barrier()
    started = time.perf_counter()
    for _ in range(repeats):
        all_reduce(tensor)
    return (time.perf_counter() - started) / repeats


if __name__ == "__main__":
    main()
