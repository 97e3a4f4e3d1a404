"""The one exception whose message is written for the user, and how other errors become one."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

ESCAPE_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # of a terminal, such as a color
LONGEST_REASON = 300  # characters of a message that is not ours


class InputError(Exception):
    """Something the user gave cannot be used: a value, a file, a folder, a device.

    Its message is one sentence with the key or the path, the value, and what to do. The command
    line prints it without a stack and exits with a non-zero status.
    """


class PassingError(InputError):
    """An error that may pass: another start of the same command may succeed."""


class BuildError(InputError):
    """An allowed target could not be built; the reason is its `__cause__`."""


def require(condition: bool, key: str, value: object, rule: str) -> None:
    """Refuse a value of a key that breaks a rule.

    Raises:
        InputError: The condition is false.
    """
    if not condition:
        raise InputError(f"{key}={value} is not allowed: {rule}.")


@contextmanager
def refusing(sentence: str, advice: str = "") -> Iterator[None]:
    """Turn every exception inside into an `InputError`: "<sentence>: <its message><advice>.".

    An `InputError` passes unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{sentence}: {one_line(error).rstrip('.')}{advice}.") from error


def one_line(error: BaseException | None) -> str:
    """Return an exception's message, or its class, without line breaks and codes of a terminal.

    A message that is not ours is cut to 300 characters.
    """
    words = ESCAPE_CODE.sub("", str(error)).split()
    text = "".join(c for c in " ".join(words) if c.isprintable()) or type(error).__name__
    is_short = isinstance(error, InputError) or len(text) <= LONGEST_REASON
    return text if is_short else f"{text[: LONGEST_REASON - 6].rsplit(' ', 1)[0]} [...]"
