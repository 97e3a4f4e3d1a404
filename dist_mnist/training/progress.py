"""A run's progress and running metrics, and the journal lines that report them."""

from dataclasses import astuple, dataclass, field
from typing import Any

import torch

from dist_mnist.distributed.world import World, all_reduce_sum

UPDATES_COUNTED_AT_ONCE = 32
LOSS_UNIT = 2.0**-24  # finer than any digit that is shown


@dataclass(frozen=True)
class Totals:
    """Sums over samples, and the means that follow from them."""

    loss_sum: float = 0.0
    correct: float = 0.0
    count: float = 0.0

    def __sub__(self, earlier: "Totals") -> "Totals":
        return Totals(
            self.loss_sum - earlier.loss_sum,
            self.correct - earlier.correct,
            self.count - earlier.count,
        )

    @property
    def loss(self) -> float:
        """The mean loss of a sample."""
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """The fraction of samples that were predicted correctly."""
        return self.correct / self.count


class RunningMetrics:
    """Loss and accuracy of the network's outputs while it trains.

    They add up on the device, so a step never waits for it; `reduced` reads them. The outputs of
    several steps are counted at once, which takes a tenth of the time for a small network.

    Args:
        initial: The totals to start from, for a run that continues in the middle of an epoch.
    """

    def __init__(self, world: World, initial: Totals) -> None:
        dtype = torch.float32 if world.device.type == "mps" else torch.float64
        start = astuple(initial if world.is_main else Totals())
        self._world = world
        self._sums = torch.tensor(start, dtype=dtype, device=world.device)
        self._uncounted: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def update(self, losses: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: float losses (B,), float outputs (B, classes), int64 labels (B,)."""
        self._uncounted.append((losses, outputs, labels))
        if len(self._uncounted) == UPDATES_COUNTED_AT_ONCE:
            self._count()

    def reduced(self) -> Totals:
        """Return the totals over all ranks; every rank must call this."""
        self._count()
        return Totals(*all_reduce_sum(self._world, self._sums.clone()).tolist())

    def _count(self) -> None:
        if not self._uncounted:
            return
        losses, outputs, labels = map(torch.cat, zip(*self._uncounted, strict=True))
        # Whole units have the same sum in any order.
        units = (losses.to(self._sums.dtype) / LOSS_UNIT).round()
        self._sums[0] += units.sum() * LOSS_UNIT
        self._sums[1] += (outputs.argmax(dim=1) == labels).sum()
        self._sums[2] += len(labels)
        self._uncounted.clear()


@dataclass
class Progress:
    """The progress of a run; part of every checkpoint."""

    step: int = 0  # optimizer steps done
    step_lines: int = 0  # journal lines of steps written
    epoch_totals: Totals = field(default_factory=Totals)  # since the current epoch began
    logged_totals: Totals = field(default_factory=Totals)  # the same at the last logged step
    epoch_seconds: float = 0.0  # spent training since the current epoch began
    best_accuracy: float | None = None  # the best validation accuracy of a finished epoch
    skipped_steps: int = 0  # by the scaler of float16 gradients

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Progress":
        """Return a progress from the plain values that `asdict` made.

        Raises:
            KeyError, TypeError, ValueError: They are not the values of a progress.
        """
        totals = {key: Totals(**plain[key]) for key in ("epoch_totals", "logged_totals")}
        progress = cls(**{**plain, **totals})
        for key in ("step", "step_lines", "skipped_steps"):
            if type(plain[key]) is not int or plain[key] < 0:
                raise ValueError(f"{key}={plain[key]} is not a count")
        amounts = [*astuple(progress.epoch_totals), *astuple(progress.logged_totals)]
        amounts += [progress.epoch_seconds, progress.best_accuracy or 0.0]
        if not all(isinstance(amount, (int, float)) for amount in amounts):
            raise TypeError("its progress contains a value that is not a number")
        return progress


def step_line(progress: Progress, epoch: int, learning_rate: float) -> dict[str, Any]:
    """Return the journal line for the steps since the last such line, and count it.

    Args:
        progress: Its totals are those up to this step; it is updated.
        epoch: From 1.
    """
    recent = progress.epoch_totals - progress.logged_totals
    progress.logged_totals = progress.epoch_totals
    progress.step_lines += 1
    return {
        "kind": "step",
        "epoch": epoch,
        "step": progress.step,
        "train/loss": rounded(recent.loss),
        "train/accuracy": rounded(recent.accuracy),
        **_pace(progress, learning_rate),
    }


def epoch_line(
    progress: Progress, epoch: int, learning_rate: float, validation: dict[str, Any]
) -> dict[str, Any]:
    """Return the journal line of an epoch.

    Args:
        progress: Its totals are those of the epoch.
        epoch: From 1.
        validation: The validation score, from `evaluation.journal_values`.
    """
    return {
        "kind": "epoch",
        "epoch": epoch,
        "step": progress.step,
        "train/loss": rounded(progress.epoch_totals.loss),
        "train/accuracy": rounded(progress.epoch_totals.accuracy),
        **validation,
        "seconds": round(progress.epoch_seconds, 3),
        **_pace(progress, learning_rate),
        **({"skipped_steps": progress.skipped_steps} if progress.skipped_steps else {}),
    }


def _pace(progress: Progress, learning_rate: float) -> dict[str, float]:
    images_per_second = progress.epoch_totals.count / progress.epoch_seconds
    return {"learning_rate": learning_rate, "images_per_second": round(images_per_second, 1)}


def rounded(value: float) -> float:
    """Round off the digits that depend on the order of a sum."""
    return round(value, 7)
