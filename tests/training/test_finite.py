from typing import Any

import pytest
import torch

from dist_mnist.training.finite import FiniteCheck

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
        check.check()
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
    check.check()
    assert torch.equal(weight.grad, before)
    assert check.skipped_steps() == 0
    weight.grad[7] = float("inf")
    check.check()
    assert check.skipped_steps() == 1
