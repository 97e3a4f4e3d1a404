"""Shared by all checks: a training on the real MNIST, its steps, and how to compare and to time."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from dist_mnist.data.images import Batch
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.world import World
from dist_mnist.training.build import build_training_state
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import set_train_mode
from tests.support.configs import make_config

DATA = Path(tempfile.gettempdir(), "dist_mnist-gpu-check")
LONG = ("trainer.epochs=1000",)  # no check comes to the end of the schedule

Found = dict[str, Any]
Check = Callable[[World], Found]


def on_gpu(world: World) -> bool:
    """True if this is the real thing, and not a rehearsal on a CPU."""
    return world.device.type == "cuda"


def build(world: World, *overrides: str) -> TrainingState:
    """Build a training on the real MNIST, in train mode."""
    device = f"trainer.device={world.device.type}"
    config = make_config(device, f"data.root={DATA}", *LONG, *overrides)
    splits = load_splits(config.data, config.seed).to(world.device)
    state = build_training_state(config, world, splits)
    set_train_mode(state)
    return state


def make_steps(state: TrainingState, count: int) -> None:
    """Make `steps` steps of the real loop, past the ends of epochs."""
    end = state.progress.step + count
    while state.progress.step < end:
        for batch in state.batches():
            state.step(batch)
            state.progress.step += 1
            if state.progress.step == end:
                return


def full_batches(state: TrainingState) -> list[Batch]:
    """Return the batches of an epoch but the last one, which may be smaller."""
    return list(state.batches())[:-1]


def weights(state: TrainingState) -> list[torch.Tensor]:
    """Return copies of the weights and the statistics, on the CPU."""
    return [value.detach().cpu().clone() for value in state.model.state_dict().values()]


def has_same_bits(tensors: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> bool:
    """Return whether two lists of tensors are equal in every bit."""
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def relative_error(computed: Iterable[torch.Tensor], exact: Iterable[torch.Tensor]) -> float:
    """Return the norm of the difference of two lists of tensors over the norm of the second."""
    a, b = (torch.cat([t.double().flatten().cpu() for t in ts]) for ts in (computed, exact))
    return float((a - b).norm() / b.norm())


def microseconds(step: Callable[[], object], world: World, repeats: int, rounds: int = 5) -> float:
    """Return the median over the rounds of the time of one call."""
    for _ in range(max(15, repeats // 10)):
        step()
    times = []
    for _ in range(rounds):
        synchronize(world)
        started = time.perf_counter()
        for _ in range(repeats):
            step()
        synchronize(world)
        times.append((time.perf_counter() - started) / repeats)
    return 1e6 * statistics.median(times)


def synchronize(world: World) -> None:
    """Wait for the GPU."""
    if on_gpu(world):
        torch.cuda.synchronize()


def program(*arguments: str, limit: float = 120) -> tuple[int, str, float]:
    """Run a module as a user would; return its status, its output and its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, time.perf_counter() - started
