"""What the launcher (torchrun, SLURM, submitit, a JobSet) says about this launch."""

import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dist_mnist.distributed import signals

REQUEUE_SECONDS = 60.0  # how long rank 0 may take to send the job back to the queue


def launch_id() -> str | None:
    """Return an id that is the same in every process and every restart of one launch.

    A SLURM batch job keeps its number when it is requeued, and numbers its srun steps again from 0.
    Elsewhere torchrun gives each launch an id, or "none"; then the agent, which is the parent of
    its workers, identifies the launch. None if neither started this process.
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
    """Whether torchrun, SLURM or a JobSet says that it has started this launch before.

    It may be a restart even if they do not say so: torchrun does not count restarts in which
    machines have joined or left.
    """
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "JOBSET_RESTART_ATTEMPT")
    return any(int(os.environ.get(name) or 0) > 0 for name in counts)


def _start_time(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:  # no /proc, as on macOS: the process id alone has to do
        return ""


def is_cluster_job() -> bool:
    """Whether submitit started this process, as one job of a sweep on a cluster."""
    return "SUBMITIT_EXECUTOR" in os.environ


@contextmanager
def cluster_job() -> Iterator[None]:
    """Set up this process as one rank of a submitit job; requeue the job if it is told to stop.

    submitit starts each process of a job by itself, without torchrun, and sends the job back to the
    queue when its time is nearly over, whatever it is doing then. Here it may save its work first.
    """
    from submitit.helpers import TorchDistributedEnvironment

    environment = TorchDistributedEnvironment()
    # The first node by its address: its own name may point to loopback.
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
            signals.wait(REQUEUE_SECONDS)  # ending earlier might take rank 0 along
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(signals.STOPPED)
