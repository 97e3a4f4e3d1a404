"""Files in MNIST's own format (idx), recognized by their content, however they are packed.

An idx file is four bytes (0, 0, the kind of number, the number of dimensions), then each dimension
as a big-endian uint32, then the numbers.
"""

import gzip
import hashlib
import lzma
import math
import re
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from dist_mnist.record.files import FULL_DISK

# Such as train-images-idx3-ubyte, or train-images.idx3-ubyte.gz as some mirrors have it.
NAME = re.compile(r"(.+)[-.]idx([123])-(ubyte|int)(|\.gz|\.xz)")
KINDS = {"ubyte": (8, 1), "int": (12, 4)}  # the code in the header, and the bytes of a number
OPENERS: dict[str, Any] = {"": Path.open, ".gz": gzip.open, ".xz": lzma.open}
MOST_BYTES = 2**31  # the largest file of the family has 0.6 GB
PIECE_BYTES = 2**20


def unpack_idx_files(source: Path, target: Path, part: str, not_these: Collection[str]) -> None:
    """Unpack the idx files of a folder into another one, under the names that torchvision knows.

    Left out are damaged files, files that the target has already, and files of other data sets.

    Args:
        source: The folder; its subfolders are not searched.
        target: Created if there is anything to put into it.
        part: Only files with this in their names.
        not_these: The SHA-256 of unpacked files that belong to other data sets.

    Raises:
        OSError: The disk is full.
    """
    for path in sorted(source.glob("*-*")):
        match = NAME.fullmatch(path.name)
        if not (match and part in match[1] and path.is_file()):
            continue
        stem, dimensions, kind, suffix = match.groups()
        place = target / f"{stem}-idx{dimensions}-{kind}"
        if place.exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        checksum = None
        try:
            with OPENERS[suffix](path, "rb") as packed, place.open("wb") as file:
                checksum = _copy_idx(packed, file, int(dimensions), *KINDS[kind])
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            if getattr(error, "errno", None) in FULL_DISK:
                raise
        if checksum is None or checksum in not_these:
            place.unlink(missing_ok=True)


def _copy_idx(
    source: IO[bytes], target: IO[bytes], dimensions: int, code: int, item_bytes: int
) -> str | None:
    """Copy an idx file; return its SHA-256, or None if it is shorter or longer than it says."""
    header = source.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, code, dimensions]):
        return None
    left: int = math.prod(struct.unpack(f">{dimensions}I", header[4:])) * item_bytes
    if left > MOST_BYTES:
        return None
    target.write(header)
    digest = hashlib.sha256(header)
    while piece := source.read(min(PIECE_BYTES, left + 1)):
        left -= len(piece)
        if left < 0:
            return None
        target.write(piece)
        digest.update(piece)
    return digest.hexdigest() if left == 0 else None
