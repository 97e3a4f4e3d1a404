"""The same bits at any world size, and the gradient that they are the bits of."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import Config
from dist_mnist.data.sampler import DistributedBatchSampler, EpochOrder
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.session import session
from dist_mnist.distributed.stopping import StopAgreement
from dist_mnist.models.build import build_model
from dist_mnist.models.dry_run import dry_run
from dist_mnist.record import checkpoint
from dist_mnist.record.journal import read_journal
from dist_mnist.training.build import build_training_state
from dist_mnist.training.loop import train_epoch
from dist_mnist.training.progress import RunningMetrics, Totals
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.resume import checkpoint_content, restore
from dist_mnist.training.run import run
from dist_mnist.training.shards import (
    SHARDS,
    StepInShards,
    costs_little,
    plan_calls,
    set_reproducible,
)
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import set_train_mode
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
    """A folder with a whole run at 1, 2 and 3 processes, and one that all three had a part in."""
    folder = tmp_path_factory.mktemp("runs")
    overrides = [*SMALL, f"data.root={small_root}"]
    for size, last_step in ((2, 3), (3, 6), (1, None)):  # each in the middle of an epoch
        whole = make_config(*overrides, f"run_dir={folder / str(size)}")
        part = replace(whole, run_dir=str(folder / "parts"))
        part.trainer = replace(whole.trainer, max_steps=last_step)
        run_ranks(size, run_all, whole, part)
    return folder


@pytest.mark.parametrize("name", ["2", "3", "parts"])
def test_same_bits_at_every_world_size(runs: Path, name: str) -> None:
    left = left_by(runs / name)
    assert set(left) == {
        *("step-3.safetensors", "step-4.safetensors", "step-6.safetensors", "step-8.safetensors"),
        *("best.safetensors", "last.safetensors", "journal"),
    }
    assert left == left_by(runs / "1")


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 5, 6, 7, SHARDS])
def test_more_processes_take_the_same_steps(
    size: int, small_root: Path, tmp_path: Path, runs: Path
) -> None:
    overrides = [*SMALL, f"data.root={small_root}", f"run_dir={tmp_path}", "trainer.max_steps=4"]
    run_ranks(size, run_all, make_config(*overrides))
    assert (
        left_by(tmp_path)["step-4.safetensors"]["model"]
        == left_by(runs / "1")["step-4.safetensors"]["model"]
    )


def weights_after(*overrides: str) -> dict[str, bytes]:
    """Return the bits of the weights and buffers after the steps that the overrides say."""
    config = make_config(*overrides)
    with session("cpu", timeout_seconds=60) as world:
        splits = load_splits(config.data, config.seed, config.trusted_modules)
        state = build_training_state(config, world, splits)
        train_epoch(state, Recorder(), StopAgreement(world))
        return as_bits(state.model.state_dict())  # type: ignore[no-any-return]


OWN = "model=mlp model._target_=tests.support.networks"
DEFAULT = ("trainer.epochs=1", "trainer.max_steps=3")  # of real MNIST, and the rest as it is


@pytest.mark.parametrize(
    ("size", "threads"),
    [(1, 2), (2, 1), (4, 1), *(pytest.param(n, 2, marks=pytest.mark.slow) for n in (2, 3, 6))],
)
def test_default_has_the_same_bits(size: int, threads: int, default: dict[str, bytes]) -> None:
    assert all(
        weights == default
        for weights in run_ranks(size, weights_after, *DEFAULT, f"trainer.cpu_threads={threads}")
    )


@pytest.mark.parametrize(
    "network",
    [
        "model=mlp trainer.reproducible=true",
        pytest.param("trainer.precision=bf16", marks=pytest.mark.slow),
        pytest.param(f"{OWN}.WithBuffers trainer.reproducible=true", marks=pytest.mark.slow),
        pytest.param(f"{OWN}.Orthogonal trainer.reproducible=true", marks=pytest.mark.slow),
    ],
)
def test_other_networks_have_the_same_bits(network: str) -> None:
    overrides = [*DEFAULT, *network.split(), "trusted_modules=[tests.support.networks]"]
    (alone,) = run_ranks(1, weights_after, *overrides, "trainer.cpu_threads=2")
    assert run_ranks(3, weights_after, *overrides) == [alone] * 3


def test_ranks_agree_on_a_network(small_root: Path) -> None:
    odd = ["model=mlp", "model._target_=tests.support.networks.Odd", "+model.how=keeps on rank 0"]
    overrides = [f"data.root={small_root}", "data=fashion_mnist", "data.validation_size=50"]
    overrides += [*odd, "trainer.reproducible=true", "trainer.max_steps=2", "trainer.epochs=2"]
    first, second = run_ranks(
        2, weights_after, *overrides, "trusted_modules=[tests.support.networks]"
    )
    assert first == second


@pytest.fixture(scope="module")
def default() -> dict[str, bytes]:
    (weights,) = run_ranks(1, weights_after, *DEFAULT, "trainer.cpu_threads=1")
    return weights  # type: ignore[no-any-return]


def state_of(root: Path, *overrides: str) -> TrainingState:
    """Build a state for the small data in this process."""
    config = make_config(
        *("data=fashion_mnist", f"data.root={root}", "data.validation_size=50"),
        *("trainer.device=cpu", "trusted_modules=[tests.support.networks]", *overrides),
    )
    splits = load_splits(config.data, config.seed, config.trusted_modules)
    state = build_training_state(config, SOLO, splits)
    set_train_mode(state)
    return state


@pytest.mark.parametrize("size", range(1, SHARDS + 1))
@pytest.mark.parametrize("batch_size", [50, 9, 8, 3])
def test_calls_cover_the_batch(size: int, batch_size: int) -> None:
    order, seen = EpochOrder(batch_size, batch_size), []
    whole = order.draw(0, 0)
    for rank in range(size):
        world = replace(SOLO, rank=rank, size=size)
        (share,) = DistributedBatchSampler(order, world, 0, 0, parts=SHARDS)
        for most in (1, 3, SHARDS):
            calls = plan_calls(range(rank, SHARDS, size), batch_size, most, SOLO.device)
            assert sum(len(call.places) for call in calls) == len(share)
            for call in calls:
                assert torch.equal(whole[call.places], share[call.samples])
                assert len(call.places) % len(call.shards) == 0
        seen.append(share)
    assert torch.equal(torch.cat(seen).sort().values, whole.sort().values)


# Whether auto chooses shards for a whole batch of the default's size, and why not.
CHOICES = {
    "": True,
    "model=mlp": False,  # calls take longer than their work
    "trainer.global_batch_size=128": False,
    "model.dropout=0.2": False,  # draws random numbers
    "trainer.micro_batch_size=100": False,
    "trainer.precision=bf16": True,
    "loss=mse": True,
    "trainer.reproducible=false": False,
    "model=mlp trainer.reproducible=true": True,
}


@pytest.mark.parametrize("overrides", CHOICES)
def test_auto_chooses_shards(overrides: str) -> None:
    config = make_config(*overrides.split())
    splits = load_splits(config.data, config.seed)
    for world in (SOLO, replace(SOLO, local_size=2)):
        state = build_training_state(config, world, splits)
        assert (state.shards is not None) is CHOICES[overrides]


def test_auto_leaves_more_processes_than_shards_alone() -> None:
    config, world = make_config(), replace(SOLO, size=SHARDS + 1)
    findings = dry_run(build_model(config), config.data)
    order = EpochOrder(55_000, 256)
    assert not costs_little(config, world, order, findings)
    assert costs_little(config, replace(world, size=SHARDS), order, findings)
    with pytest.raises(InputError, match=rf"support {SHARDS + 1} processes"):
        set_reproducible(world, is_wanted=True)


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(InputError, match=r"trainer\.reproducible=maybe.* auto, true or false"):
        make_config("trainer.reproducible=maybe")


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


PLAIN_SGD = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=1", "scheduler=constant")


@pytest.mark.parametrize("batch_size", [50, 8, 3])
@pytest.mark.parametrize("model", ["mlp", "tests.support.networks.TutorialCNN"])
def test_gradient_is_the_batch_mean(small_root: Path, model: str, batch_size: int) -> None:
    chosen = ["model=mlp"] if model == "mlp" else ["model=mlp", f"model._target_={model}"]
    chosen += [f"trainer.global_batch_size={batch_size}", "augmentation=none", *PLAIN_SGD]
    chosen += ["optimizer.nesterov=false", "optimizer.weight_decay=0"]
    state = state_of(small_root, *chosen, "trainer.reproducible=true", "trainer.cpu_threads=2")
    batch = next(state.batches())
    images, labels = state.splits.train[batch.indices]
    outputs = state.model(state.splits.normalization(images))
    parameters = list(state.model.parameters())
    expected = torch.autograd.grad(state.loss(outputs, labels).mean(), parameters)
    before = [parameter.detach().clone() for parameter in parameters]
    state.step(batch)
    for parameter, old, gradient in zip(parameters, before, expected, strict=True):
        torch.testing.assert_close(old - parameter, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [50, 3])
@pytest.mark.parametrize(("threads", "rebinds"), [(1, False), (2, False), (1, True)])
def test_buffers_average_over_shards(
    small_root: Path, batch_size: int, threads: int, rebinds: bool
) -> None:
    chosen = ["model=mlp", "model._target_=tests.support.networks.WithBuffers"]
    chosen += [f"+model.rebinds={rebinds}"]
    chosen += [f"trainer.global_batch_size={batch_size}", "augmentation=none"]
    chosen += ["trainer.reproducible=true", f"trainer.cpu_threads={threads}"]
    state = state_of(small_root, *chosen)
    assert state.pool.threads == threads
    batch = next(state.batches())
    images = state.splits.normalization(state.splits.train[batch.indices][0])
    lengths = [len(range(shard, batch_size, SHARDS)) for shard in range(SHARDS)]
    shards = [shard for shard in images.split(lengths) if len(shard)]
    state.step(batch)
    buffers = dict(state.model.named_buffers())
    mean = torch.stack([0.5 * shard.mean() for shard in shards]).mean()
    variance = torch.stack([0.5 + 0.5 * shard.var() for shard in shards]).mean()
    torch.testing.assert_close(buffers["norm.running_mean"], mean.view(1))
    torch.testing.assert_close(buffers["norm.running_var"], variance.view(1))
    assert int(buffers["norm.num_batches_tracked"]) == 1
    assert float(buffers["seen"]) == pytest.approx(batch_size / len(shards))
    assert buffers["mask"].tolist() == [-math.inf, pytest.approx(0.1)]
    assert buffers["flags"].tolist() == [True, False]


# How many threads compute a network that is not what it seems.
@pytest.mark.parametrize(
    ("how", "threads"),
    [
        *(("plain", 2), ("norm", 2), ("random", 1), ("numpy", 1), ("counts", 1), ("keeps", 1)),
        *(("locked", 1), ("closure", 1), ("writes in eval mode", 1)),
    ],
)
def test_networks_with_a_memory_run_alone(small_root: Path, how: str, threads: int) -> None:
    target = "model._target_=tests.support.networks.Odd"
    chosen = ["model=mlp", target, f"+model.how={how}", "trainer.cpu_threads=2"]
    state = state_of(small_root, *chosen, "trainer.reproducible=true")
    assert state.pool.threads == threads
    state.step(next(state.batches()))


@pytest.mark.parametrize(
    ("model", "is_stacked"),
    [
        ("mlp", True),
        ("mlp model.log_probabilities=true loss=nll", True),
        ("linear", True),
        ("mlp model._target_=tests.support.networks.Odd +model.how=norm", False),
        ("mlp model._target_=tests.support.networks.Odd +model.how=mixes", False),
        ("mlp model._target_=tests.support.networks.Odd +model.how=twice", False),
        ("mlp model.dropout=0.2", False),
        ("mlp model._target_=tests.support.networks.TutorialCNN", False),
    ],
)
def test_linear_networks_are_stacked(small_root: Path, model: str, is_stacked: bool) -> None:
    state = state_of(small_root, *f"model={model} trainer.reproducible=true".split())
    assert isinstance(state.step, StepInShards)
    assert state.step.is_stacked is is_stacked


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


@pytest.mark.parametrize("was", [False, True])
def test_a_run_keeps_to_what_it_began_with(
    small_root: Path, was: bool, caplog: pytest.LogCaptureFixture
) -> None:
    content = deepcopy(checkpoint_content(state_of(small_root, "model=mlp")))
    content["reproducible"] = was
    now, then = str(not was).lower(), str(was).lower()
    with pytest.raises(InputError, match=f"reproducible={now} does not fit .*reproducible={then}"):
        restore(state_of(small_root, "model=mlp", f"trainer.reproducible={now}"), content)
    del content["reproducible"]  # as in older checkpoints
    content["config"]["trainer"]["reproducible"] = was
    restore(state_of(small_root, "model=mlp"), content)  # auto: false for this network
    assert ("began with steps of trainer.reproducible=true" in caplog.text) is was
