"""The socket and the server on it: where it listens, and how it ends."""

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
MOST_CONNECTIONS = 128  # at a time, each with a picture in memory; further ones get 503
GRACE_SECONDS = 8  # for what is under way when a signal comes


class _Server(uvicorn.Server):
    """uvicorn, told to end by this package's signal handlers."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or signals.requested() is not None


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that whoever comes early waits instead of being refused.

    Args:
        host: An address or a name of this machine.
        port: 0 for any that is free.

    Raises:
        InputError: It cannot listen there.
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
            f"port={port + 1 if port < 65535 else 8000}, or port=0 for any that is free."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"port={port} is reserved for the system: choose one above 1023.")
    return _not_an_address(host, error)


def _not_an_address(host: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or one_line(error)
    return InputError(
        f"host={host} is not an address of this machine ({reason}): use 127.0.0.1 for yourself "
        f"alone, or 0.0.0.0 for everyone who can reach this machine."
    )


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Answer requests until a signal comes, then finish what is under way and exit with 0.

    Args:
        app: The routes.
        listener: What `listen` returned.
    """
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        logger.warning(
            "warning: host=%s lets everyone who can reach this machine use the server; it asks for "
            "no password",
            host,
        )
    config = uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with signals.deferred():
        logger.info("draw a digit at http://%s:%d (Ctrl-C ends the server)", shown, port)
        _Server(config).run(sockets=[listener])
        if not signals.requested():
            raise RuntimeError("the server ended by itself")
        logger.info("ended by %s", signals.requested())
        # Inside: outside, the signal would count as a training that was stopped early.
        sys.exit(0)
