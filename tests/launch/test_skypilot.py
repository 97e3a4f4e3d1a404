"""The SkyPilot task: read by SkyPilot, and run on two nodes of this machine."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.faults import children, fingerprint
from tests.support.configs import CHECKOUT
from tests.support.processes import free_port, python

pytestmark = pytest.mark.launch

TASK = CHECKOUT / "launch" / "skypilot.yaml"
TRAINING = (
    "data=fashion_mnist",
    "data.validation_size=50",
    "model=mlp",
    "trainer.reproducible=true",
    "trainer.global_batch_size=50",
    "trainer.epochs=10",
    "trainer.device=cpu",
)
READ = """
import sys, yaml, sky
config = yaml.safe_load(sys.argv[1])
task = sky.Task.from_yaml_config(config, env_overrides=[("RUN", "monday-1")])
task.validate(skip_file_mounts=True)
(resources,) = task.resources
(mount,) = task.storage_mounts.values()
print(task.num_nodes, mount.mode.value, resources.job_recovery["max_restarts_on_errors"])
"""


def read_by_skypilot(text: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Let SkyPilot read a task, with a separate home directory: it writes there when imported.

    It needs older packages than wandb does, so it has a separate interpreter.
    """
    if "SKYPILOT_PYTHON" not in os.environ:
        pytest.skip("needs SKYPILOT_PYTHON, an interpreter that can import sky")
    environment = {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    return subprocess.run(
        [os.environ["SKYPILOT_PYTHON"], "-c", READ, text],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_skypilot_takes_the_task(tmp_path: Path) -> None:
    done = read_by_skypilot(TASK.read_text(), tmp_path)
    assert done.stdout.split() == ["2", "MOUNT_CACHED", "10"], done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("num_nodes:", "num_node:"),
        ("num_nodes: 2", "num_nodes: two"),
        ("MOUNT_CACHED", "CACHED"),
        ("job_recovery", "job_recover"),
        ("RUN: null", "RUNS: null"),  # a variable without a value
    ],
)
def test_a_mistake_in_the_task_is_noticed(right: str, wrong: str, tmp_path: Path) -> None:
    text = TASK.read_text()
    assert right in text
    done = read_by_skypilot(text.replace(right, wrong), tmp_path)
    assert done.returncode != 0
    assert "Invalid" in done.stderr or "RUNS" in done.stderr, done.stderr


def start_nodes(home: Path, data: Path, task_id: str) -> list[subprocess.Popen[bytes]]:
    """Start the task's command on each of two nodes, with the variables that SkyPilot sets."""
    task = yaml.safe_load(TASK.read_text())
    variables = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "RUN": "monday-1",
        "OVERRIDES": " ".join((*TRAINING, f"data.root={data}")),
        "HEAD_PORT": str(free_port()),
        "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "0",
        "SKYPILOT_TASK_ID": task_id,
    }
    nodes = []
    for rank in range(2):
        with (home / f"{task_id} {rank}.log").open("wb") as log:
            node = subprocess.Popen(
                ["bash", "-c", task["run"]],
                cwd=CHECKOUT,
                env={**os.environ, **variables, "SKYPILOT_NODE_RANK": str(rank)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            nodes.append(node)
    return nodes


def lose(nodes: list[subprocess.Popen[bytes]]) -> None:
    """End all processes of all nodes at once, where any are left."""
    for process in [member for node in nodes for member in family(node.pid)]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for node in nodes:
        node.wait()


def family(process: int) -> list[int]:
    """Return a process and all that descend from it."""
    return [process, *(member for child in children(process) for member in family(child))]


@pytest.mark.slow
def test_on_new_machines_the_run_goes_on(small_root: Path, tmp_path: Path) -> None:
    run_dir, whole = tmp_path / "runs" / "monday-1", tmp_path / "whole"
    arguments = (*TRAINING, f"data.root={small_root}", f"run_dir={whole}")
    assert python("-m", "dist_mnist", *arguments).returncode == 0
    nodes = start_nodes(tmp_path, small_root, "first")
    try:
        deadline = time.monotonic() + 60
        while not any(run_dir.glob("checkpoints/step-*.safetensors")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        lose(nodes)
    nodes = start_nodes(tmp_path, small_root, "second")
    try:
        statuses = [node.wait(timeout=60) for node in nodes]
    finally:
        lose(nodes)
    printed = "".join(log.read_text() for log in tmp_path.glob("second *.log"))
    assert statuses == [0, 0], printed
    assert "continuing after step" in printed
    assert fingerprint(run_dir) == fingerprint(whole)
