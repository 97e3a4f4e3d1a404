"""MNIST plus synthetic 1s with an up-stroke, as written outside the US.

The writers of MNIST were Americans, and nearly all of their ones are a bare line. In much of the
world a 1 begins with an up-stroke, and a network trained on MNIST alone reads many of these as 7s.
"""

import math
import random

import numpy as np
import torch
from numpy.typing import NDArray

from dist_mnist.data.mnist import MNIST
from dist_mnist.digits.mnist_form import make_like_mnist

COUNT = 2000  # beside the 6,742 ones of MNIST's training files
SIDE = 96  # pixels of the canvas, which becomes 28
HEIGHT = 64  # pixels of the digit on it

Point = tuple[float, float]


class MNISTWithFlaggedOnes(MNIST):
    """MNIST with drawn ones after its training images; its test images are unchanged.

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
    """Draw a 1 with an up-stroke, a third of the time with a foot: uint8 of shape (28, 28).

    The seed determines its shape.
    """
    chance = random.Random(f"flagged one {seed}")
    lean, bend = chance.gauss(0.12, 0.12) * HEIGHT, chance.gauss(0, 0.04) * HEIGHT
    top, bottom = (SIDE / 2 + lean / 2, 16.0), (SIDE / 2 - lean / 2, 16.0 + HEIGHT)
    middle = ((top[0] + bottom[0]) / 2 + bend, (top[1] + bottom[1]) / 2)
    angle = math.radians(chance.uniform(25, 58))  # between the up-stroke and a vertical line
    length = chance.uniform(0.18, 0.55) * HEIGHT
    flag = (top[0] - length * math.sin(angle), top[1] + length * math.cos(angle))
    lines = [(flag, top), (top, middle), (middle, bottom)]
    if chance.random() < 1 / 3:
        left, right = (chance.uniform(0.1, 0.3) * HEIGHT for _ in range(2))
        lines.append(((bottom[0] - left, bottom[1]), (bottom[0] + right, bottom[1])))
    return torch.from_numpy(make_like_mnist(_pen_lines(lines, chance.uniform(0.05, 0.2) * HEIGHT)))


def _pen_lines(lines: list[tuple[Point, Point]], width: float) -> NDArray[np.float32]:
    """Return the ink of straight lines by a round pen, with edges a pixel wide."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    nearest = np.full((SIDE, SIDE), np.inf)
    for (x0, y0), (x1, y1) in lines:
        across, down = x1 - x0, y1 - y0
        along = ((x - x0) * across + (y - y0) * down) / (across**2 + down**2)
        along = along.clip(0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * across, y - y0 - along * down))
    return (width / 2 - nearest + 0.5).clip(0, 1).astype(np.float32)
