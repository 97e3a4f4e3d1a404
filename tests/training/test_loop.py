"""The loop's arithmetic: the same at every world size, in every accumulation, in every mode."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_mnist.config.schema import Config
from dist_mnist.data.images import Batch
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.session import session
from dist_mnist.distributed.stopping import StopAgreement
from dist_mnist.distributed.world import World
from dist_mnist.training.build import build_training_state
from dist_mnist.training.loop import fit, train_epoch
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.state import TrainingState
from tests.support.configs import SOLO, make_config
from tests.support.processes import run_ranks

EXACT = (
    "data=fashion_mnist",
    "data.validation_size=0",
    "model=mlp",
    "optimizer=sgd",
    "scheduler=constant",
    "augmentation=none",
    "trainer.device=cpu",
)


def trained(overrides: list[str]) -> dict[str, torch.Tensor]:
    """Train one epoch and return the weights."""
    config = make_config(*overrides)
    with session(config.trainer.device, timeout_seconds=60) as world:
        return trained_in(world, config)


def trained_in(world: World, config: Config) -> dict[str, torch.Tensor]:
    state = build_training_state(config, world, load_splits(config.data, config.seed))
    fit(state, Recorder())
    return {key: value.clone() for key, value in state.model.state_dict().items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.mark.parametrize(
    ("choice", "sizes"),
    [("loss=cross_entropy", [2, 3, 4]), ("loss=mse", [3]), ("augmentation=affine", [3])],
)
def test_steps_match_at_every_world_size(small_root: Path, choice: str, sizes: list[int]) -> None:
    overrides = [
        *EXACT,
        choice,
        f"data.root={small_root}",
        "trainer.global_batch_size=91",  # 203 samples: steps of 91, 91 and 21
        "trainer.epochs=1",
    ]
    alone = trained(overrides)
    for size in sizes:
        for weights in run_ranks(size, trained, overrides):
            assert largest_difference(alone, weights) < 1e-6


def test_bf16_gradients_are_close(small_root: Path) -> None:
    overrides = [*EXACT, f"data.root={small_root}", "trainer.epochs=1"]
    alone = trained(overrides)
    for weights in run_ranks(2, trained, [*overrides, "trainer.compress_gradients=true"]):
        assert 0 < largest_difference(alone, weights) < 1e-2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_network_learns_the_same(small_root: Path) -> None:
    overrides = [*EXACT, f"data.root={small_root}", "trainer.epochs=1"]
    overrides.append("trainer.global_batch_size=100")  # the last batch is of another shape
    eager = trained(overrides)
    for weights in run_ranks(2, trained, [*overrides, "trainer.compile=true"]):
        assert largest_difference(eager, weights) < 1e-5


def test_empty_share_changes_nothing(small_root: Path) -> None:
    overrides = [
        *EXACT,
        f"data.root={small_root}",
        "trainer.global_batch_size=67",  # 203 = 3 * 67 + 2: two of four ranks have no share
        "trainer.epochs=1",
    ]
    alone = trained(overrides)
    for weights in run_ranks(4, trained, overrides):
        assert largest_difference(alone, weights) < 1e-6


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_match_the_batch(small_root: Path, size: int) -> None:
    overrides = [
        *EXACT,
        f"data.root={small_root}",
        "trainer.global_batch_size=90",
        "trainer.gradient_clip_norm=0.5",
        "trainer.epochs=1",
    ]
    whole = trained(overrides)
    for weights in run_ranks(size, trained, [*overrides, "trainer.micro_batch_size=7"]):
        assert largest_difference(whole, weights) < 1e-6


def test_a_step_is_the_tutorials_step(small_root: Path) -> None:
    """Zero the gradients, predict, NLL loss, backward, Adam: the tutorial's own five lines."""
    config = make_config(
        "experiment=tutorial",
        "data=fashion_mnist",
        f"data.root={small_root}",
        "trainer.max_steps=5",
        "trainer.device=cpu",
    )
    splits = load_splits(config.data, config.seed)
    state = build_training_state(config, SOLO, splits)
    network = build_training_state(config, SOLO, splits).model
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    from dist_mnist.data.sampler import DistributedBatchSampler

    for indices, _ in zip(
        DistributedBatchSampler(state.order, SOLO, config.seed, epoch=0), range(5), strict=False
    ):
        images, labels = splits.train[indices]
        network.zero_grad()
        output = network(splits.normalization(images))
        nn.functional.nll_loss(output, labels).backward()
        optimizer.step()
    fit(state, Recorder())
    assert state.config.trainer.global_batch_size == 10
    assert largest_difference(state.model.state_dict(), network.state_dict()) < 1e-6


def build_state(small_root: Path, *overrides: str) -> TrainingState:
    config = make_config(
        "data=fashion_mnist",
        f"data.root={small_root}",
        "data.validation_size=50",
        "trainer.global_batch_size=50",
        "trainer.epochs=3",
        "trainer.device=cpu",
        *overrides,
    )
    return build_training_state(config, SOLO, load_splits(config.data, config.seed))


def test_modes_in_training_and_validation(small_root: Path) -> None:
    state = build_state(small_root, "model.dropout=0.5")
    seen: list[tuple[bool, int]] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        zeros = int((output == 0).sum()) - int((inputs[0] == 0).sum())
        seen.append((module.training, zeros))

    dropout = next(m for m in state.model.modules() if isinstance(m, nn.Dropout))
    dropout.register_forward_hook(note)
    statistics = next(m for m in state.model.modules() if isinstance(m, nn.BatchNorm2d))
    fit(state, Recorder())
    assert [mode for mode, _ in seen] == ([True] * 4 + [False]) * 3
    assert all(zeros > 0 for mode, zeros in seen if mode)
    assert all(zeros == 0 for mode, zeros in seen if not mode)
    assert statistics.num_batches_tracked is not None
    assert int(statistics.num_batches_tracked) == 12  # the training steps and no other batch


def test_train_accuracy_counts_each_sample(small_root: Path) -> None:
    state = build_state(small_root)
    train_epoch(state, Recorder(), StopAgreement(SOLO))
    totals = state.progress.epoch_totals
    assert totals.count == 153
    assert 0 < totals.correct <= 153


def test_learning_rate_follows_its_schedule(small_root: Path) -> None:
    state = build_state(small_root, "scheduler=step_decay", "optimizer=sgd", "optimizer.lr=0.1")
    rates = []
    for _ in range(3):
        train_epoch(state, Recorder(), StopAgreement(SOLO))
        rates.append(state.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.05, 0.025])


def test_clipping_bounds_the_step(small_root: Path) -> None:
    steps = []
    for clip in ("0.01", "null"):
        state = build_state(
            small_root,
            "optimizer=sgd",
            "optimizer.lr=1",
            "optimizer.momentum=0",
            "optimizer.nesterov=false",
            "optimizer.weight_decay=0",
            "scheduler=constant",
            "trainer.max_steps=1",
            f"trainer.gradient_clip_norm={clip}",
        )
        before = torch.cat([p.detach().flatten().clone() for p in state.model.parameters()])
        fit(state, Recorder())
        after = torch.cat([p.detach().flatten() for p in state.model.parameters()])
        steps.append(float((after - before).norm()))
    assert steps[0] == pytest.approx(0.01, rel=1e-3)
    assert steps[1] > 0.1


def test_bf16_computes_in_bf16_and_learns(small_root: Path) -> None:
    state = build_state(small_root, "trainer.precision=bf16", "trainer.epochs=15")
    dtypes = set()
    convolution = next(m for m in state.model.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    fit(state, Recorder())
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    assert state.progress.best_accuracy is not None
    assert state.progress.best_accuracy > 0.9


def test_frozen_layers_stay_as_they_are(small_root: Path, monkeypatch: Any) -> None:
    from dist_mnist.models.build import build_model

    def frozen(config: Any) -> nn.Module:
        model = build_model(config)
        next(m for m in model.modules() if isinstance(m, nn.Conv2d)).requires_grad_(False)
        return model

    monkeypatch.setattr("dist_mnist.training.build.build_model", frozen)
    state = build_state(small_root, "trainer.max_steps=3")
    before = {key: value.clone() for key, value in state.model.named_parameters()}
    fit(state, Recorder())
    changed = {k for k, v in state.model.named_parameters() if not torch.equal(before[k], v)}
    assert changed == {k for k, p in state.model.named_parameters() if p.requires_grad}
    assert len(changed) == len(before) - 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "auto"])
def test_mixed_precision_learns_on_a_gpu(small_root: Path, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    config = make_config(
        "data=fashion_mnist",
        f"data.root={small_root}",
        "data.validation_size=50",
        "trainer.global_batch_size=50",
        "trainer.epochs=15",
        "trainer.device=cuda",
        f"trainer.precision={precision}",
    )
    with session("cuda", timeout_seconds=60) as world:
        splits = load_splits(config.data, config.seed).to(world.device)
        state = build_training_state(config, world, splits)
        fit(state, Recorder())
    assert state.scaler.is_enabled() == (precision == "fp16")
    assert state.progress.best_accuracy is not None
    assert state.progress.best_accuracy > 0.9


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says it is a prototype
@pytest.mark.parametrize("compiles", ["false", "true"])
def test_a_step_never_waits_for_the_gpu(small_root: Path, compiles: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    config = make_config(
        *("data=fashion_mnist", f"data.root={small_root}", "data.validation_size=50"),
        *("trainer.global_batch_size=50", "trainer.device=cuda", "trainer.precision=bf16"),
        f"trainer.compile={compiles}",
    )
    with session("cuda", timeout_seconds=60) as world:
        splits = load_splits(config.data, config.seed).to(world.device)
        state = build_training_state(config, world, splits)
        state.parallel_model.train()
        batch = Batch(torch.arange(50, device=world.device), 50, state.splits.train.resident())
        state.step(batch)  # the first one compiles and tunes
        try:
            torch.cuda.set_sync_debug_mode("error")
            for _ in range(40):
                state.step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert state.metrics.reduced().count == 41 * 50
