"""Training where a sandbox forbids system calls."""

import errno
import os
from pathlib import Path

import pytest

from tests.support.processes import run_ranks
from tests.support.runs import run_once


def run_without_memfd(refusing_rank: str, overrides: list[str]) -> float:
    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if os.environ["RANK"] == refusing_rank:
        setattr(os, "memfd_create", refuse)  # noqa: B010
    return run_once(overrides)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_one_rank_without_shared_memory(small_root: Path, tmp_path: Path) -> None:
    overrides = [
        *("data=fashion_mnist", f"data.root={small_root}", "data.validation_size=50"),
        *("model=linear", "trainer.max_steps=2", "trainer.device=cpu", f"run_dir={tmp_path}"),
        "trainer.timeout_seconds=20",
    ]
    accuracies = run_ranks(2, run_without_memfd, "1", overrides)
    assert accuracies[0] == accuracies[1]
