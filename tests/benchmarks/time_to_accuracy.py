"""The time to reach an accuracy on the test set, over several seeds, by three clocks.

Our side is a user's run: one process, the last state, nothing chosen by the test set. The
clocks: training alone; training and evaluation; the whole process from launch to exit.
"""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import (
    Spread,
    by_figure,
    in_turn,
    python_command,
    run_for_json,
    table,
    train,
    write_record,
)

Figures = dict[str, list[Any]]  # of a contender, each over the seeds
EXAMPLE_RUNS = 2  # of PyTorch's example, which takes minutes


def run_990(folder: Path, data: str, rounds: int = 10) -> None:
    """Compare `experiment=speed` with the record and with PyTorch's example; rounds are seeds."""
    results = _over_seeds(
        {"ours": partial(_ours, "speed", data), "record": partial(_contender, "record", data)},
        rounds,
    )
    example = partial(_contender, "pytorch_example", data, "--until", "0.99")
    results |= _over_seeds({"PyTorch's example": example}, min(rounds, EXAMPLE_RUNS))
    write_record(folder, "time_to_990", results, summary(results))


def run_995(folder: Path, data: str, rounds: int = 10) -> None:
    """Time `experiment=speed_995`, one seed a round."""
    _run_ours_alone("995", folder, data, rounds)


def run_997(folder: Path, data: str, rounds: int = 10) -> None:
    """Time `experiment=speed_997`, one seed a round."""
    _run_ours_alone("997", folder, data, rounds)


def _run_ours_alone(goal: str, folder: Path, data: str, rounds: int) -> None:
    results = _over_seeds({"ours": partial(_ours, f"speed_{goal}", data)}, rounds)
    write_record(folder, f"time_to_{goal}", results, summary(results))


def _over_seeds(
    contenders: Mapping[str, Callable[[int], dict[str, Any]]], seeds: int
) -> dict[str, Figures]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for seed in range(1, seeds + 1):
        once = in_turn({name: partial(run, seed) for name, run in contenders.items()}, rounds=1)
        for name, (result,) in once.items():
            results[name].append({"seed": seed, **result})
    return {name: by_figure(runs) for name, runs in results.items()}


def _ours(experiment: str, data: str, seed: int) -> dict[str, Any]:
    journal, wall_seconds = train(f"experiment={experiment}", f"seed={seed}", f"data.root={data}")
    test = journal[-1]
    return {
        "training_seconds": sum(line["seconds"] for line in journal if line["kind"] == "epoch"),
        "evaluation_seconds": test["seconds"],
        "test_accuracy": test["test/accuracy"],
        "wall_seconds": wall_seconds,
    }


def _contender(name: str, data: str, *arguments: object) -> dict[str, Any]:
    *options, seed = arguments
    program = ["-m", f"tests.benchmarks.contenders.{name}", "--data", data, "--seed", str(seed)]
    return run_for_json([*python_command(), *program, *map(str, options)])


def summary(results: dict[str, Figures]) -> str:
    """Return the table."""
    columns = ("", "seeds", "test accuracy, %", "training, s", "with evaluation, s")
    rows = [_row(name, figures, results["ours"]) for name, figures in results.items()]
    return table((*columns, "whole process, s", "training, times ours"), rows)


def _row(name: str, figures: Figures, ours: Figures) -> tuple[object, ...]:
    accuracies = [100 * accuracy for accuracy in figures["test_accuracy"]]
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    training, evaluation = figures["training_seconds"], figures["evaluation_seconds"]
    ratio = statistics.median(training) / statistics.median(ours["training_seconds"])
    return (
        name,
        len(accuracies),
        f"{statistics.mean(accuracies):.2f} +- {deviation:.2f}",
        Spread.of(training),
        Spread.of([t + e for t, e in zip(training, evaluation, strict=True)]),
        Spread.of(figures["wall_seconds"]),
        f"{ratio:.2f}",
    )
