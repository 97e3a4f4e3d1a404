"""The wandb run of a run directory.

Every start of a run directory continues the same wandb run. A row's number, wandb's `_step`, is
computed from its journal line, so a row that is logged again is the same row. Each start logs the
journal from its beginning:

- Online, wandb resumes the run, and rows that the server already has are skipped.
- Offline, the new folder replaces the earlier ones and holds the whole run. It does not ask for a
  resume, so `wandb sync` replaces the server's copy of the run.
"""

import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import TrackingConfig, TrackingMode
from dist_mnist.record.journal import Line
from dist_mnist.tracking import wandb_variables
from dist_mnist.tracking.tracker import NO_MEDIA, BackgroundTracker, Media, Table, Tracker, charts
from dist_mnist.tracking.wandb_variables import ResumePolicy

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

SERVER_TIMEOUT_SECONDS = 5.0  # how long a start looks for wandb's server
# How long the end waits for the upload; less than tracker.FINISH_TIMEOUT_SECONDS, so that wandb
# gives up first.
UPLOAD_TIMEOUT_SECONDS = 8.0

KINDS = ("step", "epoch", "test")  # of the lines of one step, in the journal's order


class WandbRun(Tracker):
    """A run in wandb, with our global step as the axis of every chart."""

    def __init__(self, run: "wandb.Run") -> None:
        self._run = run
        run.define_metric("*", step_metric="step")

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:  # noqa: D102
        number = len(KINDS) * line["step"] + KINDS.index(line["kind"])
        if number < self._run.starting_step:  # the server has this row
            return
        pictures = {key: _shown(value) for key, value in media.items()}
        row = {"step": line["step"], **dict(charts(line)), **pictures}
        self._run.log(row, step=number, commit=True)

    def keep(self, checkpoint: Path) -> None:  # noqa: D102
        if not self._run.offline:
            self._run.log_artifact(str(checkpoint), name=f"model-{self._run.id}", type="model")

    def finish(self, exit_code: int) -> None:  # noqa: D102
        folder = Path(self._run.dir).parents[1]
        url = None if self._run.offline else self._run.url  # unknown after the end
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            # `wandb sync --include-online` would repeat the rows that are uploaded already.
            logger.warning(
                "wandb's upload is not finished; the next start with this run_dir uploads the rest."
            )
            return
        if exit_code == 0 and url:
            logger.info("wandb: %s", url)
        elif exit_code == 0:
            logger.info("wandb, offline: wandb leet %s", shlex.quote(str(folder)))
            logger.info("or upload it:   %s", _sync_command(folder))


def _shown(value: Path | Table) -> Any:
    """Return wandb's object for a picture or a table."""
    import torch
    import wandb

    if isinstance(value, Path):
        return wandb.Image(str(value))
    rows = [
        [wandb.Image(cell.numpy()) if isinstance(cell, torch.Tensor) else cell for cell in row]
        for row in value.rows
    ]
    return wandb.Table(columns=[*value.columns], data=rows)


def start_tracking(
    config: TrackingConfig, run_dir: Path, run_config: dict[str, Any], lines: Sequence[Line]
) -> Tracker:
    """Begin or continue this run directory's wandb run, in the background.

    Without a server the run is written offline.

    Args:
        run_dir: The run directory, which this process has locked.

    Raises:
        InputError: WANDB_MODE or WANDB_RUN_ID cannot be used; or, with tracking=online, there is
            no key or wandb refuses a name. If wandb refuses one later, the tracker's next call
            raises it.
    """
    mode = wandb_variables.requested_mode(config.mode)
    if mode is TrackingMode.disabled:
        return Tracker()
    config = wandb_variables.complete(config)
    resume = wandb_variables.resume_policy(run_dir)
    run_id = wandb_variables.run_id(run_dir)
    # With a silent server, wandb's greeting would delay the start and its error reports the end.
    os.environ["WANDB_SILENT"] = "true"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if mode is TrackingMode.online:
        _check(config, run_dir, run_id, resume)

    def start() -> Tracker:
        run = _begin(mode, config, run_dir, run_id, resume, run_config)
        wandb_variables.write_run_id(run_dir, run.id)  # a sweep has its own
        tracker = WandbRun(run)
        for line in lines:
            tracker.log(line)
        return tracker

    return BackgroundTracker(start, _tear_down)


def _check(config: TrackingConfig, run_dir: Path, run_id: str, resume: ResumePolicy) -> None:
    """Raise an `InputError` for the mistakes that need no server to be found."""
    import wandb

    try:
        _settings("online", config, run_dir, run_id, resume)
        if not _has_key():
            raise wandb.errors.UsageError("there is no key")
    except (wandb.errors.Error, ValueError) as error:
        raise _mistake(config, error) from error


def _has_key() -> bool:
    """Return whether this machine has a key for wandb; no prompt, no network."""
    import wandb

    return wandb.login(prompt=False, verify=False)


def _settings(
    mode: Literal["online", "offline"],
    config: TrackingConfig,
    run_dir: Path,
    run_id: str,
    resume: ResumePolicy,
) -> "wandb.Settings":
    import wandb

    return wandb.Settings(
        mode=mode,
        project=config.project,
        entity=config.entity,
        run_name=config.name or run_dir.resolve().name,
        run_tags=tuple(config.tags or ()),
        root_dir=str(wandb_variables.folder(run_dir)),
        run_id=run_id,
        resume=resume if mode == "online" else "never",
        console="off",
        silent=True,
        reinit="create_new",  # not the run of an earlier job of a sweep
        init_timeout=SERVER_TIMEOUT_SECONDS,
        finish_timeout=UPLOAD_TIMEOUT_SECONDS,
        finish_timeout_raises=True,
    )


def _begin(
    mode: TrackingMode,
    config: TrackingConfig,
    run_dir: Path,
    run_id: str,
    resume: ResumePolicy,
    run_config: dict[str, Any],
) -> "wandb.Run":
    """Start a wandb run: online if wanted and possible, else offline."""
    import wandb

    def begin(mode: Literal["online", "offline"]) -> wandb.Run:
        return wandb.init(
            settings=_settings(mode, config, run_dir, run_id, resume), config=run_config
        )

    folder, run = wandb_variables.folder(run_dir) / "wandb", None
    earlier = _folders(folder, "run", run_id)
    mistakes = (wandb.errors.UsageError, wandb.errors.AuthenticationError, ValueError)
    try:
        if mode is TrackingMode.online or (mode is TrackingMode.auto and _has_key()):
            run = begin("online")
            logger.info("wandb: %s", run.url)
    except Exception as error:
        if mode is TrackingMode.online and isinstance(error, mistakes):
            raise _mistake(config, error) from error
        logger.warning(
            "wandb's server cannot be reached (%s), so the run is written offline; "
            "upload it later: %s",
            *(one_line(error), _sync_command(folder)),
        )
        _tear_down()  # otherwise wandb reserves the id for the run that failed to start
        _delete(_folders(folder, "run", run_id) - earlier)
    _delete(_folders(folder, "offline-run", run_id))
    try:
        return run or begin("offline")
    except mistakes as error:
        raise _mistake(config, error) from error


def _mistake(config: TrackingConfig, error: Exception) -> InputError:
    return InputError(
        f"wandb cannot start with tracking.mode={config.mode.value} project={config.project} "
        f"entity={config.entity} name={config.name} tags={config.tags}: "
        f"{one_line(error)}; `wandb login` gives a key, tracking=offline needs none."
    )


def _sync_command(folder: Path) -> str:
    return f"wandb sync {shlex.quote(str(folder))}/offline-run-*"


def _folders(parent: Path, kind: str, run_id: str) -> set[Path]:
    """Return wandb's folders of one run; with WANDB_DIR, other runs' folders are beside them."""
    return {
        path
        for path in parent.glob(f"{kind}-*-{run_id}*")
        if re.fullmatch(rf"{kind}-\d+_\d+-{re.escape(run_id)}", path.name)
        or (path / f"run-{run_id}.wandb").exists()
    }


def _delete(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _tear_down() -> None:
    """End wandb's service, and let Python exit without waiting for it."""
    import wandb

    with suppress(Exception, SystemExit):  # raised if the service is gone
        wandb.teardown()
