"""From `_target_` in a config to the object it names, for the targets that are allowed.

A checkpoint brings its config along, so a target is data from elsewhere: it may name a network or
a loss, never a function that does something else. What a target names is therefore held against
the kind of thing that is wanted, and where it was defined against the packages that are trusted.

Built here and not by `hydra.utils.instantiate`, which resolves interpolations once more and so
builds targets that were hidden in them from any check before it.
"""

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dist_mnist.config.errors import BuildError, InputError, one_line

TRUSTED_PACKAGES = ("torch", "torchvision", "dist_mnist")
# A class is known by its bases; a function could do anything, so these modules alone may offer one.
TRUSTED_FUNCTIONS = (
    "torchvision.models",
    "dist_mnist.models.networks",
    "dist_mnist.training.schedules",
)


def instantiate(
    key: str,
    config: Mapping[str, Any],
    kind: type,
    *args: object,
    trusted_modules: Sequence[str] = (),
    **kwargs: object,
) -> Any:
    """Build what `config["_target_"]` names, with the rest of the config as keyword arguments.

    As with Hydra, `_args_` gives positional arguments, and targets nested in either are built too.

    Args:
        key: Where the config stands, for messages, such as "model".
        config: The target and its arguments, in plain dicts, lists and scalars.
        kind: What every target must be a subclass of, or the result of a function an instance of.
        *args: Arguments to put first.
        trusted_modules: Modules that may be named beside torch, torchvision and dist_mnist.
        **kwargs: Arguments to add.

    Raises:
        BuildError: The target refuses its arguments.
        InputError: The target is missing, unknown or not allowed.
    """
    if "_target_" not in config:
        raise InputError(f"{key} has no _target_: name the class or function that builds it.")
    target = str(config["_target_"])
    call = _find(key, target, kind, tuple(trusted_modules))
    inner = partial(_build_nested, key, kind=kind, trusted_modules=trusted_modules)
    given = {name: inner(value) for name, value in config.items() if name != "_target_"}
    positional: Any = given.pop("_args_", [])
    try:
        built = call(*args, *positional, **{**given, **kwargs})
    except InputError:
        raise
    except Exception as error:
        shown = ", ".join(f"{key}.{name}={value}" for name, value in given.items())
        raise BuildError(f"{key} cannot be built ({shown}): {one_line(error)}.") from error
    if not isinstance(built, kind):
        raise InputError(f"{key}._target_={target} makes no {kind.__name__}.")
    return built


def find_function(
    key: str, config: Mapping[str, Any], trusted_modules: Sequence[str] = ()
) -> Callable[..., Any]:
    """Return the function that `config["_target_"]` names, with the rest of the config bound to it.

    Raises:
        InputError: The target is missing, unknown or not allowed.
    """
    if "_target_" not in config:
        raise InputError(f"{key} has no _target_: name the function.")
    function = _find(key, str(config["_target_"]), None, tuple(trusted_modules))
    return partial(function, **{n: value for n, value in config.items() if not n.startswith("_")})


def _build_nested(key: str, value: object, kind: type, trusted_modules: Sequence[str]) -> object:
    inner = partial(_build_nested, key, kind=kind, trusted_modules=trusted_modules)
    if isinstance(value, Mapping):
        if "_target_" in value:
            return instantiate(key, value, kind, trusted_modules=trusted_modules)
        return {name: inner(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [inner(part) for part in value]
    return value


def _find(
    key: str, target: str, kind: type | None, trusted_modules: tuple[str, ...]
) -> Callable[..., Any]:
    """Return the function that a target names, or its class if that is of the kind wanted."""
    refusal = f"{key}._target_={target} is not allowed"
    packages = TRUSTED_PACKAGES + trusted_modules
    if not _is_within(target, packages):
        raise InputError(
            f"{refusal}: it is in none of {', '.join(packages)}; "
            f"add its module to trusted_modules if it is yours."
        )
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:
        raise InputError(f"{key}._target_={target} cannot be found: {one_line(error)}.") from error
    home = getattr(found, "__module__", None) or ""
    if inspect.isclass(found):
        if kind is None or not (issubclass(found, kind) and _is_within(home, packages)):
            raise InputError(f"{refusal}: it is no {kind.__name__ if kind else 'function'}.")
    # A plain function and not, say, a method that is bound to an object of a trusted module.
    elif not (inspect.isfunction(found) and _is_within(home, TRUSTED_FUNCTIONS + trusted_modules)):
        raise InputError(f"{refusal}: it is neither a class nor a function of a trusted module.")
    return found  # type: ignore[no-any-return]


def _is_within(path: str, packages: Sequence[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)
