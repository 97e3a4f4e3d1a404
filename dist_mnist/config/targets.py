"""Builds the object that a `_target_` in a config names, if that target is allowed.

A checkpoint contains its config, so a target may come from anywhere. It may name a network or a
loss, but never a function that does something else: every target must be of the expected kind and
defined in a trusted package.

`hydra.utils.instantiate` would resolve interpolations a second time, and so build targets that were
hidden from every earlier check.
"""

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dist_mnist.config.errors import BuildError, InputError, one_line

TRUSTED_PACKAGES = ("torch", "torchvision", "dist_mnist")
# A class is checked by its bases. A function could do anything, so it must be in one of these.
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
    """Build the object that `config["_target_"]` names; the other keys are keyword arguments.

    As in Hydra, `_args_` holds positional arguments, and nested targets are built too.

    Args:
        key: The config's key, for messages, such as "model".
        config: The target and its arguments, in plain dicts, lists and scalars.
        kind: The base class that a target must have, or that a function must return.
        *args: Positional arguments to put first.
        trusted_modules: Modules that are allowed besides torch, torchvision and dist_mnist.
        **kwargs: Keyword arguments to add.

    Raises:
        BuildError: The target does not accept its arguments.
        InputError: The target is missing, unknown or not allowed.
    """
    if "_target_" not in config:
        raise InputError(f"{key} has no _target_: name the class or function that builds it.")
    call = _find(key, str(config["_target_"]), kind, tuple(trusted_modules))
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
        raise InputError(f"{key}._target_={config['_target_']} did not return a {kind.__name__}.")
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
    """Return the function or class that a target names, if it is allowed."""
    refusal = f"{key}._target_={target} is not allowed"
    packages = TRUSTED_PACKAGES + trusted_modules
    if not _is_within(target, packages):
        raise InputError(
            f"{refusal}: it is not in {', '.join(packages)}; "
            f"add its module to trusted_modules if it is yours."
        )
    try:
        found = pkgutil.resolve_name(target)
        if inspect.ismodule(found):  # as torchvision.models.alexnet, a function of the same name
            parent, _, name = target.rpartition(".")
            found = getattr(pkgutil.resolve_name(parent), name)
    except Exception as error:
        raise InputError(f"{key}._target_={target} cannot be found: {one_line(error)}.") from error
    home = getattr(found, "__module__", None) or ""
    if inspect.isclass(found):
        if kind is None or not (issubclass(found, kind) and _is_within(home, packages)):
            raise InputError(f"{refusal}: it is not a {kind.__name__ if kind else 'function'}.")
    # Only a plain function: not, say, a bound method of an object in a trusted module.
    elif not (inspect.isfunction(found) and _is_within(home, TRUSTED_FUNCTIONS + trusted_modules)):
        raise InputError(f"{refusal}: it is neither a class nor a function in a trusted module.")
    return found  # type: ignore[no-any-return]


def _is_within(path: str, packages: Sequence[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)
