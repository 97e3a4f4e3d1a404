"""Training where a sandbox forbids system calls."""

import errno
import os
from pathlib import Path

import pytest

from tests.support.processes import run_ranks
from tests.support.runs import run_once


def run_without_memfd(code: int, ranks: list[int], overrides: list[str]) -> float:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    if int(os.environ["RANK"]) in ranks:
        setattr(os, "memfd_create", refuse)  # noqa: B010
    return run_once(overrides)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
@pytest.mark.parametrize("ranks", [[0, 1], [1]])
def test_no_shared_memory_falls_back_to_gloo(
    small_root: Path, tmp_path: Path, ranks: list[int]
) -> None:
    overrides = [
        *("data=fashion_mnist", f"data.root={small_root}", "data.validation_size=50"),
        *("model=linear", "trainer.max_steps=2", "trainer.device=cpu", f"run_dir={tmp_path}"),
        "trainer.timeout_seconds=20",
    ]
    accuracies = run_ranks(2, run_without_memfd, errno.EPERM, ranks, overrides)
    assert accuracies[0] == accuracies[1]
