"""Messages for people during a run, on the console and in train.log."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dist_mnist.config.errors import one_line
from dist_mnist.record.files import cannot_write

HEADER = (
    " epoch     step  |  train loss  accuracy  |  validation loss  accuracy"
    "  |  learning rate  images/s      left"
)


def log_to_console(is_main: bool) -> None:
    """Print the package's messages on rank 0, and only warnings on the other ranks."""
    logger = logging.getLogger("dist_mnist")
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    logger.propagate = False
    handler = logging.StreamHandler(sys.stdout if is_main else sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    # A run can do without its console: a pipe that nobody reads any more, a full disk.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    logger.handlers = [handler]


@contextmanager
def log_to_file(run_dir: Path) -> Iterator[None]:
    """Write the package's messages to `train.log` in the run directory too.

    Raises:
        InputError: The file cannot be opened.
    """
    path = run_dir / "train.log"
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # A run can do without its log: a full disk will be reported by what it cannot do without.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    logger = logging.getLogger("dist_mnist")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:  # the console hears of it later, from the command line
        reason = f"ended by {type(error).__name__}: {one_line(error)}"
        handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, reason, (), None))
        raise
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):  # it tries once more to write what did not fit
            handler.close()


def epoch_row(line: Mapping[str, Any], epochs: int, seconds_left: float) -> str:
    """Return an epoch's journal line as a row under `HEADER`."""
    left = max(0, round(seconds_left))
    balanced = line.get("validation/balanced_accuracy")
    return (
        f"{line['epoch']:>3}/{epochs:<3}{line['step']:>8}  |"
        f"{_number(line['train/loss'], 12)}{_percent(line['train/accuracy'])}  |"
        f"{_number(line['validation/loss'], 17)}{_percent(line['validation/accuracy'])}  |"
        f"{line['learning_rate']:>15.2e}{line['images_per_second']:>10,.0f}"
        f"{left // 60:>7}:{left % 60:02}"
        + ("" if balanced is None else f"   balanced {100 * balanced:.2f} %")
    )


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.4f}"


def _percent(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{100 * value:>8.2f} %"


def log_result(test: Mapping[str, Any], seconds: float, place: Path) -> None:
    """Log the score of a training or an evaluation; the last line is for scripts, too.

    Args:
        test: As for `result_line`; with `test/balanced_accuracy` if classes are uneven.
        seconds: How long it took.
        place: The run directory, or the checkpoint.
    """
    logger = logging.getLogger(__name__)
    balanced = test.get("test/balanced_accuracy")
    if balanced is not None:
        logger.info("balanced test accuracy %.4f: the mean of the classes' accuracies", balanced)
    logger.info(result_line(test, seconds, place))


def result_line(test: Mapping[str, Any], seconds: float, place: Path) -> str:
    """Return the last line of a training or an evaluation, for people and for scripts.

    Args:
        test: `test/accuracy`, `test/correct`, `test/count` and `test/loss`, as in the journal.
        seconds: How long it took.
        place: The run directory, or the checkpoint.
    """
    return (
        f"test accuracy {test['test/accuracy']:.4f} ({test['test/correct']}/{test['test/count']}) "
        f"loss {test['test/loss']:.4f} in {seconds:.1f} s -> {place}"
    )
