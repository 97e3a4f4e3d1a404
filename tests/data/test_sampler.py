from itertools import chain

import pytest
import torch

from dist_mnist.data.sampler import DistributedBatchSampler, EpochOrder
from dist_mnist.distributed.world import World


def shares(
    size: int, batch: int, ranks: int, seed: int = 0, epoch: int = 0, first: int = 0
) -> list[list[list[int]]]:
    """Return every rank's shares of every batch."""
    order = EpochOrder(size, batch)
    worlds = [World(rank, rank, ranks, ranks, torch.device("cpu")) for rank in range(ranks)]
    return [
        [share.tolist() for share in DistributedBatchSampler(order, world, seed, epoch, first)]
        for world in worlds
    ]


def batches(per_rank: list[list[list[int]]]) -> list[list[int]]:
    """Return each global batch as the sorted union of its shares."""
    return [sorted(chain.from_iterable(parts)) for parts in zip(*per_rank, strict=True)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("size", "batch"), [(103, 10), (100, 10), (7, 3), (5, 16), (64, 1)])
def test_every_sample_is_seen_once_in_an_epoch(size: int, batch: int, ranks: int) -> None:
    per_rank = shares(size, batch, ranks)
    assert sorted(chain.from_iterable(batches(per_rank))) == list(range(size))
    assert {len(rank) for rank in per_rank} == {-(-size // batch)}


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_global_batches_ignore_world_size(ranks: int) -> None:
    assert batches(shares(103, 10, ranks)) == batches(shares(103, 10, 1))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_shares_differ_by_one_sample_at_most(ranks: int) -> None:
    for parts in zip(*shares(103, 10, ranks), strict=True):
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_epoch_continues_where_it_was() -> None:
    assert shares(103, 10, 2, first=4) == [rank[4:] for rank in shares(103, 10, 2)]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert shares(50, 10, 1) == shares(50, 10, 1)
    assert shares(50, 10, 1) != shares(50, 10, 1, epoch=1)
    assert shares(50, 10, 1) != shares(50, 10, 1, seed=1)


def test_batch_sizes_add_up() -> None:
    order = EpochOrder(103, 10)
    assert [order.batch_size(batch) for batch in range(len(order))] == [10] * 10 + [3]
