"""Checkpoints that hold next to nothing, or something hostile."""

import os
from pathlib import Path
from typing import Any

from dist_mnist.config.schema import plain_config
from dist_mnist.models.build import build_model
from dist_mnist.record import checkpoint
from tests.support.configs import make_config


def content(step: int = 1) -> dict[str, Any]:
    return {
        **{key: kind() for key, kind in checkpoint.PARTS.items()},
        "progress": {"step": step},
    }


def write_untrained(path: Path, *overrides: str) -> Path:
    """Write the checkpoint of a network that has learned nothing; return its path."""
    config = make_config(*overrides)
    model = build_model(config).state_dict()
    parts = {"config": plain_config(config), "model": model, "classes": [*"0123456789"]}
    normalization = {"mean": 0.5, "std": 0.5}
    path.write_bytes(checkpoint.encode({**content(), **parts, "normalization": normalization}))
    return path


class Intruder:
    """Code that loading must never run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch intruded",)
