"""One process of the `loop` benchmark: the time of a step bare, under DDP and in our loop.

Run by torchrun; rank 0 prints seconds per step as JSON. Every figure is taken once a round, all in
turn, in the same process.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.gradients import NO_BUFFER_SYNC, parallelize
from dist_mnist.distributed.session import session
from dist_mnist.distributed.shared_memory import SharedMemory, is_supported
from dist_mnist.distributed.stopping import StopAgreement
from dist_mnist.distributed.world import World, broadcast_object
from dist_mnist.models.build import build_model
from dist_mnist.training.build import build_training_state
from dist_mnist.training.loop import train_epoch
from dist_mnist.training.progress import Progress
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.state import TrainingState
from tests.support.configs import make_config

Step = Callable[[], object]


def main() -> None:
    """Measure the variants that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = make_config(*arguments.overrides)
    with session(config.trainer.device, timeout_seconds=60) as world:
        if world.size == 1:
            dist.init_process_group("gloo")
        state = build_training_state(
            config, world, load_splits(config.data, config.seed).to(world.device)
        )
        measured: dict[str, list[float]] = {}
        steps = build_steps(state, arguments.steps)
        for _ in range(arguments.rounds):
            measured.setdefault("our loop", []).append(seconds_per_step_of_ours(state))
            for name, step in steps.items():
                seconds = seconds_per_step(step, world, arguments.steps)
                measured.setdefault(name, []).append(seconds)
        if world.is_main:
            print(json.dumps(measured), flush=True)
        # An ordinary end is aborted now and then by a gloo thread that outlives the interpreter.
        os._exit(0)


def build_steps(state: TrainingState, steps: int) -> dict[str, Step]:
    """Return the steps to compare with ours, each with a separate network."""
    world = state.world
    gradients = torch.zeros(sum(p.numel() for p in state.model.parameters()))
    built: dict[str, Step] = {
        "bare step": bare_step(state, lambda model: model),
        "step in DDP, gradients kept": bare_step(state, lambda model: in_ddp(model, keep)),
        "step in DDP, gloo": bare_step(state, lambda model: in_ddp(model)),
        "all-reduce alone, gloo": lambda: dist.all_reduce(gradients),
    }
    if world.size > 1 and world.device.type == "cpu" and is_supported():
        name = broadcast_object(world, f"loop {time.monotonic_ns()}")
        shared = SharedMemory(world.rank, world.size, name, gradients.nbytes, 60)
        built["all-reduce alone, shared memory"] = lambda: shared.sum(gradients)
        built["step in DDP, shared memory"] = bare_step(
            state, lambda model: parallelize(model, world, state.config.trainer)
        )
    return built


def bare_step(state: TrainingState, wrap: Callable[[nn.Module], nn.Module]) -> Step:
    """Return forward, backward and optimizer on one ready batch of this process's share."""
    config, world = state.config, state.world
    model = build_model(config).to(world.device).train()
    parallel_model = wrap(model)
    share = torch.arange(config.trainer.global_batch_size // world.size, device=world.device)
    images, labels = state.splits.train[share]
    images = state.splits.normalization(images)
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)

    def step() -> None:
        loss(parallel_model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def in_ddp(
    model: nn.Module, hook: Callable[..., torch.futures.Future[torch.Tensor]] | None = None
) -> nn.Module:
    """Wrap a network as `parallelize` does, with another hook or none."""
    options = {**NO_BUFFER_SYNC, "gradient_as_bucket_view": True, "static_graph": True}
    parallel_model = DistributedDataParallel(model, **options)
    if hook:
        parallel_model.register_comm_hook(None, hook)
    return parallel_model


def keep(_, bucket):  # type: ignore[no-untyped-def]
    """Leave each rank's gradients unchanged: DDP's other work, without communication."""
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def seconds_per_step(step: Step, world: World, steps: int) -> float:
    """Time some steps, after some that warm up."""
    for _ in range(max(2, steps // 10)):
        step()
    synchronize(world)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(world)
    return (time.perf_counter() - started) / steps


def seconds_per_step_of_ours(state: TrainingState) -> float:
    """Time an epoch of the real loop, metrics and all."""
    state.progress = Progress()
    synchronize(state.world)
    train_epoch(state, Recorder(), StopAgreement(state.world))
    return state.progress.epoch_seconds / state.progress.step


def synchronize(world: World) -> None:
    """Wait for the device and for the other ranks."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()


if __name__ == "__main__":
    main()
