"""Connected parts, against a search that goes from pixel to pixel."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_mnist.digits.components import label_components


def plain_search(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    labels, count = np.zeros(mask.shape, dtype=np.int64), 0
    for start in zip(*mask.nonzero(), strict=True):
        if labels[start]:
            continue
        count += 1
        todo = [start]
        while todo:
            row, column = todo.pop()
            inside = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
            if inside and mask[row, column] and not labels[row, column]:
                labels[row, column] = count
                todo += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return labels, count


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.4, 0.5, 0.7, 1.0])
def test_random_masks(density: float) -> None:
    chance = np.random.default_rng(0)
    for _ in range(20):
        mask = chance.random(chance.integers(1, 25, 2)) < density
        labels, count = label_components(mask)
        expected, expected_count = plain_search(mask)
        assert count == expected_count
        assert np.array_equal(labels, expected)


def test_a_spiral_is_one_part() -> None:
    y, x = np.mgrid[:200, :200] - 100
    spiral = np.sin(np.hypot(x, y) / 3 - np.arctan2(y, x)) > 0
    assert label_components(spiral)[1] == plain_search(spiral)[1]


def test_corners_connect_and_row_ends_do_not() -> None:
    assert label_components(np.eye(5, dtype=bool))[1] == 1
    mask = np.zeros((3, 4), dtype=bool)
    mask[0, 3] = mask[1, 0] = True
    assert label_components(mask)[1] == 2
