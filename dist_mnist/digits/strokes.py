"""Measures the width of strokes, and brings it near MNIST's.

The writers of MNIST all had the same kind of pen: 98 of 100 digits have strokes of `THINNEST` to
`THICKEST` pixels, half of them less than 2.4.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]

SIDE = 20  # pixels of the longer side of a digit in MNIST
FINE = 8  # pixels for each of them while strokes are changed
THINNEST, THICKEST = 1.4, 4.3  # pixels of MNIST: the first and the last percentile
THIN, THICK = 2.0, 3.8  # the new width of thinner and thicker ones


def with_usual_strokes(ink: Array) -> Array:
    """Make the strokes of a digit as wide as in MNIST if they are much thinner or thicker.

    Args:
        ink: float32 of shape (H, W), from 0 to 1, cut to the digit's box.

    Returns:
        The same array, or one of another size with thicker or thinner strokes.
    """
    shrink = max(ink.shape) / (SIDE * FINE)
    height, width = (max(1, round(side / shrink)) for side in ink.shape)
    method = Image.Resampling.BOX if shrink > 1 else Image.Resampling.BILINEAR
    fine = np.asarray(Image.fromarray(ink).resize((width, height), method), dtype=np.float32)
    stroke = stroke_width(fine) / FINE
    if THINNEST <= stroke <= THICKEST:
        return ink
    target = THIN if stroke < THINNEST else THICK
    # The digit grows with its strokes, and is later shrunk to its old size.
    radius = round(FINE * (target - stroke) / (2 - 2 * target / SIDE))
    fine = np.pad(fine, max(radius, 0) + 1)
    return grow(fine, radius) if radius > 0 else 1 - grow(1 - fine, -radius)


def stroke_width(ink: Array) -> float:
    """Return the mean width of strokes in pixels.

    It is twice the area over the length of the outline. The length is the total variation, which
    counts a soft edge in full.

    Args:
        ink: float32 of shape (H, W), 0 where there is none; not all 0.
    """
    padded = np.pad(ink, 1)
    down = padded[1:, :-1] - padded[:-1, :-1]
    across = padded[:-1, 1:] - padded[:-1, :-1]
    return float(2 * ink.sum() / np.hypot(down, across).sum())


def grow(ink: Array, radius: int) -> Array:
    """Return the maximum over a disk around each pixel (a grey dilation).

    scipy's `grey_dilation` gives the same values; with a thin pen a drawing then takes half as long
    again.

    Args:
        ink: float32 of shape (H, W).
        radius: Of the disk, in pixels.
    """
    rows = torch.from_numpy(ink)
    height = len(rows)
    grown = rows.clone()
    for offset in range(-radius, radius + 1):
        half = int((radius**2 - offset**2) ** 0.5)
        wide = F.max_pool1d(rows, 2 * half + 1, stride=1, padding=half)
        source = slice(max(0, offset), height + min(0, offset))
        place = slice(max(0, -offset), height + min(0, -offset))
        grown[place] = torch.maximum(grown[place], wide[source])
    result: Array = grown.numpy()
    return result
