"""Classes of different sizes: shown, weighted in the loss, or sampled equally often."""

from collections.abc import Sequence

import torch

UNEVEN = 2.0  # the largest class over the smallest one
ROWS_SHOWN = 20
BAR_WIDTH = 40


def draw_bars(counts: Sequence[int], classes: Sequence[str]) -> str:
    """Return the class balance as text: a line with a bar for each class.

    Of many classes, only the largest and the smallest ones are shown, the largest first.
    """
    rows = [*zip(classes, counts, strict=True)]
    hidden: list[tuple[str, int]] = []
    if len(rows) > ROWS_SHOWN:
        rows.sort(key=lambda row: -row[1])
        half = ROWS_SHOWN // 2
        hidden, rows = rows[half:-half], rows[:half] + rows[-half:]
    width, most = min(24, max(len(name) for name, _ in rows)), max([1, *counts])
    lines = [
        f"  {name[:width]:<{width}}  {count:>9,}  {'#' * round(BAR_WIDTH * count / most)}"
        for name, count in rows
    ]
    if hidden:
        fewest, largest = hidden[-1][1], hidden[0][1]
        middle = f"  ... {len(hidden):,} more classes, of {fewest:,} to {largest:,}"
        lines.insert(ROWS_SHOWN // 2, middle)
    return "\n".join(lines)


def is_uneven(counts: torch.Tensor) -> bool:
    """Return whether the largest class has more than `UNEVEN` times the samples of the smallest.

    Args:
        counts: The samples of each class; classes without any do not count.
    """
    present = counts[counts > 0]
    return len(present) > 0 and int(present.max()) > UNEVEN * int(present.min())


def class_weights(counts: torch.Tensor) -> torch.Tensor:
    """Return each class's weight for its samples, so that all classes weigh the same in total.

    The mean over all samples is 1, so the loss keeps its scale and the learning rate its meaning.

    Args:
        counts: int64 of shape (classes,), the samples of each class.

    Returns:
        float32 of shape (classes,): samples / (classes * count), over the classes that have any;
        0 for those that have none.
    """
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.double())
    return torch.where(present, weights, 0.0).float()


def balanced_order(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw N indices in random order, from each class equally often.

    The draws of two classes differ by one at most, and so do the draws of two samples of one class.
    A small class is repeated; some samples of a large class wait for another epoch.

    Args:
        labels: int64 of shape (N,), on the CPU.
        generator: On the CPU.

    Returns:
        int64 of shape (N,).
    """
    counts = labels.bincount()
    (present,) = counts.nonzero(as_tuple=True)
    draws = torch.zeros_like(counts)
    draws[present] = len(labels) // len(present)
    chance = present[torch.randperm(len(present), generator=generator)]
    draws[chance[: len(labels) % len(present)]] += 1
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    drawn = torch.arange(len(counts)).repeat_interleave(draws)
    number = torch.arange(len(labels)) - (draws.cumsum(0) - draws)[drawn]
    first = counts.cumsum(0) - counts
    order = by_class[first[drawn] + number % counts[drawn]]
    return order[torch.randperm(len(labels), generator=generator)]
