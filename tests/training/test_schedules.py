import math

import pytest
import torch

from dist_mnist.training import schedules


def test_one_cycle_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    expected = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=50, pct_start=0.3, div_factor=25, final_div_factor=1e4
    )
    for step in range(50):
        ours = 0.5 * schedules.one_cycle(step, 50, 10, 0.3, 25.0, 1e4)
        assert ours == pytest.approx(expected.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < 49:
            expected.step()


@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
def test_schedules_stay_between_0_and_1(total: int, fraction: float) -> None:
    for step in range(total):
        assert 0 <= schedules.one_cycle(step, total, 1, fraction, 25.0, 1e4) <= 1
        assert 0 <= schedules.cosine(step, total, 1, fraction) <= 1


def test_cosine_warms_up_and_falls_to_nothing() -> None:
    values = [schedules.cosine(step, 100, 10, 0.1) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[10] == 1
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] < 0.001


def test_step_decay_halves_after_each_epoch() -> None:
    values = [schedules.step_decay(step, 30, 10, every_epochs=1, factor=0.5) for step in range(30)]
    assert values == [1.0] * 10 + [0.5] * 10 + [0.25] * 10


def test_constant_is_one() -> None:
    assert schedules.constant(7, 10, 5) == 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.inf])
def test_a_warmup_of_everything_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="warmup_fraction"):
        schedules.cosine(0, 10, 5, fraction)
