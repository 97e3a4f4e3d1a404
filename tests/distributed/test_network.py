"""The addresses and interfaces of this machine that lead to another one."""

import socket
import sys

import pytest

from dist_mnist.distributed.network import interface_of, own_address


def test_address_reaches_this_host() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("127.0.1.1") in ("127.0.0.1", "127.0.1.1")


def test_a_name_that_nobody_knows_is_an_error(no_network: None) -> None:
    with pytest.raises(OSError, match="no network"):
        own_address("nowhere.invalid")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_an_address_has_an_interface() -> None:
    assert interface_of("127.0.0.1") in [name for _, name in socket.if_nameindex()]
    assert interface_of("192.0.2.1") is None
