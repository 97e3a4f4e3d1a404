"""One launch, one run directory: chosen by rank 0, locked, and described by two YAML files."""

import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout
from omegaconf import OmegaConf

from dist_mnist.config.errors import InputError, PassingError, one_line
from dist_mnist.config.schema import Config, Resume
from dist_mnist.distributed.launcher import is_restart, launch_id
from dist_mnist.distributed.world import World, broadcast_object
from dist_mnist.record.files import write_atomically
from dist_mnist.record.locks import holder, lock

logger = logging.getLogger(__name__)

# The processes of a crashed launch need some seconds to end.
LOCK_PATIENCE_SECONDS = 10.0
# A restart may meet its own earlier processes: on a machine that lost the network, they wait for
# the others until their timeout. The restart gives up a little before its own.
SHARE_OF_TIMEOUT = 0.9


def choose_run_directory(config: Config, world: World) -> Path:
    """Return the directory of this run, the same on every rank.

    It is `run_dir` if the user gave one. Otherwise it is a new one, unless an earlier start of this
    launch made one: then the run continues there.
    """
    if config.run_dir is not None:
        return Path(config.run_dir)
    chosen = _launch_directory(Path("outputs")) if world.is_main else Path()
    return broadcast_object(world, chosen)


def _launch_directory(parent: Path) -> Path:
    name = launch_id() or secrets.token_hex(4)
    earlier = sorted(parent.glob(f"*_{name}"))
    return earlier[-1] if earlier else parent / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"


@contextmanager
def lock_run_directory(directory: Path, resume: Resume, timeout_seconds: float) -> Iterator[None]:
    """Create the directory if necessary and keep every other launch out of it.

    Only rank 0 may call this. The system frees the lock when this process ends, however it ends.

    Raises:
        InputError: Another launch is using the directory, it cannot be written, or `resume`
            does not allow a run, or a new one, there.
    """
    _check_resume(directory, resume)  # before anything is created there
    patience = SHARE_OF_TIMEOUT * timeout_seconds if is_restart() else LOCK_PATIENCE_SECONDS
    with _lock(directory, patience):
        _check_resume(directory, resume)  # another launch may have just ended there
        yield


def _lock(directory: Path, patience: float) -> AbstractContextManager[object]:
    path = directory / ".lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            return lock(path, timeout=0)
        except Timeout:
            logger.info(
                "run_dir=%s is in use by another launch, %s: waiting up to %d s",
                *(directory, holder(path), patience),
            )
            return lock(path, timeout=patience)
    except Timeout:
        raise PassingError(
            f"run_dir={directory} is in use by another launch, {holder(path)}: wait until it ends, "
            f"or choose another run_dir."
        ) from None
    except OSError as error:
        raise InputError(
            f"run_dir={directory} cannot be written ({error.strerror or one_line(error)}): "
            f"choose another run_dir."
        ) from error


def write_config(directory: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write the resolved config and the overrides from the command line.

    Raises:
        InputError: The directory cannot be written; its files are untouched.
    """
    _write_yaml(directory / "config.yaml", config)
    _write_yaml(directory / "overrides.yaml", list(overrides))


def _check_resume(directory: Path, resume: Resume) -> None:
    holds_run = any((directory / "checkpoints").glob("*.safetensors"))
    others = sorted(path.name for path in (directory / "checkpoints").glob("[!.]*"))
    if others and not holds_run:  # the run would start over and replace its journal
        raise InputError(
            f"run_dir={directory} holds checkpoints of another version or program, such as "
            f"{others[0]}: choose a new run_dir."
        )
    if holds_run and resume is Resume.never:
        raise InputError(
            f"run_dir={directory} already holds a run and resume=never: choose a new run_dir, "
            f"or set resume=auto to continue it."
        )
    if not holds_run and resume is Resume.must:
        raise InputError(
            f"run_dir={directory} holds no checkpoint and resume=must: check the path, "
            f"or set resume=auto to start a run there."
        )


def _write_yaml(path: Path, content: object) -> None:
    text = OmegaConf.to_yaml(OmegaConf.create(content))  # type: ignore[call-overload]
    write_atomically(path, text.encode())
