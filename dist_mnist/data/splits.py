"""A data set in its parts: train, validation and test.

MNIST is 47 MB as bytes: it stays on the device as uint8, and a batch is one indexing operation. No
worker processes, no Python per sample, no image library in the loop. A data set that does not fit
there stays in a file that is mapped into memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dist_mnist.config.data_schema import DataConfig, Residence, number_of
from dist_mnist.config.errors import InputError, refusing
from dist_mnist.data.download import open_dataset
from dist_mnist.data.images import ImageTensors, Normalization, normalization_of
from dist_mnist.data.mapped import MappedImages, Samples
from dist_mnist.data.residence import load_shared, stays_on_host
from dist_mnist.data.seeding import keyed_seed
from dist_mnist.data.subset import choose_classes, choose_samples
from dist_mnist.distributed.world import World


@dataclass(frozen=True)
class DataSplits:
    """The parts of a data set, its normalization, classes and fingerprint."""

    train: Samples
    validation: Samples  # held out of the training files; decides every choice; may be empty
    test: Samples  # used once, at the end
    normalization: Normalization  # of the training files, including the validation part
    classes: tuple[str, ...]  # their names, in the order of the labels
    fingerprint: dict[str, int]  # the numbers and checksums of the samples, by name

    @property
    def class_counts(self) -> list[int]:
        """The number of training samples of each class."""
        return self.train.labels.bincount(minlength=len(self.classes)).tolist()

    def to(self, device: torch.device) -> "DataSplits":
        """Return the same parts on a device, or on their way to it if they stay on the host."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )

    def resident(self) -> "DataSplits":
        """Return the same parts in this process's own memory."""
        return replace(
            self,
            train=self.train.resident(),
            validation=self.validation.resident(),
            test=self.test.resident(),
        )

    def without_train(self) -> "DataSplits":
        """Return the same parts without the training samples, so that their memory can be freed."""
        nothing = torch.empty(0, dtype=torch.int64, device=self.train.labels.device)
        return replace(self, train=self.train.subset(nothing))


def load_splits(
    config: DataConfig,
    seed: int,
    trusted_modules: Sequence[str] = (),
    world: World | None = None,
) -> DataSplits:
    """Load a data set, download it if it is missing, and hold out the validation part.

    Safe to call from many processes at once. The split depends on the seed alone.

    Args:
        seed: Determines the validation part.
        trusted_modules: The user's modules that may define its class.
        world: Decides where the samples stay; None for one process on the CPU.

    Raises:
        InputError: The files are missing, damaged or do not fit the config, or their folder
            cannot be written.
    """
    training, classes = _load(config, True, trusted_modules, world)
    test, test_classes = _load(config, False, trusted_modules, world)
    _check_classes(config, classes, test_classes)
    fingerprint = {
        "training samples": len(training),
        "checksum of the training samples": training.checksum(),
        "test samples": len(test),
        "checksum of the test samples": test.checksum(),
    }
    normalization = Normalization(0.0, 1.0)
    if config.normalize:
        normalization = normalization_of(training.value_counts())
    training, validation = _hold_out(config, training, seed)
    if config.samples_per_class:
        few = choose_samples(training.labels, classes, config.samples_per_class, seed)
        training = training.subset(few)
    splits = DataSplits(training, validation, test, normalization, classes, fingerprint)
    return splits if stays_on_host(config.residence, training, world) else splits.resident()


def _hold_out(config: DataConfig, training: Samples, seed: int) -> tuple[Samples, Samples]:
    """Return the samples to train on and the validation part."""
    if isinstance(training, MappedImages) and training.validates is not None:
        given = training.validates
        return training.subset((~given).nonzero()[:, 0]), training.subset(given.nonzero()[:, 0])
    size = number_of(config.validation_size, len(training))
    if size >= len(training):
        raise InputError(
            f"data.validation_size={config.validation_size} leaves nothing to train on: "
            f"{config.name} has {len(training)} training samples."
        )
    held_out = stratified_choice(training.labels, size, seed)
    validation = training.subset(held_out)
    if size == 0:
        return training, validation
    kept = torch.ones(len(training), dtype=torch.bool)
    kept[held_out] = False
    return training.subset(kept.nonzero().flatten()), validation


def _check_classes(
    config: DataConfig, classes: tuple[str, ...], test_classes: tuple[str, ...]
) -> None:
    if len(test_classes) > len(classes):
        raise InputError(
            f"{config.name} has {len(test_classes)} classes in its test samples and "
            f"{len(classes)} in its training samples: set data.num_classes."
        )
    if len(classes) < 2:
        raise InputError(f"{config.name} has one class: a classifier needs at least two classes.")


def _load(
    config: DataConfig, train: bool, trusted_modules: Sequence[str], world: World | None
) -> tuple[Samples, tuple[str, ...]]:
    """Load a part; if it is to stay on the host, map it from a file that all processes share."""
    names: list[tuple[str, ...]] = []

    def load() -> Samples:
        samples, classes = load_part(config, train, trusted_modules)
        names.append(classes)
        return samples

    if config.residence is Residence.host:
        return load_shared(load), names[0]
    samples = load()
    if isinstance(samples, ImageTensors) and stays_on_host(config.residence, samples, world):
        return load_shared(lambda: samples), names[0]
    return samples, names[0]


def load_part(
    config: DataConfig, train: bool, trusted_modules: Sequence[str] = ()
) -> tuple[Samples, tuple[str, ...]]:
    """Load the training or the test files of a data set, and the names of its classes.

    Raises:
        InputError: As `load_splits`.
    """
    source = open_dataset(config, train, trusted_modules)
    samples = getattr(source, "samples", None)
    if not isinstance(samples, MappedImages):
        samples = _read_arrays(config, source)
    count = max(config.num_classes or 0, int(samples.labels.max()) + 1)
    classes = tuple(str(name) for name in getattr(source, "classes", range(count)))
    if config.classes:
        chosen, labels, classes = choose_classes(config, samples.labels, classes)
        samples = samples.subset(chosen)
        samples.labels = labels
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0 or high >= (config.num_classes or len(classes)):
        raise InputError(
            f"data.num_classes={config.num_classes} does not fit {config.name}: "
            f"its labels go from {low} to {high}."
        )
    if config.num_classes not in (None, len(classes)):
        raise InputError(
            f"data.num_classes={config.num_classes} does not fit {config.name}, "
            f"which has {len(classes)} classes."
        )
    return samples, classes


def _read_arrays(config: DataConfig, source: Any) -> ImageTensors:
    """Return a data set's images and labels, which it must have as arrays."""
    if not (hasattr(source, "data") and hasattr(source, "targets")):
        raise InputError(
            f"data.dataset._target_={config.dataset['_target_']} has no attributes `data` and "
            f"`targets` with its images and labels as arrays: use a data set that has them."
        )
    with refusing(f"{config.name} has images or labels that are not arrays"):
        images = _channels_first(torch.as_tensor(source.data), config.image_shape)
        labels = torch.as_tensor(source.targets)
    _check_images_and_labels(config, images, labels)
    return ImageTensors(images.contiguous(), labels.long().contiguous())


def _channels_first(images: torch.Tensor, image_shape: list[int]) -> torch.Tensor:
    """Return images of shape (N, C, H, W), which may come as (N, H, W) or (N, H, W, C) too."""
    if images.ndim == 3:
        return images.unsqueeze(1)
    if images.ndim == 4 and list(images.shape[1:]) != image_shape:
        last_to_first = images.movedim(-1, 1)
        return last_to_first if list(last_to_first.shape[1:]) == image_shape else images
    return images


def _check_images_and_labels(
    config: DataConfig, images: torch.Tensor, labels: torch.Tensor
) -> None:
    shape = list(images.shape[1:])
    if shape != config.image_shape:
        raise InputError(
            f"data.image_shape={config.image_shape} (channels, height, width) does not fit "
            f"{config.name}: its images are of shape {shape}; set data.image_shape to that, "
            f"or give them as (N, C, H, W), (N, H, W, C) or (N, H, W)."
        )
    if images.dtype != torch.uint8:
        raise InputError(
            f"{config.name} has images of {images.dtype}: give torch.uint8, from 0 to 255."
        )
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        hint = "; they look one-hot, so give targets.argmax(1)" if _look_one_hot(labels) else ""
        raise InputError(
            f"{config.name} has labels of {labels.dtype} and shape {list(labels.shape)}: "
            f"give one integer for each image{hint}."
        )
    if len(images) != len(labels) or len(labels) == 0:
        raise InputError(f"{config.name} has {len(images)} images and {len(labels)} labels.")


def _look_one_hot(labels: torch.Tensor) -> bool:
    if labels.ndim != 2 or labels.shape[1] < 2:
        return False
    ones, zeros = (labels == 1).sum(1), (labels == 0).sum(1)
    return bool((ones == 1).all() and (zeros == labels.shape[1] - 1).all())


def stratified_choice(labels: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """Choose samples at random so that every class keeps its share, to within one sample.

    Args:
        labels: int64 of shape (N,).
        size: The number of samples to choose, at most N.

    Returns:
        int64 indices of shape (size,), ascending.
    """
    generator = torch.Generator().manual_seed(keyed_seed(seed, "validation split"))
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced picks from the samples sorted by class take a proportional share of each.
    picks = (torch.arange(size, dtype=torch.float64) + 0.5) * len(labels) / max(size, 1)
    return by_class[picks.long()].sort().values
