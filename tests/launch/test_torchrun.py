"""launch/multi_node.sh on separate hosts, which start late, are killed, or are cut off."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import faults
from tests.launch import trainings
from tests.launch.hosts import Host, kill_all, network, require, wait_until
from tests.launch.trainings import LAUNCH, agent_on, kill, ranks_on, steps, wait_for_step

pytestmark = pytest.mark.launch


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Two hosts whose own names lead to 127.0.1.1, as on Debian."""
    require()
    with network(tmp_path, ["first", "second"], own_name_is_loopback=True) as both:
        yield both


def launch(
    host: Host,
    head: Host,
    nnodes: str,
    processes: int,
    overrides: list[str],
    folder: Path,
    *prefix: str,
) -> subprocess.Popen[str]:
    """Start the script on one host, as its user would type it there."""
    return host.start(
        *prefix,
        LAUNCH / "multi_node.sh",
        *overrides,
        log=folder / f"{host.name}.log",
        **trainings.ENVIRONMENT,
        NNODES=nnodes,
        HEAD=f"{head.address}:29500",
        LAUNCH_ID="monday-1",
        NPROC_PER_NODE=str(processes),
    )


def log(folder: Path, host: Host) -> str:
    return (folder / f"{host.name}.log").read_text()


def world_sizes(folder: Path, host: Host) -> list[int]:
    """Return the number of processes at each start that a host's rank 0 has logged."""
    lines = (line.split(" on cpu: ") for line in log(folder, host).splitlines())
    return [int(line[1].split(" x ")[0]) for line in lines if len(line) == 2]


def results(hosts: list[Host], folder: Path) -> list[str]:
    """Return the last lines of all trainings that came to their end."""
    texts = (log(folder, host) for host in hosts if (folder / f"{host.name}.log").exists())
    return [line for text in texts for line in text.splitlines() if "test accuracy" in line]


def end(agents: list[subprocess.Popen[str]]) -> list[int]:
    """Wait until all agents have ended; return their statuses."""
    return [agent.wait(60) for agent in agents]


@pytest.mark.slow
def test_two_hosts_match_one_process(
    hosts: list[Host], small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    overrides = trainings.training(small_root, tmp_path / "run")
    agents = [launch(host, hosts[0], "2", 2, overrides, tmp_path) for host in hosts]
    assert end(agents) == [0, 0], log(tmp_path, hosts[0])
    assert len(results(hosts, tmp_path)) == 1
    assert world_sizes(tmp_path, hosts[0]) == [4]
    assert faults.fingerprint(tmp_path / "run") == undisturbed


@pytest.mark.slow
def test_killed_worker_is_back_in_20_seconds(
    hosts: list[Host], small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    run_dir = tmp_path / "run"
    overrides = trainings.training(small_root, run_dir, 0.03)
    agents = [launch(host, hosts[0], "2", 1, overrides, tmp_path) for host in hosts]
    wait_for_step(run_dir, 6)
    kill(ranks_on(hosts[1])[1])
    reached = steps(run_dir)
    assert wait_for_step(run_dir, reached + 2) < 20
    assert end(agents) == [0, 0]
    assert world_sizes(tmp_path, hosts[0]) == [2, 2]
    assert faults.fingerprint(run_dir) == undisturbed


@pytest.mark.slow
def test_a_host_with_another_clock_is_not_left_out(
    hosts: list[Host], small_root: Path, tmp_path: Path
) -> None:
    require("faketime")
    overrides = trainings.training(small_root, tmp_path / "run")
    behind = ("faketime", "-f", "-6s")
    agents = [
        launch(host, hosts[0], "2", 1, overrides, tmp_path, *prefix)
        for host, prefix in zip(hosts, ((), behind), strict=True)
    ]
    assert 0 not in end(agents)
    assert not results(hosts, tmp_path)
    assert "error: NNODES=2 machines should train together, and 1 do" in log(tmp_path, hosts[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_silent", "seconds"),
    [
        (False, 20),  # the system closes all connections, as when all programs of a host die
        (True, 60),  # trainer.timeout_seconds, and a restart
    ],
)
def test_late_and_lost_hosts(
    hosts: list[Host],
    small_root: Path,
    tmp_path: Path,
    undisturbed: str,
    is_silent: bool,
    seconds: float,
) -> None:
    run_dir = tmp_path / "run"
    overrides = trainings.training(small_root, run_dir, 0.05)
    first, second = hosts
    alone = launch(first, first, "1:2", 1, overrides, tmp_path)
    wait_for_step(run_dir, 4)
    late = launch(second, first, "1:2", 1, overrides, tmp_path)
    wait_until(lambda: 2 in world_sizes(tmp_path, first), 20, "two processes")
    wait_for_step(run_dir, steps(run_dir) + 2)
    if is_silent:
        second.cut_off()
    kill_all(second)
    reached = steps(run_dir)
    assert wait_for_step(run_dir, reached + 2) < seconds
    assert end([alone]) == [0], log(tmp_path, first)
    assert late.wait(1) != 0
    assert world_sizes(tmp_path, first) == [1, 2, 1]
    assert faults.fingerprint(run_dir) == undisturbed


@pytest.mark.slow
def test_stopped_agent_leaves_the_rest(
    hosts: list[Host], small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    run_dir = tmp_path / "run"
    overrides = trainings.training(small_root, run_dir, 0.05)
    agents = [launch(host, hosts[0], "1:2", 1, overrides, tmp_path) for host in hosts]
    wait_for_step(run_dir, 6)
    os.kill(agent_on(hosts[1]), signal.SIGTERM)
    assert agents[1].wait(20) == 1
    assert hosts[1].processes() == []
    reached = steps(run_dir)
    assert wait_for_step(run_dir, reached + 2) < 20
    assert end(agents[:1]) == [0]
    assert world_sizes(tmp_path, hosts[0]) == [2, 1]
    assert faults.fingerprint(run_dir) == undisturbed


@pytest.mark.slow
def test_workers_of_a_killed_agent_save(
    hosts: list[Host], small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    run_dir = tmp_path / "run"
    overrides = trainings.training(small_root, run_dir, 0.03)
    (head, _) = hosts
    agent = launch(head, head, "1", 2, overrides, tmp_path)
    wait_for_step(run_dir, 6)
    kill(agent_on(head))
    wait_until(lambda: head.processes() == [], 20, "no process is left")
    assert agent.wait(1) != 0
    again = launch(head, head, "1", 2, overrides, tmp_path)
    assert end([again]) == [0]
    assert "continuing after step" in log(tmp_path, head)
    assert faults.fingerprint(run_dir) == undisturbed


def test_unreachable_head_is_refused(hosts: list[Host], tmp_path: Path) -> None:
    first = hosts[0]
    variables = {"NNODES": "2", "HEAD": "first:29500", "LAUNCH_ID": "monday-1"}
    log_file = tmp_path / "first.log"
    refused = first.start(
        LAUNCH / "multi_node.sh", log=log_file, **trainings.ENVIRONMENT, **variables
    )
    assert refused.wait(60) == 1
    assert log_file.read_text() == (
        "error: HEAD=first:29500 resolves to 127.0.1.1 here: "
        "use an address that all machines can reach\n"
    )


@pytest.mark.slow
def test_plain_torchrun_names_the_missing_variable(
    hosts: list[Host], small_root: Path, tmp_path: Path, undisturbed: str
) -> None:
    run_dir = tmp_path / "run"
    for number, host in enumerate(hosts):
        host.start(
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--max-restarts=3"),
            *("--rdzv-backend=c10d", "--rdzv-id=monday-1", f"--local-addr={host.address}"),
            *(f"--rdzv-endpoint={hosts[0].address}:29500", f"--rdzv-conf=is_host={1 - number}"),
            *("-m", "dist_mnist", *trainings.training(small_root, run_dir, 0.05)),
            log=tmp_path / f"{host.name}.log",
            **trainings.ENVIRONMENT,
        )
    wait_for_step(run_dir, 6)
    kill(ranks_on(hosts[1])[1])
    assert end([agent for host in hosts for agent in host.started]) == [0, 0]
    assert log(tmp_path, hosts[1]).count("Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1") == 1
    assert faults.fingerprint(run_dir) == undisturbed
