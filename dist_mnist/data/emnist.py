"""EMNIST with upright images and labels from 0."""

from typing import Any

import torch
import torchvision


class EMNIST(torchvision.datasets.EMNIST):  # type: ignore[misc]
    """torchvision's EMNIST with upright images and labels from 0.

    In the files each image is mirrored along its diagonal, and the labels of the `letters` split
    start at 1 (Cohen et al. 2017, https://arxiv.org/abs/1702.05373).

    Attributes:
        data: Images, uint8 of shape (N, 28, 28), white on black.
        targets: Labels, int64 of shape (N,), from 0.
        classes: The characters' names.
    """

    data: torch.Tensor
    targets: torch.Tensor
    classes: list[str]

    def __init__(self, root: str, split: str, **kwargs: Any) -> None:
        super().__init__(root, split, **kwargs)
        self.data = self.data.transpose(1, 2).contiguous()
        if split == "letters":
            self.targets = self.targets - 1
            self.classes = self.classes[1:]
