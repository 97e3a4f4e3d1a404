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


def test_a_pixel_is_the_mean_of_its_area() -> None:
    assert fitted([[0, 100, 10, 10], [100, 200, 10, 10]], [1, 1, 2]) == [[[100, 10]]]
    # Two thirds of one pixel and a third of the next: (2 * 0 + 90) / 3 and (90 + 2 * 240) / 3.
    assert fitted([[0, 90, 240]], [1, 1, 2], Fit.stretch) == [[[30, 190]]]


def test_enlarging_repeats_pixels() -> None:
    assert fitted([[7, 9]], [1, 2, 4]) == [[[7, 7, 9, 9], [7, 7, 9, 9]]]


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        (Fit.pad, [[0, 0, 0, 0], [40, 60, 80, 100], [40, 60, 80, 100], [0, 0, 0, 0]]),
        (Fit.crop, [[50, 50, 90, 90]] * 4),
        (Fit.stretch, [[40, 60, 80, 100]] * 4),
    ],
)
def test_another_aspect(fit: Fit, expected: list[list[int]]) -> None:
    wide = np.repeat([[40, 40, 60, 60, 80, 80, 100, 100]], 4, axis=0)
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
