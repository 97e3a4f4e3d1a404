"""Finds the parts of a folder of pictures: training, validation and test, by the folders' names."""

import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from dist_mnist.config.errors import InputError
from dist_mnist.folder.files import is_left_out, printable

logger = logging.getLogger(__name__)

# The names of parts, in any case, as letters alone: Train, training_set, test-images.
SUFFIX = "(|set|data|images?|img|imgs|pictures?)"
ROLES = {
    "train": re.compile(f"train(ing)?{SUFFIX}"),
    "validation": re.compile(f"(val|valid|validation|dev){SUFFIX}"),
    "test": re.compile(f"test(ing)?{SUFFIX}"),
}


class Parts(NamedTuple):
    """The trees of a folder of pictures, by their names below it."""

    train: str  # "" if the folder itself is the only tree
    validation: str | None
    test: str | None  # None: a share of the training tree is the test set
    unused: tuple[str, ...] = ()  # parts without classes, so without labels


def find_parts(root: Path) -> Parts:
    """Find the parts of a folder.

    Without a test tree, a validation tree is the test set. A folder without a training tree is one
    tree.

    Raises:
        InputError: Its folders may be parts or classes.
    """
    folders = _folders(root)
    roles = {name: role for name in folders if (role := _role(name))}
    trees = {role: [n for n in roles if roles[n] == role and _folders(root / n)] for role in ROLES}
    named = [name for names in trees.values() for name in names]
    if len(named) > 1 and (not trees["train"] or max(map(len, trees.values())) > 1):
        raise InputError(
            f"data.root={root} can be read in two ways: {' and '.join(map(printable, named))} may "
            f"be parts of a data set, or classes. Name the parts train, val and test, or rename "
            f"the classes."
        )
    others = [name for name in folders if name not in roles]
    if not trees["train"] or (len(named) == 1 and others):
        return Parts("", None, None)
    train, validation, test = (next(iter(names), None) for names in trees.values())
    assert train is not None
    unused = tuple(name for name in roles if name not in named)
    if test is None:
        return Parts(train, None, validation, unused)
    return Parts(train, validation, test, unused)


def log_parts(root: Path, parts: Parts) -> None:
    """Say how a folder's parts are used."""
    if not parts.train:
        return
    test = f"{parts.test} is" if parts.test else f"a share of {parts.train} is"
    validation = f"{parts.validation} validates, " if parts.validation else ""
    unused = "".join(f"; {name} has no folders for classes" for name in parts.unused)
    line = f"{parts.train} trains, {validation}{test} the test set{unused}"
    logger.info("%s: %s", root, printable(line))


def _role(name: str) -> str | None:
    letters = re.sub("[^a-z]", "", name.casefold())
    return next((role for role, names in ROLES.items() if names.fullmatch(letters)), None)


def _folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not is_left_out(e.name))
    except OSError:  # find_pictures will say so
        return []
