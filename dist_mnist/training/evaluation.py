"""The exact score of a network on a set of images, however many processes share the work."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_mnist.config.schema import config_from_plain
from dist_mnist.data.balance import is_uneven
from dist_mnist.data.mapped import Samples
from dist_mnist.data.splits import load_part
from dist_mnist.distributed import watchdog
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.distributed.world import (
    World,
    all_reduce_sum,
    broadcast_buffers,
    broadcast_object,
)
from dist_mnist.models.build import build_loss
from dist_mnist.models.classifier import Classifier, classifier_from_checkpoint
from dist_mnist.models.precision import set_gpu_arithmetic
from dist_mnist.record import checkpoint
from dist_mnist.report.plots import Mistake
from dist_mnist.training.progress import rounded
from dist_mnist.training.state import TrainingState


@dataclass(frozen=True)
class Evaluation:
    """The prediction for every sample of a set, in the set's order, the same on every rank.

    Attributes:
        labels: int64 of shape (N,), on the CPU like the others.
        predictions: int64 of shape (N,).
        confidences: float32 of shape (N,), the probability of the predicted class.
        losses: float32 of shape (N,).
    """

    labels: torch.Tensor
    predictions: torch.Tensor
    confidences: torch.Tensor
    losses: torch.Tensor

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.labels)

    @property
    def correct(self) -> int:
        """The number of samples that were predicted correctly."""
        return int((self.predictions == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """The fraction of samples that were predicted correctly."""
        return self.correct / self.count

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the classes' accuracies, over the classes that there are samples of."""
        counts = self.labels.bincount()
        hits = self.labels[self.predictions == self.labels].bincount(minlength=len(counts))
        return float((hits[counts > 0].double() / counts[counts > 0]).mean())

    @property
    def is_uneven(self) -> bool:
        """True if some class has far more samples than another one."""
        return is_uneven(self.labels.bincount())

    @property
    def loss(self) -> float:
        """The mean loss of a sample."""
        return float(self.losses.double().mean())

    def confusion(self, num_classes: int) -> torch.Tensor:
        """Return how often label i was predicted as j, int64 of shape (classes, classes)."""
        return self.confusion_among(torch.arange(num_classes), num_classes)

    def confusion_among(self, classes: torch.Tensor, num_classes: int) -> torch.Tensor:
        """Return how often label i was predicted as j among k classes, int64 of shape (k, k)."""
        places = torch.full((num_classes,), -1)
        places[classes] = torch.arange(len(classes))
        rows, columns = places[self.labels], places[self.predictions]
        inside = (rows >= 0) & (columns >= 0)
        cells = rows[inside] * len(classes) + columns[inside]
        return torch.bincount(cells, minlength=len(classes) ** 2).view(-1, len(classes))

    def most_confused(self, most: int, num_classes: int) -> torch.Tensor:
        """Return the classes with the most mistakes, or all if they are few: int64, ascending."""
        wrong = self.predictions != self.labels
        mistaken = (self.labels[wrong], self.predictions[wrong])
        counts = sum(part.bincount(minlength=num_classes) for part in mistaken)
        order = torch.as_tensor(counts).argsort(descending=True, stable=True)
        return order[:most].sort().values

    def worst_mistakes(self, most: int) -> list[Mistake]:
        """Return the wrong predictions with the highest confidence, in that order."""
        wrong = (self.predictions != self.labels).nonzero().flatten()
        worst = wrong[self.confidences[wrong].argsort(descending=True, stable=True)]
        return [
            Mistake(
                index=index,
                label=int(self.labels[index]),
                prediction=int(self.predictions[index]),
                confidence=float(self.confidences[index]),
            )
            for index in worst[:most].tolist()
        ]

    def examples(self, num_classes: int, first: int, per_cell: int, most: int) -> list[list[Any]]:
        """Return samples of all cells of the confusion matrix: sure mistakes, unsure hits.

        Args:
            num_classes: The classes.
            first: How many of the worst mistakes come first, whatever their cells.
            per_cell: The most samples of a cell; each gets its first one before any its second.
            most: The most samples of all.

        Returns:
            [index, label, prediction, confidence] of each, mistakes before hits in each round.
        """
        wrong = self.predictions != self.labels
        order = torch.where(wrong, -self.confidences, self.confidences + 1).argsort(stable=True)
        cells = (self.labels * num_classes + self.predictions)[order]
        by_cell = cells.argsort(stable=True)
        sizes = torch.bincount(cells, minlength=num_classes**2)
        ranks = torch.empty_like(cells)
        ranks[by_cell] = torch.arange(self.count) - (sizes.cumsum(0) - sizes)[cells[by_cell]]
        ranks[: min(first, int(wrong.sum()))] = -1
        rounds = ranks.argsort(stable=True)
        chosen = order[rounds[ranks[rounds] < per_cell][:most]]
        columns = (chosen, self.labels[chosen], self.predictions[chosen], self.confidences[chosen])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [[*row, round(confidence, 4)] for *row, confidence in rows]


def numbers(part: str, evaluation: Evaluation | None) -> dict[str, Any]:
    """Return a score as the journal has it: loss, accuracy, correct and count of one part.

    If the classes are uneven, the mean of their accuracies is added.

    Args:
        part: validation or test.
        evaluation: The score; None if there are no samples.
    """
    balanced = {}
    if evaluation and evaluation.is_uneven:
        balanced = {f"{part}/balanced_accuracy": rounded(evaluation.balanced_accuracy)}
    return {
        f"{part}/loss": rounded(evaluation.loss) if evaluation else None,
        f"{part}/accuracy": rounded(evaluation.accuracy) if evaluation else None,
        **balanced,
        f"{part}/correct": evaluation.correct if evaluation else 0,
        f"{part}/count": evaluation.count if evaluation else 0,
    }


@torch.inference_mode()
def evaluate(
    classifier: Classifier, loss: nn.Module, dataset: Samples, world: World, batch_size: int
) -> Evaluation:
    """Predict every sample once, in eval mode; the network is left in the mode it was in.

    Every rank takes every `world.size`-th block of samples, the same blocks at any world size, and
    writes its answers into its own places of one table. A sum over the ranks then gives all of
    them the whole table. Every rank must call it.

    Args:
        classifier: With its network on `world.device`.
        loss: Returns one value per sample.
        dataset: The samples, on `world.device`.
        world: This process.
        batch_size: The samples of a block, which is one forward pass of one process.
    """
    modes = [(module, module.training) for module in classifier.model.modules()]
    classifier.model.eval()
    broadcast_buffers(world, classifier.model)
    table = torch.zeros(4, len(dataset), device=world.device)
    blocks = range(0, len(dataset), batch_size)
    for start in blocks[world.rank :: world.size]:
        watchdog.keep_alive()
        block = slice(start, start + batch_size)
        images, labels = dataset.block(block)
        outputs = classifier.logits(images)
        confidences, predictions = outputs.softmax(dim=1).max(dim=1)
        seen = torch.ones_like(confidences)
        table[:, block] = torch.stack((loss(outputs, labels), predictions, confidences, seen))
    for module, mode in modes:  # batch norm may be in another one than the network
        module.training = mode
    losses, predictions, confidences, seen = all_reduce_sum(world, table).cpu()
    if not bool((seen == 1).all()):
        raise RuntimeError("evaluation did not see every sample exactly once")
    return Evaluation(dataset.labels.cpu(), predictions.long(), confidences, losses)


def validate(state: TrainingState) -> Evaluation | None:
    """Score the network on the validation part; None if there is none."""
    watchdog.enter(Phase.EVALUATION, state.progress.step)
    return score(state, state.splits.validation) if len(state.splits.validation) else None


def score(state: TrainingState, dataset: Samples) -> Evaluation:
    """Score the network on one of the state's sets; every rank must call it."""
    batch_size = state.config.trainer.evaluation_batch_size
    return evaluate(state.classifier, state.loss, dataset, state.world, batch_size)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint, ready to be scored on the test set of its data.

    Attributes:
        classifier: With its network on the device of this process.
        loss: The one it was trained with; returns one value per sample.
        test: The test set, on the same device.
        batch_size: The samples of one forward pass.
    """

    classifier: Classifier
    loss: nn.Module
    test: Samples
    batch_size: int

    def evaluate(self, world: World) -> Evaluation:
        """Score the network; every rank must call it."""
        return evaluate(self.classifier, self.loss, self.test, world, self.batch_size)


def load_candidate(path: Path, changes: Mapping[str, Any], world: World) -> Candidate:
    """Load a checkpoint and the test set of its data; every rank must call it.

    Args:
        path: The checkpoint file.
        changes: Changes to the config it was trained with, nested like the config.
        world: This process.

    Raises:
        InputError: The checkpoint or the data cannot be used.
    """
    content = broadcast_object(world, checkpoint.load(path) if world.is_main else None)
    assert content is not None
    config = config_from_plain(content["config"], changes)
    set_gpu_arithmetic(config.trainer.precision)
    classifier = classifier_from_checkpoint(content, config, world.device)
    test, _ = load_part(config.data, train=False, trusted_modules=config.trusted_modules)
    loss = build_loss(config).to(world.device)
    return Candidate(classifier, loss, test.to(world.device), config.trainer.evaluation_batch_size)
