"""Selects the best epoch."""

from dist_mnist.training.progress import Progress


def is_best(progress: Progress, accuracy: float | None, is_finished: bool) -> bool:
    """Return whether the state is the best one so far.

    The best state is the finished epoch with the highest validation accuracy, the latest of equals.
    An epoch that `max_steps` cut short cannot replace a finished one, or the result would depend on
    where a run was interrupted; it only counts as long as there is none. Without a validation part
    the last state is the best.

    Args:
        progress: With the best accuracy of the finished epochs before.
        accuracy: On the validation part; None if there is none.
        is_finished: Whether the epoch was trained to its end.
    """
    best = progress.best_accuracy
    return accuracy is None or best is None or (is_finished and accuracy >= best)
