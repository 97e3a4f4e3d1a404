"""wandb's environment variables (WANDB_PROJECT and so on), and the id of a run directory's run.

A variable beats a default, never a value in the config. The id in a run directory beats both: the
directory stays one run.
"""

import os
import re
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dist_mnist.config.errors import InputError
from dist_mnist.config.schema import TrackingConfig, TrackingMode
from dist_mnist.record.files import write_atomically

PROJECT = "dist_mnist"
MODES = {"": "auto", "run": "online", "dryrun": "offline"}  # WANDB_MODE's other values

ResumePolicy = Literal["allow", "must", "never"]

_used_ids: dict[str, Path] = {}  # values of WANDB_RUN_ID in this process, and their directories


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def complete(config: TrackingConfig) -> TrackingConfig:
    """Return the config with wandb's variables for its null values.

    Empty variables and empty tags are removed from the environment: wandb would refuse to start.
    """
    tags = [tag.strip() for tag in _variable("WANDB_TAGS").split(",") if tag.strip()]
    os.environ["WANDB_TAGS"] = ",".join(tags)
    for name in [name for name in os.environ if name.startswith("WANDB_") and not _variable(name)]:
        del os.environ[name]
    return replace(
        config,
        project=config.project or _variable("WANDB_PROJECT") or PROJECT,
        entity=config.entity or _variable("WANDB_ENTITY") or None,
        name=config.name or _variable("WANDB_NAME") or None,
        tags=tags if config.tags is None else config.tags,
    )


def folder(run_dir: Path) -> Path:
    """Return the parent of wandb's folder `wandb`."""
    return Path(_variable("WANDB_DIR") or run_dir)


def requested_mode(mode: TrackingMode) -> TrackingMode:
    """Return the config's mode; WANDB_MODE decides if that is auto.

    Raises:
        InputError: WANDB_MODE is unknown to wandb.
    """
    if mode is not TrackingMode.auto:
        return mode
    chosen = os.environ.get("WANDB_MODE", "")
    try:
        return TrackingMode(MODES.get(chosen, chosen))
    except ValueError:
        raise InputError(f"WANDB_MODE={chosen} must be online, offline or disabled.") from None


def resume_policy(run_dir: Path) -> ResumePolicy:
    """Return wandb's resume mode: WANDB_RESUME at a directory's first start, later always allow."""
    chosen = _variable("WANDB_RESUME")
    if (run_dir / "wandb_run_id").exists():
        return "allow"
    return "must" if chosen == "must" else "never" if chosen == "never" else "allow"


def run_id(run_dir: Path) -> str:
    """Return the directory's wandb id, and write it down before wandb sees it.

    It is the trial's in a sweep, else the one in the directory, else WANDB_RUN_ID for the first
    directory in a process, else a random one.

    Raises:
        InputError: WANDB_RUN_ID is not a valid id, or this trial has trained another directory.
    """
    chosen = _variable("WANDB_RUN_ID")
    if chosen and not _is_id(chosen):
        raise InputError(
            f"WANDB_RUN_ID={chosen} is not a valid run id: use up to 64 letters, digits, - and _, "
            f"or unset it."
        )
    is_trial = bool(chosen and _variable("WANDB_SWEEP_ID"))
    with suppress(FileNotFoundError):
        text = (run_dir / "wandb_run_id").read_text(encoding="utf-8", errors="replace").strip()
        if _is_id(text) and not is_trial:
            return text
    directory = run_dir.resolve()
    is_free = bool(chosen) and _used_ids.setdefault(chosen, directory) == directory
    if is_trial and not is_free:
        raise InputError(
            f"WANDB_RUN_ID={chosen}, a trial of `wandb agent`, has room for one training: leave "
            f"out --multirun."
        )
    new_id = chosen if is_free else secrets.token_hex(4)
    write_run_id(run_dir, new_id)
    return new_id


def write_run_id(run_dir: Path, run_id: str) -> None:
    """Write down the directory's wandb id: later starts continue that run."""
    path = run_dir / "wandb_run_id"
    if not path.exists() or path.read_bytes() != run_id.encode():
        write_atomically(path, run_id.encode())


def _is_id(text: str) -> bool:
    return bool(re.fullmatch(r"[\w-]{1,64}", text, re.ASCII))
