"""The connected components of a mask, found from its runs without a loop over pixels.

`scipy.ndimage` gives the same answer for the components, and for the maximum filters of ink.py and
strokes.py, but no drawing is read sooner; this much code is cheaper than a dependency of 140 MB.
"""

import numpy as np
from numpy.typing import NDArray


def label_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Number the connected parts of a mask; pixels that touch at a corner are connected.

    A run is a stretch of a row without a gap. Runs in neighboring rows that touch are joined, and
    every run takes the lowest number in reach until nothing changes.

    Args:
        mask: bool of shape (H, W).

    Returns:
        int64 of shape (H, W), numbered from 1 in the order of their first pixels, 0 outside; and
        the number of parts.
    """
    labels = np.zeros(mask.shape, dtype=np.int64)
    width = mask.shape[1] + 2
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = ((edges == sign).nonzero() for sign in (1, -1))
    first, last = starts[0] * width + starts[1], ends[0] * width + ends[1]
    # The runs of the row above that touch a run are neighbors in this order.
    low = np.searchsorted(last, first - width, side="left")
    high = np.searchsorted(first, last - width, side="right")
    counts = np.maximum(high - low, 0)
    below = np.repeat(np.arange(len(first)), counts)
    above = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + low[below]
    roots = _roots(len(first), above, below)
    numbers, index = np.unique(roots, return_inverse=True)
    labels[mask] = np.repeat(index + 1, last - first)
    return labels, len(numbers)


def _roots(count: int, above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each of `count` nodes the lowest one that edges connect it to."""
    roots = np.arange(count)
    while True:
        lowest = np.minimum(roots[above], roots[below])
        joined = roots.copy()
        # Both ends and the nodes they pointed to now point to the lower of the two.
        for ends in (roots[above], roots[below]):
            np.minimum.at(joined, ends, lowest)
        while not np.array_equal(joined, shorter := joined[joined]):
            joined = shorter
        if np.array_equal(joined, roots):
            return roots
        roots = joined
