"""wandb: what a run shows of itself beyond its own directory."""

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import TrackingConfig, TrackingMode
from dist_mnist.record.files import write_atomically
from dist_mnist.record.journal import Line
from dist_mnist.record.wandb_files import Held, read_run

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

SERVER_TIMEOUT_SECONDS = 20.0  # how long wandb looks for its server
# How long a run that is over waits for the upload: what a scheduler grants one that it stops,
# often 30 s, has to do for a checkpoint too.
UPLOAD_TIMEOUT_SECONDS = 8.0
FINISH_TIMEOUT_SECONDS = UPLOAD_TIMEOUT_SECONDS + 2.0
SEARCH_PATIENCE_SECONDS = 5.0  # of that, for a server that a short run has not found yet


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

    def finish(self, exit_code: int) -> None:
        """End the run; say where to see it, unless it failed."""


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

    def finish(self, exit_code: int) -> None:
        """Do nothing."""


class WandbRun:
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
        self._add(numbers, lambda: numbers, line["step"])
        if line["kind"] == "test":
            self._run.summary.update(numbers)

    def log_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Add pictures, under their file names."""
        import wandb

        named = {f"plots/{path.stem}": path for path in pictures}
        self._add(
            [*named, "step"],
            lambda: {key: wandb.Image(str(path)) for key, path in named.items()} | {"step": step},
            step,
        )

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
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

    def keep(self, checkpoint: Path) -> None:
        """Upload a checkpoint, where there is a server."""
        if not self._run.offline:
            self._run.log_artifact(str(checkpoint), name=f"model-{self._run.id}", type="model")

    def finish(self, exit_code: int) -> None:
        """End the run; say where to see it, unless it failed."""
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


class BackgroundTracker:
    """Another tracker on a thread of its own: training waits for neither its start nor its server.

    A mistake of the user's that shows at the start is raised by the next call. Whatever else goes
    wrong is told once, and the run goes on without: the journal has everything.

    Args:
        start: Returns the tracker.
        hurry: Lets a start that takes long come to its end; may have to be called again.
        abandon: Ends the tracker at once, whatever it is doing.
    """

    def __init__(
        self,
        start: Callable[[], Tracker],
        hurry: Callable[[], None] = lambda: None,
        abandon: Callable[[], None] = lambda: None,
    ) -> None:
        self._hurry, self._abandon = hurry, abandon
        self._mistake: InputError | None = None
        self._calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        # Not an executor's, which Python would wait for at its end however long that takes.
        self._thread = Thread(target=self._work, args=(start,), name="tracking", daemon=True)
        self._thread.start()

    def _work(self, start: Callable[[], Tracker]) -> None:
        tracker: Tracker = NoTracking()

        def begin(_: Tracker) -> None:
            nonlocal tracker
            tracker = start()

        call: Callable[[Tracker], None] | None = begin
        while call:
            try:
                call(tracker)
            except InputError as error:
                self._mistake = error
            except Exception as error:
                logger.warning(
                    "wandb failed, and training goes on without it; the next start with this "
                    "run_dir adds what is missing: %s: %s",
                    type(error).__name__,
                    one_line(error)[:300],
                )
                tracker = NoTracking()
                self._abandon()
            call = self._calls.get()

    def _call(self, function: Callable[[Tracker], None]) -> None:
        if self._mistake:
            raise self._mistake
        self._calls.put(function)

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

    def finish(self, exit_code: int) -> None:
        """End the run when all of it has been handed over, or `FINISH_TIMEOUT_SECONDS` later."""
        self._calls.put(lambda tracker: tracker.finish(exit_code))
        self._calls.put(None)
        began = time.monotonic()
        patience = SEARCH_PATIENCE_SECONDS if exit_code == 0 else 0.0
        while (
            self._thread.is_alive()
            and (waited := time.monotonic() - began) < FINISH_TIMEOUT_SECONDS
        ):
            if waited >= patience:
                self._hurry()
            self._thread.join(0.2)
        if self._thread.is_alive():
            logger.warning(
                "wandb has not ended within %g s and is left behind; the next start with this "
                "run_dir adds what is missing.",
                FINISH_TIMEOUT_SECONDS,
            )
            self._abandon()
        if self._mistake and exit_code == 0:  # a run that failed has an error of its own to tell
            raise self._mistake


class ServerSearch:
    """Looking for wandb's server, which can be called off from another thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_on = self._is_off = False

    def look(self, start: Callable[[], "wandb.Run"]) -> "wandb.Run":
        """Return what a start returns.

        Raises:
            ConnectionError: The search was called off, before or meanwhile.
        """
        self._set(is_on=True)
        try:
            return start()
        finally:
            self._set(is_on=False)

    def _set(self, is_on: bool) -> None:
        with self._lock:
            self._is_on = is_on and not self._is_off
            if self._is_off:
                raise ConnectionError("the run ended before the server had answered")

    def call_off(self) -> None:
        """End the search, if it has not ended and has a process by now; let none begin."""
        with self._lock:
            self._is_off = True
            if self._is_on:
                _kill_service()


def start_tracking(
    config: TrackingConfig, run_dir: Path, run_config: dict[str, Any], lines: Sequence[Line]
) -> Tracker:
    """Begin or continue this run directory's wandb run, in the background.

    Without a server the run is written offline.

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
        return NoTracking()
    run_id = _run_id(run_dir)
    # A silent server would keep the start waiting for the user's name, which wandb greets with,
    # and the end for wandb's reports about itself.
    os.environ["WANDB_SILENT"] = "true"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if mode == "online":
        _check(config, run_dir, run_id)
    search = ServerSearch()
    return BackgroundTracker(
        lambda: _start_wandb(mode, config, run_dir, run_id, run_config, lines, search),
        search.call_off,
        _end_service,
    )


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
        finish_timeout=UPLOAD_TIMEOUT_SECONDS,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=1.0,  # all that a crash can lose of its files
    )


def _start_wandb(
    mode: Literal["auto", "online", "offline"],
    config: TrackingConfig,
    run_dir: Path,
    run_id: str,
    run_config: dict[str, Any],
    lines: Sequence[Line],
    search: ServerSearch,
) -> Tracker:
    import wandb

    folder = run_dir / "wandb"
    held = read_run(folder, run_id)
    if held.latest_start > time.time():
        logger.warning(
            "The clock was set back since this run was last started, and `wandb sync` goes by it: "
            "upload the folders that %s has now before the new one.",
            folder,
        )

    def start(mode: Literal["online", "offline"]) -> wandb.Run:
        return wandb.init(settings=_settings(mode, config, run_dir, run_id), config=run_config)

    mistakes = (wandb.errors.UsageError, wandb.errors.AuthenticationError, ValueError)
    run = None
    try:
        if mode == "online" or (mode == "auto" and wandb.login(prompt=False, verify=False)):
            run = search.look(lambda: start("online"))
    except Exception as error:
        if mode == "online" and isinstance(error, mistakes):
            raise _mistake(mode, config, error) from error
        logger.warning(
            "wandb is written offline, for it has no server (%s); this uploads it later: %s",
            one_line(error)[:300],
            _sync_command(folder),
        )
        _end_service()  # it would keep the run's id for the run that never began
        read_run(folder, run_id)  # and its file would be in the way of `wandb sync`
    try:
        run = run or start("offline")
    except mistakes as error:
        raise _mistake(mode, config, error) from error
    if not run.offline:
        logger.info("wandb: %s", run.url)
    tracker = WandbRun(run, folder, held)
    for line in lines:
        tracker.log(line)
    return tracker


def _mistake(mode: str, config: TrackingConfig, error: Exception) -> InputError:
    return InputError(
        f"wandb cannot start with tracking.mode={mode} project={config.project} "
        f"entity={config.entity} name={config.name} tags={config.tags}: "
        f"{one_line(error)[:300]}; `wandb login` gives a key, tracking=offline needs none."
    )


def _sync_command(folder: Path) -> str:
    return f"wandb sync {folder}/offline-run-*"


def _kill_service() -> None:
    """Kill wandb's service process: asked to end, it would first wait for its server."""
    with suppress(Exception):  # there is no public way, and perhaps no process
        import wandb

        setup: Any = wandb.setup()
        process = setup._connection._proc._process
        process.kill()
        process.wait()


def _end_service() -> None:
    """End wandb's service process at once, and let wandb forget it."""
    _kill_service()
    with suppress(Exception, SystemExit):  # it complains that the process is gone
        import wandb

        wandb.teardown()


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
