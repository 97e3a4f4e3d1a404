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


def choose_test_set(
    config: DataConfig, content: Mapping[str, Any], trusted_modules: Sequence[str] = ()
) -> DataConfig:
    """Return the config of a test set, in which a tree that was not trained on is scored whole.

    Args:
        content: The checkpoint of the network.
    """
    config = replace(config, num_classes=None)  # some classes may be missing
    before = Path(str(content["config"].get("data", {}).get("root"))).resolve()
    if "test_size" not in config.dataset or Path(config.root).resolve() == before:
        return config
    if _was_trained_on(config, content["data"], trusted_modules):
        logger.info("%s was trained on: only the share data.test_size is scored", config.root)
        return config
    return replace(config, test_size=None, dataset={**config.dataset, "test_size": None})


def _was_trained_on(
    config: DataConfig, trained: Mapping[str, Any], trusted_modules: Sequence[str]
) -> bool:
    """Return whether pictures in another place are those of the training and its test."""
    try:
        test, _ = load_part(config, False, trusted_modules)
    except InputError:  # too few pictures, or other classes
        return False
    return test.checksum() == trained.get("checksum of the test samples")


def load_test_set(
    config: DataConfig, known: Sequence[str], trusted_modules: Sequence[str] = ()
) -> Samples:
    """Load a test set, with the labels that a network gives classes of those names.

    Args:
        config: From `choose_test_set`.
        known: The classes of the network, in the order of its outputs.

    Raises:
        InputError: The data cannot be used, or has a class that the network does not know.
    """
    # The chosen classes may have other places here.
    test, names = load_part(replace(config, classes=None), False, trusted_modules)
    if config.classes:
        test = test.subset((match_classes(names, known)[test.labels] >= 0).nonzero().flatten())
    if len(test) == 0:
        raise InputError(f"{config.root} has no images of {some(known)}.")
    if config.dataset.get("test_size", 0) is None:
        logger.info("%s: all %d images of its test set are scored", config.root, len(test))
    return relabel(test, names, known, config.root)


def match_classes(names: Sequence[str], known: Sequence[str]) -> torch.Tensor:
    """Return the place of each name in `known`, int64 of shape (len(names),); -1 if it has none."""
    if [*names] == [*known]:  # several may have the same name
        return torch.arange(len(known))
    places = {name: place for place, name in enumerate(known)}
    # torchvision calls a digit "0 - zero", where others call it "0".
    digits = {name.partition(" - ")[0]: place for name, place in places.items()}
    found = [
        places.get(name, (digits if name.isdecimal() else places).get(name.partition(" - ")[0], -1))
        for name in names
    ]
    return torch.tensor(found, dtype=torch.int64)


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
