"""Brings the processes of a run together in one process group."""

import logging
import os
import secrets
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from dist_mnist.config.errors import InputError, PassingError, one_line
from dist_mnist.distributed import network, signals, watchdog
from dist_mnist.distributed.gpus import claim_gpu
from dist_mnist.distributed.launcher import is_restart, meeting_place
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.distributed.world import World

logger = logging.getLogger(__name__)

if TYPE_CHECKING:  # torch has no types for its stores
    Store = Any
else:
    Store = dist.Store

# Small CPU messages always go through gloo, beside the accelerator's own backend.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}

# After an error NCCL leaves a key in the store, which survives torchrun's restarts. By default all
# later processes find it, write a report and abort. The watchdog's message is more useful.
NO_NCCL_REPORT = ("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")

# The group waits longer than the watchdog, which can name the rank that is missing.
GROUP_PATIENCE_SECONDS = 60


def join_group(world: World, timeout_seconds: int) -> None:
    """Wait for all processes, start the watchdog and set up the process group.

    NCCL has no time limit for that, so the watchdog comes first.

    Raises:
        InputError: Other processes did not join, cannot be reached, or use another kind of device.
    """
    signals.raise_if_stopped()
    address, port = meeting_place()
    if world.size > world.local_size:
        _choose_interface()
        _warn_of_shared_store(world)
    try:
        store = _open_store(world, timeout_seconds)
        prefix = _agree_on_prefix(store, world, timeout_seconds)
        own_store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        _require_same_device(own_store, world)
        claim_gpu(own_store, world)
        os.environ.setdefault(*NO_NCCL_REPORT)
        watchdog.enter(Phase.START_UP, 0)
        watchdog.start(
            world.rank,
            world.size,
            lambda: dist.PrefixStore(  # type: ignore[attr-defined]
                f"{prefix}/watchdog", _open_store(world, timeout_seconds)
            ),
            timeout_seconds,
        )
        dist.init_process_group(
            BACKENDS[world.device.type],
            store=own_store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout_seconds + GROUP_PATIENCE_SECONDS),
            device_id=None if world.device.type == "cpu" else world.device,
        )
        watchdog.pause("loading the data")
    except (RuntimeError, ValueError) as error:
        raise PassingError(
            f"rank {world.rank} cannot join the other processes at MASTER_ADDR={address}, "
            f"MASTER_PORT={port}: {one_line(error).rstrip('.')}."
        ) from error


def _require_same_device(store: Store, world: World) -> None:
    """Refuse to join ranks that would wait in another backend's messages."""
    if world.is_main:
        store.set("device", world.device.type)
    first = store.get("device").decode()
    if first != world.device.type:
        raise InputError(
            f"the device differs between the ranks: {first} on rank 0, {world.device.type} on rank "
            f"{world.rank}; set trainer.device, and check the GPUs of that machine (nvidia-smi)."
        )


def _open_store(world: World, timeout_seconds: int) -> Store:
    return dist.TCPStore(  # type: ignore[attr-defined]
        *meeting_place(),
        is_master=world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        timeout=timedelta(seconds=timeout_seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _choose_interface() -> None:
    """Make gloo use the interface that leads to rank 0's machine, unless the user chose one.

    By default gloo resolves the machine's own name, which is 127.0.1.1 on Debian.
    """
    with suppress(OSError):  # connecting to the address will report it
        interface = network.interface_of(network.own_address(meeting_place()[0]))
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _warn_of_shared_store(world: World) -> None:
    """Warn that machines that join later would wait forever (pytorch#167288)."""
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world.local_rank == 0 and is_restart() and is_shared:
        logger.warning(
            "torchrun was restarted with the store of its first start: a machine that joins later "
            "would wait forever. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every "
            "machine, as launch/multi_node.sh does."
        )


def _agree_on_prefix(store: Store, world: World, timeout_seconds: int) -> str:
    """Return a prefix for this start's keys in the store.

    torchrun restarts its processes but keeps its store, in which they would find the addresses of
    dead processes (pytorch#135712). With a new prefix, each start finds an empty store. Rank 0
    chooses the prefix and sends it to every rank that left a new token in the store; so it also
    knows which ranks are missing.

    Raises:
        InputError: Some ranks did not join in time; the message names them.
    """
    token = secrets.token_hex(8)
    deadline, pause = time.monotonic() + timeout_seconds, 0.005

    def wait_for(missing: list[int]) -> None:
        nonlocal pause
        signals.raise_if_stopped()
        if time.monotonic() > deadline:
            raise _missing_error(missing, world.size, timeout_seconds)
        time.sleep(pause)
        pause = min(1.1 * pause, 0.1)  # asking a busy store more often does not help

    if world.is_main:
        missing = list(range(1, world.size))
        while missing := [rank for rank in missing if not _has_joined(store, rank, token)]:
            wait_for(missing)
        return token
    store.set(f"token/{world.rank}", token)
    while not store.check([f"prefix/{token}"]):
        wait_for([0])
    prefix: str = store.get(f"prefix/{token}").decode()
    store.set(f"{prefix}/{world.rank}", "")
    return prefix


def _has_joined(store: Store, rank: int, prefix: str) -> bool:
    """Answer a rank's token with the prefix, if it is there; return whether the rank read it."""
    if store.check([f"token/{rank}"]):
        store.set(f"prefix/{store.get(f'token/{rank}').decode()}", prefix)
    return bool(store.check([f"{prefix}/{rank}"]))


def _missing_error(missing: list[int], size: int, timeout_seconds: int) -> PassingError:
    ranks = "rank " + ", ".join(map(str, missing))
    address, port = meeting_place()
    return PassingError(
        f"{ranks} of {size} did not join within trainer.timeout_seconds={timeout_seconds}: check "
        f"its log, and that it can reach MASTER_ADDR={address} at MASTER_PORT={port}."
    )
