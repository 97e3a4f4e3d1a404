"""Messages during a run, on the console and in train.log."""

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
    # A run goes on without its console: a closed pipe, a full disk.
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
    # A run goes on without its log: the journal will report a full disk.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    logger = logging.getLogger("dist_mnist")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:  # the command line prints it on the console later
        reason = f"ended by {type(error).__name__}: {one_line(error)}"
        handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, reason, (), None))
        raise
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):  # it tries once more to write the rest
            handler.close()


def epoch_row(line: Mapping[str, Any], epochs: int, seconds_left: float) -> str:
    """Return an epoch's journal line as a row under `HEADER`."""
    left = max(0, round(seconds_left))
    balanced = line.get("validation/balanced_accuracy")
    return (
        f"{line['epoch']:>3}/{epochs:<3}{line['step']:>8}  |"
        f"{_number(line['train/loss'], 12)}{percent(line['train/accuracy'])}  |"
        f"{_number(line['validation/loss'], 17)}{percent(line['validation/accuracy'])}  |"
        f"{line['learning_rate']:>15.2e}{line['images_per_second']:>10,.0f}"
        f"{left // 60:>7}:{left % 60:02}"
        + ("" if balanced is None else f"   balanced {100 * balanced:.2f} %")
    )


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.4f}"


def percent(value: float | None) -> str:
    """Return a share as a percentage in ten characters, or a dash for None."""
    return f"{'-':>10}" if value is None else f"{100 * value:>8.2f} %"


def log_result(test: Mapping[str, Any], seconds: float, place: Path) -> None:
    """Log the score of a training or an evaluation; the last line is for scripts, too."""
    logger = logging.getLogger(__name__)
    balanced = test.get("test/balanced_accuracy")
    if balanced is not None:
        logger.info("balanced test accuracy %.4f: the mean over the classes", balanced)
    logger.info(
        "test accuracy %.4f (%d/%d) loss %.4f in %.1f s -> %s",
        *(test[f"test/{key}"] for key in ("accuracy", "correct", "count", "loss")),
        *(seconds, place),
    )
