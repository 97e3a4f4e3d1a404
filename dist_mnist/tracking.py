"""Where a run's numbers go: the journal on disk, and wandb.

The journal, `metrics.jsonl`, is the record; wandb and every picture can be made again from it.
"""

import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from dist_mnist.config import TrackingConfig, TrackingMode
from dist_mnist.errors import InputError, one_line

logger = logging.getLogger(__name__)

Line = Mapping[str, Any]

SERVER_TIMEOUT_SECONDS = 20.0  # the other ranks wait while wandb looks for its server


class Journal:
    """The file `metrics.jsonl`: one JSON object a line, only ever added to while a run lasts."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        """Add a line and hand it to the operating system."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def sync(self) -> None:
        """Put all lines on the disk, so that a checkpoint never knows more than the journal."""
        os.fsync(self._file.fileno())

    def cut_back(self, step: int, finished_epochs: int) -> None:
        """Drop what a run that continues from a checkpoint will write again.

        Args:
            step: The checkpoint's step; later step lines go.
            finished_epochs: The epochs that were finished by then; later epoch lines go.
        """
        self._file.close()
        kept = [
            line
            for line in read_journal(self.path)
            if (line["kind"] == "step" and line["step"] <= step)
            or (line["kind"] == "epoch" and line["epoch"] <= finished_epochs)
        ]
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the journal's lines; a last line that a crash tore off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if text.endswith("\n"):
            lines.append(json.loads(text))
    return lines


class Tracker(Protocol):
    """What the loop tells wandb; `start_tracking` returns the run or its null object."""

    def log(self, line: Line) -> None:
        """Add the numbers of one line of the journal, at the line's step."""

    def log_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Add pictures, under their file names."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Add a table; a cell that is a uint8 tensor of shape (H, W) becomes a picture."""

    def keep(self, checkpoint: Path) -> None:
        """Upload a checkpoint, where there is a server."""

    def how_to_look(self) -> str:
        """Return where to see the run, for a person."""

    def finish(self, exit_code: int) -> None:
        """End the run."""


class NoTracking:
    """The null object: takes everything, keeps nothing."""

    def log(self, line: Line) -> None:
        """Do nothing."""

    def log_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Do nothing."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Do nothing."""

    def keep(self, checkpoint: Path) -> None:
        """Do nothing."""

    def how_to_look(self) -> str:
        """Return an empty line."""
        return ""

    def finish(self, exit_code: int) -> None:
        """Do nothing."""


class WandbRun:
    """A wandb run, with our global step as the axis of every chart."""

    def __init__(self, run: Any, folder: Path) -> None:
        self._run = run
        self._folder = folder
        run.define_metric("*", step_metric="step")

    def log(self, line: Line) -> None:
        """Add the numbers of one line of the journal, at the line's step."""
        numbers = {key: value for key, value in line.items() if isinstance(value, (int, float))}
        if line["kind"] == "step":  # a chart of its own beside that of the epochs
            numbers = {
                f"{key}_step" if key.startswith("train/") else key: value
                for key, value in numbers.items()
            }
        self._run.log(numbers)
        if line["kind"] == "test":
            self._run.summary.update(numbers)

    def log_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Add pictures, under their file names."""
        import wandb

        named = {f"plots/{path.stem}": wandb.Image(str(path)) for path in pictures}
        self._run.log({**named, "step": step})

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Add a table; a cell that is a uint8 tensor of shape (H, W) becomes a picture."""
        import torch
        import wandb

        def cell(value: Any) -> Any:
            return wandb.Image(value.numpy()) if isinstance(value, torch.Tensor) else value

        table = wandb.Table(
            columns=[*columns], data=[[cell(value) for value in row] for row in rows]
        )
        self._run.log({name: table, "step": step})

    def keep(self, checkpoint: Path) -> None:
        """Upload a checkpoint, where there is a server."""
        if not self._run.offline:
            self._run.log_artifact(str(checkpoint), name=f"model-{self._run.id}", type="model")

    def how_to_look(self) -> str:
        """Return the run's page, or the commands that show and upload it where there is none."""
        if not self._run.offline:
            return f"wandb: {self._run.url}"
        return (
            f"wandb, offline: wandb leet {self._folder}\n"
            f"or upload it:   wandb sync {self._folder}/offline-run-*"
        )

    def finish(self, exit_code: int) -> None:
        """End the run."""
        self._run.finish(exit_code=exit_code)


def start_tracking(config: TrackingConfig, run_dir: Path, run_config: dict[str, Any]) -> Tracker:
    """Begin or continue this run directory's wandb run.

    Raises:
        InputError: wandb cannot start in the mode that was asked for.
    """
    mode = _requested_mode(config.mode)
    if mode == "disabled":
        return NoTracking()
    import wandb

    def start(mode: Literal["online", "offline"]) -> Tracker:
        run = wandb.init(
            mode=mode,
            project=config.project,
            entity=config.entity,
            name=config.name or run_dir.resolve().name,
            tags=config.tags,
            dir=run_dir,
            id=_run_id(run_dir),
            resume="allow",
            config=run_config,
            settings=wandb.Settings(
                console="off",
                silent=mode == "offline",
                init_timeout=SERVER_TIMEOUT_SECONDS,
            ),
        )
        return WandbRun(run, run_dir / "wandb")

    failures = (wandb.errors.Error, ValueError)
    if mode == "auto":
        try:
            # Asks for nothing and contacts nobody: it looks whether this machine has a key.
            if wandb.login(prompt=False, verify=False):
                return start("online")
        except failures as error:
            logger.warning("wandb is written offline: %s", one_line(error))
            wandb.teardown()  # its service would keep the run's id for the run that never began
        mode = "offline"
    try:
        return start(mode)
    except failures as error:
        raise InputError(
            f"wandb cannot start with tracking.mode={mode} project={config.project} "
            f"entity={config.entity} name={config.name} tags={config.tags}: "
            f"{one_line(error)[:300]}; `wandb login` gives a key, tracking=offline needs none."
        ) from error


def _requested_mode(mode: TrackingMode) -> Literal["auto", "online", "offline", "disabled"]:
    """Return the mode that the config asks for, or that WANDB_MODE does where it leaves it open."""
    chosen = mode.value
    if chosen == "auto":
        chosen = os.environ.get("WANDB_MODE") or "auto"
    if chosen == "auto":
        return "auto"
    if chosen in ("online", "run"):
        return "online"
    if chosen in ("offline", "dryrun"):
        return "offline"
    if chosen == "disabled":
        return "disabled"
    raise InputError(f"WANDB_MODE={chosen} is none of online, offline and disabled.")


def _run_id(run_dir: Path) -> str:
    """Return the directory's wandb id, written down before wandb hears of it."""
    path = run_dir / "wandb_run_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()
