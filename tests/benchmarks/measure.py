"""Shared by all benchmarks: running programs in turn, medians with their spread, and records."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
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
LINE_WIDTH = 240  # of a record; enough for the runs of a contender
DIGITS = 7  # significant digits in a record, one more than in any table

BATCH_SIZES = {"mlp": 128, "cnn": 256}  # over all processes
# Every sample is trained on as it is, and every step does the same work.
PLAIN_TRAINING = (
    *("data.validation_size=0", "augmentation=none", "optimizer=adam"),
    *("scheduler=constant", "loss.label_smoothing=0.0", "trainer.reproducible=false"),
)


@dataclass(frozen=True)
class Spread:
    """The median, least and greatest of several measurements."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise measurements."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, values: Sequence[float], bases: Sequence[float]) -> "Spread":
        """Summarise `value / base`, taken round by round."""
        return cls.of([value / base for value, base in zip(values, bases, strict=True)])

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.greatest:.3g})"


def in_turn(
    contenders: Mapping[str, Callable[[], dict[str, Any]]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Run every contender once a round, A B A B, so that a slow minute hits all of them.

    Returns:
        The results of each contender's runs, in order of the rounds.
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
    """Return the command that starts Python: under torchrun, or alone if no size is given."""
    if world_size is None:
        return [sys.executable]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    return [sys.executable, *launcher]


def run_program(command: Sequence[str], timeout: float = 1800, **environment: str) -> str:
    """Run a program from the top of the repository and return its standard output.

    Raises:
        RuntimeError: The program failed. The message ends with the program's last output.
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
    """Run a program that prints a JSON object on one line; add its `wall_seconds`."""
    started = time.perf_counter()
    output = run_program(command, **options)
    wall_seconds = time.perf_counter() - started
    found = [line for line in output.splitlines() if line.startswith("{")]
    return {**json.loads(found[-1]), "wall_seconds": wall_seconds}


def train(
    *overrides: str, world_size: int | None = None, **environment: Any
) -> tuple[list[dict[str, Any]], float]:
    """Run `python -m dist_mnist`; return the lines of its journal and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        program = [*python_command(world_size), "-m", "dist_mnist"]
        started = time.perf_counter()
        arguments = [*overrides, f"run_dir={folder}/run", "tracking=disabled"]
        run_program([*program, *arguments], **environment)
        wall_seconds = time.perf_counter() - started
        journal = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in journal.splitlines()], wall_seconds


def by_figure(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return each figure of a contender's runs as a list over the runs."""
    return {figure: [run[figure] for run in runs] for figure in runs[0]}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write_record(folder: Path, name: str, results: Mapping[str, Any], summary: str) -> Path:
    """Write `<name>.json`, with the machine and the versions, and print the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {package: _version(package) for package in PACKAGES}
    record = {"machine": machine(), "versions": versions, "results": results}
    path = folder / f"{name}.json"
    path.write_text(compact_json(record) + "\n", encoding="utf-8")
    print(f"\n{name}\n\n{summary}\n\nwritten to {path}")
    return path


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """Return the results in a record.

    Raises:
        SystemExit: The record does not exist.
    """
    try:
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        command = f"python -m tests.benchmarks {name} --out {folder}"
        raise SystemExit(f"There is no record of {name}: run `{command}` first.") from None
    results: dict[str, Any] = record["results"]
    return results


def compact_json(value: Any) -> str:
    """Return JSON with each part on one line if it fits, and floats rounded to `DIGITS`."""
    return _lines_of(json.loads(json.dumps(value), parse_float=_rounded), depth=0)


def _rounded(text: str) -> float:
    return float(f"{float(text):.{DIGITS}g}")


def _lines_of(value: Any, depth: int) -> str:
    line = json.dumps(value)
    if depth + len(line) <= LINE_WIDTH or not isinstance(value, (dict, list)):
        return line
    if isinstance(value, dict):
        keys, items = [f"{json.dumps(key)}: " for key in value], list(value.values())
    else:
        keys, items = [""] * len(value), value
    parts = [key + _lines_of(item, depth + 1) for key, item in zip(keys, items, strict=True)]
    indent = "\n" + " " * (depth + 1)
    return line[0] + indent + f",{indent}".join(parts) + line[-1]


def machine() -> dict[str, Any]:
    """Describe the machine and the time of the measurement."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
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
