"""Makes sure that all ranks were started with the same settings, data and versions.

Scripts for several machines are typed by hand on each of them, so a rank may differ. Without this
check such ranks train together into nonsense, or wait for each other until they time out.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from dist_mnist.config.errors import InputError
from dist_mnist.distributed.world import World, all_reduce_max

DIGEST_BITS = 52  # a float64 holds such a number exactly


def require_same(world: World, facts: Mapping[str, Any]) -> None:
    """Compare facts over all ranks; every rank must call it. While they agree it is one message.

    Args:
        world: This process.
        facts: Names and plain values, flat or nested.

    Raises:
        InputError: A rank differs from rank 0; the message names the fact and both values.
    """
    flat = _flatten(facts)
    text = json.dumps(flat, sort_keys=True, default=str)
    digest = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2**DIGEST_BITS
    highest, negated_lowest = all_reduce_max(world, [float(digest), -float(digest)])
    if highest == -negated_lowest:
        return
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, flat)
    raise InputError(_difference(everyone))


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names as on the command line."""
    if not isinstance(value, Mapping):
        return {name: value}
    parts = [_flatten(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    return {key: part for flat in parts for key, part in flat.items()}


def _difference(everyone: list[dict[str, Any]]) -> str:
    first = everyone[0]
    rank, other = next((r, flat) for r, flat in enumerate(everyone) if flat != first)
    names = [*first, *(name for name in other if name not in first)]
    name = next(name for name in names if first.get(name) != other.get(name))
    return (
        f"{name} differs between the ranks: {first.get(name)} on rank 0, {other.get(name)} on rank "
        f"{rank}; start all of them with the same command, the same data and the same versions."
    )
