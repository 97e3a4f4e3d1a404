"""A training in a few lines, as the log and the record of its starts have it."""

from collections.abc import Sequence

import torch
from torch import nn

from dist_mnist.data.balance import draw_bars
from dist_mnist.training.state import TrainingState


def describe(state: TrainingState) -> str:
    """Return the network, the device, the data and its class balance, in a few lines."""
    world, splits, data = state.world, state.splits, state.config.data

    def count(parameters: Sequence[nn.Parameter]) -> int:
        return sum(parameter.numel() for parameter in parameters)

    parameters = [*state.model.parameters()]
    frozen = [*state.thawing, *(p for p in parameters if not p.requires_grad)]
    until = f" until epoch {state.config.transfer.thaw_epoch}" if state.thawing else ""
    frozen_part = f" ({count(frozen):,} frozen{until})" if frozen else ""
    threads = max(state.pool.threads, torch.get_num_threads())
    same_bits = ", the same bits at any world size" if state.shards else ""
    counts = splits.class_counts
    rarest, commonest = counts.index(min(counts)), counts.index(max(counts))
    return (
        f"{type(state.model).__name__} with {count(parameters):,} parameters{frozen_part}, "
        f"{str(state.dtype).removeprefix('torch.')} on {world.device.type}: {world.size} x "
        f"{threads} CPU threads{same_bits}\n"
        f"{data.name}: {len(splits.train):,} images to train on, {len(splits.validation):,} to "
        f"validate, {len(splits.test):,} to test; pixels {splits.normalization.mean:.4f} "
        f"+- {splits.normalization.std:.4f}\n"
        f"class balance: {counts[rarest]:,} of class {splits.classes[rarest]} (fewest) to "
        f"{counts[commonest]:,} of class {splits.classes[commonest]} (most)\n"
        f"{draw_bars(counts, splits.classes)}"
    )
