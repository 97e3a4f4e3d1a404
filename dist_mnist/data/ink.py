"""Ink and paper: how much of each pixel of a picture is drawn on.

Neither which of the two is darker nor their colors are known. Paper is what lies along the edges
of a picture, under light that changes slowly; ink is what differs from it, all in one direction of
color space.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]

WORKING_SIDE = 1024  # pixels; larger pictures are made smaller first
COARSE_SIDE = 64  # pixels, for the shape of the light
RING = 1 / 16  # of a side: the part along the edges where there is mostly paper
MOST_ROUNDS = 12  # of the fit of the light
OUTLIER = 4.7  # deviations, from where Tukey's biweight ignores a value
DEVIATION = 1.4826  # of a normal distribution, for each unit of its median absolute value
LEAST_STEP = 2 / 255  # what a picture of 8 bits can tell apart
LEAST_CONTRAST = 24 / 255  # fainter marks are taken for paper
LEAST_SIGNAL = 5.0  # times the noise
NOISE_FLOOR = 4.0  # deviations, below which there is paper


def find_ink(picture: Image.Image) -> tuple[Array, float]:
    """Tell ink from paper, whatever their colors, under light that may be uneven.

    Args:
        picture: In RGB.

    Returns:
        float32 of shape (H, W), 0 for paper and 1 for full ink, all 0 if nothing stands out; and
        how many pixels of the picture's side one of its pixels stands for, at least 1.
    """
    shrink = max(1.0, max(picture.size) / WORKING_SIDE)
    width, height = (max(1, round(side / shrink)) for side in picture.size)
    if shrink > 1:
        picture = picture.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(picture).astype(np.float32) / np.float32(255)
    signal = _along_ink(pixels - _paper(picture))
    threshold = _otsu(signal)
    marked = signal > threshold
    if not marked.any() or threshold <= 0:
        return np.zeros_like(signal), shrink
    full = float(np.quantile(signal[marked], 0.9))
    noise = _noise(signal, marked)
    if full < max(LEAST_CONTRAST, LEAST_SIGNAL * noise):
        return np.zeros_like(signal), shrink
    floor = min(0.5, NOISE_FLOOR * noise / full)
    return ((signal / full - floor) / (1 - floor)).clip(0, 1), shrink


def _paper(picture: Image.Image) -> Array:
    """Return what the picture would be without its ink, float32 of shape (H, W, 3), from 0 to 1.

    A surface of the second degree for each color, fitted to a small copy of the picture by
    iteratively reweighted least squares; it begins with the pixels along the edges.
    """
    width, height = picture.size
    shrink = max(1.0, max(width, height) / COARSE_SIDE)
    size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    coarse = np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.float64) / 255
    colors, basis = coarse.reshape(-1, 3), _surfaces(*size)
    ring = _ring(*size)
    surface = np.zeros((basis.shape[1], 3))
    surface[0] = np.median(colors[ring], axis=0)
    weights = ring.astype(np.float64)
    for _ in range(MOST_ROUNDS):
        distance = np.linalg.norm(colors - basis @ surface, axis=1)
        scale = max(DEVIATION * float(np.median(distance[ring | (weights > 0)])), LEAST_STEP)
        weights = (1 - (distance / (OUTLIER * scale)) ** 2).clip(0, 1) ** 2
        weighted = basis * weights[:, None]
        # A little ridge, so that it stays flat where it cannot be known.
        ridge = np.diag([0.0] + [1e-3 * len(basis)] * (basis.shape[1] - 1))
        surface = np.linalg.solve(weighted.T @ basis + ridge, weighted.T @ colors)
    return (_surfaces(width, height) @ surface).reshape(height, width, 3).astype(np.float32)


def _surfaces(width: int, height: int) -> NDArray[np.float64]:
    """Return 1, x, y, x², xy and y² at every pixel, x and y from -1 to 1: (H * W, 6)."""
    x = np.tile((np.arange(width) + 0.5) * (2 / width) - 1, height)
    y = np.repeat((np.arange(height) + 0.5) * (2 / height) - 1, width)
    return np.stack((np.ones_like(x), x, y, x * x, x * y, y * y), axis=1)


def _ring(width: int, height: int) -> NDArray[np.bool_]:
    thickness = max(1, round(RING * min(width, height)))
    ring = np.ones((height, width), dtype=bool)
    ring[thickness:-thickness, thickness:-thickness] = False
    return ring.ravel()


def _along_ink(difference: Array) -> Array:
    """Project differences from paper (H, W, 3) onto the direction in which ink differs: (H, W)."""
    flat = difference.reshape(-1, 3)
    _, directions = np.linalg.eigh(flat.T @ flat)
    signal: Array = difference @ directions[:, -1]
    # Paper lies on both sides of 0 alike, ink on one.
    return signal if float((signal.astype(np.float64) ** 3).sum()) > 0 else -signal


def _otsu(signal: Array) -> float:
    """Return the threshold between the two classes that differ most (Otsu 1979)."""
    counts, edges = np.histogram(signal, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below, total = counts.cumsum(), counts.sum()
    sums = (counts * middles).cumsum()
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + int(np.nan_to_num(apart).argmax())])


def _noise(signal: Array, marked: NDArray[np.bool_]) -> float:
    """Return the standard deviation of paper."""
    return DEVIATION * float(np.median(np.abs(signal[~marked]))) if (~marked).any() else 0.0
