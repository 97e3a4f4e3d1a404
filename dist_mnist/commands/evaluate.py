"""Scores a checkpoint on the test set of its data."""

import logging
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from dist_mnist.commands.cli import command
from dist_mnist.config.errors import InputError

logger = logging.getLogger(__name__)


@dataclass
class EvaluateConfig:
    """The checkpoint, and what to do differently from its training; null changes nothing."""

    checkpoint: str | None
    data: dict[str, Any]
    trainer: dict[str, Any]
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        if not (self.checkpoint or "").strip():
            raise InputError(
                "checkpoint is missing: set it to a run directory or a file, as in "
                "checkpoint=outputs/RUN."
            )


def main() -> None:
    """Evaluate, as the command line says."""
    command("evaluate", EvaluateConfig, _evaluate)


def _evaluate(config: EvaluateConfig) -> None:
    from dist_mnist.distributed.session import session
    from dist_mnist.record import checkpoint
    from dist_mnist.record.console import log_result, log_to_console
    from dist_mnist.training.evaluation import evaluate_checkpoint, numbers

    with session(config.trainer["device"], config.trainer["timeout_seconds"]) as world:
        log_to_console(world.is_main)
        started = perf_counter()
        path = checkpoint.resolve(Path(config.checkpoint or ""))
        changes = {
            "data": config.data,
            "trainer": config.trainer,
            "trusted_modules": config.trusted_modules,  # those that the checkpoint names are not
        }
        test = evaluate_checkpoint(path, changes, world)
        log_result(numbers("test", test), perf_counter() - started, path)
