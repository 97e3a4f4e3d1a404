"""Samples that stay in a file, which all processes of a machine map into their memory.

The system keeps one copy for all processes, and drops it when memory is short. A batch is copied
out of the file and to the device while earlier ones are computed.
"""

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from dist_mnist.data.images import Batch, ImageTensors, count_values

BLOCK_BYTES = 2**24  # read at once
BATCHES_AHEAD = 2
CPU = torch.device("cpu")


class PixelSums(NamedTuple):
    """Sums over all pixels of a set."""

    checksum: int  # the CRC-32 of all images
    counts: list[int]  # the number of pixels of each of the 256 values


@dataclass
class MappedImages:
    """Images in a file and labels in memory; an int64 tensor of B indices gives a whole batch."""

    stored: torch.Tensor  # uint8 of shape (rows, C, H, W), mapped; it must not be written to
    rows: torch.Tensor  # int64 of shape (N,), the row of each sample
    labels: torch.Tensor  # int64 of shape (N,)
    device: torch.device = CPU  # where `block` and `deliver` bring the samples
    margin: int = 0  # black pixels around each image when it is delivered
    sums: PixelSums | None = field(default=None, repr=False)  # None before they are computed
    # Bool of shape (N,), the samples that validate; None if the data set does not say.
    validates: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.empty(
            (len(indices), *self.stored.shape[1:]),
            dtype=torch.uint8,
            pin_memory=self.device.type == "cuda",
        )
        rows = self.rows.index_select(0, indices)
        # torch would use all threads of this process, which computes meanwhile.
        np.take(self.stored.numpy(), rows.numpy(), axis=0, out=images.numpy(), mode="clip")
        return images, self.labels.index_select(0, indices)

    def block(self, place: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and labels of neighbors, on the device."""
        images, labels = self[torch.arange(len(self))[place]]
        return images.to(self.device), labels.to(self.device)

    def subset(self, indices: torch.Tensor) -> "MappedImages":
        """Return some of the samples, in the same file."""
        validates = None if self.validates is None else self.validates[indices]
        rows, labels = self.rows[indices], self.labels[indices]
        return replace(self, rows=rows, labels=labels, sums=None, validates=validates)

    def to(self, device: torch.device) -> "MappedImages":
        """Return the same samples, which go to the device when they are needed."""
        return replace(self, device=device)

    def with_margin(self, margin: int) -> "MappedImages":
        """Return the same samples, which get black pixels around each image."""
        return replace(self, margin=margin)

    def resident(self) -> ImageTensors:
        """Return a copy of the samples in this process's own memory."""
        return ImageTensors(*self[torch.arange(len(self))])

    def checksum(self) -> int:
        """Return the CRC-32 of all images and labels."""
        return zlib.crc32(self.labels.numpy().data, self._sums().checksum)

    def value_counts(self) -> torch.Tensor:
        """Return how often each of the 256 values is in the images: int64 of shape (256,)."""
        return torch.tensor(self._sums().counts)

    def _sums(self) -> PixelSums:
        self.sums = self.sums or sum_pixels(self)
        return self.sums

    def deliver(self, shares: Iterable[tuple[torch.Tensor, int]]) -> Iterator[Batch]:
        """Yield a batch for each share, copied to the device while earlier batches are computed.

        Args:
            shares: The indices of a share, on the CPU, and the size of its global batch.
        """
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        prepare = partial(torch.cuda.set_device, self.device) if stream else None
        ahead: deque[tuple[Future[_Copied], int]] = deque()
        with ThreadPoolExecutor(1, "reader", prepare) as reader:
            for indices, size in shares:
                ahead.append((reader.submit(self._copy, indices, stream), size))
                if len(ahead) > BATCHES_AHEAD:
                    yield self._arrived(*ahead.popleft())
            while ahead:
                yield self._arrived(*ahead.popleft())

    def _copy(self, indices: torch.Tensor, stream: torch.cuda.Stream | None) -> "_Copied":
        images, labels = self[indices]
        if stream is None:
            return _Copied(images.to(self.device), labels.to(self.device), None)
        with torch.cuda.stream(stream):
            images = images.to(self.device, non_blocking=True)
            labels = labels.pin_memory().to(self.device, non_blocking=True)
            return _Copied(images, labels, stream.record_event())

    def _arrived(self, copying: "Future[_Copied]", size: int) -> Batch:
        images, labels, event = copying.result()
        if event is not None:  # the step waits for the copy, and this process for neither
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            images.record_stream(current)
            labels.record_stream(current)
        indices = torch.arange(len(labels), device=self.device)
        return Batch(indices, size, ImageTensors(images, labels, self.margin))


class _Copied(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor
    event: torch.cuda.Event | None


Samples = ImageTensors | MappedImages


def sum_pixels(samples: MappedImages) -> PixelSums:
    """Sum up all pixels of a set, a block at a time."""
    checksum, counts = 0, torch.zeros(256, dtype=torch.int64)
    block = max(1, BLOCK_BYTES // samples.stored[0].numel())
    for places in torch.arange(len(samples)).split(block):
        images, _ = samples[places]
        checksum = zlib.crc32(images.numpy().data, checksum)
        counts += count_values(images)
    return PixelSums(checksum, counts.tolist())
