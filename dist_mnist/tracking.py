"""wandb: what a run shows of itself beyond its own directory."""

import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from dist_mnist.config import TrackingConfig, TrackingMode
from dist_mnist.errors import InputError, one_line
from dist_mnist.journal import Line

logger = logging.getLogger(__name__)

SERVER_TIMEOUT_SECONDS = 20.0  # how long wandb looks for its server


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
        if line["kind"] == "test":  # not one more epoch's in the chart of the epochs
            numbers["test/seconds"] = numbers.pop("seconds")
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


class BackgroundTracker:
    """Another tracker on a thread of its own: training waits for neither its start nor its server.

    What goes wrong there is raised by the next call here.

    Args:
        start: Returns the tracker.
    """

    def __init__(self, start: Callable[[], Tracker]) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._tracker = self._thread.submit(start)
        self._calls: deque[Future[Any]] = deque([self._tracker])

    def _call(self, function: Callable[[Tracker], Any]) -> Future[Any]:
        while self._calls and self._calls[0].done():
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(lambda: function(self._tracker.result())))
        return self._calls[-1]

    def log(self, line: Line) -> None:
        """Add the numbers of one line of the journal, at the line's step."""
        self._call(lambda tracker: tracker.log(line))

    def log_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Add pictures, under their file names."""
        self._call(lambda tracker: tracker.log_pictures(pictures, step))

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Add a table; a cell that is a uint8 tensor of shape (H, W) becomes a picture."""
        self._call(lambda tracker: tracker.log_table(name, columns, rows, step))

    def keep(self, checkpoint: Path) -> None:
        """Upload a checkpoint, where there is a server."""
        self._call(lambda tracker: tracker.keep(checkpoint))

    def how_to_look(self) -> str:
        """Return where to see the run, once that is known."""
        return str(self._call(lambda tracker: tracker.how_to_look()).result())

    def finish(self, exit_code: int) -> None:
        """End the run, when all of it has been handed over; as failed, if any of that failed."""

        def end() -> None:
            failed = any(call.done() and call.exception() for call in earlier)
            self._tracker.result().finish(1 if failed else exit_code)

        earlier = list(self._calls)
        self._calls.append(self._thread.submit(end))
        # A run that failed has an error of its own to tell.
        with self._thread, suppress(Exception) if exit_code else nullcontext():
            for call in self._calls:
                call.result()


def start_tracking(config: TrackingConfig, run_dir: Path, run_config: dict[str, Any]) -> Tracker:
    """Begin or continue this run directory's wandb run, in the background.

    Raises:
        InputError: WANDB_MODE is none that wandb knows, or the server cannot be had with
            tracking=online. What goes wrong in the other modes is raised by a later call.
    """
    mode = _requested_mode(config.mode)
    if mode == "disabled":
        return NoTracking()
    tracker = BackgroundTracker(lambda: _start_wandb(mode, config, run_dir, run_config))
    if mode == "online":  # whoever insists on the server is told at once that there is none
        tracker.how_to_look()
    return tracker


def _start_wandb(
    mode: Literal["auto", "online", "offline"],
    config: TrackingConfig,
    run_dir: Path,
    run_config: dict[str, Any],
) -> Tracker:
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
