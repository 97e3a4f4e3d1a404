"""A sum over terms that ranks share, in an order that does not depend on the number of ranks."""

from collections.abc import Callable, Sequence

import torch
from torch._utils import _flatten_dense_tensors as flatten_dense_tensors
from torch._utils import _unflatten_dense_tensors as unflatten_dense_tensors

from dist_mnist.distributed.gradients import all_gather
from dist_mnist.distributed.shared_memory import can_share_memory, share_memory
from dist_mnist.distributed.world import World

Tensors = tuple[torch.Tensor, ...]


def build_gather(
    world: World, count: int, term_bytes: int, timeout_seconds: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that shows every rank the tensors of all ranks; all must call it.

    It takes a contiguous tensor, the same size on every rank, and returns shape
    (world.size, numel). The result may not be changed, and is valid until the second next call.

    Args:
        count: The number of terms in a `tree_sum`.
        term_bytes: The size of each.
    """
    capacity = term_bytes * (1 if count % world.size == 0 else -(-count // world.size))
    if world.size > 1 and can_share_memory(world, capacity):
        return share_memory(world, capacity, timeout_seconds).gather

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        gathered = tensor.new_empty(world.size * tensor.numel())
        all_gather(gathered, tensor.view(-1))
        return gathered.view(world.size, -1)

    return gather


def tree_sum(
    world: World,
    terms: Sequence[Tensors],
    count: int,
    gather: Callable[[torch.Tensor], torch.Tensor],
) -> Tensors:
    """Sum `count` terms, which the ranks share, in an order that does not depend on their number.

    Term k of rank r is number r + k * world.size of all. The second half of all terms is added to
    the first half, and so on until one is left. If the number of ranks divides `count`, the first
    of these additions are of terms of one rank, which makes them before it sends anything.

    Args:
        terms: Of this rank; all have tensors of the same shapes and one dtype.
        count: The number of terms of all ranks, a power of two.
        gather: From `build_gather`, for all terms of a rank.

    Returns:
        Tensors of the same shapes as those of a term, the same bits on every rank.
    """
    most = -(-count // world.size)
    if count % world.size == 0:
        terms, count, most = [_fold(terms)], world.size, 1
    if world.size == 1:
        return _fold(terms)
    rows = [flatten_dense_tensors(term) for term in terms]
    rows += rows[: most - len(rows)]  # a rank may have one term less than the others
    gathered = gather(torch.stack(rows)).view(world.size, most, -1)
    order = (gathered[number % world.size, number // world.size] for number in range(count))
    (total,) = _fold([(row,) for row in order])
    return tuple(unflatten_dense_tensors(total, terms[0]))


def _fold(terms: Sequence[Tensors]) -> Tensors:
    while len(terms) > 1:
        half = len(terms) // 2
        pairs = zip(terms[:half], terms[half:], strict=True)
        terms = [torch._foreach_add(first, second) for first, second in pairs]
    return terms[0]
