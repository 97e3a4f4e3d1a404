"""A part of a data set: some of its classes, and a few training samples of each."""

from collections.abc import Sequence

import torch

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import DataConfig
from dist_mnist.data.images import ImageTensors
from dist_mnist.data.seeding import keyed_seed


def choose_classes(
    config: DataConfig, images: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Return the samples of `data.classes`, whose labels become 0, 1, 2 and so on in that order.

    Args:
        config: Names the classes by their labels.
        images: uint8 of shape (N, C, H, W).
        labels: Integers of shape (N,).
        names: Of all classes of the data set.

    Returns:
        Images, int64 labels and names of these classes alone.

    Raises:
        InputError: The data set has no sample of one of them.
    """
    chosen = config.classes or []
    matches = labels.unsqueeze(1) == torch.tensor(chosen)
    for label, is_there in zip(chosen, matches.any(0).tolist(), strict=True):
        if not is_there or label >= len(names):
            raise InputError(
                f"data.classes={chosen} does not fit {config.name}, which has no class {label}: "
                f"its labels go from {int(labels.min())} to {int(labels.max())}."
            )
    kept = matches.any(1).nonzero().flatten()
    new_labels = matches[kept].int().argmax(1)
    return images[kept], new_labels, tuple(names[label] for label in chosen)


def choose_samples(
    samples: ImageTensors, names: Sequence[str], count: int, seed: int
) -> ImageTensors:
    """Return as many samples of each class, chosen at random, in the order that they had.

    A smaller count chooses some of what a larger one does.

    Args:
        samples: What to choose from, on the CPU.
        names: Of the classes.
        count: Of each class.
        seed: Determines which ones.

    Raises:
        InputError: A class has fewer.
    """
    generator = torch.Generator().manual_seed(keyed_seed(seed, "samples of each class"))
    shuffled = torch.randperm(len(samples), generator=generator)
    chosen = []
    for label, name in enumerate(names):
        of_class = shuffled[samples.labels[shuffled] == label]
        if len(of_class) < count:
            raise InputError(
                f"data.samples_per_class={count} is more than the {len(of_class)} training images "
                f"of class {name}: lower it, or data.validation_size."
            )
        chosen.append(of_class[:count])
    return ImageTensors(*samples[torch.cat(chosen).sort().values])
