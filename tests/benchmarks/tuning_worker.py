"""`python -m dist_mnist` with one of the things that make it fast taken away.

The first argument names that thing, or is `nothing`; the rest are those of `python -m dist_mnist`.
"""

import sys
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from dist_mnist.__main__ import main as train
from dist_mnist.config.schema import Config
from dist_mnist.models.build import build_model


def fetch_by_pixel(dataset: Any, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch as tensors are usually indexed."""
    return dataset.images[indices], dataset.labels[indices]


def build_contiguous_model(config: Config) -> nn.Module:
    """Return the network with its weights in the usual order."""
    return build_model(config).to(memory_format=torch.contiguous_format)


TAKEN_AWAY: dict[str, dict[str, Any]] = {
    "nothing": {},
    "kept memory": {"dist_mnist.distributed.session._keep_freed_memory": lambda: None},
    "whole-image fetch": {"dist_mnist.data.images.ImageTensors.__getitem__": fetch_by_pixel},
    "metrics in bulk": {"dist_mnist.training.progress.UPDATES_COUNTED_AT_ONCE": 1},
    "channels_last": {"dist_mnist.training.build.build_model": build_contiguous_model},
    "shared memory": {"dist_mnist.distributed.shared_memory.is_supported": lambda: False},
}


def main() -> None:
    """Take it away and train."""
    name = sys.argv.pop(1)
    with ExitStack() as stack:
        for target, replacement in TAKEN_AWAY[name].items():
            stack.enter_context(patch(target, replacement))
        train()


if __name__ == "__main__":
    main()
