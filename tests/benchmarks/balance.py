"""Measures balancing: the tutorial's network on MNIST with a hundredth of one digit."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Spread, by_figure, in_turn, table, train, write_record
from tests.benchmarks.uneven import RARE_CLASS, RareMNIST, options

EPOCHS = 2


def run(folder: Path, data: str, rounds: int = 3) -> None:
    """Train with each way of balancing, a seed a round; write `balance.json`."""
    seeds = dict.fromkeys(("none", "weights", "sample"), 0)

    def train_next(balance: str) -> dict[str, float]:
        seeds[balance] += 1
        return _run(balance, seeds[balance] - 1, data)

    contenders = {balance: partial(train_next, balance) for balance in seeds}
    runs = in_turn(contenders, rounds)
    results = {balance: by_figure(of_one) for balance, of_one in runs.items()}
    write_record(folder, "balance", results, summary(results))


def _run(balance: str, seed: int, data: str) -> dict[str, float]:
    """Return the recall and the precision of the rare digit, and the accuracy of all."""
    journal, _ = train(
        *(f"data.balance={balance}", f"seed={seed}", f"trainer.epochs={EPOCHS}", "model=mlp"),
        *(*options(RareMNIST), f"data.root={data}"),
    )
    confusion = journal[-1]["test/confusion"]
    hits = confusion[RARE_CLASS][RARE_CLASS]
    taken_for_it = sum(row[RARE_CLASS] for row in confusion)
    return {
        "recall": hits / sum(confusion[RARE_CLASS]),
        "precision": hits / max(1, taken_for_it),
        "accuracy": journal[-1]["test/accuracy"],
    }


def summary(results: Mapping[str, Any]) -> str:
    """Return the table."""
    rows = [
        (
            f"`data.balance={balance}`",
            *(Spread.of([100 * value for value in figures[name]]) for name in figures),
        )
        for balance, figures in results.items()
    ]
    columns = (f"recall of {RARE_CLASS}, %", f"precision of {RARE_CLASS}, %", "test accuracy, %")
    return table(("", *columns), rows)
