import math

import pytest
import torch

from tests.benchmarks import step_model


def test_fit_recovers_planted_values() -> None:
    planted = step_model.AllReduceCost(latency_seconds=30e-6, bytes_per_second=2e9)
    sizes = [2.0**power for power in range(10, 25, 2)]
    exact = step_model.fit_all_reduce(sizes, [planted.seconds(size) for size in sizes])
    assert exact.latency_seconds == pytest.approx(30e-6)
    assert exact.bytes_per_second == pytest.approx(2e9)
    disturbed = [planted.seconds(size) * (1.05 if i % 2 else 0.95) for i, size in enumerate(sizes)]
    fitted = step_model.fit_all_reduce(sizes, disturbed)
    assert fitted.latency_seconds == pytest.approx(30e-6, rel=0.1)
    assert fitted.bytes_per_second == pytest.approx(2e9, rel=0.1)


def test_straggler_wait_grows_with_ranks() -> None:
    waits = [step_model.step_seconds(0.0, 0.0, 1e-3, 2**power) for power in range(13)]
    assert waits[0] == 0.0
    assert waits == sorted(set(waits))
    assert waits[1] == pytest.approx(1e-3 * math.sqrt(2 * math.log(2)))


def test_straggler_term_bounds_expected_max() -> None:
    generator = torch.Generator().manual_seed(0)
    for processes in (2, 16, 256):
        drawn = torch.randn(4000, processes, generator=generator).amax(1).mean().item()
        bound = step_model.step_seconds(0.0, 0.0, 1.0, processes)
        assert 0.4 * bound < drawn < bound


def test_step_is_the_sum_of_its_parts() -> None:
    assert step_model.step_seconds(2e-3, 1e-4, 5e-4, 1) == pytest.approx(2.1e-3)
    waited = step_model.step_seconds(0.0, 0.0, 5e-4, 8)
    assert step_model.step_seconds(2e-3, 1e-4, 5e-4, 8) == pytest.approx(2.1e-3 + waited)
