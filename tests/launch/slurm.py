"""A SLURM cluster of virtual nodes: munged, slurmctld, and a slurmd on each."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.launch.hosts import Host, network, require, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun")
GPUS_OF_A_NODE = 2  # not real GPUs: SLURM only counts them

# Partitions of the same nodes, of which one takes them from the others, in three ways; a node that
# has not answered for some seconds counts as lost.
CONFIG = """
ClusterName=test
SlurmctldHost={head.name}({head.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=500000
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=15
SlurmdTimeout={seconds_to_lose_a_node}
JobRequeue=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=train Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=graceful Nodes=ALL State=UP PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE
PartitionName=cancelled Nodes=ALL State=UP PriorityTier=1 GraceTime=60 PreemptMode=CANCEL
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={0.name} NodeAddr={0.address} CPUs=2 RealMemory=4000 Gres=gpu:{1} State=UNKNOWN"
SECONDS_TO_LOSE_A_NODE = 10


@dataclass(frozen=True)
class Cluster:
    """A SLURM cluster.

    Attributes:
        head: Where slurmctld runs and jobs are submitted.
        nodes: Where they run, by name.
        folder: Of its configuration, logs and state.
    """

    head: Host
    nodes: dict[str, Host]
    folder: Path

    def call(self, *arguments: str | Path, **environment: str) -> str:
        """Run one of SLURM's commands and return its output."""
        return self.head.run(*arguments, SLURM_CONF=str(self.folder / "slurm.conf"), **environment)

    def submit(self, *arguments: str | Path, **environment: str) -> str:
        """Submit a job and return its id."""
        printed = self.call("sbatch", "--parsable", *arguments, **environment)
        return printed.split()[-1].split(";")[0]

    def show(self, job: str, key: str) -> str:
        """Return one of the values that SLURM shows of a job."""
        match = re.search(rf"\b{key}=(\S*)", self.call("scontrol", "show", "job", job))
        assert match, key
        return match[1]

    def nodes_of(self, job: str) -> list[Host]:
        """Return where a job runs, its head first."""
        names = self.call("scontrol", "show", "hostnames", self.show(job, "NodeList"))
        return [self.nodes[name] for name in names.split()]

    def wait_for(self, job: str, state: str, seconds: float) -> None:
        """Wait until a job is in a state, as in RUNNING or COMPLETED.

        Raises:
            AssertionError: It is not in time, or it has failed meanwhile.
        """

        def is_there() -> bool:
            current = self.show(job, "JobState")
            assert current == state or current not in ("FAILED", "CANCELLED", "TIMEOUT"), current
            return current == state

        wait_until(is_there, seconds, f"job {job} is {state}")

    def wait_for_node(self, node: Host, state: str, seconds: float) -> None:
        """Wait until a node is in a state, as in idle."""

        def is_there() -> bool:
            return self.call("sinfo", "-h", "-n", node.name, "-o", "%t").split()[0] == state

        wait_until(is_there, seconds, f"node {node.name} is {state}")


@contextmanager
def cluster_of(*names: str) -> Iterator[Cluster]:
    """Bring up a cluster of virtual nodes; skip the test where a program is missing."""
    require(*PROGRAMS)
    with (
        tempfile.TemporaryDirectory() as folder,  # whose path is short enough for a socket
        network(Path(folder), ["head", *names], own_name_is_loopback=True) as (head, *nodes),
        cluster(Path(folder), head, nodes) as running,
    ):
        yield running


def end_jobs(slurm: Cluster) -> None:
    """End the jobs that a failed test has left."""
    if slurm.call("squeue", "-h"):
        slurm.call("scancel", "--user=root")
        wait_until(lambda: not slurm.call("squeue", "-h"), 60, "no job is left")


@contextmanager
def cluster(folder: Path, head: Host, nodes: Sequence[Host]) -> Iterator[Cluster]:
    """Bring a cluster up on hosts that are there, and shut it down at last.

    Args:
        folder: An empty one, whose path is short: a socket will have its name in it.
        head: For slurmctld.
        nodes: For a slurmd each.
    """
    _configure(folder, head, nodes)
    slurm = Cluster(head, {node.name: node for node in nodes}, folder)
    config = str(folder / "slurm.conf")
    log = folder / "programs.log"
    _start_munged(head, folder, log)
    head.start("slurmctld", "-D", log=log, SLURM_CONF=config)
    for node in nodes:
        node.start("slurmd", "-D", "-N", node.name, log=log, SLURM_CONF=config)
    try:
        wait_until(lambda: _count_idle(slurm) == len(nodes), 30, "all nodes are idle")
        yield slurm
    finally:
        with suppress(AssertionError):  # its processes end with the hosts in any case
            slurm.call("scontrol", "shutdown")


def _configure(folder: Path, head: Host, nodes: Sequence[Host]) -> None:
    (folder / "state").mkdir()
    devices = folder / "devices"
    devices.mkdir()
    for number in range(GPUS_OF_A_NODE):
        os.mknod(devices / str(number), 0o20666, os.makedev(1, 3))
    names = ",".join(node.name for node in nodes)
    files = f"{devices}/[0-{GPUS_OF_A_NODE - 1}]"
    (folder / "gres.conf").write_text(f"NodeName={names} Name=gpu File={files}\n")
    text = CONFIG.format(
        head=head,
        folder=folder,
        nodes="\n".join(NODE.format(node, GPUS_OF_A_NODE) for node in nodes),
        seconds_to_lose_a_node=SECONDS_TO_LOSE_A_NODE,
    )
    (folder / "slurm.conf").write_text(text)


def _start_munged(head: Host, folder: Path, log: Path) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    files = ("key-file=munge.key", "pid-file=munge.pid", "log-file=munge.log")
    options = [f"--{name}={folder}/{file}" for name, file in (text.split("=") for text in files)]
    socket = folder / "munge.socket"
    seed = f"--seed-file={folder}/munge.seed"
    munged = shutil.which("munged") or "munged"
    head.start(munged, "-F", "--force", *options, f"--socket={socket}", seed, log=log)
    wait_until(socket.exists, 10, "munged has opened its socket")


def _count_idle(slurm: Cluster) -> int:
    try:
        return slurm.call("sinfo", "-h", "-N", "-p", "train", "-o", "%t").split().count("idle")
    except AssertionError:  # slurmctld is not there yet
        return 0
