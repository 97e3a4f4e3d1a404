"""What share of our epoch is the bare step, and what DDP costs, line by line."""

from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Spread, python_command, run_for_json, table, write_record

NETWORKS = {"mlp, batch 128": ("mlp", 128, 400), "cnn, batch 256": ("cnn", 256, 40)}
GOALS = {"mlp, batch 128": 0.85, "cnn, batch 256": 0.95}  # in one process


def run(folder: Path, data: str, rounds: int = 5) -> None:
    """Measure both networks at world size 1 and 2; write `loop.json`."""
    results: dict[str, Any] = {}
    parts = []
    for network in NETWORKS:
        for world_size in (1, 2):
            measured = _measure(network, world_size, data, rounds)
            results[f"{network}, world size {world_size}"] = measured
            parts.append(_summary(network, world_size, measured))
    write_record(folder, "loop", results, "\n\n".join(parts))


def _measure(network: str, world_size: int, data: str, rounds: int) -> dict[str, list[float]]:
    model, batch_size, steps = NETWORKS[network]
    return run_for_json(
        [
            *python_command(world_size),
            *("-m", "tests.benchmarks.loop_worker", "--rounds", str(rounds), "--steps", str(steps)),
            *(f"model={model}", f"trainer.global_batch_size={batch_size}", f"data.root={data}"),
            *("data.validation_size=0", "augmentation=none", "optimizer=adam"),
            *("scheduler=constant", "loss.label_smoothing=0.0"),
        ]
    )


def _summary(network: str, world_size: int, measured: dict[str, Any]) -> str:
    measured.pop("wall_seconds")
    bare = measured["bare step"]
    rows = []
    for name, seconds in measured.items():
        share = Spread.of([b / s for b, s in zip(bare, seconds, strict=True)])
        alone = name.startswith("all-reduce")
        rows.append((name, Spread.of([1e6 * s for s in seconds]), "" if alone else share))
    title = f"{network}, world size {world_size}"
    if world_size == 1:
        title += f" (goal: our loop at {GOALS[network]} or more)"
    columns = ("", "microseconds a step", "bare step / this")
    return f"{title}\n\n{table(columns, rows)}"
