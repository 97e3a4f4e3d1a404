"""Scores a checkpoint on the test set."""

import logging
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from omegaconf import DictConfig

from dist_mnist.commands.cli import command
from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import EvaluationConfig, build_evaluation_config, config_from_plain
from dist_mnist.data.splits import Normalization, load_part
from dist_mnist.distributed.gradients import World, broadcast_object, session
from dist_mnist.models.precision import compute_dtype
from dist_mnist.record import checkpoint
from dist_mnist.record.console import log_to_console, result_line
from dist_mnist.training.build import build_loss, build_model, load_weights
from dist_mnist.training.evaluation import evaluate
from dist_mnist.training.progress import Evaluation

logger = logging.getLogger("dist_mnist.commands.evaluate")  # also where __name__ is __main__


def evaluate_checkpoint(options: EvaluationConfig, world: World) -> Evaluation:
    """Score a checkpoint on the test set of its data. Every rank must call it.

    Args:
        options: Which checkpoint, and what to do otherwise than in its training.
        world: This process.

    Raises:
        InputError: The checkpoint or the data cannot be used.
    """
    started = perf_counter()
    path = checkpoint.resolve(Path(options.checkpoint or ""))
    content = broadcast_object(world, checkpoint.load(path) if world.is_main else None)
    assert content is not None
    config = config_from_plain(content["config"])
    config.trusted_modules = options.trusted_modules  # its own are what the checkpoint claims
    config.data = replace(config.data, root=options.data.root or config.data.root)
    precision = options.trainer.precision or config.trainer.precision
    normalization = _normalization(content["normalization"])
    model = build_model(config)
    load_weights(model, content["model"])
    test, _ = load_part(config.data, train=False, trusted_modules=config.trusted_modules)
    evaluation = evaluate(
        model.to(world.device),
        build_loss(config).to(world.device),
        test.to(world.device),
        normalization,
        world,
        options.trainer.evaluation_batch_size,
        compute_dtype(precision, world.device),
    )
    logger.info(result_line(evaluation, perf_counter() - started, path))
    return evaluation


def _normalization(saved: dict[str, Any]) -> Normalization:
    mean, std = saved.get("mean"), saved.get("std")
    if not (isinstance(mean, float) and isinstance(std, float) and std > 0):
        raise InputError(
            f"the checkpoint's normalization cannot be used: mean={mean} std={std} are no pixels'."
        )
    return Normalization(mean, std)


def main() -> None:
    """Evaluate, as the command line says."""
    command("evaluate", _evaluate)


def _evaluate(composed: DictConfig) -> None:
    options = build_evaluation_config(composed)
    with session(options.trainer.device, options.trainer.timeout_seconds) as world:
        log_to_console(world.is_main)
        evaluate_checkpoint(options, world)


if __name__ == "__main__":
    main()
