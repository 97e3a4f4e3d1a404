"""Chooses a process's number of CPU threads, by a rule that gives the same at every launch.

Threads with too little work cost more than they gain, and far more beside another program: one
thread that has lost its core keeps all the others waiting. Imports no torch, so that `wait_briefly`
can be called before torch is loaded.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dist_mnist.distributed.cgroups import group_folders

# Multiply-adds of a step's forward pass that are worth a thread: about a millisecond.
WORK_PER_THREAD = 25_000_000
# How often a waiting thread of GNU OpenMP spins before it sleeps. By default it spins for
# milliseconds, on the core of the thread that it waits for. Fewer spins than these cost speed on a
# quiet machine; tests/benchmarks/beside.py measures both.
SPIN_COUNT = "1000"


def wait_briefly() -> None:
    """Let waiting threads sleep soon, unless the user has set OMP_WAIT_POLICY."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def choose_threads(local_size: int, work: float | None = None) -> int:
    """Return the number of threads for a process.

    `OMP_NUM_THREADS` decides if the user has set it. Otherwise the processes of a machine share its
    cores, and none uses more threads than its work can keep busy.

    Args:
        work: Multiply-adds of the forward pass in one step of this process; None for no limit.
    """
    chosen = chosen_by_user(local_size)
    if chosen is not None:
        return chosen
    share = usable_cores() // local_size
    return max(1, share if work is None else min(share, int(work / WORK_PER_THREAD)))


def chosen_by_user(local_size: int) -> int | None:
    """Return OMP_NUM_THREADS as the user has set it, or None.

    torchrun sets it to 1 for several processes if the user has not, so a 1 is ignored there.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not text.isdecimal() or int(text) < 1:
        return None
    is_torchruns = "TORCHELASTIC_RUN_ID" in os.environ and local_size > 1 and text == "1"
    return None if is_torchruns else int(text)


def usable_cores() -> int:
    """Return the number of cores this process may use, by its affinity and its CPU quotas."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(group_folders("cpu"))])))


def _quotas(folders: Iterable[Path]) -> Iterator[float]:
    """Yield the CPU quotas of control groups, in cores."""
    for folder in folders:
        with suppress(OSError, ValueError):
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if float(quota) > 0:  # v1 has -1 for no limit, v2 the word max
                yield float(quota) / float(period)
