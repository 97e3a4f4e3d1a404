"""The processes of a run and what they say to each other.

The only file that knows `torch.distributed` and the variables that torchrun sets. One process is
a world of size 1, in which every message is to oneself: no caller has to ask.
"""

import hashlib
import inspect
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.distributed import network, shared_memory, signals, watchdog
from dist_mnist.distributed.cpu import prepare_cpu

logger = logging.getLogger(__name__)

T = TypeVar("T")
if TYPE_CHECKING:  # to whom torch shows neither its stores nor its buckets
    Store = Any
    Bucket = Any
else:
    Store, Bucket = dist.Store, dist.GradBucket

# Tensors on the CPU (the small messages) always have gloo beside the accelerator's own backend.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}

# The group waits longer than the watchdog, which can say for whom.
GROUP_PATIENCE_SECONDS = 60

# More than this, over all ranks, is left to gloo's own way of adding up, whose memory and work do
# not grow with the number of ranks.
SHARED_MEMORY_LIMIT_BYTES = 2**29
GATHER_LIMIT_BYTES = 2**29

# What newer torch calls DDP's option `broadcast_buffers`, which it deprecates.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in _DDP_OPTIONS)
_NO_BUFFER_SYNC: dict[str, Any] = {_SYNC_BUFFERS: False}

# What newer torch calls all_gather_into_tensor, which it deprecates.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class World:
    """One process's place among all processes of the run.

    Attributes:
        rank: This process, from 0 to size - 1.
        local_rank: This process among those on the same machine.
        size: The number of processes (torchrun's WORLD_SIZE).
        local_size: The number of processes on this machine.
        device: Where this process computes.
    """

    rank: int
    local_rank: int
    size: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one process that writes and reports."""
        return self.rank == 0


class Waiting:
    """How long this rank has waited for the others' gradients, for trainings on CPUs.

    What it does not wait it computes: the rank that computes for the largest share of the time is
    the one that the others wait for.

    Attributes:
        seconds: Of waiting, since `begin`.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._began, self.seconds = time.perf_counter(), 0.0

    def computing_shares(self, world: World) -> list[float]:
        """Return the share of the time since `begin` in which each rank did not wait.

        Every rank must call this.
        """
        shares = torch.zeros(world.size, dtype=torch.float64)
        shares[world.rank] = 1 - self.seconds / (time.perf_counter() - self._began)
        return all_reduce_sum(world, shares).tolist()


@contextmanager
def session(device: str, timeout_seconds: int) -> Iterator[World]:
    """Set up this process's device, threads and process group; take the group down at the end.

    What `parallelize` has returned must be let go before: with torch 2.8 whoever lets the last of a
    group go while its threads still run waits for them, and they for the interpreter.

    After an error the group is left as it is: taking it down could wait for processes that are
    gone, and the end of the process closes it anyway.

    Args:
        device: auto, cpu, cuda, mps or xpu.
        timeout_seconds: How long a process waits for the others before it gives up.

    Raises:
        InputError: The device asked for is not there, or there are too few of it.
    """
    world = _world_from_environment(device)
    prepare_cpu(world.local_size)
    if world.device.type != "cpu":
        torch.accelerator.set_device_index(world.device.index)
    if world.size > 1:
        _join_group(world, timeout_seconds)
    yield world
    if world.size > 1:
        dist.destroy_process_group()


def _join_group(world: World, timeout_seconds: int) -> None:
    def open_store() -> Store:
        return dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )

    signals.obey()
    if world.size > world.local_size:
        _choose_interface()
        _warn_of_shared_store(world)
    try:
        store = open_store()
        name = _meet(store, world, timeout_seconds)
        dist.init_process_group(
            BACKENDS[world.device.type],
            store=dist.PrefixStore(name, store),  # type: ignore[attr-defined]
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout_seconds + GROUP_PATIENCE_SECONDS),
            device_id=None if world.device.type == "cpu" else world.device,
        )
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"rank {world.rank} cannot join the other processes of MASTER_ADDR="
            f"{os.environ.get('MASTER_ADDR')}: {one_line(error)[:300]}."
        ) from error
    watchdog.start(
        world.rank,
        world.size,
        lambda: dist.PrefixStore(  # type: ignore[attr-defined]
            f"{name}/watchdog", open_store()
        ),
        timeout_seconds,
    )


def _choose_interface() -> None:
    """Let gloo use the interface that leads to rank 0's machine, unless the user has named one.

    It would go by the machine's own name, which on Debian leads to 127.0.1.1.
    """
    with suppress(OSError):  # which whoever connects to it will say
        interface = network.interface_of(network.own_address(os.environ["MASTER_ADDR"]))
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _warn_of_shared_store(world: World) -> None:
    """Say what machines will wait for that come, or come back, later (pytorch#167288)."""
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world.local_rank == 0 and is_restart() and is_shared:
        logger.warning(
            "torchrun has been restarted with the store of its first start: a machine that comes "
            "later would wait for ever. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on "
            "every machine, as launch/multi_node.sh does."
        )


def _meet(store: Store, world: World, timeout_seconds: int) -> str:
    """Return a name that the processes of this start share and no earlier start had.

    torchrun restarts its processes and keeps its store, in which they would find the addresses of
    the dead (pytorch#135712): under a name of its own each start finds an empty one. Rank 0 makes
    up the name, and answers whoever greets it with a word that is new; so it learns who is missing.

    Raises:
        InputError: Some ranks, which are named, have not come in time.
    """
    word = secrets.token_hex(8)
    deadline, pause = time.monotonic() + timeout_seconds, 0.005

    def wait_for(missing: list[int]) -> None:
        nonlocal pause
        signals.obey()
        if time.monotonic() > deadline:
            ranks = "rank " + ", ".join(map(str, missing))
            raise InputError(
                f"{ranks} of {world.size} has not come within trainer.timeout_seconds="
                f"{timeout_seconds}: look why it did not start, or cannot reach MASTER_ADDR="
                f"{os.environ['MASTER_ADDR']}."
            )
        time.sleep(pause)
        pause = min(1.1 * pause, 0.1)  # seconds; a store that many ask does not answer faster

    if world.is_main:
        missing = list(range(1, world.size))
        while missing := [rank for rank in missing if not _has_come(store, rank, word)]:
            wait_for(missing)
        return word
    store.set(f"greeting/{world.rank}", word)
    while not store.check([f"name/{word}"]):
        wait_for([0])
    name: str = store.get(f"name/{word}").decode()
    store.set(f"{name}/{world.rank}", "")
    return name


def _has_come(store: Store, rank: int, name: str) -> bool:
    """Answer a rank's greeting, if there is one; return whether it has taken note of the name."""
    if store.check([f"greeting/{rank}"]):
        store.set(f"name/{store.get(f'greeting/{rank}').decode()}", name)
    return bool(store.check([f"{name}/{rank}"]))


def _world_from_environment(device: str) -> World:
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    size = int(os.environ.get("WORLD_SIZE", 1))
    return World(
        rank=int(os.environ.get("RANK", 0)),
        local_rank=local_rank,
        size=size,
        local_size=local_size,
        device=_pick_device(device, local_rank, local_size, distributed=size > 1),
    )


def _pick_device(name: str, local_rank: int, local_size: int, distributed: bool) -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found = accelerator.type if accelerator else "cpu"
    count = torch.accelerator.device_count() if accelerator else 0
    fits = count >= local_size and (found in BACKENDS or not distributed)
    if name == "auto" and accelerator and not fits and local_rank == 0:
        logger.warning(
            "training on the CPU: %d processes do not fit on %d %s device(s); --nproc_per_node=%d "
            "would use what is there",
            *(local_size, count, found, count),
        )
    if name == "cpu" or (name == "auto" and not fits):
        return torch.device("cpu")
    if name not in ("auto", found):
        raise InputError(
            f"trainer.device={name} cannot be used: this machine offers {found}; "
            f"set trainer.device to {found} or auto."
        )
    if not fits:
        raise InputError(
            f"trainer.device={name} cannot be shared: this machine has {count} for {local_size} "
            f"process(es); set --nproc_per_node={count}, or trainer.device=cpu."
        )
    return torch.device(found, local_rank)


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error only says that another process is gone or does not answer."""
    is_gloo = isinstance(error, RuntimeError) and "gloo" in str(error)
    return is_gloo or isinstance(error, (dist.DistError, shared_memory.LostRankError))


def launch_id() -> str | None:
    """Return what is the same in every process and every restart of one launch.

    A batch job of SLURM keeps its number when it is requeued, and counts its srun steps anew.
    Elsewhere torchrun gives each launch an id of its own, or "none"; then the agent, the parent of
    its workers, identifies the launch. None where neither has started this process.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if os.environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" in os.environ:
        keys = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID")
        name = " ".join([*(os.environ.get(key, "") for key in keys), *sys.argv[1:]])
    elif not name:
        return None
    elif name == "none":
        name = f"{os.uname().nodename} {os.getppid()} {_start_time(os.getppid())}"
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def is_restart() -> bool:
    """Whether torchrun, SLURM or a JobSet says that it has started this launch before.

    Where they do not say so it may be a restart all the same: torchrun does not count those in
    which machines have come or gone.
    """
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "JOBSET_RESTART_ATTEMPT")
    return any(int(os.environ.get(name) or 0) > 0 for name in counts)


def _start_time(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:  # no /proc, as on macOS: the process id alone has to do
        return ""


def broadcast_object(world: World, value: T) -> T:
    """Return rank 0's value on every rank. Tensors in it must be on the CPU."""
    if world.size == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]  # type: ignore[no-any-return]


def all_reduce_sum(world: World, tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all ranks, in place, and return it."""
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
    """Return once every rank has come here."""
    all_reduce_max(world, [0.0])


def tree_sum(world: World, rows: torch.Tensor, waiting: Waiting) -> torch.Tensor:
    """Add up the rows of all ranks, in an order that does not depend on the number of ranks.

    Row k of rank r is row r + k * world.size of all. The second half of them is added to the first,
    and so on until one is left.

    Args:
        world: This process; the number of processes is a power of two.
        rows: float of shape (rows, N), as many on every rank, a power of two; they are used up.
        waiting: Where to note how long the others were waited for.

    Returns:
        Shape (N,), the same bits on every rank.
    """
    own = _fold(rows)
    if world.size == 1:
        return own
    everyones = own.new_empty(world.size * len(own))
    began = time.perf_counter()
    all_gather(everyones, own)
    waiting.seconds += time.perf_counter() - began
    return _fold(everyones.view(world.size, -1))


def _fold(rows: torch.Tensor) -> torch.Tensor:
    while len(rows) > 1:
        half = len(rows) // 2
        rows = rows[:half].add_(rows[half:])
    return rows[0]


def parallelize(
    model: nn.Module,
    world: World,
    *,
    accumulates: bool,
    sync_batch_norm: bool,
    compress_gradients: bool,
    timeout_seconds: int,
    waiting: Waiting,
) -> nn.Module:
    """Wrap a module on its device so that backward averages the gradients over all ranks.

    Args:
        model: The bare module, already on `world.device`.
        world: This process.
        accumulates: Whether some backward passes will run under `without_sync`.
        sync_batch_norm: Whether batch norm takes its statistics over all ranks (GPUs only).
        compress_gradients: Send gradients as bfloat16, half the bytes, rounded.
        timeout_seconds: How long a process waits for the others' gradients.
        waiting: Where to note how long it did, on CPUs.

    Raises:
        InputError: Synchronised batch norm was asked for on the CPU.
    """
    if sync_batch_norm and world.device.type == "cpu":
        raise InputError("trainer.sync_batch_norm=true needs GPUs: set it to false on the CPU.")
    if world.size == 1:
        return model
    if sync_batch_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    parallel_model = DistributedDataParallel(
        model,
        # Gradients live in the buckets that are reduced: no copy in, no copy out.
        gradient_as_bucket_view=True,
        # The same layers run in every step, so DDP may plan once. Not together with no_sync:
        # a static graph then stops reducing without a word (pytorch#187732).
        static_graph=not accumulates,
        # Batch norm's running statistics play no part in training; `broadcast_buffers` below
        # makes them equal before they are used, which saves a broadcast in every step.
        **_NO_BUFFER_SYNC,
    )
    gradient_bytes = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    if world.device.type != "cpu":
        if compress_gradients:
            # Under no name of its own, since DDP refuses it by name where there is no NCCL.
            parallel_model.register_comm_hook(
                None, lambda _, bucket: default_hooks.bf16_compress_hook(_group(), bucket)
            )
    elif _can_share_memory(world, gradient_bytes) and not compress_gradients:
        _average_through_shared_memory(
            parallel_model, world, gradient_bytes, timeout_seconds, waiting
        )
    elif world.size * gradient_bytes <= GATHER_LIMIT_BYTES:
        _average_through_gloo(parallel_model, world, compress_gradients, waiting)
    return parallel_model


def _group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


def _can_share_memory(world: World, gradient_bytes: int) -> bool:
    on_one_machine = world.local_size == world.size and world.device.type == "cpu"
    fits = shared_memory.bytes_needed(world.size, gradient_bytes) <= SHARED_MEMORY_LIMIT_BYTES
    return on_one_machine and fits and shared_memory.is_supported()


def _average_through_shared_memory(
    model: DistributedDataParallel,
    world: World,
    gradient_bytes: int,
    timeout_seconds: int,
    waiting: Waiting,
) -> None:
    """Let DDP hand its buckets of gradients to shared memory instead of to gloo."""
    add_up = shared_memory.SharedMemorySum(
        world.rank,
        world.size,
        name=broadcast_object(world, secrets.token_hex(16)),
        capacity=gradient_bytes,
        timeout_seconds=timeout_seconds + GROUP_PATIENCE_SECONDS,
    )

    def average(_: None, bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(add_up(bucket.buffer()).div_(world.size))
        waiting.seconds += add_up.waited_seconds
        return done

    model.register_comm_hook(None, average)


def _average_through_gloo(
    model: DistributedDataParallel, world: World, compress_gradients: bool, waiting: Waiting
) -> None:
    """Let every rank add up all gradients itself, in the order of the ranks.

    In which order gloo would add depends on where in its bucket a gradient is, and DDP arranges
    its buckets anew after the first step of a process: who continues a run would add differently.
    """

    def average(_: None, bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
        ready, is_last, gradients = time.perf_counter(), bucket.is_last(), bucket.buffer()
        own = gradients.bfloat16() if compress_gradients else gradients
        everyones = own.new_empty(world.size, len(own))
        gathering = all_gather(everyones.view(-1), own, async_op=True)

        def add_up(_: torch.futures.Future[Any]) -> torch.Tensor:
            if is_last:  # before that, computing goes on meanwhile
                waiting.seconds += time.perf_counter() - ready
            gradients.copy_(everyones[0])
            for others in everyones[1:]:
                gradients.add_(others)
            return torch.div(gradients, world.size, out=gradients)

        return gathering.get_future().then(add_up)  # type: ignore[union-attr]

    model.register_comm_hook(None, average)


@contextmanager
def without_sync(model: nn.Module) -> Iterator[None]:
    """Let backward add to this rank's own gradients, leaving the all-reduce to a later one."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def broadcast_buffers(world: World, model: nn.Module) -> None:
    """Give every rank the buffers of rank 0 (batch norm's running statistics).

    Rank 0's own never change by this, so when and how often it is called leaves no trace in the
    result: a run that stopped here and continued equals one that never stopped.
    """
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
