"""Random numbers that depend on their purpose, not on earlier draws."""

import hashlib

import torch


def keyed_seed(*key: int | str) -> int:
    """Return a seed that depends only on the key, such as (seed, "step", step, rank).

    The same key gives the same seed in every process and after every restart, so a run can continue
    without any stored random state.

    Returns:
        An integer from 0 to 2**63 - 1.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the default generators of the CPU and of a device.

    `torch.manual_seed` would also queue the seed for every GPU that this process does not use,
    which takes longer than a training step of a small network.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
