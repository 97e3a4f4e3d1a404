"""Decodes many pictures at once, in threads.

Pillow releases the GIL while it decodes and resizes, which is nine tenths of the work for a photo.
"""

import os
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dist_mnist.config.data_schema import Fit
from dist_mnist.config.errors import InputError
from dist_mnist.data.decode import read_picture
from dist_mnist.data.fitting import fit_picture

ROWS_AT_ONCE = 32
MOST_BYTES = 2**30  # of a file; a picture of 64 million pixels has fewer


class Problem(NamedTuple):
    """A fault of a picture, and whether it may go away while the file stays the same."""

    reason: str
    may_change: bool


Decoded = list[tuple[int, Problem | None]]


def decode_all(
    root: Path,
    rows: Sequence[tuple[int, str]],
    image_shape: Sequence[int],
    fit: Fit,
    descriptor: int,
    threads: int,
) -> Generator[Decoded, None, None]:
    """Decode pictures into a file and yield their rows and problems, with a progress bar.

    Close the generator to stop its threads; each finishes the picture that it is decoding.

    Args:
        rows: The row of each picture in the file, and its path below the folder.
        image_shape: Channels (1 or 3), height and width of a row.
        fit: The treatment of a picture of another aspect.
        descriptor: The file, open for writing at any place.

    Raises:
        OSError: The file cannot be written.
    """
    stopping = Event()

    def decode_some(piece: Sequence[tuple[int, str]]) -> Decoded:
        decoded: Decoded = []
        for row, path in piece:
            if stopping.is_set():
                break
            made = decode_picture(root / path, image_shape, fit)
            problem = made if isinstance(made, Problem) else None
            if not isinstance(made, Problem):
                _write(descriptor, row * made.nbytes, made.tobytes())
            decoded.append((row, problem))
        return decoded

    pieces = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    pool = ThreadPoolExecutor(threads, "decoding")
    try:
        with tqdm(
            total=len(rows),
            desc="decoding pictures",
            unit="",
            leave=False,
            disable=not sys.stderr.isatty(),
        ) as bar:
            for future in as_completed([pool.submit(decode_some, piece) for piece in pieces]):
                decoded = future.result()
                bar.update(len(decoded))
                yield decoded
    finally:
        stopping.set()
        pool.shutdown(cancel_futures=True)


def decode_picture(path: Path, image_shape: Sequence[int], fit: Fit) -> NDArray[np.uint8] | Problem:
    """Return a picture as uint8 of shape (channels, height, width), or why it cannot be used."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                return Problem(f"it has more than {MOST_BYTES:,} bytes", False)
            content = file.read()
    except OSError as error:
        return Problem(f"it cannot be read: {error.strerror or error}", True)
    try:
        return fit_picture(read_picture(content, name="it"), image_shape, fit)
    except InputError as error:
        return Problem(str(error).rstrip("."), isinstance(error.__cause__, MemoryError))
    except MemoryError:
        return Problem("there is not enough memory to decode it", True)


def _write(descriptor: int, place: int, content: bytes) -> None:
    while content:  # a disk that is nearly full takes only a part
        written = os.pwrite(descriptor, content, place)
        place, content = place + written, content[written:]
