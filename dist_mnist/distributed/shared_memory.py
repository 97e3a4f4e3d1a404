"""Tensors that the processes of one machine show each other, in memory that they share (Linux).

Even on one machine, gloo sends tensors through network sockets and from thread to thread: for the
gradients of a small network that takes longer than computing them. Here each process copies its
tensor into shared memory and sends every other process one byte to say so. Then each can read and
sum all of them, in an order of its choice, so that all get the same bits.
"""

import mmap
import os
import secrets
import socket
import struct
import time
from contextlib import suppress

import torch

from dist_mnist.distributed.rendezvous import GROUP_PATIENCE_SECONDS
from dist_mnist.distributed.world import World, all_reduce_max, broadcast_object

# Over all ranks. Beyond it, the backend is used: its memory does not grow with the ranks.
SHARED_MEMORY_LIMIT_BYTES = 2**29
ALIGNMENT_BYTES = 64  # a cache line, and more than any number needs
SPIN_SECONDS = 100e-6  # polling is cheaper than being woken up, as long as the wait is short


class LostRankError(ConnectionError):
    """Another rank has ended, or did not answer in time."""


def is_supported() -> bool:
    """Return whether this process can create shared memory and pass its descriptor on."""
    if not (hasattr(os, "memfd_create") and hasattr(socket, "send_fds")):
        return False
    try:
        os.close(os.memfd_create("probe"))
    except OSError:  # a sandbox may forbid it, and an old kernel lacks it
        return False
    return True


def can_share_memory(world: World, capacity: int) -> bool:
    """Return whether all ranks can share tensors of `capacity` bytes; every rank must call it."""
    on_one_machine = world.local_size == world.size and world.device.type == "cpu"
    fits = bytes_needed(world.size, capacity) <= SHARED_MEMORY_LIMIT_BYTES
    if not (on_one_machine and fits):
        return False
    # All or none: a sandbox may allow it to some of the processes only.
    (refused,) = all_reduce_max(world, [not is_supported()])
    return not refused


def share_memory(world: World, capacity: int, timeout_seconds: int) -> "SharedMemory":
    """Open memory for all ranks' tensors of at most `capacity` bytes; every rank must call it."""
    return SharedMemory(
        world.rank,
        world.size,
        name=broadcast_object(world, secrets.token_hex(16)),
        capacity=capacity,
        timeout_seconds=timeout_seconds + GROUP_PATIENCE_SECONDS,
    )


def bytes_needed(size: int, capacity: int) -> int:
    """Return the bytes that tensors of up to `capacity` bytes of `size` ranks need in all."""
    return 2 * size * (capacity + -capacity % ALIGNMENT_BYTES)


class SharedMemory:
    """Shows every rank the tensors of all ranks; every rank must create one and use it.

    If a rank ends, the others notice at once, since its sockets close with it. The memory has no
    name and disappears with the last process.

    Args:
        size: The number of processes, all on this machine.
        name: The same on every rank, and unique on this machine.
        capacity: The size of the largest tensor in bytes.

    Raises:
        LostRankError: Another rank did not connect.
    """

    def __init__(
        self, rank: int, size: int, name: str, capacity: int, timeout_seconds: float
    ) -> None:
        self._rank = rank
        try:
            self._peers, descriptor = _connect(rank, size, name, timeout_seconds)
        except (OSError, IndexError, struct.error) as error:
            raise LostRankError(f"rank {rank} could not connect to the others: {error}") from error
        total = bytes_needed(size, capacity)
        os.ftruncate(descriptor, total)
        memory = mmap.mmap(descriptor, total)
        os.close(descriptor)
        # Two halves, used in turn: when a rank writes into one half again, all ranks have read it,
        # since they have all written into the other half since then.
        self._halves = torch.frombuffer(memory, dtype=torch.uint8).view(2, size, -1)
        self._turn = 0

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all ranks, of shape (size, tensor.numel()), in shared memory.

        Every rank must call it with a contiguous CPU tensor of the same size. Nobody may write into
        the result, which is valid until the second next call.

        Raises:
            LostRankError: Another rank has ended, or did not call this in time.
        """
        written = self._halves[self._turn, :, : tensor.nbytes].view(tensor.dtype)
        self._turn = 1 - self._turn
        written[self._rank].copy_(tensor.view(-1))
        for peer in self._peers.values():
            with suppress(ConnectionError):  # _await_byte will report it
                peer.send(b".")
        for rank, peer in self._peers.items():
            _await_byte(rank, peer)
        return written

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a contiguous CPU tensor with its sum over all ranks, and return it.

        Raises:
            LostRankError: As in `gather`.
        """
        written = self.gather(tensor)
        total = tensor.view(-1).copy_(written[0])
        for others in written[1:]:
            total.add_(others)
        return tensor


def _connect(
    rank: int, size: int, name: str, timeout_seconds: float
) -> tuple[dict[int, socket.socket], int]:
    """Connect to every other rank; return the sockets and the descriptor of rank 0's memory."""
    listener = _open_socket(timeout_seconds)
    listener.bind(_address(name, rank))
    listener.listen(size)
    descriptor = os.memfd_create("gradients") if rank == 0 else -1
    peers = {}
    for other in range(rank):
        peers[other] = _open_socket(timeout_seconds)
        _connect_when_ready(peers[other], _address(name, other), timeout_seconds)
        peers[other].send(struct.pack("i", rank))
        if other == 0:
            descriptor = socket.recv_fds(peers[0], 1, 1)[1][0]
    for _ in range(rank + 1, size):
        peer, _ = listener.accept()
        _set_timeout(peer, timeout_seconds)
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
    _set_timeout(opened, timeout_seconds)
    return opened


def _set_timeout(peer: socket.socket, timeout_seconds: float) -> None:
    # Not `settimeout`: with it, even a MSG_DONTWAIT call would wait.
    seconds, fraction = divmod(timeout_seconds, 1)
    limit = struct.pack("ll", int(seconds), int(fraction * 1e6))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _connect_when_ready(peer: socket.socket, address: bytes, timeout_seconds: float) -> None:
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
