"""Ranks that were started differently report it before they train."""

import os
import shutil
from pathlib import Path

import pytest

from dist_mnist.config.errors import InputError
from dist_mnist.distributed import agreement
from dist_mnist.distributed.agreement import require_same
from dist_mnist.distributed.session import session
from tests.support.configs import CHECKOUT, SMALL_DATA
from tests.support.processes import run_ranks
from tests.support.runs import run_once

RUN = (*SMALL_DATA, "trainer.epochs=1", "model=mlp")


def run_differently(overrides: list[str], of_rank_1: list[str]) -> None:
    """Train; rank 1 has additional overrides."""
    run_once([*overrides, *(of_rank_1 if os.environ["RANK"] == "1" else [])])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=0.5", "optimizer.lr differs between the ranks: 0.002 on rank 0, 0.5 on"),
        ("optimizer=sgd", "optimizer._target_ differs"),
        ("seed=1", "seed differs between the ranks: 0 on rank 0, 1 on rank 1"),
        ("trainer.global_batch_size=30", "trainer.global_batch_size differs"),
        ("loss=mse", "loss._target_ differs"),
        ("data.validation_size=40", "data.validation_size differs"),
        ("data.balance=sample", "data.balance differs between the ranks: none on rank 0, sample"),
    ],
)
def test_setting_that_differs(
    override: str, message: str, small_root: Path, tmp_path: Path
) -> None:
    overrides = [
        *RUN,
        f"data.root={small_root}",
        f"run_dir={tmp_path / 'run'}",
        "optimizer.lr=0.002",
    ]
    with pytest.raises(InputError, match=message):
        run_ranks(2, run_differently, overrides, [override])
    assert not (tmp_path / "run").exists()


def test_data_that_differs(small_root: Path, darker_root: Path, tmp_path: Path) -> None:
    overrides = [*RUN, f"data.root={small_root}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(InputError, match="checksum of the training samples differs"):
        run_ranks(2, run_differently, overrides, [f"data.root={darker_root}"])


def test_paths_and_tracking_may_differ(small_root: Path, tmp_path: Path) -> None:
    overrides = [*RUN, f"data.root={small_root}", f"run_dir={tmp_path / 'run'}"]
    copy = tmp_path / "data"
    copy.symlink_to(small_root)
    run_ranks(2, run_differently, overrides, [f"data.root={copy}", "tracking.name=other"])
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()


def compare(facts: list[dict[str, object]]) -> None:
    with session("cpu", timeout_seconds=60) as world:
        require_same(world, facts[world.rank])


def test_every_rank_reports_it() -> None:
    with pytest.raises(
        InputError, match="b differs between the ranks: None on rank 0, 2 on rank 2"
    ):
        run_ranks(3, compare, [{"a": 1}, {"a": 1}, {"a": 1, "b": 2}])


def run_another_commit(overrides: list[str], package: Path) -> None:
    """Train; rank 1 takes this package's code to be in another folder."""
    if os.environ["RANK"] == "1":
        agreement.__file__ = str(package / "distributed" / "agreement.py")
    run_once(overrides)


def test_code_that_differs(small_root: Path, tmp_path: Path) -> None:
    package = tmp_path / "dist_mnist"
    shutil.copytree(CHECKOUT / "dist_mnist", package, ignore=shutil.ignore_patterns("*.gz"))
    overrides = [*RUN, f"data.root={small_root}", "trainer.max_steps=1"]
    run_ranks(2, run_another_commit, [*overrides, f"run_dir={tmp_path / 'same'}"], package)
    with (package / "models" / "losses.py").open("a") as file:
        file.write("# another commit\n")
    with pytest.raises(InputError, match="the version of dist_mnist differs between the ranks"):
        run_ranks(2, run_another_commit, [*overrides, f"run_dir={tmp_path / 'other'}"], package)
