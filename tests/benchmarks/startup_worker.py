"""One process of the `startup` benchmark: end after the first step, saying when that was.

With `floor` as its argument it makes that step with nothing but torch: the least time possible.
Otherwise the arguments are those of `python -m dist_mnist`, and it runs as the user's would.
"""

import json
import os
import sys
import time
from typing import Any, NoReturn

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def end_after_first_step(*_: Any) -> NoReturn:
    """Say how long after the launch this is, and end the process."""
    seconds = time.time() - float(os.environ["LAUNCHED_AT"])
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps({"seconds": seconds}), flush=True)
    os._exit(0)


def main() -> None:
    """Run up to the first optimizer step."""
    register_optimizer_step_post_hook(end_after_first_step)
    if sys.argv[1:] == ["floor"]:
        layer = torch.nn.Linear(784, 10)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        layer(torch.zeros(1, 784)).sum().backward()
        optimizer.step()
    else:
        from dist_mnist.__main__ import main as train

        train()


if __name__ == "__main__":
    main()
