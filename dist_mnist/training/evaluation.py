"""The exact score of a network on a set of images, however many processes share the work."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dist_mnist.data.balance import is_uneven
from dist_mnist.data.mapped import Samples
from dist_mnist.distributed import watchdog
from dist_mnist.distributed.thread_pool import ThreadPool
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.distributed.world import World, all_reduce_sum, broadcast_buffers
from dist_mnist.models.classifier import Classifier
from dist_mnist.training.memory import explaining_memory, images_at_once
from dist_mnist.training.progress import rounded
from dist_mnist.training.state import TrainingState


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction, and its confidence (a probability)."""

    index: int
    label: int
    prediction: int
    confidence: float


@dataclass(frozen=True)
class Evaluation:
    """The prediction for every sample of a set, in the set's order, the same on every rank."""

    labels: torch.Tensor  # int64 of shape (N,), on the CPU like the others
    predictions: torch.Tensor  # int64 of shape (N,)
    confidences: torch.Tensor  # float32 of shape (N,), the probability of the predicted class
    losses: torch.Tensor  # float32 of shape (N,)

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

    def examples(self, first: int, per_cell: int, most: int) -> list[list[Any]]:
        """Return samples of all cells of the confusion matrix.

        Wrong predictions come with the most confident first, right ones with the least confident
        first. Each cell gets one sample before any cell gets a second one.

        Args:
            first: The number of the worst mistakes to put first, from any cell.
            per_cell: The most samples of a cell.
            most: The most samples in all.

        Returns:
            [index, label, prediction, confidence] of each.
        """
        wrong = self.predictions != self.labels
        order = torch.where(wrong, -self.confidences, self.confidences + 1).argsort(stable=True)
        columns = (order, *(part[order] for part in (self.labels, self.predictions)))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        counts: Counter[tuple[int, int]] = Counter()
        rounds: list[list[list[Any]]] = [[] for _ in range(per_cell + 1)]
        for place, (index, label, prediction) in enumerate(rows):
            counts[label, prediction] += 1
            number = 0 if place < first and label != prediction else counts[label, prediction]
            if number <= per_cell:
                confidence = round(float(self.confidences[index]), 4)
                rounds[number].append([index, label, prediction, confidence])
        return [row for rows_of_round in rounds for row in rows_of_round][:most]


def journal_values(part: str, evaluation: Evaluation | None) -> dict[str, Any]:
    """Return the journal's values of a score: loss, accuracy, correct and count of one part.

    If the class sizes are uneven, balanced accuracy is added.

    Args:
        part: validation or test.
        evaluation: None if there are no samples.
    """
    if evaluation is None:
        empty = {"loss": None, "accuracy": None, "correct": 0, "count": 0}
        return {f"{part}/{key}": value for key, value in empty.items()}
    values = {"loss": rounded(evaluation.loss), "accuracy": rounded(evaluation.accuracy)}
    if evaluation.is_uneven:
        values["balanced_accuracy"] = rounded(evaluation.balanced_accuracy)
    values |= {"correct": evaluation.correct, "count": evaluation.count}
    return {f"{part}/{key}": value for key, value in values.items()}


def evaluate(
    classifier: Classifier,
    loss: nn.Module,
    samples: Samples,
    world: World,
    batch_size: int,
    pool: ThreadPool,
) -> Evaluation:
    """Predict every sample once, in eval mode; the network is left in the mode it was in.

    Every rank takes every `world.size`-th block of samples, the same blocks at any world size, and
    writes its answers into its own columns of one table. The sum over the ranks is the whole table.
    Every rank must call it.

    Args:
        classifier: With its network on `world.device`.
        loss: Returns one value per sample.
        samples: On `world.device`.
        batch_size: The samples of a block, which is one forward pass of one process.
        pool: Each of its threads takes the next block.

    Raises:
        InputError: There is not enough memory for a block.
    """
    modes = [(module, module.training) for module in classifier.model.modules()]
    classifier.model.eval()
    broadcast_buffers(world, classifier.model)
    table = torch.zeros(4, len(samples), device=world.device)

    @torch.inference_mode()
    def answer(start: int) -> None:
        watchdog.keep_alive()
        block = slice(start, start + batch_size)
        images, labels = samples.block(block)
        outputs = classifier.logits(images)
        confidences, predictions = outputs.softmax(dim=1).max(dim=1)
        seen = torch.ones_like(confidences)
        table[:, block] = torch.stack((loss(outputs, labels), predictions, confidences, seen))

    blocks = range(0, len(samples), batch_size)
    with explaining_memory(f"lower trainer.evaluation_batch_size={batch_size}"):
        pool.map(answer, blocks[world.rank :: world.size])
    for module, mode in modes:  # a frozen batch norm stays in eval mode
        module.training = mode
    losses, predictions, confidences, seen = all_reduce_sum(world, table).cpu()
    if not bool((seen == 1).all()):
        raise RuntimeError("evaluation did not see every sample exactly once")
    return Evaluation(samples.labels.cpu(), predictions.long(), confidences, losses)


def validate(state: TrainingState) -> Evaluation | None:
    """Score the network on the validation part; None if there is none."""
    watchdog.enter(Phase.EVALUATION, state.progress.step)
    return score_of(state, state.splits.validation) if len(state.splits.validation) else None


def score_of(state: TrainingState, samples: Samples) -> Evaluation:
    """Score the network on one of the state's sets; every rank must call it."""
    config = state.config
    batch_size = images_at_once(config.trainer.evaluation_batch_size, config.data.image_shape)
    return evaluate(state.classifier, state.loss, samples, state.world, batch_size, state.pool)
