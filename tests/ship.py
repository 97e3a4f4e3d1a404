"""Makes the network that comes with the package from the run that trained it.

python -m dist_mnist experiment=shipped run_dir=runs/shipped
python -m tests.ship runs/shipped
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dist_mnist import load_classifier
from dist_mnist.config.saved_config import config_from_plain
from dist_mnist.data.splits import load_splits
from dist_mnist.models.classifier import SHIPPED, find_checkpoint
from dist_mnist.record import checkpoint
from dist_mnist.record.files import write_atomically

MNIST = {"_target_": "dist_mnist.data.mnist.MNIST"}
CANDIDATES = torch.arange(0.2, 3.0, 0.01)


def ship(run_dir: str) -> None:
    """Write `shipped.safetensors` from the best checkpoint of a run."""
    path = find_checkpoint(run_dir)
    content = checkpoint.load(path)
    config = config_from_plain(content["config"], {})
    held_out = load_splits(config.data, config.seed).validation
    with torch.inference_mode():
        logits = load_classifier(path).logits(held_out.resident().images)
    temperature = best_temperature(logits, held_out.labels)
    print(f"temperature {temperature:.2f}, on {len(held_out):,} images held out of the training")
    shipped = with_temperature(without_training(content), temperature)
    write_atomically(SHIPPED, checkpoint.encode(shipped))
    print(f"{SHIPPED.stat().st_size:,} bytes -> {SHIPPED.relative_to(Path.cwd())}")


def best_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the divisor of the logits with the least cross-entropy.

    Label smoothing trains a network to be 95 % sure, however right it is. This brings back how sure
    it can be (Guo, Pleiss, Sun, Weinberger 2017, https://arxiv.org/abs/1706.04599) and changes no
    answer.

    Args:
        logits: float32 of shape (N, classes).
        labels: int64 of shape (N,), of images that were not trained on.
    """
    losses = [float(F.cross_entropy(logits / candidate, labels)) for candidate in CANDIDATES]
    return float(CANDIDATES[int(torch.tensor(losses).argmin())])


def with_temperature(content: dict[str, Any], temperature: float) -> dict[str, Any]:
    """Return a checkpoint whose network divides its logits by a temperature, in its last layer."""
    weight, bias = list(content["model"])[-2:]
    last = {name: content["model"][name] / temperature for name in (weight, bias)}
    return {**content, "model": {**content["model"], **last}}


def without_training(content: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint without the parts that only training needs, and without its folders.

    It is evaluated on MNIST, by its plain cross-entropy.
    """
    config = content["config"]
    config = {
        **config,
        "run_dir": None,
        "data": {**config["data"], "root": "data", "dataset": MNIST},
        "loss": {**config["loss"], "label_smoothing": 0.0},
    }
    return {**content, "optimizer": {}, "scaler": {}, "config": config}


if __name__ == "__main__":
    ship(sys.argv[1])
