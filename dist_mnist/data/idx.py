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
KINDS = {"ubyte": (8, 1), "int": (12, 4)}  # its code in the header, and its bytes
OPENERS: dict[str, Any] = {"": Path.open, ".gz": gzip.open, ".xz": lzma.open}
MOST_BYTES = 2**31  # the largest file of the family has 0.6 GB
PIECE_BYTES = 2**20


def unpack_idx_files(
    source: Path, target: Path, part: str = "", not_these: Collection[str] = ()
) -> None:
    """Unpack the idx files of a folder into another one, under the names that torchvision knows.

    Files whose content is not what their name and header promise are left out, as are those that
    the target has already, and those of other data sets.

    Args:
        source: The folder; its subfolders are not searched.
        target: The other folder; created if there is anything to put into it.
        part: Only files with this in their names.
        not_these: The SHA-256 of unpacked files that belong to other data sets.

    Raises:
        OSError: The disk is full.
    """
    for path in sorted(source.glob("*-*")):
        match = NAME.fullmatch(path.name)
        if match and part in match[1] and path.is_file():
            place = target / f"{match[1]}-idx{match[2]}-{match[3]}"
            if not place.exists():
                _unpack(path, place, match, not_these)


def _unpack(path: Path, place: Path, match: re.Match[str], not_these: Collection[str]) -> None:
    partial = place.with_name(f"{place.name}.partial")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with OPENERS[match[4]](path, "rb") as source, partial.open("wb") as file:
            checksum = _copy_idx(source, file, int(match[2]), *KINDS[match[3]])
        if checksum is not None and checksum not in not_these:
            partial.replace(place)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None) in FULL_DISK:
            raise
    finally:
        partial.unlink(missing_ok=True)


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
