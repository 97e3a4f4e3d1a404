"""The details of a score, on predictions few enough to count by hand."""

import pytest
import torch

from dist_mnist.training.evaluation import Evaluation
from dist_mnist.training.scores import calibration, class_scores, score_lines, score_values

EVALUATION = Evaluation(
    labels=torch.tensor([0, 0, 0, 1, 1, 2]),
    predictions=torch.tensor([0, 0, 1, 1, 0, 1]),
    confidences=torch.tensor([0.95, 0.85, 0.55, 1.0, 0.59, 0.89]),
    losses=torch.ones(6),
)


def test_precision_recall_and_support() -> None:
    zero, one, two, three = class_scores(EVALUATION, 4)
    assert (zero.precision, zero.recall, zero.support) == (2 / 3, 2 / 3, 3)
    assert (one.precision, one.recall, one.support) == (1 / 3, 1 / 2, 2)
    assert (two.precision, two.recall, two.support) == (None, 0, 1)
    assert (three.precision, three.recall, three.support) == (None, None, 0)


def test_calibration_error() -> None:
    known = calibration(EVALUATION, bins=10)
    assert known.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 2, 2]
    # From 0.5 to 0.6: 0.55 and 0.59, both wrong; to 0.9: 0.85 right, 0.89 wrong; to 1: both right.
    gaps = [2 * 0.57, 2 * abs(0.5 - 0.87), 2 * (1 - 0.975)]
    assert known.error == pytest.approx(sum(gaps) / 6, abs=1e-6)
    assert known.rows()[8] == [2, 1, pytest.approx(0.87)]


@pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0])
def test_calibration_of_a_constant(confidence: float) -> None:
    labels = torch.tensor([1] * 3 + [0] * 7)
    confidences = torch.full((10,), confidence)
    evaluation = Evaluation(labels, torch.ones(10, dtype=torch.int64), confidences, confidences)
    assert calibration(evaluation).error == pytest.approx(abs(confidence - 0.3), abs=1e-6)


def test_many_classes_have_no_matrix() -> None:
    few = score_lines(EVALUATION, ["a", "b", "c"])
    many = score_lines(EVALUATION, [f"class {index}" for index in range(20)])
    assert "taken for" in few[0]
    assert "taken for" not in many[0]
    assert many[1].split() == ["class", "0", "66.67", "%", "66.67", "%", "3"]
    assert many[3].split() == ["class", "2", "-", "0.00", "%", "1"]


def test_the_memory_of_many_classes_does_not_grow_with_their_square() -> None:
    names = [f"class {index}" for index in range(300_000)]  # 720 GB as a matrix
    assert len(score_lines(EVALUATION, names)) > 300_000
    values = score_values(EVALUATION, names)
    assert values["confusion"] is None
    assert values["classes"][0]["support"] == 3
