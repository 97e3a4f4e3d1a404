"""The same bits at any world size: a step in shards, added up in an order of their own.

A global batch is cut into `SHARDS` shards, shard s being its samples s, s + SHARDS and so on. The
gradient of each is computed alone, by one thread, and their sum is a tree: shards 0 and 4, 1 and 5
and so on are added, then what came of 0 and 2, and of 1 and 3, and at last these two. A process
takes every `world.size`-th shard, which together are the samples that it would take anyway; where
their number divides `SHARDS`, the processes of any world size climb the same tree.

Machines and GPUs of another kind, or another torch, may give other bits.
"""

import os
from collections.abc import Callable, Sequence

import torch
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.distributed.gradients import Waiting, World, tree_sum

SHARDS = 8


def prepare(world: World, is_wanted: bool) -> None:
    """Let this process compute the same bits each time, or not, before it computes anything.

    Raises:
        InputError: The shards cannot be shared out evenly among so many processes.
    """
    torch.use_deterministic_algorithms(is_wanted)  # also after an earlier job of a sweep
    if not is_wanted:
        return
    if SHARDS % world.size:
        raise InputError(
            f"trainer.reproducible=true cannot be used with {world.size} processes: their number "
            f"must divide {SHARDS}; set --nproc_per_node so that it does."
        )
    torch.set_num_threads(1)  # a sum that threads share out depends on their number
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    # Nobody reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def learn_in_shards(
    model: nn.Module,
    world: World,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    learn: Callable[[int, torch.Tensor, torch.Tensor], None],
    waiting: Waiting,
) -> None:
    """Leave in every parameter the sum of the shards' gradients, the same bits on every rank.

    Batch norm takes its statistics over each shard alone; its running statistics change by the mean
    of what the shards would change them by. The gradients of all own shards are held at once.

    Args:
        model: The bare module; its parameters have no gradients yet.
        world: This process.
        images: This rank's share of the batch, of shape (share, C, H, W); it may be empty.
        labels: Of shape (share,).
        batch_size: The number of samples in the global batch, over all ranks.
        learn: Given a shard's number, its images and its labels, adds its gradients.
        waiting: Where to note how long the others were waited for.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [buffer for buffer in model.buffers() if buffer.dtype is not torch.bool]
    before = [buffer.clone() for buffer in buffers]
    count = SHARDS // world.size
    sizes = [tensor.numel() for tensor in (*parameters, *buffers)]
    rows = torch.empty(count, sum(sizes), device=world.device)
    for index in range(count):
        # Copied, so that they lie in memory in the same way whatever share they are from.
        some_images = images[index::count].clone(memory_format=torch.contiguous_format)
        some_labels = labels[index::count].clone(memory_format=torch.contiguous_format)
        if len(some_labels) > 0:
            learn(world.rank + index * world.size, some_images, some_labels)
        _take(parameters, buffers, before, out=rows[index])
    pieces = tree_sum(world, rows, waiting).split(sizes)
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
    """Move the gradients, and how the buffers have changed, into one vector."""
    taken = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in parameters
    ]
    # Where nothing has changed the difference is nothing too, though the values be infinite.
    taken += [
        torch.where(buffer == value, 0, buffer - value)
        for buffer, value in zip(buffers, before, strict=True)
    ]
    torch.cat([tensor.flatten() for tensor in taken], out=out)
    for parameter in parameters:
        parameter.grad = None
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
