"""Configs as the command line composes them, and the one process that most tests are."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from dist_mnist.commands.cli import conf_folder
from dist_mnist.config.schema import Config, build_config, register_schema
from dist_mnist.distributed.gradients import World

CHECKOUT = Path(__file__).parents[2]
SOLO = World(rank=0, local_rank=0, size=1, local_size=1, device=torch.device("cpu"))


def make_config(*overrides: str) -> Config:
    """Compose the main job's config as the command line would."""
    register_schema()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        return build_config(compose("config", overrides=list(overrides)))
