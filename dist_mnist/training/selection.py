"""Selects the best epoch."""

from dist_mnist.config.data_schema import Balance
from dist_mnist.training.evaluation import Evaluation
from dist_mnist.training.progress import Progress


def criterion(validation: Evaluation | None, balance: Balance) -> float | None:
    """Return the accuracy that epochs are compared by, balanced if all classes count equally."""
    if validation is None:
        return None
    return validation.accuracy if balance is Balance.none else validation.balanced_accuracy


def is_best(progress: Progress, accuracy: float | None, is_finished: bool) -> bool:
    """Return whether the state is the best one so far.

    The best state is the finished epoch with the highest validation accuracy, the latest of equals.
    An epoch that `max_steps` cut short cannot replace a finished one, or the result would depend on
    where a run was interrupted; it only counts as long as there is none. Without a validation part
    the last state is the best.

    Args:
        progress: Holds the best accuracy of earlier finished epochs.
        accuracy: From `criterion`; None without a validation part.
        is_finished: Whether the epoch was trained to its end.
    """
    best = progress.best_accuracy
    return accuracy is None or best is None or (is_finished and accuracy >= best)
