"""`python -m tests.gpu_check --out FOLDER`: checks that need a GPU, in ten minutes.

Every check is a separate process with its own time limit, so a crash or a hang ends that check
alone. `gpu_check.json` is rewritten after each, so an interrupted run keeps its results.
`--device cpu` rehearses the checks that a CPU can run.

On a machine without network, bring the missing packages along, and add them to PYTHONPATH:

    pip install --target site --no-deps hydra-core omegaconf antlr4-python3-runtime==4.9.3
    pip install --target site --no-deps safetensors filelock tqdm pyyaml
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.gpu_check.record import file_hashes

BUDGET_SECONDS = 540.0
LEAST_SECONDS = 10.0  # for less, a check is not begun


class Entry(NamedTuple):
    """A check: the module of its function, its limit, and whether a CPU has nothing to say."""

    module: str
    seconds: float
    needs_gpu: bool = False


CHECKS = {
    "machine": Entry("arithmetic", 40),
    "gradients": Entry("arithmetic", 60),
    "pieces": Entry("arithmetic", 40),
    "no_waiting": Entry("arithmetic", 60, needs_gpu=True),
    "exactness": Entry("arithmetic", 90),
    "nccl_alone": Entry("ranks", 60, needs_gpu=True),
    "several_ranks": Entry("ranks", 100),
    "graph_basics": Entry("graphs", 90, needs_gpu=True),
    "graph": Entry("graphs", 100, needs_gpu=True),
    "speed": Entry("speed", 150),
    "whole_runs": Entry("programs", 150),
    "signals": Entry("programs", 60),
    "marked_tests": Entry("programs", 90),
}


def main() -> None:
    """Run the checks that the command line names, or all, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds, in all")
    parser.add_argument("--only", nargs="*", choices=sorted(CHECKS), help="instead of all")
    parser.add_argument("--one", choices=sorted(CHECKS), help="run it here, and print its result")
    arguments = parser.parse_args()
    if arguments.one:
        print("RESULT " + json.dumps(run_here(arguments.one, arguments.device), default=str))
        return
    checks = run_all(
        arguments.only or list(CHECKS), arguments.device, arguments.budget, arguments.out
    )
    failed = {name: check for name, check in checks.items() if check["ok"] is False}
    for name, check in failed.items():
        print(f"\n{name}: {json.dumps(check)[:2000]}")
    sys.exit(bool(failed))


def run_here(name: str, device: str) -> dict[str, Any]:
    """Run one check in this process."""
    import importlib

    from dist_mnist.distributed.session import session

    function = getattr(importlib.import_module(f"tests.gpu_check.{CHECKS[name].module}"), name)
    with session(device, 60) as world:
        found: dict[str, Any] = function(world)
    return found


def run_all(names: Sequence[str], device: str, budget: float, out: Path) -> dict[str, Any]:
    """Run checks one after the other, within a budget; return their findings."""
    out.mkdir(parents=True, exist_ok=True)
    checks: dict[str, Any] = {}
    record = {"device": device, "files": file_hashes(), "checks": checks}
    until = time.monotonic() + budget
    for name in names:
        entry, left = CHECKS[name], until - time.monotonic()
        if entry.needs_gpu and device == "cpu":
            checks[name] = {"ok": None, "why": "needs a GPU"}
        elif left < LEAST_SECONDS:
            checks[name] = {"ok": None, "why": "no time left"}
        else:
            checks[name] = run_apart(name, device, min(entry.seconds, left))
        text = json.dumps(record, indent=1)
        (out / "gpu_check.json").write_text(text + "\n", encoding="utf-8")
        print(
            f"{name:14} {checks[name]['ok']!s:6} {checks[name].get('took', 0):6.1f} s", flush=True
        )
    return checks


def run_apart(name: str, device: str, seconds: float) -> dict[str, Any]:
    """Run one check in a separate process group."""
    command = [sys.executable, "-m", "tests.gpu_check", "--one", name, "--device", device]
    pipe, began = subprocess.PIPE, time.monotonic()
    with subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as running:
        try:
            said, why = running.communicate(timeout=seconds)[0], ""
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            said, why = running.communicate()[0], f"took longer than {seconds:.0f} s"
    results = [line for line in said.splitlines() if line.startswith("RESULT ")]
    found = {"ok": False, "why": why, "status": running.returncode, "said": said[-3000:]}
    if results and not why:
        found = json.loads(results[-1].removeprefix("RESULT "))
    return {**found, "took": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    main()
