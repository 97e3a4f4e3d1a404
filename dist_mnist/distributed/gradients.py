"""The mean of all ranks' gradients: DistributedDataParallel and the sum of its buckets."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import TrainerConfig
from dist_mnist.distributed.gpus import align_gradients
from dist_mnist.distributed.shared_memory import can_share_memory, share_memory
from dist_mnist.distributed.world import World

if TYPE_CHECKING:  # torch has no types for its buckets
    Bucket = Any
else:
    Bucket = dist.GradBucket

# Over all ranks. Beyond these, the backend's own sum is used: its memory and work do not grow with
# the number of ranks.
GATHER_LIMIT_BYTES = 2**29
GATHER_LIMIT_BYTES_ON_GPUS = 2**23  # the tutorial's network on 35 GPUs

WITHOUT_SYNC_BATCH_NORM = ("cpu",)

# How DDP says that a step used other parameters than it expected.
UNUSED_COMPLAINTS = ("Expected to have finished reduction", "Your training graph has changed")

# Newer torch has another name for DDP's option `broadcast_buffers`, which it deprecates.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in _DDP_OPTIONS)
NO_BUFFER_SYNC: dict[str, Any] = {_SYNC_BUFFERS: False}

# Newer torch has another name for all_gather_into_tensor, which it deprecates.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def parallelize(
    model: nn.Module, world: World, trainer: TrainerConfig, skips_parameters: bool = False
) -> nn.Module:
    """Wrap a module on its device so that backward averages the gradients over all ranks.

    Args:
        model: The bare module, already on `world.device`.
        skips_parameters: Whether the dry run found parameters without gradients;
            `trainer.find_unused_parameters` decides if it is set.

    Raises:
        InputError: Synchronized batch norm was asked for on the CPU.
    """
    if trainer.sync_batch_norm and world.device.type in WITHOUT_SYNC_BATCH_NORM:
        raise InputError("trainer.sync_batch_norm=true needs GPUs: set it to false on the CPU.")
    if world.size == 1:
        return model
    if trainer.sync_batch_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    chosen = trainer.find_unused_parameters
    finds_unused = skips_parameters if chosen is None else chosen
    parallel_model = DistributedDataParallel(
        model,
        # Gradients are views of the reduced buckets, which saves the copy out. The copy in stays:
        # keeping the gradients instead of setting them to None would cost an addition.
        gradient_as_bucket_view=True,
        # Every step runs the same layers, so DDP may plan once. Not together with no_sync: a
        # static graph then silently stops reducing (pytorch#187732).
        static_graph=trainer.micro_batch_size is None and not finds_unused,
        find_unused_parameters=finds_unused,
        # Training does not use batch norm's running statistics. `broadcast_buffers` in world.py
        # makes them equal before they are used, which saves a broadcast in every step.
        **NO_BUFFER_SYNC,
    )
    _choose_hook(parallel_model, world, trainer)
    if world.device.type == "cuda":
        align_gradients(model)
    return parallel_model


@contextmanager
def explaining_unused(model: nn.Module) -> Iterator[None]:
    """Turn DDP's complaint about parameters without gradients into a sentence that names them.

    Raises:
        InputError: Parameters got no gradient in a step, and DDP did not look for them.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(complaint in str(error) for complaint in UNUSED_COMPLAINTS):
            raise
        found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        unused = [names[int(index)] for index in found[1].split()] if found else ["a parameter"]
        raise InputError(
            f"{', '.join(unused[:5])} got no gradient in the last step, but did in earlier ones: "
            f"set trainer.find_unused_parameters=true."
        ) from error


def require_averaged(model: nn.Module) -> None:
    """Make sure that backward has averaged the gradients over all ranks.

    DDP itself checks at the next forward pass, after the optimizer has made a step with the
    gradients of this rank alone.

    Raises:
        RuntimeError: It has not, since a parameter got no gradient.
    """
    if isinstance(model, DistributedDataParallel):
        model._check_reducer_finalized()


@contextmanager
def without_sync(model: nn.Module) -> Iterator[None]:
    """Let backward add to this rank's own gradients, leaving the all-reduce to a later call."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def _choose_hook(model: DistributedDataParallel, world: World, trainer: TrainerConfig) -> None:
    """Register the best communication hook for this world; the backend's own sum needs none."""
    compress, on_gpus = trainer.compress_gradients, world.device.type != "cpu"
    gradient_bytes = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    limit = GATHER_LIMIT_BYTES_ON_GPUS if on_gpus else GATHER_LIMIT_BYTES
    # Two numbers have the same sum in any order, but gloo itself is slower than gathering.
    order_matters = world.size > 2 or not on_gpus
    if can_share_memory(world, gradient_bytes) and not compress:
        _average_through_shared_memory(model, world, gradient_bytes, trainer.timeout_seconds)
    elif order_matters and world.size * gradient_bytes <= limit:
        _average_by_gathering(model, world, compress)
    elif on_gpus and compress:
        # Wrapped in a function: DDP refuses the hook itself if there is no NCCL.
        model.register_comm_hook(
            None, lambda _, bucket: default_hooks.bf16_compress_hook(_group(), bucket)
        )


def _group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


def _average_through_shared_memory(
    model: DistributedDataParallel, world: World, gradient_bytes: int, timeout_seconds: int
) -> None:
    """Let DDP sum its buckets of gradients in shared memory instead of through gloo."""
    memory = share_memory(world, gradient_bytes, timeout_seconds)

    def average(_: None, bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(memory.sum(bucket.buffer()).div_(world.size))
        return done

    model.register_comm_hook(None, average)


def _average_by_gathering(
    model: DistributedDataParallel, world: World, compress_gradients: bool
) -> None:
    """Let every rank sum all gradients itself, in the order of the ranks.

    The order in which gloo and NCCL sum depends on a gradient's place in its bucket, and DDP
    rearranges its buckets after the first step of a process: a run that continues would sum in
    another order.
    """

    def average(_: None, bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
        gradients = bucket.buffer()
        local = gradients.bfloat16() if compress_gradients else gradients
        gathered = local.new_empty(world.size, len(local))
        gathering = all_gather(gathered.view(-1), local, async_op=True)

        def sum_up(done: torch.futures.Future[Any]) -> torch.Tensor:
            done.value()  # raises if a rank was lost: the gathered bytes are not gradients then
            gradients.copy_(gathered[0])
            for others in gathered[1:]:
                gradients.add_(others)
            return torch.div(gradients, world.size, out=gradients)

        return gathering.get_future().then(sum_up)  # type: ignore[union-attr]

    model.register_comm_hook(None, average)
