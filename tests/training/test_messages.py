"""All ranks send the same messages: otherwise they would wait for each other until they time out.

The process group is torch's fake one, whose messages go nowhere, so one process can take the place
of each rank of a large world in turn.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Config
from dist_mnist.data.sampler import DistributedBatchSampler, EpochOrder
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.thread_pool import ThreadPool
from dist_mnist.distributed.world import World
from dist_mnist.training import evaluation
from dist_mnist.training.build import build_training_state
from dist_mnist.training.evaluation import evaluate, validate
from dist_mnist.training.loop import train_epoch
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.step import piece_count, pieces
from tests.support.configs import make_config
from tests.support.processes import run_ranks

CPU = torch.device("cpu")
NEVER: Any = SimpleNamespace(after_step=lambda: False)  # whether to stop is asked by the clock


class Messages(TorchDispatchMode):
    """Notes the kind, the shape and the dtype of every message."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: list[tuple[str, tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith("c10d."):
            tensor = args[0]
            while isinstance(tensor, (list, tuple)):
                tensor = tensor[0]
            self.sent.append((str(func), tuple(tensor.shape), tensor.dtype))
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_group(rank: int, size: int) -> Iterator[World]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield World(rank, rank, size, size, CPU)
    finally:
        dist.destroy_process_group()


def messages(rank: int, size: int, config: Config) -> list[Any]:
    """Return the messages of a rank in an epoch and in the validation after it."""
    with fake_group(rank, size) as world:
        state = build_training_state(config, world, load_splits(config.data, config.seed))
        seen = Messages()
        with seen:
            train_epoch(state, Recorder(), NEVER)
            with suppress(RuntimeError):  # alone, this rank has not seen every sample
                validate(state)
        return seen.sent


# Overrides, the number of ranks in the world, and those that are tried.
CASES: dict[str, tuple[str, int, Sequence[int]]] = {
    "uneven shares": ("trainer.global_batch_size=91", 8, range(8)),
    "five without a share": ("trainer.global_batch_size=66", 8, range(8)),  # of the last 3 samples
    "two pieces and one": (
        "trainer.global_batch_size=91 trainer.micro_batch_size=11",
        *(8, range(8)),
    ),
    "in shards": ("trainer.global_batch_size=91 trainer.reproducible=true", 8, range(8)),
    "64 ranks": ("trainer.global_batch_size=66", 64, (0, 2, 3, 63)),
    "1,024 ranks": ("trainer.global_batch_size=66", 1024, (0, 65, 66, 1023)),
    "batch norm": (  # shares of 12 and 11; a stand-in for synchronized batch norm gathers
        "trainer.global_batch_size=91 trainer.micro_batch_size=11 trainer.sync_batch_norm=true "
        "model=cnn model.channels=[4,4,4]",
        *(8, (0, 7)),
    ),
    "batch norm, one by one": (
        "trainer.global_batch_size=91 trainer.micro_batch_size=1 trainer.sync_batch_norm=true",
        *(8, (0,)),
    ),
}


def sent_by_ranks(root: Path) -> dict[str, list[Any]]:
    """Return the messages of the ranks in each case, or the error."""
    sent: dict[str, list[Any]] = {}
    package = "dist_mnist.distributed"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(f"{package}.shared_memory.is_supported", lambda: False)
        monkeypatch.setattr("dist_mnist.training.build.broadcast_object", lambda _, value: value)
        monkeypatch.setattr(f"{package}.gradients.WITHOUT_SYNC_BATCH_NORM", ())
        monkeypatch.setattr(nn.SyncBatchNorm, "convert_sync_batchnorm", gathering)
        for name, (overrides, size, ranks) in CASES.items():
            chosen = ["data=fashion_mnist", f"data.root={root}", "data.validation_size=2"]
            config = make_config(*chosen, "trainer.epochs=1", "model=linear", *overrides.split())
            try:
                sent[name] = [messages(rank, size, config) for rank in ranks]
            except InputError as error:
                sent[name] = [str(error)]
    return sent


@pytest.fixture(scope="module")
def sent(small_root: Path) -> dict[str, list[Any]]:
    (found,) = run_ranks(1, sent_by_ranks, small_root)
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [name for name in CASES if name != "batch norm, one by one"])
def test_ranks_send_the_same(name: str, sent: dict[str, list[Any]]) -> None:
    first, *others = sent[name]
    assert first
    assert others
    assert all(other == first for other in others)


def test_batch_norm_gathers_in_every_piece(sent: dict[str, list[Any]]) -> None:
    reduced = [kind for kind, *_ in sent["batch norm"][0] if "allreduce" in kind]
    assert len(reduced) >= 3 * (2 + 2 + 1)  # layers, and the pieces of the steps of 91, 91 and 19
    (refused,) = sent["batch norm, one by one"]
    assert "too few samples for trainer.sync_batch_norm=true" in refused


class GatheringNorm(nn.BatchNorm2d):
    """Sends a message in each forward pass, as synchronized batch norm does on GPUs."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training:
            dist.all_reduce(features.detach().mean((0, 2, 3)))
        return super().forward(features)


def gathering(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = GatheringNorm
    return model


@pytest.mark.parametrize("ranks", [64, 1024])
def test_sampler_of_many_ranks(ranks: int) -> None:
    order = EpochOrder(5000, 1500)  # at 1,024 ranks, some have 2 samples, some 1, and 524 none
    epochs = [
        list(DistributedBatchSampler(order, World(rank, rank, ranks, ranks, CPU), 0, 0))
        for rank in range(ranks)
    ]
    for batch, shares in enumerate(zip(*epochs, strict=True)):
        sizes = [len(share) for share in shares]
        assert sum(sizes) == order.batch_size(batch)
        assert max(sizes) - min(sizes) <= 1
    seen = torch.cat([share for epoch in epochs for share in epoch])
    assert torch.equal(seen.sort().values, torch.arange(5000))


@pytest.mark.parametrize("ranks", [8, 64, 1024])
@pytest.mark.parametrize("micro", [None, 2, 7])
def test_shares_of_many_ranks(ranks: int, micro: int | None) -> None:
    for size in (ranks * 10, ranks * 10 + 3, ranks * 9 + 1):
        count = piece_count(size, ranks, micro)
        images, seen = torch.arange(size), 0
        for rank in range(ranks):
            share = images[rank::ranks]
            cut = list(pieces(share, share, count))
            assert len(cut) == count  # of all ranks, which wait for each other in each
            assert [is_last for *_, is_last in cut] == [False] * (count - 1) + [True]
            assert torch.equal(torch.cat([piece for piece, *_ in cut]), share)
            assert max(len(piece) for piece, *_ in cut) <= (micro or size)
            seen += len(share)
        assert seen == size


@pytest.mark.parametrize("ranks", [64, 1024])
def test_evaluation_of_many_ranks(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_mnist.data.images import ImageTensors, Normalization
    from dist_mnist.models.classifier import Classifier

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 1, 4, 4), generator=generator).to(torch.uint8)
    dataset = ImageTensors(images, torch.arange(300) % 10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    classifier = Classifier(model, Normalization(0.0, 1.0), torch.float32, tuple("0123456789"))
    loss = nn.CrossEntropyLoss(reduction="none")
    total = torch.zeros(4, 300)

    def add(world: World, table: torch.Tensor) -> torch.Tensor:
        total.add_(table)
        return torch.ones_like(table)  # this rank alone has not seen all

    monkeypatch.setattr(evaluation, "all_reduce_sum", add)
    for rank in range(ranks):
        evaluate(classifier, loss, dataset, World(rank, rank, ranks, ranks, CPU), 3, ThreadPool(1))
    assert total[3].tolist() == [1.0] * 300
    outputs = classifier.logits(images)
    assert torch.equal(total[1].long(), outputs.argmax(1))
    torch.testing.assert_close(total[0], loss(outputs, dataset.labels))
