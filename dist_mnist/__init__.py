"""Distributed multi-GPU training to read and to build on.

config = dist_mnist.compose_config("model=mlp", "trainer.epochs=2")
result = dist_mnist.train(config)
classifier = dist_mnist.load_classifier(result.run_dir)
"""

import importlib
from typing import TYPE_CHECKING, Any

from dist_mnist.config import __version__

if TYPE_CHECKING:
    from dist_mnist.config.compose import compose_config
    from dist_mnist.models.classifier import Classifier, load_classifier
    from dist_mnist.training.run import train

__all__ = ["Classifier", "__version__", "compose_config", "load_classifier", "train"]

# Imported on first use, so that `--help` need not wait for torch.
_MODULES = {
    "Classifier": "dist_mnist.models.classifier",
    "compose_config": "dist_mnist.config.compose",
    "load_classifier": "dist_mnist.models.classifier",
    "train": "dist_mnist.training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
