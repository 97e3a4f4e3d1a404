"""Checkpoints: written whole or not at all, read as data and never as code.

A run keeps `checkpoints/last.pt`, `checkpoints/best.pt` and its newest `checkpoints/step-<n>.pt`.
"""

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dist_mnist.errors import InputError

logger = logging.getLogger(__name__)

CONTENT = ("model", "optimizer", "scaler", "progress", "config", "normalization", "classes")


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
    try:
        folder.mkdir(exist_ok=True)
        # The best one first: the others tell the score that it must live up to.
        for name in (*(["best.pt"] if is_best else []), f"step-{step}.pt", "last.pt"):
            _write_atomically(folder / name, buffer.getbuffer())
        # Later steps than this one are left over from before the run was set back.
        done = [path for path in _numbered(folder) if _step(path) <= step]
        for path in set(_numbered(folder)) - set(done[:keep]):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the checkpoint of step {step} cannot be written: {error}.") from error


def _write_atomically(path: Path, content: memoryview) -> None:
    """Replace a file so that a crash at any instant leaves the old content or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name itself must survive a power cut
        descriptor = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _numbered(folder: Path) -> list[Path]:
    """Return the `step-<n>.pt` files, the newest first."""
    found = [path for path in folder.glob("step-*.pt") if path.stem[5:].isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem[5:])


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running nothing that is in it.

    Raises:
        InputError: The file is missing, damaged, or something else than a checkpoint of ours.
    """
    if path.is_dir():
        raise InputError(f"{path} holds no checkpoint yet: neither best.pt nor last.pt is there.")
    if not path.is_file():
        raise InputError(f"{path} is no checkpoint: there is no such file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whose own message would advise to load it without this safeguard
        raise InputError(f"{path} is damaged or no checkpoint ({type(error).__name__}).") from error
    if not isinstance(content, dict) or any(key not in content for key in CONTENT):
        raise InputError(f"{path} is no checkpoint of dist_mnist: it lacks {', '.join(CONTENT)}.")
    return content


def newest(run_dir: Path) -> dict[str, Any] | None:
    """Return the newest checkpoint that can be read, or None where there is none at all.

    Raises:
        InputError: There are checkpoints, and every one of them is damaged.
    """
    damaged = None
    for path in _candidates(run_dir / "checkpoints"):
        try:
            return load(path)
        except InputError as error:
            logger.warning("%s Trying the one before it.", error)
            damaged = error
    if damaged:
        raise InputError(f"no checkpoint in {run_dir} can be read; the oldest: {damaged}")
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    if (folder / "last.pt").exists():
        yield folder / "last.pt"
    yield from _numbered(folder)


def resolve(path: Path) -> Path:
    """Return the checkpoint file that a run directory, or a path to a file, stands for."""
    if not path.is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    return next((folder / n for n in ("best.pt", "last.pt") if (folder / n).exists()), folder)
