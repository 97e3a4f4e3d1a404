"""Finds the parts of a folder of pictures: training, validation and test, by the folders' names."""

import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from dist_mnist.config.errors import InputError
from dist_mnist.folder.files import has_pictures, is_left_out, printable

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
    unused: tuple[str, ...] = ()  # parts without folders for classes, and other folders


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
    others = [name for name in folders if named and name not in roles and has_pictures(root, name)]
    is_clear = bool(trees["train"]) and max(map(len, trees.values())) == 1
    is_alone = len(roles) == 1 and bool(others)
    inside = {name for tree in named for name in _folders(root / tree)}
    beside = {*others, *(name for other in others for name in _folders(root / other))}
    if (len(named) > 1 and not is_clear) or (len(named) == 1 and inside & beside):
        raise InputError(
            f"data.root={root} can be read in two ways: {' and '.join(map(printable, named))} may "
            f"be parts of a data set, or classes. Name the parts train, val and test, or rename "
            f"the classes."
        )
    if not is_clear or is_alone:
        return Parts("", None, None)
    train, validation, test = (next(iter(names), None) for names in trees.values())
    assert train is not None
    unused = tuple(name for name in [*roles, *others] if name not in named)
    if test is None:
        return Parts(train, None, validation, unused)
    return Parts(train, validation, test, unused)


def log_parts(root: Path, parts: Parts) -> None:
    """Say how a folder's parts are used."""
    if not parts.train:
        return
    test = f"{parts.test} is" if parts.test else f"a share of {parts.train} is"
    validation = f"{parts.validation} validates, " if parts.validation else ""
    unused = f"; not used: {', '.join(parts.unused)}" if parts.unused else ""
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
