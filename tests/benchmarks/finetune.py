"""Few samples of a class: from scratch, on frozen features of other classes, or all thawed.

A network learns the digits 0 to 4, and then 5 to 9 from a few samples of each. Every seed has a
different first network, choice of samples and order; the last state counts.
"""

import statistics
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dist_mnist.config.compose import compose_config
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.session import session
from dist_mnist.distributed.world import World
from dist_mnist.models.transfer import take_weights
from dist_mnist.training.build import build_training_state
from dist_mnist.training.evaluation import score_of
from dist_mnist.training.loop import fit
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.state import TrainingState
from tests.benchmarks.measure import table, write_record
from tests.benchmarks.pictures import BLUE, GREY, ORANGE, add_grid_and_legend

# Samples of each class, and the epochs that they are trained for, in steps of 50 images.
EPOCHS = {10: 100, 100: 30, 1000: 10}
STARTS: dict[str, tuple[str, ...] | None] = {
    "from scratch": None,
    "frozen features": ('transfer.freeze=["layers.?"]',),
    "everything thawed": (),
}
# That of experiment=speed, which is quick.
NETWORK = ("model.channels=[12,32,64]", "model.kernel_sizes=[6,3,3]", "model.strides=[2,1,1]")
FIRST_HALF = ("data.classes=[0,1,2,3,4]", "data.num_classes=5", "trainer.epochs=2")


def run(folder: Path, data: str, rounds: int = 5) -> None:
    """Train with as many seeds as there are rounds; write `finetune.json` and a picture."""
    results: dict[str, dict[str, list[float]]] = {
        f"{count:,}": {start: [] for start in STARTS} for count in EPOCHS
    }
    with session("auto", timeout_seconds=600) as world:
        for seed in range(rounds):
            common = (*NETWORK, "data.validation_size=0", f"data.root={data}", f"seed={seed}")
            weights = _train(world, (*FIRST_HALF, *common), None).model.state_dict()
            for count, epochs in EPOCHS.items():
                size = (f"data.samples_per_class={count}", f"trainer.epochs={epochs}")
                for start, options in STARTS.items():
                    overrides = ("experiment=finetune", *common, *size, *(options or ()))
                    state = _train(world, overrides, None if options is None else weights)
                    accuracy = score_of(state, state.splits.test).accuracy
                    results[f"{count:,}"][start].append(accuracy)
                    print(f"seed {seed}, {count} samples, {start}: {accuracy}", file=sys.stderr)
    write_record(folder, "finetune", results, summary(results))
    draw(folder / "finetune.png", results)


def _train(
    world: World, overrides: tuple[str, ...], weights: dict[str, torch.Tensor] | None
) -> TrainingState:
    config = compose_config(*overrides)
    splits = load_splits(config.data, config.seed).to(world.device)
    state = build_training_state(config, world, splits)
    if weights is not None:
        take_weights(state.model, weights)
    fit(state, Recorder())
    return state


def summary(results: dict[str, dict[str, list[float]]]) -> str:
    """Return the table: mean and standard deviation of the test accuracy over the seeds."""
    rows = [
        (count, *(f"{100 * mean:.2f} +- {100 * sd:.2f}" for mean, sd in _spreads(starts).values()))
        for count, starts in results.items()
    ]
    return table(("samples of each class", *(f"{start}, %" for start in STARTS)), rows)


def _spreads(starts: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    return {
        start: (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for start, values in starts.items()
    }


def draw(path: Path, results: dict[str, dict[str, list[float]]]) -> None:
    """Draw the test error over the number of samples of each class; bars: one deviation."""
    figure = Figure(figsize=(6.5, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    counts = [int(count.replace(",", "")) for count in results]
    for start, color in zip(STARTS, (GREY, BLUE, ORANGE), strict=True):
        spreads = [_spreads(starts)[start] for starts in results.values()]
        means, deviations = zip(*spreads, strict=True)
        axes.errorbar(
            *(counts, [100 - 100 * mean for mean in means], [100 * sd for sd in deviations]),
            fmt="o-",
            capsize=3,
            color=color,
            label=start,
        )
    axes.set(xscale="log", yscale="log", xlabel="training images of each class")
    axes.set_xticks(counts, list(results), minor=False)
    axes.set_yticks((0.5, 1, 2, 5, 10), ("0.5", "1", "2", "5", "10"))
    axes.yaxis.set_minor_formatter("")
    axes.set(ylabel="test error, %", title="digits 5 to 9, after 0 to 4 or from scratch")
    add_grid_and_legend(axes)
    figure.savefig(path)
