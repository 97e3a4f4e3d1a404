"""Training beside other programs: the default, against torch's own threads on all cores.

A laptop always runs something else. Programs that keep a core busy run beside a training, and its
images per second are compared with those of the same training on the quiet machine.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dist_mnist.distributed.cpu_threads import usable_cores
from tests.benchmarks.measure import BATCH_SIZES, Spread, in_turn, table, train, write_record

STEPS = {"mlp": 2000, "cnn": 120}
WORLD_SIZES = (1, 2)
BUSY_PROGRAMS = (0, 1, 2)
SETTINGS = ("default", "all cores")
GNU_OPENMP_SPIN_COUNT = "300000"  # its default, from libgomp's env.c


def run(folder: Path, data: str, rounds: int = 3) -> None:
    """Measure both networks with one process and two; write `beside.json`."""
    runs = in_turn(
        {
            f"{model}, {size} process(es), {busy} busy, {setting}": partial(
                _images_per_second, model, size, busy, setting, data
            )
            for model in STEPS
            for size in WORLD_SIZES
            for busy in BUSY_PROGRAMS
            for setting in SETTINGS
        },
        rounds,
    )
    results = {
        name: [run["images_per_second"] for run in repeats] for name, repeats in runs.items()
    }
    write_record(folder, "beside", results, summary(results))


def _images_per_second(
    model: str, size: int, busy: int, setting: str, data: str
) -> dict[str, float]:
    arguments = [f"model={model}", f"data.root={data}", "trainer.device=cpu"]
    arguments += [f"trainer.global_batch_size={BATCH_SIZES[model]}"]
    arguments += [f"trainer.max_steps={STEPS[model]}", "trainer.epochs=20"]
    environment = {}
    if setting == "all cores":
        arguments += [f"trainer.cpu_threads={max(1, usable_cores() // size)}"]
        arguments += ["trainer.reproducible=false"]
        environment = {"GOMP_SPINCOUNT": GNU_OPENMP_SPIN_COUNT}
    with _busy_programs(busy):
        lines, _ = train(*arguments, world_size=size if size > 1 else None, **environment)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    images = sum(line["images_per_second"] * line["seconds"] for line in epochs)
    return {"images_per_second": images / sum(line["seconds"] for line in epochs)}


@contextmanager
def _busy_programs(count: int) -> Iterator[None]:
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def summary(results: dict[str, list[float]]) -> str:
    """Return images per second, and the share of the quiet speed, of each setting."""
    rows: list[list[Any]] = []
    for model in STEPS:
        for size in WORLD_SIZES:
            for busy in BUSY_PROGRAMS:
                row: list[Any] = [model, size, busy]
                for setting in SETTINGS:
                    case = f"{model}, {size} process(es), {{}} busy, {setting}"
                    values, quiet = results[case.format(busy)], results[case.format(0)]
                    row += [f"{Spread.of(values).median:,.0f}"]
                    row += [f"{Spread.of_ratios(values, quiet).median:.2f}"]
                rows.append(row)
    columns = ["network", "processes", "busy cores", "default, images/s", "of quiet"]
    return table([*columns, "all cores, images/s", "of quiet"], rows)
