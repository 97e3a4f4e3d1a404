"""Classes of different sizes: shown, counted alike in the loss, or drawn equally often."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

UNEVEN = 2.0  # times as many samples in the largest class as in the smallest one
ROWS_SHOWN = 20
BAR_WIDTH = 40


class ClassSize(NamedTuple):
    """A class, how many samples it has, and how many that is of the largest class's (0 to 1)."""

    name: str
    samples: int
    share: float


def class_sizes(counts: Sequence[int], classes: Sequence[str]) -> list[ClassSize]:
    """Return the sizes of all classes, for a picture or a table, in the order of the labels."""
    most = max([1, *counts])
    return [
        ClassSize(name, count, count / most) for name, count in zip(classes, counts, strict=True)
    ]


def draw_bars(counts: Sequence[int], classes: Sequence[str]) -> str:
    """Return the class balance as text: a line with a bar for each class.

    Of many classes, only the largest and the smallest ones are shown, the largest first.
    """
    rows = class_sizes(counts, classes)
    if len(rows) > ROWS_SHOWN:
        rows.sort(key=lambda row: -row.samples)
        half = ROWS_SHOWN // 2
        first, between, last = rows[:half], rows[half:-half], rows[-half:]
        width = _name_width([*first, *last])
        fewest, most = between[-1].samples, between[0].samples
        middle = f"  ... {len(between):,} more classes, of {fewest:,} to {most:,}"
        return "\n".join([*_lines(first, width), middle, *_lines(last, width)])
    return "\n".join(_lines(rows, _name_width(rows)))


def _name_width(rows: Sequence[ClassSize]) -> int:
    return min(24, max(len(row.name) for row in rows))


def _lines(rows: Sequence[ClassSize], width: int) -> list[str]:
    return [
        f"  {row.name[:width]:<{width}}  {row.samples:>9,}  {'#' * round(BAR_WIDTH * row.share)}"
        for row in rows
    ]


def is_uneven(counts: torch.Tensor) -> bool:
    """Return whether the largest class has more than `UNEVEN` times the samples of the smallest.

    Args:
        counts: The samples of each class; classes without any do not count.
    """
    present = counts[counts > 0]
    return len(present) > 0 and int(present.max()) > UNEVEN * int(present.min())


def class_weights(counts: torch.Tensor) -> torch.Tensor:
    """Return the weight of a sample of each class, so that each class has the same weight in all.

    The mean over all samples is 1, so the loss keeps its size, and the learning rate its meaning.

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
    """Return as many places as there are samples, in random order, from each class equally often.

    The numbers of draws of two classes differ by one at most, and so do those of two samples of one
    class. A small class is repeated, and of a large one some samples wait for another epoch.

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
