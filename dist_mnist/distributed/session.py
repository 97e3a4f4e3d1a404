"""This process's device, CPU threads and process group."""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist

from dist_mnist.config.errors import InputError
from dist_mnist.distributed import gpus, launcher
from dist_mnist.distributed.cpu_threads import choose_threads
from dist_mnist.distributed.launcher import Place
from dist_mnist.distributed.rendezvous import BACKENDS, join_group
from dist_mnist.distributed.shared_memory import LostRankError
from dist_mnist.distributed.world import World

logger = logging.getLogger(__name__)

# From <malloc.h> of the GNU C library.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# In bytes, the largest that glibc accepts.
LARGEST_THRESHOLDS = {M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 2**31 - 1}


@contextmanager
def session(device: str, timeout_seconds: int) -> Iterator[World]:
    """Set up this process's device, threads and process group; destroy the group at the end.

    Delete the model from `parallelize` before the end: with torch 2.8 the last reference to a
    process group waits for the group's threads, and they wait for the interpreter.

    After an error the group is not destroyed: that could wait for processes that are gone, and it
    ends with this process anyway.

    Args:
        device: auto, cpu, cuda, mps or xpu.

    Raises:
        InputError: There is no such device, or there are too few, or other processes did not join.
    """
    # Reproducible runs need it, and cuBLAS reads it once, in the first run of a sweep.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    place = launcher.place()
    world = World(*place, device=gpus.tried(device, _pick_device(device, place)))
    _keep_freed_memory()
    torch.set_num_threads(choose_threads(world.local_size))
    if world.size > 1:
        join_group(world, timeout_seconds)
    with own_defaults(), gpus.one_stream(world.device):
        yield world
    if world.size > 1:
        dist.destroy_process_group()


@contextmanager
def own_defaults() -> Iterator[None]:
    """Make new tensors float32 and on the CPU, whatever a notebook has chosen."""
    dtype, device = torch.get_default_dtype(), torch.device("cpu")
    with suppress(AttributeError):  # torch 2.8, after set_default_device(None)
        device = torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    if device.type != "cpu":
        torch.set_default_device(None)  # setting it to "cpu" would slow down every call
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if device.type != "cpu":
            torch.set_default_device(device)


def _pick_device(name: str, place: Place) -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found = accelerator.type if accelerator else "cpu"
    count = torch.accelerator.device_count() if accelerator else 0
    has_own = count == 1 and launcher.sees_own_device()
    local_rank, local_size = (0, 1) if has_own else (place.local_rank, place.local_size)
    fits = count >= local_size and (found in BACKENDS or place.size == 1)
    if name == "auto" and accelerator and not fits and local_rank == 0:
        logger.warning(
            "training on the CPU: %d processes do not fit on %d %s device(s); --nproc_per_node=%d "
            "would use them",
            *(local_size, count, found, count),
        )
    unusable = gpus.unusable_gpu() if not accelerator else ""
    if name == "auto" and unusable and local_rank == 0:
        logger.warning("training on the CPU: %s", unusable)
    if name == "cpu" or (name == "auto" and not fits):
        return torch.device("cpu")
    if name not in ("auto", found):
        raise InputError(
            f"trainer.device={name} is not available: {unusable or f'this machine has {found}'}; "
            f"set trainer.device to {found} or auto."
        )
    if not fits:
        raise InputError(
            f"trainer.device={name} cannot be shared: this machine has {count} for {local_size} "
            f"process(es); set --nproc_per_node={count}, or trainer.device=cpu."
        )
    return torch.device(found, local_rank)


def _keep_freed_memory() -> None:
    """Let malloc keep the memory that a step frees for the next step.

    Otherwise the operating system clears and maps its pages again, which costs a small
    convolutional network a tenth to a sixth of its speed.
    """
    with suppress(AttributeError, OSError):  # another C library
        for parameter, value in LARGEST_THRESHOLDS.items():
            ctypes.CDLL(None).mallopt(parameter, value)


def is_lost_contact(error: BaseException) -> bool:
    """Return whether an error only means that another process is gone or does not answer."""
    is_gloo = isinstance(error, RuntimeError) and "gloo" in str(error)
    return is_gloo or isinstance(error, (dist.DistError, LostRankError))
