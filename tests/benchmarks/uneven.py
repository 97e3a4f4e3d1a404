"""Data sets made from the MNIST that ships, for benchmarks and as examples of one's own."""

from typing import Any

import torch

from dist_mnist.data.mnist import MNIST

RARE_CLASS, KEPT = 8, 100  # one in KEPT of the rare class's training images is kept
TIMES = 8


class RareMNIST(MNIST):
    """MNIST with a hundredth of the training images of one digit."""

    def __init__(self, root: str, train: bool = True, download: bool = True) -> None:
        super().__init__(root, train, download)
        if train:
            rare = (self.targets == RARE_CLASS).nonzero().flatten()
            kept = torch.ones(len(self.targets), dtype=torch.bool)
            kept[rare] = torch.arange(len(rare)) % KEPT == 0
            self.data, self.targets = self.data[kept], self.targets[kept]


class RepeatedMNIST(MNIST):
    """MNIST several times over: 376 MB of training images."""

    def __init__(self, root: str, train: bool = True, download: bool = True) -> None:
        super().__init__(root, train, download)
        if train:
            self.data, self.targets = self.data.repeat(TIMES, 1, 1), self.targets.repeat(TIMES)


def options(dataset: type[Any]) -> list[str]:
    """Return the overrides that train on one of these."""
    return [
        f"data.dataset._target_={__name__}.{dataset.__name__}",
        f"trusted_modules=[{__name__}]",
    ]
