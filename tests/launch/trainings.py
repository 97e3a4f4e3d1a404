"""A training that is long enough to be disturbed, and the result that it must have."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from dist_mnist.record.journal import read_journal
from tests import faults
from tests.launch.hosts import Host, wait_until
from tests.support.configs import CHECKOUT

LAUNCH = CHECKOUT / "launch"
# The variables that a node takes over from the machine where a job is submitted.
ENVIRONMENT = {
    "PYTHON": sys.executable,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(CHECKOUT),
}


def training(root: Path, run_dir: Path | None, seconds_of_a_shard: float = 0.0) -> list[str]:
    """Return the overrides for 32 steps, a checkpoint every other one.

    The numbers of its end are the same bits however many processes it has, and whenever that
    changes: they share the eight shards of each step.
    """
    return [
        *("data=fashion_mnist", f"data.root={root}", "data.validation_size=50"),
        *([] if run_dir is None else [f"run_dir={run_dir}"]),
        "model=mlp",
        "model._target_=tests.support.networks.Slow",
        f"+model.seconds={seconds_of_a_shard}",
        "trusted_modules=[tests.support.networks]",
        "trainer.reproducible=true",
        "trainer.global_batch_size=20",  # 153 samples: 8 steps an epoch, the last one of 13
        "trainer.epochs=4",
        "trainer.log_every_steps=1",
        "trainer.checkpoint_every_steps=2",
        "trainer.timeout_seconds=30",
        "trainer.device=cpu",
    ]


def undisturbed(root: Path, run_dir: Path) -> str:
    """Train in one process that nobody disturbs; return the fingerprint of its end."""
    command = [sys.executable, "-m", "dist_mnist", *training(root, run_dir)]
    environment = {**os.environ, **ENVIRONMENT}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
    return faults.fingerprint(run_dir)


def steps(run_dir: Path) -> int:
    """Return the last step in a run's journal, or 0."""
    journal = run_dir / "metrics.jsonl"
    lines = read_journal(journal) if journal.exists() else []
    return max((line["step"] for line in lines), default=0)


def wait_for_run(outputs: Path) -> list[Path]:
    """Wait until there is a run in the folder of those that nobody has named; return all."""
    wait_until(lambda: outputs.is_dir() and any(outputs.iterdir()), 60, "a run directory")
    return list(outputs.iterdir())


def wait_for_step(run_dir: Path, step: int, seconds: float = 60) -> float:
    """Wait until a run has come to a step; return how long that took, in seconds."""
    return wait_until(lambda: steps(run_dir) >= step, seconds, f"step {step} of {run_dir}")


def ranks_on(host: Host) -> dict[int, int]:
    """Return the processes of a host that are ranks of a training, by rank."""
    ranks = {}
    for process in host.processes():
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        values = dict(entry.split(b"=", 1) for entry in environment if b"=" in entry)
        if b"torch.distributed.run" not in command and b"RANK" in values:
            ranks[int(values[b"RANK"])] = process
    return ranks


def agent_on(host: Host) -> int:
    """Return the one process of a host that is torchrun."""
    (agent,) = (
        process
        for process in host.processes()
        if b"torch.distributed.run" in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    )
    return agent


def kill(process: int) -> None:
    """Kill a process of a training."""
    os.kill(process, signal.SIGKILL)


def wandb_ids(run_dir: Path) -> set[str]:
    """Return the ids of all the wandb runs that a run directory holds."""
    return {path.name.rpartition("-")[2] for path in run_dir.glob("wandb/offline-run-*")}


def journal_steps(run_dir: Path) -> list[int]:
    """Return the steps in a run's journal, in its order."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [line["step"] for line in map(json.loads, lines) if line["kind"] == "step"]
