"""Real processes: ranks that call a function, this interpreter, torchrun."""

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="needs IPv6")


def run_ranks(size: int, function: Callable[..., Any], *args: object) -> list[Any]:
    """Call a function of the tests in `size` real processes, as torchrun would start them.

    The processes are forked from a server that has imported torch already, which takes a tenth of
    the time of a fresh start. They draw no pictures.

    Returns:
        The return value of each rank, in order of rank.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dist_mnist.training.run", "torch._dynamo"])
    port = free_port()
    ranks = []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_as_rank, args=(sender, rank, size, port, function, args))
        process.start()
        sender.close()
        ranks.append((process, receiver))
    try:
        return [_answer(rank, receiver) for rank, (_, receiver) in enumerate(ranks)]
    finally:
        for process, receiver in ranks:
            process.kill()
            process.join()
            receiver.close()


def _as_rank(
    sender: Connection,
    rank: int,
    size: int,
    port: int,
    function: Callable[..., Any],
    args: Sequence[object],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        with patch("dist_mnist.training.final_test.draw_plots", return_value=[]):
            answer = function(*args)
    except BaseException as error:
        answer = error
    # Plain bytes: torch would hand tensors over as open files of a process about to end.
    sender.send_bytes(pickle.dumps(answer))


def _answer(rank: int, receiver: Connection, timeout: float = 90) -> Any:
    if not receiver.poll(timeout):
        raise TimeoutError(f"rank {rank} has not answered for {timeout} s")
    answer = pickle.loads(receiver.recv_bytes())
    if isinstance(answer, BaseException):
        raise answer
    return answer


def free_port() -> int:
    """Return a port of the loopback address that nobody is listening on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def python(
    *arguments: str, cwd: Path | None = None, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter as a user would; return its status, output and errors."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def torchrun(
    size: int, *arguments: str, module: str = "dist_mnist", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a module under a real torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
    return python(*launcher, "-m", module, *arguments, **options)
