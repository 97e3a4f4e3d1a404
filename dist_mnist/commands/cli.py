"""`python -m dist_mnist` and `dist-mnist`: where Hydra ends and where errors are told.

Hydra composes the config; from there on it is a checked dataclass. Whatever goes wrong is told
once, by one process, and the exit status is not 0. torch is imported once there is work for it,
so `--help` is quick.
"""

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import Config, build_config, register_schema
from dist_mnist.distributed import launcher as sweep
from dist_mnist.distributed import signals

SUCCEEDED = 0
FAILED = 1
PATIENCE_SECONDS = 2.0  # what torchrun needs, and more, to end the other ranks after one has failed


def main() -> None:
    """Train, as the command line says."""
    command("config", _train)


def command(config_name: str, task: Callable[[DictConfig], Any]) -> None:
    """Compose a config from `conf/` and the command line and hand it to a task.

    Args:
        config_name: The file in `conf/` to begin with, without its ending.
        task: What to do with the composed config.
    """
    register_schema()
    # Hydra then lets errors through to us instead of printing them, once for every rank.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    decorate = hydra.main(
        version_base="1.3", config_path=str(conf_folder()), config_name=config_name
    )
    _telling_errors(decorate(_telling_errors(task)))()
    _end(SUCCEEDED)


def conf_folder() -> Path:
    """Return `conf/`: inside the package where it was installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    return next(
        folder
        for folder in (package / "conf", package.parent / "conf")
        if (folder / "config.yaml").exists()
    )


def _telling_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that an exception in it is told and ends the process with a status."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except KeyboardInterrupt:  # where `signals` has not been installed
            _end(signals.INTERRUPTED)
        except Exception as error:
            _end(_tell(error))

    return wrapped


def _end(status: int) -> NoReturn:
    if "RANK" in os.environ:
        # torchrun must see it at once. An ordinary end could wait for ranks that are gone, or be
        # aborted by a thread of the process group that outlives the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _tell(error: Exception) -> int:
    """Print one sentence for what the user can mend, and a stack for what only we can.

    Most errors strike all ranks alike, and rank 0 speaks for them: the others wait until torchrun
    ends them. An error of one rank alone is told when nobody has ended it, and whoever only
    noticed that a rank was gone waits in the same way.

    Returns:
        The status to end with.
    """
    rank = int(os.environ.get("RANK", 0))
    speaker = f"[rank {rank}] " if "RANK" in os.environ else ""
    distributed = sys.modules.get(
        "dist_mnist.distributed.gradients"
    )  # absent before there were processes
    lost_contact = distributed is not None and distributed.is_lost_contact(error)
    # torchrun may have told this process to end before it noticed that another one is gone.
    if lost_contact and signals.requested():
        return signals.STOPPED
    if (rank != 0 or lost_contact) and signals.wait(PATIENCE_SECONDS):
        return signals.STOPPED
    if isinstance(error, (InputError, HydraException, OmegaConfBaseException)):
        print(f"{speaker}error: {_sentence(error)}", file=sys.stderr)
        if distributed is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            # What is wrong with the command line stays so: torchrun need not start us again.
            os.kill(os.getppid(), signal.SIGTERM)
    elif lost_contact:
        reason = one_line(error)[:300]
        print(f"{speaker}error: lost contact with another process ({reason}).", file=sys.stderr)
    else:
        stack = "".join(traceback.format_exception(error))
        print(f"{speaker}{stack}", file=sys.stderr)
    return FAILED


def _sentence(error: BaseException) -> str:
    """Return an error in one line; of Hydra's, the override and what OmegaConf made of it."""
    if isinstance(error, InputError):
        return one_line(error)
    text = str(error).partition("\nConfig search path")[0].replace("\n\nAvailable", "; available")
    reason = str(error.__cause__ or "").split("\n")[0]
    if reason:
        text = f"{text.splitlines()[0].rstrip('.')}: {reason}"
    return f"{' '.join(text.split())} (`--cfg job` prints every key and its value)"


def _train(composed: DictConfig) -> None:
    config = build_config(composed)
    job = HydraConfig.get()
    if job.mode is RunMode.MULTIRUN:
        config.run_dir = _sweep_directory(config, job)
    with sweep.cluster_job() if sweep.is_cluster_job() else nullcontext():
        _run(config, job)


def _run(config: Config, job: Any) -> None:
    from dist_mnist.commands.train import run
    from dist_mnist.distributed.gradients import session
    from dist_mnist.record.console import log_to_console

    with session(config.trainer.device, config.trainer.timeout_seconds) as world:
        is_sweep = job.mode is RunMode.MULTIRUN and not sweep.is_cluster_job()
        if is_sweep and world.size > 1:
            raise InputError(
                "--multirun cannot be used with several processes: run the sweep with "
                "`python -m dist_mnist --multirun`, or start one torchrun for each of its jobs."
            )
        log_to_console(world.is_main)
        run(config, world, overrides=job.overrides.task)


def _sweep_directory(config: Config, job: Any) -> str:
    """Return a directory of its own for this job of a sweep."""
    return str(Path(config.run_dir, str(job.job.num)) if config.run_dir else job.runtime.output_dir)
