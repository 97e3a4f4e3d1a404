import math

import pytest
import torch

from tests.benchmarks import step_model


@pytest.mark.parametrize(
    ("gpus_per_node", "nodes", "microseconds"),
    [
        (8, 1, 6.8 + 2 * (7 * 0.6)),
        (8, 2, 6.8 + 2 * (7 * 0.6 + 5.0)),
        (8, 3, 6.8 + 2 * (7 * 0.6 + 5.0)),
        (8, 128, 6.8 + 2 * (7 * 0.6 + 7 * 5.0)),
        (8, 512, 105.2),
        (1, 1, 6.8),
    ],
)
def test_tree_latency_is_that_of_nccl(gpus_per_node: int, nodes: int, microseconds: float) -> None:
    seconds = step_model.tree_seconds(0, gpus_per_node, nodes, bandwidth=1.0)
    assert seconds == pytest.approx(1e-6 * microseconds)


def test_ring_latency_is_that_of_nccl() -> None:
    assert step_model.ring_seconds(0, 8, 1, bandwidth=1.0) == pytest.approx(15.0e-6)
    expected = 6.6 + 28 * 1.8 * 0.6 + 2 * 2.7  # 2 nodes: 30 hops, 2 of them between the nodes
    assert step_model.ring_seconds(0, 8, 2, bandwidth=1.0) == pytest.approx(1e-6 * expected)


def test_ring_at_1024_gpus_is_30_times_off() -> None:
    ring, tree = (f(0, 8, 128, 1.0) for f in (step_model.ring_seconds, step_model.tree_seconds))
    assert 28 < ring / tree < 33


@pytest.mark.parametrize("all_reduce", [step_model.tree_seconds, step_model.ring_seconds])
def test_all_reduce_time_is_monotonic(all_reduce) -> None:  # type: ignore[no-untyped-def]
    by_nodes = [all_reduce(1e6, 8, 2**power, 50e9) for power in range(10)]
    by_bytes = [all_reduce(10.0**power, 8, 4, 50e9) for power in range(2, 9)]
    assert by_nodes == sorted(set(by_nodes))
    assert by_bytes == sorted(set(by_bytes))
    assert all_reduce(1e6, 8, 4, 25e9) > all_reduce(1e6, 8, 4, 50e9)


def test_ring_sends_less_per_link_than_tree() -> None:
    assert step_model.ring_seconds(1e9, 8, 1, 50e9) < step_model.tree_seconds(1e9, 8, 1, 50e9)


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


def test_noise_scale_of_exact_values() -> None:
    scale = step_model.noise_scale(32, 512, 3.0 + 600.0 / 32, 3.0 + 600.0 / 512)
    assert scale == pytest.approx(200.0)


def test_noise_scale_recovers_a_planted_one() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((50,), 0.1)  # |G|^2 = 0.5
    samples = mean + 2.0 * torch.randn(200, 256, 50, generator=generator)  # tr(Sigma) = 200
    small = samples.view(200, 16, 16, 50).mean(2).square().sum(-1).mean().item()
    big = samples.mean(1).square().sum(-1).mean().item()
    assert step_model.noise_scale(16, 256, small, big) == pytest.approx(400.0, rel=0.2)


def test_noise_scale_without_gradient() -> None:
    assert step_model.noise_scale(1, 10, 10.0, 1.0) == math.inf
