"""Digits of MNIST come back nearly as they were, and others are found and read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dist_mnist import load_classifier
from dist_mnist.data.decode import read_picture
from dist_mnist.data.mnist import MNIST
from dist_mnist.digits.find import Digit, find_digits
from dist_mnist.digits.mnist_form import make_like_mnist
from tests.support.photos import SCENES, take_photo, write_number
from tests.support.strokes import draw, picture

NETWORK = load_classifier()


def read(digits: list[Digit]) -> str:
    if not digits:
        return ""
    images = torch.stack([digit.image for digit in digits]).unsqueeze(1)
    return "".join(NETWORK.classes[index] for index in NETWORK(images).argmax(1).tolist())


def gray(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB")


def inverted(picture: Image.Image) -> Image.Image:
    return ImageOps.invert(picture.resize((140, 140), Image.Resampling.NEAREST)).convert("RGB")


def enlarged(picture: Image.Image) -> Image.Image:
    return picture.resize((280, 280), Image.Resampling.BICUBIC).convert("RGB")


def moved_in_color(picture: Image.Image) -> Image.Image:
    ink = picture.resize((168, 168), Image.Resampling.BICUBIC)
    paper = Image.new("RGB", (400, 260), (70, 110, 190))
    paper.paste((230, 120, 50), (190, 40), ink)
    return paper


WAYS = {
    # the way, and by how much of 255 a pixel may change on average
    gray: 1.5,
    inverted: 2.0,
    enlarged: 7.5,
    moved_in_color: 8.0,
}


@pytest.fixture(scope="module")
def test_set(mnist_root: Path) -> MNIST:
    return MNIST(str(mnist_root), train=False)


def test_mnist_is_made_like_mnist(test_set: MNIST) -> None:
    images = test_set.data[:500].numpy()
    again = np.stack([make_like_mnist(image.astype(np.float32) / 255) for image in images])
    change = np.abs(again.astype(int) - images).mean(axis=(1, 2))
    assert (change == 0).mean() > 0.85
    assert change.max() < 0.5


def come_back(test_set: MNIST, count: int, way: int) -> tuple[float, float, float]:
    """Return the share read right before and after, and the mean change of a pixel.

    A digit that falls to pieces, or is lost, comes back as nothing.
    """
    function = list(WAYS)[way]
    images = test_set.data[:count]
    found = [find_digits(function(Image.fromarray(image.numpy()))) for image in images]
    assert sum(len(digits) == 1 for digits in found) >= 0.998 * count
    nothing = torch.zeros(28, 28, dtype=torch.uint8)
    again = torch.stack([digits[0].image if len(digits) == 1 else nothing for digits in found])
    right = [
        float((NETWORK(part.unsqueeze(1)).argmax(1) == test_set.targets[:count]).float().mean())
        for part in (images, again)
    ]
    return right[0], right[1], float((again.int() - images.int()).abs().float().mean())


@pytest.mark.parametrize("way", range(len(WAYS)), ids=[way.__name__ for way in WAYS])
def test_digits_come_back_nearly_as_they_were(test_set: MNIST, way: int) -> None:
    before, after, change = come_back(test_set, 80, way)
    assert after >= before - 0.005
    assert change < list(WAYS.values())[way]


@pytest.mark.slow
@pytest.mark.parametrize("way", range(len(WAYS)), ids=[way.__name__ for way in WAYS])
def test_many_digits_come_back(test_set: MNIST, way: int) -> None:
    before, after, change = come_back(test_set, 1_000, way)
    assert after >= before - 0.005
    assert change < list(WAYS.values())[way]


def share_of_drawings(seeds: range, pen: float | None = None) -> float:
    right = [
        read(find_digits(picture(draw(seed, pen)).convert("RGB"))) == str(seed % 10)
        for seed in seeds
    ]
    return sum(right) / len(right)


def test_drawings_are_read() -> None:
    assert share_of_drawings(range(80)) > 0.967


@pytest.mark.slow
def test_many_drawings_are_read() -> None:
    assert share_of_drawings(range(2_000)) > 0.99


@pytest.mark.parametrize("pen", [0.005, 0.015, 0.15])
def test_pens_of_any_width(pen: float) -> None:
    assert share_of_drawings(range(5_000, 5_020), pen) >= 0.95


@pytest.mark.parametrize("scene", SCENES)
def test_a_photo_of_2026_reads_2026(scene: str) -> None:
    photo = read_picture(take_photo(write_number("2026", 1), SCENES[scene], seed=1))
    assert read(find_digits(photo)) == "2026"


@pytest.mark.parametrize("scene", SCENES)
def test_empty_paper_has_no_digit(scene: str) -> None:
    photo = take_photo(np.zeros((300, 400)), SCENES[scene], seed=3)
    assert find_digits(read_picture(photo)) == []


def stack(*rows: np.ndarray) -> Image.Image:
    paper = Image.fromarray((255 * (1 - np.concatenate(rows))).astype(np.uint8))
    return paper.convert("RGB")


def test_boxes_are_in_pixels_of_the_picture() -> None:
    ink = np.zeros((900, 3000))
    ink[300:600, 400:460] = ink[200:700, 2500:2580] = 1
    digits = find_digits(stack(ink))
    expected = [(400, 300, 460, 600), (2500, 200, 2580, 700)]
    assert len(digits) == 2
    for digit, box in zip(digits, expected, strict=True):
        assert digit.image.shape == (28, 28)
        assert digit.image.dtype == torch.uint8
        assert np.abs(np.array(digit.box) - box).max() <= 4  # a pixel of the smaller copy


def test_lines_are_read_from_the_top() -> None:
    rows = [write_number(number, 5, (600, 200)) for number in ("31", "42", "7")]
    assert read(find_digits(stack(*rows))) == "31427"


def test_strokes_that_do_not_touch_are_one_digit() -> None:
    ink = np.zeros((300, 300))
    ink[60:75, 150:220] = 1  # the hat of a 5, a little apart from the rest
    ink[70:140, 105:120] = ink[130:145, 105:190] = 1
    ink[140:220, 180:195] = ink[210:225, 100:190] = 1
    (digit,) = find_digits(stack(ink))
    assert digit.box == (100, 60, 220, 225)


def test_specks_frames_and_lines_are_no_digits() -> None:
    ink = write_number("8", 3, (400, 400))
    ink[:4] = ink[-4:] = ink[:, :4] = ink[:, -4:] = 1  # a frame
    ink[380:384, 10:390] = 1  # a line
    ink[30:34, 40:44] = ink[350:354, 300:303] = 1  # dust
    assert read(find_digits(stack(ink))) == "8"


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 500), (28, 28), (300, 200)])
@pytest.mark.parametrize("color", ["black", "white", "#3060c0"])
def test_one_color_has_no_digit(size: tuple[int, int], color: str) -> None:
    assert find_digits(Image.new("RGB", size, color)) == []


def test_noise_and_gradients_have_no_digit() -> None:
    chance = np.random.default_rng(0)
    noise = chance.integers(0, 256, (200, 200, 3)).astype(np.uint8)
    slope = np.tile(np.arange(256, dtype=np.uint8), (200, 1))
    for values in (noise, slope, np.where(slope > 128, 255, 0).astype(np.uint8)):
        assert find_digits(Image.fromarray(values).convert("RGB")) == []


def test_neighbors_stay_out_of_a_digit() -> None:
    """The long bar of a 7 hangs over the 1 before it, whose image is that of a 1 alone."""
    ink = np.zeros((200, 300))
    ink[60:160, 100:112] = 1
    ink[40:50, 106:200] = ink[50:160, 188:200] = 1
    one, seven = sorted(find_digits(stack(ink)), key=lambda digit: digit.box[2])
    assert one.box == (100, 60, 112, 160)
    assert int((one.image > 0).sum(dim=1).max()) <= 4
    assert seven.box == (106, 40, 200, 160)


@pytest.mark.parametrize("edges", [(120, 0, 0, 0), (120, 100, 0, 0), (120, 90, 100, 80)])
def test_a_sheet_on_a_dark_table(edges: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = edges
    sheet = read_picture(take_photo(write_number("58", 42, (700, 400)), SCENES["paper"], 2))
    table = Image.new("RGB", (sheet.width + left + right, sheet.height + top + bottom), "#462d1e")
    table.paste(sheet, (left, top))
    five, eight = find_digits(table)
    assert read([five, eight]) == "58"
    assert left < five.box[0] < five.box[2] < eight.box[0] < eight.box[2] < left + sheet.width
    assert top < eight.box[1] < eight.box[3] < top + sheet.height
