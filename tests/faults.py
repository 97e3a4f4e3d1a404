"""Kills trainings at random instants; started again, each must end as if it had never been killed.

    python -m tests.faults --kills 200 --seed 1 --out faults.json

The kinds of kills take turns: one process, one whose threads share the shards of a step, one rank
of two, all ranks, torchrun itself, and a rank that torchrun restarts (with `--max-restarts`). Kills
come at instants drawn from the whole life of a launch, including start-up and the unpacking of
MNIST. The result of a run (weights, optimizer, best checkpoint, journal without its clock, test
accuracy) is hashed and compared with that of an undisturbed run.
"""

import argparse
import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.datasets import make_small_root
from tests.support.runs import CLOCK

TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
KINDS = {
    "process": (),
    "threads": (),
    "rank": (*TORCHRUN, "--nproc_per_node=2"),
    "all ranks": (*TORCHRUN, "--nproc_per_node=2"),
    "agent": (*TORCHRUN, "--nproc_per_node=2"),
    "restart": (*TORCHRUN, "--nproc_per_node=2", "--max-restarts=1000"),
    "unpacking": (),
}
TRAINING = (
    "data=fashion_mnist",
    "data.validation_size=50",
    "trainer.global_batch_size=20",  # 153 samples: 8 steps an epoch, the last one of 13
    "trainer.epochs=16",
    "trainer.log_every_steps=3",
    "trainer.checkpoint_every_steps=3",
    "trainer.device=cpu",
    "model.dropout=0.2",
)
THREADS = ("model.dropout=0", "trainer.reproducible=true", "trainer.cpu_threads=2")
UNPACKING = ("model=linear", "trainer.max_steps=30", "trainer.checkpoint_every_steps=10")


@dataclass
class KilledRun:
    """The kills of one run, and whether its result equals that of an undisturbed run.

    Attributes:
        instants: Seconds after each launch at which it was killed.
        torn: The number of kills that left a half-written temporary file.
        seconds: From the first launch to the end.
    """

    kind: str
    seed: int
    instants: list[float] = field(default_factory=list)
    torn: int = 0
    launches: int = 0
    seconds: float = 0.0
    is_equal: bool = False
    error: str = ""


def command(kind: str, root: Path, run_dir: Path) -> list[str]:
    """Return the command line that trains in a run directory."""
    training: tuple[str, ...] = (*TRAINING, f"data.root={root}")
    if kind == "unpacking":
        training = (*UNPACKING, f"data.root={run_dir.with_name(run_dir.name + ' data')}")
    if kind == "threads":
        training += THREADS
    return [
        sys.executable,
        *KINDS[kind],
        *("-m", "dist_mnist", f"run_dir={run_dir}", "tracking=disabled", *training),
    ]


def fingerprint(run_dir: Path) -> str:
    """Return a hash of everything in a finished run that does not depend on the clock."""
    import torch

    from dist_mnist.record import checkpoint

    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(str((value.dtype, tuple(value.shape))).encode())
            digest.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for part in value:
                add(part)
        else:
            digest.update(pickle.dumps(value))

    for name in ("last.safetensors", "best.safetensors"):
        content = checkpoint.load(run_dir / "checkpoints" / name)
        add([content["model"], content["optimizer"], content["progress"]["step"]])
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        add({key: value for key, value in json.loads(line).items() if key not in CLOCK})
    return digest.hexdigest()


def children(pid: int) -> list[int]:
    """Return the running processes that a process has started."""
    pids = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return pids


def kill(kind: str, launch: subprocess.Popen[bytes], chance: random.Random) -> bool:
    """Kill the processes that belong to a kind; return whether there were any."""
    if kind in ("process", "unpacking", "threads", "agent"):
        victims = [launch.pid]
    else:
        ranks = sorted(children(launch.pid))
        victims = ranks if kind == "all ranks" else [chance.choice(ranks)] if ranks else []
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(victims)


def run_with_kills(
    kind: str, seed: int, kills: int, span: float, root: Path, run_dir: Path
) -> KilledRun:
    """Launch a run, and launch it again after each kill, until it finishes.

    Args:
        kind: One of `KINDS`.
        seed: Determines the instants and the victims.
        kills: After this many kills the run may finish.
        span: Kill within this many seconds of a launch.
        root: The data folder.
        run_dir: A new run directory.
    """
    run, chance, began = KilledRun(kind, seed), random.Random(f"{kind} {seed}"), time.monotonic()
    log = run_dir.with_name(run_dir.name + ".log")
    for _ in range(kills + 2):
        with log.open("ab") as output:
            launch = subprocess.Popen(
                command(kind, root, run_dir), stdout=output, stderr=subprocess.STDOUT
            )
        run.launches += 1
        try:
            while len(run.instants) < kills:
                delay = chance.uniform(0.0, span)
                if _ends_within(launch, delay):
                    break
                if chance.random() < 0.5:  # few kills hit such a moment by chance
                    _wait_for_a_temporary_file(launch, run_dir)
                if kill(kind, launch, chance):
                    run.instants.append(round(delay, 3))
                    run.torn += _has_temporary_file(run_dir)
                if kind != "restart":
                    break
            _ends_within(launch, 120.0)
        finally:
            launch.kill()
            launch.wait()
        if launch.returncode == 0:
            break
    run.seconds = round(time.monotonic() - began, 1)
    if launch.returncode != 0:
        run.error = log.read_text(errors="replace")[-2000:]
    return run


def _wait_for_a_temporary_file(launch: subprocess.Popen[bytes], run_dir: Path) -> None:
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline and launch.poll() is None:
        if _has_temporary_file(run_dir):
            return


def _has_temporary_file(run_dir: Path) -> bool:
    return any(run_dir.glob("checkpoints/.*.tmp"))


def _ends_within(launch: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        launch.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def undisturbed(kind: str, root: Path, run_dir: Path) -> tuple[str, float]:
    """Return the fingerprint of a run without kills, and its duration in seconds."""
    began = time.monotonic()
    subprocess.run(command(kind, root, run_dir), check=True, capture_output=True)
    return fingerprint(run_dir), time.monotonic() - began


def _reference(kind: str) -> str:
    """Return the kind whose undisturbed run has the same options and number of ranks."""
    return kind if kind in ("process", "threads", "unpacking") else "rank"


def kill_runs(
    kinds: Sequence[str], kills: int, kills_of_a_run: int, seed: int, folder: Path
) -> list[KilledRun]:
    """Kill runs of each kind in turn, and compare each with an undisturbed one.

    Args:
        kinds: Of `KINDS`.
        kills: At least this many in all.
        kills_of_a_run: One run is killed this often before it may finish.
        seed: Determines everything that is random.
        folder: An empty one.
    """
    root = make_small_root(folder / "data")
    expected = {
        reference: undisturbed(reference, root, folder / f"undisturbed {reference}")
        for reference in {_reference(kind) for kind in kinds}
    }
    runs: list[KilledRun] = []
    while sum(len(run.instants) for run in runs) < kills:
        kind = kinds[len(runs) % len(kinds)]
        run_dir = folder / f"{kind} {len(runs)}"
        whole, span = expected[_reference(kind)]
        run = run_with_kills(kind, seed + len(runs), kills_of_a_run, span, root, run_dir)
        run.is_equal = not run.error and fingerprint(run_dir) == whole
        runs.append(run)
        print(json.dumps(asdict(run)), flush=True)
    return runs


def main() -> int:
    """Kill runs, print a summary, and return 1 if any run differs from its undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-of-a-run", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="a JSON file with a row for each run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = kill_runs(
            options.kinds, options.kills, options.kills_of_a_run, options.seed, Path(folder)
        )
    kills, torn = Counter[str](), Counter[str]()
    for run in runs:
        kills[run.kind] += len(run.instants)
        torn[run.kind] += run.torn
    for kind in options.kinds:
        of_kind = [run for run in runs if run.kind == kind]
        equal = sum(run.is_equal for run in of_kind)
        print(
            f"{kind:<10} {len(of_kind):>4} runs, {kills[kind]:>4} kills "
            f"({torn[kind]} while a checkpoint was being written): {equal} came out equal"
        )
    if options.out:
        lines = ",\n".join(json.dumps(asdict(run)) for run in runs)
        options.out.write_text(f"[\n{lines}\n]\n")
    return 0 if all(run.is_equal for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
