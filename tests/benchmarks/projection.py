"""A projection of the two networks to 8 to 4,096 GPUs, by the model of a step.

Nothing here was measured on GPUs; the constants below and the picture say what is assumed. Only
the gradient noise scale is measured, on the CPU. It says up to which batch more GPUs help at all.
"""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from dist_mnist.data.seeding import keyed_seed
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.session import session
from dist_mnist.distributed.stopping import StopAgreement
from dist_mnist.distributed.world import World
from dist_mnist.models.build import build_model
from dist_mnist.training.build import build_training_state
from dist_mnist.training.loop import train_epoch
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.state import TrainingState
from tests.benchmarks.measure import BATCH_SIZES, PLAIN_TRAINING, read_record, table, write_record
from tests.benchmarks.pictures import BLUE, GREY, ORANGE, add_grid_and_legend
from tests.benchmarks.scaling import is_within_goal
from tests.benchmarks.step_model import noise_scale, ring_seconds, step_seconds, tree_seconds
from tests.support.configs import make_config

GPUS = [8 * 2**power for power in range(10)]  # 8 to 4,096
STRONG_BATCH = 4096  # the fixed global batch: one image for each of 4,096 GPUs
BAND = (1.0, 3.0)  # real all-reduces take 1 to 3 times what NCCL's constants say

# The example is an H100 SXM in a node of 8, with NVIDIA's figures.
PEAK_FLOPS = 989e12  # dense bf16
ACHIEVED_FRACTION = 0.05  # by layers of 16 to 64 channels; a guess
LAUNCH_SECONDS = 500e-6  # the shortest step: about 100 kernels, 5 microseconds each from Python
STRAGGLER_FRACTION = 0.02  # the sd of a GPU's compute as a share of it; a guess
GPUS_PER_NODE = 8
NVLINK_BANDWIDTH = 450e9  # bytes a second in one direction
NETWORK_BANDWIDTH = 50e9  # one 400 Gb/s link; a small message uses only one
FLAG_SHARE = 0.5  # NCCL's protocol LL sends a flag of 4 bytes with every 4 bytes of data

BIG_BATCHES, SMALL_IN_BIG = 16, 16  # big batches a round, small batches in each


class Step(NamedTuple):
    """One projected step, in seconds; a list has a value for each end of `BAND`."""

    gpus: int
    compute: float
    all_reduce: list[float]
    step: list[float]
    step_with_ring: float
    images_per_second: list[float]
    efficiency: list[float]


def run(folder: Path, data: str, rounds: int = 1) -> None:
    """Measure the noise scale, read `scaling.json`; write `projection.json` and a picture."""
    scaling = read_record(folder, "scaling")
    networks = {}
    with session("cpu", timeout_seconds=60) as world:
        torch.set_num_threads(1)  # threads wait long for each other on busy cores
        for model in BATCH_SIZES:
            silent = scaling["step_seconds"][model]["nothing sent"]
            networks[model] = {
                "batch": scaling["batch"][model],
                "gradient_bytes": scaling["gradient_bytes"][model],
                "straggler_fraction": silent["sd"] / silent["median"],
                "flops_per_image": _flops_per_image(model),
                **_measure_noise(model, data, world, rounds * BIG_BATCHES),
            }
    results = {"is_model_within_goal": is_within_goal(scaling), "networks": networks}
    write_record(folder, "projection", results, summary(results))
    draw(folder / "projection.png", results)


def _flops_per_image(model: str) -> int:
    """Count the floating-point operations of a forward and a backward pass."""
    network = build_model(make_config(f"model={model}")).train()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(4, 1, 28, 28)).sum().backward()
    return int(counter.get_total_flops()) // 4


def _measure_noise(model: str, data: str, world: World, big_batches: int) -> dict[str, float]:
    """Train for an epoch, then return the noise scale with its jackknife standard error."""
    batch = BATCH_SIZES[model]
    options = (f"model={model}", f"data.root={data}", f"trainer.global_batch_size={batch}")
    config = make_config(*options, *PLAIN_TRAINING, "seed=0")
    state = build_training_state(config, world, load_splits(config.data, config.seed))
    train_epoch(state, Recorder(), StopAgreement(state.world))
    generator = torch.Generator().manual_seed(keyed_seed(config.seed, "noise scale"))
    norms = torch.stack([_squared_norms(state, generator) for _ in range(big_batches)])

    def scale(norms: torch.Tensor) -> float:
        return noise_scale(batch, batch * SMALL_IN_BIG, *norms.mean(0).tolist())

    without_one = [scale(norms[torch.arange(big_batches) != i]) for i in range(big_batches)]
    error = math.sqrt(big_batches - 1) * statistics.pstdev(without_one)
    return {"noise_scale": scale(norms), "noise_scale_error": error}


def _squared_norms(state: TrainingState, generator: torch.Generator) -> torch.Tensor:
    """Return the mean |G|^2 of some small batches, and the |G|^2 of all of them together.

    Each small batch has batch norm of its own, as in processes that train together.
    """
    model, size = state.model.train(), (state.config.trainer.global_batch_size,)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for _ in range(SMALL_IN_BIG):
        chosen = torch.randint(len(state.splits.train), size, generator=generator)
        images, labels = state.splits.train[chosen]
        loss = state.loss(model(state.splits.normalization(images)), labels).mean()
        parts = torch.autograd.grad(loss, parameters)
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    stacked = torch.stack(gradients)
    return torch.stack([stacked.square().sum(1).mean(), stacked.mean(0).square().sum()])


def _project(network: Mapping[str, Any], kind: str) -> list[Step]:
    """Project weak scaling (the network's batch on each GPU) or strong (`STRONG_BATCH`)."""
    projected = []
    for gpus in GPUS:
        batch = network["batch"] * gpus if kind == "weak" else STRONG_BATCH
        compute = _compute_seconds(network, batch / gpus)
        ideal = compute if kind == "weak" else _compute_seconds(network, batch) / gpus
        sd = STRAGGLER_FRACTION * compute
        nodes = gpus // GPUS_PER_NODE
        link = NVLINK_BANDWIDTH if nodes == 1 else NETWORK_BANDWIDTH
        message = (network["gradient_bytes"], GPUS_PER_NODE, nodes, FLAG_SHARE * link)
        trees = [factor * tree_seconds(*message) for factor in BAND]
        steps = [step_seconds(compute, tree, sd, gpus) for tree in trees]
        with_ring = step_seconds(compute, ring_seconds(*message), sd, gpus)
        images, efficiency = ([total / step for step in steps] for total in (batch, ideal))
        projected.append(Step(gpus, compute, trees, steps, with_ring, images, efficiency))
    return projected


def _compute_seconds(network: Mapping[str, Any], images: float) -> float:
    flops: float = network["flops_per_image"] * images
    return max(LAUNCH_SECONDS, flops / (PEAK_FLOPS * ACHIEVED_FRACTION))


def summary(results: Mapping[str, Any]) -> str:
    """Return the assumptions, and the noise scale and the tables of each network."""
    parts = [_assumptions(results)]
    for name, network in results["networks"].items():
        batch, scale = network["batch"], network["noise_scale"]
        parts.append(
            f"{name}: the noise scale after an epoch is {scale:,.0f} +- "
            f"{network['noise_scale_error']:,.0f} images, the batch of {scale / batch:,.0f} GPUs."
        )
        for kind, size in (("weak", f"{batch} images a GPU"), ("strong", f"{STRONG_BATCH} images")):
            rows = [[_told(value) for value in step] for step in _project(network, kind)]
            parts.append(f"{name}, {kind} scaling, {size}\n\n{table(Step._fields, rows)}")
    return "\n\n".join(parts)


def _told(value: float | list[float]) -> str:
    ends = sorted(value) if isinstance(value, list) else [value]
    return " to ".join(f"{end:,.0f}" if end >= 1000 else f"{end:.3g}" for end in ends)


def _assumptions(results: Mapping[str, Any]) -> str:
    """Return the lines below the picture: what is measured and what is assumed."""
    checked = "within" if results["is_model_within_goal"] else "NOT always within"
    here = ", ".join(
        f"{name} {100 * network['straggler_fraction']:.1f} %"
        for name, network in results["networks"].items()
    )
    return f"""\
T(n) = compute + all-reduce + sd x sqrt(2 ln n): a projection, not a measurement.
At 2 processes on a CPU the model was {checked} 10 % of what was measured.
Compute: H100 SXM, {PEAK_FLOPS / 1e12:.0f} TFLOP/s (bf16, dense) of which \
{100 * ACHIEVED_FRACTION:.0f} % are achieved, but never less than \
{1e6 * LAUNCH_SECONDS:.0f} microseconds (100 kernels launched at 5 each).
All-reduce: float32 gradients after the backward pass, one bucket. NCCL's tree, LL: \
6.8 + 2 ((g - 1) 0.6 + floor(log2 nodes) 5.0) microseconds
+ 2 bytes / bandwidth; g = {GPUS_PER_NODE} GPUs a node; NVLink {NVLINK_BANDWIDTH / 1e9:.0f} GB/s, \
between nodes {NETWORK_BANDWIDTH / 1e9:.0f} GB/s (400 Gb/s InfiniBand), halved by LL's flags; \
taken {BAND[0]:.0f} to {BAND[1]:.0f} times.
Waiting: sd = {100 * STRAGGLER_FRACTION:.0f} % of compute (measured on this CPU: {here}). \
Input: images already on the GPU.
Noise scale: measured here after 1 epoch; steps to the same loss follow 1 + noise scale / batch."""


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """Draw a column for each network, with the assumptions below."""
    figure = Figure(figsize=(12.0, 12.5), dpi=100)
    grid = figure.subplots(3, len(results["networks"]), sharex=True)
    for (name, network), column in zip(results["networks"].items(), grid.T, strict=True):
        _draw_step(column[0], name, network)
        _draw_images(column[1], network)
        _draw_speed_up(column[2], network)
        column[2].tick_params("x", labelsize=8)
        column[2].set_xlabel(f"GPUs, {GPUS_PER_NODE} a node")
    figure.subplots_adjust(0.07, 0.175, 0.98, 0.975, wspace=0.17, hspace=0.14)
    figure.text(0.07, 0.015, _assumptions(results), fontsize=8.5, linespacing=1.45)
    figure.savefig(path)


def _draw_step(axes: Axes, name: str, network: Mapping[str, Any]) -> None:
    weak = _project(network, "weak")
    steps = [[1e6 * end for end in step.step] for step in weak]
    _draw_band(axes, steps, BLUE, "NCCL's tree, 1x to 3x")
    ring = [1e6 * step.step_with_ring for step in weak]
    axes.plot(GPUS, ring, "--", color=ORANGE, label="plain ring model")
    axes.plot(GPUS, [1e6 * step.compute for step in weak], "k:", label="compute alone")
    axes.set(xscale="log", yscale="log", ylabel="microseconds a step")
    axes.set_xticks(GPUS, [f"{gpus:,}" for gpus in GPUS])
    axes.minorticks_off()
    axes.set_yticks([500, 1000, 2000, 5000, 10_000], ["500", "1,000", "2,000", "5,000", "10,000"])
    axes.set_title(f"{name}: a step with {network['batch']} images a GPU", fontsize=10)
    add_grid_and_legend(axes)


def _draw_images(axes: Axes, network: Mapping[str, Any]) -> None:
    for kind, colour, label, digits in (
        ("weak", BLUE, f"weak: {network['batch']} images a GPU", 0),
        ("strong", GREY, f"strong: {STRONG_BATCH:,} images in all", 2),
    ):
        steps = _project(network, kind)
        _draw_band(axes, [step.images_per_second for step in steps], colour, label)
        high, low = (100 * end for end in steps[-1].efficiency)
        text = f"efficiency {low:.{digits}f} to {high:.{digits}f} %"
        place = (GPUS[-1], max(steps[-1].images_per_second))
        axes.annotate(text, place, (0, 8), textcoords="offset points", ha="right", fontsize=8)
    axes.set(yscale="log", ylabel="images/s")
    axes.margins(y=0.15)
    axes.set_title("images per second", fontsize=10)
    add_grid_and_legend(axes)


def _draw_speed_up(axes: Axes, network: Mapping[str, Any]) -> None:
    """Draw how much sooner the same loss is reached than with 8 GPUs."""
    batch, scale = network["batch"], network["noise_scale"]
    times = [
        [end * (1 + scale / (batch * step.gpus)) for end in step.step]
        for step in _project(network, "weak")
    ]
    speed_ups = [[f / t for f, t in zip(times[0], ends, strict=True)] for ends in times]
    _draw_band(axes, speed_ups, BLUE, f"weak: {batch} images a GPU")
    axes.plot(GPUS, [gpus / 8 for gpus in GPUS], "k:", label="if each GPU helped as much")
    axes.axvline(scale / batch, color=ORANGE, label=f"batch = noise scale: {scale:,.0f} images")
    axes.set(ylim=(0, 1.3 * max(map(max, speed_ups))), ylabel="times as fast as 8 GPUs")
    axes.set_title("time to the same loss, the batch growing with the GPUs", fontsize=10)
    add_grid_and_legend(axes)


def _draw_band(axes: Axes, ends: list[list[float]], colour: str, label: str) -> None:
    low, high = zip(*ends, strict=True)
    axes.fill_between(GPUS, low, high, color=colour, alpha=0.35, label=label)
    axes.plot(GPUS, ends, color=colour, linewidth=1)
