"""Digits in any picture, made as the images of MNIST were made.

The last step is that of MNIST itself, as its reconstruction describes it: Yadav, Bottou, "Cold
Case: The Lost MNIST Digits" (2019), https://arxiv.org/abs/1905.10498, and the source of QMNIST,
https://github.com/facebookresearch/qmnist (making_qmnist/xnist.lsh).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dist_mnist.data.components import label_components
from dist_mnist.data.ink import find_ink

SIDE, INNER_SIDE = 28, 20
SMALLEST_BOX = 10  # pixels of the scans that MNIST was made from
EXTENT = 0.99  # of an input pixel when MNIST was resampled


class Digit(NamedTuple):
    """A digit that was found in a picture.

    Attributes:
        image: As MNIST has it, uint8 of shape (28, 28), white on black.
        box: Its left, top, right and bottom edge, in pixels of the upright picture.
    """

    image: torch.Tensor
    box: tuple[int, int, int, int]


def find_digits(picture: Image.Image) -> list[Digit]:
    """Find the digits in a picture, from left to right.

    Args:
        picture: In RGB and upright, as `read_picture` returns it.

    Returns:
        The digits; none if there is nothing that stands out from its background.
    """
    ink, shrink = find_ink(picture)
    _, count = label_components(ink > 0)
    if not count:
        return []
    part, box = ink, _tight_box(ink)
    left, top, right, bottom = box
    image = make_like_mnist(part)
    return [
        Digit(
            image=torch.from_numpy(image),
            box=(
                math.floor(left * shrink),
                math.floor(top * shrink),
                math.ceil(right * shrink),
                math.ceil(bottom * shrink),
            ),
        )
    ]


def _tight_box(ink: NDArray[np.float32]) -> tuple[int, int, int, int]:
    rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def make_like_mnist(ink: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn the ink of one digit into an image as MNIST has it.

    A tight box around the ink; the square around it; doubled until it has at least 20 pixels a
    side; resampled to 20 x 20 by area; its maximum scaled to 255; and put where its center of mass
    falls into the pixel that is right of and below the middle.

    Args:
        ink: float32 of shape (H, W), 0 where there is none, 1 where it is full.

    Returns:
        uint8 of shape (28, 28), white on black; black where there is no ink.
    """
    image = np.zeros((SIDE, SIDE), dtype=np.uint8)
    if not ink.any():
        return image
    square = _square_around(ink, _tight_box(ink))
    weights = _area_weights(len(square))
    small = weights @ square @ weights.T
    small = np.floor(small * (255 / min(1.0, small.max())) + 0.5).clip(0, 255)
    # The place of the 20 x 20 pixels may be anywhere; what falls outside is cut off.
    center = [
        float((small.sum(axis=1 - axis) @ (np.arange(INNER_SIDE) + 0.5)) / small.sum())
        for axis in (0, 1)
    ]
    top, left = (int(SIDE // 2 + 1 - middle) for middle in center)
    canvas = np.zeros((SIDE + 2 * INNER_SIDE,) * 2, dtype=np.uint8)
    canvas[INNER_SIDE + top :, INNER_SIDE + left :][:INNER_SIDE, :INNER_SIDE] = small
    return canvas[INNER_SIDE:-INNER_SIDE, INNER_SIDE:-INNER_SIDE]


def _square_around(ink: NDArray[np.float32], box: tuple[int, int, int, int]) -> NDArray[np.float32]:
    left, top, right, bottom = box
    height, width = bottom - top, right - left
    side = max(height, width, SMALLEST_BOX)
    square = np.zeros((side, side), dtype=np.float32)
    down, across = (side - height) // 2, (side - width) // 2
    square[down : down + height, across : across + width] = ink[top:bottom, left:right]
    while len(square) < INNER_SIDE:
        square = square.repeat(2, axis=0).repeat(2, axis=1)
    return square


def _area_weights(size: int) -> NDArray[np.float32]:
    """Return how much each of `size` input pixels gives to each of 20: float32 (20, size).

    A pixel that lies on an edge between two is shared by area. As in MNIST its extent is taken as
    `EXTENT` then, so that the second one gets a little less than it should.
    """
    scale = INNER_SIDE / size
    begin = np.arange(size) * scale
    end = begin + EXTENT * scale
    first = np.floor(begin + 1e-11).astype(int)
    last = np.ceil(end - 1e-11).astype(int) - 1
    weights = np.zeros((INNER_SIDE, size), dtype=np.float32)
    whole = first == last
    pixel = np.arange(size)
    weights[first, pixel] = np.where(whole, scale, (first + 1 - begin).clip(0, 1))
    weights[last[~whole], pixel[~whole]] = (end - last)[~whole].clip(0, 1)
    return weights
