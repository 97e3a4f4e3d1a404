"""wandb's own variables (WANDB_PROJECT and so on), and the id of a run directory's run.

A variable beats a default, never what the config says. What a run directory has written down beats
both: its run stays the same.
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

_used_ids: dict[str, Path] = {}  # of WANDB_RUN_ID in this process, and the directories they went to


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _tags() -> list[str]:
    return [tag.strip() for tag in _variable("WANDB_TAGS").split(",") if tag.strip()]


def _tidy() -> None:
    """Remove empty variables and empty tags: wandb itself would refuse to start."""
    if "WANDB_TAGS" in os.environ:
        os.environ["WANDB_TAGS"] = ",".join(_tags())
    for name in [name for name in os.environ if name.startswith("WANDB_") and not _variable(name)]:
        del os.environ[name]


def complete(config: TrackingConfig) -> TrackingConfig:
    """Return the config with wandb's variables in place of what it leaves open."""
    _tidy()
    return replace(
        config,
        project=config.project or _variable("WANDB_PROJECT") or PROJECT,
        entity=config.entity or _variable("WANDB_ENTITY") or None,
        name=config.name or _variable("WANDB_NAME") or None,
        tags=_tags() if config.tags is None else config.tags,
    )


def folder(run_dir: Path) -> Path:
    """Return the folder in which wandb makes its own, `wandb`."""
    return Path(_variable("WANDB_DIR") or run_dir)


def requested_mode(mode: TrackingMode) -> TrackingMode:
    """Return the mode that the config asks for; WANDB_MODE decides if the config leaves it open.

    Raises:
        InputError: WANDB_MODE is unknown to wandb.
    """
    if mode is not TrackingMode.auto:
        return mode
    chosen = os.environ.get("WANDB_MODE", "")
    try:
        return TrackingMode(MODES.get(chosen, chosen))
    except ValueError:
        raise InputError(f"WANDB_MODE={chosen} is none of online, offline and disabled.") from None


def resume_policy(run_dir: Path) -> ResumePolicy:
    """Return what wandb must find on its server; WANDB_RESUME decides at a directory's first start.

    Later starts of the directory continue its run, whatever the variable says.
    """
    chosen = _variable("WANDB_RESUME")
    if (run_dir / "wandb_run_id").exists():
        return "allow"
    return "must" if chosen == "must" else "never" if chosen == "never" else "allow"


def run_id(run_dir: Path) -> str:
    """Return the directory's wandb id, written down before wandb hears of it.

    WANDB_RUN_ID is the id of a directory that has none, once in a process: two directories are two
    runs. In a sweep, wandb takes it in any case.

    Raises:
        InputError: WANDB_RUN_ID is no id of wandb's, or a trial's that holds another run.
    """
    chosen = _variable("WANDB_RUN_ID")
    if chosen and not _is_id(chosen):
        raise InputError(
            f"WANDB_RUN_ID={chosen} is no id: use up to 64 letters, digits, - and _, or unset it."
        )
    if chosen and _variable("WANDB_SWEEP_ID"):
        if not _take(chosen, run_dir):
            raise InputError(
                f"WANDB_RUN_ID={chosen}, a trial of `wandb agent`, has room for one training: "
                f"leave out --multirun."
            )
        write_run_id(run_dir, chosen)
        return chosen
    path = run_dir / "wandb_run_id"
    with suppress(FileNotFoundError):
        earlier = path.read_text(encoding="utf-8", errors="replace").strip()
        if _is_id(earlier):
            return earlier
    # A damaged one is still in the names of wandb's own files.
    known = {file.stem.removeprefix("run-") for file in run_dir.glob("wandb/*run-*/run-*.wandb")}
    if len(known) == 1:
        found = known.pop()
    elif chosen and _take(chosen, run_dir):
        found = chosen
    else:
        found = secrets.token_hex(4)
    write_run_id(run_dir, found)
    return found


def _take(run_id: str, run_dir: Path) -> bool:
    """Return whether an id is this directory's: it goes to the first one in a process."""
    return _used_ids.setdefault(run_id, run_dir.resolve()) == run_dir.resolve()


def write_run_id(run_dir: Path, run_id: str) -> None:
    """Write down the directory's wandb id: later starts continue that run."""
    path = run_dir / "wandb_run_id"
    if not path.exists() or path.read_bytes() != run_id.encode():
        write_atomically(path, run_id.encode())


def _is_id(text: str) -> bool:
    return bool(re.fullmatch(r"[\w-]{1,64}", text, re.ASCII))
