"""Images and labels in memory, and the normalization of their pixels."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Normalization:
    """Turns uint8 images into float32 ones: (pixel / 255 - mean) / std, on their own device."""

    mean: float  # of all training pixels, on a scale from 0 to 1; 0 to leave them in that range
    std: float  # their standard deviation on the same scale; 1 to leave them in that range

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images of any shape to float32 of the same shape, in one operation."""
        shift = torch.tensor(-self.mean / self.std, dtype=torch.float32, device="cpu")
        return torch.add(shift, images, alpha=1 / (255 * self.std))


def count_values(images: torch.Tensor) -> torch.Tensor:
    """Count each of the 256 values in uint8 images: int64 of shape (256,)."""
    counts = torch.zeros(256, dtype=torch.int64)
    for part in images.flatten().split(PIXELS_AT_ONCE):  # bincount converts them to int64
        counts += torch.bincount(part, minlength=256)
    return counts


def normalization_of(counts: torch.Tensor) -> Normalization:
    """Return the exact mean and standard deviation of pixels.

    They are computed from counts of the 256 values, so the number of threads does not matter.

    Args:
        counts: int64 of shape (256,).
    """
    values = torch.arange(256, dtype=torch.int64)
    total = int(counts.sum())
    mean = int((counts * values).sum()) / total
    mean_square = int((counts * values * values).sum()) / total
    std = max((mean_square - mean * mean) ** 0.5, 1.0)  # keeps a blank data set finite
    return Normalization(mean=mean / 255, std=std / 255)


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    indices: torch.Tensor  # int64 of shape (share,), places in `samples`; the share may be empty
    size: int  # the number of samples in the global batch, over all ranks
    samples: "ImageTensors"  # the samples it is a share of, on the device that computes


class ImageTensors:
    """Images and labels in memory; an int64 tensor of B indices gives a whole batch.

    Attributes:
        images: uint8 of shape (N, C, H, W).
        labels: int64 of shape (N,).
        padded: The images with their margin, of shape (N, C, H + 2 * margin, W + 2 * margin).
        margin: How many black pixels are around each image.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, margin: int = 0) -> None:
        height, width = images.shape[2:]
        self.padded = F.pad(images.contiguous(), [margin] * 4) if margin else images
        self.images = self.padded[:, :, margin : margin + height, margin : margin + width]
        self.labels = labels
        self.margin = margin

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # index_select copies whole images; `images[indices]` would look up every byte.
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)

    def block(self, place: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and labels of neighbors."""
        return self.images[place], self.labels[place]

    def subset(self, indices: torch.Tensor) -> "ImageTensors":
        """Return a copy of some of the samples."""
        return ImageTensors(*self[indices])

    def resident(self) -> "ImageTensors":
        """Return itself."""
        return self

    def checksum(self) -> int:
        """Return the CRC-32 of all images and labels; they must be on the CPU."""
        images, labels = (part.numpy().data for part in (self.images, self.labels))
        return zlib.crc32(labels, zlib.crc32(images))

    def value_counts(self) -> torch.Tensor:
        """Count each of the 256 values in the images: int64 of shape (256,)."""
        return count_values(self.images)

    def to(self, device: torch.device) -> "ImageTensors":
        """Return the same samples on a device."""
        return ImageTensors(self.images.to(device), self.labels.to(device))

    def with_margin(self, margin: int) -> "ImageTensors":
        """Return the same samples with black pixels around each image, for moving it at no cost."""
        return ImageTensors(self.images, self.labels, margin)

    def deliver(self, shares: Iterable[tuple[torch.Tensor, int]]) -> Iterator[Batch]:
        """Yield a batch for each share: its indices, and the size of its global batch."""
        for indices, size in shares:
            yield Batch(indices, size, self)
