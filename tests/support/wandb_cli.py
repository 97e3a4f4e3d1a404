"""wandb's own command, as a user would type it."""

import subprocess
import sys
from pathlib import Path


def wandb_command(*arguments: str, cwd: Path) -> str:
    """Run wandb's own command as a user would and return what it printed."""
    command = [str(Path(sys.executable).with_name("wandb")), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


def inspect(path: Path, *options: str) -> str:
    """Read a run's records the way `wandb leet inspect` shows them to a user."""
    return wandb_command("leet", "inspect", "--json", *options, str(path), cwd=path.parent)
