"""Images and labels in memory, and what turns pixels into the network's input."""

import zlib
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Normalization:
    """Turns uint8 images into float32 ones: (pixel / 255 - mean) / std, on their own device.

    Attributes:
        mean: Of all training pixels, on a scale from 0 to 1; 0 to leave them in that range.
        std: Their standard deviation on the same scale; 1 to leave them in that range.
    """

    mean: float
    std: float

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images of any shape to float32 of the same shape."""
        shift = torch.full((), -self.mean / self.std, device=images.device)
        pixels = images.to(torch.float32, copy=True)
        return torch.add(shift, pixels, alpha=1 / (255 * self.std), out=pixels)


def measure_normalization(images: torch.Tensor) -> Normalization:
    """Return the exact mean and standard deviation of all pixels.

    They are computed from counts of the 256 values, so the number of threads does not matter.

    Args:
        images: uint8 of any shape.
    """
    counts = torch.zeros(256, dtype=torch.int64)
    for part in images.flatten(1).split(1000):  # bincount makes int64 of them, 8 times the size
        counts += torch.bincount(part.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.int64)
    total = int(counts.sum())
    mean = int((counts * values).sum()) / total
    mean_square = int((counts * values * values).sum()) / total
    std = max((mean_square - mean * mean) ** 0.5, 1.0)  # keeps a blank data set finite
    return Normalization(mean=mean / 255, std=std / 255)


class ImageTensors(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images and labels in memory; an int64 tensor of B indices gives a whole batch.

    Attributes:
        images: uint8 of shape (N, C, H, W).
        labels: int64 of shape (N,).
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # index_select copies whole images; `images[indices]` would look up every byte.
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)

    def checksum(self) -> int:
        """Return the CRC-32 of all images and labels; they must be on the CPU."""
        images, labels = (part.numpy().data for part in (self.images, self.labels))
        return zlib.crc32(labels, zlib.crc32(images))

    def to(self, device: torch.device) -> "ImageTensors":
        """Return the same samples on a device."""
        return ImageTensors(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        images: uint8 of shape (share, C, H, W); the share may be empty.
        labels: int64 of shape (share,).
        size: The number of samples in the global batch, over all ranks.
    """

    images: torch.Tensor
    labels: torch.Tensor
    size: int
