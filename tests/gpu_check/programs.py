"""Runs the commands of a user: whole trainings, one that is stopped, and the tests for GPUs."""

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dist_mnist.distributed.world import World
from dist_mnist.record.journal import read_journal
from tests.gpu_check.common import DATA, Found, on_gpu, program

# Overrides, and the least accuracy.
RUNS = {
    "default": ("trainer.epochs=5", 0.993),
    "default, as a graph": ("trainer.epochs=5 trainer.cuda_graph=true", 0.993),
    "speed": ("experiment=speed", 0.988),
    "fp16, sgd": ("trainer.precision=fp16 optimizer=sgd trainer.epochs=1", 0.96),
    "resnet": ("model=resnet trainer.epochs=2", 0.985),
}
RUNS_ON_A_CPU = {"smoke": ("experiment=smoke", 0.3)}
STOPPED = 75


def whole_runs(world: World) -> Found:
    """The default run, the fast one, fp16 with momentum, a larger network; scores and times."""
    found, good = {}, True
    for name, (options, least) in (RUNS if on_gpu(world) else RUNS_ON_A_CPU).items():
        with tempfile.TemporaryDirectory() as folder:
            status, said, seconds = program("dist_mnist", *options.split(), *_where(world, folder))
            if status:
                found[name], good = {"status": status, "said": said[-600:]}, False
                continue
            lines = read_journal(Path(folder, "run", "metrics.jsonl"))
        accuracy = lines[-1]["test/accuracy"]
        good &= accuracy >= least
        found[name] = {
            "accuracy": accuracy,
            "seconds of the epochs": [x["seconds"] for x in lines if x["kind"] == "epoch"],
            "seconds in all": seconds,
        }
    return {"ok": good, "runs": found}


def signals(world: World) -> Found:
    """SIGTERM in the middle: status 75 within seconds, and the run goes on after it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["model=mlp", "trainer.epochs=500", *_where(world, folder)]
        command = [sys.executable, "-m", "dist_mnist", *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as running:
            last, patience = Path(folder, "run", "checkpoints", "last.safetensors"), 40.0
            until = time.monotonic() + patience
            while not last.exists() and time.monotonic() < until:
                time.sleep(0.1)
            asked = time.monotonic()
            running.terminate()
            said = running.communicate(timeout=30)[0]
            took = time.monotonic() - asked
        steps = [line["step"] for line in read_journal(Path(folder, "run", "metrics.jsonl"))]
        more = f"trainer.max_steps={max(steps) + 100}"
        status, again, _ = program("dist_mnist", *arguments, more)
    continued = status == 0 and "continuing after step" in again
    return {
        "ok": running.returncode == STOPPED and took < 10 and continued,
        "status": running.returncode,
        "seconds": took,
        "said": said[-200:],
        "continued": continued,
    }


def _where(world: World, folder: str) -> list[str]:
    device = f"trainer.device={world.device.type}"
    return [device, "tracking=disabled", f"data.root={DATA}", f"run_dir={folder}/run"]


def marked_tests(world: World) -> Found:
    """Return pytest's summary of the tests that need a GPU; elsewhere they are skipped."""
    if importlib.util.find_spec("pytest") is None:
        return {"ok": None, "why": "needs pytest"}
    options = ("-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/training/test_loop.py")
    status, said, _ = program("pytest", *options)
    return {"ok": status == 0, "said": said[-1500:]}
