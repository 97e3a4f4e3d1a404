"""Checkpoints that hold next to nothing, or something hostile."""

import os
from typing import Any

from dist_mnist.record import checkpoint


def content(step: int = 1) -> dict[str, Any]:
    return {
        **{key: kind() for key, kind in checkpoint.PARTS.items()},
        "progress": {"step": step},
    }


class Intruder:
    """Code that loading must never run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch intruded",)
