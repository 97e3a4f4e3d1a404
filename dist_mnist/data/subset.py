"""A part of a data set: some of its classes, and a few training samples of each."""

from collections.abc import Sequence

import torch

from dist_mnist.config.data_schema import DataConfig
from dist_mnist.config.errors import InputError
from dist_mnist.data.seeding import keyed_seed


def choose_classes(
    config: DataConfig, labels: torch.Tensor, names: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Choose the samples of `data.classes`, whose labels become 0, 1, 2 and so on in that order.

    Args:
        labels: Integers of shape (N,).
        names: The names of all classes of the data set.

    Returns:
        Their ascending int64 indices, their int64 labels, and the names of their classes.

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
    return kept, new_labels, tuple(names[label] for label in chosen)


def choose_samples(
    labels: torch.Tensor, names: Sequence[str], count: int, seed: int
) -> torch.Tensor:
    """Choose `count` samples of each class at random.

    A smaller count chooses a subset of a larger one's samples.

    Args:
        labels: int64 of shape (N,), on the CPU.

    Returns:
        int64 indices of shape (classes * count,), ascending.

    Raises:
        InputError: A class has fewer.
    """
    generator = torch.Generator().manual_seed(keyed_seed(seed, "samples of each class"))
    shuffled = torch.randperm(len(labels), generator=generator)
    chosen = []
    for label, name in enumerate(names):
        of_class = shuffled[labels[shuffled] == label]
        if len(of_class) < count:
            raise InputError(
                f"data.samples_per_class={count} is more than the {len(of_class)} training images "
                f"of class {name}: lower it, or data.validation_size."
            )
        chosen.append(of_class[:count])
    return torch.cat(chosen).sort().values
