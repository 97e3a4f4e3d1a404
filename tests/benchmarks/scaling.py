"""The scaling of the real loop from one process to two, and a check of the model of a step.

Each process has one thread. Both run on one chip, so each computes more slowly while the other one
runs; that loss is measured apart from communication.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.benchmarks.measure import (
    BATCH_SIZES,
    PLAIN_TRAINING,
    Spread,
    python_command,
    run_for_json,
    table,
    write_record,
)
from tests.benchmarks.pictures import BLUE, GREY, LIGHT, ORANGE, add_grid_and_legend, error_bars
from tests.benchmarks.step_model import AllReduceCost, fit_all_reduce, step_seconds

VISITS_A_ROUND = 3  # many short visits, since a shared machine is slow for seconds at a time
BUSY_LOAD = 0.3  # above this, two processes do not have two cores to themselves
GOAL = 0.10  # the largest relative error that the model may have
LARGEST_FITTED_BYTES = 2**20  # larger messages leave the caches; no gradient here is larger
OURS = "shared memory"  # the loop adds up gradients this way between processes on CPUs

NETWORKS: dict[str, dict[str, Any]] = {
    model: {
        "overrides": [f"model={model}"],
        "batch": BATCH_SIZES[model],
        "steps": steps,
        "check": False,
    }
    for model, steps in (("mlp", 60), ("cnn", 10))
}
# Networks that only check the model.
CHECKS: dict[str, dict[str, Any]] = {
    f"{model}, {option}": {
        **NETWORKS[model],
        "overrides": [f"model={model}", f"model.{option}"],
        "check": True,
    }
    for model, option in (
        ("mlp", "hidden_sizes=[32,32,32]"),
        ("mlp", "hidden_sizes=[128,128,128]"),
        ("cnn", "channels=[8,16,32]"),
        ("cnn", "channels=[24,48,96]"),
    )
}


@dataclass(frozen=True)
class Prediction:
    """A predicted step of 2 processes beside the measured one, in seconds.

    Attributes:
        compute: The step of a process that sends nothing while the other one runs.
        deviation: The standard deviation of that step.
    """

    network: str
    mode: str
    compute: float
    all_reduce: float
    deviation: float
    measured: float

    @property
    def predicted(self) -> float:
        """The step that the model predicts."""
        return step_seconds(self.compute, self.all_reduce, self.deviation, processes=2)

    @property
    def error(self) -> float:
        """The relative error of the prediction."""
        return self.predicted / self.measured - 1


def run(folder: Path, data: str, rounds: int = 5) -> None:
    """Measure steps and all-reduces; write `scaling.json` and `scaling.png`."""
    load = os.getloadavg()[0]
    networks = {**NETWORKS, **CHECKS}
    measured = run_for_json(
        [
            *(*python_command(world_size=2), "-m", "tests.benchmarks.scaling_worker"),
            *("--rounds", str(VISITS_A_ROUND * rounds), "--networks", json.dumps(networks)),
            *(f"data.root={data}", *PLAIN_TRAINING),
        ],
        OMP_NUM_THREADS="1",
    )
    results = {
        "load_average_before": load,
        "batch": {name: network["batch"] for name, network in networks.items()},
        "gradient_bytes": measured["gradient_bytes"],
        "all_reduce_seconds": {
            kind: {size: asdict(Spread.of(seconds)) for size, seconds in by_size.items()}
            for kind, by_size in measured["all_reduce_seconds"].items()
        },
        "step_seconds": {
            name: {mode: _over_rounds(rounds) for mode, rounds in modes.items()}
            for name, modes in measured["steps"].items()
        },
    }
    write_record(folder, "scaling", results, summary(results))
    draw(folder / "scaling.png", results)


def _over_rounds(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Summarise a step over the rounds; `sd` is the median of their robust deviations."""
    sd = statistics.median(times["robust_sd_seconds"] for times in rounds)
    return {**asdict(Spread.of([times["median_seconds"] for times in rounds])), "sd": sd}


def fit(results: Mapping[str, Any], kind: str) -> AllReduceCost:
    """Fit latency and bandwidth of one kind of all-reduce to the messages that fit the caches."""
    measured = results["all_reduce_seconds"][kind]
    medians = {int(size): spread["median"] for size, spread in measured.items()}
    fitted = {size: s for size, s in medians.items() if size <= LARGEST_FITTED_BYTES}
    return fit_all_reduce(list(fitted), list(fitted.values()))


def predict(results: Mapping[str, Any]) -> list[Prediction]:
    """Predict each network's step at world size 2 from a process that sends nothing."""
    cost = fit(results, OURS)
    return [
        Prediction(
            network=name,
            mode=mode,
            compute=steps[silent]["median"],
            all_reduce=cost.seconds(results["gradient_bytes"][name]),
            deviation=steps[silent]["sd"],
            measured=steps[mode]["median"],
        )
        for name, steps in results["step_seconds"].items()
        for mode, silent in (("strong", "nothing sent, half batch"), ("weak", "nothing sent"))
    ]


def is_within_goal(results: Mapping[str, Any]) -> bool:
    """Return whether every prediction is close enough."""
    return all(abs(prediction.error) <= GOAL for prediction in predict(results))


def _shares(steps: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """Return the efficiency of strong and weak scaling, each followed by its three factors.

    They are the shares that remain after the losses to a smaller batch, to the other process on
    the same chip, and to DDP, communication and waiting.
    """
    seconds = {mode: step["median"] for mode, step in steps.items()}
    alone, half = seconds["one process"], seconds["one process, half batch"]
    apart, apart_half = seconds["two apart"], seconds["two apart, half batch"]
    strong, weak = seconds["strong"], seconds["weak"]
    return {
        "strong": (
            alone / (2 * strong),
            alone / (2 * half),
            half / apart_half,
            apart_half / strong,
        ),
        "weak": (alone / weak, 1.0, alone / apart, apart / weak),
    }


def _scaled(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the steps of the networks that do more than check the model."""
    return {n: steps for n, steps in results["step_seconds"].items() if "one process" in steps}


def summary(results: Mapping[str, Any]) -> str:
    """Return the tables, and whether the model reaches its goal."""
    parts = [_scaling_table(results), _all_reduce_table(results), _prediction_table(results)]
    return "\n\n".join([*parts, _verdict(results)])


def _scaling_table(results: Mapping[str, Any]) -> str:
    columns = ("network", "processes", "images/s", "efficiency", "= batch", "x contention")
    rows: list[Sequence[str]] = []
    for name, steps in _scaled(results).items():
        batch = results["batch"][name]
        title = f"{name}, batch {batch}"
        alone = batch / steps["one process"]["median"]
        rows.append((title, "1", f"{alone:,.0f}", "1.000", "", "", ""))
        for mode, shares in _shares(steps).items():
            images = (batch if mode == "strong" else 2 * batch) / steps[mode]["median"]
            rows.append((title, f"2, {mode}", f"{images:,.0f}", *(f"{s:.3f}" for s in shares)))
    text = "One thread a process; medians. Efficiency is the product of the columns after it."
    return f"{text}\n\n{table((*columns, 'x DDP, all-reduce, waiting'), rows)}"


def _all_reduce_table(results: Mapping[str, Any]) -> str:
    kinds = results["all_reduce_seconds"]
    rows = [
        (f"{int(size) / 1024:,.0f} KB", *(_microseconds(kinds[kind][size]) for kind in kinds))
        for size in kinds[OURS]
    ]
    costs = [fit(results, kind) for kind in kinds]
    fits = (
        f"{1e6 * cost.latency_seconds:.1f} + bytes / {cost.bytes_per_second / 1e9:.2f} GB/s"
        for cost in costs
    )
    columns = ("all-reduce of 2 processes", *(f"{kind}, microseconds" for kind in kinds))
    return table(columns, [*rows, ("fitted up to 1 MB", *fits)])


def _microseconds(spread: Mapping[str, float]) -> Spread:
    return Spread(**{key: 1e6 * seconds for key, seconds in spread.items()})


def _prediction_table(results: Mapping[str, Any]) -> str:
    rows = []
    for p in predict(results):
        seconds = (p.compute, p.all_reduce, p.deviation, p.predicted, p.measured)
        times = [f"{1e6 * s:,.0f}" for s in seconds]
        rows.append((p.network, p.mode, *times, f"{100 * p.error:+.1f} %"))
    text = "A step of 2 processes, in microseconds: compute + all-reduce + sd x sqrt(2 ln 2)."
    columns = ("network", "scaling", "compute", "all-reduce", "sd", "predicted", "measured")
    return f"{text}\n\n{table((*columns, 'error'), rows)}"


def _verdict(results: Mapping[str, Any]) -> str:
    errors = [prediction.error for prediction in predict(results)]
    within = sum(abs(error) <= GOAL for error in errors)
    reached = "reached" if within == len(errors) else "NOT reached"
    load = results["load_average_before"]
    others = f" Other programs were running (load {load:.1f})." if load > BUSY_LOAD else ""
    return (
        f"Goal {reached}: {within} of {len(errors)} predictions are within {100 * GOAL:.0f} % of "
        f"the measurement; the worst is off by {100 * max(errors, key=abs):+.1f} %.{others}"
    )


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """Draw efficiency, all-reduces and predictions into a PNG file."""
    figure = Figure(figsize=(13.5, 4.6), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_efficiency(left, results)
    _draw_all_reduces(middle, results)
    _draw_predictions(right, results)
    figure.savefig(path)


def _draw_efficiency(axes: Axes, results: Mapping[str, Any]) -> None:
    bars = {
        f"{name}\n{mode}": shares
        for name, steps in _scaled(results).items()
        for mode, shares in _shares(steps).items()
    }
    labels = (
        "efficiency, the product of:",
        "what a smaller batch leaves",
        "what the neighbour on the chip leaves",
        "what DDP, all-reduce, waiting leave",
    )
    shifts, colours = (-0.3, -0.1, 0.1, 0.3), (BLUE, LIGHT, GREY, ORANGE)
    columns = zip(*bars.values(), strict=True)
    for shift, colour, label, heights in zip(shifts, colours, labels, columns, strict=True):
        places = [place + shift for place in range(len(bars))]
        drawn = axes.bar(places, heights, 0.19, color=colour, label=label)
        axes.bar_label(drawn, fmt="{:.2f}", fontsize=6.5)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set_ylim(0, 1.55)
    axes.set(title="2 processes against 1, one thread each", ylabel="share of the ideal")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_all_reduces(axes: Axes, results: Mapping[str, Any]) -> None:
    kinds = results["all_reduce_seconds"]
    for (kind, by_size), colour in zip(kinds.items(), (BLUE, ORANGE), strict=True):
        sizes = [int(size) for size in by_size]
        spreads = [_microseconds(spread) for spread in by_size.values()]
        medians, bars = [spread.median for spread in spreads], error_bars(spreads)
        axes.errorbar(sizes, medians, bars, fmt="o", color=colour, capsize=2, label=kind)
        cost = fit(results, kind)
        fitted = [size for size in sizes if size <= LARGEST_FITTED_BYTES]
        for part, style in ((fitted, "-"), (sizes, ":")):
            axes.plot(part, [1e6 * cost.seconds(size) for size in part], style, color=colour)
    axes.set(xscale="log", yscale="log", xlabel="bytes", ylabel="microseconds")
    axes.set_title("all-reduce of 2 processes; line: fit, dotted beyond it")
    add_grid_and_legend(axes)


def _draw_predictions(axes: Axes, results: Mapping[str, Any]) -> None:
    names = list(results["step_seconds"])
    for shift, mode, colour in ((-0.12, "strong", BLUE), (0.12, "weak", ORANGE)):
        errors = [100 * p.error for p in predict(results) if p.mode == mode]
        places = [place + shift for place in range(len(errors))]
        axes.plot(errors, places, "o", color=colour, label=mode)
    axes.axvspan(-100 * GOAL, 100 * GOAL, color=GREY, alpha=0.25, label="within 10 %")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    axes.set(ylim=(len(names) + 0.2, -0.6), xlabel="predicted - measured, in % of measured")
    axes.set_title("the model's step of 2 processes")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower center", ncols=3)
