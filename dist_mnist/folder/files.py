"""Finds the pictures of a folder and their classes, without leaving the folder."""

import logging
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dist_mnist.config.errors import InputError
from dist_mnist.data.decode import SUFFIXES

logger = logging.getLogger(__name__)

TEST_TREES = ("test", "val", "valid", "validation")


class PictureFile(NamedTuple):
    """A picture, with the size and time that reveal a change."""

    path: str  # below the folder, with slashes
    size: int  # in bytes
    changed: int  # the time of the last change, in nanoseconds


Classes = dict[str, list[PictureFile]]


def find_test_tree(root: Path) -> str | None:
    """Return the name of the test tree beside `train`; None if the folder is one tree.

    Without a `test` folder, the validation folder of other programs counts as one.
    """
    try:
        with os.scandir(root / "train") as entries:
            has_classes = any(entry.is_dir() for entry in entries)
    except OSError:
        has_classes = False
    if not has_classes:
        return None
    return next((name for name in TEST_TREES if (root / name).is_dir()), None)


def find_pictures(root: Path, part: str = "") -> Classes:
    """Find the pictures below each folder of a tree, sorted by name and by path.

    Hidden files and folders are left out, and so are files without a picture's ending and files
    that are not plain. Links are followed only to files below the root.

    Args:
        root: The folder that no link may lead out of.
        part: The tree below it: "", "train" or "test".

    Returns:
        The pictures of each folder that has pictures.

    Raises:
        InputError: The folder cannot be read, or has no pictures in folders.
    """
    top = root / part
    if not top.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{top} is a link that leads out of data.root={root}: copy its pictures.")
    classes: Classes = defaultdict(list)
    links: list[str] = []
    others = 0
    for path, file in _walk(root.resolve(), part, links):
        name, _, rest = path.removeprefix(f"{part}/" if part else "").partition("/")
        if rest and _is_picture(path):
            classes[name].append(PictureFile(path, file.st_size, file.st_mtime_ns))
        else:
            others += 1
    if not classes:
        raise InputError(
            f"data.root={root} has no pictures to learn from: {top} needs a folder for each class, "
            f"with PNG, JPEG, BMP, WebP, GIF or TIFF files in it."
        )
    _log_left_out(top, classes, links, others)
    return {name: sorted(classes[name]) for name in sorted(classes)}


def find_classes(root: Path, part: str) -> list[str]:
    """Return the names of the folders of a tree that have pictures."""
    with os.scandir(root / part) as entries:
        names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    return [
        name
        for name in names
        if not name.startswith(".")
        and any(_is_picture(path) for path, _ in _walk(root.resolve(), f"{part}/{name}", []))
    ]


def _is_picture(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)


def _walk(root: Path, part: str, links: list[str]) -> "Iterator[tuple[str, os.stat_result]]":
    """Yield the plain files of a tree; add the links that are not followed to `links`."""
    folders = [part]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as listed:
                entries = [*listed]
        except OSError as error:
            raise InputError(f"{root / folder} cannot be read: {error.strerror}.") from error
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_symlink() and not _is_file_within(root, Path(entry.path)):
                links.append(path)
            else:
                try:
                    status = entry.stat()
                except OSError:  # it was deleted just now
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield path, status


def _is_file_within(root: Path, link: Path) -> bool:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or in a circle
        return False
    return target.is_relative_to(root) and target.is_file()


def _log_left_out(top: Path, classes: Classes, links: list[str], others: int) -> None:
    with os.scandir(top) as entries:
        folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    empty = sorted(name for name in folders if name not in classes and not name.startswith("."))
    for count, what, example in (
        (len(links), "links that lead out of the folder, or to no file", links[:1]),
        (len(empty), "folders without a picture", empty[:1]),
        (others, "files that are not pictures in a class folder", []),
    ):
        if count:
            shown = f", such as {printable(example[0])}" if example else ""
            logger.info("%s: left out %d %s%s", top, count, what, shown)


def printable(name: str) -> str:
    """Return a file's name without the bytes in it that are not UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
