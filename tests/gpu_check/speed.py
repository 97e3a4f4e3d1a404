"""Times a step: bare, ours, and both as graphs; counts its kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dist_mnist.distributed.world import World
from dist_mnist.models.build import build_model
from dist_mnist.models.precision import autocast
from dist_mnist.training.state import TrainingState
from tests.gpu_check.common import Found, build, full_batches, microseconds, on_gpu

BATCH_SIZES = {"mlp": 128, "cnn": 256, "resnet": 256}
# Judged beforehand, for an H100, in microseconds a step: of the bare step, and of ours as a graph.
PREDICTIONS = {"mlp fp32": (380, 90), "cnn tf32": (540, 200), "cnn bf16": (680, 250)}
STEPS_PROFILED = 32  # after this number of steps, the metrics are counted once

Step = Callable[[], None]


def speed(world: World) -> Found:
    """Microseconds of a step. A graph of ours shall take half of the bare step at most."""
    found: dict[str, dict[str, Any]] = {}
    models = BATCH_SIZES if on_gpu(world) else ("mlp",)
    for model in models:
        for precision in ("fp32", "tf32", "bf16") if on_gpu(world) else ("fp32",):
            found[f"{model} {precision}"] = _row(world, model, precision)
    small = [row for name, row in found.items() if not name.startswith("resnet")]
    good = all(row["ours, as a graph"] <= row["bare"] / 2 for row in small if on_gpu(world))
    return {"ok": good, "microseconds a step": found, "predicted bare, ours": PREDICTIONS}


def _row(world: World, model: str, precision: str) -> dict[str, Any]:
    repeats = 200 if on_gpu(world) else 3
    options = (
        *(f"model={model}", f"trainer.precision={precision}"),
        f"trainer.global_batch_size={BATCH_SIZES[model]}",
    )
    state = build(world, *options)
    bare, ours = _bare(state, torch.channels_last), _ours(state)
    row: dict[str, Any] = {"ours": microseconds(ours, world, repeats)}
    torch.backends.cudnn.deterministic = False  # as torch does by itself
    row["bare"] = microseconds(bare, world, repeats)
    if not on_gpu(world):
        return row
    row["ours, any algorithm"] = microseconds(ours, world, repeats)
    row["bare, kernels"], row["ours, kernels"] = _kernels(bare), _kernels(ours)
    row["bare, as a graph"] = microseconds(_captured(bare), world, repeats)
    row["bare, NCHW"] = microseconds(_bare(state, torch.contiguous_format), world, repeats)
    graphed = _ours(build(world, *options, "trainer.cuda_graph=true"))
    row["ours, as a graph"] = microseconds(graphed, world, repeats)
    row["ours, as a graph, kernels"] = _kernels(graphed)
    return row


def _bare(state: TrainingState, memory_format: torch.memory_format) -> Step:
    """Return forward, backward and optimizer on one ready batch."""
    device = state.world.device
    model = build_model(state.config).to(device).to(memory_format=memory_format).train()
    batch = full_batches(state)[0]
    images, labels = state.splits.train[batch.indices]
    inputs = state.splits.normalization(images)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=1e-3, fused=True, capturable=device.type == "cuda"
    )
    loss = nn.CrossEntropyLoss()

    def step() -> None:
        with autocast(device, state.dtype):
            outputs = model(inputs)
        loss(outputs.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _ours(state: TrainingState) -> Step:
    """Return a step of the real loop, metrics and all, on one batch after the other."""
    batches = full_batches(state)

    def step() -> None:
        state.step(batches[state.progress.step % len(batches)])
        state.progress.step += 1

    return step


def _captured(step: Step) -> Step:
    """Return a function that replays a CUDA graph of a step that has been warmed up."""
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded, stream=torch.cuda.current_stream()):
        step()
    return recorded.replay


def _kernels(step: Step) -> dict[str, float] | str:
    """Return how many kernels a step launches, and the microseconds that the GPU is busy."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(STEPS_PROFILED):
                step()
            torch.cuda.synchronize()
    except RuntimeError as error:  # a container may not be allowed to profile
        return str(error)[:200]
    events = [event for event in seen.events() or () if event.device_type.name == "CUDA"]
    busy = sum(event.device_time for event in events)
    return {"count": len(events) / STEPS_PROFILED, "busy": busy / STEPS_PROFILED}
