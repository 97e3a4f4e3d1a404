"""Separates ink from paper: how much of each pixel of a picture is ink.

Neither the colors nor which of the two is darker are known. Paper lies along the edges of a
picture, under light that changes slowly; ink differs from it in one direction of color space.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]

WORKING_SIDE = 1024  # pixels; larger pictures are made smaller first
COARSE_SIDE = 64  # pixels, for the shape of the light
RING = 1 / 16  # of a side: the part along the edges where there is mostly paper
MOST_ROUNDS = 12  # of fitting the light
LEAST_CHANGE = 1e-4  # of the light from one round to the next
OUTLIER = 4.7  # deviations, from where Tukey's biweight ignores a value
DEVIATION = 1.4826  # of a normal distribution, for each unit of its median absolute value
LEAST_STEP = 2 / 255  # the smallest deviation that 8 bits can show
LEAST_CONTRAST = 24 / 255  # fainter marks count as paper
SMOOTH = 0.05  # the largest deviation of paper under smooth light
SHADOW_SIDE = 256  # pixels, for finding shadows
WIDE = 0.25  # of the shorter side: the widest stroke
STROKES = (0.04, 0.08, 0.16)  # of the shorter side: strokes where the light is not smooth
SHADOW_SHARE = 0.02  # of the edges of a picture, at least
LEAST_SIGNAL = 5.0  # times the noise
NOISE_FLOOR = 4.0  # deviations, below which a pixel is paper


def find_ink(picture: Image.Image) -> tuple[Array, float]:
    """Separate ink from paper, of any colors, under light that may be uneven.

    Args:
        picture: In RGB.

    Returns:
        float32 of shape (H, W), 0 for paper and 1 for full ink, all 0 if nothing stands out; and
        the side of one of its pixels in pixels of the picture, at least 1.
    """
    shrink = max(1.0, max(picture.size) / WORKING_SIDE)
    width, height = (max(1, round(side / shrink)) for side in picture.size)
    if shrink > 1:
        picture = picture.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(picture).astype(np.float32) / np.float32(255)
    paper, deviation = _paper(picture)
    rough = deviation > SMOOTH
    # Where the light does not change smoothly, only its width distinguishes it from ink.
    signal = _along_ink(pixels - (np.median(paper, axis=(0, 1)) if rough else paper), rough)
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


def _paper(picture: Image.Image) -> tuple[Array, float]:
    """Fit a surface of the second degree to the paper, for each color.

    By iteratively reweighted least squares on a small copy of the picture, beginning with the
    pixels along its edges.

    Returns:
        The picture without its ink, float32 of shape (H, W, 3), from 0 to 1; and the deviation of
        paper from it.
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
        # A little ridge keeps the surface flat where there is no data.
        ridge = np.diag([0.0] + [1e-3 * len(basis)] * (basis.shape[1] - 1))
        before = surface
        surface = np.linalg.solve(weighted.T @ basis + ridge, weighted.T @ colors)
        if np.abs(surface - before).max() < LEAST_CHANGE:
            break
    x, y = (_powers(side).astype(np.float32) for side in (width, height))
    # Powers of y, powers of x, colors: the coefficients in the order of `_surfaces`.
    table = np.zeros((3, 3, 3), dtype=np.float32)
    table[[0, 0, 1, 0, 1, 2], [0, 1, 0, 2, 1, 0]] = surface
    paper: Array = np.einsum("hi,ijc,wj->hwc", y, table, x, optimize=True)
    return paper, scale


def _powers(side: int) -> NDArray[np.float64]:
    """Return 1, x and x² of a side's pixels, x from -1 to 1: (side, 3)."""
    x = (np.arange(side) + 0.5) * (2 / side) - 1
    return np.stack((np.ones_like(x), x, x * x), axis=1)


def _surfaces(width: int, height: int) -> NDArray[np.float64]:
    """Return 1, x, y, x², xy and y² at every pixel, x and y from -1 to 1: (H * W, 6)."""
    one, x, xx = np.tile(_powers(width), (height, 1)).T
    _, y, yy = np.repeat(_powers(height), width, axis=0).T
    return np.stack((one, x, y, xx, x * y, yy), axis=1)


def _ring(width: int, height: int) -> NDArray[np.bool_]:
    thickness = max(1, round(RING * min(width, height)))
    ring = np.ones((height, width), dtype=bool)
    ring[thickness:-thickness, thickness:-thickness] = False
    return ring.ravel()


def _along_ink(difference: Array, rough: bool) -> Array:
    """Project differences from paper (H, W, 3) onto the direction in which ink differs: (H, W)."""
    flat = difference.reshape(-1, 3)
    _, directions = np.linalg.eigh(flat.T @ flat)
    signal: Array = (flat @ directions[:, -1]).reshape(difference.shape[:2])
    if rough or _has_wide_edge(signal) or _has_wide_edge(-signal):
        return max((_narrow(signal), _narrow(-signal)), key=lambda hats: hats[1])[0]
    # Paper lies on both sides of 0 alike, ink on one.
    return signal if _third_moment(signal) > 0 else -signal


def _third_moment(signal: Array) -> float:
    return float(np.vdot(signal * signal, signal))


def _narrow(signal: Array) -> tuple[Array, float]:
    """Return the parts above their surroundings and no wider than a stroke, and their amount.

    Paper between strokes and edges is narrow, too. But ink is narrower, so narrow parts weigh more.
    """
    hats = [signal - _wide(signal, width) for width in STROKES]
    moments = [_third_moment(hat.clip(0)) for hat in hats]
    return hats[-1], sum(m / width**2 for m, width in zip(moments, STROKES, strict=True))


def _wide(signal: Array, width: float) -> Array:
    """Return the parts too wide for a stroke: a shadow, a table, the light itself.

    Args:
        signal: float32 of shape (H, W).
        width: Of the widest stroke, as a fraction of the shorter side.

    Returns:
        float32 of the same shape: the signal without narrower parts above their surroundings.
    """
    height, across = signal.shape
    shrink = max(1.0, max(across, height) / SHADOW_SIDE)
    size = (max(1, round(across / shrink)), max(1, round(height / shrink)))
    small = np.asarray(Image.fromarray(signal).resize(size, Image.Resampling.BOX))
    stroke = 2 * int(width / 2 * min(size)) + 1
    wide = _largest(-_largest(-small, stroke), stroke)
    wide = _largest(wide, 3)  # its soft edge, too
    return np.asarray(Image.fromarray(wide).resize((across, height)), dtype=np.float32)


def _has_wide_edge(signal: Array) -> bool:
    """Return whether parts above 0 and too wide for a stroke come in from the edges."""
    ring = _ring(signal.shape[1], signal.shape[0])
    # Without anything visible there is nothing wide; the first check is the cheaper one.
    return _is_visible(signal.ravel()[ring]) and _is_visible(_wide(signal, WIDE).ravel()[ring])


def _is_visible(edge: Array) -> bool:
    return float((edge > LEAST_CONTRAST).mean()) >= SHADOW_SHARE


def _largest(values: Array, size: int) -> Array:
    """Return for each pixel the largest value in the square of an odd size around it."""
    for axis in (0, 1):
        edges = [(0, 0), (0, 0)]
        edges[axis] = (size // 2, size // 2)
        values = np.moveaxis(np.pad(values, edges, constant_values=-np.inf), axis, 0)
        reach = 1
        while reach < size:  # each row has the maximum of the `reach` rows from it on
            step = min(reach, size - reach)
            values = np.maximum(values[:-step], values[step:])
            reach += step
        values = np.moveaxis(values, 0, axis)
    return values


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
