"""What a person reads while a run lasts."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from dist_mnist.config.errors import one_line
from dist_mnist.record.files import cannot_write
from dist_mnist.training.build import TrainingState
from dist_mnist.training.progress import Evaluation

HEADER = (
    " epoch     step  |  train loss  accuracy  |  validation loss  accuracy"
    "  |  learning rate  images/s      left"
)


def log_to_console(is_main: bool) -> None:
    """Send the package's messages to standard output; only warnings from other ranks than 0."""
    logger = logging.getLogger("dist_mnist")
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    logger.propagate = False
    handler = logging.StreamHandler(sys.stdout if is_main else sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]


class _LogFile(logging.FileHandler):
    """A log file that a run can do without: where it cannot be written, that is said once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # a mistake of ours in the message itself
            super().handleError(record)
            return
        logger = logging.getLogger("dist_mnist")
        logger.removeHandler(self)
        logger.warning("%s", cannot_write(Path(self.baseFilename), error))

    def close(self) -> None:
        with suppress(OSError):  # what could not be written once is tried again here
            super().close()


@contextmanager
def log_to_file(run_dir: Path) -> Iterator[None]:
    """Send the package's messages to `train.log` in the run directory too.

    Raises:
        InputError: The file cannot be opened.
    """
    path = run_dir / "train.log"
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("dist_mnist")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    # wandb has a log on the same disk, and would show a stack for every line that does not fit.
    shows_stacks, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    except BaseException as error:  # the console hears of it later, from the command line
        reason = f"ended by {type(error).__name__}: {one_line(error)}"
        handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, reason, (), None))
        raise
    finally:
        logging.raiseExceptions = shows_stacks
        logger.removeHandler(handler)
        handler.close()


def describe(state: TrainingState) -> str:
    """Return what is about to be trained, on what, with which data, in three lines."""
    world, splits, data = state.world, state.splits, state.config.data
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    counts = splits.train.labels.bincount(minlength=data.num_classes).tolist()
    rarest, commonest = counts.index(min(counts)), counts.index(max(counts))
    return (
        f"{type(state.model).__name__} with {parameters:,} parameters, "
        f"{str(state.dtype).removeprefix('torch.')} on {world.device.type}: {world.size} x "
        f"{torch.get_num_threads()} CPU threads\n"
        f"{data.name}: {len(splits.train):,} images to train on, {len(splits.validation):,} to "
        f"validate, {len(splits.test):,} to test; pixels {splits.normalization.mean:.4f} "
        f"+- {splits.normalization.std:.4f}\n"
        f"class balance: {counts[rarest]:,} of class {splits.classes[rarest]} (fewest) to "
        f"{counts[commonest]:,} of class {splits.classes[commonest]} (most)"
    )


def epoch_row(line: Mapping[str, Any], epochs: int, seconds_left: float) -> str:
    """Return an epoch's journal line as a row under `HEADER`."""
    left = max(0, round(seconds_left))
    return (
        f"{line['epoch']:>3}/{epochs:<3}{line['step']:>8}  |"
        f"{_number(line['train/loss'], 12)}{_percent(line['train/accuracy'])}  |"
        f"{_number(line['validation/loss'], 17)}{_percent(line['validation/accuracy'])}  |"
        f"{line['learning_rate']:>15.2e}{line['images_per_second']:>10,.0f}"
        f"{left // 60:>7}:{left % 60:02}"
    )


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.4f}"


def _percent(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{100 * value:>8.2f} %"


def result_line(evaluation: Evaluation, seconds: float, place: Path) -> str:
    """Return the last line of a training or an evaluation, for people and for scripts."""
    return (
        f"test accuracy {evaluation.accuracy:.4f} ({evaluation.correct}/{evaluation.count}) "
        f"loss {evaluation.loss:.4f} in {seconds:.1f} s -> {place}"
    )
