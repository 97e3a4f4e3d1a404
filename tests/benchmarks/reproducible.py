"""What the same bits at any world size cost: an epoch with `trainer.reproducible` and without."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from dist_mnist.record.journal import read_journal
from tests.benchmarks.measure import (
    Spread,
    in_turn,
    python_command,
    run_program,
    table,
    write_record,
)

# Global batch sizes, as in the other benchmarks.
NETWORKS = {"mlp": 128, "cnn": 256}
WORLD_SIZES = (1, 2)


def run(folder: Path, data: str, rounds: int = 3) -> None:
    """Measure both networks at world size 1 and 2; write `reproducible.json`."""
    contenders = {
        f"{model}, batch {batch_size}, world size {world_size}, {name}": partial(
            _run, model, batch_size, world_size, data, value
        )
        for model, batch_size in NETWORKS.items()
        for world_size in WORLD_SIZES
        for name, value in (("as it is", "false"), ("reproducible", "true"))
    }
    results = in_turn(contenders, rounds)
    write_record(folder, "reproducible", results, _summary(results))


def _run(
    model: str, batch_size: int, world_size: int, data: str, reproducible: str
) -> dict[str, float]:
    """Return the seconds that the second epoch's training takes."""
    with tempfile.TemporaryDirectory() as folder:
        run_program(
            [
                *(*python_command(world_size), "-m", "dist_mnist", f"model={model}"),
                *(f"trainer.global_batch_size={batch_size}", "trainer.epochs=2"),
                *(f"trainer.reproducible={reproducible}", "tracking=disabled"),
                *(f"data.root={data}", f"run_dir={folder}/run"),
            ]
        )
        lines = read_journal(Path(folder, "run", "metrics.jsonl"))
    return {"seconds": [line["seconds"] for line in lines if line["kind"] == "epoch"][-1]}


def _summary(results: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        case = name.rpartition(", ")[0]
        as_it_is = [run["seconds"] for run in results[f"{case}, as it is"]]
        ratio = Spread.of([s / a for s, a in zip(seconds, as_it_is, strict=True)])
        rows.append((name, Spread.of(seconds), ratio))
    return table(("", "seconds of the 2nd epoch", "times as it is"), rows)
