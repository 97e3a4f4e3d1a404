"""How long an accuracy on the test set takes, by three clocks, over several seeds.

Our side is the product as a user runs it, one process, its last state, nothing chosen by the test
set. Clocks: training alone; with the evaluation; the whole process from launch to exit.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import (
    Spread,
    in_turn,
    python_command,
    run_for_json,
    run_program,
    table,
    write_record,
)

Runs = list[dict[str, Any]]
EXAMPLE_RUNS = 2  # of PyTorch's example, which takes minutes


def run_990(folder: Path, data: str, rounds: int = 10) -> None:
    """Compare `experiment=speed` with the record and with PyTorch's example; rounds are seeds."""
    results = _over_seeds(
        {"ours": partial(_ours, "speed", data), "record": partial(_contender, "record", data)},
        rounds,
    )
    example = partial(_contender, "pytorch_example", data, "--until", "0.99")
    results |= _over_seeds({"PyTorch's example": example}, min(rounds, EXAMPLE_RUNS))
    write_record(folder, "time_to_990", results, _summary(results))


def run_995(folder: Path, data: str, rounds: int = 10) -> None:
    """Time `experiment=speed_995` over so many seeds."""
    results = _over_seeds({"ours": partial(_ours, "speed_995", data)}, rounds)
    write_record(folder, "time_to_995", results, _summary(results))


def run_997(folder: Path, data: str, rounds: int = 10) -> None:
    """Time `experiment=speed_997` over so many seeds."""
    results = _over_seeds({"ours": partial(_ours, "speed_997", data)}, rounds)
    write_record(folder, "time_to_997", results, _summary(results))


def _over_seeds(
    contenders: Mapping[str, Callable[[int], dict[str, Any]]], seeds: int
) -> dict[str, Runs]:
    results: dict[str, Runs] = {name: [] for name in contenders}
    for seed in range(1, seeds + 1):
        once = in_turn({name: partial(run, seed) for name, run in contenders.items()}, rounds=1)
        for name, (result,) in once.items():
            results[name].append({"seed": seed, **result})
    return results


def _ours(experiment: str, data: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run_program(
            [
                *(*python_command(), "-m", "dist_mnist", f"experiment={experiment}"),
                *(f"seed={seed}", f"data.root={data}", f"run_dir={folder}/run"),
                "tracking=disabled",
            ]
        )
        wall_seconds = time.perf_counter() - started
        journal = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in journal.splitlines()]
    test = lines[-1]
    return {
        "training_seconds": sum(line["seconds"] for line in lines if line["kind"] == "epoch"),
        "evaluation_seconds": test["seconds"],
        "test_accuracy": test["test/accuracy"],
        "wall_seconds": wall_seconds,
    }


def _contender(name: str, data: str, *arguments: object) -> dict[str, Any]:
    *options, seed = arguments
    program = ["-m", f"tests.benchmarks.contenders.{name}", "--data", data, "--seed", str(seed)]
    return run_for_json([*python_command(), *program, *map(str, options)])


def _summary(results: dict[str, Runs]) -> str:
    rows = []
    for name, runs in results.items():
        accuracies = [100 * run["test_accuracy"] for run in runs]
        deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        training = [run["training_seconds"] for run in runs]
        ratio = statistics.median(training) / statistics.median(
            run["training_seconds"] for run in results["ours"]
        )
        rows.append(
            (
                name,
                len(runs),
                f"{statistics.mean(accuracies):.2f} +- {deviation:.2f}",
                Spread.of(training),
                Spread.of([r["training_seconds"] + r["evaluation_seconds"] for r in runs]),
                Spread.of([run["wall_seconds"] for run in runs]),
                f"{ratio:.2f}",
            )
        )
    columns = ("", "seeds", "test accuracy, %", "training, s", "with evaluation, s")
    return table((*columns, "whole process, s", "training, times ours"), rows)
