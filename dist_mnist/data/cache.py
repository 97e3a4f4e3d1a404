"""The cache folder: it holds files made from a user's data, which can be made again."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_mnist.config.errors import InputError
from dist_mnist.record.files import cannot_write, write_atomically

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder: `$XDG_CACHE_HOME/dist_mnist`, or `~/.cache/dist_mnist`.

    Raises:
        InputError: There is no home folder either.
    """
    try:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise InputError("there is no home folder: set XDG_CACHE_HOME to a folder.") from None
    return parent / "dist_mnist"


def cannot_store(folder: Path, error: OSError) -> InputError:
    """Return the sentence for a cache that the system refuses to write."""
    reason = str(cannot_write(folder, error)).partition(";")[0].rstrip(".")
    return InputError(f"{reason}; set XDG_CACHE_HOME to another folder for decoded images.")


def fingerprint(content: bytes) -> str:
    """Return a short name for content, the same for the same content only."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def remember(path: Path, compute: Callable[[], Any]) -> Any:
    """Return the value in a JSON file, or compute it and write it there if that is possible.

    The value must be of lists, dicts, numbers and text; a damaged file is replaced.
    """
    try:
        digest, value = json.loads(path.read_bytes())
        if digest == fingerprint(json.dumps(value).encode()):
            return value
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    value = compute()
    digest = fingerprint(json.dumps(value).encode())
    try:
        write_atomically(path, json.dumps([digest, value]).encode())
    except InputError as error:
        logger.debug("%s", error)
    return value
