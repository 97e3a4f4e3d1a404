"""Makes sure that all ranks were started with the same settings, data and versions.

Commands for several machines are typed by hand on each of them, so a rank may differ. Without this
check, such ranks would train nonsense together, or wait for each other until they time out.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import flat
from dist_mnist.distributed.world import World, all_reduce_max

DIGEST_BITS = 52  # a float64 holds such a number exactly


def require_same(world: World, facts: Mapping[str, Any]) -> None:
    """Compare facts over all ranks; every rank must call it. If they agree, it is one message.

    Raises:
        InputError: A rank differs from rank 0; the message names the fact and both values.
    """
    values = flat(facts)
    text = json.dumps(values, sort_keys=True, default=str)
    digest = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2**DIGEST_BITS
    highest, negated_lowest = all_reduce_max(world, [float(digest), -float(digest)])
    if highest == -negated_lowest:
        return
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, values)
    raise InputError(_difference(gathered))


def _difference(gathered: list[dict[str, Any]]) -> str:
    first = gathered[0]
    rank, other = next((rank, values) for rank, values in enumerate(gathered) if values != first)
    names = [*first, *(name for name in other if name not in first)]
    name = next(name for name in names if first.get(name) != other.get(name))
    return (
        f"{name} differs between the ranks: {first.get(name)} on rank 0, {other.get(name)} on rank "
        f"{rank}; start all of them with the same command, the same data and the same versions."
    )
