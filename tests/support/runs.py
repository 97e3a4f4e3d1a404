"""Reads the files of a run, and compares two runs."""

from pathlib import Path
from typing import Any

import torch

from dist_mnist.distributed.session import session
from dist_mnist.record import checkpoint
from dist_mnist.record.journal import read_journal
from dist_mnist.training.run import run
from tests.support.configs import make_config

# The journal's keys that hold times, which differ between equal runs.
CLOCK = ("seconds", "images_per_second")


def result(run_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the last checkpoint and the journal, without the values that depend on the clock."""
    lines = [
        {key: value for key, value in line.items() if key not in CLOCK}
        for line in read_journal(run_dir / "metrics.jsonl")
    ]
    return checkpoint.load(run_dir / "checkpoints" / "last.safetensors"), lines


def assert_equal(a: Any, b: Any) -> None:
    """Compare nested containers, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_equal(left, right)
    else:
        assert a == b


def run_once(overrides: list[str]) -> float:
    """Train as the overrides say, in this process; return the accuracy on the test set."""
    config = make_config(*overrides)
    with session(config.trainer.device, timeout_seconds=60) as world:
        return run(config, world).test.accuracy
