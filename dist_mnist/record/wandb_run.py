"""wandb: what a run shows of itself beyond its own directory."""

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import TrackingConfig, TrackingMode
from dist_mnist.record import tracker
from dist_mnist.record.files import write_atomically
from dist_mnist.record.journal import Line
from dist_mnist.record.tracker import NO_MEDIA, BackgroundTracker, Media, Table, Tracker
from dist_mnist.record.wandb_files import Held, read_run
from dist_mnist.record.wandb_service import ServerSearch, end_service

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

SERVER_TIMEOUT_SECONDS = 20.0  # how long wandb looks for its server


class WandbRun(Tracker):
    """A wandb run, with our global step as the axis of every chart.

    Every row gets a number of its own, which goes on where the earlier starts of the same run
    directory left off; a row that the run has already is left out.

    Args:
        run: What `wandb.init` returned.
        folder: Where wandb keeps the directory's runs.
        held: What the run has already.
    """

    def __init__(self, run: "wandb.Run", folder: Path, held: Held) -> None:
        self._run = run
        self._files = folder / Path(run.dir).parent.name
        self._held = held
        run.define_metric("*", step_metric="step")

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:  # noqa: D102
        numbers = {key: value for key, value in line.items() if isinstance(value, (int, float))}
        if line["kind"] == "test":  # not one more epoch's in the chart of the epochs
            numbers["test/seconds"] = numbers.pop("seconds")
        if line["kind"] == "step":  # a chart of its own beside that of the epochs
            numbers = {
                f"{key}_step" if key.startswith("train/") else key: value
                for key, value in numbers.items()
            }
        self._add(numbers, lambda: numbers, line["step"])
        if line["kind"] == "test":
            self._run.summary.update(numbers)
        pictures = [value for value in media.values() if isinstance(value, Path)]
        if pictures:
            self._log_pictures(pictures, line["step"])
        for name, value in media.items():
            if isinstance(value, Table):
                self._log_table(name, *value, line["step"])

    def _log_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Add pictures, under their file names."""
        import wandb

        named = {f"plots/{path.stem}": path for path in pictures}
        self._add(
            [*named, "step"],
            lambda: {key: wandb.Image(str(path)) for key, path in named.items()} | {"step": step},
            step,
        )

    def _log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Add a table; a cell that is a uint8 tensor of shape (H, W) becomes a picture."""
        import torch
        import wandb

        def cell(value: Any) -> Any:
            return wandb.Image(value.numpy()) if isinstance(value, torch.Tensor) else value

        def table() -> dict[str, Any]:
            data = [[cell(value) for value in row] for row in rows]
            return {name: wandb.Table(columns=[*columns], data=data), "step": step}

        self._add([name, "step"], table, step)

    def _add(self, keys: Iterable[str], row: Callable[[], dict[str, Any]], step: int) -> None:
        if self._held.has(keys, step):
            return
        number = self._held.next_row
        self._held.add(number, keys, step)
        # The server may have rows that a machine lost before they were in its files.
        if number >= self._run.starting_step:
            self._run.log(row(), step=number, commit=True)

    def keep(self, checkpoint: Path) -> None:  # noqa: D102
        if not self._run.offline:
            self._run.log_artifact(str(checkpoint), name=f"model-{self._run.id}", type="model")

    def finish(self, exit_code: int) -> None:  # noqa: D102
        url = "" if self._run.offline else self._run.url  # not known afterwards
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            logger.warning(
                "wandb's upload is not finished; this does the rest: "
                "wandb sync --include-online %s",
                self._files,
            )
            return
        if exit_code == 0 and url:
            logger.info("wandb: %s", url)
        elif exit_code == 0:
            folder = self._files.parent
            logger.info("wandb, offline: wandb leet %s", folder)
            logger.info("or upload it:   %s", _sync_command(folder))


def start_tracking(
    config: TrackingConfig, run_dir: Path, run_config: dict[str, Any], lines: Sequence[Line]
) -> Tracker:
    """Begin or continue this run directory's wandb run, in the background; offline if need be.

    Args:
        config: What the user chose.
        run_dir: The run directory; nobody else may be writing to it.
        run_config: What wandb is to show as the run's config.
        lines: The journal so far; wandb gets those that it lacks.

    Raises:
        InputError: WANDB_MODE is none that wandb knows; or, with tracking=online, there is no key
            or wandb refuses a name. What wandb refuses later is raised by the next call.
    """
    mode = _requested_mode(config.mode)
    if mode == "disabled":
        return Tracker()
    run_id = _run_id(run_dir)
    # Otherwise a silent server delays the start (whom to greet) and the end (wandb's own reports).
    os.environ["WANDB_SILENT"] = "true"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if mode == "online":
        _check(config, run_dir, run_id)
    folder, search = run_dir / "wandb", ServerSearch()

    def begin(mode: Literal["online", "offline"]) -> "wandb.Run":
        import wandb

        return wandb.init(settings=_settings(mode, config, run_dir, run_id), config=run_config)

    def start() -> Tracker:
        held = read_run(folder, run_id)
        _warn_of_clock(held, folder)
        run = WandbRun(_begin(begin, mode, config, folder, run_id, search), folder, held)
        for line in lines:
            run.log(line)
        return run

    return BackgroundTracker(start, search.call_off, end_service)


def _check(config: TrackingConfig, run_dir: Path, run_id: str) -> None:
    """Find the mistakes that need no server: whoever insists on one is told of them at once."""
    import wandb

    try:
        _settings("online", config, run_dir, run_id)
        # Asks for nothing and contacts nobody: it looks whether this machine has a key.
        if not wandb.login(prompt=False, verify=False):
            raise wandb.errors.UsageError("there is no key")
    except (wandb.errors.Error, ValueError) as error:
        raise _mistake("online", config, error) from error


def _settings(
    mode: Literal["online", "offline"], config: TrackingConfig, run_dir: Path, run_id: str
) -> "wandb.Settings":
    import wandb

    return wandb.Settings(
        mode=mode,
        project=config.project,
        entity=config.entity,
        run_name=config.name or run_dir.resolve().name,
        run_tags=tuple(config.tags),
        root_dir=str(run_dir),
        run_id=run_id,
        resume="allow",
        console="off",
        silent=True,
        reinit="create_new",  # never the run of an earlier job of a sweep
        init_timeout=SERVER_TIMEOUT_SECONDS,
        finish_timeout=tracker.UPLOAD_TIMEOUT_SECONDS,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=1.0,  # all that a crash can lose of its files
    )


def _begin(
    begin: Callable[[Literal["online", "offline"]], "wandb.Run"],
    mode: Literal["auto", "online", "offline"],
    config: TrackingConfig,
    folder: Path,
    run_id: str,
    search: ServerSearch,
) -> "wandb.Run":
    """Return a run that wandb has begun: online if wanted and possible, else offline."""
    import wandb

    mistakes = (wandb.errors.UsageError, wandb.errors.AuthenticationError, ValueError)
    run = None
    try:
        if mode == "online" or (mode == "auto" and wandb.login(prompt=False, verify=False)):
            run = search.look(lambda: begin("online"))
            logger.info("wandb: %s", run.url)
    except Exception as error:
        if mode == "online" and isinstance(error, mistakes):
            raise _mistake(mode, config, error) from error
        logger.warning(
            "wandb is written offline, because it has no server (%s); to upload it later: %s",
            *(one_line(error)[:300], _sync_command(folder)),
        )
        end_service()  # it would keep the id for the run that never began
        read_run(folder, run_id)  # and that run's file would be in the way of `wandb sync`
    try:
        return run or begin("offline")
    except mistakes as error:
        raise _mistake(mode, config, error) from error


def _warn_of_clock(held: Held, folder: Path) -> None:
    if held.latest_start > time.time():
        logger.warning(
            "The clock was set back since this run was last started, and `wandb sync` goes by it: "
            "upload the folders that %s has now before the new one.",
            folder,
        )


def _mistake(mode: str, config: TrackingConfig, error: Exception) -> InputError:
    return InputError(
        f"wandb cannot start with tracking.mode={mode} project={config.project} "
        f"entity={config.entity} name={config.name} tags={config.tags}: "
        f"{one_line(error)[:300]}; `wandb login` gives a key, tracking=offline needs none."
    )


def _sync_command(folder: Path) -> str:
    return f"wandb sync {folder}/offline-run-*"


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
    with suppress(FileNotFoundError):
        run_id = path.read_text(encoding="utf-8", errors="replace").strip()
        if re.fullmatch(r"[\w-]{1,64}", run_id, re.ASCII):
            return run_id
    # A damaged one is still in the names of wandb's own files.
    known = {file.stem.removeprefix("run-") for file in run_dir.glob("wandb/*run-*/run-*.wandb")}
    run_id = known.pop() if len(known) == 1 else secrets.token_hex(4)
    write_atomically(path, run_id.encode())
    return run_id
