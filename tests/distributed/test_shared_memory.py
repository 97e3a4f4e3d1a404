import time

import pytest
import torch

from dist_mnist.distributed.session import session
from dist_mnist.distributed.shared_memory import LostRankError, SharedMemory, is_supported
from dist_mnist.distributed.world import broadcast_object
from tests.support.processes import run_ranks

pytestmark = pytest.mark.skipif(not is_supported(), reason="needs Linux")
SHAPES = [(1,), (3, 5), (1000,), (7, 143), (2,)]


def open_memory(world, timeout_seconds: float = 30.0) -> SharedMemory:  # type: ignore[no-untyped-def]
    name = broadcast_object(world, f"test {time.monotonic_ns()}")
    return SharedMemory(world.rank, world.size, name, 8 * 1001, timeout_seconds)


def tensor_of(rank: int, call: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * call + rank)
    return torch.randn(SHAPES[call % len(SHAPES)], generator=generator).to(dtype)


def sums(calls: int, dtype: torch.dtype) -> list[torch.Tensor]:
    with session("cpu", timeout_seconds=60) as world:
        shared = open_memory(world)
        return [shared.sum(tensor_of(world.rank, call, dtype)) for call in range(calls)]


@pytest.mark.parametrize(("size", "dtype"), [(2, torch.float32), (3, torch.float64)])
def test_every_rank_gets_the_same_sum(size: int, dtype: torch.dtype) -> None:
    calls = 200
    answers = run_ranks(size, sums, calls, dtype)
    for call in range(calls):
        expected = sum(tensor_of(rank, call, dtype) for rank in range(size))
        for of_rank in answers:
            assert torch.equal(of_rank[call], expected)  # type: ignore[arg-type]


def left_alone(timeout_seconds: float) -> str:
    """Rank 1 makes one call and stops answering, or ends; return the error of rank 0."""
    with session("cpu", timeout_seconds=60) as world:
        shared = open_memory(world, timeout_seconds)
        shared.sum(torch.zeros(3))
        if world.rank == 1:
            time.sleep(2.5 if timeout_seconds < 60 else 0.0)
            return ""
        try:
            shared.sum(torch.zeros(3))
        except LostRankError as error:
            return str(error)
    return "nothing was noticed"


@pytest.mark.parametrize(
    ("timeout_seconds", "message"), [(1.0, "rank 1 does not answer"), (60.0, "rank 1 has ended")]
)
def test_a_rank_that_is_missing_is_named(timeout_seconds: float, message: str) -> None:
    assert message in run_ranks(2, left_alone, timeout_seconds)[0]
