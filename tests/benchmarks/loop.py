"""The share of our epoch that the bare step takes, and the cost of DDP, part by part."""

from pathlib import Path
from typing import Any

from tests.benchmarks.measure import (
    BATCH_SIZES,
    PLAIN_TRAINING,
    Spread,
    python_command,
    run_for_json,
    table,
    write_record,
)

STEPS = {"mlp": 400, "cnn": 40}
GOALS = {"mlp": 0.85, "cnn": 0.95}  # in one process


def run(folder: Path, data: str, rounds: int = 5) -> None:
    """Measure both networks at world size 1 and 2; write `loop.json`."""
    results = {
        f"{model}, batch {BATCH_SIZES[model]}, world size {world_size}": _measure(
            model, world_size, data, rounds
        )
        for model in STEPS
        for world_size in (1, 2)
    }
    write_record(folder, "loop", results, summary(results))


def _measure(model: str, world_size: int, data: str, rounds: int) -> dict[str, list[float]]:
    measured = run_for_json(
        [
            *(*python_command(world_size), "-m", "tests.benchmarks.loop_worker"),
            *("--rounds", str(rounds), "--steps", str(STEPS[model]), f"model={model}"),
            *(f"trainer.global_batch_size={BATCH_SIZES[model]}", f"data.root={data}"),
            *PLAIN_TRAINING,
            "trainer.precision=fp32",  # as the bare step
        ]
    )
    del measured["wall_seconds"]
    return measured


def summary(results: dict[str, Any]) -> str:
    """Return a table for each network and world size."""
    parts = []
    for title, measured in results.items():
        if title.endswith("world size 1"):
            goal = GOALS[title.partition(",")[0]]
            title += f" (goal: our loop at {goal} or more)"
        parts.append(f"{title}\n\n{_table(measured)}")
    return "\n\n".join(parts)


def _table(measured: dict[str, list[float]]) -> str:
    rows = []
    for name, seconds in measured.items():
        share = Spread.of_ratios(measured["bare step"], seconds)
        alone = name.startswith("all-reduce")
        rows.append((name, Spread.of([1e6 * s for s in seconds]), "" if alone else share))
    return table(("", "microseconds a step", "bare step / this"), rows)
