"""Checkpoints: safetensors files that are written whole or not at all, and checked when read.

A run keeps `checkpoints/last.safetensors`, `best.safetensors` and its newest
`step-<n>.safetensors`. Each is a file of its own: links would save a millisecond, but then one
damaged file would take the others with it.

The weights are named `model.<parameter>`, so `safetensors.torch.load_file` is enough to read them.
Everything that is not a tensor is one JSON text in the header, and a checksum covers the whole
file. Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import logging
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from dist_mnist.config.errors import InputError
from dist_mnist.config.overrides import in_home
from dist_mnist.record.files import cannot_write, write_atomically

logger = logging.getLogger(__name__)

# The parts that every checkpoint has.
PARTS = {
    "model": dict,
    "optimizer": dict,
    "scaler": dict,
    "progress": dict,
    "config": dict,
    "normalization": dict,
    "data": dict,
    "cpu": dict,
    "classes": list,
}
HEADER_SIZE = struct.Struct("<Q")
TENSOR = "tensor in this file"  # the key that stands for a tensor in the JSON text
CHECKSUM = '"checksum":"{}"'  # in the header; JSON text in other fields has its quotes escaped
NO_CHECKSUM = "0" * 64  # in the place of the checksum while it is computed


def save(run_dir: Path, content: dict[str, Any], step: int, is_best: bool, keep: int) -> None:
    """Write a checkpoint as the newest and the last one, and as the best one if it is.

    Args:
        content: Tensors and plain values, with at least the keys `PARTS`.
        step: The number of optimizer steps done.
        keep: The number of newest `step-<n>.safetensors` to keep.

    Raises:
        InputError: The checkpoint cannot be written; the earlier ones are untouched.
    """
    folder = run_dir / "checkpoints"
    encoded = encode(content)
    # After a crash here, the run continues from last.safetensors. So best.safetensors is written
    # first: last.safetensors contains the score that it must match.
    names = (*(["best"] if is_best else []), "last", f"step-{step}")
    try:
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.tmp"):  # left by a kill; they may fill the disk
            leftover.unlink(missing_ok=True)
        for name in names:
            write_atomically(folder / f"{name}.safetensors", encoded)
        # Later steps are left over from before the run was set back.
        earlier = [path for path in _numbered(folder) if _step(path) <= step]
        for path in set(_numbered(folder)) - set(earlier[:keep]):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _numbered(folder: Path) -> list[Path]:
    """Return the `step-<n>.safetensors` files, the newest first."""
    found = [path for path in folder.glob("step-*.safetensors") if path.stem[5:].isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem[5:])


def encode(content: dict[str, Any]) -> bytes:
    """Return the bytes of a checkpoint file."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps({key: _take_tensors(value, key, tensors) for key, value in content.items()})
    metadata = {"format": "pt", "dist_mnist": text, "checksum": NO_CHECKSUM}
    encoded = to_safetensors(tensors, metadata)
    return _replace_checksum(encoded, NO_CHECKSUM, hashlib.sha256(encoded).hexdigest())


def _replace_checksum(encoded: bytes, old: str, new: str) -> bytes:
    return encoded.replace(CHECKSUM.format(old).encode(), CHECKSUM.format(new).encode(), 1)


def _take_tensors(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a value for JSON, its tensors moved into `tensors` and replaced by their names."""
    if isinstance(value, torch.Tensor):
        # A copy, since safetensors refuses tied weights, which share their memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {TENSOR: name}
    if isinstance(value, dict):
        return {str(k): _take_tensors(part, f"{name}.{k}", tensors) for k, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_tensors(part, f"{name}.{i}", tensors) for i, part in enumerate(value)]
    return value


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Returns:
        Tensors and plain values in plain containers, with at least the keys `PARTS`.

    Raises:
        InputError: The file is missing, damaged, or not a checkpoint.
    """
    if path.is_dir():
        raise InputError(f"{path} holds no checkpoint: best and last.safetensors are missing.")
    try:
        encoded = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a run directory or a checkpoint.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        content = _decode(encoded)
    except (Exception, RecursionError) as error:  # a file from elsewhere may hold anything
        reason = type(error).__name__ if not isinstance(error, InputError) else str(error)
        raise InputError(f"{path} is damaged or not a checkpoint ({reason}).") from error
    for key, kind in PARTS.items():
        if not isinstance(content.get(key), kind):
            raise InputError(f"{path} is not a checkpoint of dist_mnist: it has no {key}.")
    return content


def _decode(encoded: bytes) -> dict[str, Any]:
    (header_size,) = HEADER_SIZE.unpack_from(encoded)
    header = encoded[HEADER_SIZE.size : HEADER_SIZE.size + header_size]
    metadata = json.loads(header)["__metadata__"]
    checksum = metadata["checksum"]
    unsigned = _replace_checksum(encoded, checksum, NO_CHECKSUM)
    if hashlib.sha256(unsigned).hexdigest() != checksum:
        raise InputError("its checksum is wrong")
    content = _put_tensors(json.loads(metadata["dist_mnist"]), from_safetensors(encoded))
    optimizer = content.get("optimizer", {})
    if "state" in optimizer:  # JSON turned the parameter numbers into strings
        optimizer["state"] = {int(key): value for key, value in optimizer["state"].items()}
    return content  # type: ignore[no-any-return]


def _put_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a value with the tensors back in their places: the reverse of `_take_tensors`."""
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        return {key: _put_tensors(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_put_tensors(part, tensors) for part in value]
    return value


def newest(run_dir: Path) -> dict[str, Any] | None:
    """Return the newest checkpoint that can be read, or None if there are none.

    That is last.safetensors if it is intact, even if there are later ones beside it.

    Raises:
        InputError: There are checkpoints, and all of them are damaged.
    """
    damaged, folder = None, run_dir / "checkpoints"
    paths = (folder / "last.safetensors", *_numbered(folder), folder / "best.safetensors")
    for path in filter(Path.exists, paths):
        try:
            content = load(path)
        except InputError as error:
            logger.warning("%s Trying another one.", error)
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


def resolve(path: Path) -> Path:
    """Return the checkpoint file that a path stands for: a run directory's best, or itself."""
    path = Path(in_home(str(path)))
    if not path.is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    names = ("best.safetensors", "last.safetensors")
    return next((folder / name for name in names if (folder / name).exists()), folder)


def latest_run(parent: Path = Path("outputs")) -> Path:
    """Return the run under a folder whose last checkpoint is the newest.

    Raises:
        InputError: There is none.
    """
    saved = list(parent.glob("*/checkpoints/last.safetensors"))
    if not saved:
        raise InputError(f"there is no run under {parent.absolute()}: train one, or name another.")
    return max(saved, key=lambda path: path.stat().st_mtime).parents[1]
