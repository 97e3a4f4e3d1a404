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

# Folders that systems put among people's files; hidden ones are left out, too.
SYSTEM_FOLDERS = (
    *("@eadir", "#recycle", "#snapshot", "__macosx", "__pycache__", "lost+found"),
    *("$recycle.bin", "recycler", "system volume information"),
)


class PictureFile(NamedTuple):
    """A picture, with the size and time that reveal a change."""

    path: str  # below the folder, with slashes
    size: int  # in bytes
    changed: int  # the time of the last change, in nanoseconds


Classes = dict[str, list[PictureFile]]


def find_pictures(root: Path, *parts: str) -> Classes:
    """Find the pictures below each folder of one or more trees, sorted by name and by path.

    Hidden files and folders are left out, those of the system, files without a picture's ending,
    and files that are not plain. Links are followed only to files below the root.

    Args:
        root: The folder that no link may lead out of.
        parts: The trees below it, such as "train"; "" for the folder itself.

    Returns:
        The pictures of each folder that has pictures, by the folder's name.

    Raises:
        InputError: A folder cannot be read, or has no pictures in folders.
    """
    classes: Classes = defaultdict(list)
    for part in parts:
        for name, files in _find(root, part).items():
            classes[name] += files
    return {name: sorted(classes[name]) for name in sorted(classes)}


def _find(root: Path, part: str) -> Classes:
    top = root / part
    if not top.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{top} is a link that leads out of data.root={root}: copy its pictures.")
    classes: Classes = defaultdict(list)
    links: list[str] = []
    others = 0
    for path, file in _walk(root.resolve(), part, links):
        name = class_of(path, part)
        if name and _is_picture(path):
            classes[name].append(PictureFile(path, file.st_size, file.st_mtime_ns))
        else:
            others += 1
    if not classes:
        shown = f", such as {printable(links[0])}" if links else ""
        leading = f"; {len(links)} links out of the folder are left out{shown}" if links else ""
        raise InputError(
            f"data.root={root} has no pictures to learn from: {top} needs a folder for each class, "
            f"with PNG, JPEG, BMP, WebP, GIF or TIFF files in it{leading}."
        )
    _log_left_out(top, classes, links, others)
    return classes


def class_of(path: str, part: str) -> str:
    """Return the class of a picture of a tree: its topmost folder there; "" if it is in none."""
    name, _, rest = path.removeprefix(f"{part}/" if part else "").partition("/")
    return name if rest else ""


def list_pictures(root: Path, part: str) -> list[PictureFile]:
    """Return all pictures below a folder."""
    found = _walk(root.resolve(), part, [])
    return [PictureFile(p, s.st_size, s.st_mtime_ns) for p, s in found if _is_picture(p)]


def find_classes(root: Path, part: str) -> list[str]:
    """Return the names of the folders of a tree that have pictures, without reading all of it."""
    with os.scandir(root / part) as entries:
        names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    return [n for n in names if not is_left_out(n) and has_pictures(root, f"{part}/{n}")]


def has_pictures(root: Path, part: str) -> bool:
    """Return whether there is a picture below a folder."""
    return any(_is_picture(path) for path, _ in _walk(root.resolve(), part, []))


def is_left_out(name: str) -> bool:
    """Return whether a file or folder is hidden, or the system's own."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


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
            if is_left_out(entry.name):
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
    empty = sorted(name for name in folders if name not in classes and not is_left_out(name))
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
