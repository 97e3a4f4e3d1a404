"""Configs as the command line composes them, and the single process that most tests are."""

from pathlib import Path

import torch

from dist_mnist.config.compose import compose_config
from dist_mnist.config.schema import Config
from dist_mnist.distributed.world import World

CHECKOUT = Path(__file__).parents[2]
# Fashion-MNIST's stand-in in `small_root`: 153 samples, so 8 steps an epoch, the last one of 13.
SMALL_DATA = (
    "data=fashion_mnist",
    "data.validation_size=50",
    "trainer.global_batch_size=20",
    "trainer.device=cpu",
)
SOLO = World(rank=0, local_rank=0, size=1, local_size=1, device=torch.device("cpu"))


def make_config(*overrides: str) -> Config:
    """Compose a training's config as the command line would."""
    return compose_config(*overrides)
