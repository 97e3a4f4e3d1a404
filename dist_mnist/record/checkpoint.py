"""Checkpoints: written whole or not at all, read as data and never as code.

A run keeps `checkpoints/last.pt`, `checkpoints/best.pt` and its newest `checkpoints/step-<n>.pt`.
Each is a file of its own: links would save a millisecond, and one damage would strike them all.
"""

import io
import logging
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dist_mnist.config.errors import InputError
from dist_mnist.record.files import cannot_write, write_atomically

logger = logging.getLogger(__name__)

CONTENT = {
    "model": dict,
    "optimizer": dict,
    "scaler": dict,
    "progress": dict,
    "config": dict,
    "normalization": dict,
    "classes": list,
}
WITH_TENSORS = ("model", "optimizer")
NAMES_IN_PICKLES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v[23]|torch\.storage UntypedStorage"
    r"|torch (\w+Storage|[a-z]+\d\w*)"
)
PLAIN_TYPES = (type(None), bool, int, float, str)
DEEPEST_NESTING = 50  # of containers in containers; ours have seven


def save(run_dir: Path, content: dict[str, Any], step: int, is_best: bool, keep: int) -> None:
    """Write a checkpoint as the newest and the last one, and as the best one if it is.

    Args:
        run_dir: The run's directory.
        content: Tensors and plain values, with at least the keys `CONTENT`.
        step: The number of optimizer steps done.
        is_best: Whether to replace best.pt too.
        keep: How many `step-<n>.pt` to keep, the newest.

    Raises:
        InputError: It cannot be written; the checkpoints before it are untouched.
    """
    folder = run_dir / "checkpoints"
    buffer = io.BytesIO()
    torch.save(content, buffer)
    # Whenever this is cut off, the run goes on from last.pt as if nothing of a later step were
    # there. So best.pt comes before it: last.pt tells the score that the best one must live up to.
    names = (*(["best.pt"] if is_best else []), "last.pt", f"step-{step}.pt")
    try:
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.tmp"):  # by a kill; it may be what fills the disk
            leftover.unlink(missing_ok=True)
        for name in names:
            write_atomically(folder / name, buffer.getbuffer())
        # Later steps than this one are left over from before the run was set back.
        done = [path for path in _numbered(folder) if _step(path) <= step]
        for path in set(_numbered(folder)) - set(done[:keep]):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def write(path: Path, content: dict[str, Any]) -> None:
    """Write one file that `load` can read.

    Raises:
        InputError: It cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def _numbered(folder: Path) -> list[Path]:
    """Return the `step-<n>.pt` files, the newest first."""
    found = [path for path in folder.glob("step-*.pt") if path.stem[5:].isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem[5:])


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running nothing that is in it.

    Returns:
        Tensors and plain values in plain containers, with at least the keys `CONTENT`.

    Raises:
        InputError: The file is missing, damaged, or something else than a checkpoint of ours.
    """
    if path.is_dir():
        raise InputError(f"{path} holds no checkpoint yet: neither best.pt nor last.pt is there.")
    if not path.is_file():
        raise InputError(f"{path} is no checkpoint: there is no such file.")
    try:
        archive = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        records = _read_records(archive)
        for name, record in records.items():
            if name.lower().endswith("data.pkl"):  # torch does not mind the case
                _check_names(record)
        content: dict[str, Any] = torch.load(
            _as_archive(records), map_location="cpu", weights_only=True
        )
        sizes = {len(record) for record in records.values()}
        _check_values(content, len(archive), sizes)
        for key in CONTENT.keys() & content.keys() - {*WITH_TENSORS}:
            _check_values(content[key], len(archive), None)
    except Exception as error:  # whose own message would advise to load it without this safeguard
        raise InputError(f"{path} is damaged or no checkpoint ({type(error).__name__}).") from error
    if any(key not in content for key in CONTENT):
        raise InputError(f"{path} is no checkpoint of dist_mnist: it lacks {', '.join(CONTENT)}.")
    for key, kind in CONTENT.items():
        if not isinstance(content[key], kind):
            raise InputError(
                f"{path} is no checkpoint of dist_mnist: its {key} is no {kind.__name__}."
            )
    return content


def _read_records(content: bytes) -> dict[str, bytes]:
    """Return what is in an archive, verified: torch itself does not look at the checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = archive.infolist()
        # torch packs nothing. What is packed, or there twice, could be larger than the memory.
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise zipfile.BadZipFile("a record is packed")
        if sum(record.file_size for record in records) > len(content):
            raise zipfile.BadZipFile("the records are larger than the file")
        return {record.filename: archive.read(record) for record in records}


def _check_names(pickled: bytes) -> None:
    """Raise an error where a pickle names anything else than tensors are made of.

    torch lets it run no code. Yet among what it lets it call is `bytearray`, with any size.
    """
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not NAMES_IN_PICKLES.fullmatch(str(argument)):
            raise ValueError(f"a pickle that names {argument}")


def _as_archive(records: dict[str, bytes]) -> io.BytesIO:
    """Return an archive of the records, so that torch reads what was verified and nothing else.

    In the bytes of the file it might find other records than Python's reader did, or none and take
    it for one of the older formats.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, record in records.items():
            archive.writestr(zipfile.ZipInfo(name), record)
    buffer.seek(0)
    return buffer


def _check_values(content: object, most: int, record_sizes: set[int] | None) -> None:
    """Raise an error unless all is plain, not deeper than needed and no larger than it claims.

    Args:
        content: What was loaded.
        most: The most values that the file can hold: it needs a byte for each. A few containers
            that hold each other many times over would have no end.
        record_sizes: The sizes of the file's records in bytes, one of which a tensor uses; None
            where there may be no tensor.
    """
    waiting: list[tuple[Any, int]] = [(content, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > most or depth > DEEPEST_NESTING:
            raise ValueError("it holds itself")
        inner: list[object] = []
        if type(value) in (dict, OrderedDict):
            attributes = getattr(value, "__dict__", {})  # torch notes its version there
            if attributes.keys() - {"_metadata"}:
                raise TypeError("a dict with attributes")
            inner = [*value, *value.values(), *attributes.values()]
        elif type(value) in (list, tuple):
            inner = [*value]
        elif type(value) is torch.Tensor and record_sizes is not None:
            _check_tensor(value, record_sizes)
        elif type(value) not in PLAIN_TYPES:
            raise TypeError(f"a value of {type(value)}")
        waiting += [(part, depth + 1) for part in inner]


def _check_tensor(tensor: torch.Tensor, record_sizes: set[int]) -> None:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or vars(tensor):
        raise TypeError("a tensor of another kind")
    stored = tensor.untyped_storage().nbytes()
    # Not every torch compares them, and a view can repeat the same bytes without end.
    if tensor.nbytes > stored or stored not in record_sizes | {0}:
        raise ValueError("a tensor that is larger than what is stored of it")


def newest(run_dir: Path) -> dict[str, Any] | None:
    """Return the newest checkpoint that can be read, or None where there is none at all.

    That is last.pt wherever it is whole, even if there are later ones beside it.

    Raises:
        InputError: There are checkpoints, and every one of them is damaged.
    """
    damaged = None
    for path in _candidates(run_dir / "checkpoints"):
        try:
            content = load(path)
        except InputError as error:
            logger.warning("%s Trying another.", error)
            damaged = error
        else:
            if damaged:
                logger.warning("Continuing from %s.", path)
            return content
    if damaged:
        raise InputError(
            f"no checkpoint in {run_dir} can be read ({damaged}): put a good one back, or choose a "
            f"new run_dir."
        )
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    paths = [folder / "last.pt", *_numbered(folder), folder / "best.pt"]
    return (path for path in paths if path.exists())


def resolve(path: Path) -> Path:
    """Return the checkpoint file that a run directory, or a path to a file, stands for."""
    if not path.is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    return next((folder / n for n in ("best.pt", "last.pt") if (folder / n).exists()), folder)
