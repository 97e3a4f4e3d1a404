"""The starts of a run, `starts.jsonl`: when and where each began and ended, and its command.

The journal has the same bits however often a run was interrupted; this file records it.
"""

import json
import os
import platform
import shlex
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from dist_mnist.config import __version__

LIBRARIES = ("torch", "torchvision", "hydra-core", "wandb")


def note_start(run_dir: Path, step: int, description: str, processes: int) -> None:
    """Add the line of a start; if it cannot be written, the run goes on.

    Call it before anything is written to the journal, whose time is the last sign of life of a
    killed start.
    """
    _append(
        run_dir,
        {
            "event": "start",
            "time": round(time.time(), 3),
            "step": step,
            "command": _command(),
            "description": description,
            "machine": {**_machine(), "processes": processes},
            "versions": _versions(),
            "journal_time": _last_sign_of_life(run_dir),
        },
    )


def note_end(run_dir: Path, step: int, reason: str) -> None:
    """Add the line of an end.

    Args:
        reason: `finished`, `stopped by SIGNAL`, or the error.
    """
    line = {"event": "end", "time": round(time.time(), 3), "step": step, "reason": reason}
    _append(run_dir, line)


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines that can be read, the oldest first; none for a run without the file."""
    try:
        text = (run_dir / "starts.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for row in text.splitlines():
        with suppress(ValueError, RecursionError):  # a kill may have cut the last one off
            line = json.loads(row)
            if isinstance(line, dict) and isinstance(line.get("time"), float):
                lines.append(line)
    return lines


def _append(run_dir: Path, line: dict[str, Any]) -> None:
    with suppress(OSError), (run_dir / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _last_sign_of_life(run_dir: Path) -> float | None:
    """Return when the journal was last written to; a killed start has no end line."""
    try:
        return round((run_dir / "metrics.jsonl").stat().st_mtime, 3)
    except OSError:
        return None


def _command() -> str:
    """Return the command line, with program names instead of paths."""
    words = (_torchrun_command() if "TORCHELASTIC_RUN_ID" in os.environ else []) or sys.orig_argv
    if len(words) > 1 and Path(words[1]).is_absolute():  # an interpreter and its script
        words = words[1:]
    return shlex.join([Path(words[0]).name, *words[1:]])


def _torchrun_command() -> list[str]:
    """Return the command line of this process's parent; empty where it is unknown."""
    with suppress(OSError):
        text = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().rstrip(b"\0")
        return text.decode(errors="replace").split("\0")
    return []


def _machine() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": _gpu(),
    }


def _processor() -> str:
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for row in file:
            if row.startswith("model name"):
                return row.partition(":")[2].strip()
    return platform.machine()


def _gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _versions() -> dict[str, str]:
    found = {"dist_mnist": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
