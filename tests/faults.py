"""Kills trainings at random instants; started again, each must end as if it had never been killed.

    python -m tests.faults --kills 200 --seed 1 --out faults.json

Every way to kill is used in turn: one process, one rank of two, all ranks, torchrun itself, and a
rank that torchrun starts again by itself (the plain command, with `--max-restarts`). Instants are
drawn from the whole life of a launch, start-up and the unpacking of MNIST included. What a run
leaves (weights, optimizer, best checkpoint, journal without its clock, test result) is compared by
its hash with that of a run nobody touched.
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
UNPACKING = ("model=linear", "trainer.max_steps=30", "trainer.checkpoint_every_steps=10")


@dataclass
class Story:
    """The kills of one run, and whether it came out right.

    Attributes:
        instants: Seconds after each launch at which it was killed.
        torn: How many kills left a half-written temporary file behind.
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
    return [
        sys.executable,
        *KINDS[kind],
        *("-m", "dist_mnist", f"run_dir={run_dir}", "tracking=disabled", *training),
    ]


def fingerprint(run_dir: Path) -> str:
    """Return a hash of all that a finished run leaves, but for what depends on the clock."""
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
    """Return the processes that a process has started and that still run."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def kill(kind: str, launch: subprocess.Popen[bytes], dice: random.Random) -> bool:
    """Kill what the kind says; return whether there was anything to kill."""
    if kind in ("process", "unpacking", "agent"):
        victims = [launch.pid]
    else:
        ranks = sorted(children(launch.pid))
        victims = ranks if kind == "all ranks" else [dice.choice(ranks)] if ranks else []
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(victims)


def play(kind: str, seed: int, kills: int, span: float, root: Path, run_dir: Path) -> Story:
    """Launch a run, and launch it again whenever it has been killed, until it has finished.

    Args:
        kind: One of `KINDS`.
        seed: Of the instants and the victims.
        kills: After so many it is left in peace.
        span: Until how long after a launch to kill, in seconds.
        root: The data folder.
        run_dir: A new run directory.
    """
    story, dice, began = Story(kind, seed), random.Random(f"{kind} {seed}"), time.monotonic()
    log = run_dir.with_name(run_dir.name + ".log")
    for _ in range(kills + 2):
        with log.open("ab") as output:
            launch = subprocess.Popen(
                command(kind, root, run_dir), stdout=output, stderr=subprocess.STDOUT
            )
        story.launches += 1
        try:
            while len(story.instants) < kills:
                delay = dice.uniform(0.0, span)
                if _ends_within(launch, delay):
                    break
                if dice.random() < 0.5:  # a moment that is easily missed
                    _wait_for_a_temporary_file(launch, run_dir)
                if kill(kind, launch, dice):
                    story.instants.append(round(delay, 3))
                    story.torn += _has_temporary_file(run_dir)
                if kind != "restart":
                    break
            _ends_within(launch, 120.0)
        finally:
            launch.kill()
            launch.wait()
        if launch.returncode == 0:
            break
    story.seconds = round(time.monotonic() - began, 1)
    if launch.returncode != 0:
        story.error = log.read_text(errors="replace")[-2000:]
    return story


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
    """Return the fingerprint of a run that nobody kills, and how long it took in seconds."""
    began = time.monotonic()
    subprocess.run(command(kind, root, run_dir), check=True, capture_output=True)
    return fingerprint(run_dir), time.monotonic() - began


def _reference(kind: str) -> str:
    """Return a kind of run that must give the same: on so many ranks, of that data."""
    return kind if kind in ("process", "unpacking") else "rank"


def campaign(
    kinds: Sequence[str], kills: int, kills_of_a_run: int, seed: int, folder: Path
) -> list[Story]:
    """Kill so many times in all, the kinds in turn, and compare every run with an undisturbed one.

    Args:
        kinds: Of `KINDS`.
        kills: In all, at least.
        kills_of_a_run: How often to kill one run before it may finish.
        seed: Of everything that is random.
        folder: An empty one.
    """
    root = make_small_root(folder / "data")
    expected = {
        reference: undisturbed(reference, root, folder / f"undisturbed {reference}")
        for reference in {_reference(kind) for kind in kinds}
    }
    stories: list[Story] = []
    while sum(len(story.instants) for story in stories) < kills:
        kind = kinds[len(stories) % len(kinds)]
        run_dir = folder / f"{kind} {len(stories)}"
        whole, span = expected[_reference(kind)]
        story = play(kind, seed + len(stories), kills_of_a_run, span, root, run_dir)
        story.is_equal = not story.error and fingerprint(run_dir) == whole
        stories.append(story)
        print(json.dumps(asdict(story)), flush=True)
    return stories


def main() -> int:
    """Run a campaign, print what it came to, and return 1 if any run came out otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-of-a-run", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="a JSON file for every run's story")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stories = campaign(
            options.kinds, options.kills, options.kills_of_a_run, options.seed, Path(folder)
        )
    kills, torn = Counter[str](), Counter[str]()
    for story in stories:
        kills[story.kind] += len(story.instants)
        torn[story.kind] += story.torn
    for kind in options.kinds:
        runs = [story for story in stories if story.kind == kind]
        equal = sum(story.is_equal for story in runs)
        print(
            f"{kind:<10} {len(runs):>4} runs, {kills[kind]:>4} kills "
            f"({torn[kind]} while a checkpoint was being written): {equal} came out equal"
        )
    if options.out:
        lines = ",\n".join(json.dumps(asdict(story)) for story in stories)
        options.out.write_text(f"[\n{lines}\n]\n")
    return 0 if all(story.is_equal for story in stories) else 1


if __name__ == "__main__":
    sys.exit(main())
