"""One epoch of ours beside the same training in other libraries.

Every contender starts from the same weights and trains on the same 60,000 images, with the same
batch size and optimizer, in float32. Only the training loop and the data loading differ.
"""

import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dist_mnist.data.mnist import MNIST
from dist_mnist.data.seeding import keyed_seed, seed_device
from dist_mnist.models.build import build_model
from dist_mnist.record.journal import read_journal
from tests.benchmarks.measure import (
    BATCH_SIZES,
    PLAIN_TRAINING,
    Spread,
    in_turn,
    python_command,
    run_program,
    table,
    write_record,
)
from tests.benchmarks.pictures import BLUE, ORANGE, error_bars
from tests.support.configs import make_config

WORLD_SIZES = (1, 2)
EPOCHS = 2  # the first one warms up, the last one counts
SEED = 0
OURS = "dist_mnist"
OURS_TRACKED = "dist_mnist, wandb offline"
TRACKING = {OURS: "disabled", OURS_TRACKED: "offline"}

# The name of a contender, its script, and the package that it needs.
PEERS = {
    "plain PyTorch": ("plain", "torch"),
    "Lightning": ("with_lightning", "lightning"),
    "Accelerate": ("with_accelerate", "accelerate"),
    "Ignite": ("with_ignite", "ignite"),
}

WORKERS_TRIED = (0, 1, 2)
PILOT_STEPS, PILOT_EPOCHS = 100, 4
ACCURACY_MARGIN = 0.01  # another order of the images makes a smaller difference than this
COLUMNS = (
    "",
    "seconds of the 2nd epoch",
    "times ours",
    "test accuracy",
    "whole process, s",
    "evaluation, s",
    "largest process, MB",
)


@dataclass(frozen=True)
class Case:
    """One network, trained by a number of processes."""

    model: str
    world_size: int
    weights: Path
    data: Path

    def __str__(self) -> str:
        processes = "process" if self.world_size == 1 else "processes"
        batch_size = BATCH_SIZES[self.model]
        return f"{self.model}, batch {batch_size}, {self.world_size} {processes}"


def run(folder: Path, data: str, rounds: int = 3) -> None:
    """Measure every network at every world size; write `peers.json` and `peers.png`.

    Raises:
        RuntimeError: A contender failed, or its accuracy differs too much from the others'.
    """
    root = Path(data).resolve()
    unpack(root)
    results: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        for model in BATCH_SIZES:
            weights = write_initial_weights(model, Path(scratch))
            for world_size in filter(_is_possible, WORLD_SIZES):
                case = Case(model, world_size, weights, root)
                results[str(case)] = _measure(case, rounds)
    complaints = [text for case, result in results.items() for text in _complaints(case, result)]
    write_record(folder, "peers", results, "\n\n".join([summary(results), *complaints]))
    draw(folder / "peers.png", results)
    if complaints:
        raise RuntimeError("not all contenders did the same work:\n" + "\n".join(complaints))


def unpack(root: Path) -> None:
    """Put MNIST where torchvision looks for it."""
    for train in (True, False):
        MNIST(str(root), train)


def write_initial_weights(model: str, folder: Path) -> Path:
    """Write the weights that `python -m dist_mnist` starts from."""
    config = make_config(f"model={model}", f"seed={SEED}")
    seed_device(torch.device("cpu"), keyed_seed(SEED, "weights"))
    path = folder / f"{model}.pt"
    torch.save(build_model(config).state_dict(), path)
    return path


def _is_possible(world_size: int) -> bool:
    """Return whether each process has a separate GPU, or all of them compute on the CPU."""
    possible = not torch.cuda.is_available() or world_size <= torch.cuda.device_count()
    if not possible:
        print(f"left out: {world_size} processes, too few GPUs", file=sys.stderr)
    return possible


def _measure(case: Case, rounds: int) -> dict[str, Any]:
    installed = [name for name, (_, package) in PEERS.items() if find_spec(package)]
    pilot = {workers: _pilot(case, workers) for workers in WORKERS_TRIED}
    workers = min(pilot, key=pilot.__getitem__)
    print(f"{case}: {workers} data loading workers (seconds by workers: {pilot})", file=sys.stderr)
    contenders = {name: partial(_run_ours, case, mode) for name, mode in TRACKING.items()}
    contenders |= {name: partial(_run_peer, case, name, workers) for name in installed}
    runs = in_turn(contenders, rounds)
    return {
        "workers": workers,
        "pilot_seconds": pilot,
        "left_out": sorted(set(PEERS) - set(installed)),
        "contenders": {name: figures_of(runs[name]) for name in contenders},
    }


def _pilot(case: Case, workers: int) -> float:
    """Return the plain loop's shortest time for a few steps, not counting the first epoch."""
    options = {"epochs": PILOT_EPOCHS, "limit": PILOT_STEPS}
    seconds: list[float] = _run_peer(case, "plain PyTorch", workers, **options)["seconds_per_epoch"]
    return min(seconds[1:])


def _run_peer(
    case: Case, name: str, workers: int, epochs: int = EPOCHS, limit: int | None = None
) -> dict[str, Any]:
    return _run(
        case,
        f"tests.benchmarks.contenders.{PEERS[name][0]}",
        *(f"--model={case.model}", f"--weights={case.weights}", f"--data={case.data}"),
        *(f"--global-batch-size={BATCH_SIZES[case.model]}", f"--epochs={epochs}"),
        *(f"--workers={workers}", *([] if limit is None else [f"--limit={limit}"])),
    )


def _run_ours(case: Case, tracking: str) -> dict[str, Any]:
    with TemporaryDirectory() as scratch:
        run_dir = Path(scratch, "run")
        measured = _run(
            case,
            "dist_mnist",
            *(f"model={case.model}", f"trainer.global_batch_size={BATCH_SIZES[case.model]}"),
            *(f"trainer.epochs={EPOCHS}", "trainer.precision=fp32", *PLAIN_TRAINING),
            *(f"tracking={tracking}", f"seed={SEED}"),
            *(f"data.root={case.data}", f"run_dir={run_dir}"),
            WANDB_MODE=tracking,
        )
        lines = read_journal(run_dir / "metrics.jsonl")
    return {
        "seconds_per_epoch": [line["seconds"] for line in lines if line["kind"] == "epoch"],
        "test_accuracy": next(line["test/accuracy"] for line in lines if line["kind"] == "test"),
        **measured,
    }


def _run(case: Case, module: str, *arguments: str, **environment: Any) -> dict[str, Any]:
    """Run a module; return the figures that it and the process that watches it print."""
    watcher = [*python_command(), "-m", "tests.benchmarks.peak_memory"]
    # Most people would start a single process without torchrun.
    launcher = python_command(None if case.world_size == 1 else case.world_size)
    if torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = _gpus(case.world_size)
    output = run_program([*watcher, *launcher, "-m", module, *arguments], **environment)
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


def _gpus(count: int) -> str:
    """Return the first GPUs, since some libraries would use any others that they see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return ",".join(list(names)[:count])


def figures_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return each figure of a contender as a list over its runs; ours has no evaluation time."""
    figures = {"epoch_seconds": [run["seconds_per_epoch"][-1] for run in runs]}
    for key in ("test_accuracy", "wall_seconds", "evaluation_seconds", "largest_process_mb"):
        figures[key] = [run[key] for run in runs if key in run]
    return figures


def _complaints(case: str, result: Mapping[str, Any]) -> list[str]:
    """Name the contenders whose accuracy shows that they did other work than the rest."""
    means = {name: statistics.mean(c["test_accuracy"]) for name, c in result["contenders"].items()}
    middle = statistics.median(means.values())
    return [
        f"**{case}: {name} scores {100 * mean:.2f} %, and the median is {100 * middle:.2f} %.**"
        for name, mean in means.items()
        # `> ACCURACY_MARGIN` would let NaN pass.
        if not abs(mean - middle) <= ACCURACY_MARGIN
    ]


def summary(results: Mapping[str, Any]) -> str:
    """Return a table for each case."""
    return "\n\n".join(_markdown(case, result) for case, result in results.items())


def _markdown(case: str, result: Mapping[str, Any]) -> str:
    contenders = result["contenders"]
    rows = [_row(name, figures, contenders[OURS]) for name, figures in contenders.items()]
    rows += [[name, "not installed", *[""] * (len(COLUMNS) - 2)] for name in result["left_out"]]
    workers = f"data loading workers of each process of the others: {result['workers']}"
    return f"### {case}\n\n{workers}\n\n{table(COLUMNS, rows)}"


def _row(
    name: str, figures: Mapping[str, Sequence[float]], ours: Mapping[str, Sequence[float]]
) -> list[str]:
    accuracies = figures["test_accuracy"]
    low, high = 100 * min(accuracies), 100 * max(accuracies)
    ratio = Spread.of_ratios(figures["epoch_seconds"], ours["epoch_seconds"])
    evaluation = figures["evaluation_seconds"]
    return [
        name,
        str(Spread.of(figures["epoch_seconds"])),
        "1" if name == OURS else str(ratio),
        f"{100 * statistics.mean(accuracies):.2f} % ({low:.2f} to {high:.2f})",
        str(Spread.of(figures["wall_seconds"])),
        str(Spread.of(evaluation)) if evaluation else "",
        f"{statistics.median(figures['largest_process_mb']):.0f}",
    ]


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """Draw the seconds of an epoch, a panel for each case, into a PNG file."""
    rows = math.ceil(len(results) / 2)
    figure = Figure(figsize=(11, 0.6 + 2.5 * rows), dpi=100, layout="constrained")
    figure.suptitle(
        "Training seconds of one epoch of MNIST: median, least and greatest (x: times dist_mnist)"
    )
    panels = figure.subplots(rows, 2, squeeze=False).flat
    for axes, (case, result) in zip(panels, results.items(), strict=False):
        _draw_case(axes, case, result)
    for axes in list(panels)[len(results) :]:
        axes.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_case(axes: Axes, case: str, result: Mapping[str, Any]) -> None:
    seconds = {name: figures["epoch_seconds"] for name, figures in result["contenders"].items()}
    spreads = [Spread.of(values) for values in seconds.values()]
    colours = [ORANGE if name in TRACKING else BLUE for name in seconds]
    medians, bars = [spread.median for spread in spreads], error_bars(spreads)
    axes.barh(range(len(medians)), medians, xerr=bars, color=colours, capsize=2.5)
    for place, (name, spread) in enumerate(zip(seconds, spreads, strict=True)):
        ratio = Spread.of_ratios(seconds[name], seconds[OURS]).median
        axes.annotate(
            f"{spread.median:.3g} s" + ("" if name == OURS else f"  ({ratio:.2f} x)"),
            (spread.greatest, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(medians)), list(seconds), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(spread.greatest for spread in spreads))
    axes.set_title(case, fontsize=10)
    axes.set_xlabel("seconds", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
