"""Scores checkpoints on the test set of their data, side by side, or together as an ensemble."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn

from dist_mnist.config.commands import EvaluateConfig, ScoreFormat
from dist_mnist.config.data_schema import DataConfig
from dist_mnist.config.errors import InputError
from dist_mnist.config.saved_config import config_from_plain
from dist_mnist.data.images import Normalization
from dist_mnist.data.mapped import Samples
from dist_mnist.data.test_set import choose_test_set, load_test_set, match_classes, relabel, some
from dist_mnist.distributed.session import session
from dist_mnist.distributed.thread_pool import ThreadPool
from dist_mnist.distributed.world import World, broadcast_object
from dist_mnist.models.build import build_loss
from dist_mnist.models.classifier import Classifier, classifier_from_checkpoint, find_checkpoint
from dist_mnist.models.precision import set_gpu_arithmetic
from dist_mnist.record import checkpoint
from dist_mnist.record.console import log_result, log_to_console
from dist_mnist.report.plots import draw_calibration
from dist_mnist.training.evaluation import Evaluation, evaluate, journal_values
from dist_mnist.training.final_test import draw_test
from dist_mnist.training.memory import images_at_once
from dist_mnist.training.scores import calibration, comparison, score_lines, score_values

logger = logging.getLogger(__name__)

# The 50,000 digits of QMNIST's test set that are not in MNIST's.
UNSEEN = {"_target_": "dist_mnist.data.qmnist.QMNIST", "what": "test50k"}


@dataclass(frozen=True)
class Candidate:
    """A checkpoint, ready to be scored on the test set of its data."""

    classifier: Classifier  # with its network on the device of this process
    loss: nn.Module  # the one it was trained with; returns one value per sample
    data: DataConfig  # the data set of its test set
    test: Samples  # the test set, on the same device
    batch_size: int  # the samples of one forward pass

    def evaluate(self, world: World) -> Evaluation:
        """Score the network; every rank must call it."""
        return evaluate(
            self.classifier, self.loss, self.test, world, self.batch_size, ThreadPool(1)
        )


class Score(NamedTuple):
    """An evaluation, and the seconds that loading and scoring took."""

    path: Path
    evaluation: Evaluation
    seconds: float


def run(config: EvaluateConfig) -> None:
    """Print the scores, and draw the pictures of the last one if a folder is named."""
    data = {**config.data, "name": "qmnist", "dataset": UNSEEN} if config.unseen else config.data
    # Modules that a checkpoint names are not trusted, only those that the user names.
    trusted = {"trusted_modules": config.trusted_modules}
    changes = {"data": data, "trainer": config.trainer, **trusted}
    with session(config.trainer["device"], config.trainer["timeout_seconds"]) as world:
        log_to_console(world.is_main)
        candidates: list[Candidate] = []
        scores: list[Score] = []
        for name in config.checkpoint:
            started = perf_counter()
            path = find_checkpoint(name)
            candidates.append(load_candidate(path, changes, world, candidates))
            evaluation = candidates[-1].evaluate(world)
            scores.append(Score(path, evaluation, perf_counter() - started))
        if config.ensemble:
            started = perf_counter()
            candidates.append(_as_one(candidates))
            evaluation = candidates[-1].evaluate(world)
            name = Path(f"ensemble of {len(scores)}")
            scores.append(Score(name, evaluation, perf_counter() - started))
        classes = candidates[-1].classifier.classes
        _print_scores(scores, classes, config.format)
        if config.save is not None and world.is_main:
            _draw(Path(config.save), scores[-1].evaluation, candidates[-1].test, classes)


def load_candidate(
    path: Path, changes: Mapping[str, Any], world: World, earlier: Sequence[Candidate] = ()
) -> Candidate:
    """Load a checkpoint and the test set of its data; every rank must call it.

    Args:
        changes: Changes to the config it was trained with, nested like the config.
        earlier: Candidates whose test set is shared if it is of the same data.

    Raises:
        InputError: The checkpoint or the data cannot be used.
    """
    content = broadcast_object(world, checkpoint.load(path) if world.is_main else None)
    assert content is not None
    config = config_from_plain(content["config"], changes)
    set_gpu_arithmetic(config.trainer.precision)
    classifier = classifier_from_checkpoint(content, config, world.device)
    data = choose_test_set(config.data, content, config.trusted_modules)
    same = next((other for other in earlier if other.data == data), None)
    if same:
        test = relabel(same.test, same.classifier.classes, classifier.classes, data.root)
    else:
        test = load_test_set(data, classifier.classes, config.trusted_modules).to(world.device)
    loss = build_loss(config).to(world.device)
    given = changes.get("trainer", {}).get("evaluation_batch_size")  # older runs have 500
    batch_size = images_at_once(given, config.data.image_shape)
    return Candidate(classifier, loss, data, test, batch_size)


class MeanOfNetworks(nn.Module):
    """The logarithm of the mean of several networks' probabilities, in the first one's classes.

    Args:
        classifiers: Each normalizes the images, and orders the classes, in its own way.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(classifier.model for classifier in classifiers)
        self.classifiers = classifiers
        self.orders = [match_classes(classifiers[0].classes, c.classes) for c in classifiers]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W), from 0 to 255, to log-probabilities (B, classes)."""
        answers = [
            classifier.logits(images).log_softmax(dim=1)[:, order.to(images.device)]
            for classifier, order in zip(self.classifiers, self.orders, strict=True)
        ]
        return torch.stack(answers).logsumexp(dim=0) - torch.tensor(len(answers)).log()


def ensemble(classifiers: Sequence[Classifier]) -> Classifier:
    """Return a classifier whose probabilities are the mean of those of others.

    Args:
        classifiers: At least one, all on the same device.

    Raises:
        InputError: Their classes or image shapes differ.
    """
    first, classes = classifiers[0], classifiers[0].classes
    for other in classifiers:
        if {*other.classes} != {*classes} or other.image_shape != first.image_shape:
            one, another = (f"{some(c.classes)} of {[*c.image_shape]}" for c in (first, other))
            raise InputError(
                f"ensemble=true needs checkpoints with the same classes and data.image_shape: one "
                f"has {one}, and one {another}."
            )
    mean = MeanOfNetworks(classifiers).eval()
    return Classifier(mean, Normalization(0.0, 1 / 255), torch.float32, classes)  # pixels unchanged


def _as_one(candidates: Sequence[Candidate]) -> Candidate:
    """Return the ensemble of several candidates, which is scored by its cross-entropy."""
    together = ensemble([candidate.classifier for candidate in candidates])
    first = candidates[0]
    for other in candidates:
        order = match_classes(other.classifier.classes, together.classes).to(first.test.labels)
        if not torch.equal(order[other.test.labels], first.test.labels):
            raise InputError(
                "ensemble=true needs checkpoints with the same test set; these differ."
            )
    loss = nn.CrossEntropyLoss(reduction="none")
    return Candidate(together, loss, first.data, first.test, first.batch_size)


def _draw(folder: Path, evaluation: Evaluation, test: Samples, classes: Sequence[str]) -> None:
    """Draw the confusion matrix, the worst mistakes and the calibration."""
    draw_test(folder, evaluation, test, classes)
    calibrated = calibration(evaluation)
    parts = (calibrated.confidences, calibrated.accuracies, calibrated.counts)
    bins = list(zip(*(part.tolist() for part in parts), strict=True))
    draw_calibration(folder, bins, calibrated.error)


def _print_scores(scores: Sequence[Score], classes: Sequence[str], form: ScoreFormat) -> None:
    """Print one score in detail, or several side by side, and then each in its own line."""
    if form is ScoreFormat.json:
        for score in scores:
            values = score_values(score.evaluation, classes)
            logger.info(json.dumps({"checkpoint": str(score.path), **values}))
        return
    if len(scores) == 1:
        lines = score_lines(scores[0].evaluation, classes)
    else:
        names = [str(score.path) for score in scores]
        lines = comparison(names, [score.evaluation for score in scores])
    logger.info("\n".join([*lines, ""]))
    for score in scores:
        log_result(journal_values("test", score.evaluation), score.seconds, score.path)
