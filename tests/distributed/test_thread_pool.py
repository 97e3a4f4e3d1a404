import threading
import time

import pytest
import torch

from dist_mnist.distributed.thread_pool import ThreadPool


@pytest.fixture(autouse=True)
def _same_threads():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_results_are_in_order(threads: int, count: int) -> None:
    assert ThreadPool(threads).map(lambda item: item**2, range(count)) == [
        item**2 for item in range(count)
    ]


def test_a_free_thread_takes_the_next_item() -> None:
    taken: dict[int, list[int]] = {}
    is_over = threading.Event()

    def work(item: int) -> None:
        if item == 0:  # takes as long as all others together
            assert is_over.wait(30)
        taken.setdefault(threading.get_ident(), []).append(item)
        if sum(map(len, taken.values())) == 8:
            is_over.set()

    ThreadPool(2).map(work, range(9))
    assert sorted(map(len, taken.values())) == [1, 8]


def test_every_thread_has_one_torch_thread() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=30)

    def threads_of(_: int) -> int:
        both.wait()
        return torch.get_num_threads()

    assert ThreadPool(2).map(threads_of, range(2)) == [1, 1]


def test_one_thread_leaves_torchs_threads_alone() -> None:
    torch.set_num_threads(2)
    assert ThreadPool(1).map(lambda _: torch.get_num_threads(), range(2)) == [2, 2]


@pytest.mark.parametrize("where", ["helper", "caller"])
def test_an_error_ends_all_threads(where: str) -> None:
    caller, both = threading.get_ident(), threading.Barrier(2, timeout=30)
    running: set[int] = set()
    begun: list[int] = []

    def work(item: int) -> None:
        running.add(item)
        begun.append(item)
        both.wait()
        if (threading.get_ident() == caller) == (where == "caller"):
            running.discard(item)
            raise RuntimeError("what it is")
        time.sleep(0.2)
        running.discard(item)

    pool = ThreadPool(2)
    with pytest.raises(RuntimeError, match="what it is"):
        pool.map(work, range(8))
    assert not running
    assert sorted(begun) == [0, 1]
    assert pool.map(str, range(3)) == ["0", "1", "2"]
