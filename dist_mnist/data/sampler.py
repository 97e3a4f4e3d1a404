"""Distributes each epoch's samples over steps and ranks: a pure function of (seed, epoch).

The global batch k of an epoch is the same set of samples at every world size. To continue in the
middle of an epoch, only the number of batches done has to be known.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from dist_mnist.data.balance import balanced_order
from dist_mnist.data.seeding import keyed_seed
from dist_mnist.distributed.world import World


@dataclass(frozen=True)
class EpochOrder:
    """The order of an epoch's samples, and the sizes of its global batches."""

    size: int  # the number of samples
    global_batch_size: int  # the number of samples in a batch; the last batch may be smaller
    # int64 of shape (size,) on the CPU, to draw from each class equally often; None to see every
    # sample once.
    labels: torch.Tensor | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return -(-self.size // self.global_batch_size)

    def batch_size(self, batch: int) -> int:
        """Return the number of samples in a global batch, over all processes."""
        return min(self.global_batch_size, self.size - batch * self.global_batch_size)

    @property
    def batch_sizes(self) -> set[int]:
        """The sizes that its global batches have."""
        return {self.batch_size(0), self.batch_size(len(self) - 1)}

    def draw(self, seed: int, epoch: int) -> torch.Tensor:
        """Return the order of an epoch's samples: int64 indices of shape (size,)."""
        # On the CPU, whose generator gives the same order on every machine.
        generator = torch.Generator().manual_seed(keyed_seed(seed, "order", epoch))
        if self.labels is not None:
            return balanced_order(self.labels, generator)
        return torch.randperm(self.size, generator=generator)


@dataclass(frozen=True)
class DistributedBatchSampler:
    """This process's share of each global batch of one epoch, as index tensors.

    No sample is padded, repeated or dropped, unless classes are balanced. Every process yields the
    same number of shares. Their sizes differ by at most one; in a small last batch, a share may be
    empty.

    Part p of `parts` has the samples p, p + parts and so on of a batch. A process takes every
    `world.size`-th part, one after the other.
    """

    order: EpochOrder
    world: World
    seed: int
    epoch: int  # from 0; each epoch has a different order
    first_batch: int = 0  # above 0 in a run that continues in the middle of an epoch
    parts: int | None = None  # of a batch; None for one part for each process

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield int64 tensors of shape (share,) on the world's device."""
        parts = self.parts or self.world.size
        indices = self.order.draw(self.seed, self.epoch).to(self.world.device)
        for batch in indices.split(self.order.global_batch_size)[self.first_batch :]:
            local = [batch[part::parts] for part in range(self.world.rank, parts, self.world.size)]
            yield local[0] if len(local) == 1 else torch.cat(local)
