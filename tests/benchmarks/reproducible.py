"""The same bits at any world size: the cost in time, and what batch norm over shards changes."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean, stdev

from tests.benchmarks.measure import (
    Spread,
    by_figure,
    in_turn,
    table,
    train,
    write_record,
)

CASES = (("mlp", 128), ("mlp", 1024), ("cnn", 256))  # networks and batch sizes
SEEDS = 10
ACCURACY_RUNS = {  # a number of processes and trainer.reproducible
    "false, one process": (1, "false"),
    "false, four processes": (4, "false"),
    "true, any number": (2, "true"),
}


def run(folder: Path, data: str, rounds: int = 3) -> None:
    """Measure an epoch at world size 1 and 2 with and without; write `reproducible.json`."""
    contenders = {
        f"{model}, batch {batch_size}, world size {world_size}, {value}": partial(
            _seconds, model, batch_size, world_size, data, value
        )
        for model, batch_size in CASES
        for world_size in (1, 2)
        for value in ("false", "true")
    }
    runs = in_turn(contenders, rounds)
    results = {name: by_figure(of_one)["seconds"] for name, of_one in runs.items()}
    write_record(folder, "reproducible", results, summary(results))


def _seconds(
    model: str, batch_size: int, world_size: int, data: str, reproducible: str
) -> dict[str, float]:
    """Return the training seconds of the second epoch."""
    journal, _ = train(
        *(f"model={model}", f"trainer.global_batch_size={batch_size}", "trainer.epochs=2"),
        *(f"trainer.reproducible={reproducible}", f"data.root={data}"),
        world_size=world_size if world_size > 1 else None,
    )
    return {"seconds": [line["seconds"] for line in journal if line["kind"] == "epoch"][-1]}


def summary(results: Mapping[str, list[float]]) -> str:
    """Return the table of the cost."""
    rows = []
    for name, seconds in results.items():
        without = results[f"{name.rpartition(', ')[0]}, false"]
        rows.append((name, Spread.of(seconds), Spread.of_ratios(seconds, without)))
    return table(("", "seconds of the 2nd epoch", "times false"), rows)


def run_accuracy(folder: Path, data: str, rounds: int = SEEDS) -> None:
    """Run the default with each seed, with and without; write `reproducible_accuracy.json`."""
    results: dict[str, list[float]] = {name: [] for name in ACCURACY_RUNS}
    for seed in range(rounds):
        for name, (world_size, reproducible) in ACCURACY_RUNS.items():
            journal, _ = train(
                *(f"seed={seed}", f"trainer.reproducible={reproducible}", f"data.root={data}"),
                world_size=world_size if world_size > 1 else None,
            )
            results[name].append(journal[-1]["test/accuracy"])
    write_record(folder, "reproducible_accuracy", results, accuracy_summary(results))


def accuracy_summary(results: Mapping[str, list[float]]) -> str:
    """Return the table of the accuracy, with the differences between runs with the same seed."""
    base = results["false, one process"]
    rows = []
    for name, values in results.items():
        differences = [100 * (value - of_base) for value, of_base in zip(values, base, strict=True)]
        spread = f"{100 * mean(values):.3f} +- {100 * stdev(values):.3f}"
        error = stdev(differences) / len(differences) ** 0.5
        rows.append((name, spread, f"{mean(differences):+.3f} +- {error:.3f}"))
    return table(("trainer.reproducible", "test accuracy, %", "beside the first"), rows)
