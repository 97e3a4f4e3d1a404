"""The one exception whose message is written for the user."""


class InputError(Exception):
    """Something the user gave cannot be used: a value, a file, a folder, a device.

    Its message is one sentence with the key or the path, the value, and what to do. The command
    line prints it without a stack and exits with a non-zero status.
    """


class BuildError(InputError):
    """An allowed target could not be built; the reason is its `__cause__`."""


def require(condition: bool, key: str, value: object, rule: str) -> None:
    """Refuse a value of a key that breaks a rule.

    Raises:
        InputError: It does.
    """
    if not condition:
        raise InputError(f"{key}={value} is not allowed: {rule}.")


def one_line(error: BaseException | None) -> str:
    """Return an exception's message without line breaks, or its class name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
