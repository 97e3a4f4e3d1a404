"""The same bits at any world size, and the gradient that they are the bits of."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Config
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.session import session
from dist_mnist.record import checkpoint
from dist_mnist.record.journal import read_journal
from dist_mnist.training.build import build_training_state
from dist_mnist.training.progress import RunningMetrics, Totals
from dist_mnist.training.resume import checkpoint_content, restore
from dist_mnist.training.run import run
from dist_mnist.training.shards import SHARDS, set_reproducible, sum_shards
from tests.support.configs import SOLO, make_config
from tests.support.processes import run_ranks

SMALL = (
    "data=fashion_mnist",
    "data.validation_size=50",
    "trainer.global_batch_size=50",  # 153 samples: steps of 50, 50, 50 and 3, in 8 shards
    "trainer.evaluation_batch_size=16",
    "trainer.epochs=2",
    "trainer.log_every_steps=3",
    "trainer.checkpoint_every_steps=3",
    "trainer.keep_checkpoints=9",
    "trainer.device=cpu",
    "trainer.reproducible=true",
    "augmentation=affine",
    "model.dropout=0.2",
)


def run_all(*configs: Config) -> None:
    """Make one run after another."""
    with session("cpu", timeout_seconds=60) as world:
        for config in configs:
            run(config, world)


def left_by(run_dir: Path) -> dict[str, Any]:
    """Return all numbers that a run has left behind, but those of the clock."""
    kept = ("model", "optimizer", "scaler", "progress")
    left: dict[str, Any] = {
        path.name: {key: as_bits(checkpoint.load(path)[key]) for key in kept}
        for path in (run_dir / "checkpoints").iterdir()
    }
    left["journal"] = [
        {key: value for key, value in line.items() if "/" in key or key in ("step", "kind")}
        for line in read_journal(run_dir / "metrics.jsonl")
    ]
    return left


def as_bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: as_bits(some) for key, some in value.items() if key != "epoch_seconds"}
    return repr(value)


@pytest.fixture(scope="module")
def runs(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run at 1, 2 and 4 processes, and one that all three had a part in."""
    folder = tmp_path_factory.mktemp("runs")
    overrides = [*SMALL, f"data.root={small_root}"]
    for size, last_step in ((2, 3), (4, 6), (1, None)):  # each in the middle of an epoch
        whole = make_config(*overrides, f"run_dir={folder / str(size)}")
        part = replace(whole, run_dir=str(folder / "parts"))
        part.trainer = replace(whole.trainer, max_steps=last_step)
        run_ranks(size, run_all, whole, part)
    return folder


@pytest.mark.parametrize("name", ["2", "4", "parts"])
def test_same_bits_at_every_world_size(runs: Path, name: str) -> None:
    left = left_by(runs / name)
    assert set(left) == {
        *("step-3.safetensors", "step-4.safetensors", "step-6.safetensors", "step-8.safetensors"),
        *("best.safetensors", "last.safetensors", "journal"),
    }
    assert left == left_by(runs / "1")


@pytest.mark.slow
def test_eight_processes_take_the_same_steps(small_root: Path, tmp_path: Path, runs: Path) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}", "trainer.max_steps=4"]
    run_ranks(SHARDS, run_all, make_config(*overrides))
    assert (
        left_by(tmp_path)["step-4.safetensors"]["model"]
        == left_by(runs / "1")["step-4.safetensors"]["model"]
    )


@pytest.mark.parametrize("size", [3, 5, 6, 16])
def test_uneven_shards_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"support {size} processes"):
        set_reproducible(replace(SOLO, size=size), is_wanted=True)


@pytest.mark.parametrize(
    "override",
    [
        "trainer.micro_batch_size=5",
        "trainer.sync_batch_norm=true",
        "trainer.compress_gradients=true",
        "trainer.compile=true",
    ],
)
def test_unreproducible_options_are_refused(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(InputError, match=rf"{key}=.* trainer\.reproducible=true"):
        make_config("trainer.reproducible=true", override)
    make_config(override)


def shard_adder(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Any:
    def add_shard(index: int) -> None:
        if len(labels[index::SHARDS]):
            outputs = model(images[index::SHARDS])
            losses = nn.functional.cross_entropy(outputs, labels[index::SHARDS], reduction="sum")
            (losses / len(labels)).backward()

    return add_shard


@pytest.mark.parametrize("batch_size", [50, 8, 3])
def test_gradient_is_the_batch_mean(batch_size: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10))
    model.to(memory_format=torch.channels_last)
    images, labels = torch.randn(batch_size, 1, 8, 8), torch.arange(batch_size) % 10
    loss = nn.functional.cross_entropy(model(images), labels)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    sum_shards(model, SOLO, batch_size, shard_adder(model, images, labels))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [50, 3])
def test_buffers_average_over_shards(batch_size: int) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.5), nn.Flatten(), nn.Linear(4, 10))
    model.register_buffer("mask", torch.tensor([-math.inf, 0.1]))
    model.register_buffer("flags", torch.tensor([True, False]))
    images, labels = torch.randn(batch_size, 1, 2, 2), torch.arange(batch_size) % 10
    sum_shards(model, SOLO, batch_size, shard_adder(model, images, labels))
    shards = [images[shard::SHARDS] for shard in range(min(SHARDS, batch_size))]
    mean = torch.stack([0.5 * shard.mean() for shard in shards]).mean()
    variance = torch.stack([0.5 + 0.5 * shard.var() for shard in shards]).mean()
    buffers = dict(model.named_buffers())
    torch.testing.assert_close(buffers["0.running_mean"], mean.view(1))
    torch.testing.assert_close(buffers["0.running_var"], variance.view(1))
    assert int(buffers["0.num_batches_tracked"]) == 1
    assert buffers["mask"].tolist() == [-math.inf, pytest.approx(0.1)]
    assert buffers["flags"].tolist() == [True, False]


def test_train_loss_ignores_order() -> None:
    losses = torch.rand(1000, generator=torch.Generator().manual_seed(0)).double() ** 30
    totals = []
    for parts in (losses.float().split(10), losses.float().flip(0).split(37)):
        metrics = RunningMetrics(SOLO, Totals(loss_sum=0.1))
        for part in parts:
            metrics.update(part, torch.zeros(len(part), 10), torch.zeros(len(part)))
        totals.append(metrics.reduced())
    assert totals[0] == totals[1]
    assert totals[0].loss_sum == pytest.approx(0.1 + float(losses.sum()), abs=1e-4)


def test_a_run_keeps_to_what_it_began_with(small_root: Path) -> None:
    config = make_config(
        "data=fashion_mnist", f"data.root={small_root}", "data.validation_size=50", "model=mlp"
    )
    state = build_training_state(config, SOLO, load_splits(config.data, config.seed))
    content = deepcopy(checkpoint_content(state))
    content["config"]["trainer"]["reproducible"] = True
    with pytest.raises(InputError, match=r"trainer\.reproducible=False does not fit this run"):
        restore(state, content)
