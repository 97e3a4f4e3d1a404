"""A data set as tensors that live on the training device, and its three honest parts.

MNIST is 47 MB as bytes: it stays resident as uint8, and a batch is one indexing. No worker
processes, no Python per sample, no image library in the loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import Dataset

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import DataConfig
from dist_mnist.data.download import open_dataset
from dist_mnist.data.seeding import keyed_seed


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
        # Copies whole images, where `images[indices]` would look up byte for byte.
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)

    def to(self, device: torch.device) -> "ImageTensors":
        """Return the same samples on a device."""
        return ImageTensors(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DataSplits:
    """The parts of a data set and what is known about it.

    Attributes:
        train: What the weights are fitted to.
        validation: Held out of the training files, for every choice; empty where all of them train.
        test: Looked at once, at the end.
        normalization: Of the training files, held-out part included.
        classes: The names of the classes, in the order of the labels.
    """

    train: ImageTensors
    validation: ImageTensors
    test: ImageTensors
    normalization: Normalization
    classes: tuple[str, ...]

    def to(self, device: torch.device) -> "DataSplits":
        """Return the same parts on a device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )

    def without_train(self) -> "DataSplits":
        """Return the same parts with nothing to train on, so that its memory can be freed."""
        nothing = torch.empty(0, dtype=torch.int64, device=self.train.labels.device)
        return replace(self, train=ImageTensors(*self.train[nothing]))


def load_splits(config: DataConfig, seed: int, trusted_modules: Sequence[str] = ()) -> DataSplits:
    """Load a data set, downloading it where it is missing, and hold the validation part out.

    Safe to call from many processes at once. The split depends on the seed alone.

    Raises:
        InputError: The files are missing, damaged or not what the config says, or the folder for
            them cannot be written.
    """
    training, classes = load_part(config, train=True, trusted_modules=trusted_modules)
    test, _ = load_part(config, train=False, trusted_modules=trusted_modules)
    if config.validation_size >= len(training):
        raise InputError(
            f"data.validation_size={config.validation_size} leaves nothing to train on: "
            f"{config.name} has {len(training)} training samples."
        )
    normalization = Normalization(0.0, 1.0)
    if config.normalize:
        normalization = measure_normalization(training.images)
    held_out = stratified_choice(training.labels, config.validation_size, seed)
    validation = ImageTensors(*training[held_out])
    if config.validation_size:
        kept = torch.ones(len(training), dtype=torch.bool)
        kept[held_out] = False
        training = ImageTensors(*training[kept.nonzero().flatten()])
    return DataSplits(training, validation, test, normalization, classes)


def load_part(
    config: DataConfig, train: bool, trusted_modules: Sequence[str] = ()
) -> tuple[ImageTensors, tuple[str, ...]]:
    """Load the training or the test files of a data set, and the names of its classes.

    Raises:
        InputError: As `load_splits`.
    """
    source = open_dataset(config, train, trusted_modules)
    if not (hasattr(source, "data") and hasattr(source, "targets")):
        raise InputError(
            f"data.dataset._target_={config.dataset['_target_']} has no `data` and `targets`, "
            f"the images and labels as arrays: use a data set that has."
        )
    try:
        images = torch.as_tensor(source.data)
        images = images.unsqueeze(1) if images.ndim == 3 else images.movedim(-1, 1)
        labels = torch.as_tensor(source.targets)
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: the others describe it
    except Exception as error:
        raise InputError(
            f"{config.name} has images and labels that are no arrays: {one_line(error)[:300]}."
        ) from error
    _check_images_and_labels(config, images, labels)
    classes = tuple(str(name) for name in getattr(source, "classes", range(config.num_classes)))
    if len(classes) != config.num_classes:
        raise InputError(
            f"data.num_classes={config.num_classes} is not that of {config.name}, "
            f"which has {len(classes)}."
        )
    return ImageTensors(images.contiguous(), labels.long()), classes


def _check_images_and_labels(
    config: DataConfig, images: torch.Tensor, labels: torch.Tensor
) -> None:
    shape = list(images.shape[1:])
    if images.dtype != torch.uint8 or shape != config.image_shape:
        raise InputError(
            f"data.image_shape={config.image_shape} is not that of {config.name}: "
            f"its images are {images.dtype} of shape {shape}, and must be torch.uint8."
        )
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"{config.name} has labels of {labels.dtype} and shape {list(labels.shape)}: "
            f"give one whole number for each image."
        )
    if len(images) != len(labels) or len(labels) == 0:
        raise InputError(f"{config.name} has {len(images)} images and {len(labels)} labels.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= config.num_classes:
        raise InputError(
            f"data.num_classes={config.num_classes} is not that of {config.name}: "
            f"its labels go from {low} to {high}."
        )


def stratified_choice(labels: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """Choose samples at random so that every class keeps its share, to within one sample.

    Args:
        labels: int64 of shape (N,).
        size: How many to choose, at most N.
        seed: Decides which ones.

    Returns:
        int64 indices of shape (size,), ascending.
    """
    generator = torch.Generator().manual_seed(keyed_seed(seed, "validation split"))
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced picks from the samples in order of class: each class gives in proportion.
    picks = (torch.arange(size, dtype=torch.float64) + 0.5) * len(labels) / max(size, 1)
    return by_class[picks.long()].sort().values


def measure_normalization(images: torch.Tensor) -> Normalization:
    """Return the mean and the deviation of all pixels, exactly.

    They come from counts of the 256 values, so they are the same for every number of threads.

    Args:
        images: uint8 of any shape.
    """
    counts = torch.zeros(256, dtype=torch.int64)
    for part in images.flatten(1).split(1000):  # counted as int64, eight times their size
        counts += torch.bincount(part.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.int64)
    total = int(counts.sum())
    mean = int((counts * values).sum()) / total
    mean_square = int((counts * values * values).sum()) / total
    std = max((mean_square - mean * mean) ** 0.5, 1.0)  # a blank data set stays finite
    return Normalization(mean=mean / 255, std=std / 255)
