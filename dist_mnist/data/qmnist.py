"""QMNIST with one label for each image."""

from typing import Any

import torch
import torchvision


class QMNIST(torchvision.datasets.QMNIST):  # type: ignore[misc]
    """torchvision's QMNIST with one label for each image.

    Its files have eight columns of labels: the digit, then its writer and its place in the NIST
    sources (Yadav, Bottou 2019, https://arxiv.org/abs/1905.10498).

    Attributes:
        data: Images, uint8 of shape (N, 28, 28), white on black.
        targets: Labels, int64 of shape (N,).
        classes: The ten digits' names.
    """

    data: torch.Tensor
    targets: torch.Tensor

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.targets = self.targets[:, 0].contiguous()

    # QMNIST's own looks for the table.
    __getitem__ = torchvision.datasets.MNIST.__getitem__
