"""The listening socket, and the server that runs on it until a signal comes."""

import errno
import ipaddress
import logging
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.distributed import signals

logger = logging.getLogger(__name__)

BACKLOG = 128  # connections that may wait to be accepted
MOST_CONNECTIONS = 128  # at a time, each with a picture in memory; others are answered 503
GRACE_SECONDS = 8  # for the requests under way when a signal comes


class _Server(uvicorn.Server):
    """uvicorn, stopped by this package's signal handlers."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or signals.requested() is not None


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; early clients wait on it until the server runs.

    Args:
        host: An address or a name of this machine.
        port: 0 for any free one.

    Raises:
        InputError: The address is not this machine's, or the port cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise _not_an_address(host, error) from error
    # asyncio turns Nagle's algorithm off only where the protocol is named, and with it each answer
    # on a kept connection waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        return InputError(
            f"port={port} is in use by another program: choose another one, such as "
            f"port={port + 1 if port < 65535 else 8000}, or port=0 for any free one."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"port={port} is reserved for the system: choose one above 1023.")
    return _not_an_address(host, error)


def _not_an_address(host: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or one_line(error)
    return InputError(
        f"host={host} is not an address of this machine ({reason}): use 127.0.0.1 for this machine "
        f"only, or 0.0.0.0 for everyone who can reach it."
    )


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Answer requests until a signal comes, finish those under way, and exit with status 0."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        logger.warning(
            "warning: host=%s lets everyone who can reach this machine use the server, without a "
            "password",
            host,
        )
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with signals.deferred():
        logger.info("open http://%s:%d (Ctrl-C stops the server)", shown, port)
        _Server(config).run(sockets=[listener])
        if not signals.requested():
            raise RuntimeError("the server stopped without a signal")
        logger.info("ended by %s", signals.requested())
        # Inside the block: after it, the signal would count as a training stopped early.
        sys.exit(0)
