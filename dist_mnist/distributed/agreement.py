"""Makes sure that all ranks were started with the same settings, data and versions.

Commands for several machines are typed by hand on each of them, so a rank may differ. Without this
check, such ranks would train nonsense together, or wait for each other until they time out.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_mnist.config import __version__
from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Config, flat, plain_config
from dist_mnist.distributed.world import World, all_reduce_max

DIGEST_BITS = 52  # a float64 holds such a number exactly


def require_same_run(world: World, config: Config, data: Mapping[str, int]) -> None:
    """Compare settings, data and versions over all ranks; every rank must call it.

    Paths and tracking may differ. If the ranks agree, it is one message.

    Args:
        data: `DataSplits.fingerprint`: counts and checksums by name.

    Raises:
        InputError: A rank differs from rank 0; the message names the setting and both values.
    """
    plain = plain_config(config)
    facts = {
        **plain,
        "run_dir": None,
        "tracking": None,
        "data": {**plain["data"], "root": None},
        # Rank 0 reads the file and sends it to all ranks.
        "transfer": {**plain["transfer"], "checkpoint": config.transfer.checkpoint is not None},
        "the device": world.device.type,
        **data,
        "the version of dist_mnist": f"{__version__} {_code_digest()}",
        "the version of torch": str(torch.__version__),
    }
    require_same(world, flat(facts))


def _code_digest() -> str:
    """Return a digest of this package's code, which may be of another commit on some machine."""
    package = Path(__file__).parents[1]
    contents = (path.read_bytes() for path in sorted(package.rglob("*.py")))
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:8]


def require_same(world: World, values: Mapping[str, Any]) -> None:
    """Compare values by name over all ranks; every rank must call it.

    Raises:
        InputError: A rank differs from rank 0; the message names the first difference.
    """
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
