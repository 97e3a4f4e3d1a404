"""The benchmarks run and print their tables; the figures are not judged here."""

import json
import time
from functools import partial
from pathlib import Path

import pytest

from dist_mnist.distributed.shared_memory import is_supported
from tests.benchmarks.measure import REPOSITORY, Spread, in_turn, run_program, table
from tests.support.processes import python, torchrun


def test_contenders_run_in_turn() -> None:
    order: list[str] = []

    def run(name: str) -> dict[str, int]:
        order.append(name)
        return {"nth": len(order)}

    results = in_turn({"a": partial(run, "a"), "b": partial(run, "b")}, rounds=2)
    assert order == ["a", "b", "a", "b"]
    assert [run["nth"] for run in results["b"]] == [2, 4]


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 7.0]) == Spread(3.0, 1.0, 7.0)
    assert table(["a", "b"], [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_program_that_fails_is_reported() -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        run_program(["python3", "-c", "raise SystemExit('no such thing')"])


@pytest.mark.slow
def test_loop_benchmark(small_root: Path) -> None:
    done = torchrun(
        2,
        *("--rounds", "2", "--steps", "3", "data=fashion_mnist", f"data.root={small_root}"),
        *("model=mlp", "optimizer=adam", "data.validation_size=0", "trainer.global_batch_size=20"),
        "trainer.device=cpu",
        module="tests.benchmarks.loop_worker",
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert {"our loop", "bare step", "step in DDP, gloo"} < set(measured)
    assert ("step in DDP, shared memory" in measured) == is_supported()
    assert all(len(times) == 2 and min(times) > 0 for times in measured.values())


@pytest.mark.slow
def test_startup_benchmark(small_root: Path, tmp_path: Path) -> None:
    ours = ["data=fashion_mnist", f"data.root={small_root}", f"run_dir={tmp_path / 'run'}"]
    launched = time.time()
    done = python(
        *("-m", "tests.benchmarks.startup_worker", *ours, "data.validation_size=50"),
        cwd=REPOSITORY,
        LAUNCHED_AT=str(launched),
    )
    assert done.returncode == 0, done.stderr
    seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    assert 0 < seconds <= time.time() - launched
