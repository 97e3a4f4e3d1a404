"""Checks that a step captured as a CUDA graph computes the same bits as the step itself."""

import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from dist_mnist.distributed.gradients import parallelize
from dist_mnist.distributed.world import World
from dist_mnist.training.cuda_graph import WARM_UP_STEPS, keep_learning_rates_in_place
from dist_mnist.training.state import TrainingState
from tests.gpu_check.common import Found, build, has_same_bits, make_steps, weights
from tests.gpu_check.ranks import join_alone

KINDS = (
    "model=cnn model.dropout=0.3",
    "model=mlp model.dropout=0.3 augmentation=affine",
    "model=mlp optimizer=sgd",
    "model=resnet",
    "trainer.micro_batch_size=100",
    "trainer.gradient_clip_norm=0.5",
    "trainer.precision=fp32",
)


def graph_basics(world: World) -> Found:
    """Seeds, rates, the check for NaN and DDP inside a graph; and that the group can be ended."""
    join_alone(world)
    found: Found = {}
    for name, options in {
        "adamw": ["model=cnn", "model.dropout=0.3"],
        "sgd": ["model=mlp", "optimizer=sgd"],
        "DDP": ["model=cnn", "model.dropout=0.3"],
    }.items():
        plain, graphed = (
            _disturbed(world, is_graphed, name == "DDP", *options) for is_graphed in (False, True)
        )
        found[name] = {
            "same bits": has_same_bits(plain["weights"], graphed["weights"]),
            "same metrics": plain["totals"] == graphed["totals"],
            "steps not made after NaN": (plain["skipped"], graphed["skipped"]),
        }
    began = time.perf_counter()
    dist.destroy_process_group()
    seconds = time.perf_counter() - began
    good = all(
        case["same bits"] and case["same metrics"] and case["steps not made after NaN"] == (10, 10)
        for case in found.values()
    )
    return {"ok": good and seconds < 10, **found, "seconds to end the group": seconds}


def _disturbed(world: World, is_graphed: bool, in_ddp: bool, *options: str) -> dict[str, Any]:
    """Make fifty steps, and ten more with a weight that is not finite."""
    state = _state(world, is_graphed, *options)
    if in_ddp:
        pair = replace(world, size=2)  # so that it is wrapped
        state.parallel_model = parallelize(state.model, pair, state.config.trainer)
        state.parallel_model.train()
    make_steps(state, WARM_UP_STEPS + 39)
    found = {"weights": weights(state), "totals": state.metrics.reduced()}
    next(iter(state.model.parameters())).data.fill_(float("nan"))
    make_steps(state, 10)
    found["skipped"] = state.finite_check.skipped_steps()
    state.end_training()
    return found


def graph(world: World) -> Found:
    """Steps of every kind over two ends of epochs, whose last batches are short, with and without.

    The rates are tensors in both, which round them to float32.
    """
    found = {}
    for kind in KINDS:
        ends = []
        for is_graphed in (True, False):
            state = _state(world, is_graphed, *kind.split())
            make_steps(state, 2 * len(state.order) + 20)
            ends.append([*weights(state), torch.tensor(state.metrics.reduced().loss_sum)])
            state.end_training()
        found[kind] = has_same_bits(*ends)
    return {"ok": all(found.values()), "same bits": found}


def _state(world: World, is_graphed: bool, *options: str) -> TrainingState:
    state = build(world, *options, f"trainer.cuda_graph={str(is_graphed).lower()}")
    if not is_graphed:
        keep_learning_rates_in_place(state.optimizer, world.device)
    return state
