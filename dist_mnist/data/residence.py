"""Keeps a run's samples in the memory of each process, or in one file that all of them map."""

import hashlib
import logging
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
import torch

from dist_mnist.config.data_schema import Residence
from dist_mnist.config.errors import InputError
from dist_mnist.data.cache import cache_folder, cannot_store
from dist_mnist.data.images import ImageTensors
from dist_mnist.data.mapped import MappedImages, Samples
from dist_mnist.distributed.cgroups import group_folders
from dist_mnist.distributed.world import World
from dist_mnist.record.files import READ_ONLY, write_atomically
from dist_mnist.record.locks import lock_patiently

logger = logging.getLogger(__name__)

MOST_OF_THE_MEMORY = 0.5  # the rest is for the network, and for copies while the data is loaded
# A group's limit and its use, in version 2 and in version 1.
LIMITS = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def stays_on_host(residence: Residence, samples: Samples, world: World | None) -> bool:
    """Return whether samples stay on the host: by the config, or because they do not fit.

    Args:
        world: None for a single process on the CPU.
    """
    if residence is not Residence.auto or world is None:
        return residence is Residence.host
    size = sample_bytes(samples)
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
        return size > MOST_OF_THE_MEMORY * free
    return size * world.local_size > MOST_OF_THE_MEMORY * free_memory()


def sample_bytes(samples: Samples) -> int:
    """Return the size of a set's images in bytes."""
    stored = samples.stored if isinstance(samples, MappedImages) else samples.images
    return len(samples) * prod(stored.shape[1:])


def free_memory() -> float:
    """Return the bytes that the machine, its groups and this process's limits leave free."""
    limits = [*_of_the_process(), *_of_the_machine(), *_of_the_groups()]
    return min([float("inf"), *limits])


def _of_the_process() -> Iterator[float]:
    """Yield the free bytes below the limits that `ulimit` sets."""
    for kind, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield limit - (_kilobytes(Path("/proc/self/status"), used) or 0.0)


def _of_the_machine() -> Iterator[float]:
    available = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    if available is not None:
        yield available
        return
    with suppress(OSError, ValueError):  # macOS
        yield float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _kilobytes(path: Path, name: str) -> float | None:
    """Return a line of one of the system's tables in bytes, or None where there is none."""
    with suppress(OSError, ValueError, IndexError):
        return 1024.0 * int(path.read_text().partition(f"{name}:")[2].split()[0])
    return None


def _of_the_groups() -> Iterator[float]:
    """Yield the free bytes in the control groups around this process."""
    for folder in group_folders("memory"):
        for limit, used in LIMITS:
            with suppress(OSError, ValueError):  # "max" means no limit
                yield float(int((folder / limit).read_text()) - int((folder / used).read_text()))


def load_shared(load: Callable[[], Samples]) -> MappedImages:
    """Load samples, one process after the other, so that a machine holds at most two copies.

    Raises:
        InputError: The file for them cannot be written.
    """
    folder = cache_folder() / "shared"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_patiently(folder / ".lock"):
            samples = load()
            return samples if isinstance(samples, MappedImages) else _mapped(samples, folder)
    except OSError as error:
        if error.errno in READ_ONLY and isinstance(samples := load(), MappedImages):
            return samples  # nothing is to be written
        raise cannot_store(folder, error) from error


def _mapped(samples: ImageTensors, folder: Path) -> MappedImages:
    """Return samples in a file whose name is the checksum of their pixels."""
    pixels = samples.images.contiguous()
    content = pixels.numpy().data.cast("B")
    path = folder / hashlib.blake2b(content, digest_size=16).hexdigest()
    if not path.exists() or path.stat().st_size != len(content):
        write_atomically(path, content)
    return MappedImages(
        map_pixels(path, tuple(pixels.shape)), torch.arange(len(samples)), samples.labels
    )


def map_pixels(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """Map a file into memory, read only, as uint8 of a shape that may be smaller than the file.

    Raises:
        InputError: This process may not use that many addresses.
    """
    try:
        array = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be mapped into memory: {error}.") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no tensors that are read only
        return torch.from_numpy(array)
