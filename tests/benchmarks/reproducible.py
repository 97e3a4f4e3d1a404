"""The cost of the same bits at any world size: an epoch with and without `trainer.reproducible`."""

from functools import partial
from pathlib import Path

from tests.benchmarks.measure import (
    BATCH_SIZES,
    Spread,
    by_figure,
    in_turn,
    table,
    train,
    write_record,
)


def run(folder: Path, data: str, rounds: int = 3) -> None:
    """Measure both networks at world size 1 and 2; write `reproducible.json`."""
    contenders = {
        f"{model}, batch {batch_size}, world size {world_size}, {name}": partial(
            _run, model, world_size, data, value
        )
        for model, batch_size in BATCH_SIZES.items()
        for world_size in (1, 2)
        for name, value in (("as it is", "false"), ("reproducible", "true"))
    }
    runs = in_turn(contenders, rounds)
    results = {name: by_figure(of_one)["seconds"] for name, of_one in runs.items()}
    write_record(folder, "reproducible", results, summary(results))


def _run(model: str, world_size: int, data: str, reproducible: str) -> dict[str, float]:
    """Return the training seconds of the second epoch."""
    journal, _ = train(
        *(f"model={model}", f"trainer.global_batch_size={BATCH_SIZES[model]}", "trainer.epochs=2"),
        *(f"trainer.reproducible={reproducible}", f"data.root={data}"),
        world_size=world_size,
    )
    return {"seconds": [line["seconds"] for line in journal if line["kind"] == "epoch"][-1]}


def summary(results: dict[str, list[float]]) -> str:
    """Return the table."""
    rows = []
    for name, seconds in results.items():
        as_it_is = results[f"{name.rpartition(', ')[0]}, as it is"]
        rows.append((name, Spread.of(seconds), Spread.of_ratios(seconds, as_it_is)))
    return table(("", "seconds of the 2nd epoch", "times as it is"), rows)
