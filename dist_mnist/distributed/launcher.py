"""The jobs of a sweep that submitit runs on a cluster: several processes, requeued in good order.

submitit starts each process of a job by itself, without torchrun, and sends the job back to the
queue when its time is nearly over, whatever it is doing then. Here it may save what it has, first.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dist_mnist.distributed import signals

REQUEUE_SECONDS = 60.0  # how long rank 0 may take to send the job back to the queue


def is_cluster_job() -> bool:
    """Whether submitit has started this process."""
    return "SUBMITIT_EXECUTOR" in os.environ


@contextmanager
def cluster_job() -> Iterator[None]:
    """Set up this process as one rank of the job; send the job back to the queue if told to."""
    from submitit.helpers import TorchDistributedEnvironment

    environment = TorchDistributedEnvironment()
    # The first node by its address: its own name may lead it to loopback.
    environment.master_addr = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", environment.master_addr)
    environment.export(set_cuda_visible_devices=False)
    name = f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"
    requeue = signal.getsignal(signal.Signals[name])
    signals.install()
    try:
        yield
    except signals.Stopped:
        # Which signal it was that another rank has got is not known here.
        if signals.requested() in (name, None) and callable(requeue):
            requeue(signal.Signals[name], None)  # which ends this process, if it is rank 0
            signals.wait(REQUEUE_SECONDS)  # an end before that might take rank 0 along
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(signals.STOPPED)
