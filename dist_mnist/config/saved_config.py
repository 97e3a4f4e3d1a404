"""The config in a checkpoint: of another version, from elsewhere, and with changes to it."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.config.schema import Config, build_config

# Old `_target_`s in checkpoints, and where the classes are now.
MOVED_TARGETS = {
    "dist_mnist.data.folder.image_folder.ImageFolder": "dist_mnist.folder.image_folder.ImageFolder",
    "dist_mnist.data.flagged_ones.MNISTWithFlaggedOnes": (
        "dist_mnist.digits.flagged_ones.MNISTWithFlaggedOnes"
    ),
}


def config_from_plain(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """Return a checkpoint's config, which `plain_config` made, with changes to it.

    Args:
        changes: Nested like the config; None keeps the checkpoint's value.

    Raises:
        InputError: It is not a valid config, or a change is not allowed.
    """
    # Interpolations were resolved before it was saved, so one that is left is not ours.
    if "${" in repr(plain):
        raise InputError("the checkpoint's config cannot be used: it contains an interpolation.")
    schema = OmegaConf.structured(Config)
    try:
        saved = OmegaConf.merge(schema, upgraded(plain))
        build_config(saved)  # type: ignore[arg-type]
    except Exception as error:  # a file from elsewhere may contain anything
        raise InputError(f"the checkpoint's config cannot be used: {one_line(error)}.") from error
    return build_config(OmegaConf.merge(saved, _without_none(changes)))  # type: ignore[arg-type]


def upgraded(value: Any) -> Any:
    """Return a saved config with the names and values of this version."""
    if isinstance(value, Mapping):
        parts = {key: upgraded(part) for key, part in value.items()}
        return parts | ({"cuda_graph": False} if parts.get("cuda_graph") == "auto" else {})
    return MOVED_TARGETS.get(value, value) if isinstance(value, str) else value


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return value
