"""Hosts on one machine, each with a name, an address and a network cable that can be cut.

A host is a network namespace with a cable to a switch, which is a namespace too. Its programs have
their own host name and /etc/hosts, and the same files as everything else. Nothing leads from there
to the machine's own network, which stays unchanged.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SUBNET = "10.77.0"


@dataclass(frozen=True)
class Host:
    """One of the hosts of a `network`.

    Attributes:
        name: Its host name.
        address: Its IPv4 address, on the interface eth0.
        namespace: Its network namespace.
        switch: The namespace where the other end of its cable is.
        hosts_file: Its /etc/hosts.
        started: The programs started on it.
    """

    name: str
    address: str
    namespace: str
    switch: str
    hosts_file: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list, compare=False)

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the command line that runs another one on this host."""
        become = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
        return [
            *("nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--uts", "--mount"),
            *("sh", "-c", become, self.name, str(self.hosts_file), *map(str, arguments)),
        ]

    def start(self, *arguments: str | Path, log: Path, **environment: str) -> subprocess.Popen[str]:
        """Start a program, whose output is added to a file; it ends with the network at last."""
        with log.open("a") as output:
            process = subprocess.Popen(
                self.command(*arguments),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str | Path, **environment: str) -> str:
        """Run a program to its end and return its output.

        Raises:
            AssertionError: It ended with another status than 0.
        """
        done = subprocess.run(
            self.command(*arguments),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}"
        return done.stdout

    def processes(self) -> list[int]:
        """Return the processes that run on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def cut_off(self) -> None:
        """Pull the cable: its processes go on, and nothing that they send arrives."""
        _ip("-n", self.switch, "link", "set", f"to-{self.name}", "down")

    def reconnect(self) -> None:
        """Plug the cable in again."""
        _ip("-n", self.switch, "link", "set", f"to-{self.name}", "up")


def kill_all(host: Host) -> None:
    """Kill everything that runs on a host, until nothing does."""
    deadline = time.monotonic() + 10
    while processes := host.processes():
        assert time.monotonic() < deadline, processes
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


@contextmanager
def network(
    folder: Path, names: Sequence[str], *, own_name_is_loopback: bool = False
) -> Iterator[list[Host]]:
    """Make hosts that reach each other by name and by address; end all that runs on them at last.

    Args:
        folder: An empty one, for the hosts files.
        names: Of the hosts, in order of their addresses.
        own_name_is_loopback: Whether each host's own name leads to 127.0.1.1, as on Debian.
    """
    switch = f"dist_mnist-{os.getpid()}"
    hosts = [
        Host(name, f"{SUBNET}.{number}", f"{switch}-{name}", switch, folder / f"hosts-{name}")
        for number, name in enumerate(names, 10)
    ]
    with ExitStack() as cleanup:
        _ip("netns", "add", switch)
        cleanup.callback(_ip, "netns", "delete", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in hosts:
            _write_hosts_file(host, hosts, own_name_is_loopback)
            _ip("netns", "add", host.namespace)
            cleanup.callback(_take_down, host)
            _plug_in(host)
        yield hosts


def _take_down(host: Host) -> None:
    kill_all(host)
    _ip("netns", "delete", host.namespace)
    for process in host.started:
        process.wait(10)


def _write_hosts_file(host: Host, hosts: Sequence[Host], own_name_is_loopback: bool) -> None:
    lines = ["127.0.0.1 localhost"]
    for other in hosts:
        is_loopback = own_name_is_loopback and other == host
        lines.append(f"{'127.0.1.1' if is_loopback else other.address} {other.name}")
    host.hosts_file.write_text("\n".join(lines) + "\n")


def _plug_in(host: Host) -> None:
    cable = f"to-{host.name}"
    _ip("-n", host.namespace, "link", "set", "lo", "up")
    peer = ("peer", "name", "eth0", "netns", host.namespace)
    _ip("-n", host.switch, "link", "add", cable, "type", "veth", *peer)
    _ip("-n", host.switch, "link", "set", cable, "master", "bridge", "up")
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", host.namespace, "link", "set", "eth0", "up")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def require(*programs: str) -> None:
    """Skip the test, with the reason, where it cannot have hosts or one of the programs."""
    missing = [name for name in (*programs, "ip", "nsenter", "unshare") if not shutil.which(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        pytest.skip("needs root, and the right to make network namespaces")


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait until something is so; return how long that took, in seconds.

    Raises:
        AssertionError: It has not become so in time.
    """
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began
