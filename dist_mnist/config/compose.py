"""From `conf/` and overrides to a checked config, on the command line and in a notebook."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from threading import Lock
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from hydra.version import VersionBase
from omegaconf.errors import OmegaConfBaseException

from dist_mnist.config.errors import InputError
from dist_mnist.config.keys import unknown_key_sentence
from dist_mnist.config.overrides import as_text, expand_home, quoting_hint, refuse_hydra_folder
from dist_mnist.config.schema import Config, build_config

HYDRAS: Any = (GlobalHydra, VersionBase)  # Hydra's global objects
GROUPS = "data|model|loss|optimizer|scheduler|augmentation|trainer|tracking"
EMPTY_CHOICE = re.compile(rf"\+*({GROUPS})=(null)?")
_composing = Lock()


def conf_folder() -> Path:
    """Return `conf/`: inside the package if it was installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    folders = (package / "conf", package.parent / "conf")
    return next(folder for folder in folders if (folder / "train.yaml").exists())


def register_schema(name: str, schema: type) -> None:
    """Register a dataclass with Hydra as `<name>_schema`, with which `conf/<name>.yaml` begins."""
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def compose_config(*overrides: str) -> Config:
    """Compose a training's config as the command line would, for notebooks and scripts.

    Args:
        *overrides: As on the command line, such as "model=mlp" or "trainer.epochs=2".

    Raises:
        InputError: A key is unknown, or a value is not allowed.
    """
    given = prepare_overrides(overrides)
    try:
        with (
            _apart_from_other_hydras(),
            initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())),
        ):
            register_schema("train", Config)
            return build_config(compose("train", overrides=given))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(hydra_sentence(error)) from error


@contextmanager
def _apart_from_other_hydras() -> Iterator[None]:
    """Give this thread Hydra's global objects for itself, then put the others' back.

    The caller may be a Hydra application, or several threads.
    """
    with _composing:
        store, kept = ConfigStore.instance(), [kind.instance() for kind in HYDRAS]
        schemas = dict(store.repo)
        for kind, theirs in zip(HYDRAS, kept, strict=True):
            kind.set_instance(copy(theirs))
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            for kind, theirs in zip(HYDRAS, kept, strict=True):
                kind.set_instance(theirs)
            store.repo = schemas


def prepare_overrides(overrides: Sequence[str]) -> list[str]:
    """Return overrides for Hydra, with the home folder for a leading `~`, and numbers as names.

    Raises:
        InputError: A key is Hydra's own and would have no effect, or a group has no choice.
    """
    for override in overrides:
        refuse_hydra_folder(override)
        if EMPTY_CHOICE.fullmatch(override):
            raise InputError(f"{override} is not a choice: name a file of that folder in conf/.")
    return [expand_home(as_text(override)) for override in overrides]


def hydra_sentence(error: BaseException) -> str:
    """Return an error of Hydra's in one line: the override, and OmegaConf's reason."""
    if isinstance(error, OverrideParseException):
        return _grammar_sentence(error)
    unknown = unknown_key_sentence(error.__cause__) or unknown_key_sentence(error)
    if unknown:
        return unknown
    text = str(error).partition("\nConfig search path")[0].replace("\n\nAvailable", "; available")
    reason = str(error.__cause__ or "").split("\n")[0]
    if reason:
        text = f"{text.splitlines()[0].rstrip('.')}: {reason}"
    return f"{' '.join(text.split())} (`--cfg job` prints every key and its value)"


def _grammar_sentence(error: OverrideParseException) -> str:
    reason = " ".join(error.message.partition("\nSee https")[0].split())
    if reason.startswith("LexerNoViableAlt"):
        reason = "it has a special character"
    hint = quoting_hint(error.override)
    advice = f"if its value is text, quote it: {hint}" if hint else "check its brackets and quotes"
    return f"{error.override} cannot be read ({reason}): {advice}"
