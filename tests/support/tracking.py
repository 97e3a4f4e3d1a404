"""Runs that are tracked with wandb, without any training, and the files that wandb writes."""

from collections.abc import Sequence
from pathlib import Path

from dist_mnist.config.schema import TrackingConfig, TrackingMode
from dist_mnist.record.journal import Line
from dist_mnist.tracking.tracker import Tracker
from dist_mnist.tracking.wandb_run import start_tracking


def start(
    run_dir: Path, mode: str, lines: Sequence[Line] = (), project: str = "project"
) -> Tracker:
    """Start to track a run whose journal has these lines."""
    config = TrackingConfig(TrackingMode(mode), project, None, None, [])
    return start_tracking(config, run_dir, {}, lines)


def track(run_dir: Path, mode: str, lines: Sequence[Line], new: Sequence[Line]) -> None:
    """Go on from a journal with these lines, and finish."""
    tracker = start(run_dir, mode, lines)
    for line in new:
        tracker.log(line)
    tracker.finish(exit_code=0)


def numbers(lines: Sequence[Line]) -> list[int]:
    """Return the row numbers that lines of the journal should have in wandb."""
    return [3 * line["step"] + ["step", "epoch", "test"].index(line["kind"]) for line in lines]


def folders(run_dir: Path) -> list[str]:
    """Return the kinds of wandb's folders: `run`, which is online, or `offline-run`."""
    names = [path.name for path in run_dir.glob("wandb/*run-*-*")]
    return sorted(name.partition("-20")[0] for name in names)
