"""Decoded pictures in one file, which processes map into their memory instead of reading it.

A picture is decoded when its file is new or has changed: another size or another time. Its pixels
are added to the end of `pixels`; once they are on the disk, a line of `index.jsonl` says whose they
are. So decoding that was cut off, at any instant, continues where it stopped.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dist_mnist.config.data_schema import Fit
from dist_mnist.data.cache import cache_folder, cannot_store, fingerprint
from dist_mnist.data.residence import map_pixels
from dist_mnist.distributed.cpu_threads import usable_cores
from dist_mnist.folder.decoding import Decoded, decode_all
from dist_mnist.folder.files import PictureFile
from dist_mnist.record.files import READ_ONLY, sync
from dist_mnist.record.locks import lock_patiently

logger = logging.getLogger(__name__)

VERSION = 3  # of the decoding; pictures that another version has stored are decoded again
SECONDS_BETWEEN_SYNCS = 2.0
MOST_THREADS = 64
SMALL_BYTES = 8192  # on average; two threads take twice as long for such files, waiting for the GIL

# The row of each picture, or why it is broken.
Entries = dict[PictureFile, int | str]


class Stored(NamedTuple):
    """The pictures of a folder in the store."""

    folder: Path  # the store
    pixels: torch.Tensor  # uint8 of shape (rows, C, H, W), mapped; it must not be written to
    rows: torch.Tensor  # int64 of shape (N,), the row of each picture; -1 if it is broken
    problems: dict[str, str]  # why a picture is broken, by path


def store_pictures(
    root: Path, part: str, files: Sequence[PictureFile], image_shape: Sequence[int], fit: Fit
) -> Stored:
    """Decode the pictures that are not stored yet, and map all of them.

    Many processes may call it at once: one decodes, and the others wait.

    Args:
        part: The tree below it, which has its own store.
        image_shape: Channels (1 or 3), height and width of all pictures.
        fit: The treatment of a picture of another aspect.

    Raises:
        InputError: The pictures cannot be stored.
    """
    root = root.resolve()
    key = [VERSION, str(root), part, list(image_shape), fit.value]
    folder = cache_folder() / "pictures" / fingerprint(json.dumps(key).encode())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_patiently(folder / ".lock"):
            entries = _read(folder, prod(image_shape))
            if not entries or _end(entries) > 2 * len(files) + 1000:
                entries = _begin(folder)  # with the first picture, or without many old ones
            new = [file for file in files if file not in entries]
            if new:
                logger.info("decoding %d of %d pictures in %s, once", len(new), len(files), root)
                _add(folder, entries, root, new, image_shape, fit)
            return _mapped(folder, entries, files, image_shape)
    except OSError as error:
        with suppress(OSError, KeyError):  # a picture is missing
            if error.errno in READ_ONLY:
                return _mapped(folder, _read(folder, prod(image_shape)), files, image_shape)
        raise cannot_store(folder, error) from error


def _read(folder: Path, row_bytes: int) -> Entries:
    """Return the pictures that are stored; none if a file is missing or damaged."""
    entries: Entries = {}
    try:
        for path, size, changed, entry in _read_lines(folder / "index.jsonl"):
            entries[PictureFile(path, size, changed)] = entry
        is_whole = (folder / "pixels").stat().st_size >= row_bytes * _end(entries)
    except FileNotFoundError:
        is_whole = False
    return entries if is_whole else {}


def _read_lines(path: Path) -> list[Any]:
    """Return the values of JSON lines, without those that were cut off."""
    lines = [line for line in path.read_bytes().splitlines() if line]
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")  # much faster than line by line
    except ValueError:
        values = []
        for line in lines:
            with suppress(ValueError):
                values.append(json.loads(line))
    kinds = ([str, int, int, int], [str, int, int, str])
    return [v for v in values if isinstance(v, list) and [*map(type, v)] in kinds]


def _end(entries: Entries) -> int:
    """Return the number of rows in use."""
    return max((row for row in entries.values() if isinstance(row, int)), default=-1) + 1


def _begin(folder: Path) -> Entries:
    """Empty a store; processes that have mapped the old file keep it."""
    for path in folder.iterdir():
        if not path.name.startswith("."):
            path.unlink()
    (folder / "pixels").touch()
    return {}


def _add(
    folder: Path,
    entries: Entries,
    root: Path,
    new: Sequence[PictureFile],
    image_shape: Sequence[int],
    fit: Fit,
) -> None:
    """Decode pictures into a store, and add them to its index and to `entries`."""
    first = _end(entries)
    rows = [(first + place, file.path) for place, file in enumerate(new)]
    is_small = sum(file.size for file in new) < SMALL_BYTES * len(new)
    threads = 1 if is_small else min(usable_cores(), MOST_THREADS)
    with (folder / "index.jsonl").open("ab") as index, (folder / "pixels").open("r+b") as pixels:
        index.write(b"\n")  # ends a line that was cut off
        with closing(
            decode_all(root, rows, image_shape, fit, pixels.fileno(), threads)
        ) as decoding:
            for decoded in _by_time(decoding):
                sync(pixels.fileno())
                for row, problem in decoded:
                    file = new[row - first]
                    entries[file] = problem.reason if problem else row
                    if not (problem and problem.may_change):
                        index.write(json.dumps([*file, entries[file]]).encode() + b"\n")
                index.flush()
                sync(index.fileno())


def _by_time(parts: Iterable[Decoded]) -> Iterator[Decoded]:
    """Join the pictures of a few seconds, since writing them to the disk takes a while."""
    joined: Decoded = []
    since = time.monotonic()
    for part in parts:
        joined += part
        if time.monotonic() - since > SECONDS_BETWEEN_SYNCS:
            yield joined
            joined, since = [], time.monotonic()
    if joined:
        yield joined


def _mapped(
    folder: Path, entries: Entries, files: Sequence[PictureFile], image_shape: Sequence[int]
) -> Stored:
    rows = [entries[file] for file in files]
    problems = {
        file.path: row for file, row in zip(files, rows, strict=True) if isinstance(row, str)
    }
    shape = (max(1, _end(entries)), *image_shape)
    if (folder / "pixels").stat().st_size < prod(shape):  # every picture is broken
        os.truncate(folder / "pixels", prod(shape))
    return Stored(
        folder,
        map_pixels(folder / "pixels", shape),
        torch.tensor([row if isinstance(row, int) else -1 for row in rows]),
        problems,
    )
