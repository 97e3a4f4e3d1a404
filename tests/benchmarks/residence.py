"""Samples on the device or on the host: step time and memory of 1, 2 and 4 processes."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dist_mnist.record.journal import read_journal
from tests.benchmarks.measure import (
    REPOSITORY,
    Spread,
    by_figure,
    in_turn,
    python_command,
    table,
    write_record,
)
from tests.benchmarks.uneven import RepeatedMNIST, options

STEPS = 400
PAUSE_SECONDS = 0.1


def run(folder: Path, data: str, rounds: int = 3) -> None:
    """Train with samples on the device and on the host; write `residence.json`."""
    contenders = {
        f"{size} process{'es' if size > 1 else ''}, {residence}": partial(
            _run, size, residence, data
        )
        for size in (1, 2, 4)
        for residence in ("device", "host")
    }
    runs = in_turn(contenders, rounds)
    results = {name: by_figure(of_one) for name, of_one in runs.items()}
    write_record(folder, "residence", results, summary(results))


def _run(size: int, residence: str, data: str) -> dict[str, float]:
    """Return the milliseconds of a step, and the peak memory of all processes in MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(*python_command(size), "-m", "dist_mnist", *options(RepeatedMNIST)),
            *(f"data.root={data}", f"data.residence={residence}", f"run_dir={folder}/run"),
            *("model=mlp", f"trainer.max_steps={STEPS}", "tracking=disabled"),
        ]
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": f"{folder}/cache"}
        with Path(folder, "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            peak = 0.0
            while process.poll() is None:
                peak = max(peak, sum(map(_proportional_mb, _family(process.pid))))
                time.sleep(PAUSE_SECONDS)
        if process.returncode != 0:
            raise RuntimeError(Path(folder, "log").read_text()[-4000:])
        lines = read_journal(Path(folder, "run", "metrics.jsonl"))
    (seconds,) = [line["seconds"] for line in lines if line["kind"] == "epoch"]
    return {"step_ms": 1000 * seconds / STEPS, "memory_mb": peak}


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all that it has started."""
    yield pid
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _family(int(child))


def _proportional_mb(pid: int) -> float:
    """Return a process's memory in MB, each page divided by the number of its users (PSS)."""
    with suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(text.partition("\nPss:")[2].split()[0]) / 1024
    return 0.0


def summary(results: Mapping[str, Any]) -> str:
    """Return the table."""
    rows = []
    for name, figures in results.items():
        device = results[name.replace("host", "device")]
        rows.append(
            (
                name,
                Spread.of(figures["step_ms"]),
                Spread.of_ratios(figures["step_ms"], device["step_ms"]),
                Spread.of([megabytes / 1024 for megabytes in figures["memory_mb"]]),
            )
        )
    return table(("", "ms of a step", "times device", "peak memory of all, GB"), rows)
