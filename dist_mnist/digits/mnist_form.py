"""Makes the ink of one digit into an image like MNIST's.

As the reconstruction of MNIST describes it: Yadav, Bottou, "Cold Case: The Lost MNIST Digits",
2019, https://arxiv.org/abs/1905.10498, with the source of QMNIST (making_qmnist/xnist.lsh in
https://github.com/facebookresearch/qmnist).
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, top, right, bottom

SIDE, INNER_SIDE = 28, 20
SMALLEST_BOX = 10  # pixels of the scans that MNIST was made from
EXTENT = 0.99  # of an input pixel when MNIST was resampled


def make_like_mnist(ink: Array) -> NDArray[np.uint8]:
    """Turn the ink of one digit into an image like MNIST's.

    A tight box around the ink; the square around it; doubled until it has at least 20 pixels a
    side; resampled to 20 x 20 by area; its maximum scaled to 255; and placed so that its center of
    mass falls into the pixel right of and below the middle.

    Args:
        ink: float32 of shape (H, W), 0 where there is none, 1 where it is full.

    Returns:
        uint8 of shape (28, 28), white on black; black where there is no ink.
    """
    image = np.zeros((SIDE, SIDE), dtype=np.uint8)
    if not ink.any():
        return image
    square = _square_around(ink, tight_box(ink))
    weights = _area_weights(len(square))
    small = weights @ square @ weights.T
    small = np.floor(small * (255 / min(1.0, small.max())) + 0.5).clip(0, 255)
    # The 20 x 20 pixels may lie anywhere; parts outside are cut off.
    center = [
        float((small.sum(axis=1 - axis) @ (np.arange(INNER_SIDE) + 0.5)) / small.sum())
        for axis in (0, 1)
    ]
    top, left = (int(SIDE // 2 + 1 - middle) for middle in center)
    canvas = np.zeros((SIDE + 2 * INNER_SIDE,) * 2, dtype=np.uint8)
    canvas[INNER_SIDE + top :, INNER_SIDE + left :][:INNER_SIDE, :INNER_SIDE] = small
    return canvas[INNER_SIDE:-INNER_SIDE, INNER_SIDE:-INNER_SIDE]


def _square_around(ink: Array, box: Box) -> Array:
    left, top, right, bottom = box
    height, width = bottom - top, right - left
    side = max(height, width, SMALLEST_BOX)
    square = np.zeros((side, side), dtype=np.float32)
    # The shorter side begins where one of the 20 pixels does, so that a digit of MNIST that was
    # enlarged falls into the pixels that it came from.
    pixel = side / INNER_SIDE
    down, across = (round((side - length) / 2 // pixel * pixel) for length in (height, width))
    square[down : down + height, across : across + width] = ink[top:bottom, left:right]
    while len(square) < INNER_SIDE:
        square = square.repeat(2, axis=0).repeat(2, axis=1)
    return square


def _area_weights(size: int) -> Array:
    """Return the weight of each of `size` input pixels in each of 20: float32 (20, size).

    A pixel that crosses an edge is shared by area. As in MNIST its extent is then `EXTENT`, so the
    second one gets a little less than it should.
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


def tight_box(ink: Array) -> Box:
    """Return the smallest box around all nonzero pixels, of which there must be at least one."""
    rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
