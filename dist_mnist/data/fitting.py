"""Makes a decoded picture the size that a network sees, by area, to the bit on every machine."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_mnist.config.data_schema import Fit

# Weights are multiples of 2**-20 and sums between the two passes of 2**-8. So no sum has more bits
# than a float64 holds, and the order in which a machine adds them up does not matter.
WEIGHT_UNITS, SUM_UNITS = 2.0**20, 2.0**8


def fit_picture(picture: Image.Image, image_shape: Sequence[int], fit: Fit) -> NDArray[np.uint8]:
    """Return the pixels of a picture in the shape that a network takes.

    One channel is the luminance (ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B), three are RGB.

    Args:
        picture: In RGB, as `read_picture` returns it.
        image_shape: Channels (1 or 3), height and width.
        fit: What happens to a picture of another aspect: black bars, cut off, or squeezed.

    Returns:
        uint8 of shape (channels, height, width).
    """
    channels, height, width = image_shape
    pixels = np.asarray(picture.convert("L") if channels == 1 else picture)
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    if fit is Fit.crop:
        pixels = _cropped(pixels, height / width)
    size = height, width
    if fit is Fit.pad:
        scale = min(height / pixels.shape[0], width / pixels.shape[1])
        size = (_scaled(pixels.shape[0], scale, height), _scaled(pixels.shape[1], scale, width))
    pixels = _resized(pixels, size)
    canvas = np.zeros((height, width, channels), dtype=np.uint8)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    canvas[top : top + size[0], left : left + size[1]] = pixels
    return np.ascontiguousarray(canvas.transpose(2, 0, 1))


def _scaled(size: int, scale: float, most: int) -> int:
    return min(most, max(1, round(size * scale)))


def _cropped(pixels: NDArray[np.uint8], aspect: float) -> NDArray[np.uint8]:
    """Return the middle of a picture, as large as an aspect (height / width) allows."""
    height, width = pixels.shape[:2]
    kept = _scaled(width, aspect, height), _scaled(height, 1 / aspect, width)
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    return pixels[top : top + kept[0], left : left + kept[1]]


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, C) to another height and width: each new pixel is the mean of its area."""
    if pixels.shape[:2] == size:
        return pixels
    rows = np.rint(_averaged(pixels, size[0]) * SUM_UNITS) / SUM_UNITS
    columns = _averaged(rows.transpose(1, 0, 2), size[1])
    resized: NDArray[np.uint8] = np.floor(columns.transpose(1, 0, 2) + 0.5).astype(np.uint8)
    return resized


def _averaged(values: NDArray[np.generic], size: int) -> NDArray[np.float64]:
    """Average along the first axis, into `size` stretches of the same length."""
    averaged = np.empty((size, *values.shape[1:]))
    for place, (first, weights) in enumerate(_windows(len(values), size)):
        stretch = values[first : first + len(weights)].astype(np.float64)
        averaged[place] = np.tensordot(weights, stretch, axes=1)
    return averaged


@lru_cache(maxsize=64)
def _windows(length: int, size: int) -> list[tuple[int, NDArray[np.float64]]]:
    """Return where each of `size` stretches begins, and the share of each place in it."""
    windows = []
    for place in range(size):
        begin, end = place * length / size, (place + 1) * length / size
        first, last = int(begin), min(length, int(np.ceil(end)))
        # Rounded sums, not rounded shares, so that the shares add up to 1.
        covered = (np.arange(first, last + 1).clip(begin, end) - begin) / (end - begin)
        windows.append((first, np.diff(np.rint(covered * WEIGHT_UNITS)) / WEIGHT_UNITS))
    return windows
