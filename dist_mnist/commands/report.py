"""Rewrites the report of a run, or writes a comparison of several runs."""

import logging
from pathlib import Path

from dist_mnist.config.commands import ReportConfig
from dist_mnist.config.overrides import in_home
from dist_mnist.distributed import launcher
from dist_mnist.record.checkpoint import latest_run
from dist_mnist.record.console import log_to_console
from dist_mnist.record.files import write_atomically
from dist_mnist.report.page import read_run, render

logger = logging.getLogger(__name__)


def run(config: ReportConfig) -> None:
    """Write the page and say where it is; rank 0 alone does it."""
    is_main = launcher.place().rank == 0
    log_to_console(is_main)
    if not is_main:
        return
    folders = [latest_run() if name == "latest" else Path(in_home(name)) for name in config.runs]
    default = folders[0] / "report.html" if len(folders) == 1 else Path("comparison.html")
    path = Path(config.output) if config.output else default
    write_atomically(path, render([read_run(folder) for folder in folders]).encode())
    logger.info("%d %s -> %s", len(folders), "run" if len(folders) == 1 else "runs", path)
