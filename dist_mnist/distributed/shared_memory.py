"""A sum over the processes of one machine, through memory that they share (Linux).

Between processes of one machine gloo sends what is summed through network sockets and hands it
from thread to thread: for the gradients of a small network that takes longer than computing them.
Here each process copies its tensor into shared memory, tells the others so with one byte each,
and adds up what all of them have written, in the order of the ranks: all get the same bits.
"""

import mmap
import os
import socket
import struct
import time
from contextlib import suppress

import torch

ALIGNMENT_BYTES = 64  # a cache line, and more than any number needs
SPIN_SECONDS = 100e-6  # looking again costs less than being woken, while the wait is short


class LostRankError(ConnectionError):
    """Another rank has ended, or does not answer in time."""


def is_supported() -> bool:
    """Whether this operating system has what `SharedMemorySum` is made of."""
    return hasattr(os, "memfd_create") and hasattr(socket, "send_fds")


def bytes_needed(size: int, capacity: int) -> int:
    """Return the memory that a sum of so many bytes over so many ranks takes, all together."""
    return 2 * size * (capacity + -capacity % ALIGNMENT_BYTES)


class SharedMemorySum:
    """Sums tensors of up to so many bytes over all ranks; every rank must make and call it.

    A rank that ends is noticed by the others at once, since its sockets close with it. The memory
    has no name and goes with the last process.

    Args:
        rank: This process.
        size: The number of processes, all on this machine.
        name: What this sum is known by; the same on every rank, and on this machine its own.
        capacity: The number of bytes of the largest tensor.
        timeout_seconds: How long to wait for another rank.

    Attributes:
        waited_seconds: How long the last call has waited for the other ranks.

    Raises:
        LostRankError: Another rank has not connected.
    """

    def __init__(
        self, rank: int, size: int, name: str, capacity: int, timeout_seconds: float
    ) -> None:
        self._rank = rank
        try:
            self._peers, descriptor = _connect(rank, size, name, timeout_seconds)
        except (BlockingIOError, ConnectionError, IndexError, struct.error) as error:
            raise LostRankError(f"rank {rank} waited for the others in vain: {error}") from error
        total = bytes_needed(size, capacity)
        os.ftruncate(descriptor, total)
        memory = mmap.mmap(descriptor, total)
        os.close(descriptor)
        # Two halves in turn: whoever writes into one knows that all have read it, since all have
        # since then said that they wrote into the other.
        self._halves = torch.frombuffer(memory, dtype=torch.uint8).view(2, size, -1)
        self._turn = 0
        self.waited_seconds = 0.0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a contiguous CPU tensor by its sum over all ranks, and return it.

        Raises:
            LostRankError: Another rank has ended, or has not called this in time.
        """
        written = self._halves[self._turn, :, : tensor.nbytes].view(tensor.dtype)
        self._turn = 1 - self._turn
        written[self._rank].copy_(tensor.view(-1))
        for peer in self._peers.values():
            with suppress(ConnectionError):  # noticed below
                peer.send(b".")
        began = time.perf_counter()
        for rank, peer in self._peers.items():
            _await_byte(rank, peer)
        self.waited_seconds = time.perf_counter() - began
        total = tensor.view(-1).copy_(written[0])
        for others in written[1:]:
            total.add_(others)
        return tensor


def _connect(
    rank: int, size: int, name: str, timeout_seconds: float
) -> tuple[dict[int, socket.socket], int]:
    """Connect to every other rank, and give each of them rank 0's memory as a descriptor."""
    listener = _open_socket(timeout_seconds)
    listener.bind(_address(name, rank))
    listener.listen(size)
    descriptor = os.memfd_create("gradients") if rank == 0 else -1
    peers = {}
    for other in range(rank):
        peers[other] = _open_socket(timeout_seconds)
        _connect_when_there(peers[other], _address(name, other), timeout_seconds)
        peers[other].send(struct.pack("i", rank))
        if other == 0:
            descriptor = socket.recv_fds(peers[0], 1, 1)[1][0]
    for _ in range(rank + 1, size):
        peer, _ = listener.accept()
        _limit_waiting(peer, timeout_seconds)
        (other,) = struct.unpack("i", peer.recv(4))
        peers[other] = peer
        if rank == 0:
            socket.send_fds(peer, [b"."], [descriptor])
    listener.close()
    return peers, descriptor


def _address(name: str, rank: int) -> bytes:
    """Return an address in Linux's abstract namespace, which leaves no file behind."""
    return f"\0dist_mnist {name} {rank}".encode()


def _open_socket(timeout_seconds: float) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _limit_waiting(opened, timeout_seconds)
    return opened


def _limit_waiting(peer: socket.socket, timeout_seconds: float) -> None:
    # Not `settimeout`, which would make even a look without waiting (MSG_DONTWAIT) wait.
    seconds, fraction = divmod(timeout_seconds, 1)
    limit = struct.pack("ll", int(seconds), int(fraction * 1e6))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _connect_when_there(peer: socket.socket, address: bytes, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return peer.connect(address)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def _await_byte(rank: int, peer: socket.socket) -> None:
    spin_until = time.perf_counter() + SPIN_SECONDS
    while True:
        sleeps = time.perf_counter() > spin_until
        try:
            received = peer.recv(1, 0 if sleeps else socket.MSG_DONTWAIT)
            break
        except BlockingIOError as error:
            if sleeps:
                raise LostRankError(f"rank {rank} does not answer") from error
            os.sched_yield()
        except ConnectionError:
            received = b""
            break
    if not received:
        raise LostRankError(f"rank {rank} has ended")
