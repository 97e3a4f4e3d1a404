"""Trains a network: the command that runs if none is named."""

from contextlib import nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Config
from dist_mnist.distributed import launcher
from dist_mnist.distributed.session import session
from dist_mnist.record.console import log_to_console
from dist_mnist.record.journal import best_validation_accuracy
from dist_mnist.training import run as training


def run(config: Config) -> float | None:
    """Train; return the best validation accuracy, or None without a validation part."""
    job = HydraConfig.get()
    is_sweep = job.mode is RunMode.MULTIRUN
    if is_sweep:  # every job of a sweep gets its own directory
        parent = config.run_dir
        directory = Path(parent, str(job.job.num)) if parent else job.runtime.output_dir
        config.run_dir = str(directory)
    with launcher.cluster_job() if launcher.is_cluster_job() else nullcontext():
        return train_in_session(config, is_sweep, overrides=[*job.overrides.task])


def train_in_session(config: Config, is_sweep: bool, overrides: list[str]) -> float | None:
    """Train in this process; return the best validation accuracy, on rank 0."""
    with session(config.trainer.device, config.trainer.timeout_seconds) as world:
        if is_sweep and world.size > 1 and not launcher.is_cluster_job():
            raise InputError(
                "--multirun cannot be used with several processes: run the sweep with "
                "`python -m dist_mnist --multirun`, or start one torchrun for each of its jobs."
            )
        log_to_console(world.is_main)
        result = training.run(config, world, overrides)
        return best_validation_accuracy(result.run_dir) if world.is_main else None
