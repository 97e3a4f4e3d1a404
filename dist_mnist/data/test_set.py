"""The test set of a trained network, which may be of other data than it was trained on."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dist_mnist.config.data_schema import DataConfig
from dist_mnist.config.errors import InputError
from dist_mnist.data.mapped import Samples
from dist_mnist.data.splits import load_part

logger = logging.getLogger(__name__)

MOST_NAMES = 8  # in a message


def load_test_set(
    config: DataConfig, content: Mapping[str, Any], trusted_modules: Sequence[str] = ()
) -> Samples:
    """Load a test set, with the labels that a checkpoint's network gives classes of those names.

    Of a folder of pictures that is one tree and was not trained on, all pictures are the test set.

    Args:
        content: The checkpoint.

    Raises:
        InputError: The data cannot be used, or has a class that the network does not know.
    """
    classes = [str(name) for name in content["classes"]]
    is_known = not _is_elsewhere(config, content["config"].get("data", {}))
    is_moved = not is_known and _was_trained_on(config, content["data"], trusted_modules)
    if is_moved:
        logger.info("%s was trained on: only the share data.test_size is scored", config.root)
    # Classes may be missing, or in other places.
    data = replace(config, num_classes=None, classes=None)
    if not (is_known or is_moved):
        data = replace(data, test_size=None, dataset={**data.dataset, "test_size": None})
    test, names = load_part(data, False, trusted_modules)
    if config.classes:
        known = match_classes(names, classes)[test.labels] >= 0
        test = test.subset(known.nonzero().flatten())
    return relabel(test, names, classes, config.root)


def _is_elsewhere(config: DataConfig, trained: Mapping[str, Any]) -> bool:
    """Return whether data is a folder of pictures, and not where the training data was."""
    before = Path(str(trained.get("root"))).resolve()
    return "test_size" in config.dataset and Path(config.root).resolve() != before


def _was_trained_on(
    config: DataConfig, trained: Mapping[str, Any], trusted_modules: Sequence[str]
) -> bool:
    """Return whether pictures in another place are those of the training and its test."""
    try:
        test, _ = load_part(replace(config, num_classes=None), False, trusted_modules)
    except InputError:  # too few pictures, or other classes
        return False
    return test.checksum() == trained.get("checksum of the test samples")


def match_classes(names: Sequence[str], known: Sequence[str]) -> torch.Tensor:
    """Return the place of each name in `known`, int64 of shape (len(names),); -1 if it has none."""
    if [*names] == [*known]:  # several may have the same name
        return torch.arange(len(known))
    places = {_plain(name): place for place, name in enumerate(known)}
    return torch.tensor([places.get(_plain(name), -1) for name in names], dtype=torch.int64)


def _plain(name: str) -> str:
    """Return a class's name; torchvision calls a digit "0 - zero"."""
    digit, _, word = name.partition(" - ")
    return digit if digit.isdecimal() and word.isalpha() else name


def relabel(samples: Samples, names: Sequence[str], known: Sequence[str], source: str) -> Samples:
    """Return samples whose labels are the places of their classes in `known`.

    Args:
        names: The classes of the samples, in the order of their labels.
        source: Where they are from, for messages.

    Raises:
        InputError: A sample's class is not in `known`.
    """
    places = match_classes(names, known)
    labels = samples.labels.cpu()
    unknown = [names[label] for label in labels.unique().tolist() if places[label] < 0]
    if unknown:
        raise InputError(
            f"{source} has images of {some(unknown)}, and the network only knows {some(known)}: "
            f"classes are matched by their names, so rename or remove those."
        )
    relabeled = copy.copy(samples)
    relabeled.labels = places[labels].to(samples.labels.device)
    missing = {*range(len(known))} - {*relabeled.labels.tolist()}
    if missing:
        logger.info("%s has no images of %s", source, some([known[m] for m in sorted(missing)]))
    return relabeled


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
