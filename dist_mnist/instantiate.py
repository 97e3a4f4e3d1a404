"""From `_target_` in a config to the object it names, for the targets that are allowed.

A checkpoint brings its config along, so a target is data from elsewhere: it may name a network or
a loss, never a function that does something else. What a target names is therefore held against
the kind of thing that is wanted, and where it was defined against the packages that are trusted.
"""

import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dist_mnist.errors import BuildError, InputError, one_line

TRUSTED_PACKAGES = ("torch", "torchvision", "dist_mnist")
# A class is known by its bases; a function could do anything, so these modules alone may offer one.
TRUSTED_FUNCTIONS = ("torchvision.models", "dist_mnist.models", "dist_mnist.schedules")


def instantiate(
    key: str,
    config: Mapping[str, Any],
    kind: type,
    *args: object,
    trusted_modules: Sequence[str] = (),
    **kwargs: object,
) -> Any:
    """Build what `config["_target_"]` names, with the rest of the config as keyword arguments.

    Args:
        key: Where the config stands, for messages, such as "model".
        config: The target and its arguments; targets nested in it are built too.
        kind: What every target must be a subclass of, or the result of a function an instance of.
        *args: Arguments to put first.
        trusted_modules: Modules that may be named beside torch, torchvision and dist_mnist.
        **kwargs: Arguments to add.

    Raises:
        BuildError: The target refuses its arguments.
        InputError: The target is missing, unknown or not allowed.
    """
    import hydra.utils

    if "_target_" not in config:
        raise InputError(f"{key} has no _target_: name the class or function that builds it.")
    for target in _targets(config):
        _check_target(key, target, kind, tuple(trusted_modules))
    try:
        built = hydra.utils.instantiate(dict(config), *args, _convert_="all", **kwargs)
    except Exception as error:
        cause = error.__cause__ or error
        given = ", ".join(f"{key}.{k}={v}" for k, v in config.items() if k != "_target_")
        raise BuildError(f"{key} cannot be built ({given}): {one_line(cause)}.") from cause
    if not isinstance(built, kind):
        raise InputError(f"{key}._target_={config['_target_']} makes no {kind.__name__}.")
    return built


def _targets(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _targets(value)


def _check_target(key: str, target: str, kind: type, trusted_modules: tuple[str, ...]) -> None:
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
        if not (issubclass(found, kind) and _is_within(home, packages)):
            raise InputError(f"{refusal}: it is no {kind.__name__}.")
    elif not _is_within(home, TRUSTED_FUNCTIONS + trusted_modules):
        raise InputError(f"{refusal}: it is neither a class nor a function of a trusted module.")


def _is_within(path: str, packages: Sequence[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)
