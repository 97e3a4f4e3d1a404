"""The details of a score: each class, calibration and the worst mistakes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dist_mnist.record.console import percent
from dist_mnist.training.evaluation import Evaluation
from dist_mnist.training.progress import rounded

BINS = 15
MOST_MISTAKES, LISTED_MISTAKES = 24, 5
MOST_COLUMNS = 12  # of the confusion matrix in text
MOST_CLASSES = 100  # in a confusion matrix elsewhere: its size grows with their square


@dataclass(frozen=True)
class ClassScore:
    """The score of one class."""

    precision: float | None  # the share of its predictions that are right; None without any
    recall: float | None  # the share of its samples that are found; None without any
    support: int  # the number of its samples


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy of predictions, in bins of equal width."""

    counts: torch.Tensor  # predictions in each bin, int64 of shape (bins,)
    confidences: torch.Tensor  # their mean confidence, float64 of shape (bins,); 0 in an empty bin
    accuracies: torch.Tensor  # the fraction of them that is right, likewise

    @property
    def error(self) -> float:
        """The expected calibration error: the mean gap between the two, weighted by count.

        Guo, Pleiss, Sun, Weinberger 2017, https://arxiv.org/abs/1706.04599, section 2.
        """
        gaps = (self.accuracies - self.confidences).abs()
        return float((gaps * self.counts).sum() / self.counts.sum())

    def rows(self) -> list[list[float]]:
        """Return the number of predictions, of right ones, and the mean confidence of each bin."""
        right = (self.counts * self.accuracies).round().long()
        columns = (self.counts, right, self.confidences)
        return [
            [count, hits, rounded(confidence)]
            for count, hits, confidence in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]


def class_scores(evaluation: Evaluation, num_classes: int) -> list[ClassScore]:
    """Return the score of each class, in time and memory that do not grow with their square."""
    labels, predictions = evaluation.labels, evaluation.predictions
    columns = (labels[labels == predictions], predictions, labels)
    counts = (column.bincount(minlength=num_classes).tolist() for column in columns)
    return [
        ClassScore(
            precision=correct / predicted if predicted else None,
            recall=correct / support if support else None,
            support=support,
        )
        for correct, predicted, support in zip(*counts, strict=True)
    ]


def calibration(evaluation: Evaluation, bins: int = BINS) -> Calibration:
    """Return the accuracy of predictions by their confidence.

    Args:
        bins: The number of bins, of equal width from 0 to 1; a confidence on an edge is in the
            lower one.
    """
    confidences = evaluation.confidences.double()
    right = (evaluation.predictions == evaluation.labels).double()
    places = ((confidences * bins).ceil().long() - 1).clamp(0, bins - 1)
    counts = torch.bincount(places, minlength=bins)
    means = [
        torch.bincount(places, weights=values, minlength=bins) / counts.clamp(min=1)
        for values in (confidences, right)
    ]
    return Calibration(counts, *means)


def score_lines(evaluation: Evaluation, classes: Sequence[str]) -> list[str]:
    """Return a score as text: each class, calibration and the worst mistakes."""
    width = max(5, *(len(name) for name in classes))
    columns = classes if len(classes) <= MOST_COLUMNS else ()
    counts = evaluation.confusion(len(classes)).tolist() if columns else [[]] * len(classes)
    head = "".join(f"{name[:6]:>7}" for name in columns)
    head = f"  | taken for{head}" if columns else ""
    lines = [f"{'label':<{width}}  precision    recall  support{head}"]
    scores = class_scores(evaluation, len(classes))
    for name, score, row in zip(classes, scores, counts, strict=True):
        cells = f"  |{'':10}" + "".join(f"{count:>7}" for count in row) if columns else ""
        values = f"{percent(score.precision)}{percent(score.recall)}{score.support:>9,}"
        lines.append(f"{name:<{width}}  {values}{cells}")
    confidence = 100 * float(evaluation.confidences.mean())
    lines.append(
        f"calibration error {calibration(evaluation).error:.4f}: {confidence:.2f} % sure on "
        f"average, {100 * evaluation.accuracy:.2f} % right"
    )
    worst = [
        f"image {mistake.index}: {classes[mistake.label]} taken for "
        f"{classes[mistake.prediction]}, {100 * mistake.confidence:.0f} % sure"
        for mistake in evaluation.worst_mistakes(LISTED_MISTAKES)
    ]
    return lines + (["worst mistakes: " + "; ".join(worst)] if worst else [])


def comparison(names: Sequence[str], evaluations: Sequence[Evaluation]) -> list[str]:
    """Return several scores side by side, a line each."""
    lines = ["  accuracy      loss  calibration error"]
    for name, evaluation in zip(names, evaluations, strict=True):
        error = calibration(evaluation).error
        accuracy = percent(evaluation.accuracy)
        lines.append(f"{accuracy}{evaluation.loss:>10.4f}{error:>19.4f}  {name}")
    return lines


def score_values(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """Return everything about a score as plain values, for JSON; the confusion of few classes."""
    scores, count = class_scores(evaluation, len(classes)), len(classes)
    confusion = evaluation.confusion(count).tolist() if count <= MOST_CLASSES else None
    return {
        "accuracy": evaluation.accuracy,
        "correct": evaluation.correct,
        "count": evaluation.count,
        "loss": evaluation.loss,
        "calibration_error": calibration(evaluation).error,
        "classes": [
            {"name": name, **asdict(score)} for name, score in zip(classes, scores, strict=True)
        ],
        "confusion": confusion,
        "mistakes": [asdict(mistake) for mistake in evaluation.worst_mistakes(MOST_MISTAKES)],
    }
