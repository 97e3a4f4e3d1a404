"""One process's place among all processes of a run, and the messages they exchange.

One process alone is a world of size 1, in which messages are no-ops: no caller has to check the
number of processes.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The rank, the sizes and the device of this process."""

    rank: int  # this process, from 0 to size - 1
    local_rank: int  # this process among those on the same machine
    size: int  # the number of processes (torchrun's WORLD_SIZE)
    local_size: int  # the number of processes on this machine
    device: torch.device  # the device of this process

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only process that writes and reports."""
        return self.rank == 0


def broadcast_object(world: World, value: T) -> T:
    """Return rank 0's value on every rank. Tensors in it must be on the CPU."""
    if world.size == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]  # type: ignore[no-any-return]


def all_reduce_sum(world: World, tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place, and return it."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(world: World, values: list[float]) -> list[float]:
    """Return the largest of each number over all ranks."""
    if world.size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def barrier(world: World) -> None:
    """Return once every rank has called this."""
    all_reduce_max(world, [0.0])


def broadcast_buffers(world: World, model: nn.Module) -> None:
    """Give every rank the buffers of rank 0 (batch norm's running statistics).

    Rank 0's buffers do not change, so it does not matter when or how often this is called: a run
    that was stopped and continued equals one that never stopped.
    """
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
