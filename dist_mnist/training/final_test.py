"""The test at the end of a run: the best checkpoint's score, taken once, and its pictures."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.data.mapped import Samples
from dist_mnist.distributed import watchdog
from dist_mnist.distributed.watchdog import Phase
from dist_mnist.distributed.world import broadcast_object
from dist_mnist.models.build import load_weights
from dist_mnist.record import checkpoint
from dist_mnist.report import plots
from dist_mnist.tracking.tracker import Media, Table
from dist_mnist.training.evaluation import Evaluation, Mistake, journal_values, score_of
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.scores import MOST_CLASSES, MOST_MISTAKES, calibration
from dist_mnist.training.state import TrainingState

logger = logging.getLogger(__name__)

EXAMPLES_OF_A_CELL, MOST_EXAMPLES = 8, 400  # of the confusion matrix, in the report


def final_test(state: TrainingState, run_dir: Path, recorder: Recorder) -> Evaluation:
    """Score the best checkpoint on the test set and record the score; every rank must call it."""
    watchdog.enter(Phase.TEST, state.progress.step)
    weights: dict[str, torch.Tensor] | None = None
    if state.world.is_main:
        try:
            weights = checkpoint.load(run_dir / "checkpoints" / "best.safetensors")["model"]
            load_weights(state.model, weights)  # if they do not fit, no rank must get them
        except InputError as error:
            logger.warning("%s Testing the last state instead.", error)
            weights = None
    weights = broadcast_object(state.world, weights)
    if weights is not None:
        load_weights(state.model, weights)
    state.splits = state.splits.without_train()  # makes room for the pictures
    started = perf_counter()
    test = score_of(state, state.splits.test)
    seconds = perf_counter() - started
    watchdog.pause()
    if state.world.is_main:
        examples = test.examples(MOST_MISTAKES, EXAMPLES_OF_A_CELL, MOST_EXAMPLES)
        line = _journal_line(state, test, examples, seconds)
        recorder.record(line, _draw(state, test, examples, run_dir))
    return test


def _journal_line(
    state: TrainingState, test: Evaluation, examples: list[list[Any]], seconds: float
) -> dict[str, Any]:
    step, classes = state.progress.step, len(state.splits.classes)
    return {
        "kind": "test",
        "epoch": state.epochs_begun,
        "step": step,
        **journal_values("test", test),
        "seconds": round(seconds, 3),
        **({"test/confusion": test.confusion(classes).tolist()} if classes <= MOST_CLASSES else {}),
        "test/mistakes": [asdict(mistake) for mistake in test.worst_mistakes(MOST_MISTAKES)],
        "test/examples": examples,
        "test/calibration": calibration(test).rows(),
        "classes": list(state.splits.classes),
    }


def _draw(
    state: TrainingState, test: Evaluation, examples: list[list[Any]], run_dir: Path
) -> Media:
    """Draw the pictures of the run; return them and a table of mistakes for the trackers.

    The work is done by now, so a run without its pictures still ends well.
    """
    classes, samples = state.splits.classes, state.splits.test
    mistakes = test.worst_mistakes(MOST_MISTAKES)
    images = _images(samples, [mistake.index for mistake in mistakes])
    images = images[:, 0] if images.shape[1] == 1 else images.movedim(1, -1)
    rows = [
        [image, classes[mistake.label], classes[mistake.prediction], mistake.confidence]
        for image, mistake in zip(images, mistakes, strict=True)
    ]
    try:
        shown = _images(samples, [index for index, *_ in examples])
        plots.draw_examples(run_dir, shown)
        drawn = draw_plots(run_dir, test, samples, classes)
    except Exception as error:
        drawn = []
        logger.warning("the run is complete, but its plots could not be drawn: %s", one_line(error))
    table = Table(["image", "label", "prediction", "confidence"], rows)
    return {f"plots/{path.stem}": path for path in drawn} | {"test/worst_mistakes": table}


def draw_plots(
    run_dir: Path, test: Evaluation, samples: Samples, classes: Sequence[str]
) -> list[Path]:
    """Draw the curves of a run and its test; see `draw_test`."""
    return [*draw_test(run_dir, test, samples, classes), plots.draw_curves(run_dir)]


def draw_test(
    folder: Path, test: Evaluation, samples: Samples, classes: Sequence[str]
) -> list[Path]:
    """Draw the confusion matrix and the worst mistakes; return the PNG files.

    Of many classes, the matrix shows the hundred with the most mistakes.

    Args:
        folder: Where to make `plots/`.
        samples: The images that were evaluated, on any device.

    Raises:
        InputError: The folder cannot be written.
    """
    shown = test.most_confused(MOST_CLASSES, len(classes))
    confusion = test.confusion_among(shown, len(classes))
    mistakes = test.worst_mistakes(MOST_MISTAKES)
    captions = [_caption(mistake, classes) for mistake in mistakes]
    images = _images(samples, [mistake.index for mistake in mistakes])
    return [
        plots.draw_confusion(folder, confusion, [classes[label] for label in shown.tolist()]),
        plots.draw_mistakes(folder, images, captions),
    ]


def _caption(mistake: Mistake, classes: Sequence[str]) -> str:
    label, prediction = (plots.shorten(classes[c], 8) for c in (mistake.label, mistake.prediction))
    return f"{label} taken for {prediction}\n{100 * mistake.confidence:.0f} % sure"


def _images(samples: Samples, indices: list[int]) -> torch.Tensor:
    """Fetch a few images: uint8 of shape (len(indices), C, H, W), on the CPU."""
    places = torch.tensor(indices, dtype=torch.int64, device=samples.labels.device)
    return samples[places][0].cpu()
