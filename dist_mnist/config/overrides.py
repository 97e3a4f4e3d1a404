"""Overrides (`key=value`) on the command line: quoting, words, and the home folder."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from dist_mnist.config.errors import InputError, require

P = TypeVar("P", str, "str | None")

KEY = r"[+~]*[A-Za-z][\w./@-]*"
# Text that needs no quotes, in Hydra or in a shell.
PLAIN = re.compile(r"[\w./@%+:-]+", re.ASCII)
# What Hydra takes for a number or a truth value, though it may be a name.
NO_NAME = re.compile(
    r"true|false|nan|[-+]?inf|[-+]?([\d_]+\.?|[\d_]*\.[\d_]+)(e[-+]?[\d_]+)?",
    re.ASCII | re.IGNORECASE,
)
NAME_KEYS = r"(run_dir|data\.root|transfer\.checkpoint|checkpoint|output|save|tracking\.name)"
# Hydra's options whose value is the next argument.
OPTIONS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
)


def to_copy(key: str, value: str) -> str:
    """Return an override with the quotes that a shell and Hydra need."""
    if PLAIN.fullmatch(value) and not NO_NAME.fullmatch(value) and value != "null":
        return f"{key}={value}"
    return shlex.quote(f"{key}={_quoted(value)}")


def quoting_hint(override: str) -> str | None:
    """Return an override that Hydra cannot parse with quotes that may help, for a shell.

    None if its value is not text: a list, an unclosed quote, or nothing.
    """
    key, _, value = override.partition("=")
    if not value or value[0] in "[{('\"" or not re.fullmatch(KEY, key, re.ASCII):
        return None
    return shlex.quote(f"{key}={_quoted(value)}")


def _quoted(value: str) -> str:
    """Return a value in quotes, for Hydra and OmegaConf to read as it is.

    Backslashes count as escapes before a quote, at the end, and before an interpolation.
    """
    escaped = re.sub(r'(\\*)("|\$\{)', r"\1\1\\\2", value)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'


def gather_words(key: str, arguments: Sequence[str]) -> list[str]:
    """Return arguments with plain words, such as paths, collected as the value of a key.

    With the key `runs`, `a b output=c` becomes `output=c runs=["a","b"]`. A `-` alone and the name
    of an existing file are words too.
    """
    words: list[str] = []
    others: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_option = argument.startswith("-") and argument != "-" and not _exists(argument)
        is_override = re.match(f"{KEY}=", argument, re.ASCII) and not _exists(argument)
        is_word = not is_option and not is_override and before not in OPTIONS_WITH_VALUE
        (words if is_word else others).append(argument)
    return [*others, f"{key}=[{','.join(map(_quoted, words))}]"] if words else others


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a path
        return False


def in_home(path: str) -> str:
    """Return a path with the home folder for a leading `~`, if there is one."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path


def checked_path(key: str, path: P, rule: str) -> P:
    """Return the path in a key, with the home folder for a leading `~`.

    Raises:
        InputError: It is blank, for example because a shell variable is not set.
    """
    if path is None:
        return path
    require(path.strip() != "", key, path, rule)
    return in_home(path)


def as_text(override: str) -> str:
    """Return `run_dir=2026_11`, or a sweep of such, with quotes around the number: it is a name."""
    key, _, value = override.partition("=")
    if not re.fullmatch(rf"\+*{NAME_KEYS}", key):
        return override
    names = (_quoted(name) if NO_NAME.fullmatch(name) else name for name in value.split(","))
    return f"{key}={','.join(names)}"


def expand_home(override: str) -> str:
    """Return `key=~/folder` with the home folder, since not every shell expands it."""
    match = re.fullmatch(rf"({KEY}=)(~[^/,]*)(.*)", override, re.ASCII | re.DOTALL)
    if match is None:
        return override
    key, tilde, rest = match.groups()
    home = in_home(tilde)
    if home == tilde:
        return override
    return f"{key}{home}{rest}" if PLAIN.fullmatch(home) else f"{key}{_quoted(home + rest)}"


def refuse_hydra_folder(override: str) -> None:
    """Refuse Hydra's own key for a run's folder, which would be ignored.

    Raises:
        InputError: It is that key.
    """
    key, _, value = override.lstrip("+").partition("=")
    if key == "hydra.run.dir":
        raise InputError(
            f"hydra.run.dir={value} is not used, since Hydra writes nothing: set "
            f"{to_copy('run_dir', value)} to choose the folder of a run."
        )
