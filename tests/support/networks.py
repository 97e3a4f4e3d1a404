"""Networks that do odd things on purpose, for `trusted_modules=[tests.support.networks]`."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from dist_mnist.models.networks import MLP


class Misbehaving(MLP):
    """Does something odd in one training step, once in the life of a run.

    Args:
        step: In which step of the process, from 1.
        rank: On which rank.
        does: What: the name of a signal that it sends to its own process, or "sleep", "sleep a
            little", "forget" (answers nothing finite) or "overflow" (in the gradient alone).
        once: A file that tells later processes that it has been done.
        options: As of `MLP`.
    """

    def __init__(self, step: int, rank: int, does: str, once: str, **options: Any) -> None:
        super().__init__(**options)
        self.step, self.does, self.once = step, does, Path(once)
        self.is_chosen = int(os.environ.get("RANK", 0)) == rank
        self.steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, C, H, W) to logits (B, num_classes)."""
        outputs = super().forward(images)
        self.steps += self.training
        is_time = self.training and self.is_chosen and self.steps == self.step
        if not is_time or self.once.exists():
            return outputs
        self.once.touch()
        if self.does.startswith("sleep"):
            time.sleep(60 if self.does == "sleep" else 1)
        elif self.does == "forget":
            outputs = outputs * float("nan")
        elif self.does == "overflow":
            outputs.register_hook(lambda gradient: gradient * float("inf"))
        elif self.does != "nothing":
            os.kill(os.getpid(), signal.Signals[self.does])
        return outputs


class Recording(MLP):
    """Writes down which images training sees, by the number that their first two pixels hold."""

    def __init__(self, file: str, **options: Any) -> None:
        super().__init__(**options)
        self.file = Path(file)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, C, H, W) to logits (B, num_classes)."""
        if self.training:
            pixels = (images[:, 0, 0, :2] * 255).round().long().tolist()
            with self.file.open("a") as file:
                file.write("".join(f"{256 * high + low}\n" for high, low in pixels))
        return super().forward(images)


class Slow(MLP):
    """Takes its time whenever it is asked in training, so that there is some to disturb it in."""

    def __init__(self, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, C, H, W) to logits (B, num_classes)."""
        if self.training:
            time.sleep(self.seconds)
        return super().forward(images)
