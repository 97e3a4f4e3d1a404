"""wandb's own command, as a user would type it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def wandb_command(*arguments: str, cwd: Path) -> str:
    """Run the wandb command as a user would and return its output."""
    command = [str(Path(sys.executable).with_name("wandb")), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


def inspect(path: Path, *options: str) -> str:
    """Read a run's records the way `wandb leet inspect` shows them to a user."""
    return wandb_command("leet", "inspect", "--json", *options, str(path), cwd=path.parent)


def history(file: Path) -> list[dict[str, Any]]:
    """Return the rows in a run's file."""
    records = [json.loads(text) for text in inspect(file).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def sync(run_dir: Path) -> None:
    """Upload a run directory's offline runs."""
    wandb_command("sync", *map(str, run_dir.glob("wandb/offline-run-*")), cwd=run_dir)
