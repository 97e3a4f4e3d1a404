"""The same bits at any world size and number of threads: the step in shards.

A global batch is split into `SHARDS` shards; shard s contains its samples s, s + SHARDS and so on.
A process takes every `world.size`-th shard, and of these each free thread takes the next. The
gradient of each shard is computed alone, with one torch thread, and their sum is a tree: shards 0
and 4, 1 and 5 and so on are added, then the results of 0 and 2, and of 1 and 3, and finally these
two. So the bits do not depend on who has computed which shard.

A network of few operations takes longer to be called than to compute, so one call computes several
shards if that gives the same bits (`replicas.py`).

Other kinds of machines or GPUs, or another version of torch, may give other bits.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import NOT_REPRODUCIBLE, Config
from dist_mnist.data.images import Batch
from dist_mnist.data.sampler import EpochOrder
from dist_mnist.distributed import watchdog
from dist_mnist.distributed.tree_sum import Tensors, build_gather, tree_sum
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.distributed.world import World
from dist_mnist.models.dry_run import Findings
from dist_mnist.training.replicas import Replica, can_be_stacked, replicate, shard_gradients
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import (
    apply_gradients,
    draw_batch_changes,
    seed_step,
    set_learning_rates,
    transform,
)

Inputs = tuple[torch.Tensor, torch.Tensor]  # images and labels

SHARDS = 8
# Multiply-adds of a shard's forward pass. With fewer, most of its time would go into calls.
WORK_PER_SHARD = 10_000_000
# Samples of a shard, and in the smaller last batch: batch norm over fewer costs accuracy. With 32
# the difference is below that between seeds; tests/benchmarks/RESULTS.md has it.
ENOUGH_SAMPLES, ENOUGH_SAMPLES_AT_LAST = 32, 2
MOST_BYTES = 2**29  # of the gradients of all shards, which are held at once


def costs_little(config: Config, world: World, order: EpochOrder, findings: Findings) -> bool:
    """Return whether steps in shards are about as fast as others: `trainer.reproducible=auto`.

    The answer is the same at any world size up to `SHARDS`, and on every machine.
    """
    return (
        world.device.type == "cpu"
        and world.size <= SHARDS
        and not any(getattr(config.trainer, key) for key in NOT_REPRODUCIBLE)
        and not bound_by_calls(config, findings)
        and order.batch_size(0) >= SHARDS * ENOUGH_SAMPLES
        and min(order.batch_sizes) >= SHARDS * ENOUGH_SAMPLES_AT_LAST
        and SHARDS * findings.gradient_bytes <= MOST_BYTES
    )


def bound_by_calls(config: Config, findings: Findings) -> bool:
    """Return whether calling the operations of a shard takes much of their time."""
    samples = config.trainer.global_batch_size / SHARDS
    return samples * findings.multiply_adds < WORK_PER_SHARD


def set_reproducible(world: World, is_wanted: bool) -> None:
    """Make this process deterministic, or not; call it before training.

    Raises:
        InputError: There are more processes than shards.
    """
    # On a CPU, one thread is enough. This resets it too, after a job of a sweep.
    torch.use_deterministic_algorithms(is_wanted and world.device.type != "cpu")
    if not is_wanted:
        return
    if world.size > SHARDS:
        raise InputError(
            f"trainer.reproducible=true does not support {world.size} processes: a batch has "
            f"{SHARDS} shards; set --nproc_per_node to {SHARDS} or less, or "
            f"trainer.reproducible=false."
        )
    torch.backends.cudnn.benchmark = False
    # Filling memory that is never read would only take time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class Call(NamedTuple):
    """What one call computes: neighboring shards of this process, all of the same size."""

    shards: range
    samples: slice  # their samples' places in this process's share of a batch
    places: torch.Tensor  # the same in the global batch, int64


def plan_calls(
    shards: range, batch_size: int, most_shards: int, device: torch.device
) -> list[Call]:
    """Return the calls that compute the shards of one process, except empty ones.

    Args:
        shards: Of this process.
        most_shards: The most shards of a call.
        device: For the places.
    """
    calls, first_sample = [], 0
    sizes = [len(range(shard, batch_size, SHARDS)) for shard in shards]
    row = 0
    while row < len(shards) and sizes[row]:
        end = min(row + most_shards, row + sizes[row:].count(sizes[row]))
        places = [torch.arange(shard, batch_size, SHARDS) for shard in shards[row:end]]
        samples = slice(first_sample, first_sample + sum(sizes[row:end]))
        calls.append(Call(shards[row:end], samples, torch.cat(places).to(device)))
        row, first_sample = end, samples.stop
    return calls


class StepInShards:
    """Makes optimizer steps with the same bits on any number of ranks and threads.

    Batch norm takes its statistics over each shard alone. Its running statistics change by the mean
    of the changes that the shards would make. The gradients of all local shards are held at once.

    Args:
        is_stacked: Whether a call computes several shards, which `can_be_stacked` tells.
        draws: Whether the network may draw random numbers, so that each shard has a seed.
    """

    def __init__(self, state: TrainingState, is_stacked: bool, draws: bool) -> None:
        self.is_stacked = is_stacked
        self._draws = draws
        self._state = state
        world = state.world
        self._shards = range(world.rank, SHARDS, world.size)
        threads = state.pool.threads
        # A stacked network is good for nothing else, so then all of them are copies.
        originals = [] if is_stacked else [state.model]
        copies = [replicate(state.model) for _ in range(threads - len(originals))]
        state.replicas = [*originals, *copies]
        self._idle = deque(Replica(network, is_stacked) for network in state.replicas)
        self._whole = Replica(state.model, is_stacked=False)
        self._in_progress: set[int] = set()
        tensors = (*self._whole.views(1), *self._whole.buffers)
        self._zeros = tuple(torch.zeros_like(tensor, dtype=torch.float32) for tensor in tensors)
        term_bytes = sum(zeros.nbytes for zeros in self._zeros)
        timeout = state.config.trainer.timeout_seconds
        self._gather = build_gather(world, SHARDS, term_bytes, timeout)
        per_call = -(-len(self._shards) // threads) if is_stacked else 1
        self._calls = {
            size: plan_calls(self._shards, size, per_call, world.device)
            for size in state.order.batch_sizes
        }

    def __call__(self, batch: Batch) -> None:
        """Make one optimizer step; every rank must call it with its shards of the batch.

        Raises:
            NonFiniteError: A gradient is not finite; the step was not made.
        """
        state, step = self._state, self._state.progress.step + 1
        watchdog.enter(Phase.STEP, step, self._in_progress)
        set_learning_rates(state)
        calls = self._calls[batch.size]
        before = [buffer.clone() for buffer in self._whole.buffers]
        terms: list[Tensors] = []
        compute = partial(self._compute, batch.size, self._prepare(batch), before)
        for of_shards, *seen in state.pool.map(compute, calls):
            terms += of_shards
            state.metrics.update(*seen)
        terms += [self._zeros] * (len(self._shards) - len(terms))  # of empty shards
        watchdog.enter(Phase.GRADIENTS, step)
        total = tree_sum(state.world, terms, SHARDS, self._gather)
        self._give(total, before, non_empty=min(batch.size, SHARDS))
        apply_gradients(state)

    def _prepare(self, batch: Batch) -> Callable[[Call], Inputs]:
        """Return a function that maps a call to its images and labels."""
        changes = draw_batch_changes(self._state, batch.size)
        if self._state.config.augmentation.warps:  # worth sharing among the threads

            def prepare(call: Call) -> Inputs:
                local = replace(batch, indices=batch.indices[call.samples])
                return transform(self._state, local, changes.at(call.places))

            return prepare
        places = [call.places for call in self._calls[batch.size]]
        changes = changes.at(torch.cat(places) if places else slice(0))
        images, labels = transform(self._state, batch, changes)
        return lambda call: (images[call.samples], labels[call.samples])

    def _compute(
        self,
        batch_size: int,
        prepare: Callable[[Call], Inputs],
        before: list[torch.Tensor],
        call: Call,
    ) -> tuple[list[Tensors], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute one call.

        Returns:
            The gradients of each shard, and by how much it changes the buffers, all in float32; the
            losses, outputs and labels of all samples.
        """
        watchdog.keep_alive()
        self._in_progress.update(call.shards)
        state, replica = self._state, self._idle.pop()
        if before:
            torch._foreach_copy_(replica.buffers, before)
        images, labels = prepare(call)
        if self._draws:
            seed_step(state, call.shards[0])
        gradients, losses, outputs = shard_gradients(
            *(state, replica, images, labels, len(call.shards), batch_size)
        )
        moved = torch._foreach_sub(replica.buffers, before) if before else ()
        self._idle.append(replica)
        self._in_progress.difference_update(call.shards)
        terms = [tuple(tensor.float() for tensor in (*term, *moved)) for term in gradients]
        return terms, losses, outputs, labels

    def _give(self, total: Tensors, before: list[torch.Tensor], non_empty: int) -> None:
        """Give the network the gradients, and its buffers the mean of the shards' changes."""
        parameters = self._whole.views(1)
        for parameter, gradient in zip(parameters, total, strict=False):
            # Fused optimizers expect equal strides.
            fits = gradient.stride() == parameter.stride() and gradient.dtype is parameter.dtype
            parameter.grad = gradient if fits else torch.empty_like(parameter).copy_(gradient)
        changes = total[len(parameters) :]
        for buffer, value, change in zip(self._whole.buffers, before, changes, strict=True):
            buffer.copy_(value + (change / non_empty).to(value.dtype))


def build_step_in_shards(
    state: TrainingState, findings: Findings, runs_in_threads: bool
) -> StepInShards:
    """Return the step of a reproducible run; every rank must call it.

    Args:
        runs_in_threads: Whether the network and the loss are pure.
    """
    may_stack = runs_in_threads and state.world.device.type == "cpu"
    is_stacked = (
        may_stack and bound_by_calls(state.config, findings) and can_be_stacked(state, SHARDS)
    )
    return StepInShards(state, is_stacked, draws=not runs_in_threads)
