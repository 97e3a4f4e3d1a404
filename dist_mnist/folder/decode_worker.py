"""Decodes pictures into a file, in a process of its own.

It is started as `python -m dist_mnist.folder.decode_worker`.

It reads JSON lines, first a `Job`, then lists of rows and paths, and answers each list with a list
of what is wrong with each picture. Imports no torch, so it starts in a fraction of a second.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from dist_mnist.config.data_schema import Fit
from dist_mnist.config.errors import InputError
from dist_mnist.data.decode import read_picture
from dist_mnist.data.fitting import fit_picture

MOST_BYTES = 2**30  # of a file; no picture of 64 million pixels has more

# A row of the file, and the path of its picture.
Rows = Sequence[tuple[int, str]]


class Job(NamedTuple):
    """The place of the pictures, and of the file for their pixels.

    Attributes:
        folder: The pictures' folder.
        pixels: The file, a row of bytes for each picture.
        image_shape: Channels, height and width of a row.
        fit: What happens to a picture of another aspect.
    """

    folder: str
    pixels: str
    image_shape: Sequence[int]
    fit: str


class Problem(NamedTuple):
    """A fault of a picture, and whether it may go away while the file stays the same."""

    reason: str
    may_change: bool


def decode(job: Job, rows: Rows) -> list[Problem | None]:
    """Decode pictures into their rows; return what is wrong with each, or None.

    Raises:
        OSError: The pixels cannot be written.
    """
    descriptor = os.open(job.pixels, os.O_WRONLY)
    try:
        return [_decode(job, descriptor, row, path) for row, path in rows]
    finally:
        os.close(descriptor)


def _decode(job: Job, descriptor: int, row: int, path: str) -> Problem | None:
    try:
        content = _read(os.path.join(job.folder, path))  # noqa: PTH118 - the fastest of its kind
    except OSError as error:
        return Problem(f"it cannot be read: {error.strerror or error}", True)
    try:
        picture = read_picture(content, name="it")
        pixels = fit_picture(picture, job.image_shape, Fit(job.fit)).tobytes()
    except InputError as error:
        return Problem(str(error).rstrip("."), isinstance(error.__cause__, MemoryError))
    except MemoryError:
        return Problem("there is not enough memory to decode it", True)
    written = 0
    while written < len(pixels):  # a disk that is nearly full takes only a part
        place = row * len(pixels) + written
        written += os.pwrite(descriptor, pixels[written:], place)
    return None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise OSError(0, f"it has more than {MOST_BYTES:,} bytes")
        return file.read()


def main() -> None:
    """Answer until there is nothing more to read."""
    job = Job(*json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        try:
            answer: object = decode(job, json.loads(line))
        except OSError as error:
            answer = {"errno": error.errno, "reason": error.strerror}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
