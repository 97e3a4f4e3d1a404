"""The GPUs of a machine: whether torch can use them, which rank has which, and their stream."""

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.distributed.world import World

if TYPE_CHECKING:  # torch has no types for its stores
    Store = Any
else:
    Store = dist.Store

logger = logging.getLogger(__name__)

# The device files of NVIDIA's driver, one for each GPU that this process may use.
DEVICES, NVIDIA_GPUS = Path("/dev"), "nvidia[0-9]*"


def unusable_gpu() -> str:
    """Return a sentence if torch cannot use an NVIDIA GPU of this machine, or an empty string."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if torch.version.cuda is None or is_hidden or not any(DEVICES.glob(NVIDIA_GPUS)):
        return ""
    return (
        f"there is an NVIDIA GPU, but this torch (for CUDA {torch.version.cuda}) cannot use it, "
        f"most likely because its driver is older: compare nvidia-smi"
    )


def trial(device: torch.device) -> str:
    """Compute something on a device; return why it cannot, or an empty string.

    torch may offer a GPU for whose architecture it has no kernels, or that another process keeps to
    itself.
    """
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        return f"{device} cannot compute ({str(error).strip().splitlines()[0]})"
    return ""


def tried(name: str, device: torch.device) -> torch.device:
    """Make a device the current one and return it; the CPU if it cannot compute, with auto."""
    if device.type == "cpu":
        return device
    torch.accelerator.set_device_index(device.index)
    reason = trial(device)
    if not reason:
        return device
    if name != "auto":
        raise InputError(f"trainer.device={name} cannot be used: {reason}; set it to cpu.")
    logger.warning("training on the CPU: %s", reason)
    return torch.device("cpu")


def claim_gpu(store: Store, world: World) -> None:
    """Make sure that no other process of this start uses the same GPU.

    A launcher may show each process one GPU, and only the UUID identifies it.

    Args:
        store: One that no earlier start has used.

    Raises:
        InputError: Another process uses it.
    """
    uuid = gpu_uuid(world.device)
    if uuid is None:
        return
    if store.add(f"gpu/{uuid}", 1) == 1:
        store.set(f"gpu/{uuid}/rank", str(world.rank))
        return
    first = store.get(f"gpu/{uuid}/rank").decode()
    raise InputError(
        f"rank {world.rank} and rank {first} have the same GPU (UUID {uuid}): let the launcher "
        f"give each process its own, as `srun --gpus-per-task=1` does, or start fewer processes."
    )


def gpu_uuid(device: torch.device) -> str | None:
    """Return the UUID of a GPU, or None where there is none."""
    if device.type == "cpu":
        return None
    properties = torch.get_device_module(device).get_device_properties(device)
    uuid = getattr(properties, "uuid", None)
    return None if uuid is None else str(uuid)


def one_stream(device: torch.device) -> AbstractContextManager[object]:
    """Launch everything inside on one stream that a CUDA graph can capture.

    The default stream cannot be captured, and DDP and the captured step must share a stream.
    """
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


def align_gradients(model: nn.Module) -> None:
    """Give gradients the strides of their parameters, where only their numbers differ.

    cuDNN and channels last number the strides of a side of 1 differently, and DDP would warn of it
    on every rank (pytorch#47163). It is the same memory, so no kernel runs.
    """
    for parameter in model.parameters():
        if 1 in parameter.shape:
            parameter.register_hook(partial(_with_strides, parameter.stride()))


def _with_strides(strides: tuple[int, ...], gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient with strides that may differ for sides of 1; otherwise itself."""
    sides = zip(gradient.shape, gradient.stride(), strides, strict=True)
    is_same = all(have == wanted for side, have, wanted in sides if side > 1)
    return gradient.as_strided(gradient.shape, strides) if is_same else gradient
