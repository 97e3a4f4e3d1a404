import numpy as np
import pytest
from PIL import Image

from dist_mnist.config.data_schema import Fit
from dist_mnist.data.fitting import fit_picture


def picture(pixels: object) -> Image.Image:
    return Image.fromarray(np.array(pixels, dtype=np.uint8)).convert("RGB")


def fitted(pixels: object, shape: list[int], fit: Fit = Fit.pad) -> list[object]:
    return [*fit_picture(picture(pixels), shape, fit).tolist()]


def test_same_size_keeps_every_value() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(fit_picture(picture(values), [1, 16, 16], Fit.pad)[0], values)


def test_each_pixel_shrinks_into_a_new_one() -> None:
    """With the weights of a triangle that spans two new pixels on each side."""
    wide = [[0] * 8 + [240] * 8]
    (row,) = fitted(wide, [1, 1, 4], Fit.stretch)
    # 1 3 5 7 7 5 3 1 of 32 are the weights of the 8 pixels around the second one's center; the last
    # two of them are white.
    assert row == [[0, 30, 210, 240]]


def test_no_pixel_is_passed_over() -> None:
    for place in range(40):
        pixels = np.zeros((40, 40), dtype=np.uint8)
        pixels[place, place] = 255
        assert fit_picture(picture(pixels), [1, 8, 8], Fit.pad).any()


def test_enlarging_blends_neighbors() -> None:
    assert fitted([[0, 80]], [1, 2, 4]) == [[[0, 20, 60, 80]] * 2]


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        (Fit.pad, [[0, 0, 0, 0], [40, 48, 96, 104], [40, 48, 96, 104], [0, 0, 0, 0]]),
        (Fit.crop, [[50, 50, 90, 90]] * 4),
        (Fit.stretch, [[40, 48, 96, 104]] * 4),
    ],
)
def test_another_aspect(fit: Fit, expected: list[list[int]]) -> None:
    wide = np.repeat([[40] * 4 + [104] * 4], 4, axis=0)
    if fit is Fit.crop:
        wide = np.repeat([[0, 0, 50, 50, 90, 90, 0, 0]], 4, axis=0)
    assert fitted(wide, [1, 4, 4], fit) == [expected]


def test_luminance_and_color() -> None:
    red = np.zeros((2, 2, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert fitted(red, [1, 1, 1]) == [[[76]]]
    assert fitted(red, [3, 1, 1]) == [[[255]], [[0]], [[0]]]


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (4000, 3)])
@pytest.mark.parametrize("fit", Fit)
def test_odd_sizes_fill_the_shape(size: tuple[int, int], fit: Fit) -> None:
    pixels = fit_picture(Image.new("RGB", size, (9, 9, 9)), [3, 28, 20], fit)
    assert pixels.shape == (3, 28, 20)
    assert pixels.max() == 9
    assert fit is Fit.pad or pixels.min() == 9


def test_white_stays_white() -> None:
    for side in (29, 57, 113, 1000):
        assert fit_picture(Image.new("L", (side, side), 255), [1, 28, 28], Fit.crop).min() == 255
