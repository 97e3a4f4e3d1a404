import pytest
import torch

from dist_mnist.data.balance import (
    balanced_order,
    class_weights,
    draw_bars,
    is_uneven,
)
from dist_mnist.data.sampler import DistributedBatchSampler, EpochOrder
from dist_mnist.distributed.world import World

LABELS = torch.tensor([0] * 200 + [1] * 10 + [2] * 3 + [4] * 90)  # none of class 3


def order(seed: int = 0) -> torch.Tensor:
    return balanced_order(LABELS, torch.Generator().manual_seed(seed))


def test_classes_weigh_alike() -> None:
    weights = class_weights(LABELS.bincount())
    per_class = weights * LABELS.bincount()
    torch.testing.assert_close(per_class[[0, 1, 2, 4]], torch.full((4,), len(LABELS) / 4))
    assert weights[3] == 0
    assert float(weights[LABELS].mean()) == pytest.approx(1)


def test_classes_are_drawn_alike() -> None:
    drawn = order()
    assert len(drawn) == len(LABELS)
    counts = LABELS[drawn].bincount()[[0, 1, 2, 4]]
    assert int(counts.max() - counts.min()) <= 1
    for label in (0, 1, 2, 4):
        times = drawn[LABELS[drawn] == label].bincount(minlength=len(LABELS))[label == LABELS]
        assert int(times.max() - times.min()) <= 1


def test_the_draw_depends_on_the_seed_alone() -> None:
    assert torch.equal(order(), order())
    assert not torch.equal(order(), order(seed=1))
    assert LABELS[order()].tolist() != sorted(LABELS[order()].tolist())


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_balanced_batches_ignore_world_size(ranks: int) -> None:
    epoch = EpochOrder(len(LABELS), 40, LABELS)
    worlds = [World(rank, rank, ranks, ranks, torch.device("cpu")) for rank in range(ranks)]
    shares = [[*DistributedBatchSampler(epoch, w, 7, 2, first_batch=3)] for w in worlds]
    whole = epoch.draw(7, 2).split(40)[3:]
    assert len(shares[0]) == len(whole) == len(epoch) - 3
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.cat(parts).sort().values.tolist() == batch.sort().values.tolist()


def test_uneven_classes_are_noticed() -> None:
    assert is_uneven(torch.tensor([10, 21, 15]))
    assert not is_uneven(torch.tensor([10, 20, 15, 0]))


def test_a_bar_for_each_class() -> None:
    assert draw_bars([100, 25], ["cat", "dog"]).splitlines() == [
        f"  cat        100  {'#' * 40}",
        f"  dog         25  {'#' * 10}",
    ]


def test_many_classes_are_shortened() -> None:
    lines = draw_bars([*range(1, 1001)], [f"class {label}" for label in range(1000)]).splitlines()
    assert len(lines) == 21
    assert "980 more classes, of 11 to 990" in lines[10]
    assert "class 999" in lines[0]
    assert "class 0 " in lines[-1]
