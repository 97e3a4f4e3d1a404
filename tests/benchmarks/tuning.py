"""Measures the gain of each optimization, and the cost or gain of each option.

One thing at a time is taken away from the run, or one option is set, and a step is timed beside
that of the run as it is.
"""

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
from tests.benchmarks.tuning_worker import TAKEN_AWAY

# Model, global batch size, steps: the second half of them is timed.
NETWORKS = {"mlp, batch 128": ("mlp", 128, 800), "cnn, batch 256": ("cnn", 256, 80)}
OPTIONS = {
    "optimizer.fused=false": 1,
    "trainer.compile=true": 1,
    "trainer.precision=bf16": 1,
    "trainer.compress_gradients=true": 2,  # the least world size in which it does something
}
NEEDS_TWO_PROCESSES = ("shared memory",)


def run(folder: Path, data: str, rounds: int = 3) -> None:
    """Measure both networks at world size 1 and 2; write `tuning.json`."""
    results: dict[str, Any] = {}
    parts = []
    for network in NETWORKS:
        for world_size in (1, 2):
            title = f"{network}, world size {world_size}"
            results[title] = in_turn(_contenders(network, world_size, data), rounds)
            parts.append(f"{title}\n\n{_summary(results[title])}")
    write_record(folder, "tuning", results, "\n\n".join(parts))


def _contenders(network: str, world_size: int, data: str) -> dict[str, Any]:
    run_once = partial(_run, network, world_size, data)
    without = {
        f"without {name}" if name != "nothing" else "as it is": partial(run_once, name)
        for name in TAKEN_AWAY
        if world_size > 1 or name not in NEEDS_TWO_PROCESSES
    }
    options = {
        option: partial(run_once, "nothing", option)
        for option, least_world_size in OPTIONS.items()
        if world_size >= least_world_size
    }
    return without | options


def _run(
    network: str, world_size: int, data: str, taken_away: str, *overrides: str
) -> dict[str, float]:
    """Return the seconds of a step once all is warm."""
    model, batch_size, steps = NETWORKS[network]
    with tempfile.TemporaryDirectory() as folder:
        run_program(
            [
                *(*python_command(world_size), "-m", "tests.benchmarks.tuning_worker", taken_away),
                *(f"model={model}", f"trainer.global_batch_size={batch_size}", "optimizer=adam"),
                *("scheduler=constant", "augmentation=none", "data.validation_size=0"),
                *(f"trainer.max_steps={steps}", f"trainer.log_every_steps={steps // 2}"),
                *("trainer.epochs=10", "tracking=disabled", "loss.label_smoothing=0.0"),
                *(f"data.root={data}", f"run_dir={folder}/run", *overrides),
                "trainer.reproducible=false",
            ]
        )
        lines = read_journal(Path(folder, "run", "metrics.jsonl"))
    epoch = [line for line in lines if line["kind"] == "epoch"]
    half, whole = (line for line in lines if line["kind"] == "step")
    return {"seconds_per_step": _seconds_between(half, whole, epoch, batch_size)}


def _seconds_between(
    half: dict[str, Any], whole: dict[str, Any], epochs: list[dict[str, Any]], batch_size: int
) -> float:
    """Return the seconds of a step between two lines of the journal, which count by epochs."""
    steps_of = {line["epoch"]: line["step"] for line in epochs}
    seconds_of = {line["epoch"]: line["seconds"] for line in epochs}

    def seconds_until(line: dict[str, Any]) -> float:
        earlier = [epoch for epoch in steps_of if epoch < line["epoch"]]
        steps_in_epoch = line["step"] - max((steps_of[epoch] for epoch in earlier), default=0)
        now = steps_in_epoch * batch_size / line["images_per_second"]
        return float(sum(seconds_of[epoch] for epoch in earlier) + now)

    steps = int(whole["step"]) - int(half["step"])
    return (seconds_until(whole) - seconds_until(half)) / steps


def _summary(results: dict[str, list[dict[str, float]]]) -> str:
    as_it_is = [run["seconds_per_step"] for run in results["as it is"]]
    rows = []
    for name, runs in results.items():
        seconds = [run["seconds_per_step"] for run in runs]
        ratio = Spread.of([s / a for s, a in zip(seconds, as_it_is, strict=True)])
        rows.append((name, Spread.of([1e6 * s for s in seconds]), ratio))
    return table(("", "microseconds a step", "times as it is"), rows)
