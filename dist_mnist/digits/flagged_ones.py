"""MNIST, and ones as they are written where MNIST is not from: with a flag, like 7s to it.

The writers of MNIST were Americans, and nearly all of their ones are a bare line. In much of the
world a 1 begins with a stroke up, so a network that knows MNIST alone takes many for 7s.
"""

import math
import random

import numpy as np
import torch
from numpy.typing import NDArray

from dist_mnist.data.mnist import MNIST
from dist_mnist.digits.mnist_form import make_like_mnist

COUNT = 2000  # drawn ones, beside the 6,742 of MNIST's training files
SIDE = 96  # pixels they are drawn with, before they become 28
HEIGHT = 64  # pixels

Point = tuple[float, float]


class MNISTWithFlaggedOnes(MNIST):
    """MNIST with drawn ones behind its training images; its test images are the same.

    Attributes:
        data: Images, uint8 of shape (N, 28, 28), white on black.
        targets: Labels, int64 of shape (N,).
        classes: The ten digits' names.
    """

    def __init__(self, root: str, train: bool = True, download: bool = True) -> None:
        super().__init__(root, train, download)
        if train:
            drawn = torch.stack([draw_flagged_one(seed) for seed in range(COUNT)])
            self.data = torch.cat((self.data, drawn))
            self.targets = torch.cat((self.targets, torch.ones(COUNT, dtype=torch.int64)))


def draw_flagged_one(seed: int) -> torch.Tensor:
    """Draw a 1 with a flag, every third one with a foot: uint8 of shape (28, 28).

    Args:
        seed: Decides about all in which it differs from others.
    """
    chance = random.Random(f"flagged one {seed}")
    lean, bend = chance.gauss(0.12, 0.12) * HEIGHT, chance.gauss(0, 0.04) * HEIGHT
    top, bottom = (SIDE / 2 + lean / 2, 16.0), (SIDE / 2 - lean / 2, 16.0 + HEIGHT)
    middle = ((top[0] + bottom[0]) / 2 + bend, (top[1] + bottom[1]) / 2)
    angle = math.radians(chance.uniform(25, 58))  # between the flag and a vertical line
    length = chance.uniform(0.18, 0.55) * HEIGHT
    flag = (top[0] - length * math.sin(angle), top[1] + length * math.cos(angle))
    lines = [(flag, top), (top, middle), (middle, bottom)]
    if chance.random() < 1 / 3:
        left, right = (chance.uniform(0.1, 0.3) * HEIGHT for _ in range(2))
        lines.append(((bottom[0] - left, bottom[1]), (bottom[0] + right, bottom[1])))
    return torch.from_numpy(make_like_mnist(_pen_lines(lines, chance.uniform(0.05, 0.2) * HEIGHT)))


def _pen_lines(lines: list[tuple[Point, Point]], width: float) -> NDArray[np.float32]:
    """Return the ink of straight lines that a round pen leaves, its edges a pixel wide."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    nearest = np.full((SIDE, SIDE), np.inf)
    for (x0, y0), (x1, y1) in lines:
        across, down = x1 - x0, y1 - y0
        along = ((x - x0) * across + (y - y0) * down) / (across**2 + down**2)
        along = along.clip(0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * across, y - y0 - along * down))
    return (width / 2 - nearest + 0.5).clip(0, 1).astype(np.float32)
