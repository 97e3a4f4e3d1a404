"""Pictures that deserve a second look: copies in several places, and pictures without contrast."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from dist_mnist.data.cache import fingerprint, remember
from dist_mnist.data.mapped import BLOCK_BYTES, MappedImages
from dist_mnist.folder.files import PictureFile, printable

logger = logging.getLogger(__name__)

LEVELS = 16  # of 255, between the darkest and the brightest pixel: as with 12 bits in 16


def log_copies(root: Path, cache: Path, places: Mapping[PictureFile, tuple[bool, str]]) -> None:
    """Name pictures that are in two parts or in two classes, with the same bytes.

    Args:
        cache: A folder that remembers the copies.
        places: Whether each picture is trained on, and its class.
    """
    files = sorted(places)
    path = cache / f"copies-{fingerprint(repr(files).encode(errors='replace'))}.json"
    groups = remember(path, lambda: _find_copies(root, files))
    by_path = {file.path: place for file, place in places.items()}
    for kind, where in enumerate(("in the training set and in the test set", "in two classes")):
        found = [group for group in groups if len({by_path[path][kind] for path in group}) > 1]
        if found:
            first = found[0][0]
            other = next(path for path in found[0] if by_path[path][kind] != by_path[first][kind])
            logger.warning(
                "%s: %d pictures are %s, such as %s and %s",
                *(root, len(found), where, printable(first), printable(other)),
            )


def _find_copies(root: Path, files: Sequence[PictureFile]) -> list[list[str]]:
    """Return the paths of each group of files with the same bytes."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for file in files:
        by_size[file.size].append(file.path)
    by_content: dict[bytes, list[str]] = defaultdict(list)
    for paths in by_size.values():
        for path in paths if len(paths) > 1 else ():
            with suppress(OSError):  # decoding has reported it
                by_content[hashlib.sha256((root / path).read_bytes()).digest()].append(path)
    return [group for group in by_content.values() if len(group) > 1]


def log_faint(root: Path, cache: Path, samples: MappedImages, files: Sequence[PictureFile]) -> None:
    """Name pictures that decoded to nearly one value, as if all of them were black.

    Args:
        cache: A folder that remembers them.
        files: The file of each sample.
    """
    name = f"faint-{fingerprint(samples.rows.numpy().tobytes())}.json"
    faint = remember(cache / name, lambda: _faint(samples))
    if faint:
        logger.warning(
            "%s: %d of %d pictures have hardly any contrast (at most %d of 255 levels), such as "
            "%s; if its file has more than 8 bits and does not say which value is white, convert "
            "it to 8 bits",
            *(root, len(faint), len(samples), LEVELS, printable(files[faint[0]].path)),
        )


def _faint(samples: MappedImages) -> list[int]:
    faint: list[int] = []
    block = max(1, BLOCK_BYTES // samples.stored[0].numel())
    for places in torch.arange(len(samples)).split(block):
        pixels = samples[places][0].flatten(1)
        span = pixels.amax(1).int() - pixels.amin(1).int()
        faint += places[span <= LEVELS].tolist()
    return faint
