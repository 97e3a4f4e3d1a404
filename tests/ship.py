"""Makes the network that comes with the package from the run that trained it.

python -m dist_mnist experiment=shipped run_dir=runs/shipped
python -m tests.ship runs/shipped
"""

import sys
from pathlib import Path
from typing import Any

from dist_mnist.models.classifier import SHIPPED, find_checkpoint
from dist_mnist.record import checkpoint
from dist_mnist.record.files import write_atomically


def without_training(content: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint without what only its training needs, and without its folders."""
    config = content["config"]
    config = {**config, "run_dir": None, "data": {**config["data"], "root": "data"}}
    return {**content, "optimizer": {}, "scaler": {}, "config": config}


def ship(run_dir: str) -> None:
    """Write `shipped.safetensors` from the best checkpoint of a run."""
    content = without_training(checkpoint.load(find_checkpoint(run_dir)))
    write_atomically(SHIPPED, checkpoint.encode(content))
    print(f"{SHIPPED.stat().st_size:,} bytes -> {SHIPPED.relative_to(Path.cwd())}")


if __name__ == "__main__":
    ship(sys.argv[1])
