"""Decoded pictures in one file, which processes map into their memory instead of reading it.

A picture is decoded when its file is new or has changed: another size or another time. Its pixels
are added to the end of `pixels`; once they are on the disk, a line of `index.jsonl` says whose they
are. So decoding that was cut off, at any instant, continues where it was.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dist_mnist.config.data_schema import Fit
from dist_mnist.data.cache import cache_folder, cannot_store
from dist_mnist.data.residence import map_pixels
from dist_mnist.folder.decode_worker import Job, Problem
from dist_mnist.folder.decoding import decode_all
from dist_mnist.folder.files import PictureFile
from dist_mnist.record.files import sync
from dist_mnist.record.locks import lock_patiently

logger = logging.getLogger(__name__)

VERSION = 1  # of what becomes of a picture; another one is decoded anew
SECONDS_BETWEEN_SYNCS = 2.0
ENTRY = 4  # values in a line of the index: path, size, time, and the row or what is wrong


class Stored(NamedTuple):
    """The pictures of a folder as they are stored.

    Attributes:
        folder: Where they are.
        pixels: uint8 of shape (rows, C, H, W), mapped; it must not be written to.
        rows: int64 of shape (N,), where the pixels of each picture are; -1 if it is broken.
        problems: What is wrong with the broken ones, by path.
    """

    folder: Path
    pixels: torch.Tensor
    rows: torch.Tensor
    problems: dict[str, str]


def store_pictures(
    root: Path, part: str, files: Sequence[PictureFile], image_shape: Sequence[int], fit: Fit
) -> Stored:
    """Decode the pictures that are not stored yet, and map all of them.

    Many processes may call it at once: one decodes, and the others wait.

    Args:
        root: The folder of the pictures.
        part: The tree below it, which has a store of its own.
        files: The pictures.
        image_shape: Channels (1 or 3), height and width that they get.
        fit: What happens to a picture of another aspect.

    Raises:
        InputError: The pictures cannot be stored.
    """
    key = [VERSION, str(root.resolve()), part, list(image_shape), fit.value]
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
    folder = cache_folder() / "pictures" / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_patiently(folder / ".lock"):
            store = _Store(
                folder, Job(str(root.resolve()), str(folder / "pixels"), image_shape, fit.value)
            )
            store.add(files)
            return store.map(files)
    except OSError as error:
        raise cannot_store(folder, error) from error


class _Store:
    """The two files of a store; the caller has its lock.

    Args:
        folder: Where they are.
        job: Tells what is decoded into them.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self._pixels, self._index = folder / "pixels", folder / "index.jsonl"
        self._folder, self._job = folder, job
        self._row_bytes = prod(job.image_shape)
        self._entries = self._read()

    def _read(self) -> dict[PictureFile, int | str]:
        """Return the row of each picture, or what is wrong with it; nothing if there is damage."""
        entries: dict[PictureFile, int | str] = {}
        try:
            for path, size, changed, found in _read_lines(self._index):
                entries[PictureFile(path, size, changed)] = found
            is_whole = self._pixels.stat().st_size >= self._row_bytes * _end(entries)
        except FileNotFoundError:
            is_whole = False
        return entries if is_whole else {}

    def add(self, files: Sequence[PictureFile]) -> None:
        """Decode the pictures that are not stored."""
        if not self._entries or _end(self._entries) > 2 * len(files) + 1000:
            self._begin()  # with the first one, or without many old ones
        new = [file for file in files if file not in self._entries]
        if not new:
            return
        logger.info(
            "decoding %d of %d pictures in %s, once", len(new), len(files), self._job.folder
        )
        first = _end(self._entries)
        rows = [(first + place, file.path) for place, file in enumerate(new)]
        with self._index.open("ab") as index, self._pixels.open("ab") as pixels:
            index.write(b"\n")  # ends a line that was cut off
            if pixels.tell() < self._row_bytes * (first + len(new)):
                os.truncate(pixels.fileno(), self._row_bytes * (first + len(new)))
            for decoded in _by_time(decode_all(self._job, rows)):
                sync(pixels.fileno())
                entries = {new[row - first]: _entry(row, problem) for row, problem in decoded}
                self._entries |= entries
                lasting = [row for row, problem in decoded if not (problem and problem.may_change)]
                lines = [[*new[row - first], entries[new[row - first]]] for row in lasting]
                index.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
                index.flush()
                sync(index.fileno())

    def _begin(self) -> None:
        """Empty the store; processes that have mapped the old file keep it."""
        for path in self._folder.iterdir():
            if not path.name.startswith("."):
                path.unlink()
        self._entries = {}
        self._pixels.touch()

    def map(self, files: Sequence[PictureFile]) -> Stored:
        """Return the pictures; all of them must have been added."""
        found = [self._entries[file] for file in files]
        rows = torch.tensor([row if isinstance(row, int) else -1 for row in found])
        shape = (max(1, _end(self._entries)), *self._job.image_shape)
        if self._pixels.stat().st_size < prod(shape):  # every picture is broken
            os.truncate(self._pixels, prod(shape))
        pixels = map_pixels(self._pixels, shape)
        problems = {
            file.path: entry
            for file, entry in zip(files, found, strict=True)
            if isinstance(entry, str)
        }
        return Stored(self._folder, pixels, rows, problems)


def _read_lines(path: Path) -> list[Any]:
    """Return the values of JSON lines, without those that were cut off."""
    lines = [line for line in path.read_bytes().splitlines() if line]
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")  # far quicker than one by one
    except ValueError:
        values = map(_value, lines)
    return [value for value in values if isinstance(value, list) and len(value) == ENTRY]


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _end(entries: dict[PictureFile, int | str]) -> int:
    return max((row for row in entries.values() if isinstance(row, int)), default=-1) + 1


def _entry(row: int, problem: Problem | None) -> int | str:
    return row if problem is None else problem.reason


def _by_time(parts: Iterator[list[Any]]) -> Iterator[list[Any]]:
    """Join what comes within a few seconds, since putting it on the disk takes a while."""
    joined: list[Any] = []
    since = time.monotonic()
    for part in parts:
        joined += part
        if time.monotonic() - since > SECONDS_BETWEEN_SYNCS:
            yield joined
            joined, since = [], time.monotonic()
    if joined:
        yield joined
