"""The time from the launch to the end of the first step, beside torch alone making one step."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import (
    Spread,
    by_figure,
    in_turn,
    python_command,
    run_for_json,
    run_program,
    table,
    write_record,
)

GOAL = 1.5  # times torch and one step


def run(folder: Path, data: str, rounds: int = 5) -> None:
    """Measure one process and four; write `startup.json`."""
    runs = in_turn(
        {
            "import torch": _import_torch,
            "torch and one step": _until_first_step(None, "floor"),
            "ours, no tracking": _until_first_step(None, *_ours(data, "disabled")),
            "ours, wandb offline": _until_first_step(None, *_ours(data, "offline")),
            "torch and one step, 4 processes": _until_first_step(4, "floor"),
            "ours, no tracking, 4 processes": _until_first_step(4, *_ours(data, "disabled")),
            "ours, wandb offline, 4 processes": _until_first_step(4, *_ours(data, "offline")),
        },
        rounds,
    )
    results = {name: by_figure(of_one)["seconds"] for name, of_one in runs.items()}
    write_record(folder, "startup", results, summary(results))


def _ours(data: str, tracking: str) -> list[str]:
    return [f"data.root={data}", f"tracking={tracking}"]


def _import_torch() -> dict[str, Any]:
    started = time.time()
    run_program([*python_command(), "-c", "import torch"])
    return {"seconds": time.time() - started}


def _until_first_step(world_size: int | None, *arguments: str) -> Callable[[], dict[str, Any]]:
    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as run_dir:
            where = [] if arguments == ("floor",) else [f"run_dir={run_dir}/run"]
            program = ["-m", "tests.benchmarks.startup_worker", *arguments, *where]
            return run_for_json(
                [*python_command(world_size), *program], LAUNCHED_AT=str(time.time())
            )

    return measure


def summary(results: dict[str, list[float]]) -> str:
    """Return the goal and the table."""
    rows = []
    for name, seconds in results.items():
        processes = ", 4 processes" if name.endswith("4 processes") else ""
        floor = results[f"torch and one step{processes}"]
        rows.append((name, Spread.of(seconds), Spread.of_ratios(seconds, floor)))
    columns = ("", "seconds to the end of the first step", "times torch and one step")
    return f"goal: {GOAL} times or less\n\n{table(columns, rows)}"
