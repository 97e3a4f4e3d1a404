"""Memory that is too little, in the words of the config."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch

from dist_mnist.config.errors import InputError, one_line

EVALUATED_AT_ONCE = 500  # small images; more is slower on a CPU
VALUES_AT_ONCE = 2**22  # of larger images, so that ResNet-18 needs some hundred megabytes

# Of torch's CPU allocator, cuBLAS, cuDNN and oneDNN, which raise a RuntimeError.
COMPLAINTS = (
    *("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "out of memory"),
    *("ALLOC_FAILED", "bad_alloc", "could not create a memory"),
)


def images_at_once(chosen: int | None, image_shape: list[int]) -> int:
    """Return the images of a forward pass in evaluation: those chosen, or by their size.

    Args:
        chosen: `trainer.evaluation_batch_size`.
    """
    return chosen or max(1, min(EVALUATED_AT_ONCE, VALUES_AT_ONCE // prod(image_shape)))


@contextmanager
def explaining_memory(advice: str) -> Iterator[None]:
    """Turn an error about memory, of any kind, into a sentence that says what to change.

    Raises:
        InputError: There was not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not (is_known or any(complaint in str(error) for complaint in COMPLAINTS)):
            raise
        raise InputError(f"there is not enough memory ({one_line(error)}): {advice}.") from error
