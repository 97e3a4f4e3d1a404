"""Networks that do odd things on purpose, for `trusted_modules=[tests.support.networks]`."""

import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import nn

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
        if self.training and images.any():  # not when it is tried out
            pixels = (images[:, 0, 0, :2] * 255).round().long().tolist()
            with self.file.open("a") as file:
                file.write("".join(f"{256 * high + low}\n" for high, low in pixels))
        return super().forward(images)


class Slow(MLP):
    """Takes its time whenever it is asked in training, so that there is some to disturb it in.

    It counts its passes, so the shards of a step are computed one by one.
    """

    def __init__(self, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self.seconds, self.passes = seconds, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, C, H, W) to logits (B, num_classes)."""
        self.passes += 1
        if self.training:
            time.sleep(self.seconds)
        return super().forward(images)


class TutorialCNN(nn.Module):
    """Two convolutions and `view`, as in PyTorch's classic tutorials."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.head = nn.Linear(320, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, 1, 28, 28) to logits (B, 10)."""
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.head(x.view(-1, 320))  # type: ignore[no-any-return]


class Odd(nn.Module):
    """A linear network with something odd about it.

    Args:
        how: "tuple" (answers two tensors), "auxiliary" (two of them in train mode), "sparse" or
            "complex" (gradients), "frozen" (all of it), "locked" (cannot be copied), "unused" (a
            layer), "skips" (a layer in every other step), "random" (skips it at random), "thaws"
            (the layer, in its third step), "last" (skips it in step 8 alone), "norm" (over the
            features of a batch), "counts" (its passes), "keeps" (its features), "mixes" (subtracts
            the batch's mean), "twice" (uses its weights beside the layer, too), "numpy" (draws from
            its generator), "closure" (calls a layer in one), "writes in eval mode" (to a buffer),
            "keeps on rank 0" (its features), "lazy" (its layer), "one by one" (loops over a batch)
            or "hungry" (for more memory than there is, with more than two images).
    """

    def __init__(self, how: str, **_: Any) -> None:
        super().__init__()
        self.how, self.steps = how, 0
        self.features: list[torch.Tensor] = []
        self.head = nn.LazyLinear(10) if how == "lazy" else nn.Linear(784, 10)
        if how == "sparse":
            self.table = nn.Embedding(4, 10, sparse=True)
        elif how == "complex":
            self.phase = nn.Parameter(torch.ones(10, dtype=torch.complex64))
        elif how == "frozen":
            self.requires_grad_(False)
        elif how == "locked":
            self.lock = threading.Lock()
        elif how in ("unused", "skips", "random", "thaws", "last"):
            self.extra = nn.Linear(784, 10)
        elif how in ("norm", "closure"):
            self.norm = nn.BatchNorm1d(10)
        elif how == "writes in eval mode":
            self.register_buffer("mean", torch.zeros(10))

        if how == "closure":
            self.call: Any = lambda logits: self.norm(logits)

    def forward(self, images: torch.Tensor) -> Any:
        """Map float images (B, 1, 28, 28) to logits (B, 10), or to something odd."""
        flat = images.flatten(1)
        if self.how == "hungry" and len(images) > 2:
            torch.empty(2**50)
        if self.how == "one by one":
            return torch.cat([self.head(image.unsqueeze(0)) for image in flat])
        logits = self.head(flat)
        if self.how in ("counts", "skips", "thaws", "last"):
            self.steps += self.training
        if self.how == "sparse":
            logits = logits + self.table(torch.zeros(len(images), dtype=torch.int64))
        elif self.how == "complex":
            logits = logits + self.phase.abs()
        elif self.how == "norm":
            logits = self.norm(logits)
        elif self.how == "closure":
            logits = self.call(logits)
        elif self.how == "numpy":
            logits = logits * float(numpy.random.rand())
        elif self.how == "writes in eval mode":
            self.get_buffer("mean").copy_(logits.detach().mean(0) + 1)
        elif self.how == "keeps" or (self.how[:5] == "keeps" and os.environ["RANK"] == "0"):
            self.features.append(flat)
        elif self.how == "mixes":
            logits = logits - logits.mean(0)
        elif self.how == "twice":
            logits = logits + self.head.weight.sum(1)
        elif self._takes_extra():
            logits = logits + self.extra(flat)
        is_pair = self.how == "tuple" or (self.how == "auxiliary" and self.training)
        return (logits, logits) if is_pair else logits

    def _takes_extra(self) -> bool:
        if self.how == "thaws":
            self.extra.requires_grad_(self.steps > 2)
        return (
            self.how == "thaws"
            or (self.how == "skips" and self.steps % 2 == 1)
            or (self.how == "random" and bool(torch.rand(()) < 0.5))
            or (self.how == "last" and self.steps != 8)
        )


class Orthogonal(MLP):
    """Its initial weights depend on the number of torch's threads."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "hidden_sizes": [512]})
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.orthogonal_(parameter)


class WithBuffers(nn.Module):
    """Has buffers that change in training, and some that are constant.

    Args:
        rebinds: Whether one of them becomes another tensor in each pass.
    """

    seen: torch.Tensor

    def __init__(self, rebinds: bool = False, **_: Any) -> None:
        super().__init__()
        self.rebinds = rebinds
        self.norm = nn.BatchNorm2d(1, momentum=0.5)
        self.head = nn.Linear(784, 10)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mask", torch.tensor([-math.inf, 0.1]))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images (B, 1, 28, 28) to logits (B, 10)."""
        if self.training and self.rebinds:
            self.seen = self.seen + len(images)
        elif self.training:
            self.seen += len(images)
        return self.head(self.norm(images).flatten(1))  # type: ignore[no-any-return]


class Fragile(MLP):
    """Fails at every image that is not blank."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map blank images (B, C, H, W) to logits (B, num_classes)."""
        if float(images.std()) > 0:
            raise RuntimeError("an image that is not blank")
        return super().forward(images)
