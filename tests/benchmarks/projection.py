"""What 8 to 4,096 GPUs would make of the two networks: the model of a step, beyond measuring.

Nothing here was measured on so many GPUs. What is assumed of them stands in `Gpu`, in the record
and in the picture. The gradient noise scale, which says up to which batch more GPUs help at all,
is measured, on the CPU.
"""

import copy
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dist_mnist.data.seeding import keyed_seed
from dist_mnist.data.splits import DataSplits, load_splits
from dist_mnist.distributed.gradients import World, session
from dist_mnist.training.build import TrainingState, build_model, build_training_state
from dist_mnist.training.loop import train_epoch
from tests.benchmarks.measure import Spread, table, write_record
from tests.benchmarks.scaling import BLUE, GREY, NETWORKS, ORANGE, OVERRIDES
from tests.benchmarks.step_model import (
    GradientNoise,
    estimate_noise,
    ring_all_reduce_seconds,
    step_seconds,
    steps_needed,
    tree_all_reduce_seconds,
)
from tests.support.configs import make_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GPUS = [8 * 2**power for power in range(10)]  # 8 to 4,096
STRONG_BATCH = 4096  # the fixed global batch: one image for each of 4,096 GPUs
BAND = (1.0, 3.0)  # real all-reduces take so many times what NCCL's constants say
MOMENTS = {"50 steps": 50, "1 epoch": None}  # None: as many steps as an epoch has
SMALL_IN_BIG = 16  # small batches in a big one
BIG_BATCHES = 16


@dataclass(frozen=True)
class Gpu:
    """What is assumed of each GPU and its links; the example is an H100 SXM in a node of 8.

    Attributes:
        peak_flops: Dense bf16 (NVIDIA's data sheet of the H100 SXM: 989 TFLOP/s).
        achieved_fraction: What layers of 16 to 64 channels get of it. Assumed.
        launch_seconds: The least that a step takes: about 100 kernels, started one by one from
            Python at 5 microseconds each. Assumed; a step captured as a CUDA graph takes less.
        straggler_fraction: The sd of a GPU's compute as a share of it. Assumed.
        gpus_per_node: GPUs that NVLink connects.
        nvlink_bytes_per_second: In one direction (data sheet: 900 GB/s for both together).
        network_bytes_per_second: Of one 400 Gb/s InfiniBand link, one direction. So small a
            message is not spread over the node's eight.
        flag_share: What NCCL's protocol LL leaves of a bandwidth: it sends a flag of 4 bytes with
            every 4 bytes of data.
    """

    name: str = "H100 SXM"
    peak_flops: float = 989e12
    achieved_fraction: float = 0.05
    launch_seconds: float = 500e-6
    straggler_fraction: float = 0.02
    gpus_per_node: int = 8
    nvlink_bytes_per_second: float = 450e9
    network_bytes_per_second: float = 50e9
    flag_share: float = 0.5

    def compute_seconds(self, flops: float) -> float:
        """Return the time of a step of so many floating-point operations, nothing sent."""
        return max(self.launch_seconds, flops / (self.peak_flops * self.achieved_fraction))

    def bytes_per_second(self, nodes: int) -> float:
        """Return the bandwidth of the slowest link between the GPUs of so many nodes."""
        link = self.nvlink_bytes_per_second if nodes == 1 else self.network_bytes_per_second
        return self.flag_share * link


def run(folder: Path, data: str, rounds: int = 1, gpu: Gpu | None = None) -> None:
    """Measure the noise scale and project; write `projection.json` and `projection.png`.

    Args:
        folder: Where `scaling.json` is, and where to write.
        data: The folder of the MNIST files.
        rounds: How often the noise scale is measured, each time with another seed.
        gpu: What is assumed; an H100 unless told.
    """
    scaling = _read_scaling(folder)
    gpu = gpu or Gpu()
    networks = {}
    with session("cpu", timeout_seconds=60) as world:
        torch.set_num_threads(1)  # as in `scaling`; threads wait long for each other on busy cores
        for name in NETWORKS:
            noise = [_measure_noise(name, data, world, seed) for seed in range(rounds)]
            measured = scaling["results"]["networks"][name]
            networks[name] = _project(name, measured, _over_rounds(noise), gpu)
    results = {
        "assumptions": {**asdict(gpu), "band": BAND, "strong_batch": STRONG_BATCH},
        "model_was_within_goal_at_2_processes": scaling["results"]["is_within_goal"],
        "networks": networks,
    }
    write_record(folder, "projection", results, _summary(results, gpu))
    print(f"picture: {_draw(folder, results, gpu)}")


def _read_scaling(folder: Path) -> dict[str, Any]:
    path = folder / "scaling.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SystemExit(
            f"{path} is not there: run `python -m tests.benchmarks scaling` with this --out first."
        ) from None
    return record


def _measure_noise(
    name: str, data: str, world: World, seed: int
) -> dict[str, dict[str, float | int]]:
    """Train a network for an epoch and measure its gradient noise at some moments of it."""
    config = make_config(
        *NETWORKS[name]["overrides"],
        *(f"data.root={data}", f"seed={seed}", *OVERRIDES),
        f"trainer.global_batch_size={NETWORKS[name]['batch']}",
    )
    splits = load_splits(config.data, config.seed)
    state = build_training_state(config, world, splits)
    measured = {}
    for moment, step in MOMENTS.items():
        state.last_step = step or len(state.order)
        train_epoch(state, epoch=0, recorder=None)
        measured[moment] = _noise_with_spread(state, splits, seed)
    return measured


def _noise_with_spread(
    state: TrainingState, splits: DataSplits, seed: int
) -> dict[str, float | int]:
    """Return the noise scale in samples, with a standard error from leaving one batch out."""
    small_batch = state.config.trainer.global_batch_size
    norms = list(_squared_norms(state, splits, small_batch, seed))
    noise = _noise(small_batch, norms)
    without = [_noise(small_batch, norms[:i] + norms[i + 1 :]).scale for i in range(len(norms))]
    count = len(norms)
    error = math.sqrt(
        (count - 1) / count * sum((s - statistics.mean(without)) ** 2 for s in without)
    )
    return {
        "step": state.progress.step,
        "small_batch": small_batch,
        "big_batch": small_batch * SMALL_IN_BIG,
        "squared_gradient": noise.squared_gradient,
        "trace": noise.trace,
        "scale": noise.scale,
        "standard_error": error,
    }


def _noise(small_batch: int, norms: Sequence[tuple[float, float]]) -> GradientNoise:
    small, big = (statistics.mean(column) for column in zip(*norms, strict=True))
    return estimate_noise(small_batch, small_batch * SMALL_IN_BIG, small, big)


def _squared_norms(
    state: TrainingState, splits: DataSplits, small_batch: int, seed: int
) -> Iterator[tuple[float, float]]:
    """Yield for each big batch the mean |G|^2 of its small batches and its own |G|^2.

    A big batch's gradient is the mean of its small batches', each with batch norm of its own: as
    processes that train together compute it. The weights stay as they are.
    """
    model = copy.deepcopy(state.model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(keyed_seed(seed, "noise scale"))
    for _ in range(BIG_BATCHES):
        gradients = []
        for _ in range(SMALL_IN_BIG):
            chosen = torch.randint(len(splits.train), (small_batch,), generator=generator)
            images, labels = splits.train[chosen]
            loss = state.loss(model(splits.normalization(images)), labels).mean()
            parts = torch.autograd.grad(loss, parameters)
            gradients.append(torch.cat([part.flatten() for part in parts]).double())
        stacked = torch.stack(gradients)
        small = stacked.square().sum(1).mean()
        yield small.item(), stacked.mean(0).square().sum().item()


def _over_rounds(
    rounds: Sequence[Mapping[str, Mapping[str, float | int]]],
) -> dict[str, dict[str, Any]]:
    """Summarise the noise scale at each moment over the seeds."""
    return {
        moment: {
            **rounds[0][moment],
            "scale": statistics.median(each[moment]["scale"] for each in rounds),
            "scale_over_seeds": asdict(Spread.of([each[moment]["scale"] for each in rounds])),
        }
        for moment in MOMENTS
    }


def _project(
    name: str, measured: Mapping[str, Any], noise: Mapping[str, Any], gpu: Gpu
) -> dict[str, Any]:
    """Project a network for weak scaling (its batch on each GPU) and strong (`STRONG_BATCH`)."""
    flops = _flops_per_image(name)
    compute = measured["steps"]["nothing sent"]
    projected: dict[str, Any] = {
        "batch": measured["batch"],
        "gradient_bytes": measured["gradient_bytes"],
        "flops_per_image": flops,
        "noise": noise,
        "straggler_fraction_measured_on_the_cpu": (
            compute["robust_sd_seconds"] / compute["seconds"]["median"]
        ),
    }
    for kind in ("weak", "strong"):
        projected[kind] = [
            _project_step(
                gpu,
                gpus,
                gradient_bytes=measured["gradient_bytes"],
                flops=flops,
                global_batch=measured["batch"] * gpus if kind == "weak" else STRONG_BATCH,
                noise_scale=noise["1 epoch"]["scale"],
            )
            for gpus in GPUS
        ]
    return projected


def _project_step(
    gpu: Gpu, gpus: int, gradient_bytes: int, flops: float, global_batch: int, noise_scale: float
) -> dict[str, Any]:
    """Project one step; what depends on the band is a pair, for its low and its high end."""
    nodes = gpus // gpu.gpus_per_node
    link = (gradient_bytes, gpu.gpus_per_node, nodes, gpu.bytes_per_second(nodes))
    compute = gpu.compute_seconds(flops * global_batch / gpus)
    sd = gpu.straggler_fraction * compute
    tree, ring = tree_all_reduce_seconds(*link), ring_all_reduce_seconds(*link)
    steps = [step_seconds(compute, factor * tree, sd, gpus) for factor in BAND]
    one_gpu = gpu.compute_seconds(flops * global_batch)
    return {
        "gpus": gpus,
        "global_batch": global_batch,
        "compute_seconds": compute,
        "all_reduce_seconds": [factor * tree for factor in BAND],
        "ring_all_reduce_seconds": ring,
        "step_seconds": steps,
        "ring_step_seconds": step_seconds(compute, ring, sd, gpus),
        "images_per_second": [global_batch / seconds for seconds in steps],
        # Against one GPU with the same batch for each, and with the same batch for all.
        "weak_efficiency": [compute / seconds for seconds in steps],
        "strong_efficiency": [one_gpu / (gpus * seconds) for seconds in steps],
        # Of as many seconds as an infinite batch would need steps.
        "seconds_to_goal": [s * steps_needed(noise_scale, global_batch) for s in steps],
    }


def _flops_per_image(name: str) -> float:
    """Count the floating-point operations of a forward and a backward pass, for one image."""
    config = make_config(*NETWORKS[name]["overrides"])
    model = build_model(config).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(4, *config.data.image_shape)).sum().backward()
    return float(counter.get_total_flops()) / 4


def _summary(results: Mapping[str, Any], gpu: Gpu) -> str:
    parts = [_assumptions(results, gpu)]
    for name, network in results["networks"].items():
        parts += [_noise_table(name, network), _projection_table(name, network)]
        parts.append(_noise_sentence(network))
    return "\n\n".join(parts)


def _assumptions(results: Mapping[str, Any], gpu: Gpu) -> str:
    """Return in lines what is measured and what is assumed."""
    checked = "within" if results["model_was_within_goal_at_2_processes"] else "NOT always within"
    here = ", ".join(
        f"{name} {100 * network['straggler_fraction_measured_on_the_cpu']:.1f} %"
        for name, network in results["networks"].items()
    )
    return "\n".join(
        [
            "T(n) = compute + all-reduce + sd x sqrt(2 ln n): a projection, not a measurement.",
            f"At 2 processes on a CPU the model was {checked} 10 % of what was measured.",
            f"Compute: {gpu.name}, {gpu.peak_flops / 1e12:,.0f} TFLOP/s (bf16, dense) of which "
            f"{100 * gpu.achieved_fraction:.0f} % are achieved, but never less than "
            f"{1e6 * gpu.launch_seconds:.0f} microseconds (100 kernels launched at 5 each).",
            "All-reduce: float32 gradients after the backward pass, one bucket. NCCL's tree, LL: "
            "6.8 + 2 ((g - 1) 0.6 + floor(log2 nodes) 5.0) microseconds",
            f"+ 2 bytes / bandwidth; g = {gpu.gpus_per_node} GPUs a node; NVLink "
            f"{gpu.nvlink_bytes_per_second / 1e9:.0f} GB/s, between nodes "
            f"{gpu.network_bytes_per_second / 1e9:.0f} GB/s (400 Gb/s InfiniBand), halved by "
            f"LL's flags; taken {BAND[0]:.0f} to {BAND[1]:.0f} times.",
            f"Waiting: sd = {100 * gpu.straggler_fraction:.0f} % of compute (measured on this CPU: "
            f"{here}). Input: images already on the GPU.",
            "Noise scale: measured here after 1 epoch; steps to the same loss follow "
            "1 + noise scale / batch.",
        ]
    )


def _noise_table(name: str, network: Mapping[str, Any]) -> str:
    rows = [
        (
            moment,
            f"{noise['small_batch']}, {noise['big_batch']}",
            f"{noise['trace']:.3g}",
            f"{noise['squared_gradient']:.3g}",
            f"{noise['scale']:,.0f} +- {noise['standard_error']:,.0f}",
        )
        for moment, noise in network["noise"].items()
    ]
    columns = (f"{name}, after", "batches", "tr(Sigma)", "|G|^2", "noise scale, images")
    return table(columns, rows)


def _projection_table(name: str, network: Mapping[str, Any]) -> str:
    columns = (
        *(
            "GPUs",
            "all-reduce, us",
            "ring model, us",
            "weak: step, us",
            "million images/s",
            "efficiency",
        ),
        *(f"strong ({STRONG_BATCH:,} images): step, us", "million images/s", "efficiency"),
    )
    rows = []
    for weak, strong in zip(network["weak"], network["strong"], strict=True):
        rows.append(
            (
                f"{weak['gpus']:,}",
                _band(weak["all_reduce_seconds"], 1e6),
                f"{1e6 * weak['ring_all_reduce_seconds']:,.0f}",
                *(_band(weak["step_seconds"], 1e6), _band(weak["images_per_second"], 1e-6, 2)),
                _band(weak["weak_efficiency"], digits=2),
                *(_band(strong["step_seconds"], 1e6), _band(strong["images_per_second"], 1e-6, 2)),
                _band(strong["strong_efficiency"], digits=4),
            )
        )
    return f"{name}, {network['batch']} images a GPU where weak\n\n{table(columns, rows)}"


def _band(ends: Sequence[float], factor: float = 1.0, digits: int = 0) -> str:
    low, high = sorted(factor * end for end in ends)
    return f"{low:,.{digits}f} to {high:,.{digits}f}"


def _noise_sentence(network: Mapping[str, Any]) -> str:
    scale = network["noise"]["1 epoch"]["scale"]
    if math.isinf(scale):
        return "The noise scale after an epoch is more than these batches can show."
    return (
        f"A global batch of {scale:,.0f} images, the noise scale after an epoch, is reached with "
        f"{scale / network['batch']:,.0f} GPUs of {network['batch']} images each: from there on, "
        f"all further GPUs together can at most halve the steps."
    )


def _draw(folder: Path, results: Mapping[str, Any], gpu: Gpu) -> Path:
    """Draw a column for each network, with the assumptions below; return the PNG's path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 12.5), dpi=100)
    grid = figure.subplots(3, len(results["networks"]), sharex=True)
    for column, (name, network) in enumerate(results["networks"].items()):
        _draw_step(grid[0][column], name, network)
        _draw_images(grid[1][column], network)
        _draw_speed_up(grid[2][column], network)
        grid[2][column].tick_params("x", labelsize=8)
        grid[2][column].set_xlabel(f"GPUs, {gpu.gpus_per_node} a node")
    figure.subplots_adjust(0.07, 0.175, 0.98, 0.975, wspace=0.17, hspace=0.14)
    figure.text(0.07, 0.015, _assumptions(results, gpu), fontsize=8.5, linespacing=1.45)
    path = folder / "projection.png"
    figure.savefig(path)
    return path


def _draw_step(axes: "Axes", name: str, network: Mapping[str, Any]) -> None:
    weak = network["weak"]
    _draw_band(axes, weak, "step_seconds", 1e6, BLUE, "NCCL's tree, 1x to 3x")
    ring = [1e6 * each["ring_step_seconds"] for each in weak]
    axes.plot(GPUS, ring, "--", color=ORANGE, label="plain ring model")
    compute = [1e6 * each["compute_seconds"] for each in weak]
    axes.plot(GPUS, compute, ":", color="black", label="compute alone")
    axes.set(xscale="log", yscale="log", ylabel="microseconds a step")
    axes.set_xticks(GPUS, [f"{gpus:,}" for gpus in GPUS])
    axes.minorticks_off()
    axes.set_yticks([500, 1000, 2000, 5000, 10_000], ["500", "1,000", "2,000", "5,000", "10,000"])
    axes.set_title(f"{name}: a step with {network['batch']} images a GPU", fontsize=10)
    _finish(axes)


def _draw_images(axes: "Axes", network: Mapping[str, Any]) -> None:
    for kind, colour, label in (
        ("weak", BLUE, f"weak: {network['batch']} images a GPU"),
        ("strong", GREY, f"strong: {STRONG_BATCH:,} images in all"),
    ):
        _draw_band(axes, network[kind], "images_per_second", 1.0, colour, label)
        last = network[kind][-1]
        efficiency = [100 * each for each in last[f"{kind}_efficiency"]]
        digits = 0 if min(efficiency) >= 1 else 2
        axes.annotate(
            f"efficiency {_band(efficiency, digits=digits)} %",
            (last["gpus"], max(last["images_per_second"])),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    axes.set(yscale="log", ylabel="images/s")
    axes.margins(y=0.15)
    axes.set_title("images per second", fontsize=10)
    _finish(axes)


def _draw_speed_up(axes: "Axes", network: Mapping[str, Any]) -> None:
    """Draw how much sooner than with 8 GPUs the same loss is reached, each with its batch."""
    first = network["weak"][0]["seconds_to_goal"]
    faster = [
        {"speed_up": [f / s for f, s in zip(first, each["seconds_to_goal"], strict=True)]}
        for each in network["weak"]
    ]
    _draw_band(axes, faster, "speed_up", 1.0, BLUE, f"weak: {network['batch']} images a GPU")
    ideal = [gpus / GPUS[0] for gpus in GPUS]
    axes.plot(GPUS, ideal, ":", color="black", label="if each GPU helped as much")
    top = 1.3 * max(max(each["speed_up"]) for each in faster)
    scale = network["noise"]["1 epoch"]["scale"]
    if math.isfinite(scale):
        label = f"batch = noise scale: {scale:,.0f} images"
        axes.axvline(scale / network["batch"], color=ORANGE, label=label)
    axes.set(ylim=(0, top), ylabel="times as fast as 8 GPUs")
    axes.set_title("time to the same loss, the batch growing with the GPUs", fontsize=10)
    _finish(axes)


def _draw_band(
    axes: "Axes",
    projected: Sequence[Mapping[str, Any]],
    key: str,
    factor: float,
    colour: str,
    label: str,
) -> None:
    """Draw what lies between the two ends of the band."""
    low, high = ([factor * each[key][end] for each in projected] for end in (0, 1))
    axes.fill_between(GPUS, low, high, color=colour, alpha=0.35, label=label)
    for end in (low, high):
        axes.plot(GPUS, end, color=colour, linewidth=1)


def _finish(axes: "Axes") -> None:
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
