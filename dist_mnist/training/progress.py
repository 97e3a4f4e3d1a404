"""How good the answers are: running totals while training, every sample's answer in evaluation."""

from dataclasses import astuple, dataclass

import torch

from dist_mnist.distributed.gradients import World, all_reduce_sum

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
        """The share of samples that were predicted right."""
        return self.correct / self.count


class RunningMetrics:
    """Loss and accuracy of what the network scores while it trains.

    They add up on the device, so a step never waits for it; `reduced` reads them. What the network
    gave is kept for some steps and then counted at once, which for a small network takes a tenth
    of the time.

    Args:
        world: This process.
        initial: What the totals begin with, for a run that continues in the middle of an epoch.
    """

    def __init__(self, world: World, initial: Totals) -> None:
        dtype = torch.float32 if world.device.type == "mps" else torch.float64
        start = astuple(initial if world.is_main else Totals())
        self._world = world
        self._sums = torch.tensor(start, dtype=dtype, device=world.device)
        self._uncounted: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def update(self, losses: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Take a batch: float losses (B,), float outputs (B, classes), int64 labels (B,)."""
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
        # Whole units add up exactly, in whatever order.
        units = (losses.to(self._sums.dtype) / LOSS_UNIT).round()
        self._sums[0] += units.sum() * LOSS_UNIT
        self._sums[1] += (outputs.argmax(dim=1) == labels).sum()
        self._sums[2] += len(labels)
        self._uncounted.clear()


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction and how sure the network was of it (a probability)."""

    index: int
    label: int
    prediction: int
    confidence: float


@dataclass(frozen=True)
class Evaluation:
    """The answer to every sample of a set, in the set's order, the same on every rank.

    Attributes:
        labels: int64 of shape (N,), on the CPU like the rest.
        predictions: int64 of shape (N,).
        confidences: float32 of shape (N,), the probability given to the prediction.
        losses: float32 of shape (N,).
    """

    labels: torch.Tensor
    predictions: torch.Tensor
    confidences: torch.Tensor
    losses: torch.Tensor

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.labels)

    @property
    def correct(self) -> int:
        """The number of samples that were predicted right."""
        return int((self.predictions == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """The share of samples that were predicted right."""
        return self.correct / self.count

    @property
    def loss(self) -> float:
        """The mean loss of a sample."""
        return float(self.losses.double().mean())

    def confusion(self, num_classes: int) -> torch.Tensor:
        """Return how often label i was predicted as j, int64 of shape (classes, classes)."""
        cells = self.labels * num_classes + self.predictions
        return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)

    def worst_mistakes(self, most: int) -> list[Mistake]:
        """Return the wrong predictions that the network was surest of, the surest first."""
        wrong = (self.predictions != self.labels).nonzero().flatten()
        surest = wrong[self.confidences[wrong].argsort(descending=True, stable=True)]
        return [
            Mistake(
                index=index,
                label=int(self.labels[index]),
                prediction=int(self.predictions[index]),
                confidence=float(self.confidences[index]),
            )
            for index in surest[:most].tolist()
        ]
