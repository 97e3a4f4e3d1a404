from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_mnist.config.errors import InputError
from dist_mnist.data.splits import load_splits
from dist_mnist.training.build import build_training_state
from dist_mnist.training.finite import FiniteCheck, NonFiniteError
from dist_mnist.training.loop import _check_weights, fit
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.state import TrainingState
from tests.support.configs import SMALL_DATA, SOLO, make_config

CPU = torch.device("cpu")


def optimize(
    losses: list[float],
    scaler: torch.amp.GradScaler,
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.SGD,
    **options: Any,
) -> tuple[list[float], int]:
    """Make a step for each loss's factor; return the weight after each, and the steps not made."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = optimizer_class([weight], lr=0.5, **options)  # type: ignore[call-arg]
    check = FiniteCheck(optimizer, scaler, CPU, waits_every_step=False)
    weights = []
    for factor in losses:
        scaler.scale(weight.sum() * factor).backward()
        check.record()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        weights.append(weight.item())
    return weights, check.skipped_steps()


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_no_step_after_a_non_finite_one(
    optimizer: type[torch.optim.Optimizer], factor: float
) -> None:
    """As on a GPU, where nobody looks at every step."""
    off = torch.amp.GradScaler("cpu", enabled=False)
    weights, not_made = optimize([1.0, factor, 1.0, 1.0], off, optimizer, fused=True)
    assert weights[0] < 1.0
    assert weights == weights[:1] * 4
    assert not_made == 3


def test_skipped_steps_are_counted() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    weights, not_made = optimize([1.0, float("inf"), 1.0], scaler)
    assert weights == [0.5, 0.5, 0.0]
    assert not_made == 1
    assert scaler.get_scale() == 1.0


def test_finite_gradients_stay_as_they_are() -> None:
    weight = torch.nn.Parameter(torch.ones(100))
    optimizer = torch.optim.SGD([weight])
    off = torch.amp.GradScaler("cpu", enabled=False)
    check = FiniteCheck(optimizer, off, CPU, waits_every_step=True)
    weight.grad = torch.randn(100)
    before = weight.grad.clone()
    check.record()
    assert torch.equal(weight.grad, before)
    assert check.skipped_steps() == 0
    weight.grad[7] = float("inf")
    check.record()
    assert check.skipped_steps() == 1


class Reads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, which a GPU would make wait."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith("aten._local_scalar_dense")
        return func(*args, **(kwargs or {}))


def test_check_of_weights_reads_once(small_root: Path) -> None:
    config = make_config(*SMALL_DATA, f"data.root={small_root}", "model=cnn")
    state = build_training_state(config, SOLO, load_splits(config.data, config.seed))
    with Reads() as reads:  # type: ignore[no-untyped-call]
        _check_weights(state)
    assert reads.count == 1
    last = list(state.model.parameters())[-1]
    last.data[-1] = float("inf")
    with pytest.raises(NonFiniteError):
        _check_weights(state)


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the CPU compute in float16, as old GPUs do, and memory that nobody wrote to hold NaN."""
    monkeypatch.setattr("dist_mnist.training.build.compute_dtype", lambda *_: torch.float16)
    monkeypatch.setattr("dist_mnist.training.build.set_reproducible", lambda *_: None)
    monkeypatch.setattr("torch.utils.deterministic.fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def overflowing_first(root: Path, folder: Path, *overrides: str) -> TrainingState:
    """Train three steps with SGD, of which the scaler skips the first."""
    config = make_config(
        *(*SMALL_DATA, f"data.root={root}", "trainer.max_steps=3", "optimizer=sgd", "model=mlp"),
        *("model._target_=tests.support.networks.Misbehaving", "+model.step=1", "+model.rank=0"),
        *("+model.does=overflow", f"+model.once={folder / 'once'}", *overrides),
        "trusted_modules=[tests.support.networks]",
    )
    state = build_training_state(config, SOLO, load_splits(config.data, config.seed))
    (folder / "once").unlink(missing_ok=True)  # it was tried out
    fit(state, Recorder())
    return state


@pytest.mark.usefixtures("half_precision")
def test_momentum_after_a_skipped_first_step(small_root: Path, tmp_path: Path) -> None:
    state = overflowing_first(small_root, tmp_path)
    assert state.progress.skipped_steps == 1
    unfused = overflowing_first(small_root, tmp_path, "optimizer.fused=false")
    pairs = zip(state.model.parameters(), unfused.model.parameters(), strict=True)
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
        ours_momentum = state.optimizer.state[ours]["momentum_buffer"]
        plain_momentum = unfused.optimizer.state[plain]["momentum_buffer"]
        torch.testing.assert_close(ours_momentum, plain_momentum, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("half_precision")
def test_dampening_of_a_skipped_step_is_refused(small_root: Path, tmp_path: Path) -> None:
    damped = ["+optimizer.dampening=0.1", "optimizer.nesterov=false"]
    with pytest.raises(InputError, match=r"optimizer\.dampening=0\.1 cannot be used with fp16"):
        overflowing_first(small_root, tmp_path, *damped)
