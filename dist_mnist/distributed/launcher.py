"""Reads the variables that a launcher sets: torchrun, SLURM, submitit, a JobSet."""

import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dist_mnist.config.errors import InputError
from dist_mnist.distributed import signals

REQUEUE_SECONDS = 60.0  # how long rank 0 may take to send the job back to the queue

# torchrun sets these.
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Launchers that set a rank and a size, but no address to meet at. SLURM_NTASKS cannot be used: in a
# batch script and in salloc it is the number of tasks that srun would start.
BARE_LAUNCHERS = {
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE"),
}
# Variables that limit the accelerators a process sees.
DEVICES_SHOWN = (
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    "ZE_AFFINITY_MASK",
)
ADVICE = {
    "srun": "`sbatch launch/slurm.sh`, or on one node `srun --ntasks=1 {torchrun}`",
    "mpirun": "`{torchrun}`, or on several machines launch/multi_node.sh",
    "mpiexec": "`{torchrun}`, or on several machines launch/multi_node.sh",
}


class LaunchError(InputError):
    """A mistake that all processes of a launch share; only the first one reports it.

    Args:
        rank: This process among those that were launched.
    """

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


class Place(NamedTuple):
    """The place of this process among all, as in `World`."""

    rank: int
    local_rank: int
    size: int
    local_size: int


def place() -> Place:
    """Return this process's place among all; without a launcher's variables it is alone.

    Raises:
        InputError: The launcher's variables are inconsistent.
        LaunchError: The launcher started several processes, but not as one group.
    """
    if not _is_set("RANK") and not _is_set("WORLD_SIZE"):
        _refuse_bare_launcher()
    found = Place(
        rank=_number("RANK", 0),
        local_rank=_number("LOCAL_RANK", 0),
        size=_number("WORLD_SIZE", 1),
        local_size=_number("LOCAL_WORLD_SIZE", 1),
    )
    if found.size > 1 and not _is_set("RANK"):
        raise _wrong(f"WORLD_SIZE={found.size} without RANK does not say which process this is")
    if found.rank >= found.size:
        raise _wrong(f"RANK={found.rank} is not below WORLD_SIZE={found.size}")
    if found.local_rank >= found.local_size:
        raise _wrong(f"LOCAL_RANK={found.local_rank} is not below LOCAL_WORLD_SIZE", found)
    if found.local_size > found.size:
        raise _wrong(f"WORLD_SIZE={found.size} is below LOCAL_WORLD_SIZE", found)
    machines, present = _count("NNODES"), _count("GROUP_WORLD_SIZE")
    if 0 < present < machines:  # launch/multi_node.sh has a number, or a range
        raise InputError(
            f"NNODES={machines} machines should train together, and {present} do: check that the "
            f"clocks of all machines agree, and that they reach each other."
        )
    return found


def meeting_place() -> tuple[str, int]:
    """Return the address and the port where several processes meet.

    Raises:
        InputError: They are missing, or cannot be used.
    """
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not _is_set(name):
            raise _wrong(f"{name} is not set, so the processes cannot meet")
    port = _number("MASTER_PORT", 0)
    if not 0 < port < 2**16:
        raise _wrong(f"MASTER_PORT={port} is not a port (1 to 65535)")
    address = os.environ["MASTER_ADDR"].strip()
    return address.removeprefix("[").removesuffix("]"), port  # an IPv6 address as in a URL


def _wrong(sentence: str, found: Place | None = None) -> InputError:
    if found:
        sentence += f"={found.local_size}"
        sentence += "" if _is_set("LOCAL_WORLD_SIZE") else " (it is not set)"
    return InputError(f"{sentence}: start the processes with torchrun, which sets all of these.")


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name, "").strip())


def _number(name: str, default: int) -> int:
    """Return the whole number in a variable; an empty variable counts as missing."""
    if not _is_set(name):
        return default
    value = os.environ[name].strip()
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise _wrong(f"{name}={value} is not a whole number")
    return int(value)


def _count(name: str) -> int:
    """Return the number in an optional variable, or 0."""
    try:
        return _number(name, 0)
    except InputError:
        return 0


def _refuse_bare_launcher() -> None:
    """Refuse to be one of several processes that would each train alone.

    A process with a terminal is let through: `srun --ntasks=4 --pty bash` shows the first of four
    shells.
    """
    sizes = {name: _count(size) for name, (_, size) in BARE_LAUNCHERS.items()}
    name = max(sizes, key=lambda name: sizes[name])  # mpirun may use srun to get to the nodes
    if sizes[name] < 2 or os.isatty(0):
        return
    torchrun = f"torchrun --standalone --nproc_per_node={sizes[name]} -m dist_mnist ..."
    raise LaunchError(
        f"{name} started {sizes[name]} processes, which would not train together: type "
        f"{ADVICE[name].format(torchrun=torchrun)}; or set WORLD_SIZE=1 if each of them "
        "should run alone.",
        _count(BARE_LAUNCHERS[name][0]),
    )


def sees_own_device() -> bool:
    """Return whether this process sees one accelerator, and other processes see others.

    `srun --gpus-per-task=1`, wrapper scripts and `torchrun --virtual-local-rank` do that. Otherwise
    torchrun's processes see the devices that it sees itself, so a single one is shared.
    """
    shown = {name: os.environ[name].strip() for name in DEVICES_SHOWN if _is_set(name)}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        try:
            content = Path(f"/proc/{os.getppid()}/environ").read_bytes().decode(errors="replace")
        except OSError:  # no /proc
            return False
        theirs = dict(part.partition("=")[::2] for part in content.split("\0"))
        shown = {name: value for name, value in shown.items() if theirs.get(name, "") != value}
    return any("," not in devices for devices in shown.values())


def launch_id() -> str | None:
    """Return an id that is the same in every process and every restart of one launch.

    A SLURM batch job keeps its number when it is requeued, and its srun steps are numbered from 0
    again. Elsewhere torchrun gives each launch an id, or "none"; in that case the agent, the parent
    of its workers, identifies the launch. None if neither started this process.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if os.environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" in os.environ:
        keys = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID")
        name = " ".join([*(os.environ.get(key, "") for key in keys), *sys.argv[1:]])
    elif not name:
        return None
    elif name == "none":
        name = f"{os.uname().nodename} {os.getppid()} {_start_time(os.getppid())}"
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def is_restart() -> bool:
    """Return whether torchrun, SLURM or a JobSet counts this start as a restart.

    It may be a restart even if they do not: torchrun does not count restarts in which machines
    joined or left.
    """
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "JOBSET_RESTART_ATTEMPT")
    return any(_count(name) > 0 for name in counts)


def _start_time(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:  # no /proc, as on macOS: the process id must be enough
        return ""


def is_alone() -> bool:
    """Return whether this process runs alone: not with others, and not as a cluster job."""
    return _count("WORLD_SIZE") < 2 and not is_cluster_job()


def is_cluster_job() -> bool:
    """Return whether submitit started this process, as one job of a sweep on a cluster."""
    return "SUBMITIT_EXECUTOR" in os.environ


@contextmanager
def cluster_job() -> Iterator[None]:
    """Set up this process as one rank of a submitit job; requeue the job after a signal.

    submitit starts each process of a job without torchrun, and sends the job back to the queue when
    its time is nearly over, in the middle of anything. Here it saves its work first.
    """
    from submitit.helpers import TorchDistributedEnvironment

    for name in VARIABLES:
        os.environ.pop(name, None)  # left over from the submitting shell
    environment = TorchDistributedEnvironment()
    # The address of the first node: its name may resolve to loopback.
    environment.master_addr = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", environment.master_addr)
    environment.export(set_cuda_visible_devices=False)
    name = f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"
    requeue = signal.getsignal(signal.Signals[name])
    signals.install()
    try:
        yield
    except signals.Stopped:
        # If another rank got the signal, this one does not know which signal it was.
        if signals.requested() in (name, None) and callable(requeue):
            requeue(signal.Signals[name], None)  # ends this process, if it is rank 0
            signals.wait(REQUEUE_SECONDS)  # ending earlier might end rank 0 too
        signals.end(signals.STOPPED)
