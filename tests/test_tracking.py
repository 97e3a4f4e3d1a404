"""A real wandb run, offline, read back with wandb's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_mnist.config import TrackingConfig, TrackingMode
from dist_mnist.errors import InputError
from dist_mnist.run import run
from dist_mnist.tracking import NoTracking, read_journal, start_tracking
from tests.helpers import SOLO, make_config


def inspect(path: Path, *options: str) -> str:
    """Read a run's records the way `wandb leet inspect` shows them to a user."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *options]
    shown = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    return shown.stdout


@pytest.fixture
def tracked_run(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    overrides = [
        "data=fashion_mnist",
        f"data.root={small_root}",
        f"run_dir={tmp_path / 'my_run'}",
        "data.validation_size=50",
        "trainer.global_batch_size=50",
        "trainer.epochs=2",
        "trainer.log_every_steps=2",
        "trainer.device=cpu",
    ]
    run(make_config(*overrides), SOLO)
    return tmp_path / "my_run", overrides


def histories(path: Path) -> list[dict[str, Any]]:
    """Return the history rows of a run's file, as dicts."""
    rows = []
    for text in inspect(path).splitlines():
        record = json.loads(text)
        if record.get("type") == "history":
            rows.append(record)
    return rows


def test_an_offline_run_holds_config_history_summary_and_pictures(
    tracked_run: tuple[Path, list[str]],
) -> None:
    run_dir, _ = tracked_run
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    summary = json.loads(inspect(file, "--summary"))
    raise SystemExit(json.dumps(summary)[:3000] + "\n\n" + inspect(file)[:3000])
