"""The same bits at any world size: the step in shards, whose gradients have a fixed order.

A global batch is split into `SHARDS` shards; shard s contains its samples s, s + SHARDS and so on.
The gradient of each shard is computed alone, by one thread, and their sum is a tree: shards 0 and
4, 1 and 5 and so on are added, then the results of 0 and 2, and of 1 and 3, and finally these two.
A process takes every `world.size`-th shard; together they are its usual share of the batch. If the
number of processes divides `SHARDS`, they all add in the same order.

Other kinds of machines or GPUs, or another version of torch, may give other bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.data.images import Batch
from dist_mnist.distributed import watchdog
from dist_mnist.distributed.gradients import tree_sum
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.distributed.world import World
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import (
    add_gradients,
    apply_gradients,
    seed_step,
    set_learning_rates,
    transform,
)

SHARDS = 8


def set_reproducible(world: World, is_wanted: bool) -> None:
    """Make this process deterministic, or not; call it before any computation.

    Raises:
        InputError: The shards cannot be shared evenly among the processes.
    """
    torch.use_deterministic_algorithms(is_wanted)  # resets it too, after a job of a sweep
    if not is_wanted:
        return
    if SHARDS % world.size:
        raise InputError(
            f"trainer.reproducible=true does not support {world.size} processes: their number "
            f"must divide {SHARDS}; change --nproc_per_node."
        )
    torch.set_num_threads(1)  # a sum that threads share depends on their number
    torch.backends.cudnn.benchmark = False
    # Filling memory that is never read would only take time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def step_in_shards(state: TrainingState, batch: Batch) -> None:
    """Make one optimizer step with the same bits on any number of ranks; every rank must call it.

    Raises:
        NonFiniteError: A gradient is not finite; the step was not made.
    """
    watchdog.enter(Phase.STEP, state.progress.step + 1)
    set_learning_rates(state)
    sum_shards(state.model, state.world, batch.size, partial(_add_shard, state, batch))
    apply_gradients(state)


def _add_shard(state: TrainingState, batch: Batch, index: int) -> None:
    """Add the gradient of this rank's shard number `index`, weighted for the mean of the batch."""
    count = SHARDS // state.world.size
    shard = state.world.rank + index * state.world.size
    indices = batch.indices[index::count]
    if len(indices) > 0:
        images, labels = transform(state, replace(batch, indices=indices), shard, SHARDS)
        seed_step(state, shard)
        losses, outputs = add_gradients(state, images, labels, 1 / batch.size)
        state.metrics.update(losses, outputs, labels)


def sum_shards(
    model: nn.Module, world: World, batch_size: int, add_shard: Callable[[int], None]
) -> None:
    """Leave in every parameter the sum of the shards' gradients, the same bits on every rank.

    Batch norm takes its statistics over each shard alone. Its running statistics change by the mean
    of the changes that the shards would make. The gradients of all local shards are held at once.

    Args:
        add_shard: Adds the gradient of one of this rank's shards, numbered from 0.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [buffer for buffer in model.buffers() if buffer.dtype is not torch.bool]
    before = [buffer.clone() for buffer in buffers]
    sizes = [tensor.numel() for tensor in (*parameters, *buffers)]
    rows = torch.empty(SHARDS // world.size, sum(sizes), device=world.device)
    for index, row in enumerate(rows):
        add_shard(index)
        _take(parameters, buffers, before, out=row)
    pieces = tree_sum(world, rows).split(sizes)
    for parameter, piece in zip(parameters, pieces, strict=False):
        parameter.grad = torch.empty_like(parameter).copy_(piece.view_as(parameter))
    for buffer, piece in zip(buffers, pieces[len(parameters) :], strict=True):
        change = piece.view_as(buffer) / min(batch_size, SHARDS)  # the shards that are not empty
        buffer += change.to(buffer.dtype)


def _take(
    parameters: Sequence[nn.Parameter],
    buffers: Sequence[torch.Tensor],
    before: Sequence[torch.Tensor],
    out: torch.Tensor,
) -> None:
    """Move the gradients and the buffers' changes into one vector; reset both."""
    tensors = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in parameters
    ]
    # An unchanged buffer has no change, even if it is infinite.
    tensors += [
        torch.where(buffer == value, 0, buffer - value)
        for buffer, value in zip(buffers, before, strict=True)
    ]
    torch.cat([tensor.flatten() for tensor in tensors], out=out)
    for parameter in parameters:
        parameter.grad = None
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
