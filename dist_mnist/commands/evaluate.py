"""Scores checkpoints on the test set of their data, side by side, or together as an ensemble."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from dist_mnist.commands.cli import command
from dist_mnist.config.errors import InputError
from dist_mnist.config.overrides import checked_path

if TYPE_CHECKING:
    from dist_mnist.training.evaluation import Candidate, Evaluation

logger = logging.getLogger(__name__)

# The 50,000 digits of QMNIST's test set that are not in MNIST's.
UNSEEN = {"_target_": "dist_mnist.data.qmnist.QMNIST", "what": "test50k"}


class Format(Enum):
    """The form in which scores are printed."""

    text = "text"
    json = "json"  # an object a line


@dataclass
class EvaluateConfig:
    """The checkpoints, and what to do differently from their training; null changes nothing."""

    checkpoint: Any
    ensemble: bool
    unseen: bool
    format: Format
    save: str | None
    data: dict[str, Any]
    trainer: dict[str, Any]
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        if not isinstance(self.checkpoint, list):
            self.checkpoint = [self.checkpoint]
        if not all(isinstance(name, str | None) for name in self.checkpoint) or not self.checkpoint:
            raise InputError(f"checkpoint={self.checkpoint} is not a path, or a list of paths.")
        self.save = checked_path("save", self.save, "it must be a folder, or null for no pictures")


class _Score(NamedTuple):
    path: Path
    evaluation: "Evaluation"
    seconds: float


def main() -> None:
    """Evaluate, as the command line says."""
    command("evaluate", EvaluateConfig, _evaluate)


def _evaluate(config: EvaluateConfig) -> None:
    from dist_mnist.distributed.session import session
    from dist_mnist.models.classifier import find_checkpoint
    from dist_mnist.record.console import log_to_console
    from dist_mnist.training.evaluation import load_candidate

    data = {**config.data, "name": "qmnist", "dataset": UNSEEN} if config.unseen else config.data
    changes = {
        "data": data,
        "trainer": config.trainer,
        "trusted_modules": config.trusted_modules,  # those that the checkpoint names are not
    }
    with session(config.trainer["device"], config.trainer["timeout_seconds"]) as world:
        log_to_console(world.is_main)
        candidates: list[Candidate] = []
        scores: list[_Score] = []
        for name in config.checkpoint:
            started = perf_counter()
            path = find_checkpoint(name)
            candidates.append(load_candidate(path, changes, world))
            evaluation = candidates[-1].evaluate(world)
            scores.append(_Score(path, evaluation, perf_counter() - started))
        if config.ensemble:
            started = perf_counter()
            candidates.append(_as_one(candidates))
            evaluation = candidates[-1].evaluate(world)
            name = Path(f"ensemble of {len(scores)}")
            scores.append(_Score(name, evaluation, perf_counter() - started))
        _tell(scores, candidates[-1], config.format)
        if config.save is not None and world.is_main:
            _draw(Path(config.save), candidates[-1], scores[-1].evaluation)


def _as_one(candidates: "Sequence[Candidate]") -> "Candidate":
    """Return the networks of several candidates as one, which is scored by its cross-entropy."""
    from torch import equal, nn

    from dist_mnist.models.ensemble import ensemble
    from dist_mnist.training.evaluation import Candidate

    first = candidates[0]
    if not all(equal(candidate.test.labels, first.test.labels) for candidate in candidates):
        raise InputError("ensemble=true needs checkpoints with the same test set; these differ.")
    together = ensemble([candidate.classifier for candidate in candidates])
    loss = nn.CrossEntropyLoss(reduction="none")
    return Candidate(together, loss, first.test, first.batch_size)


def _tell(scores: "Sequence[_Score]", last: "Candidate", form: Format) -> None:
    """Print scores: one in detail, several side by side, and each in a line of its own."""
    from dist_mnist.record.console import log_result
    from dist_mnist.training.evaluation import numbers
    from dist_mnist.training.scores import comparison, score_lines, score_values

    classes = last.classifier.classes
    if form is Format.json:
        for score in scores:
            values = score_values(score.evaluation, classes)
            logger.info(json.dumps({"checkpoint": str(score.path), **values}))
        return
    if len(scores) == 1:
        lines = score_lines(scores[0].evaluation, classes)
    else:
        lines = comparison([str(one.path) for one in scores], [one.evaluation for one in scores])
    logger.info("\n".join([*lines, ""]))
    for score in scores:
        log_result(numbers("test", score.evaluation), score.seconds, score.path)


def _draw(folder: Path, candidate: "Candidate", evaluation: "Evaluation") -> None:
    """Draw the confusion matrix, the worst mistakes and the calibration."""
    from dist_mnist.record.files import cannot_write
    from dist_mnist.report.plots import draw_calibration, draw_confusion, draw_mistakes
    from dist_mnist.training.scores import MOST_MISTAKES, calibration

    classes, known = candidate.classifier.classes, calibration(evaluation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    draw_confusion(folder, evaluation.confusion(len(classes)), classes)
    mistakes = evaluation.worst_mistakes(MOST_MISTAKES)
    draw_mistakes(folder, mistakes, candidate.test.images.cpu(), classes)
    parts = (known.confidences, known.accuracies, known.counts)
    bins = list(zip(*(part.tolist() for part in parts), strict=True))
    draw_calibration(folder, bins, known.error)
