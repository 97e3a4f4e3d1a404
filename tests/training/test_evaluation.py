from pathlib import Path

import pytest
import torch
from torch import nn

from dist_mnist.commands.evaluate import load_candidate
from dist_mnist.data.images import ImageTensors, Normalization
from dist_mnist.distributed.session import session
from dist_mnist.distributed.thread_pool import ThreadPool
from dist_mnist.models.classifier import Classifier
from dist_mnist.training.evaluation import Evaluation, evaluate
from dist_mnist.training.memory import images_at_once
from dist_mnist.training.run import run
from tests.support.configs import SOLO, make_config
from tests.support.datasets import make_images
from tests.support.processes import run_ranks

LABELS = torch.arange(107) % 10
DATASET = ImageTensors(make_images(LABELS, 10).unsqueeze(1), LABELS)
LOSS = nn.CrossEntropyLoss(reduction="none")


def build() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=4),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(144, 10),
    )
    model(torch.randn(50, 1, 28, 28))  # statistics unlike the initial ones
    return model


def answers(batch_size: int = 16, threads: int = 1) -> Evaluation:
    with session("cpu", timeout_seconds=60) as world:
        pool = ThreadPool(threads)
        return evaluate(classifier(build()), LOSS, DATASET, world, batch_size, pool)


def classifier(model: nn.Module) -> Classifier:
    return Classifier(model, Normalization(0.1, 0.3), torch.float32, tuple("0123456789"))


def test_the_answers_are_those_of_a_plain_pass() -> None:
    evaluation = answers()
    model = build().eval()
    with torch.no_grad():
        logits = model(Normalization(0.1, 0.3)(DATASET.images))
    assert torch.equal(evaluation.predictions, logits.argmax(1))
    torch.testing.assert_close(evaluation.confidences, logits.softmax(1).max(1).values)
    assert evaluation.loss == pytest.approx(float(LOSS(logits, LABELS).mean()), rel=1e-6)
    assert evaluation.correct == int((logits.argmax(1) == LABELS).sum())
    assert evaluation.accuracy == evaluation.correct / 107


@pytest.mark.parametrize("size", [2, 3, 4])
def test_evaluation_ignores_world_size(size: int) -> None:
    alone = answers()
    for evaluation in run_ranks(size, answers):
        assert evaluation.count == 107
        assert torch.equal(evaluation.predictions, alone.predictions)
        assert evaluation.loss == pytest.approx(alone.loss, rel=1e-6)
        assert torch.equal(evaluation.confusion(10), alone.confusion(10))


def test_evaluation_ignores_threads() -> None:
    alone, shared = answers(), answers(threads=3)
    for part in ("predictions", "confidences", "losses"):
        assert torch.equal(getattr(alone, part), getattr(shared, part))


def test_evaluation_restores_the_mode() -> None:
    model = build().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(classifier(model), LOSS, DATASET, SOLO, 50, ThreadPool(1))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_confusion_matrix_rows_are_labels() -> None:
    evaluation = Evaluation(
        labels=torch.tensor([0, 0, 1, 2, 2]),
        predictions=torch.tensor([0, 1, 1, 0, 2]),
        confidences=torch.tensor([0.9, 0.6, 0.8, 0.7, 0.5]),
        losses=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
    )
    assert evaluation.confusion(3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert evaluation.loss == 3
    assert [(m.index, m.label, m.prediction) for m in evaluation.worst_mistakes(9)] == [
        (3, 2, 0),
        (1, 0, 1),
    ]
    assert len(evaluation.worst_mistakes(1)) == 1


def test_examples_cover_the_cells() -> None:
    evaluation = answers()
    rows = evaluation.examples(first=3, per_cell=2, most=1000)
    assert len({row[0] for row in rows}) == len(rows)
    for index, label, prediction, confidence in rows:
        assert (label, prediction) == (evaluation.labels[index], evaluation.predictions[index])
        assert confidence == pytest.approx(float(evaluation.confidences[index]), abs=1e-4)
    cells = [(label, prediction) for _, label, prediction, _ in rows]
    for label, row in enumerate(evaluation.confusion(10).tolist()):
        for prediction, count in enumerate(row):
            assert cells.count((label, prediction)) >= min(count, 2)
    worst = [mistake.index for mistake in evaluation.worst_mistakes(3)]
    assert [row[0] for row in rows[:3]] == worst
    assert evaluation.examples(first=3, per_cell=2, most=12) == rows[:12]
    first = [(label, prediction) for _, label, prediction, _ in rows[3:12]]
    assert len(set(first)) == 9  # no cell has a second one while others have none


def test_unsure_hits_are_the_examples() -> None:
    evaluation = Evaluation(
        labels=torch.zeros(4, dtype=torch.int64),
        predictions=torch.zeros(4, dtype=torch.int64),
        confidences=torch.tensor([0.9, 0.6, 0.8, 0.7]),
        losses=torch.zeros(4),
    )
    rows = evaluation.examples(first=24, per_cell=2, most=9)
    assert [index for index, *_ in rows] == [1, 3]


def checkpoint_answers(run_dir: str, root: str) -> tuple[float, int, int, float]:
    path, changes = Path(run_dir, "checkpoints", "best.safetensors"), {"data": {"root": root}}
    with session("cpu", timeout_seconds=60) as world:
        evaluation = load_candidate(path, changes, world).evaluate(world)
    return evaluation.accuracy, evaluation.correct, evaluation.count, evaluation.loss


@pytest.mark.slow
def test_checkpoint_score_ignores_world_size(mnist_root: Path, tmp_path: Path) -> None:
    config = make_config(f"data.root={mnist_root}", f"run_dir={tmp_path}", "trainer.max_steps=15")
    trained = run(config, SOLO).test
    expected = (trained.accuracy, trained.correct, 10_000, pytest.approx(trained.loss, rel=1e-6))
    for size in (1, 2, 3, 4):
        for found in run_ranks(size, checkpoint_answers, str(tmp_path), str(mnist_root)):
            assert found == expected


def test_large_images_make_small_batches() -> None:
    assert images_at_once(None, [1, 28, 28]) == 500
    assert images_at_once(None, [3, 224, 224]) == 27
    assert images_at_once(None, [3, 9999, 9999]) == 1
    assert images_at_once(64, [3, 224, 224]) == 64
