"""What all commands share: compose the config, run, report an error once, end with a status.

Hydra composes the config; from there on it is a checked dataclass. torch is imported when there is
work for it, so `--help` is quick.
"""

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dist_mnist.config.compose import (
    conf_folder,
    hydra_sentence,
    prepare_overrides,
    register_schema,
)
from dist_mnist.config.errors import InputError, one_line
from dist_mnist.distributed import signals

SUCCEEDED = 0
FAILED = 1
PATIENCE_SECONDS = 2.0  # more than torchrun needs to end the other ranks after one has failed


def command(name: str, schema: type, task: Callable[[Any], None]) -> None:
    """Compose a config from `conf/<name>.yaml` and the command line, and hand it to a task.

    Args:
        name: The command.
        schema: The dataclass that the config is an instance of.
        task: The work.

    Raises:
        InputError: A key on the command line would have no effect.
    """
    register_schema(name, schema)
    sys.argv[1:] = prepare_overrides(sys.argv[1:])
    # Otherwise Hydra prints errors itself, once for every rank.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    @_reporting_errors
    def run_task(composed: DictConfig) -> None:
        task(OmegaConf.to_object(composed))

    decorate = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)
    _reporting_errors(decorate(run_task))()
    _end(SUCCEEDED)


def _reporting_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that an exception in it is reported and ends the process."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except KeyboardInterrupt:  # if signal handlers were not installed
            _end(signals.INTERRUPTED)
        except Exception as error:
            fail(error)

    return wrapped


def fail(error: Exception) -> NoReturn:
    """Report an error and end this process with a status that says so."""
    _end(_report(error))


def _end(status: int) -> NoReturn:
    if "RANK" in os.environ:
        # torchrun must see it at once. A normal exit could wait for ranks that are gone, or be
        # aborted by a thread of the process group that outlives the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _report(error: Exception) -> int:
    """Print one sentence for what the user can fix, and a stack for what only we can.

    Most errors happen on all ranks alike, and rank 0 reports them: the other ranks wait until
    torchrun ends them. An error of one rank alone is reported when nobody has ended that rank. A
    rank that only noticed that another one is gone waits in the same way.

    Returns:
        The exit status.
    """
    rank = int(os.environ.get("RANK", 0))
    session = sys.modules.get("dist_mnist.distributed.session")  # not imported before the work
    lost_contact = session is not None and session.is_lost_contact(error)
    # torchrun may have told this process to end before it noticed that another one is gone.
    if lost_contact and signals.requested():
        return signals.STOPPED
    if (rank != 0 or lost_contact) and signals.wait(PATIENCE_SECONDS):
        return signals.STOPPED
    speaker = f"[rank {rank}] " if "RANK" in os.environ else ""
    print(speaker + _message(error, lost_contact), file=sys.stderr)
    if session is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        # A mistake in the command line will not go away: torchrun need not start us again.
        os.kill(os.getppid(), signal.SIGTERM)
    return FAILED


def _message(error: Exception, lost_contact: bool) -> str:
    if isinstance(error, InputError):
        return f"error: {one_line(error)}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return f"error: {hydra_sentence(error)}"
    if lost_contact:
        return f"error: lost contact with another process ({one_line(error)[:300]})."
    return "".join(traceback.format_exception(error))
