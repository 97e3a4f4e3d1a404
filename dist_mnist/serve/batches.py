"""Requests that come together are answered by one pass of the network."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

LARGEST_BATCH = 256  # images in one pass; a single request may bring more


class _Request(NamedTuple):
    images: torch.Tensor
    answer: "asyncio.Future[torch.Tensor]"


class Batcher:
    """Collects images while the network is busy, and gives each request its own rows.

    Nobody waits for a batch to fill: what has come by the time the network is free is the batch.

    Args:
        classify: Maps uint8 (N, 1, 28, 28) to float32 (N, classes); it is called in one thread.
    """

    def __init__(self, classify: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._classify = classify
        self._waiting: asyncio.Queue[_Request] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")

    async def answer(self, images: torch.Tensor) -> torch.Tensor:
        """Return the rows (N, classes) of these images, which share a pass with others.

        Raises:
            Exception: Whatever the network raised.
        """
        request = _Request(images, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(request)
        return await request.answer

    async def run(self) -> None:
        """Answer until the task is cancelled."""
        try:
            while True:
                await self._answer_together(await self._next_batch())
        finally:
            self._thread.shutdown(wait=False)

    async def _next_batch(self) -> list[_Request]:
        requests = [await self._waiting.get()]
        count = len(requests[0].images)
        while not self._waiting.empty() and count < LARGEST_BATCH:
            requests.append(self._waiting.get_nowait())
            count += len(requests[-1].images)
        return requests

    async def _answer_together(self, requests: list[_Request]) -> None:
        loop = asyncio.get_running_loop()
        try:
            images = torch.cat([request.images for request in requests])
            rows = await loop.run_in_executor(self._thread, self._classify, images)
        except Exception as error:
            for request in requests:
                if not request.answer.done():  # its client may have gone
                    request.answer.set_exception(error)
            return
        parts = rows.split([len(request.images) for request in requests])
        for request, part in zip(requests, parts, strict=True):
            if not request.answer.done():
                request.answer.set_result(part)
