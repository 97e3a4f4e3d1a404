"""Variables that are missing, empty or odd, and streams that are closed."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dist_mnist.config.errors import InputError
from dist_mnist.distributed.launcher import is_restart
from dist_mnist.distributed.network import interface_of, own_address
from dist_mnist.distributed.session import session
from dist_mnist.distributed.world import all_reduce_max
from tests.support.processes import needs_ipv6, python, run_ranks

PAIR = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x"}, "RANK=x is not a whole number"),
        ({"RANK": "-1"}, "RANK=-1 is not a whole number"),
        ({"RANK": "9" * 5000}, "is not a whole number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK"),
        ({"RANK": "1"}, "RANK=1 is not below WORLD_SIZE=1"),
        ({"WORLD_SIZE": "0"}, "RANK=0 is not below WORLD_SIZE=0"),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=3 is not below"),
        ({**PAIR, "LOCAL_RANK": "1"}, r"LOCAL_WORLD_SIZE=1 \(it is not set\)"),
        ({"NNODES": "2", "GROUP_WORLD_SIZE": "1"}, "NNODES=2 machines should train .*, and 1 do"),
        ({"LOCAL_WORLD_SIZE": "2"}, "WORLD_SIZE=1 is below LOCAL_WORLD_SIZE=2"),
        ({**PAIR, "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({**PAIR, "MASTER_PORT": " "}, "MASTER_PORT is not set"),
        ({**PAIR, "MASTER_PORT": "http"}, "MASTER_PORT=http is not a whole number"),
        ({**PAIR, "MASTER_PORT": "65536"}, "MASTER_PORT=65536 is not a port"),
        (
            {**PAIR, "MASTER_PORT": "1"},
            "rank 1 cannot join .* MASTER_ADDR=127.0.0.1, MASTER_PORT=1: ",
        ),
    ],
)
def test_odd_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message), session("cpu", 1):
        pass


@pytest.mark.parametrize("nodes", ["1", "1:4", "", "x"])
def test_other_numbers_of_machines_are_fine(monkeypatch: pytest.MonkeyPatch, nodes: str) -> None:
    monkeypatch.setenv("NNODES", nodes)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    with session("cpu", 10) as world:
        assert world.size == 1


def test_empty_variables_count_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    with session("cpu", 10) as world:
        assert (world.rank, world.size, world.local_rank, world.local_size) == (0, 1, 0, 1)


@pytest.mark.slow
def test_odd_rank_is_reported_without_a_stack(small_root: Path, tmp_path: Path) -> None:
    failed = python(
        *("-m", "dist_mnist", "data=fashion_mnist", f"data.root={small_root}"),
        cwd=tmp_path,
        RANK="x",
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("[rank x] error: RANK=x is not a whole number")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(("count", "expected"), [("abc", False), ("", False), ("2", True)])
def test_count_of_restarts(monkeypatch: pytest.MonkeyPatch, count: str, expected: bool) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    assert is_restart() == expected


def meet_over_ipv6() -> tuple[float, str]:
    os.environ.update(MASTER_ADDR="[::1]", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    with session("cpu", 20) as world:
        (highest,) = all_reduce_max(world, [float(world.rank)])
        return highest, os.environ["GLOO_SOCKET_IFNAME"]


@needs_ipv6
def test_ipv6() -> None:
    (name,) = {interface_of("::1")}
    assert name in [name for _, name in socket.if_nameindex()]
    assert own_address("::1") == "::1"
    assert interface_of("fe80::1%eth7") == "eth7"
    assert interface_of("2001:db8::1") is None
    assert run_ranks(2, meet_over_ipv6) == [(1.0, name)] * 2


def train_with(redirections: str, root: Path, run_dir: Path, *overrides: str) -> tuple[int, str]:
    """Train in a shell that has closed some streams; return the status and the output."""
    arguments = [
        *("data=fashion_mnist", f"data.root={root}", "data.validation_size=50", "model=linear"),
        *("trainer.max_steps=1", "trainer.device=cpu", f"run_dir={run_dir}", *overrides),
    ]
    script = f'set -o pipefail; "$0" -m dist_mnist "$@" {redirections}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "closed",
    [
        "<&- >&- 2>&-",
        *(
            pytest.param(streams, marks=pytest.mark.slow)
            for streams in ("| true", ">&-", "2>&-", ">/dev/full")
        ),
    ],
)
def test_streams_that_nobody_reads(small_root: Path, tmp_path: Path, closed: str) -> None:
    status, printed = train_with(closed, small_root, tmp_path)
    assert status == 0
    assert ("test accuracy" in printed) == (closed == "2>&-")
    assert "Error" not in printed
    assert "test accuracy" in (tmp_path / "train.log").read_text()
    assert (tmp_path / "checkpoints" / "last.safetensors").exists()


@pytest.mark.parametrize(
    "closed",
    [
        ">&- 2>&-",
        *(pytest.param(streams, marks=pytest.mark.slow) for streams in (">&-", "2>&-")),
    ],
)
def test_mistake_with_closed_streams(small_root: Path, tmp_path: Path, closed: str) -> None:
    status, printed = train_with(closed, small_root, tmp_path, "trainer.device=tpu")
    assert status == 1
    assert re.fullmatch(r"error: trainer.device=tpu [^\n]*\n" if closed == ">&-" else "", printed)
