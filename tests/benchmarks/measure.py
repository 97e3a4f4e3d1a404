"""What all benchmarks share: programs run in turn, medians with their spread, and a record."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "lightning", "accelerate", "pytorch-ignite", "hydra-core")


@dataclass(frozen=True)
class Spread:
    """A figure that was measured several times: its median, least and greatest value."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise what was measured."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.greatest:.3g})"


def in_turn(
    contenders: Mapping[str, Callable[[], dict[str, Any]]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Run every contender once a round, A B A B, so that a slow minute strikes all of them.

    Returns:
        What each contender's runs returned, in order of the rounds.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            results[name].append(run())
            seconds = time.perf_counter() - started
            print(f"round {number + 1}/{rounds}: {name} took {seconds:.1f} s", file=sys.stderr)
    return results


def python_command(world_size: int | None = None) -> list[str]:
    """Return what starts a Python program: under torchrun, or alone where no size is given."""
    if world_size is None:
        return [sys.executable]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    return [sys.executable, *launcher]


def run_program(command: Sequence[str], timeout: float = 1800, **environment: str) -> str:
    """Run a program from the top of the repository and return its standard output.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path, "HYDRA_FULL_ERROR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        said = done.stdout[-2000:] + done.stderr[-4000:]
        raise RuntimeError(f"{' '.join(command)} failed:\n{said}")
    return done.stdout


def run_for_json(command: Sequence[str], **options: Any) -> dict[str, Any]:
    """Run a program that prints a JSON object on a line of its own; add its `wall_seconds`."""
    started = time.perf_counter()
    output = run_program(command, **options)
    wall_seconds = time.perf_counter() - started
    found = [line for line in output.splitlines() if line.startswith("{")]
    return {**json.loads(found[-1]), "wall_seconds": wall_seconds}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write_record(folder: Path, name: str, results: Mapping[str, Any], summary: str) -> Path:
    """Write `<name>.json`, with the machine and the versions, and print the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, **machine(), "results": results}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\n{name}\n\n{summary}\n\nwritten to {path}")
    return path


def machine() -> dict[str, Any]:
    """Return where and with what the figures were measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
