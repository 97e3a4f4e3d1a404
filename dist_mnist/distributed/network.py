"""Finds this machine's address and network interface that lead to another machine."""

import fcntl
import ipaddress
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

SIOCGIFADDR = 0x8915  # from <linux/sockios.h>: asks for the address of an interface


def own_address(peer: str) -> str:
    """Return this machine's address as another machine sees it, without sending anything.

    Args:
        peer: The other machine's name or address; for this machine it is returned unchanged.

    Raises:
        OSError: The name is unknown, or there is no route.
    """
    family, kind, _, _, place = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        address: str = probe.getsockname()[0]
    return address


def interface_of(address: str) -> str | None:
    """Return the name of the interface with an address, or None if that is unknown."""
    if sys.platform != "linux":
        return None
    if ":" in address:
        return _interface_of_ipv6(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                request = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(probe, SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def _interface_of_ipv6(address: str) -> str | None:
    address, _, interface = address.partition("%")
    if interface:
        return interface
    wanted = ipaddress.ip_address(address).packed.hex()
    with suppress(OSError):  # a system without IPv6
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found, *_, name = line.split()
            if found == wanted:
                return name
    return None
