"""Requests that come together: one pass, and to each its own."""

import asyncio
import threading

import pytest
import torch

from dist_mnist.serve.batches import LARGEST_BATCH, Batcher


def images(*values: int) -> torch.Tensor:
    """Return a tiny image for each value, full of it."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)


class Echo:
    """Answers with the first pixel of each image; waits until it may."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may_go = threading.Event()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        assert self.may_go.wait(30)
        self.sizes.append(len(batch))
        if (batch == 13).any():
            raise ValueError("thirteen")
        return batch[:, :, 0, 0].float()


async def ask(echo: Echo, *requests: torch.Tensor, cancel: int | None = None) -> list[object]:
    """Send all requests before the first one is answered."""
    batcher = Batcher(echo)
    running = asyncio.create_task(batcher.run())
    asked = [asyncio.create_task(batcher.answer(request)) for request in requests]
    await asyncio.sleep(0.1)
    if cancel is not None:
        asked[cancel].cancel()
    echo.may_go.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    running.cancel()
    return [one.flatten().tolist() if isinstance(one, torch.Tensor) else one for one in answers]


def test_what_waits_is_one_batch() -> None:
    echo = Echo()
    answers = asyncio.run(ask(echo, images(1), images(2), images(3, 4), images(5)))
    assert answers == [[1], [2], [3, 4], [5]]
    assert sum(echo.sizes) == 5
    assert len(echo.sizes) <= 2


def test_a_batch_has_a_largest_size() -> None:
    echo = Echo()
    answers = asyncio.run(ask(echo, *(images(n % 10) for n in range(LARGEST_BATCH + 50))))
    assert answers == [[n % 10] for n in range(LARGEST_BATCH + 50)]
    assert max(echo.sizes) <= LARGEST_BATCH


def test_who_has_gone_changes_nothing_for_others() -> None:
    answers = asyncio.run(ask(Echo(), images(1), images(2), images(3), cancel=1))
    assert [answers[0], answers[2]] == [[1], [3]]
    assert isinstance(answers[1], asyncio.CancelledError)


def test_an_error_is_told_and_the_next_is_answered() -> None:
    async def twice() -> None:
        echo = Echo()
        echo.may_go.set()
        batcher = Batcher(echo)
        running = asyncio.create_task(batcher.run())
        with pytest.raises(ValueError, match="thirteen"):
            await batcher.answer(images(13))
        assert (await batcher.answer(images(7))).item() == 7
        running.cancel()

    asyncio.run(twice())
