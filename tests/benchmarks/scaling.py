"""How the real loop scales from one process to two, and how well a model of a step foretells it.

Each process has one thread. Both share one chip, so a process also computes slower because the
other one is there; that part is measured apart from communication.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.measure import Spread, python_command, run_for_json, table, write_record
from tests.benchmarks.step_model import AllReduceCost, fit_all_reduce, step_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VISITS_A_ROUND = 3  # many short looks in turn, since a shared machine is slow for seconds on end
BUSY_LOAD = 0.3  # from here on two processes do not have two cores for themselves
GOAL = 0.10  # how far the model may be from what is measured
LARGEST_FITTED_BYTES = 2**20  # beyond the caches the bandwidth is another; no gradient here is
OURS = "shared memory"  # what the loop adds up its gradients through, between processes on CPUs

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"overrides": ["model=mlp"], "batch": 128, "steps": 60, "check": False},
    "cnn": {"overrides": ["model=cnn"], "batch": 256, "steps": 10, "check": False},
}
# Networks that only check the model.
CHECKS: dict[str, dict[str, Any]] = {
    f"{model}, {name}": {
        "overrides": [f"model={model}", f"model.{name}"],
        "batch": NETWORKS[model]["batch"],
        "steps": NETWORKS[model]["steps"],
        "check": True,
    }
    for model, name in (
        ("mlp", "hidden_sizes=[32,32,32]"),
        ("mlp", "hidden_sizes=[128,128,128]"),
        ("cnn", "channels=[8,16,32]"),
        ("cnn", "channels=[24,48,96]"),
    )
}
OVERRIDES = (
    *("data.validation_size=0", "augmentation=none", "optimizer=adam"),
    *("scheduler=constant", "loss.label_smoothing=0.0"),
)
BLUE, ORANGE, GREY, LIGHT = "#3b6fb6", "#d1682b", "#8a8a8a", "#cccccc"


def run(folder: Path, data: str, rounds: int = 5) -> None:
    """Measure, fit and check; write `scaling.json` and `scaling.png`.

    Args:
        folder: Where to write.
        data: The folder of the MNIST files.
        rounds: How often everything is measured, in turn.
    """
    load = os.getloadavg()[0]
    measured = _measure(data, rounds)
    costs, all_reduces = _fit(measured["all_reduce_seconds"])
    networks = {}
    for name, chosen in {**NETWORKS, **CHECKS}.items():
        network = {
            "batch": chosen["batch"],
            "gradient_bytes": measured["gradient_bytes"][name],
            "steps": _over_rounds(measured["steps"][name]),
        }
        network["predictions"] = _predict(network, costs[OURS])
        if not chosen["check"]:
            network["scaling"] = _scaling(network)
        networks[name] = network
    results = {
        "load_average_before": load,
        "all_reduce": all_reduces,
        "networks": networks,
        **_verdict(networks),
    }
    write_record(folder, "scaling", results, _summary(results))
    print(f"picture: {_draw(folder, results)}")


def _measure(data: str, rounds: int) -> dict[str, Any]:
    return run_for_json(
        [
            *python_command(world_size=2),
            *("-m", "tests.benchmarks.scaling_worker"),
            *("--rounds", str(VISITS_A_ROUND * rounds)),
            *("--networks", json.dumps({**NETWORKS, **CHECKS})),
            *(f"data.root={data}", *OVERRIDES),
        ],
        OMP_NUM_THREADS="1",
    )


def _fit(
    measured: Mapping[str, Mapping[str, Sequence[float]]],
) -> tuple[dict[str, AllReduceCost], dict[str, Any]]:
    """Fit latency and bandwidth of each kind of all-reduce; also return them for the record."""
    costs, record = {}, {}
    for kind, by_size in measured.items():
        medians = {int(size): statistics.median(seconds) for size, seconds in by_size.items()}
        fitted = {size: s for size, s in medians.items() if size <= LARGEST_FITTED_BYTES}
        costs[kind] = fit_all_reduce(list(fitted), list(fitted.values()))
        spreads = {size: asdict(Spread.of(seconds)) for size, seconds in by_size.items()}
        record[kind] = {**asdict(costs[kind]), "measured_seconds": spreads}
    return costs, record


def _over_rounds(modes: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Summarise by mode: the step's median over the rounds, and the medians of its deviations."""
    return {
        mode: {
            "seconds": asdict(Spread.of([each["median_seconds"] for each in rounds])),
            **{
                key: statistics.median(each[key] for each in rounds)
                for key in ("mean_seconds", "sd_seconds", "robust_sd_seconds")
            },
        }
        for mode, rounds in modes.items()
    }


def _predict(network: Mapping[str, Any], cost: AllReduceCost) -> dict[str, dict[str, Any]]:
    """Predict a step at world size 2 from a process that sends nothing, and compare."""
    predictions = {}
    for mode, silent in (("strong", "nothing sent, half batch"), ("weak", "nothing sent")):
        compute = network["steps"][silent]
        predicted = step_seconds(
            compute["seconds"]["median"],
            cost.seconds(network["gradient_bytes"]),
            compute["robust_sd_seconds"],
            processes=2,
        )
        measured = network["steps"][mode]["seconds"]["median"]
        error = predicted / measured - 1
        predictions[mode] = {
            "compute_seconds": compute["seconds"]["median"],
            "all_reduce_seconds": cost.seconds(network["gradient_bytes"]),
            "sd_seconds": compute["robust_sd_seconds"],
            "predicted_seconds": predicted,
            "measured_seconds": measured,
            "relative_error": error,
            "within_goal": abs(error) <= GOAL,
        }
    return predictions


def _scaling(network: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return images per second and efficiency, and what the efficiency is made of.

    The efficiency is the product of three shares: what smaller batches leave of it, what the
    other process on the same chip leaves, and what DDP, communication and waiting leave.
    """
    batch = network["batch"]
    seconds = {mode: step["seconds"]["median"] for mode, step in network["steps"].items()}
    one = seconds["one process"]
    half, apart_half = seconds["one process, half batch"], seconds["two apart, half batch"]
    apart = seconds["two apart"]
    strong = {
        "images_per_second": batch / seconds["strong"],
        "efficiency": one / (2 * seconds["strong"]),
        "smaller_batch": one / (2 * half),
        "contention": half / apart_half,
        "communication": apart_half / seconds["strong"],
    }
    weak = {
        "images_per_second": 2 * batch / seconds["weak"],
        "efficiency": one / seconds["weak"],
        "smaller_batch": 1.0,
        "contention": one / apart,
        "communication": apart / seconds["weak"],
    }
    alone = {"images_per_second": batch / one, "efficiency": 1.0}
    return {"one process": alone, "strong": strong, "weak": weak}


def _verdict(networks: Mapping[str, Any]) -> dict[str, Any]:
    errors = [p["relative_error"] for n in networks.values() for p in n["predictions"].values()]
    within = sum(abs(error) <= GOAL for error in errors)
    return {
        "predictions": len(errors),
        "predictions_within_goal": within,
        "worst_relative_error": max(errors, key=abs),
        "is_within_goal": within == len(errors),
    }


def _summary(results: Mapping[str, Any]) -> str:
    parts = [_scaling_table(results), _all_reduce_table(results), _prediction_table(results)]
    return "\n\n".join([*parts, _verdict_sentence(results)])


def _scaling_table(results: Mapping[str, Any]) -> str:
    columns = ("network", "processes", "images/s", "efficiency", "= batch", "x contention")
    rows = []
    for name, network in results["networks"].items():
        for kind, figures in network.get("scaling", {}).items():
            shares = [figures.get(key) for key in ("smaller_batch", "contention", "communication")]
            rows.append(
                (
                    f"{name}, batch {network['batch']}",
                    "1" if kind == "one process" else f"2, {kind}",
                    f"{figures['images_per_second']:,.0f}",
                    f"{figures['efficiency']:.3f}",
                    *("" if share is None else f"{share:.3f}" for share in shares),
                )
            )
    text = "One thread a process; medians. Efficiency is the product of what follows it."
    return f"{text}\n\n{table((*columns, 'x DDP, all-reduce, waiting'), rows)}"


def _all_reduce_table(results: Mapping[str, Any]) -> str:
    kinds = results["all_reduce"]
    columns = ("all-reduce of 2 processes", *(f"{kind}, microseconds" for kind in kinds))
    sizes = next(iter(kinds.values()))["measured_seconds"]
    rows = [
        (f"{int(size) / 1024:,.0f} KB", *(_microseconds(kinds[kind], size) for kind in kinds))
        for size in sizes
    ]
    fits = (
        f"{k['latency_seconds'] * 1e6:.1f} + bytes / {k['bytes_per_second'] / 1e9:.2f} GB/s"
        for k in kinds.values()
    )
    return table(columns, [*rows, ("fitted up to 1 MB", *fits)])


def _microseconds(kind: Mapping[str, Any], size: str) -> Spread:
    return Spread(**{key: 1e6 * s for key, s in kind["measured_seconds"][size].items()})


def _prediction_table(results: Mapping[str, Any]) -> str:
    names = ("compute", "all-reduce", "sd", "predicted", "measured")
    rows = []
    for name, network in results["networks"].items():
        for mode, prediction in network["predictions"].items():
            times = [f"{1e6 * prediction[f'{key}_seconds']:,.0f}" for key in map(_key, names)]
            error = f"{100 * prediction['relative_error']:+.1f} %"
            rows.append((name, mode, *times, error))
    text = "A step of 2 processes, in microseconds: compute + all-reduce + sd x sqrt(2 ln 2)."
    return f"{text}\n\n{table(('network', 'scaling', *names, 'error'), rows)}"


def _key(name: str) -> str:
    return name.replace("-", "_")


def _verdict_sentence(results: Mapping[str, Any]) -> str:
    count, within = results["predictions"], results["predictions_within_goal"]
    worst = 100 * results["worst_relative_error"]
    reached = "reached" if results["is_within_goal"] else "NOT reached"
    load = results["load_average_before"]
    others = f" Other programs were computing (load {load:.1f})." if load > BUSY_LOAD else ""
    return (
        f"Goal {reached}: {within} of {count} predictions are within {100 * GOAL:.0f} % of what "
        f"was measured; the worst is off by {worst:+.1f} %.{others}"
    )


def _draw(folder: Path, results: Mapping[str, Any]) -> Path:
    """Draw efficiency, all-reduces and predictions; return the PNG's path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 4.6), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_efficiency(left, results["networks"])
    _draw_all_reduces(middle, results["all_reduce"])
    _draw_predictions(right, results["networks"])
    path = folder / "scaling.png"
    figure.savefig(path)
    return path


def _draw_efficiency(axes: "Axes", networks: Mapping[str, Any]) -> None:
    bars = [
        (f"{name}\n{mode}", network["scaling"][mode])
        for name, network in networks.items()
        for mode in ("strong", "weak")
        if "scaling" in network
    ]
    labels = [label for label, _ in bars]
    for shift, key, colour, label in (
        (-0.3, "efficiency", BLUE, "efficiency, the product of:"),
        (-0.1, "smaller_batch", LIGHT, "what a smaller batch leaves"),
        (0.1, "contention", GREY, "what the neighbour on the chip leaves"),
        (0.3, "communication", ORANGE, "what DDP, all-reduce, waiting leave"),
    ):
        heights = [figures[key] for _, figures in bars]
        places = [place + shift for place in range(len(bars))]
        drawn = axes.bar(places, heights, 0.19, color=colour, label=label)
        axes.bar_label(drawn, fmt="{:.2f}", fontsize=6.5)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, 1.55)
    axes.set(title="2 processes against 1, one thread each", ylabel="share of the ideal")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_all_reduces(axes: "Axes", kinds: Mapping[str, Any]) -> None:
    for (kind, record), colour in zip(kinds.items(), (BLUE, ORANGE), strict=True):
        cost = AllReduceCost(record["latency_seconds"], record["bytes_per_second"])
        sizes = [int(size) for size in record["measured_seconds"]]
        spreads = [Spread(**spread) for spread in record["measured_seconds"].values()]
        medians = [1e6 * spread.median for spread in spreads]
        below = [1e6 * (spread.median - spread.least) for spread in spreads]
        above = [1e6 * (spread.greatest - spread.median) for spread in spreads]
        axes.errorbar(sizes, medians, [below, above], fmt="o", color=colour, capsize=2, label=kind)
        fitted = [size for size in sizes if size <= LARGEST_FITTED_BYTES]
        for part, style in ((fitted, "-"), (sizes, ":")):
            axes.plot(part, [1e6 * cost.seconds(size) for size in part], style, color=colour)
    axes.set(xscale="log", yscale="log", xlabel="bytes", ylabel="microseconds")
    axes.set_title("all-reduce of 2 processes; line: fit, dotted beyond it")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _draw_predictions(axes: "Axes", networks: Mapping[str, Any]) -> None:
    for shift, mode, colour in ((-0.12, "strong", BLUE), (0.12, "weak", ORANGE)):
        errors = [100 * n["predictions"][mode]["relative_error"] for n in networks.values()]
        places = [place + shift for place in range(len(errors))]
        axes.plot(errors, places, "o", color=colour, label=mode)
    axes.axvspan(-100 * GOAL, 100 * GOAL, color=GREY, alpha=0.25, label="within 10 %")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(networks)), [name.replace(", ", "\n") for name in networks])
    axes.set(ylim=(len(networks) + 0.2, -0.6), xlabel="predicted - measured, in % of measured")
    axes.set_title("the model's step of 2 processes")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower center", ncols=3)
