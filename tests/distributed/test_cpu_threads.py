"""The rule for CPU threads: affinity, quota, processes, work, and the user's own number."""

import os
from pathlib import Path

import pytest
import torch

from dist_mnist.distributed import cpu_threads
from dist_mnist.distributed.cgroups import folders_around
from dist_mnist.distributed.cpu_threads import WORK_PER_THREAD, choose_threads, usable_cores
from dist_mnist.models.build import build_model
from dist_mnist.models.dry_run import dry_run
from tests.support.configs import make_config
from tests.support.runs import run_once

RUN = ("data=fashion_mnist", "data.validation_size=50", "trainer.device=cpu", "model=mlp")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with eight cores and no quota, whose user has said nothing."""
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpu_threads, "group_folders", lambda controller: [])


def test_processes_share_the_cores() -> None:
    assert [choose_threads(size) for size in (1, 2, 3, 8, 16)] == [8, 4, 2, 1, 1]


def test_small_work_takes_one_thread() -> None:
    work = (0, WORK_PER_THREAD, 2.5 * WORK_PER_THREAD, 100 * WORK_PER_THREAD)
    assert [choose_threads(2, amount) for amount in work] == [1, 1, 2, 4]


@pytest.mark.parametrize(("text", "threads"), [("3", 3), ("5,2", 5), ("", 8), ("0", 8), ("x", 8)])
def test_user_decides(text: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert choose_threads(1, 100 * WORK_PER_THREAD) == threads


def test_torchrun_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose_threads(2) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(2) == 2


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, 2),
        ({"a/b/cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "300000 100000\n"}, 3),  # in a container, only the root is there
        ({"a/b/cpu.cfs_quota_us": "400000\n", "a/b/cpu.cfs_period_us": "100000\n"}, 4),
        ({"a/b/cpu.cfs_quota_us": "-1\n", "a/b/cpu.cfs_period_us": "100000\n"}, 8),
        ({"a/b/cpu.max": "nonsense\n"}, 8),
    ],
)
def test_quota(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    folders = [*folders_around(tmp_path, "/a/b")]
    monkeypatch.setattr(cpu_threads, "group_folders", lambda controller: folders)
    assert usable_cores() == cores


def test_work_of_networks() -> None:
    config = make_config("model=mlp", "model.hidden_sizes=[64,64,64]")
    weights = 784 * 64 + 2 * 64 * 64 + 64 * 10
    found = dry_run(build_model(config), config.data).multiply_adds
    assert weights <= found <= weights + 3 * 64 + 10  # biases at most
    config = make_config("model=cnn")
    convolutions = 24**2 * 16 * 25 + 10**2 * 32 * 16 * 9 + 3**2 * 64 * 32 * 9
    linear = 3**2 * 64 * 10
    found = dry_run(build_model(config), config.data).multiply_adds
    assert found == convolutions + linear


@pytest.mark.usefixtures("no_pictures")
def test_continued_run_keeps_its_threads(small_root: Path, tmp_path: Path) -> None:
    run = [*RUN, f"data.root={small_root}", f"run_dir={tmp_path}", "trainer.epochs=1"]
    before = torch.get_num_threads()
    run_once([*run, "trainer.max_steps=1", "trainer.cpu_threads=2"])
    assert torch.get_num_threads() == 2
    run_once(run)  # a new run would take one
    assert torch.get_num_threads() == 2
    run_once([*run, "trainer.cpu_threads=3"])
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
