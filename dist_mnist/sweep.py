"""The jobs of a sweep that submitit runs on a cluster: several processes, requeued in good order.

submitit starts each process of a job by itself, without torchrun, and sends the job back to the
queue when its time is nearly over, whatever it is doing then. Here it may save what it has, first.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dist_mnist import signals


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
    requeue = signal.getsignal(signal.SIGUSR2)
    signals.install()
    try:
        yield
    except signals.Stopped:
        if signals.requested() == "SIGUSR2" and callable(requeue):
            requeue(signal.SIGUSR2, None)  # which ends this process if it is rank 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(signals.STOPPED)
