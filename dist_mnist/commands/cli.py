"""From the command line to one command: compose its config, run it, report an error once.

Hydra composes the config; from there on it is a checked dataclass. A command's module, and torch
with it, is imported when there is work for it, so `--help` is quick.
"""

import difflib
import functools
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dist_mnist.config import __version__
from dist_mnist.config.commands import COMMANDS
from dist_mnist.config.compose import (
    conf_folder,
    hydra_sentence,
    prepare_overrides,
    register_schema,
)
from dist_mnist.config.errors import InputError, PassingError, one_line
from dist_mnist.config.keys import require_known_keys
from dist_mnist.config.overrides import gather_words, refuse_hydra_folder
from dist_mnist.distributed import launcher, signals
from dist_mnist.distributed.launcher import LaunchError
from dist_mnist.record.files import FULL_DISK, READ_ONLY

# Hydra's options that only print.
PRINTING = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}

SUCCEEDED = 0
FAILED = 1
PATIENCE_SECONDS = 2.0  # more than torchrun needs to end the other ranks after one has failed


class ReportedError(Exception):
    """A command, or a job of a sweep, has failed, and the failure was reported when it happened."""


def run_command_line() -> None:
    """Run the command that `sys.argv` names, and end the process with its status."""
    _reporting_errors(_run)()
    _end(SUCCEEDED)


def _run() -> None:
    name = _take_command(sys.argv)
    command = COMMANDS[name]
    register_schema(name, command.schema)
    arguments = gather_words(command.words, sys.argv[1:]) if command.words else sys.argv[1:]
    sys.argv[1:] = prepare_overrides(arguments)
    # Otherwise Hydra prints errors itself, once for every rank.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def run(composed: DictConfig) -> float | None:
        settings = HydraConfig.get()
        if settings.run.dir != "." and settings.output_subdir is None:  # by a YAML file
            refuse_hydra_folder(f"hydra.run.dir={settings.run.dir}")
        require_known_keys(composed)
        config = OmegaConf.to_object(composed)
        # Hydra's optimizing sweepers maximize or minimize the result.
        return importlib.import_module(f"dist_mnist.commands.{name}").run(config)  # type: ignore[no-any-return]

    def run_job(composed: DictConfig) -> float | None:
        if HydraConfig.get().mode is not RunMode.MULTIRUN or not launcher.is_alone():
            return _reporting_errors(run)(composed)  # type: ignore[no-any-return]
        try:
            return run(composed)
        except Exception as error:  # the next job may be better
            if not isinstance(error, ReportedError):
                _report(error)
            signals.accept()
            raise ReportedError from error

    decorate = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)
    decorate(run_job)()


def _take_command(arguments: list[str]) -> str:
    """Remove the command from the arguments and return it; print the commands for `--help`."""
    first = arguments[1] if len(arguments) > 1 else ""
    if PRINTING & {*arguments}:  # the reader may go, as with `| head`
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if first in ("--help", "-h"):
        print(_usage())
    elif first == "--version":
        print(f"dist_mnist {__version__}")
        _end(SUCCEEDED)
    elif first in ("--shell-completion", "-sc") and not any("=" in word for word in arguments):
        raise InputError(f"{first} needs install=SHELL, uninstall=SHELL or query=SHELL.")
    if not first or first[0] in "-+~" or "=" in first:
        return "train"
    if first not in COMMANDS:
        nearest = difflib.get_close_matches(first, COMMANDS, n=1, cutoff=0.0)[0]
        raise InputError(
            f"{first} is not a command: did you mean {nearest}? The commands are "
            f"{', '.join(COMMANDS)}; everything else is key=value."
        )
    return arguments.pop(1)


def _usage() -> str:
    rows = [f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "python -m dist_mnist [COMMAND] key=value ...                           one process",
            "torchrun --standalone --nproc_per_node=4 -m dist_mnist [COMMAND] ...   four processes",
            "",
            "COMMAND is one of these; `COMMAND --help` lists its keys:",
            *rows,
            "",
        ]
    )


def _reporting_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that an exception in it is reported and ends the process."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except ReportedError:
            _end(FAILED)
        except KeyboardInterrupt:  # if signal handlers were not installed
            _end(signals.INTERRUPTED)
        except Exception as error:
            _end(_report(error))

    return wrapped


def _end(status: int) -> NoReturn:
    if "RANK" in os.environ:
        # torchrun must see it at once. A normal exit could wait for ranks that are gone, or be
        # aborted by a thread of the process group that outlives the interpreter.
        signals.end(status)
    sys.exit(status)


def _report(error: Exception) -> int:
    """Print one sentence for mistakes that the user can fix, and a stack for those of ours.

    Most errors happen on all ranks alike, and rank 0 reports them: the other ranks wait until
    torchrun ends them. An error of one rank alone is reported if torchrun has not ended that rank
    by then. A rank that only noticed that another one is gone waits in the same way.

    Returns:
        The exit status.
    """
    rank = os.environ.get("RANK", "").strip()  # unchecked: it may be the error
    session = sys.modules.get("dist_mnist.distributed.session")  # not imported before the work
    lost_contact = session is not None and session.is_lost_contact(error)
    # torchrun may have asked this process to end before it noticed that another one is gone.
    if lost_contact and signals.requested():
        return signals.STOPPED
    if isinstance(error, LaunchError) and error.rank != 0:
        signals.wait(PATIENCE_SECONDS)  # ending first, mpirun would end the one that reports it
        return FAILED
    if (rank not in ("", "0") or lost_contact) and signals.wait(PATIENCE_SECONDS):
        return signals.STOPPED
    speaker = f"[rank {rank}] " if rank else ""
    print(speaker + _message(error, lost_contact), file=sys.stderr)
    is_final = session is None or isinstance(error, InputError)
    if is_final and not isinstance(error, PassingError):
        _end_torchrun()
    return FAILED


def _end_torchrun() -> None:
    """End torchrun if it is this process's parent: it would start us again, in vain."""
    parent = Path(f"/proc/{os.getppid()}/cmdline")
    with suppress(OSError):  # no /proc
        if (
            os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
            and b"torch" in parent.read_bytes()
        ):
            os.kill(os.getppid(), signal.SIGTERM)


def _message(error: Exception, lost_contact: bool) -> str:
    if isinstance(error, InputError):
        return f"error: {one_line(error)}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return f"error: {hydra_sentence(error)}"
    if isinstance(error, OSError) and error.errno in READ_ONLY and error.filename:
        return (
            f"error: {error.filename} cannot be written ({error.strerror}): start from another "
            f"folder, or name one with run_dir, data.root or hydra.sweep.dir."
        )
    if isinstance(error, OSError) and (error.filename or error.errno in FULL_DISK):
        return f"error: {error.filename or 'standard output'} cannot be used: {error.strerror}."
    if lost_contact:
        return f"error: lost contact with another process ({one_line(error)})."
    return "".join(traceback.format_exception(error))
