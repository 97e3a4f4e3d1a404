"""Writes the report of a run anew, or of several runs side by side."""

import logging
from dataclasses import dataclass
from pathlib import Path

from dist_mnist.commands.cli import command
from dist_mnist.config.errors import InputError
from dist_mnist.config.overrides import checked_path, in_home
from dist_mnist.distributed import launcher

logger = logging.getLogger(__name__)


@dataclass
class ReportConfig:
    """Of which runs, and where it goes; null is a place that fits."""

    runs: list[str]
    output: str | None

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError(
                "the run directory is missing: name one or several, as in `report outputs/RUN`."
            )
        rule = "it must be a file, or null for one beside the run"
        self.output = checked_path("output", self.output, rule)


def main() -> None:
    """Write a report, as the command line says."""
    command("report", ReportConfig, _report, words="runs")


def _report(config: ReportConfig) -> None:
    from dist_mnist.record.console import log_to_console
    from dist_mnist.record.files import write_atomically
    from dist_mnist.report.page import read_run, render

    is_main = launcher.place().rank == 0
    log_to_console(is_main)
    if not is_main:
        return
    directories = [_directory(run) for run in config.runs]
    fitting = directories[0] / "report.html" if len(directories) == 1 else Path("comparison.html")
    path = Path(config.output) if config.output else fitting
    write_atomically(path, render([read_run(directory) for directory in directories]).encode())
    logger.info("%d %s -> %s", len(directories), "run" if len(directories) == 1 else "runs", path)


def _directory(run: str) -> Path:
    if run != "latest":
        return Path(in_home(run))
    from dist_mnist.record.checkpoint import latest_run  # imports torch

    return latest_run()
